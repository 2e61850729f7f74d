package ledger_test

import (
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"lethe/day"
	"lethe/fault"
	"lethe/ledger"
	"lethe/protocol"
	"lethe/usage"
)

const today = day.Day(20780)

func create(t *testing.T, slots int) (*os.File, *ledger.Ledger) {
	t.Helper()
	f, err := ledger.Create(slots)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, reopen(t, f)
}

// reopen maps f again without closing the earlier mapping, as after a kill -9.
func reopen(t *testing.T, f *os.File) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func customer(n int) ledger.Session {
	return ledger.Session{
		Daemon: 2, Client: uint64(n), V4: netip.AddrFrom4([4]byte{10, 64, byte(n >> 8), byte(n)}),
		V6:   netip.MustParseAddr("fd6c:6574:6865::5"),
		User: usage.UserHash{byte(n), byte(n >> 8)}, Country: "NL", ISP: "LAB FIBRE", Location: 7, Protocol: protocol.OpenVPNTCP,
	}
}

func begin(t *testing.T, l *ledger.Ledger, n int, liveToo bool) ledger.Slot {
	t.Helper()
	i, err := l.Begin(customer(n))
	if err != nil {
		t.Fatal(err)
	}
	if liveToo {
		l.SetLive(i)
	}
	return i
}

func TestLifeOfASession(t *testing.T) {
	f, l := create(t, 64)
	i := begin(t, l, 1, false)
	want := customer(1)
	if got := l.Sessions()[i]; got != want {
		t.Errorf("open session is %+v, want %+v", got, want)
	}
	l.SetLive(i)
	want.Live = true
	if got := reopen(t, f).Sessions()[i]; got != want {
		t.Errorf("after a restart: %+v, want %+v", got, want)
	}
	l.End(i, today, 2_400_000, 1_600_000)
	if n := len(l.Sessions()); n != 0 {
		t.Errorf("%d sessions after the end", n)
	}
	b := l.Freeze()
	record := usage.Record{
		Key: usage.Key{Date: today, User: want.User, Country: "NL", ISP: "LAB FIBRE", Location: 7, Protocol: protocol.OpenVPNTCP},
		In:  2, Out: 2,
	}
	if !reflect.DeepEqual(b.Records, []usage.Record{record}) {
		t.Errorf("records %+v, want %+v", b.Records, record)
	}
	l.Acked(b.ID)
	if l.Pending() != 0 || len(l.Freeze().Records) != 0 {
		t.Error("a record is left after its delivery")
	}
}

// TestNothingIsLeft shows that an ended and delivered session leaves no byte
// in the memory that survives a restart.
func TestNothingIsLeft(t *testing.T) {
	f, l := create(t, 64)
	for n := range 40 {
		l.End(begin(t, l, n, n%2 == 0), today, 9e6, 9e6)
	}
	l.Acked(l.Freeze().ID)
	raw := make([]byte, 64*256)
	if _, err := f.ReadAt(raw, 256); err != nil {
		t.Fatal(err)
	}
	for at, b := range raw {
		if b != 0 {
			t.Fatalf("byte %d of slot %d is %#x", at%256, at/256, b)
		}
	}
}

// TestEndedSlotForgetsAddresses looks at the raw memory between the end of a
// session and the delivery of its record.
func TestEndedSlotForgetsAddresses(t *testing.T) {
	f, l := create(t, 4)
	l.End(begin(t, l, 0x1234, true), today, 1, 1)
	raw := make([]byte, 4*256)
	if _, err := f.ReadAt(raw, 256); err != nil {
		t.Fatal(err)
	}
	c := customer(0x1234)
	for name, mark := range map[string]string{
		"IPv4": string(c.V4.AsSlice()), "IPv6": string(c.V6.AsSlice()), "handle": "\x34\x12\x00\x00\x00\x00\x00\x00",
	} {
		if at := strings.Index(string(raw), mark); at >= 0 && name != "handle" {
			t.Errorf("%s address at byte %d", name, at%256)
		}
	}
}

func TestUnestablishedLeavesNoRecord(t *testing.T) {
	_, l := create(t, 4)
	l.End(begin(t, l, 1, false), today, 5e6, 5e6)
	if l.Pending() != 0 || len(l.Sessions()) != 0 {
		t.Error("a login that never became a tunnel left something")
	}
	// Ending twice, or after delivery, does nothing.
	i := begin(t, l, 2, true)
	l.End(i, today, 5e6, 5e6)
	l.End(i, today, 7e6, 7e6)
	if b := l.Freeze(); len(b.Records) != 1 || b.Records[0].In != 5 {
		t.Errorf("records %+v", b.Records)
	}
}

func TestMergeSumsBytesBeforeRounding(t *testing.T) {
	_, l := create(t, 64)
	for range 10 {
		l.End(begin(t, l, 1, true), today, 400_000, 0)
	}
	if b := l.Freeze(); len(b.Records) != 1 || b.Records[0].In != 4 || b.Records[0].Out != 0 {
		t.Errorf("ten times 0.4 MB give %+v", b.Records)
	}
}

// TestBatchSurvivesRestart walks the ways a delivery can be interrupted.
func TestBatchSurvivesRestart(t *testing.T) {
	f, l := create(t, 64)
	l.End(begin(t, l, 1, true), today, 3e6, 0)
	b := l.Freeze()
	l.End(begin(t, l, 2, true), today, 4e6, 0)

	l = reopen(t, f)
	again := l.Freeze()
	if again.ID != b.ID || !reflect.DeepEqual(again.Records, b.Records) {
		t.Errorf("after a restart the batch is %+v, want %+v", again, b)
	}
	l.Acked(usage.BatchID{1})
	if l.Pending() != 2 {
		t.Error("an acknowledgement of another batch was taken")
	}
	l.Acked(b.ID)
	l.Acked(b.ID)
	if next := l.Freeze(); next.ID == b.ID || len(next.Records) != 1 || next.Records[0].In != 4 {
		t.Errorf("the next batch is %+v", next)
	}
}

// TestHalfMarkedBatch builds the states that a kill -9 inside Freeze and Acked
// leaves behind.
func TestHalfMarkedBatch(t *testing.T) {
	for _, c := range []struct {
		name  string
		batch uint32
		want  int
	}{
		{"killed while marking", 0, 2},
		{"killed while freeing", 2, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, l := create(t, 8)
			l.End(begin(t, l, 1, true), today, 3e6, 0)
			l.End(begin(t, l, 2, true), today, 3e6, 0)
			l.Freeze()
			if _, err := f.WriteAt(binary.NativeEndian.AppendUint32(nil, c.batch), 16); err != nil {
				t.Fatal(err)
			}
			if got := reopen(t, f).Pending(); got != c.want {
				t.Errorf("%d records pending, want %d", got, c.want)
			}
		})
	}
}

func TestFull(t *testing.T) {
	_, l := create(t, 4)
	for n := range 4 {
		begin(t, l, n, true)
	}
	if _, err := l.Begin(customer(5)); fault.Of(err) != fault.Full {
		t.Errorf("got %v, want full", err)
	}
	// Ended slots with one key make room for each other.
	for i := range l.Sessions() {
		l.End(i, today, 1e6, 1e6)
	}
	for i := range maps.Keys(l.Sessions()) {
		t.Errorf("slot %d is still a session", i)
	}
	_, l = create(t, 4)
	for range 4 {
		l.End(begin(t, l, 1, true), today, 1e6, 2e6)
	}
	begin(t, l, 9, true)
	if b := l.Freeze(); len(b.Records) != 1 || b.Records[0].In != 4 || b.Records[0].Out != 8 {
		t.Errorf("after compacting: %+v", b.Records)
	}
}

// TestOrderTellsNothing compares the order of records with the order of
// sessions.
func TestOrderTellsNothing(t *testing.T) {
	_, l := create(t, 4096)
	var in []usage.UserHash
	for n := range 512 {
		l.End(begin(t, l, n, true), today, 1e6, 1e6)
		in = append(in, customer(n).User)
	}
	var out []usage.UserHash
	for _, r := range l.Freeze().Records {
		out = append(out, r.User)
	}
	if len(out) != len(in) || slices.Equal(in, out) {
		t.Error("records leave in the order in which sessions ended")
	}
	same := 0
	for i := range in {
		if in[i] == out[i] {
			same++
		}
	}
	if same > 32 {
		t.Errorf("%d of 512 records kept their place", same)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, content := range map[string][]byte{
		"empty": nil, "short": make([]byte, 100), "crooked": make([]byte, 256*3+1),
		"foreign": []byte(strings.Repeat("x", 512)),
	} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ledger.Open(f); err == nil {
			t.Errorf("%s: opened", name)
		}
		f.Close()
		if _, err := ledger.Open(f); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: a closed file gives %v", name, err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := ledger.Open(r); err == nil {
		t.Error("a pipe was opened")
	}
}

// TestAgainstModel runs random histories with restarts against a plain map.
func TestAgainstModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	f, l := create(t, 512)
	open := map[ledger.Slot]bool{}
	var sent, received uint64
	deliver := func() {
		b := l.Freeze()
		if rng.IntN(3) == 0 {
			l = reopen(t, f) // the acknowledgement is lost with the agent
			return
		}
		for _, r := range b.Records {
			received += r.In
		}
		l.Acked(b.ID)
	}
	for range 5000 {
		switch rng.IntN(5) {
		case 0, 1:
			if i, err := l.Begin(customer(rng.IntN(50))); err == nil {
				open[i] = true
				l.SetLive(i)
			}
		case 2, 3:
			for i := range open {
				l.End(i, today, 1e6, 0)
				sent++
				delete(open, i)
				break
			}
		case 4:
			deliver()
		}
		if len(l.Sessions()) != len(open) {
			t.Fatalf("%d sessions, want %d", len(l.Sessions()), len(open))
		}
	}
	for l.Pending() > 0 {
		deliver()
	}
	if received != sent {
		t.Errorf("%d MB delivered, want %d", received, sent)
	}
}
