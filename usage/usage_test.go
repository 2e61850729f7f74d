package usage_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lethe/event"
	"lethe/fault"
	"lethe/private"
	"lethe/protocol"
	"lethe/usage"
)

func record(n byte) usage.Record {
	return usage.Record{
		Key: usage.Key{Date: 20780, User: usage.UserHash{n}, Country: "NL", ISP: "LAB FIBRE", Location: 1, Protocol: protocol.OpenVPNUDP},
		In:  uint64(n), Out: 1,
	}
}

// TestHash pins the hash to HMAC-SHA-256, so that the two ends agree for ever.
// The vector is RFC 4231's first case with a key padded to 32 bytes by zeros,
// which HMAC does as well.
func TestHash(t *testing.T) {
	var key [32]byte
	for i := range 20 {
		key[i] = 0x0b
	}
	got := usage.Hash(private.Of(key), []byte("Hi There")).String()
	if got != "b0344c61d8db38535ca8afceaf0bf12b" {
		t.Errorf("got %s", got)
	}
	if usage.Hash(private.Of([32]byte{}), []byte("Hi There")).String() == got {
		t.Error("the salt does not matter")
	}
}

// TestFields holds the record to the fields of the privacy policy.
func TestFields(t *testing.T) {
	b, err := json.Marshal(record(1))
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	var names []string
	for n := range fields {
		names = append(names, n)
	}
	slices.Sort(names)
	want := []string{"country", "date", "isp", "location", "mb_in", "mb_out", "protocol", "user"}
	if !slices.Equal(names, want) {
		t.Errorf("a record has %v, want %v", names, want)
	}
}

func TestEncodePads(t *testing.T) {
	lengths := map[int]bool{}
	for n := range 200 {
		b := usage.Batch{ID: usage.NewBatchID()}
		for i := range n {
			b.Records = append(b.Records, record(byte(i)))
		}
		body, err := b.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if len(body)%usage.PadTo != 0 {
			t.Fatalf("%d records make %d bytes", n, len(body))
		}
		lengths[len(body)] = true
		var back usage.Batch
		if err := json.Unmarshal(body, &back); err != nil {
			t.Fatal(err)
		}
		if back.ID != b.ID || len(back.Records) != n {
			t.Fatalf("%d records come back as %d", n, len(back.Records))
		}
	}
	if len(lengths) > 10 {
		t.Errorf("%d different lengths", len(lengths))
	}
}

func TestValidate(t *testing.T) {
	good := usage.Batch{Records: []usage.Record{record(1), record(2)}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*usage.Batch){
		"country":        func(b *usage.Batch) { b.Records[0].Country = "n1" },
		"isp of":         func(b *usage.Batch) { b.Records[0].ISP = strings.Repeat("x", 65) },
		"no location":    func(b *usage.Batch) { b.Records[0].Location = 0 },
		"2^40":           func(b *usage.Batch) { b.Records[1].Out = 1<<40 + 1 },
		"twice":          func(b *usage.Batch) { b.Records[1] = b.Records[0] },
		"4097 records":   func(b *usage.Batch) { b.Records = make([]usage.Record, 4097) },
		"two capital":    func(b *usage.Batch) { b.Records[0].Country = "" },
		"want at most 6": func(b *usage.Batch) { b.Records[1].ISP = strings.Repeat("y", 100) },
	} {
		b := usage.Batch{Records: []usage.Record{record(1), record(2)}}
		spoil(&b)
		if err := b.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestTextForms(t *testing.T) {
	id := usage.NewBatchID()
	text, _ := id.MarshalText()
	var back usage.BatchID
	if err := back.UnmarshalText(text); err != nil || back != id {
		t.Errorf("%s comes back as %s, %v", id, back, err)
	}
	var h usage.UserHash
	for _, bad := range []string{"", "zz", strings.Repeat("g", 32), strings.Repeat("0", 34)} {
		if h.UnmarshalText([]byte(bad)) == nil || back.UnmarshalText([]byte(bad)) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// outbox is an Outbox with a plain queue.
type outbox struct {
	queue []usage.Record
	now   usage.Batch
}

func (o *outbox) Freeze() usage.Batch {
	if o.now.ID == (usage.BatchID{}) {
		n := min(len(o.queue), 2)
		o.now = usage.Batch{ID: usage.NewBatchID(), Records: o.queue[:n]}
		o.queue = o.queue[n:]
	}
	return o.now
}

func (o *outbox) Acked(id usage.BatchID) {
	if id == o.now.ID {
		o.now = usage.Batch{}
	}
}

func (o *outbox) Pending() int { return len(o.queue) + len(o.now.Records) }

func TestFlushSendsAll(t *testing.T) {
	o := &outbox{queue: []usage.Record{record(1), record(2), record(3)}}
	var got []usage.Record
	s := usage.Sender{Outbox: o, Post: func(_ context.Context, body []byte) error {
		var b usage.Batch
		if err := json.Unmarshal(body, &b); err != nil {
			return err
		}
		got = append(got, b.Records...)
		return nil
	}}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, []usage.Record{record(1), record(2), record(3)}) {
		t.Errorf("sent %+v", got)
	}
}

func TestFlushKeepsWhatFailed(t *testing.T) {
	boom := errors.New("boom")
	o := &outbox{queue: []usage.Record{record(1)}}
	s := usage.Sender{Outbox: o, Post: func(context.Context, []byte) error { return boom }}
	if err := s.Flush(t.Context()); !errors.Is(err, boom) || o.Pending() != 1 {
		t.Errorf("got %v, %d pending", err, o.Pending())
	}
}

// TestDrain shows that a server that stops tries again, and not for ever.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom, calls := errors.New("boom"), 0
		o := &outbox{queue: []usage.Record{record(1)}}
		s := usage.Sender{Outbox: o, Post: func(context.Context, []byte) error {
			if calls++; calls < 4 {
				return boom
			}
			return nil
		}}
		if err := s.Drain(t.Context()); err != nil || o.Pending() != 0 || calls != 4 {
			t.Errorf("%v after %d calls, %d records wait", err, calls, o.Pending())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		o.queue, calls = []usage.Record{record(2)}, -1<<20
		if err := s.Drain(ctx); !errors.Is(err, boom) || o.Pending() != 1 {
			t.Errorf("%v, %d records wait", err, o.Pending())
		}
	})
}

// TestFlushDropsWhatIsRefusedForGood shows that one impossible batch does not
// keep back the next.
func TestFlushDropsWhatIsRefusedForGood(t *testing.T) {
	o := &outbox{queue: []usage.Record{record(1), record(2), record(3)}}
	var log bytes.Buffer
	calls := 0
	s := usage.Sender{Outbox: o, Log: event.New(&log), Post: func(context.Context, []byte) error {
		if calls++; calls == 1 {
			return fault.New(fault.Invalid, "no")
		}
		return nil
	}}
	if err := s.Flush(t.Context()); err != nil || o.Pending() != 0 || calls != 2 {
		t.Errorf("got %v, %d pending, %d calls", err, o.Pending(), calls)
	}
	if log.String() != "trouble part=usage kind=invalid\n" {
		t.Errorf("logged %q", log.String())
	}
}

// TestMomentsDoNotDependOnSessions runs a sender for a simulated day with
// and without sessions, and with a control plane that fails half the time: the
// moments of sending are equally spaced and equally many.
func TestMomentsDoNotDependOnSessions(t *testing.T) {
	for name, busy := range map[string]bool{"idle": false, "busy": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
				defer cancel()
				o := &outbox{}
				var moments []time.Time
				var log bytes.Buffer
				s := usage.Sender{
					Outbox: o, Every: func() time.Duration { return time.Hour }, Log: event.New(&log),
					Post: func(context.Context, []byte) error {
						moments = append(moments, time.Now())
						if busy {
							o.queue = append(o.queue, record(byte(len(moments))))
							return fault.New(fault.Unavailable, "later")
						}
						return nil
					},
				}
				s.Run(ctx)
				if len(moments) < 23 || len(moments) > 24 {
					t.Errorf("%d batches in a day", len(moments))
				}
				for i := 1; i < len(moments); i++ {
					if d := moments[i].Sub(moments[i-1]); d != time.Hour {
						t.Errorf("two batches are %v apart", d)
					}
				}
				if got := strings.Count(log.String(), "trouble part=usage kind=unavailable\n"); busy && got != len(moments) {
					t.Errorf("%d troubles logged for %d failures", got, len(moments))
				}
			})
		})
	}
}

// TestMomentsFollowTheInterval lets a sender start with a long interval, as an agent
// does before its first bundle, and tells it of a short one. Polls that
// change nothing move nothing.
func TestMomentsFollowTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		changed, began, asked := make(chan struct{}), time.Now(), 0
		var moments []time.Duration
		s := usage.Sender{
			Outbox: &outbox{}, Changed: changed,
			Every: func() time.Duration {
				if asked++; asked == 1 {
					return 240 * time.Hour
				}
				return time.Hour
			},
			Post: func(context.Context, []byte) error { moments = append(moments, time.Since(began)); return nil },
		}
		var polls sync.WaitGroup
		polls.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(time.Minute) {
				select {
				case changed <- struct{}{}:
				case <-ctx.Done():
				}
			}
		})
		s.Run(ctx)
		polls.Wait()
		if len(moments) < 23 || moments[0] > time.Hour {
			t.Fatalf("%d batches in a day, at %v", len(moments), moments)
		}
		for i := 1; i < len(moments); i++ {
			if d := moments[i] - moments[i-1]; d != time.Hour {
				t.Errorf("two batches are %v apart", d)
			}
		}
	})
}

func FuzzBatch(f *testing.F) {
	body, _ := usage.Batch{Records: []usage.Record{record(1)}}.Encode()
	f.Add(body)
	f.Add([]byte(`{"id":"00","records":[{"country":"NL"}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		var b usage.Batch
		if json.Unmarshal(in, &b) != nil || b.Validate() != nil {
			return
		}
		out, err := b.Encode()
		if err != nil || len(out)%usage.PadTo != 0 {
			t.Errorf("a valid batch encodes to %d bytes, %v", len(out), err)
		}
	})
}
