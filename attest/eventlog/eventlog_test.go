package eventlog_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	referee "github.com/google/go-attestation/attest"

	"lethe/attest/attesttest"
	"lethe/attest/eventlog"
	"lethe/image/pcr"
)

func machine() *attesttest.Machine { return attesttest.Boot(attesttest.TheImage("seven")) }

func parse(t testing.TB, b []byte) *eventlog.Log {
	t.Helper()
	l, err := eventlog.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestParse(t *testing.T) {
	m := machine()
	l := parse(t, m.Log())
	if len(l.Events) != len(m.Events) {
		t.Fatalf("%d events, want %d", len(l.Events), len(m.Events))
	}
	for i, e := range l.Events {
		if want := m.Events[i]; e.Index != want.Index || e.Type != want.Type || e.Digest != want.Digest || !bytes.Equal(e.Data, want.Data) {
			t.Errorf("event %d: %+v, want %+v", i, e, want)
		}
	}
	m.Phases = nil
	values := l.Replay()
	for index, want := range m.Registers() {
		if values[index] != want {
			t.Errorf("PCR %d: %x, want %x", index, values[index], want)
		}
	}
	if e := attesttest.Hashed(1, eventlog.Action, []byte("x")); !e.Hashed() {
		t.Error("data that was measured is not")
	}
}

// TestLocality: a TPM that was started from another locality begins at another value.
func TestLocality(t *testing.T) {
	m := machine()
	m.Events = append(m.Events, attesttest.Event{Type: eventlog.NoAction, Data: []byte("something else")})
	start := attesttest.Event{Type: eventlog.NoAction, Data: append([]byte("StartupLocality\x00"), 3)}
	m.Events = slices.Insert(m.Events, 0, start)
	l := parse(t, m.Log())
	want := pcr.Value{31: 3}
	for _, e := range m.Events {
		if e.Index == 0 && e.Type != eventlog.NoAction {
			want = want.ExtendDigest(e.Digest)
		}
	}
	if got := l.Replay()[0]; l.Locality != 3 || got != want {
		t.Errorf("locality %d: %x, want %x", l.Locality, got, want)
	}
	m.Events = slices.Insert(m.Events, 0, start)
	if _, err := eventlog.Parse(m.Log()); !errors.Is(err, eventlog.ErrMalformed) {
		t.Errorf("two localities: %v", err)
	}
}

// agree compares with what github.com/google/go-attestation reads.
func agree(t *testing.T, raw []byte) *eventlog.Log {
	t.Helper()
	l, err := eventlog.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	other, err := referee.ParseEventLog(raw)
	if err != nil {
		t.Fatalf("the referee: %v", err)
	}
	events := other.Events(referee.HashSHA256)
	own := slices.DeleteFunc(slices.Clone(l.Events), func(e eventlog.Event) bool { return e.Type == eventlog.NoAction })
	if len(events) != len(own) {
		t.Fatalf("%d events, the referee has %d", len(own), len(events))
	}
	var pcrs []referee.PCR
	for index, v := range l.Replay() {
		pcrs = append(pcrs, referee.PCR{Index: index, Digest: v[:], DigestAlg: crypto.SHA256})
	}
	for i, e := range events {
		if own[i].Index != e.Index || uint32(own[i].Type) != uint32(e.Type) || !bytes.Equal(own[i].Digest[:], e.Digest) || !bytes.Equal(own[i].Data, e.Data) {
			t.Errorf("event %d: %+v, the referee has %+v", i, own[i], e)
		}
	}
	if _, err := other.Verify(pcrs); err != nil {
		t.Errorf("our replay does not satisfy the referee: %v", err)
	}
	return l
}

func TestReferee(t *testing.T) { agree(t, machine().Log()) }

// realLogs returns the directory of the logs of real machines that come with the referee's source.
func realLogs(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-attestation").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "attest", "testdata")
}

// TestRealLogs reads logs of real machines that come with the referee's source; some are of the old form without
// SHA-256.
func TestRealLogs(t *testing.T) {
	read, dir := 0, realLogs(t)
	for _, c := range []struct {
		name string
		want error
	}{
		{"crypto_agile_eventlog", nil}, {"sb_cert_eventlog", nil}, {"option_rom_eventlog", eventlog.ErrNoHeader}, {"coreos_36_shielded_vm_no_secure_boot_eventlog", nil},
		{"ubuntu_2104_shielded_vm_no_secure_boot_eventlog", nil}, {"ebs_event_missing_eventlog", eventlog.ErrNoHeader}, {"short_no_action_eventlog", eventlog.ErrNoHeader},
	} {
		raw, err := os.ReadFile(filepath.Join(dir, c.name))
		if err != nil {
			t.Fatal(err)
		}
		t.Run(c.name, func(t *testing.T) {
			if c.want != nil {
				if _, err := eventlog.Parse(raw); !errors.Is(err, c.want) {
					t.Errorf("%v, want %v", err, c.want)
				}
				return
			}
			l := agree(t, raw)
			read += len(l.Events)
			variables := 0
			for _, e := range l.Events {
				if v, err := eventlog.ParseVariable(e.Data); err == nil && v.Name == "SecureBoot" && e.Index == 7 && e.Hashed() {
					variables++
				}
			}
			if variables != 1 {
				t.Errorf("Secure Boot was measured %d times", variables)
			}
		})
	}
	if read < 200 {
		t.Errorf("%d events in all", read)
	}
}

func TestRefusals(t *testing.T) {
	header := attesttest.Header(4, 20, 11, 32)
	event := attesttest.Record(attesttest.Hashed(1, eventlog.Action, []byte("x")))
	put := func(b []byte, at int, x ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], x)
		return b
	}
	for _, c := range []struct {
		name string
		want error
		log  []byte
	}{
		{"nothing", eventlog.ErrNoHeader, nil},
		{"header cut", eventlog.ErrNoHeader, header[:len(header)-1]},
		{"header in register 1", eventlog.ErrNoHeader, put(header, 0, 1)},
		{"header of another type", eventlog.ErrNoHeader, put(header, 4, 4)},
		{"header with a digest", eventlog.ErrNoHeader, put(header, 8, 4)},
		{"header with a length beyond it", eventlog.ErrNoHeader, put(header, 28, 0xff, 0xff, 0xff, 0xff)},
		{"header of version 1", eventlog.ErrNoHeader, put(header, 32+21, 1)},
		{"header without algorithms", eventlog.ErrNoHeader, attesttest.Header()},
		{"header with nine algorithms", eventlog.ErrNoHeader, attesttest.Header(1, 1, 2, 1, 3, 1, 4, 1, 5, 1, 6, 1, 7, 1, 8, 1, 11, 32)},
		{"header with a digest of no size", eventlog.ErrNoHeader, attesttest.Header(4, 0, 11, 32)},
		{"header with a digest of 65 bytes", eventlog.ErrNoHeader, attesttest.Header(4, 65, 11, 32)},
		{"header with bytes after the vendor's", eventlog.ErrNoHeader, func() []byte {
			b := append(bytes.Clone(header), 0)
			binary.LittleEndian.PutUint32(b[28:], binary.LittleEndian.Uint32(b[28:])+1)
			return b
		}()},
		{"vendor's bytes that are not there", eventlog.ErrNoHeader, put(header, len(header)-1, 9)},
		{"no SHA-256", eventlog.ErrNoBank, attesttest.Header(4, 20)},
		{"a mebibyte and a byte", eventlog.ErrTooLarge, make([]byte, eventlog.MaxSize+1)},
		{"too many events", eventlog.ErrTooLarge, append(bytes.Clone(header), bytes.Repeat(event, eventlog.MaxEvents+1)...)},
		{"event cut", eventlog.ErrMalformed, append(bytes.Clone(header), event[:len(event)-1]...)},
		{"event of four bytes", eventlog.ErrMalformed, append(bytes.Clone(header), event[:4]...)},
		{"event without digests", eventlog.ErrMalformed, append(bytes.Clone(header), event[:14]...)},
		{"event with an algorithm that the header does not name", eventlog.ErrMalformed, append(bytes.Clone(header), put(event, 12, 12)...)},
		{"event longer than the log", eventlog.ErrMalformed, append(bytes.Clone(header), put(event, len(event)-5, 0xff, 0xff, 0xff, 0xff)...)},
	} {
		if _, err := eventlog.Parse(c.log); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if l := parse(t, append(bytes.Clone(header), bytes.Repeat(event, eventlog.MaxEvents)...)); len(l.Events) != eventlog.MaxEvents {
		t.Errorf("%d events", len(l.Events))
	}
}

func TestTypes(t *testing.T) {
	seen := map[string]bool{}
	for _, want := range append(eventlog.Types(), 0x1234, 0x8000ffff) {
		text, err := want.MarshalText()
		if err != nil || seen[string(text)] {
			t.Errorf("%q: %v", text, err)
		}
		seen[string(text)] = true
		var got eventlog.Type
		if err := got.UnmarshalText(text); err != nil || got != want {
			t.Errorf("%q is %v: %v", text, got, err)
		}
	}
	for _, text := range []string{"", "EV_", "0x4", "0x00000004", "4", "0x0000g000", "0x100000000"} {
		var got eventlog.Type
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestData(t *testing.T) {
	data := attesttest.VariableData(pcr.Global, "Größe", []byte{1, 2})
	v, err := eventlog.ParseVariable(data)
	if err != nil || v.Name != "Größe" || v.Vendor != pcr.Global || !bytes.Equal(v.Data, []byte{1, 2}) {
		t.Errorf("%+v: %v", v, err)
	}
	for name, b := range map[string][]byte{"cut": data[:len(data)-1], "longer": append(bytes.Clone(data), 0), "nothing": nil,
		"a name of 2^63": append(append(bytes.Clone(data[:16]), 0, 0, 0, 0, 0, 0, 0, 0x80), data[24:]...)} {
		if _, err := eventlog.ParseVariable(b); !errors.Is(err, eventlog.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := machine()
	tag := m.Events[m.Find(9, eventlog.Tag)].Data
	id, content, err := eventlog.ParseTag(tag)
	if err != nil || id != 0x8f3b22ec || string(content) != "Linux initrd" {
		t.Errorf("%x %q: %v", id, content, err)
	}
	for _, b := range [][]byte{nil, tag[:len(tag)-1], append(bytes.Clone(tag), 0)} {
		if _, _, err := eventlog.ParseTag(b); !errors.Is(err, eventlog.ErrMalformed) {
			t.Errorf("%x: %v", b, err)
		}
	}
}

// FuzzParse: a log has one reading: writing what was read gives the log.
func FuzzParse(f *testing.F) {
	f.Add(machine().Log())
	f.Add(attesttest.Header(4, 20, 11, 32))
	f.Add(attesttest.Header(4, 20))
	f.Add([]byte{})
	real, err := filepath.Glob(filepath.Join(realLogs(f), "*_eventlog"))
	if err != nil || len(real) < 5 {
		f.Fatalf("%q: %v", real, err)
	}
	for _, path := range real {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := eventlog.Parse(b)
		if err != nil {
			return
		}
		size := 0
		for _, e := range l.Events {
			if e.Index < 0 || e.Index >= eventlog.Registers {
				t.Errorf("register %d", e.Index)
			}
			if e.Type == eventlog.NoAction && e.Digest != [sha256.Size]byte{} {
				t.Error("what extends nothing has a digest")
			}
			size += 16 + sha256.Size + len(e.Data)
			_, _ = eventlog.ParseVariable(e.Data)
			_, _, _ = eventlog.ParseTag(e.Data)
		}
		if size > len(b) {
			t.Errorf("%d bytes of events in %d of log", size, len(b))
		}
		l.Replay()
	})
}
