package openvpn

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lethe/device"
)

func socketPath(dir string) string { return filepath.Join(dir, "manage.sock") }

const systemNode = "/dev/net/tun"

// nodePath returns the device node by which an unprivileged process opens its tunnel: the system's
// own where everybody may open it (the kernel checks who may use which tunnel), else one in the
// process's directory.
func nodePath(dir string) string {
	if fi, err := os.Stat(systemNode); err == nil && fi.Mode().Perm()&0o006 == 0o006 {
		return systemNode
	}
	return filepath.Join(dir, "tun")
}

// prepare makes the directory of a process. The agent owns it and the process's group may use it,
// so nobody else reaches the management socket inside, whatever the socket's own mode.
func prepare(dir string, uid, gid uint32) error {
	err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700), os.Chown(dir, -1, int(gid)))
	if node := nodePath(dir); node != systemNode {
		err = errors.Join(err, unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200))), os.Chown(node, int(uid), int(gid)))
	}
	if err = errors.Join(err, os.Chmod(dir, 0o730)); err != nil {
		return fmt.Errorf("openvpn: directory of a process: %w", err)
	}
	return nil
}

// makeDevice makes the persistent tunnel device of an instance, gives it to uid and configures it.
// Making it again changes nothing. It is agent's work because it needs CAP_NET_ADMIN, which the
// process does not have.
func makeDevice(in Instance, uid uint32) error {
	err := makeTun(in.Device, uid)
	if err == nil {
		err = device.Configure(in.Device, in.Daemon)
	}
	if err != nil {
		return fmt.Errorf("openvpn: %w", err)
	}
	return nil
}

// makeTun speaks to the tun driver (Documentation/networking/tuntap.rst in Linux).
func makeTun(name string, uid uint32) error {
	f, err := os.OpenFile(systemNode, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	fd := int(f.Fd())
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return err
	}
	return errors.Join(unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(uid)), unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
}
