package boot

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lethe/boot/kmod"
	"lethe/image/gpt"
	"lethe/image/layout"
	"lethe/image/pe"
	"lethe/memfd"
)

const noctty = unix.O_NOCTTY

// disk is a whole block device that holds something.
type disk struct {
	name string
	seq  string // changes when the medium in the drive does
	path string // in /dev
}

// disks lists the block devices in sysfs, but for partitions and for devices that are not real ones.
func disks(sys, dev string) []disk {
	var all []disk
	entries, _ := os.ReadDir(filepath.Join(sys, "class/block")) // none as long as there is no such directory
	for _, e := range entries {
		dir := filepath.Join(sys, "class/block", e.Name())
		if virtual(e.Name()) {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
			continue
		}
		seq, _ := os.ReadFile(filepath.Join(dir, "diskseq"))
		all = append(all, disk{name: e.Name(), seq: string(seq), path: filepath.Join(dev, e.Name())})
	}
	return all
}

// virtual reports whether a block device is one that has no hardware behind it.
func virtual(name string) bool { return strings.HasPrefix(name, "loop") }

// find searches until a device with the right root is found, and returns the root in sealed memory. lists is the directory of
// modules.
func (m *Machine) find(lists string, want wanted) (*os.File, error) {
	modules, err := kmod.Open(lists)
	if err != nil {
		return nil, failed(CodeInitramfs, err)
	}
	events, err := kmod.Listen()
	if err != nil {
		return nil, failed(CodeKernel, err)
	}
	defer events.Close()
	if err := modules.LoadListed(); err != nil {
		return nil, failed(CodeInitramfs, err)
	}
	s := search{m: m, want: want, dev: "/dev", sys: "/sys", done: map[disk]bool{}}
	began, said := time.Now(), time.Now()
	for {
		tried, err := modules.Coldplug("/sys")
		if err != nil {
			m.say.line("%v", err) // a driver that does not like its device; another may be the medium's
		}
		root := s.look()
		if root != nil {
			return root, nil
		}
		if len(tried) > 0 {
			continue
		}
		patience := m.Patience
		if s.wrong > 0 {
			patience = min(patience, m.Second)
		}
		if time.Since(began) > patience {
			break
		}
		if time.Since(said) > 10*time.Second {
			said = time.Now()
			m.say.line("no medium yet, %d devices looked at", len(s.done))
		}
		events.Wait(time.Second)
	}
	if s.wrong > 0 {
		return nil, failed(CodeWrongRoot, fmt.Errorf("%d root partitions found, none with the digest that the boot image names", s.wrong))
	}
	return nil, failed(CodeNoMedium, fmt.Errorf("no root partition on any of %d devices", len(s.done)))
}

// wanted is the right medium and the right root on it.
type wanted struct {
	root   layout.RootDigest
	medium layout.MediumDigest
}

// search is what is known of the devices.
type search struct {
	m        *Machine
	want     wanted
	sys, dev string
	done     map[disk]bool // no need to look again
	wrong    int           // root partitions that were not the right one
}

// look goes through the devices that were not looked at yet.
func (s *search) look() *os.File {
	for _, d := range disks(s.sys, s.dev) {
		if s.done[d] {
			continue
		}
		root, err := s.try(d)
		if root != nil {
			s.m.say.line("root found on %s", d.name)
			return root
		}
		s.done[d] = !errors.Is(err, errRead) // a drive that cannot be read yet is asked again
		if s.done[d] {
			s.m.say.line("%s: %v", d.name, err)
		}
	}
	return nil
}

// errRead says that a device could not be read: a drive may not be ready, or empty.
var errRead = errors.New("not readable")

// try looks for the root on one device: it returns the root, or why there is none.
func (s *search) try(d disk) (*os.File, error) {
	f, err := os.OpenFile(d.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRead, err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd) // of a block device as well
	if err != nil || size == 0 {
		return nil, errRead
	}
	table, err := gpt.Read(f, size)
	if err != nil {
		if !errors.Is(err, gpt.ErrFormat) {
			err = fmt.Errorf("%w: %w", errRead, err)
		}
		return nil, err
	}
	p, err := table.Find(layout.RootType)
	if err != nil {
		return nil, err
	}
	var root *os.File
	if p.Size < s.want.root.Size {
		err = errors.New("the root partition is shorter than the root")
	} else if size < s.want.medium.Size || p.Offset > s.want.medium.Size-s.want.root.Size {
		err = errors.New("the medium is shorter than the image")
	} else {
		root, err = s.copyRoot(d, p.Offset)
	}
	if err != nil {
		s.wrong++
	}
	return root, err
}

// copyRoot reads the whole medium once. The root gets into memory that can never change again and is hashed only there. So
// what was hashed is what will run: the drive wrote into a buffer, never into these pages.
func (s *search) copyRoot(d disk, at int64) (*os.File, error) {
	rest := &remainder{hash: sha256.New(), of: s.want.medium, rootAt: at, rootSize: s.want.root.Size}
	root, err := memfd.Sealed("lethe-root", func(w io.Writer) error {
		rest.root = w
		return copyOut(rest, d.path, logicalBlock(s.sys, d.name), 0, s.want.medium.Size)
	})
	if err != nil {
		return nil, err
	}
	if err = verify(root, s.want.root); err == nil {
		err = rest.verify()
	}
	if err != nil {
		_ = root.Close()
		return nil, err
	}
	return root, nil
}

// remainder takes a medium's bytes one after the other. It hashes all but the boot image, which it keeps, and passes the root on.
type remainder struct {
	hash             hash.Hash
	of               layout.MediumDigest
	boot             []byte
	root             io.Writer
	rootAt, rootSize int64
	at               int64
}

func (r *remainder) Write(b []byte) (int, error) {
	boot := r.part(b, r.of.BootOffset, r.of.BootLength)
	r.boot = append(r.boot, boot...)
	r.hash.Write(r.part(b, 0, r.of.BootOffset))
	behind := r.of.BootOffset + r.of.BootLength
	r.hash.Write(r.part(b, behind, r.of.Size-behind))
	_, err := r.root.Write(r.part(b, r.rootAt, r.rootSize))
	r.at += int64(len(b))
	return len(b), err
}

// part returns what of b, which begins at r.at, lies in a run of the medium.
func (r *remainder) part(b []byte, from, length int64) []byte {
	lo, hi := max(from-r.at, 0), min(from+length-r.at, int64(len(b)))
	if lo >= hi {
		return nil
	}
	return b[lo:hi]
}

// verify checks what is not the root. The firmware has checked the boot image's signature, but not every byte of the image.
func (r *remainder) verify() error {
	if subtle.ConstantTimeCompare(r.hash.Sum(nil), r.of.SHA256[:]) != 1 {
		return errors.New("the medium has another digest than the boot image names")
	}
	if r.of.BootLength == 0 {
		return nil
	}
	if err := pe.Intact(r.boot); err != nil {
		return fmt.Errorf("the boot image was changed: %w", err)
	}
	return nil
}

// logicalBlock returns the size of the blocks that a device is addressed in.
func logicalBlock(sys, name string) int64 {
	b, _ := os.ReadFile(filepath.Join(sys, "class/block", name, "queue/logical_block_size"))
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n < 512 {
		return 4096
	}
	return n
}

// chunk is how much is read at once: a CD and a USB stick want large reads.
const chunk = 4 << 20

// copyOut copies a part of a device. It goes around the page cache (O_DIRECT in open(2)), which would hold
// the root a second time, where the device's blocks allow it.
func copyOut(w io.Writer, path string, block, at, size int64) error {
	flags := unix.O_RDONLY | unix.O_CLOEXEC
	if at%block == 0 && size%block == 0 {
		flags |= unix.O_DIRECT
	}
	fd, err := unix.Open(path, flags, 0)
	if err == unix.EINVAL { // a file system without O_DIRECT
		fd, err = unix.Open(path, flags&^unix.O_DIRECT, 0)
	}
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	b, err := unix.Mmap(-1, 0, chunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned to pages
	if err != nil {
		return err
	}
	defer unix.Munmap(b)
	for size > 0 {
		n := int(min(size, chunk))
		if _, err := f.ReadAt(b[:n], at); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if _, err := w.Write(b[:n]); err != nil {
			return err
		}
		at, size = at+int64(n), size-int64(n)
	}
	return nil
}

// verify compares a file with the digest that it must have.
func verify(f *os.File, want layout.RootDigest) error {
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, io.NewSectionReader(f, 0, want.Size), make([]byte, 1<<20))
	if err != nil {
		return err
	}
	if n != want.Size || subtle.ConstantTimeCompare(h.Sum(nil), want.SHA256[:]) != 1 {
		return errors.New("the root has another digest than the boot image names")
	}
	return nil
}

// letGo leaves no block device but the loop device that the root is on, and no module that nobody uses: drivers of the
// medium and of every other disk.
func (m *Machine) letGo() error {
	events, err := kmod.Listen()
	if err != nil {
		return err
	}
	defer events.Close()
	for _, d := range disks("/sys", "/dev") {
		if strings.HasPrefix(d.name, "sr") {
			unlock(d.path)
		}
		// SCSI, SATA and USB devices go this way, before their drivers; others have no such file.
		_ = write(filepath.Join("/sys/class/block", d.name, "device/delete"), "1")
	}
	var left []string
	for began := time.Now(); time.Since(began) < m.Patience; events.Wait(100 * time.Millisecond) {
		if left, err = unload("/proc/modules"); err != nil {
			return err
		}
		if len(left) == 0 {
			removeStorage("/sys") // a driver in the kernel itself may still be looking for disks
		}
		for _, d := range disks("/sys", "/dev") {
			left = append(left, "device "+d.name)
		}
		if len(left) == 0 {
			return nil
		}
	}
	return fmt.Errorf("still there: %s", strings.Join(left, ", "))
}

// unload takes out what is not in use, again and again: modules use each other. It returns those that should not stay.
func unload(proc string) (left []string, err error) {
	for {
		all, err := kmod.Loaded(proc)
		if err != nil {
			return nil, err
		}
		left = nil
		gone := 0
		for _, mod := range all {
			if mod.Uses == 0 && kmod.Unload(mod.Name) == nil {
				gone++
			} else if !slices.Contains(staying, mod.Name) {
				left = append(left, "module "+mod.Name)
			}
		}
		if gone == 0 {
			return left, nil
		}
	}
}

// staying are the modules that the root file system is on.
var staying = []string{"loop", "squashfs", "overlay"}

// unlock lets the door of a CD drive open again. The CD is not ejected: the next start needs it.
func unlock(path string) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_ = unix.IoctlSetInt(fd, cdromLockDoor, 0)
		_ = unix.Close(fd)
	}
}

const cdromLockDoor = 0x5329 // CDROM_LOCKDOOR, linux/cdrom.h

// removeStorage takes mass storage controllers (PCI class 01) off the bus: some drivers are in the kernel itself.
func removeStorage(sys string) {
	all, _ := filepath.Glob(filepath.Join(sys, "bus/pci/devices/*/class"))
	for _, path := range all {
		class, _ := os.ReadFile(path)
		if strings.HasPrefix(string(class), "0x01") {
			_ = write(filepath.Join(filepath.Dir(path), "remove"), "1")
		}
	}
}

// write writes to a file of the kernel's.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
