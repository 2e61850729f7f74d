package secret

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lethe/memfd"
)

// The answers of a server to a handover.
const (
	answerActivated = "activated\n"
	answerRefused   = "refused: "
)

// handoverTimeout bounds one attempt.
const handoverTimeout = 10 * time.Second

// Receive listens on the Unix socket at path until one valid handover has
// come, answers it and closes the socket: a running server takes secrets once.
// Only processes of root or of the server's own user are heard. The returned
// memfd holds the secrets for a restarted agent; see [Restore]. waiting is called
// once the socket takes connections; its error ends the wait.
func Receive(ctx context.Context, path string, waiting func() error) (*Node, *os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("secrets: %w", err)
	}
	// The mask makes the socket private from its first moment.
	mask := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(mask)
	if err != nil {
		return nil, nil, fmt.Errorf("secrets: listen: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	if err := waiting(); err != nil {
		return nil, nil, err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
			}
			return nil, nil, fmt.Errorf("secrets: accept: %w", err)
		}
		n, f, err := receive(c.(*net.UnixConn))
		if err == nil {
			return n, f, nil
		}
	}
}

// receive handles one attempt. A refused one is answered with the reason and
// leaves the server waiting.
func receive(c *net.UnixConn) (*Node, *os.File, error) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(handoverTimeout))
	if err := checkPeer(c); err != nil {
		return nil, nil, err
	}
	b, err := io.ReadAll(io.LimitReader(c, MaxSize+1))
	defer wipe(b)
	if err != nil {
		return nil, nil, err
	}
	n, err := Decode(b)
	var f *os.File
	if err == nil {
		f, err = memfd.Sealed("lethe-secrets", func(w io.Writer) error { _, err := w.Write(b); return err })
	}
	if err != nil {
		_, _ = io.WriteString(c, answerRefused+err.Error()+"\n")
		return nil, nil, err
	}
	if _, err := io.WriteString(c, answerActivated); err != nil {
		// Whoever handed over cannot know that it worked and will try again.
		return nil, nil, errors.Join(err, f.Close())
	}
	return n, f, nil
}

// checkPeer lets only root and the server's own user through (unix(7),
// SO_PEERCRED). The socket's mode says the same; this holds if a directory is
// mounted with other rules.
func checkPeer(c *net.UnixConn) error {
	var cred *unix.Ucred
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		})
	}
	if cred == nil || cred.Uid != 0 && cred.Uid != uint32(os.Geteuid()) {
		return errors.Join(errors.New("secrets: the peer is another user"), err)
	}
	return nil
}

// Restore returns the secrets in a memfd that an earlier [Receive] returned.
func Restore(f *os.File) (*Node, error) {
	b := make([]byte, MaxSize+1)
	defer wipe(b)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("secrets: restore: %w", err)
	}
	return Decode(b[:n])
}

// Handover hands n to the server that waits on the Unix socket at path. It
// fails with the server's reason when the server refuses.
func Handover(ctx context.Context, path string, n *Node) error {
	b, err := n.Encode()
	if err != nil {
		return fmt.Errorf("secrets: encode: %w", err)
	}
	defer wipe(b)
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("secrets: no server waits for activation: %w", err)
	}
	c := conn.(*net.UnixConn)
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(handoverTimeout))
	_, writeErr := c.Write(b)
	if writeErr == nil {
		writeErr = c.CloseWrite()
	}
	// A refusal can come before everything was written; it says more than the
	// broken pipe.
	answer, err := io.ReadAll(io.LimitReader(c, 512))
	switch {
	case bytes.Equal(answer, []byte(answerActivated)):
		return nil
	case bytes.HasPrefix(answer, []byte(answerRefused)):
		reason := strings.TrimPrefix(string(answer), answerRefused)
		return errors.New(strings.TrimSpace(strings.TrimPrefix(reason, "secrets: ")))
	default:
		return fmt.Errorf("secrets: the server gave no answer: %w", errors.Join(writeErr, err, io.ErrUnexpectedEOF))
	}
}

func wipe(b []byte) { clear(b) }
