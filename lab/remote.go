package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoLab says that no lab with that prefix runs.
var ErrNoLab = errors.New("lab: no lab is running")

// Remote speaks to a running lab from another process on the same machine.
type Remote struct{ prefix string }

// Info is what a running lab says of itself.
type Info struct {
	Prefix   string     `json:"prefix"`
	Dir      string     `json:"dir"`
	BinDir   string     `json:"bin_dir"`
	Machines []*Machine `json:"machines"`
	Units    []Status   `json:"units"`
}

// Machine returns the machine of that name, or nil.
func (i *Info) Machine(name string) *Machine { return find(i.Machines, name) }

// request is one line of JSON to the control socket; the answer is another.
type request struct {
	Do   string `json:"do"` // info, down, restart, kill
	Unit string `json:"unit,omitempty"`
}

type answer struct {
	Error string `json:"error,omitempty"`
	Info  *Info  `json:"info,omitempty"`
}

const maxRequest = 4096

func remoteAddress(prefix string) string { return "@lethe-lab-" + prefix }

// Connect returns the running lab with that prefix, or an error that is
// ErrNoLab.
func Connect(ctx context.Context, prefix string) (*Remote, error) {
	r := &Remote{prefix}
	_, err := r.Info(ctx)
	return r, err
}

// Info returns the lab's description of itself.
func (r *Remote) Info(ctx context.Context) (*Info, error) {
	a, err := r.call(ctx, request{Do: "info"})
	return a.Info, err
}

// Down closes the lab and waits until it is gone.
func (r *Remote) Down(ctx context.Context) error { return r.do(ctx, request{Do: "down"}) }

// Restart restarts a unit of the lab.
func (r *Remote) Restart(ctx context.Context, unit string) error {
	return r.do(ctx, request{Do: "restart", Unit: unit})
}

// Kill kills the main process of a unit with SIGKILL, to see it come back.
func (r *Remote) Kill(ctx context.Context, unit string) error {
	return r.do(ctx, request{Do: "kill", Unit: unit})
}

func (r *Remote) do(ctx context.Context, q request) error {
	_, err := r.call(ctx, q)
	return err
}

func (r *Remote) call(ctx context.Context, q request) (a answer, err error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", remoteAddress(r.prefix))
	if errors.Is(err, syscall.ECONNREFUSED) {
		return a, fmt.Errorf("%w with prefix %q", ErrNoLab, r.prefix)
	}
	if err != nil {
		return a, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := errors.Join(json.NewEncoder(c).Encode(q), json.NewDecoder(c).Decode(&a)); err != nil {
		return a, errors.Join(fmt.Errorf("lab: the lab with prefix %q hung up", r.prefix), context.Cause(ctx))
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// serveRemote answers the control socket until the lab is closed.
func (l *Lab) serveRemote() {
	for {
		c, err := l.listener.AcceptUnix()
		if err != nil {
			return
		}
		l.wg.Go(func() {
			defer c.Close()
			l.converse(c)
		})
	}
}

// converse answers one request. An abstract socket has no permissions, so the
// peer's user is checked instead.
func (l *Lab) converse(c *net.UnixConn) {
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second)) // fails only on a closed connection
	var q request
	a := answer{}
	if !sameUser(c) {
		a.Error = "lab: not your lab"
	} else if err := readRequest(c, &q); err != nil {
		a.Error = err.Error()
	} else if a.Info, err = l.obey(q); err != nil {
		a.Error = err.Error()
	}
	_ = json.NewEncoder(c).Encode(a) // whoever asked may be gone
}

func readRequest(r io.Reader, q *request) error {
	line, err := bufio.NewReader(io.LimitReader(r, maxRequest)).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, q)
	}
	if err != nil {
		return errors.New("lab: the request is not a line of JSON")
	}
	return nil
}

func sameUser(c *net.UnixConn) bool {
	same := false
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
			same = err == nil && int(cred.Uid) == os.Geteuid()
		})
	}
	return err == nil && same
}

func (l *Lab) obey(q request) (*Info, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if q.Do == "down" {
		l.giveUp(errors.New("lab: taken down"))
		<-l.built
		return nil, l.tearDown()
	}
	select {
	case <-l.built:
	default:
		return nil, errors.New("lab: it is still coming up")
	}
	switch q.Do {
	case "info":
		return &Info{l.opts.Prefix, l.opts.Dir, l.opts.BinDir, l.machines, l.Units()}, nil
	case "restart":
		return nil, l.Restart(ctx, q.Unit)
	case "kill":
		return nil, l.Kill(q.Unit, syscall.SIGKILL)
	default:
		return nil, fmt.Errorf("lab: no such request")
	}
}
