package vm_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"lethe/internal/testkit"

	"lethe/image/pcr"
	"lethe/image/pe"
	"lethe/image/secureboot"
	"lethe/image/vm"
)

// patience is how long a machine may take for anything. Seconds are usual.
const patience = 4 * time.Minute

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func start(t testing.TB, o vm.Options) *vm.Machine {
	t.Helper()
	m, err := vm.Start(deadline(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func waitFor(t testing.TB, m *vm.Machine, words ...string) string {
	t.Helper()
	return testkit.Must[string](t)(m.Console().WaitFor(deadline(t), words...))
}

func ends(t testing.TB, m *vm.Machine, want vm.End) {
	t.Helper()
	if got, err := m.Wait(deadline(t)); got != want || err != nil {
		t.Errorf("the machine's end is %q, %v, want %q", got, err, want)
	}
}

func tell(t testing.TB, m *vm.Machine, text string) {
	t.Helper()
	if err := m.Type(text + "\n"); err != nil {
		t.Error(err)
	}
}

// facts are what testdata/init says.
type facts struct {
	CPUs     int
	MemoryMB int
	Lockdown string
	PCRs     map[int]string
	Events   int
}

func booted(t testing.TB, m *vm.Machine) (f facts) {
	t.Helper()
	waitFor(t, m, "facts: ")
	waitFor(t, m, "<nil>")
	text := m.Console().Text()
	text = text[strings.LastIndex(text, "facts: ")+len("facts: "):]
	text, _, _ = strings.Cut(text, " <nil>")
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		t.Fatal(err, text)
	}
	return f
}

// foretold returns what image/pcr says of an image under the world's keys.
func (w *world) foretold(t testing.TB, image []byte) map[int][]pcr.Event {
	t.Helper()
	images := testkit.Must[[][32]byte](t)(pcr.BootImages(image))
	lists := func(e []secureboot.Entry) []byte { return secureboot.Lists(e) }
	return map[int][]pcr.Event{
		4:  pcr.BootEvents(images...),
		7:  pcr.KeyEvents(pcr.Variables{PK: lists(w.keys.PK), KEK: lists(w.keys.KEK), DB: lists(w.keys.DB)}, w.keys.DB[0].Bytes()),
		11: testkit.Must[[]pcr.Event](t)(pcr.UnifiedEvents(image)),
	}
}

// compare wants every measurement of registers 4, 7 and 11 to be one that was foretold, in
// order, and the registers to hold what follows from all measurements.
func compare(t testing.TB, m *vm.Machine, want map[int][]pcr.Event) {
	t.Helper()
	measured := testkit.Must[[]vm.Measurement](t)(m.Measured())
	values := testkit.Must[[vm.PCRs][32]byte](t)(m.PCRs())
	if values != vm.Replay(measured) {
		t.Error("the measurements that were seen do not explain the registers")
	}
	for register, events := range want {
		n := 0
		for _, e := range measured {
			if e.PCR != register {
				continue
			}
			if n < len(events) && e.SHA256 != events[n].Digest {
				t.Errorf("PCR %d, event %d (%s): %x measured, %x foretold", register, n, events[n].What, e.SHA256, events[n].Digest)
			}
			n++
		}
		if n != len(events) {
			t.Errorf("PCR %d: %d events, %d foretold", register, n, len(events))
		}
		if values[register] != pcr.Replay(events) {
			t.Errorf("PCR %d: %x, foretold %x", register, values[register], pcr.Replay(events))
		}
	}
}

// TestBoot boots the same image as CD, disk and USB stick on machines of
// different size: registers are what was foretold on each.
func TestBoot(t *testing.T) {
	w := shared(t)
	iso := medium(t, w.signed)
	before := testkit.Must[[]byte](t)(os.ReadFile(iso))
	foretold := w.foretold(t, w.unsigned)
	for _, c := range []vm.Options{{Slot: vm.CD}, {Slot: vm.Disk, CPUs: 2, Memory: 2048}, {Slot: vm.USB, CPUs: 2, Once: true}} {
		t.Run(string(c.Slot), func(t *testing.T) {
			c.Medium, c.Variables = iso, w.store
			began := time.Now()
			m := start(t, c)
			f := booted(t, m)
			t.Logf("up after %.1f s", time.Since(began).Seconds())
			compare(t, m, foretold)
			if !strings.Contains(f.Lockdown, "[integrity]") {
				t.Errorf("lockdown is %q: the kernel does not know of Secure Boot", f.Lockdown)
			}
			if f.CPUs != max(c.CPUs, 1) || f.MemoryMB < max(c.Memory, 1024)*4/5 || f.Events == 0 {
				t.Errorf("the guest has %+v", f)
			}
			values := testkit.Must[[vm.PCRs][32]byte](t)(m.PCRs())
			for n, text := range f.PCRs {
				if text != hex.EncodeToString(values[n][:]) {
					t.Errorf("PCR %d: the guest reads %s, its TPM holds %x", n, text, values[n])
				}
			}
			// A machine that is off, or shall run once, stays as the guest has left it.
			if c.Once {
				tell(t, m, "reboot")
				ends(t, m, vm.Rebooted)
			} else {
				tell(t, m, "off")
				ends(t, m, vm.PoweredOff)
			}
			if after := testkit.Must[[vm.PCRs][32]byte](t)(m.PCRs()); after != values {
				t.Error("the registers are others once the run has ended")
			}
		})
	}
	if !bytes.Equal(testkit.Must[[]byte](t)(os.ReadFile(iso)), before) {
		t.Error("the medium has changed")
	}
}

// TestRefused: under Secure Boot firmware starts nothing else, and measures nothing of it.
func TestRefused(t *testing.T) {
	w := shared(t)
	flipped := bytes.Clone(w.signed)
	flipped[len(flipped)/2] ^= 1
	for name, image := range map[string][]byte{
		"not signed": w.unsigned, "one bit flipped": flipped, "signed by another key": testkit.Must[[]byte](t)(pe.Sign(w.unsigned, w.other)),
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			m := start(t, vm.Options{Medium: medium(t, image), Variables: w.store})
			if said := waitFor(t, m, "Access Denied", "facts: "); said != "Access Denied" {
				t.Errorf("the machine says %q", said)
			}
			t.Logf("refused after %.1f s", time.Since(began).Seconds())
			for _, e := range testkit.Must[[]vm.Measurement](t)(m.Measured()) {
				if e.PCR == 11 {
					t.Error("the stub has run")
				}
			}
		})
	}
}

// find counts how often b stands in the machine's memory.
func find(t testing.TB, m *vm.Machine, b []byte) (n int) {
	t.Helper()
	if err := m.Memory().Each(func(_ int64, run []byte) error { n += bytes.Count(run, b); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestLife leads a machine through everything that its methods can do to it.
func TestLife(t *testing.T) {
	w := shared(t)
	ctx := deadline(t)
	disk := filepath.Join(t.TempDir(), "disk")
	pattern := bytes.Repeat([]byte("pattern "), 1<<17)
	if err := os.WriteFile(disk, pattern, 0o600); err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	m := start(t, vm.Options{Medium: medium(t, w.signed), Variables: w.store, NoTPM: true, Disks: []string{disk}, NICs: []vm.NIC{{}}, Output: &output})
	booted(t, m)

	// What the guest keeps is found in its memory, and what we write there it finds.
	mark := []byte("uftunbsl!pg!uif!nfnpsz") // what follows, each letter's successor
	if n := find(t, m, mark); n != 0 {
		t.Errorf("the mark is there %d times before it was made", n)
	}
	tell(t, m, "keep testmark of the memory")
	waitFor(t, m, "kept")
	if n := find(t, m, mark); n == 0 {
		t.Error("the mark is not in the guest's memory")
	}

	// Paused, it answers when it goes on.
	if err := m.Pause(ctx); err != nil {
		t.Error(err)
	}
	tell(t, m, "say hello")
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	if said, err := m.Console().WaitFor(short, "said: hello"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "kept") {
		t.Errorf("a paused machine says %q, %v", said, err)
	}
	cancel()
	if err := m.Continue(ctx); err != nil {
		t.Error(err)
	}
	waitFor(t, m, "said: hello")

	// Reset by its button, and by the guest, whose first process is asked by the keyboard to end.
	if err := m.Reset(ctx); err != nil {
		t.Error(err)
	}
	booted(t, m)
	if n := m.Resets(); n != 1 {
		t.Errorf("%d resets, want 1", n)
	}
	if err := m.Press(ctx, "ctrl", "alt", "delete"); err != nil {
		t.Error(err)
	}
	if err := m.PowerButton(ctx); err != nil { // which nothing in this guest heeds
		t.Error(err)
	}
	if err := m.Press(ctx, "no such key"); err == nil || errors.Is(err, vm.ErrHungUp) {
		t.Errorf("a key that does not exist: %v", err)
	}
	if _, err := m.PCRs(); err == nil {
		t.Error("registers of a machine without a TPM")
	}
	if _, err := m.Measured(); err == nil {
		t.Error("measurements of a machine without a TPM")
	}
	short, cancel = context.WithTimeout(ctx, time.Millisecond)
	if end, err := m.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a running machine's end: %q, %v", end, err)
	}
	cancel()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if end, err := m.Wait(ctx); end != vm.Died || err == nil {
		t.Errorf("a closed machine's end: %q, %v", end, err)
	}
	if err := m.Pause(ctx); !errors.Is(err, vm.ErrHungUp) {
		t.Errorf("a closed machine: %v", err)
	}
	if _, err := m.Console().WaitFor(ctx, "never"); err == nil {
		t.Error("a closed machine says something")
	}
	if output.String() != m.Console().Text() {
		t.Error("the output is not what the console shows")
	}
	if !bytes.Equal(testkit.Must[[]byte](t)(os.ReadFile(disk)), pattern) {
		t.Error("the disk has changed")
	}
}

// none reports whether no process has a machine's memory open any more.
func none(t testing.TB) bool {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid()))
	if err != nil || len(links) == 0 {
		t.Fatal(err)
	}
	for _, l := range links {
		if b, err := os.ReadFile(l); err == nil && len(b) > 0 {
			return false
		}
	}
	return true
}

// TestContext: the plug is pulled when the context ends.
func TestContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m, err := vm.Start(ctx, vm.Options{Accel: vm.TCG, Memory: 128})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if end, err := m.Wait(deadline(t)); end != vm.Died {
		t.Errorf("the machine's end: %q, %v", end, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if !none(t) {
		t.Error("a process is left")
	}
	if _, err := vm.Start(ctx, vm.Options{Accel: vm.TCG}); err == nil {
		t.Error("a machine starts in a context that has ended")
	}
	if !none(t) {
		t.Error("a process is left of a machine that did not start")
	}
}

// children runs a test in a process of its own until it has written a line, kills it, and
// returns the processes that were its children.
func children(t testing.TB, test string) (pids []int) {
	t.Helper()
	c := exec.CommandContext(deadline(t), os.Args[0], "-test.run=^"+test+"$")
	c.Env = append(os.Environ(), "LETHE_TEST_DIES=1")
	out := testkit.Must[io.ReadCloser](t)(c.StdoutPipe())
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "started\n" {
		t.Errorf("the process says %q, %v", line, err)
	}
	lists := testkit.Must[[]string](t)(filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", c.Process.Pid)))
	for _, l := range lists {
		b, _ := os.ReadFile(l) // a thread may have ended
		for _, text := range strings.Fields(string(b)) {
			pids = append(pids, testkit.Must[int](t)(strconv.Atoi(text)))
		}
	}
	if err := c.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = c.Wait() // killed
	return pids
}

// gone waits until there is no such process any more.
func gone(t testing.TB, pid int) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx := deadline(t); ctx.Err() == nil; <-tick.C {
		// A process that nobody waits for yet is dead all the same.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Errorf("process %d lives on", pid)
}
