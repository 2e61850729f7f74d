package openvpn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"lethe/daemon"
)

// link is one connection to a management socket. Commands are queued and written by a goroutine
// of its own, so that reading never waits for writing: OpenVPN reads no command while it has
// something to say, and two that only write would wait for each other for ever.
//
// It also wakes clients. After client-auth and client-deny OpenVPN does not look at that client
// before its next packet or its next full second. If the client's last packet of the handshake was
// there before the answer, that costs up to a second (measured: one connect in five over TCP,
// more under load). The one command that wakes a client at once and harms nothing is
// client-pending-auth, so a client that did not get on within wakes[0] is sent one. Measured
// against answering and waking in one write, in either order, waking always after 1 or 2 ms, and a
// synchronous plug-in, this costs nothing, and most clients, all with a longer way than a
// millisecond, need none.
//
// A wake is two messages to the client, and a client of 2.6 takes about two messages for each
// packet that it gets: if several wakes and its configuration come in one burst, the configuration
// lies there until the client's next full second. A busy process reads all that is written to it
// at once. So the time to the next wake begins with the answer to the last command about that
// client, when the process has dealt with it. (With wakes at fixed times one customer in ten of a
// crowd of 40 lost a second on a busy machine, each with two wakes in one burst.)
type link struct {
	conn *net.UnixConn
	dec  *decoder
	pid  int // of the process at the other end

	done chan struct{} // closed when the writer has ended
	wake chan struct{} // something was queued

	mu      sync.Mutex
	out     []byte
	waiting map[uint64]uint64 // key number by client, of those that may have to be woken
	alarms  [len(wakes)][]alarm
	answers []answer // commands without an answer, oldest first
	closed  bool
}

// wakes are the times after which a client that did not get on is woken: the first after the process
// has taken the answer, each other after it has taken the wake before. The first is for a packet
// that was faster than the answer; the others are for a busy machine.
var wakes = [...]time.Duration{time.Millisecond, 20 * time.Millisecond, 250 * time.Millisecond}

type alarm struct {
	due time.Time
	cid uint64
	kid uint64
}

// answer is what the driver does about the answer to a command; nil means nothing.
type answer func(ok bool)

// writeTimeout is how long a process may take to read what was written.
const writeTimeout = 10 * time.Second

// dial connects to a management socket and makes sure that a process of that user is at the other
// end.
func dial(ctx context.Context, path string, uid uint32) (*link, error) {
	conn, pid, err := daemon.Dial(ctx, path, uid)
	if err != nil {
		return nil, err
	}
	l := &link{
		conn: conn, dec: newDecoder(conn), pid: pid, done: make(chan struct{}),
		wake: make(chan struct{}, 1), waiting: map[uint64]uint64{},
	}
	go l.write()
	return l, nil
}

// Close ends the connection and waits for the writer.
func (l *link) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.poke()
	_ = l.conn.Close()
	<-l.done
}

func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// send queues a command; then is called by the reader with its answer.
func (l *link) send(then answer, format string, args ...any) {
	l.mu.Lock()
	l.queue(then, format, args...)
	l.mu.Unlock()
	l.poke()
}

func (l *link) queue(then answer, format string, args ...any) {
	l.out = fmt.Appendf(l.out, format+"\n", args...)
	l.answers = append(l.answers, then)
}

// sendAndWake is send for an answer about a client that has to get on at once.
func (l *link) sendAndWake(cid, kid uint64, then answer, format string, args ...any) {
	l.mu.Lock()
	l.queue(func(ok bool) {
		if ok {
			l.arm(cid, kid, 0)
		}
		if then != nil {
			then(ok)
		}
	}, format, args...)
	l.waiting[cid] = kid
	l.mu.Unlock()
	l.poke()
}

// arm sets the n-th alarm of a client that still waits.
func (l *link) arm(cid, kid uint64, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k, waits := l.waiting[cid]; n == len(wakes) || !waits || k != kid {
		return
	}
	l.alarms[n] = append(l.alarms[n], alarm{time.Now().Add(wakes[n]), cid, kid})
	l.poke()
}

// settled says that a client got on or is gone and need not be woken.
func (l *link) settled(cid uint64) {
	l.mu.Lock()
	delete(l.waiting, cid)
	l.mu.Unlock()
}

// answered returns what to do about the oldest command without an answer.
func (l *link) answered() (answer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.answers) == 0 {
		return nil, errors.New("management interface: answer without a command")
	}
	a := l.answers[0]
	l.answers = l.answers[1:]
	return a, nil
}

// write writes what is queued and what is due until the connection ends. A connection that cannot
// be written is closed, which the reader notices.
func (l *link) write() {
	defer close(l.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		out, next, closed := l.take(time.Now())
		if closed {
			return
		}
		if len(out) > 0 {
			err := l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			if err == nil {
				_, err = l.conn.Write(out)
			}
			if err != nil {
				_ = l.conn.Close()
				return
			}
			continue
		}
		timer.Reset(next)
		select {
		case <-l.wake:
		case <-timer.C:
		}
	}
}

// take returns the bytes to write now and the time until the next alarm.
func (l *link) take(now time.Time) (out []byte, next time.Duration, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next = time.Hour
	for i := range l.alarms {
		for len(l.alarms[i]) > 0 {
			a := l.alarms[i][0]
			kid, waits := l.waiting[a.cid]
			if waits = waits && kid == a.kid; waits && a.due.After(now) {
				next = min(next, a.due.Sub(now))
				break
			}
			l.alarms[i] = l.alarms[i][1:]
			if waits {
				// The text is empty: clients show nothing.
				l.queue(func(ok bool) {
					if ok {
						l.arm(a.cid, a.kid, i+1)
					}
				}, `client-pending-auth %d %d "" 60`, a.cid, a.kid)
			}
		}
	}
	out, l.out = l.out, nil
	return out, next, l.closed
}
