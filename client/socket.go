package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lethe/daemon"
	"lethe/event"
	"lethe/fault"
	"lethe/notify"
)

// serve listens on the helper's socket until ctx ends and then waits for everything it started.
func (h *Helper) serve(ctx context.Context) error {
	group := -1
	if h.cfg.Group != "" {
		g, err := user.LookupGroup(h.cfg.Group)
		if err != nil {
			return fault.Wrap(fault.Invalid, "helper: no such group", err)
		}
		if group, err = strconv.Atoi(g.Gid); err != nil {
			return fault.Wrap(fault.Internal, "helper: the group has no number", err)
		}
	}
	listener, err := h.listen(group)
	if err != nil {
		return fault.Wrap(fault.Internal, "helper: cannot listen on its socket", err)
	}
	if err := notify.Ready(); err != nil {
		return errors.Join(fault.Wrap(fault.Unavailable, "helper: the service manager does not answer", err), listener.Close())
	}
	var all sync.WaitGroup
	all.Go(func() { h.look(ctx) })
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	h.log.Log(event.Started{Part: event.Helper})
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			break // only the end of ctx closes the listener
		}
		all.Go(func() {
			defer conn.Close()
			hangUp := context.AfterFunc(ctx, func() { conn.Close() })
			defer hangUp()
			h.answer(ctx, conn, group)
		})
	}
	all.Wait()
	h.asking.Lock()
	defer h.asking.Unlock()
	h.leave()
	h.log.Log(event.Stopped{Part: event.Helper})
	return nil
}

func (h *Helper) listen(group int) (*net.UnixListener, error) {
	if err := os.Remove(h.cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	defer unix.Umask(unix.Umask(0o177)) // no moment in which others may connect
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.cfg.Socket, Net: "unix"})
	if err != nil || group < 0 {
		return l, err
	}
	if err := errors.Join(os.Chown(h.cfg.Socket, 0, group), os.Chmod(h.cfg.Socket, 0o660)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// allowed reports whether a peer may use the helper: root, or a member of the group.
func allowed(peer *unix.Ucred, group int) bool {
	if peer.Uid == 0 || group >= 0 && int(peer.Gid) == group {
		return true
	}
	u, err := user.LookupId(strconv.Itoa(int(peer.Uid)))
	if err != nil || group < 0 {
		return false
	}
	groups, err := u.GroupIds()
	return err == nil && slices.Contains(groups, strconv.Itoa(group))
}

// patience is how long a peer may take to ask or to read an answer.
const patience = 5 * time.Second

// answer serves one connection: one request, one or more replies.
func (h *Helper) answer(ctx context.Context, conn *net.UnixConn, group int) {
	peer, err := daemon.Peer(conn)
	if err != nil || !allowed(peer, group) {
		send(conn, nil, fault.New(fault.Denied, "you may not use the helper").WithHint("join its group, or be root"))
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	line, err := readLine(conn)
	if err != nil {
		send(conn, nil, fault.Wrap(fault.Invalid, "helper: no line that ends", err))
		return
	}
	r, err := ParseRequest(line)
	clear(line)
	if err == nil {
		switch r.Op {
		case OpConnect:
			err = h.connect(ctx, r.Target)
		case OpDisconnect:
			err = h.disconnect(ctx)
		case OpWatch:
			h.watch(ctx, conn)
			return
		}
	}
	s, _ := h.present()
	send(conn, &s, err)
}

// watch sends the status at every change until the peer hangs up.
func (h *Helper) watch(ctx context.Context, conn *net.UnixConn) {
	ctx, cancel := context.WithCancel(ctx)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer cancel()
		_ = conn.SetReadDeadline(time.Time{})
		_, _ = conn.Read(make([]byte, 1)) // returns when the peer hangs up
	})
	defer reader.Wait()
	defer conn.Close()
	for {
		s, changed := h.present()
		if !send(conn, &s, nil) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// send writes one reply and reports whether it was taken.
func send(conn net.Conn, s *Status, err error) bool {
	r := Reply{Version: WireVersion, Status: s}
	if err != nil {
		r.Status, r.Error = nil, ProblemOf(err)
	}
	b, err := json.Marshal(r)
	_ = conn.SetWriteDeadline(time.Now().Add(patience))
	_, err2 := conn.Write(append(b, '\n'))
	return err == nil && err2 == nil
}

// readLine reads one line of at most MaxLine bytes.
func readLine(conn net.Conn) ([]byte, error) {
	s := bufio.NewScanner(conn)
	s.Buffer(make([]byte, 4096), MaxLine)
	if !s.Scan() || len(s.Bytes()) == 0 {
		return nil, errors.Join(s.Err(), errors.New("no line"))
	}
	return bytes.Clone(s.Bytes()), nil
}

// Call sends one request to the helper at socket and returns its status. Errors are the helper's
// own, or NotFound when no helper listens and Denied when the socket may not be used.
func Call(ctx context.Context, socket string, r Request) (s Status, err error) {
	err = Watch(ctx, socket, r, func(got Status) bool {
		s = got
		return false
	})
	return s, err
}

// Watch sends a request and calls see with every status until see returns false, ctx ends (the
// error is then ctx's) or the helper ends.
func Watch(ctx context.Context, socket string, r Request, see func(Status) bool) error {
	line, err := r.Encode()
	if err != nil {
		return fault.Wrap(fault.Internal, "helper: the request cannot be encoded", err)
	}
	defer clear(line)
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(fault.Denied, "you may not use the helper", err).WithHint("join the group lethe, or use sudo")
	case err != nil:
		return fault.Wrap(fault.NotFound, "the helper is not running", err).WithHint("start it: `sudo systemctl start lethe-helper`, or `sudo lethe helper`")
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := conn.Write(line); err != nil && !errors.Is(err, syscall.EPIPE) {
		return hungUp(ctx, err)
	}
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 4096), MaxLine)
	for lines.Scan() {
		var reply Reply
		err := json.Unmarshal(lines.Bytes(), &reply)
		switch {
		case err != nil || reply.Version != WireVersion || reply.Status == nil && reply.Error == nil:
			return fault.Wrap(fault.Invalid, "the helper's answer makes no sense", err).WithHint("app and helper are of different versions: restart the helper")
		case reply.Error != nil:
			return reply.Error.Err()
		case !see(*reply.Status):
			return nil
		}
	}
	return hungUp(ctx, lines.Err())
}

func hungUp(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fault.Wrap(fault.Unavailable, "the helper has hung up", err).WithHint("see `lethe status`")
}
