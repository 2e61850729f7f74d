package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Unit describes a service, as a systemd.service(5) file would.
type Unit struct {
	Name    string        // unique in the lab
	Machine *Machine      // where it runs
	Args    []string      // program and arguments (ExecStart=)
	Env     []string      // more environment, "KEY=value"
	Runtime string        // its directory is /run/Runtime; default Name
	Notify  bool          // Type=notify: it is up when it says READY=1; otherwise when it runs
	Timeout time.Duration // to become ready and to stop; default 20 s
}

// Status is the state of a unit at one moment.
type Status struct {
	Unit     string `json:"unit"`
	Machine  string `json:"machine"`
	State    State  `json:"state"`
	PID      int    `json:"pid"`      // 0 when it does not run
	Restarts int    `json:"restarts"` // after crashes, since it was started
	Stored   int    `json:"stored"`   // descriptors that it left with the manager
	Exit     int    `json:"exit"`     // exit code of its last instance that has ended, -1 after a signal
}

// State is where a unit is in its life.
type State string

// The states, with systemd's words.
const (
	Activating State = "activating" // started, not ready yet
	Active     State = "active"
	Inactive   State = "inactive" // waiting to be started again, or ended
)

// Manager is a small service manager: the part of systemd that Lethe's programs
// rely on. It starts a unit in its machine, waits for READY=1, keeps the
// descriptors that it stores (FileDescriptorStoreMax=64,
// FileDescriptorStorePreserve=no), passes them to its next instance, starts it
// again when it ends by itself (Restart=always, after 50 ms to 1 s), and stops
// it with SIGTERM, then SIGKILL, to the main process alone (KillMode=process).
// A unit has a directory in /run on its machine, named in RUNTIME_DIRECTORY, which
// lives until it is stopped (RuntimeDirectoryPreserve=restart). Standard output
// and error go to a file in the lab's directory. NotifyAccess=all.
type Manager struct {
	dir string

	mu    sync.Mutex
	units []*unit // in the order of their start
}

func newManager(dir string) *Manager { return &Manager{dir: dir} }

const (
	defaultTimeout = 20 * time.Second
	firstBackoff   = 50 * time.Millisecond
	maxBackoff     = time.Second
	maxStored      = 64
)

// unit is a Unit that was started. Its goroutine (life) owns the process; the
// notify socket's goroutine (listen) only fills store and ready.
type unit struct {
	Unit
	manager *Manager
	socket  *net.UnixConn
	ready   chan struct{} // READY=1 came; capacity 1
	asks    chan ask
	done    chan struct{} // closed when life has ended

	mu     sync.Mutex
	status Status
	store  []*os.File // their names are the names they were stored under
}

// ask is what another goroutine wants of a unit.
type ask struct {
	restart bool // otherwise: stop
	reply   chan error
}

// LogPath returns the file with the output of a unit.
func (m *Manager) LogPath(name string) string { return filepath.Join(m.dir, "log", name+".log") }

// Start starts a unit and waits until it is ready. A unit that ends or keeps
// silent before that is not started again, and the error says where its output is.
func (m *Manager) Start(ctx context.Context, u Unit) error {
	if u.Timeout == 0 {
		u.Timeout = defaultTimeout
	}
	if u.Runtime == "" {
		u.Runtime = u.Name
	}
	s := &unit{
		Unit: u, manager: m, ready: make(chan struct{}, 1), asks: make(chan ask), done: make(chan struct{}),
		status: Status{Unit: u.Name, Machine: u.Machine.Name, State: Activating},
	}
	m.mu.Lock()
	if m.find(u.Name) != nil {
		m.mu.Unlock()
		return fmt.Errorf("unit %s: it runs already", u.Name)
	}
	m.units = append(m.units, s)
	m.mu.Unlock()
	reply := make(chan error, 1)
	go s.life(reply)
	return s.await(ctx, reply)
}

// await waits for the answer of a unit's life. When ctx ends first, the unit
// is stopped.
func (s *unit) await(ctx context.Context, reply chan error) error {
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		s.order(ask{reply: make(chan error, 1)})
		<-s.done
		return fmt.Errorf("unit %s: %w", s.Name, context.Cause(ctx))
	}
}

// order hands a to the unit's life; it reports false when that has ended.
func (s *unit) order(a ask) bool {
	select {
	case s.asks <- a:
		return true
	case <-s.done:
		return false
	}
}

// find returns the unit of that name; the caller holds m.mu.
func (m *Manager) find(name string) *unit {
	for _, s := range m.units {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func (m *Manager) get(name string) (*unit, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.find(name); s != nil {
		return s, nil
	}
	return nil, errNoUnit(name)
}

// Stop stops a unit for good: its stored descriptors are closed and its
// runtime directory is removed.
func (m *Manager) Stop(ctx context.Context, name string) error {
	return m.ask(ctx, name, false)
}

// Restart stops a unit and starts it again; it keeps its stored descriptors and
// its runtime directory.
func (m *Manager) Restart(ctx context.Context, name string) error {
	return m.ask(ctx, name, true)
}

func (m *Manager) ask(ctx context.Context, name string, restart bool) error {
	s, err := m.get(name)
	if err != nil {
		return err
	}
	a := ask{restart, make(chan error, 1)}
	if s.order(a) {
		return s.await(ctx, a.reply)
	}
	return errNoUnit(name) // it ended at this very moment
}

func errNoUnit(name string) error { return fmt.Errorf("unit %s: no such unit runs", name) }

// Kill sends a signal to the main process of a unit, as a fault would.
func (m *Manager) Kill(name string, signal syscall.Signal) error {
	s, err := m.get(name)
	if err != nil {
		return err
	}
	st := s.snapshot()
	if st.PID == 0 {
		return fmt.Errorf("unit %s: it has no process now", name)
	}
	return unix.Kill(st.PID, signal)
}

// Units returns the state of every unit.
func (m *Manager) Units() []Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Status, len(m.units))
	for i, s := range m.units {
		all[i] = s.snapshot()
	}
	return all
}

// StopAll stops every unit, the last one started first.
func (m *Manager) StopAll(ctx context.Context) error {
	var errs []error
	for _, st := range slices.Backward(m.Units()) {
		errs = append(errs, m.Stop(ctx, st.Unit))
	}
	return errors.Join(errs...)
}

func (s *unit) snapshot() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	st.Stored = len(s.store)
	return st
}

func (s *unit) set(state State, pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.State, s.status.PID = state, pid
}

// ended notes that the unit's process has, with that exit code.
func (s *unit) ended(code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.State, s.status.PID, s.status.Exit = Inactive, 0, code
}

// life runs the unit until it is stopped, or until its start fails. reply gets
// the outcome of the start.
func (s *unit) life(reply chan error) {
	defer close(s.done)
	err := s.open()
	if err == nil {
		var listening sync.WaitGroup
		listening.Go(s.listen)
		reply, err = s.cycle(reply)
		_ = s.socket.Close() // it ends listen
		listening.Wait()
	}
	s.manager.forget(s)
	reply <- errors.Join(err, s.clean())
}

// cycle runs one instance after another. It returns who waits for the end, and
// the error of a start that failed.
func (s *unit) cycle(reply chan error) (chan error, error) {
	backoff := firstBackoff
	for {
		began := time.Now()
		a, ready, err := s.instance(reply)
		if a == nil && !ready && reply != nil {
			return reply, fmt.Errorf("unit %s: %w; its output is in %s", s.Name, err, s.manager.LogPath(s.Name))
		}
		if a == nil {
			if time.Since(began) > 10*maxBackoff {
				backoff = firstBackoff
			}
			a = s.pause(backoff)
			backoff = min(2*backoff, maxBackoff)
		}
		reply = nil
		if a != nil && !a.restart {
			return a.reply, nil
		}
		if a != nil {
			reply = a.reply
		}
	}
}

// pause waits before a crashed unit is started again, unless somebody wants
// something of it before.
func (s *unit) pause(d time.Duration) *ask {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.status.Restarts++
		return nil
	case a := <-s.asks:
		return &a
	}
}

// instance runs the unit's process once, until it ends or something is asked of
// the unit, which is returned. When it becomes ready, reply, unless nil, gets nil.
func (s *unit) instance(reply chan error) (a *ask, ready bool, err error) {
	select {
	case <-s.ready: // said by an earlier instance
	default:
	}
	c, err := s.launch()
	if err != nil {
		return nil, false, err
	}
	s.set(Activating, c.Process.Pid)
	defer func() { s.ended(c.ProcessState.ExitCode()) }()
	exited := make(chan error, 1)
	go func() { exited <- c.Wait() }()
	limit := time.NewTimer(s.Timeout)
	defer limit.Stop()
	if !s.Notify {
		s.ready <- struct{}{}
	}
	for {
		select {
		case <-s.ready:
			limit.Stop()
			s.set(Active, c.Process.Pid)
			if !ready && reply != nil {
				reply <- nil
			}
			ready = true
		case <-limit.C:
			_ = c.Process.Kill() // it may just have ended
			<-exited
			return nil, false, fmt.Errorf("not ready after %v", s.Timeout)
		case <-exited:
			return nil, ready, fmt.Errorf("ended before it was ready (%s)", c.ProcessState)
		case a := <-s.asks:
			s.terminate(c, exited)
			if !ready && reply != nil {
				reply <- fmt.Errorf("unit %s: stopped before it was ready", s.Name)
			}
			return &a, ready, nil
		}
	}
}

// terminate ends the main process, by force when it takes too long.
func (s *unit) terminate(c *Cmd, exited <-chan error) {
	_ = c.Process.Signal(unix.SIGTERM) // it may have ended by itself
	t := time.NewTimer(s.Timeout)
	defer t.Stop()
	select {
	case <-exited:
	case <-t.C:
		_ = c.Process.Kill()
		<-exited
	}
}

// open makes the unit's notify socket and its runtime directory.
func (s *unit) open() error {
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.address(), Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("unit %s: %w", s.Name, err)
	}
	s.socket = socket
	return os.MkdirAll(s.Machine.Path("/run/"+s.Runtime), 0o755)
}

// address returns the path of the unit's notify socket.
func (s *unit) address() string { return filepath.Join(s.manager.dir, "notify", s.Name) }

// launch starts the unit's process.
func (s *unit) launch() (*Cmd, error) {
	log, err := os.OpenFile(s.manager.LogPath(s.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := s.Machine.Command(context.Background(), s.Args[0], s.Args[1:]...)
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr.Setsid = true // the terminal's Ctrl-C is not for services
	c.Env = slices.Concat(c.Env, s.Env,
		[]string{"NOTIFY_SOCKET=" + s.address(), "RUNTIME_DIRECTORY=/run/" + s.Runtime})
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.store) > 0 {
		names := make([]string, len(s.store))
		for i, f := range s.store {
			names[i] = f.Name()
		}
		c.ExtraFiles = s.store
		c.Env = append(c.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	return c, c.Start()
}

// listen takes the unit's notifications until its socket is closed.
func (s *unit) listen() {
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*253)) // SCM_MAX_FD
	for {
		n, on, _, _, err := s.socket.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		s.notified(parseNotification(b[:n]), descriptors(oob[:on]))
	}
}

// notified acts on one notification; it owns fds.
func (s *unit) notified(said map[string]string, fds []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := said["FDNAME"]
	if name == "" {
		name = "stored"
	}
	for _, fd := range fds {
		if said["FDSTORE"] == "1" && len(s.store) < maxStored {
			s.store = append(s.store, os.NewFile(uintptr(fd), name))
		} else {
			_ = unix.Close(fd) // nobody asked to keep it
		}
	}
	if said["FDSTOREREMOVE"] == "1" {
		s.store = slices.DeleteFunc(s.store, func(f *os.File) bool { return f.Name() == name && f.Close() == nil })
	}
	if said["READY"] == "1" {
		select {
		case s.ready <- struct{}{}:
		default: // said twice
		}
	}
}

// parseNotification reads the lines KEY=VALUE of a notification (sd_notify(3)).
func parseNotification(b []byte) map[string]string {
	said := map[string]string{}
	for line := range bytes.Lines(b) {
		if key, value, ok := strings.Cut(strings.TrimRight(string(line), "\n"), "="); ok {
			said[key] = value
		}
	}
	return said
}

// descriptors returns the file descriptors in a datagram's control messages.
func descriptors(oob []byte) []int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// clean removes what the unit leaves when it is stopped for good.
func (s *unit) clean() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.store {
		_ = f.Close() // a memfd or a socket: nothing is written back
	}
	s.store = nil
	return errors.Join(os.RemoveAll(s.Machine.Path("/run/"+s.Runtime)), os.RemoveAll(s.address()))
}

func (m *Manager) forget(s *unit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.units = slices.DeleteFunc(m.units, func(o *unit) bool { return o == s })
}
