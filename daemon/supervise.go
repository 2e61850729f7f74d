package daemon

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Supervisor keeps a process running that is told what to do over a connection, C, to a
// socket of its own. It takes over the one that a former agent left and starts another when
// it ends ([Keep]), makes a connection that broke anew, and kills a process that does not
// answer. Every exported field but Detach must be set; none is changed once Run has been
// called, which is once. The methods are safe for concurrent use.
type Supervisor[C interface{ Close() }] struct {
	Binary string // path of the program that the process runs
	// Start starts a process and reports its own failures. Nobody talks to the former one
	// any more.
	Start func(context.Context) (*Process, error)
	// Dial connects to the process and returns its id. It fails unless the process at the
	// other end runs as the user that it should.
	Dial func(context.Context) (c C, pid int, err error)
	// Talk talks until the connection breaks or ctx ends, closes c, and reports whether the
	// process answered.
	Talk func(ctx context.Context, c C) (answered bool)

	// What the owner is told.
	Adopted   func()             // a former agent's process was taken over
	Restarted func(count uint64) // a process took the place of another, for the countth time
	Ended     func(lines uint64) // a process has ended, and Talk with it, having printed that many since [Supervisor.Serving]
	Silent    func()             // a process has not answered for Patience and is killed

	Redial   time.Duration // pause before a connection that broke is made anew
	Patience time.Duration // how long a process may run without an answer
	Grace    time.Duration // what a process gets to end when it is told to
	Detach   bool          // the end of Run leaves the process alone

	found C // by adopt, for the first conversation
	taken bool

	mu       sync.Mutex
	process  *Process
	notices  uint64 // lines that the process printed before it served
	serving  bool
	restarts uint64
}

// firstDial is the pause between two tries to reach a new process.
const firstDial = 5 * time.Millisecond

// Run keeps the process running and talked to until ctx ends. Then it stops the process, during
// which it is still talked to, or leaves it, with Detach. The error is that the process
// could not be stopped.
func (s *Supervisor[C]) Run(ctx context.Context) error {
	// What ends with the agent: the conversation, which outlives ctx until the process has gone.
	talk, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	var wg sync.WaitGroup
	start := func(ctx context.Context) (*Process, error) {
		wg.Wait() // for the conversation with a process that has ended
		return s.Start(ctx)
	}
	p := Keep(ctx, s.adopt(ctx), start, func(p *Process, starts uint64) {
		if n := s.replace(p); n > 0 && starts > 0 {
			s.Restarted(n)
		}
		wg.Go(func() { s.follow(talk, p) })
	})
	var err error
	switch {
	case s.Detach:
		hangUp()
	case p != nil:
		if err = p.Stop(talk, s.Grace); err != nil {
			hangUp()
		}
	}
	wg.Wait()
	if s.Detach && p != nil {
		p.Release()
	}
	return err
}

// adopt takes over the process that a former agent left, or returns nil. The connection by
// which it found the process is the one to talk over: OpenVPN 2.6 serving TCP forgets to watch
// a connection that is made while it fails to greet one that is already closed.
func (s *Supervisor[C]) adopt(ctx context.Context) *Process {
	c, pid, err := s.Dial(ctx)
	if err != nil {
		return nil
	}
	id, err := Identify(pid)
	var p *Process
	if err == nil {
		p, err = Adopt(id, s.Binary)
	}
	if err != nil {
		c.Close()
		return nil
	}
	s.found, s.taken = c, true
	s.replace(p)
	s.Serving() // perhaps not yet, but nothing it prints from now on is a notice
	s.Adopted()
	return p
}

// replace notes that p is the process now and returns how many took the place of another.
func (s *Supervisor[C]) replace(p *Process) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == p {
		return 0
	}
	if s.process != nil {
		s.restarts++
	}
	s.process, s.notices, s.serving = p, 0, false
	return s.restarts
}

// follow talks to a process until it ends or ctx does.
func (s *Supervisor[C]) follow(ctx context.Context, p *Process) {
	deadline := time.Now().Add(s.Patience)
	for pause := firstDial; ; {
		c, err := s.found, error(nil)
		if !s.taken {
			c, _, err = s.Dial(ctx)
		}
		s.taken = false
		if err == nil {
			if s.Talk(ctx, c) {
				deadline = time.Now().Add(s.Patience)
			}
			pause = s.Redial
		}
		timer := time.NewTimer(pause)
		select {
		case <-p.Done():
			timer.Stop()
			s.Ended(s.printed())
			return
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if time.Now().After(deadline) {
			s.Silent()
			_ = p.Signal(unix.SIGKILL) // fails only when it has ended
			deadline = time.Now().Add(s.Patience)
		}
	}
}

// Serving notes that what the process prints from now on may be about a customer. What it
// printed before, warnings about its configuration, cannot be.
func (s *Supervisor[C]) Serving() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil && !s.serving {
		s.serving, s.notices = true, s.process.Lines()
	}
}

// printed returns how many lines the process printed since it served.
func (s *Supervisor[C]) printed() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.serving {
		return 0
	}
	return s.process.Lines() - s.notices
}

// Started reports whether there has been a process.
func (s *Supervisor[C]) Started() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process != nil
}
