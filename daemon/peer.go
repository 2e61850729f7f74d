package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Dial connects to the Unix socket of a child, at path, and returns the child's process id. It fails unless the
// process at the other end runs as uid. The caller closes the connection.
func Dial(ctx context.Context, path string, uid uint32) (*net.UnixConn, int, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, 0, fmt.Errorf("control socket: %w", err)
	}
	conn := c.(*net.UnixConn)
	peer, err := Peer(conn)
	if err != nil || peer.Uid != uid {
		return nil, 0, errors.Join(errors.New("control socket: the process at the other end is not ours"), err, conn.Close())
	}
	return conn, int(peer.Pid), nil
}

// Peer returns who is at the other end of a Unix socket: the process that connected or, seen from there, the one
// that listened (SO_PEERCRED in unix(7)).
func Peer(conn *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		return nil, e
	}
	return cred, err
}
