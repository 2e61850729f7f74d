package vm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lethe/fault"
	"lethe/image/vm"
)

// TestOptions: what makes no sense is refused before anything is started, with a hint.
func TestOptions(t *testing.T) {
	dir := t.TempDir()
	needs := vm.Debian()
	needs.QEMU, needs.SWTPM, needs.Code = "no-such-qemu", "no-such-swtpm", "/no/such/firmware"
	for name, c := range map[string]struct {
		o    vm.Options
		kind fault.Kind
		says string
	}{
		"slot":             {vm.Options{Slot: "floppy"}, fault.Invalid, "floppy"},
		"CPUs":             {vm.Options{CPUs: 17}, fault.Invalid, "17 CPUs"},
		"memory":           {vm.Options{Memory: 64}, fault.Invalid, "64 MiB"},
		"no medium":        {vm.Options{Medium: filepath.Join(dir, "none.iso")}, fault.NotFound, "none.iso"},
		"no disk":          {vm.Options{Disks: []string{"/dev/null/disk"}}, fault.Denied, "/dev/null/disk"},
		"nothing here":     {vm.Options{Needs: needs}, fault.NotFound, "qemu-system-x86, swtpm, ovmf"},
		"nothing, no TPM":  {vm.Options{Needs: needs, NoTPM: true}, fault.NotFound, "qemu-system-x86, ovmf"},
		"a bad store":      {vm.Options{Variables: []byte("short"), Accel: vm.TCG}, fault.Unavailable, "qemu"},
		"QEMU that is not": {vm.Options{Needs: with(func(n *vm.Needs) { n.QEMU = "/bin/false" }), Accel: vm.TCG}, fault.Unavailable, "false ended"},
		"no store":         {vm.Options{Needs: with(func(n *vm.Needs) { n.Variables = dir }), Accel: vm.TCG}, fault.NotFound, dir},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := vm.Start(deadline(t), c.o)
			if fault.Of(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v (%v), want %v that says %q", err, fault.Of(err), c.kind, c.says)
			}
			if m != nil {
				t.Error("there is a machine")
			}
			if !none(t) {
				t.Error("a process is left")
			}
		})
	}
	if _, err := vm.Start(deadline(t), vm.Options{Needs: with(func(n *vm.Needs) { n.SWTPM = "/bin/false" }), Accel: vm.TCG}); err == nil || !strings.Contains(err.Error(), "false ended") {
		t.Errorf("a TPM that is none: %v", err)
	}
}

func with(change func(*vm.Needs)) vm.Needs {
	n := vm.Debian()
	change(&n)
	return n
}

// command is a TPM command or response.
func command(tag uint16, code uint32, rest ...any) []byte {
	var b bytes.Buffer
	for _, part := range rest {
		_ = binary.Write(&b, binary.BigEndian, part) // to memory
	}
	head := binary.BigEndian.AppendUint16(nil, tag)
	head = binary.BigEndian.AppendUint32(head, uint32(10+b.Len()))
	return append(binary.BigEndian.AppendUint32(head, code), b.Bytes()...)
}

func TestExtended(t *testing.T) {
	password := []any{uint32(9), make([]byte, 9)}
	sha1, sha256 := bytes.Repeat([]byte{1}, 20), bytes.Repeat([]byte{2}, 32)
	extend := func(rest ...any) []byte {
		return command(0x8002, 0x182, append(append([]any{uint32(7)}, password...), rest...)...)
	}
	both := extend(uint32(2), uint16(4), sha1, uint16(11), sha256)
	if m, ok := vm.Extended(both); !ok || m.PCR != 7 || !bytes.Equal(m.SHA256[:], sha256) {
		t.Errorf("got %v, %v", m, ok)
	}
	for name, b := range map[string][]byte{
		"another bank only":    extend(uint32(1), uint16(4), sha1),
		"an unknown algorithm": extend(uint32(2), uint16(99), sha1, uint16(11), sha256),
		"a short digest":       extend(uint32(1), uint16(11), sha1),
		"no digest":            extend(),
		"no authorisation":     command(0x8001, 0x182, uint32(7)),
		"another command":      command(0x8002, 0x17e, uint32(7)),
		"a wrong size":         append(bytes.Clone(both), 0),
		"nothing":              nil,
	} {
		if m, ok := vm.Extended(b); ok {
			t.Errorf("%s: %v", name, m)
		}
	}
}

func TestPCRValues(t *testing.T) {
	selection := []any{uint32(0), uint32(1), uint16(11), []byte{3, 0xff, 0, 0}}
	digests := []any{uint32(8)}
	for i := range 8 {
		digests = append(digests, uint16(32), bytes.Repeat([]byte{byte(i)}, 32))
	}
	read := func(rest ...any) []byte { return command(0x8001, 0, append(append([]any{}, selection...), rest...)...) }
	values, err := vm.PCRValues(read(digests...))
	if err != nil || values[7] != [32]byte(bytes.Repeat([]byte{7}, 32)) {
		t.Errorf("got %x, %v", values, err)
	}
	for name, b := range map[string][]byte{
		"a refusal":    command(0x8001, 0x100),
		"seven":        read(uint32(7)),
		"a short one":  read(digests[:len(digests)-1]...),
		"SHA-1":        read(append([]any{uint32(8)}, uint16(20), make([]byte, 8*34))...),
		"nothing":      nil,
		"a wrong size": append(read(digests...), 0),
	} {
		if _, err := vm.PCRValues(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzCommands(f *testing.F) {
	f.Add(command(0x8002, 0x182, uint32(7), uint32(0), uint32(1), uint16(11), make([]byte, 32)))
	f.Add(command(0x8001, 0, uint32(0), uint32(0), uint32(8), make([]byte, 8*34)))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		vm.Extended(b)
		_, _ = vm.PCRValues(b)
		if !bytes.Equal(b, before) {
			t.Error("the message was changed")
		}
	})
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"\x1b[2J\x1b[01;01Hone\r\n\r\n\x1b[0mtwo\n": "one\ntwo", "\x1b[": "", "\x1b": "", "a\x00\xffb": "ab", "": "",
	} {
		if got := vm.Plain(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// wire is what QEMU would say.
type wire struct {
	io.Reader
	io.Writer
}

// TestMonitor: QEMU's answers find who has asked, its events their way, and its end everybody.
func TestMonitor(t *testing.T) {
	out, toUs := io.Pipe()
	fromUs, in := io.Pipe()
	m := vm.NewMonitor(wire{out, in})
	events := make(chan string, 8)
	go m.Listen(func(name string) { events <- name })
	asked := make(chan string, 8)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := fromUs.Read(b)
			if err != nil {
				return
			}
			asked <- string(b[:n])
		}
	}()
	say := func(text string) {
		if _, err := io.WriteString(toUs, text+"\n"); err != nil {
			t.Error(err)
		}
	}
	say(`{"QMP": {"version": {}}}`)
	say(`this is no JSON`)
	say(`{"event": "RESET", "data": {"guest": true}}`)
	if got := <-events; got != "RESET" {
		t.Errorf("event %q", got)
	}
	ctx, cancel := context.WithCancel(deadline(t))
	gaveUp := make(chan error, 1)
	go func() { gaveUp <- m.Do(ctx, "first", nil, nil) }()
	<-asked
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("a command that was given up: %v", err)
	}
	var answer struct{ Status string }
	done := make(chan error, 1)
	ask := func(result any) { go func() { done <- m.Do(deadline(t), "second", map[string]int{"a": 1}, result) }() }
	ask(&answer)
	if got := <-asked; got != `{"execute":"second","arguments":{"a":1},"id":2}`+"\n" {
		t.Errorf("asked %s", got)
	}
	say(`{"return": {}, "id": 1}`)
	say(`{"return": {"status": "fine"}, "id": 2}`)
	if err := <-done; err != nil || answer.Status != "fine" {
		t.Errorf("got %v, %v", answer, err)
	}
	ask(nil)
	<-asked
	say(`{"error": {"class": "GenericError", "desc": "no"}, "id": 3}`)
	if err := <-done; err == nil || err.Error() != "second: no" {
		t.Errorf("got %v", err)
	}
	ask(nil)
	<-asked
	if err := errors.Join(toUs.Close(), fromUs.Close()); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, vm.ErrHungUp) {
		t.Errorf("got %v", err)
	}
	if err := m.Do(deadline(t), "third", nil, nil); !errors.Is(err, vm.ErrHungUp) {
		t.Errorf("got %v", err)
	}
	if err := m.Do(deadline(t), "third", func() {}, nil); err == nil {
		t.Error("what JSON cannot say")
	}
}

// TestTap: a name that the kernel does not take.
func TestTap(t *testing.T) {
	for _, name := range []string{strings.Repeat("x", 20), "a/b"} {
		if f, err := vm.Tap(name); err == nil {
			t.Errorf("%s: a tap, %v", name, f.Close())
		}
	}
}

// TestDies: the processes of a machine end with the process that started them, however
// that ends.
func TestDies(t *testing.T) {
	if os.Getenv("LETHE_TEST_DIES") != "" {
		m := start(t, vm.Options{Accel: vm.TCG, Memory: 128})
		_, _ = os.Stdout.WriteString("started\n")
		_, _ = m.Wait(deadline(t))
		t.Fatal("nobody has killed us")
	}
	pids := children(t, "TestDies")
	for _, pid := range pids {
		gone(t, pid)
	}
	if len(pids) != 2 {
		t.Errorf("%d processes, want QEMU and swtpm", len(pids))
	}
}

// ownTap makes a tap in a network namespace of its own, which ends with the thread.
func ownTap(t testing.TB) *os.File {
	t.Helper()
	type made struct {
		f   *os.File
		err error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{nil, err}
			return
		}
		f, err := vm.Tap("guest")
		done <- made{f, err}
	}()
	m := <-done
	if m.err != nil {
		t.Fatal(m.err)
	}
	return m.f
}

// TestParts starts a machine with every kind of network interface, and looks at its memory.
func TestParts(t *testing.T) {
	tap := ownTap(t)
	m := start(t, vm.Options{Accel: vm.TCG, Memory: 128, NICs: []vm.NIC{{Tap: tap}, {Forward: map[string]int{"127.0.0.1:0": 22}}}})
	if err := tap.Close(); err != nil {
		t.Error(err)
	}
	if got := m.Ended(); got != "" {
		t.Errorf("its run has %s", got)
	}
	if m.Memory().Size() != 128<<20 {
		t.Errorf("%d bytes of memory", m.Memory().Size())
	}
	waitFor(t, m, vm.Nothing, vm.Shell) // the firmware has used some
	if err := m.Pause(deadline(t)); err != nil {
		t.Fatal(err)
	}
	runs := 0
	err := m.Memory().Each(func(offset int64, b []byte) error {
		runs++
		same := make([]byte, min(len(b), 1<<16))
		if _, err := m.Memory().ReadAt(same, offset); err != nil || !bytes.Equal(same, b[:len(same)]) {
			t.Errorf("memory at %#x is not the same in both ways: %v", offset, err)
		}
		return nil
	})
	if err != nil || runs == 0 {
		t.Errorf("%d runs of memory, %v", runs, err)
	}
	stop := errors.New("enough")
	if err := m.Memory().Each(func(int64, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a search that is ended: %v", err)
	}
}
