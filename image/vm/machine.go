package vm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"lethe/fault"
	"lethe/memfd"
)

// End is how a machine's run came to its end.
type End string

// The ends. After all but Died the machine still exists, paused, until it is closed.
const (
	PoweredOff End = "powered off" // by the guest
	Rebooted   End = "rebooted"    // by the guest, with [Options.Once]
	Panicked   End = "panicked"    // the guest says so (pvpanic)
	Stuck      End = "stuck"       // its processor can go on no further
	Died       End = "died"        // QEMU has ended
)

// Machine is a running machine, or one whose run has ended. Its methods are safe for
// concurrent use.
type Machine struct {
	console *Console
	monitor *monitor
	memory  *Memory
	tpm     *tpm // nil without one
	qemu    *process
	sockets []io.Closer
	input   io.Writer      // of the console
	running sync.WaitGroup // our goroutines
	release func() bool    // the context no longer ends the machine

	mu     sync.Mutex
	end    End
	reset  int           // how often
	over   chan struct{} // closed when end is set
	closed sync.Once
}

// Start makes a machine and switches it on. When ctx ends, it is as if the plug
// were pulled; the caller closes it all the same.
func Start(ctx context.Context, o Options) (*Machine, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Accel == "" {
		o.Accel = Accelerator(ctx)
	}
	m := &Machine{console: &Console{more: make(chan struct{})}, over: make(chan struct{}), release: func() bool { return true }}
	if err := m.start(ctx, &o); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Machine) start(ctx context.Context, o *Options) error {
	var theirs []*os.File
	release := func() {
		for _, f := range theirs {
			_ = f.Close() // QEMU has its own
		}
		theirs = nil
	}
	defer release()
	socket := func(name string) (ours, other *os.File, err error) {
		if ours, other, err = pair(name); err == nil {
			m.sockets, theirs = append(m.sockets, ours), append(theirs, other)
		}
		return ours, other, err
	}
	memory, err := memfd.Fixed("lethe-vm-memory", int64(o.Memory)<<20)
	if err != nil {
		return err
	}
	m.memory = &Memory{memory, int64(o.Memory) << 20}
	variables, err := o.variables()
	if err != nil {
		return err
	}
	theirs = append(theirs, variables)
	p := parts{memory: memory, variables: variables}
	console, consoleEnd, err1 := socket("console")
	control, monitorEnd, err2 := socket("monitor")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	p.console, p.monitor = consoleEnd, monitorEnd
	if !o.NoTPM {
		if m.tpm, p.control, err = startTPM(ctx, o.Needs, &m.running); err != nil {
			return err
		}
		theirs = append(theirs, p.control)
	}
	var d descriptors
	c := exec.Command(o.Needs.QEMU, o.arguments(p, &d)...)
	c.ExtraFiles = d.files
	qemu, err := spawn(c)
	if err != nil {
		return fmt.Errorf("QEMU: %w", err)
	}
	release() // now, so that the sockets end when QEMU does
	m.qemu, m.monitor, m.input = qemu, newMonitor(control), console
	m.running.Go(func() { m.console.read(console, o.Output) })
	m.running.Go(func() { m.monitor.listen(m.happened) })
	m.running.Go(func() { <-m.qemu.done; m.ends(Died) })
	m.release = context.AfterFunc(ctx, m.qemu.kill)
	err = m.monitor.do(ctx, "qmp_capabilities", nil, nil)
	if err == nil {
		err = m.monitor.do(ctx, "cont", nil, nil)
	}
	if errors.Is(err, ErrHungUp) && ctx.Err() == nil {
		<-m.qemu.done
		return fault.Wrap(fault.Unavailable, "the machine does not start: "+m.qemu.ended().Error(), err)
	}
	return err
}

// variables returns a memfd with the machine's own copy of the variable store.
func (o *Options) variables() (f *os.File, err error) {
	b := o.Variables
	if b == nil {
		if b, err = os.ReadFile(o.Needs.Variables); err != nil {
			return nil, fault.Wrap(fault.NotFound, o.Needs.Variables+" cannot be read", err)
		}
	}
	if f, err = memfd.Fixed("lethe-vm-variables", int64(len(b))); err == nil {
		_, err = f.WriteAt(b, 0)
	}
	return f, err
}

// happened notes an event (QEMU, qapi/run-state.json).
func (m *Machine) happened(event message) {
	switch event.Event {
	case "SHUTDOWN":
		end := PoweredOff
		if event.Data.Reason == "guest-reset" {
			end = Rebooted
		}
		m.ends(end)
	case "GUEST_PANICKED":
		m.ends(Panicked)
	case "RESET":
		m.mu.Lock()
		m.reset++
		m.mu.Unlock()
	case "STOP":
		// After a pause of ours, too, whose state is another.
		m.running.Go(func() {
			var state struct {
				Status string `json:"status"`
			}
			if m.monitor.do(context.Background(), "query-status", nil, &state) == nil && state.Status == "internal-error" {
				m.ends(Stuck)
			}
		})
	}
}

// ends notes how the run has ended; only the first counts.
func (m *Machine) ends(how End) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.end == "" {
		m.end = how
		close(m.over)
	}
}

// Wait waits for the end of the run. For [Died] the error says what QEMU said.
func (m *Machine) Wait(ctx context.Context) (End, error) {
	select {
	case <-m.over:
	case <-ctx.Done():
		return "", fmt.Errorf("the machine runs: %w", context.Cause(ctx))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.end == Died {
		return Died, m.qemu.ended()
	}
	return m.end, nil
}

// Ended returns how the run has ended, or "" while it goes on.
func (m *Machine) Ended() End {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.end
}

// Console returns the machine's serial console.
func (m *Machine) Console() *Console { return m.console }

// Memory returns the guest's memory. It can be read until the machine is closed.
func (m *Machine) Memory() *Memory { return m.memory }

// Resets returns how often the machine was reset since it was switched on, by itself or by
// [Machine.Reset].
func (m *Machine) Resets() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reset
}

// errNoTPM says that there is nothing to ask.
var errNoTPM = fault.New(fault.NotFound, "the machine has no TPM")

// PCRs returns the registers of the TPM's SHA-256 bank as they are now, also after
// the run has ended.
func (m *Machine) PCRs() (values [PCRs][sha256.Size]byte, err error) {
	if m.tpm == nil {
		return values, errNoTPM
	}
	return m.tpm.read()
}

// Measured returns every extension of a register since power-on or the last reset, in order.
func (m *Machine) Measured() ([]Measurement, error) {
	if m.tpm == nil {
		return nil, errNoTPM
	}
	return m.tpm.log(), nil
}

// Reset presses the reset button: memory keeps what it holds.
func (m *Machine) Reset(ctx context.Context) error {
	return m.monitor.do(ctx, "system_reset", nil, nil)
}

// PowerButton presses the power button, which the guest may heed (ACPI).
func (m *Machine) PowerButton(ctx context.Context) error {
	return m.monitor.do(ctx, "system_powerdown", nil, nil)
}

// Pause stops the machine's processors.
func (m *Machine) Pause(ctx context.Context) error { return m.monitor.do(ctx, "stop", nil, nil) }

// Continue lets them go on.
func (m *Machine) Continue(ctx context.Context) error { return m.monitor.do(ctx, "cont", nil, nil) }

// Type writes to the machine's serial port.
func (m *Machine) Type(text string) error {
	_, err := io.WriteString(m.input, text)
	return err
}

// Press presses keys together, named as QEMU names them (QKeyCode): "ctrl", "alt",
// "delete".
func (m *Machine) Press(ctx context.Context, keys ...string) error {
	type key struct {
		Type string `json:"type"`
		Data string `json:"data"`
	}
	var all struct {
		Keys []key `json:"keys"`
	}
	for _, k := range keys {
		all.Keys = append(all.Keys, key{"qcode", k})
	}
	return m.monitor.do(ctx, "send-key", all, nil)
}

// Close switches the machine off and removes everything of it. It may be called again.
func (m *Machine) Close() (err error) {
	m.closed.Do(func() {
		m.release()
		if m.qemu != nil {
			m.qemu.kill()
		}
		if m.tpm != nil {
			m.tpm.close()
		}
		m.running.Wait()
		for _, s := range m.sockets {
			err = errors.Join(err, s.Close())
		}
		if m.memory != nil {
			err = errors.Join(err, m.memory.file.Close())
		}
	})
	return err
}
