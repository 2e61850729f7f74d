package boot

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// newRoot is where the new root is put together, in the initramfs.
const newRoot = "/root"

// Bounds of the file systems in memory: what services may write, all of them together.
const (
	upperOptions = "size=64m,nr_inodes=16k,mode=0755" // changes to the root
	runOptions   = "size=32m,nr_inodes=16k,mode=0755" // sockets, FIFOs, state of systemd
	shmOptions   = "size=16m,nr_inodes=1k,mode=1777"
)

const nothing = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mount is one call of mount(2), with its target made if it is not there.
type mount struct {
	kind, what, at string
	flags          uintptr
	options        string
}

func (m mount) mount() error {
	if err := os.MkdirAll(m.at, 0o755); err != nil {
		return err
	}
	return naming("mount "+m.kind, unix.Mount(m.what, m.at, m.kind, m.flags, m.options))
}

// naming says what failed, if it did.
func naming(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// mountKernel mounts what systemd would mount otherwise, with less allowed. systemd leaves alone
// what is mounted already.
func mountKernel() error {
	return inOrder(
		mount{"devtmpfs", "devtmpfs", "/dev", unix.MS_NOSUID | unix.MS_NOEXEC, "size=64k,nr_inodes=4k,mode=0755"}.mount,
		mount{"tmpfs", "tmpfs", "/dev/shm", nothing, shmOptions}.mount,
		mount{"proc", "proc", "/proc", nothing, "hidepid=invisible"}.mount,
		mount{"sysfs", "sysfs", "/sys", nothing, ""}.mount,
		mount{"tmpfs", "tmpfs", "/run", nothing, runOptions}.mount)
}

// mountRoot mounts the root that is in image, sealed memory, at path: squashfs on a loop device, and
// over it an OverlayFS whose upper layer is a bounded tmpfs. Both layers have no
// name of their own afterwards.
func mountRoot(image *os.File, path string) error {
	lower, rw := path+".lower", path+".rw"
	upper, work := filepath.Join(rw, "upper"), filepath.Join(rw, "work")
	device, err := attach(image)
	if err != nil {
		return err
	}
	defer device.Close()
	// The overlay holds both layers afterwards; nobody else can.
	hide := func(dir string) func() error {
		return func() error { return errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)) }
	}
	return inOrder(
		mount{"squashfs", device.Name(), lower, unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV, ""}.mount,
		mount{"tmpfs", "tmpfs", rw, nothing, upperOptions}.mount,
		func() error { return os.Mkdir(upper, 0o755) },
		func() error { return os.Mkdir(work, 0o755) },
		mount{"overlay", "overlay", path, unix.MS_NOSUID | unix.MS_NODEV, fmt.Sprintf(
			"lowerdir=%s,upperdir=%s,workdir=%s,xino=off,index=off,metacopy=off,redirect_dir=off,volatile", lower, upper, work)}.mount,
		hide(rw), hide(lower))
}

// attach puts a file on a free loop device, read-only (loop(4)). The device goes when its last user does.
//
// No direct I/O: the file is in memory, so the loop device copies from its pages either way, and
// squashfs reads the device without the page cache.
func attach(image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 8 { // somebody else may take it in between, in tests
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(image.Fd()), Size: 4096,
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR}}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		_ = device.Close()
		if err != unix.EBUSY {
			return nil, fmt.Errorf("loop device: %w", err)
		}
	}
	return nil, errors.New("loop device: none is free")
}

// prepare writes what differs from boot to boot into the new root: a random machine id (machine-id(5)), and the
// program for the end of the run.
func prepare(root string) error {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	path := filepath.Join(root, "etc/machine-id")
	if err := os.WriteFile(path, []byte(hex.EncodeToString(id)+"\n"), 0o444); err != nil {
		return err
	}
	return keepShutdown("/run/initramfs", "/proc/self/exe")
}

// switchRoot makes root the root of this process, with the kernel's file systems in it, and deletes what
// was in the initramfs: its memory is free again.
func switchRoot(root string) error {
	move := func(from, to string) func() error {
		return func() error { return naming("move "+from, unix.Mount(from, to, "", unix.MS_MOVE, "")) }
	}
	return inOrder(
		move("/dev", root+"/dev"), move("/proc", root+"/proc"), move("/sys", root+"/sys"), move("/run", root+"/run"),
		func() error { return naming("empty the initramfs", empty("/")) },
		func() error { return os.Chdir(root) },
		move(".", "/"),
		func() error { return unix.Chroot(".") },
		func() error { return os.Chdir("/") })
}

// empty deletes what is in a file system in memory, but for mount points.
func empty(root string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return err
	}
	if fs.Type != unix.TMPFS_MAGIC && fs.Type != unix.RAMFS_MAGIC {
		return errors.New("it is not in memory")
	}
	var here unix.Stat_t
	if err := unix.Lstat(root, &here); err != nil {
		return err
	}
	_, err := emptyDir(root, here.Dev)
	return err
}

// emptyDir empties a directory of the file system dev. It reports whether nothing is left.
func emptyDir(dir string, dev uint64) (all bool, err error) {
	entries, err := os.ReadDir(dir)
	all = true
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil || st.Dev != dev {
			all = false
			continue
		}
		gone := true
		if e.IsDir() {
			var failed error
			gone, failed = emptyDir(path, dev)
			err = errors.Join(err, failed)
		}
		if gone {
			err = errors.Join(err, os.Remove(path))
		}
		all = all && gone
	}
	return all, err
}
