package boot_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lethe/boot"
	"lethe/boot/boottest"
	"lethe/image/layout"
)

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, b, 0o644))
}

// buffer is a console.
type buffer struct{ bytes.Buffer }

func (*buffer) Close() error { return nil }

// device adds a disk to a fake machine.
func device(t *testing.T, sys, dev, name string, content []byte) {
	t.Helper()
	write(t, filepath.Join(sys, "class/block", name, "diskseq"), []byte("1\n"))
	write(t, filepath.Join(sys, "class/block", name, "queue/logical_block_size"), []byte("512\n"))
	if content != nil {
		write(t, filepath.Join(dev, name), content)
	}
}

func TestLook(t *testing.T) {
	root := bytes.Repeat([]byte("root"), 5<<20/4) // more than one chunk
	want := layout.RootDigest{SHA256: sha256.Sum256(root), Size: int64(len(root))}
	good := boottest.Disk(layout.RootType, root)
	broken := bytes.Clone(good)
	broken[1<<20+5]++
	half := bytes.Clone(good)
	copy(half[1024:], make([]byte, 128)) // another table of entries than the header says

	sys, dev := t.TempDir(), t.TempDir()
	if names := boot.Disks(sys, dev); names != nil {
		t.Errorf("a machine without disks has %q", names)
	}
	device(t, sys, dev, "sda", broken)
	device(t, sys, dev, "sdb", boottest.Disk(layout.RootType, root[:len(root)-4096]))
	device(t, sys, dev, "sdc", boottest.Disk([16]byte{1}, root))
	device(t, sys, dev, "sdd", half)
	device(t, sys, dev, "sde", nil)        // not readable yet
	device(t, sys, dev, "sr0", []byte{})   // empty
	device(t, sys, dev, "loop0", good)     // no disk
	device(t, sys, dev, "sdf", good[:100]) // too short for anything
	device(t, sys, dev, "sda1", good)
	write(t, filepath.Join(sys, "class/block/sda1/partition"), []byte("1\n"))
	check(t, os.MkdirAll(filepath.Join(dev, "sdg"), 0o755)) // cannot be read
	device(t, sys, dev, "sdg", nil)

	var said buffer
	got, done, wrong := boot.Look(sys, dev, want, boottest.Medium(good), &said, 3)
	if got != nil || done != 5 || wrong != 2 {
		t.Errorf("root %v, %d devices done, %d wrong", got, done, wrong)
	}
	for _, line := range []string{"sda: the root has another digest", "sdb: the root partition is shorter", "sdc: not a GUID", "sdd: not a GUID", "sdf: not a GUID"} {
		if strings.Count(said.String(), "lethe: "+line) != 1 {
			t.Errorf("it says %q not once: %s", line, said.String())
		}
	}
	device(t, sys, dev, "sr0", good) // a CD is put in
	said.Reset()
	got, _, _ = boot.Look(sys, dev, want, boottest.Medium(good), &said, 1)
	if got == nil || !strings.Contains(said.String(), "lethe: root found on sr0\r\n") {
		t.Fatalf("no root: %s", said.String())
	}
	b, err := io.ReadAll(io.NewSectionReader(got, 0, want.Size+1))
	check(t, err)
	if !bytes.Equal(b, root) {
		t.Error("the root in memory is another one")
	}
	if _, err := got.WriteAt([]byte{0}, 0); err == nil {
		t.Error("the root in memory can change")
	}
	check(t, got.Close())
}

func TestCopyOut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	write(t, path, content)
	for _, c := range []struct{ block, at, size int64 }{{512, 4096, 1 << 19}, {4096, 512, 8192}} {
		var out bytes.Buffer
		check(t, boot.CopyOut(&out, path, c.block, c.at, c.size))
		if !bytes.Equal(out.Bytes(), content[c.at:c.at+c.size]) {
			t.Errorf("%+v: another content", c)
		}
	}
	if err := boot.CopyOut(io.Discard, path, 512, 4096, 1<<21); !errors.Is(err, io.EOF) {
		t.Errorf("a disk that ends: %v", err)
	}
	if err := boot.CopyOut(io.Discard, path+"x", 512, 4096, 4096); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a disk that is gone: %v", err)
	}
	r, w := io.Pipe()
	check(t, r.Close())
	if err := boot.CopyOut(w, path, 512, 4096, 4096); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("memory that is full: %v", err)
	}
	for text, want := range map[string]int64{"512\n": 512, "2048\n": 2048, "x": 4096, "0\n": 4096} {
		write(t, filepath.Join(dir, "class/block/sda/queue/logical_block_size"), []byte(text))
		if got := boot.LogicalBlock(dir, "sda"); got != want {
			t.Errorf("%q: got %d", text, got)
		}
	}
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	want := layout.RootDigest{SHA256: sha256.Sum256(content), Size: int64(len(content))}
	check(t, boot.Verify(f, want))
	for name, w := range map[string]layout.RootDigest{"digest": {Size: want.Size}, "size": {SHA256: want.SHA256, Size: want.Size + 1}, "shorter": {SHA256: want.SHA256, Size: want.Size - 1}} {
		if boot.Verify(f, w) == nil {
			t.Errorf("another %s is taken", name)
		}
	}
	gone, err := os.Open(path)
	check(t, err)
	check(t, gone.Close())
	if boot.Verify(gone, want) == nil {
		t.Error("a closed file is taken")
	}
}

func TestConsole(t *testing.T) {
	dev, sys := t.TempDir(), t.TempDir()
	for _, name := range []string{"tty0", "ttyS0", "console"} {
		write(t, filepath.Join(dev, name), nil)
	}
	boot.Say(dev, sys, "one") // on the serial line too, which is no console
	if b, _ := os.ReadFile(filepath.Join(dev, "ttyS0")); string(b) != "lethe: one\r\n" {
		t.Errorf("the serial line shows %q", b)
	}
	write(t, filepath.Join(dev, "ttyS0"), nil)
	write(t, filepath.Join(sys, "class/tty/console/active"), []byte("tty0 ttyS0 ttyS9\n"))
	boot.Say(dev, sys, "two\nlines %d", 1)
	for name, want := range map[string]string{"console": "lethe: one\r\n", "tty0": "lethe: two; lines 1\r\n", "ttyS0": "lethe: two; lines 1\r\n"} {
		if b, _ := os.ReadFile(filepath.Join(dev, name)); string(b) != want {
			t.Errorf("%s: %q", name, b)
		}
	}
}

func TestErrors(t *testing.T) {
	if err := boot.Failed(1, 2, nil); err != nil {
		t.Error(err)
	}
	err := boot.Failed(boot.CodeMount, boot.CodeExec, os.ErrClosed)
	if err.Error() != "E30: file already closed" || !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
	err = boot.Guard(func() error { panic("x") })
	if err == nil || err.Error() != "E99: internal error: x" {
		t.Errorf("got %v", err)
	}
}

// TestInitramfs reads what is not as it was built.
func TestInitramfs(t *testing.T) {
	dir := t.TempDir()
	want, medium := layout.RootDigest{SHA256: [32]byte{1}, Size: 8192}, layout.MediumDigest{Size: 8192}
	for _, c := range []struct{ path, text string }{{"", ""}, {layout.Root, "x"}, {layout.Medium, "x"}, {layout.Root, want.String()}} {
		if c.path != "" {
			write(t, filepath.Join(dir, c.path), []byte(c.text))
		}
		if _, _, err := boot.ReadWanted(dir); err == nil {
			t.Errorf("an initramfs is taken that lacks something, after %s", c.path)
		}
	}
	write(t, filepath.Join(dir, layout.Medium), []byte(medium.String()))
	if r, m, err := boot.ReadWanted(dir); err != nil || r != want || m != medium {
		t.Errorf("got %v %v, %v", r, m, err)
	}
	if err := boot.Find(dir); err == nil || !strings.HasPrefix(err.Error(), "E11: modules: ") {
		t.Errorf("no modules: %v", err)
	}
	for name, text := range map[string]string{"order": "none\n", "aliases": "", "load": "none\n"} {
		write(t, filepath.Join(dir, name), []byte(text))
	}
	if err := boot.Find(dir); err == nil || !strings.HasPrefix(err.Error(), "E11: module none: ") {
		t.Errorf("a module is missing: %v", err)
	}
}

// TestEnd ends machines that cannot end the way they should.
func TestEnd(t *testing.T) {
	type over struct{}
	for name, c := range map[string]struct {
		args []string
		want []int
	}{
		"boot":     {[]string{"/init"}, []int{unix.LINUX_REBOOT_CMD_POWER_OFF, unix.LINUX_REBOOT_CMD_RESTART, unix.LINUX_REBOOT_CMD_RESTART}},
		"poweroff": {[]string{"/shutdown", "poweroff", "--timeout"}, []int{unix.LINUX_REBOOT_CMD_POWER_OFF, unix.LINUX_REBOOT_CMD_RESTART, unix.LINUX_REBOOT_CMD_RESTART}},
		"reboot":   {[]string{"/shutdown", "kexec"}, []int{unix.LINUX_REBOOT_CMD_RESTART, unix.LINUX_REBOOT_CMD_RESTART, unix.LINUX_REBOOT_CMD_RESTART}},
	} {
		inside(t, name, func(t *testing.T) {
			var got []int
			m := boot.Real()
			m.Show = 0
			m.KeepCaches()
			m.Reboot = func(cmd int) error {
				if got = append(got, cmd); len(got) == 3 {
					panic(over{})
				}
				return unix.EPERM
			}
			func() {
				defer func() {
					if p := recover(); p != (over{}) {
						t.Errorf("panic: %v", p)
					}
				}()
				m.Run(c.args)
			}()
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// inside runs a test as the first process of namespaces of its own, on a root that is a tmpfs with nothing in it but a few
// devices: there boot can mount, unmount and kill what it wants.
func inside(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		if os.Getenv("BOOT_INSIDE") == t.Name() {
			check(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
			f(t)
			// What was mounted hides the test's files, and goes with the namespace.
			for _, line := range strings.Split(mounts(), "\n") {
				if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], os.TempDir()) {
					_ = unix.Unmount(f[4], unix.MNT_DETACH)
				}
			}
			return
		}
		args := []string{"-test.run=^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$", "-test.v"}
		for _, a := range os.Args {
			if strings.HasPrefix(a, "-test.gocoverdir=") {
				args = append(args, a)
			}
		}
		c := exec.Command("/proc/self/exe", args...)
		c.Env = append(os.Environ(), "BOOT_INSIDE="+t.Name())
		c.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC}
		if out, err := c.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
			t.Errorf("%v: %s", err, out)
		}
	})
}

func mounts() string {
	b, _ := os.ReadFile("/proc/self/mountinfo") // none where a test has unmounted /proc
	return string(b)
}

func TestEmpty(t *testing.T) {
	inside(t, "memory", func(t *testing.T) {
		dir := t.TempDir()
		if err := boot.Empty("/proc"); err == nil {
			t.Error("/proc was emptied")
		}
		if err := boot.Empty(dir + "/none"); err == nil {
			t.Error("what is not there was emptied")
		}
		check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
		write(t, dir+"/lethe/modules/a.ko", []byte("a"))
		write(t, dir+"/init", []byte("a"))
		check(t, os.Symlink("init", dir+"/link"))
		check(t, os.MkdirAll(dir+"/a/mounted", 0o755))
		check(t, unix.Mount("tmpfs", dir+"/a/mounted", "tmpfs", 0, ""))
		write(t, dir+"/a/mounted/file", []byte("a"))
		check(t, boot.Empty(dir))
		left, err := filepath.Glob(dir + "/*/*/*")
		check(t, err)
		all, err := os.ReadDir(dir)
		check(t, err)
		if len(all) != 1 || !reflect.DeepEqual(left, []string{dir + "/a/mounted/file"}) {
			t.Errorf("left: %v %v", all, left)
		}
	})
}

func TestKeepShutdown(t *testing.T) {
	inside(t, "once", func(t *testing.T) {
		dir := t.TempDir()
		check(t, boot.KeepShutdown(dir, "/proc/self/exe"))
		if err := os.WriteFile(dir+"/shutdown", nil, 0); !errors.Is(err, unix.EROFS) {
			t.Errorf("it can change: %v", err)
		}
		for _, d := range []string{"dev", "proc", "sys", "run", "oldroot"} {
			if _, err := os.Stat(filepath.Join(dir, d)); err != nil {
				t.Error(err)
			}
		}
		if out, err := exec.Command(dir+"/shutdown", "-test.run=^$").CombinedOutput(); err != nil {
			t.Errorf("it does not run: %v: %s", err, out)
		}
		if err := boot.KeepShutdown(t.TempDir(), "/none"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a copy of nothing: %v", err)
		}
		if err := boot.KeepShutdown("/proc/x", "/proc/self/exe"); err == nil {
			t.Error("a place in /proc")
		}
		if err := boot.SwitchRoot("/proc"); err == nil || !strings.HasPrefix(err.Error(), "move /dev: ") {
			t.Errorf("a root without directories: %v", err)
		}
		if err := boot.Prepare("/none"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a root that is not there: %v", err)
		}
	})
}

// TestMountRoot mounts a root as a boot does, with this machine's kernel.
func TestMountRoot(t *testing.T) {
	var source bytes.Buffer
	c := exec.Command("sh", "-c", `d=$(mktemp -d) && mkdir $d/r $d/r/etc && echo old > $d/r/etc/file && mksquashfs $d/r $d/s -quiet -no-progress >&2 && cat $d/s; rm -r $d`)
	c.Stdout = &source
	check(t, c.Run())
	inside(t, "here", func(t *testing.T) {
		dir := t.TempDir()
		check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "")) // an OverlayFS does not lie on every file system
		image, err := os.Create(dir + "/image")
		check(t, err)
		_, err = image.Write(source.Bytes())
		check(t, err)
		check(t, boot.MountRoot(image, dir+"/root"))
		if b, err := os.ReadFile(dir + "/root/etc/file"); string(b) != "old\n" {
			t.Errorf("%q, %v", b, err)
		}
		write(t, dir+"/root/etc/file", []byte("new"))
		if _, err := os.Stat(dir + "/root.rw"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the upper layer has a name: %v", err)
		}
		if err := os.WriteFile(dir+"/root/large", make([]byte, 70<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("70 MB in 64: %v", err)
		}
		check(t, os.Mkdir(dir+"/root/run", 0o755))
		check(t, unix.Unmount(dir+"/root", 0))
		if err := boot.MountRoot(image, "/proc/none"); err == nil {
			t.Error("a place in /proc")
		}
		noise, err := os.Create(dir + "/noise")
		check(t, err)
		check(t, noise.Truncate(1<<20))
		if err := boot.MountRoot(noise, dir+"/none"); err == nil || !strings.HasPrefix(err.Error(), "mount squashfs: ") {
			t.Errorf("noise: %v", err)
		}
		check(t, noise.Close())
		if err := boot.MountRoot(noise, dir+"/none"); err == nil {
			t.Error("a closed file was mounted")
		}
	})
}

func TestRest(t *testing.T) {
	if got := boot.Unescape(`/a\040b\134c`); got != `/a b\c` {
		t.Errorf("got %q", got)
	}
	dir := t.TempDir()
	left, err := boot.Unload(filepath.Join(dir, "none"))
	if left != nil || err != nil {
		t.Errorf("no modules: %v, %v", left, err)
	}
	write(t, dir+"/modules", []byte("overlay 1 1 - Live 0x0\nnone_such 1 2 - Live 0x0\n"))
	if left, err := boot.Unload(dir + "/modules"); err != nil || !reflect.DeepEqual(left, []string{"module none_such"}) {
		t.Errorf("left %q, %v", left, err)
	}
	write(t, dir+"/modules", []byte("x\n"))
	if _, err := boot.Unload(dir + "/modules"); err == nil {
		t.Error("a list that makes no sense")
	}
	for name, class := range map[string]string{"a": "0x010802\n", "b": "0x020000\n"} {
		write(t, filepath.Join(dir, "bus/pci/devices", name, "class"), []byte(class))
		write(t, filepath.Join(dir, "bus/pci/devices", name, "remove"), nil)
	}
	boot.RemoveStorage(dir)
	for name, want := range map[string]string{"a": "1", "b": ""} {
		if b, _ := os.ReadFile(filepath.Join(dir, "bus/pci/devices", name, "remove")); string(b) != want {
			t.Errorf("%s: %q", name, b)
		}
	}
	if left := boot.UnmountAll(dir + "/none"); len(left) != 1 {
		t.Errorf("left %q", left)
	}
	write(t, dir+"/mounts", []byte(fmt.Sprintf("1 1 0:1 / / rw - x x\n2 1 0:1 / %s/no rw - x x\nx\n", dir)))
	if left := boot.UnmountAll(dir + "/mounts"); !reflect.DeepEqual(left, []string{dir + "/no"}) {
		t.Errorf("left %q", left)
	}
}
