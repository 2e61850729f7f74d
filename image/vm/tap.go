package vm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Tap makes a tap interface in the network namespace of the calling thread, for
// [NIC]. It exists as long as somebody has the descriptor: the machine, in the end. The
// caller sets it up and connects it, for instance to a bridge.
func Tap(name string) (*os.File, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = f.Close() // nothing was made
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return f, nil
}
