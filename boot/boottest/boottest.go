// Package boottest boots what package boot and package seal do, for their tests: the
// image's kernel and modules, an initramfs and disks put together here, in QEMU without firmware.
package boottest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"lethe/boot/kmod"
	"lethe/image"
	"lethe/image/layout"
	"lethe/image/lock"
	"lethe/image/store"
	"lethe/image/tree"
)

// Kernel is a kernel of the image with all its modules, unpacked.
type Kernel struct {
	Image   []byte
	modules map[string][]byte // compressed, by canonical name
}

// VM returns the kernel of the flavour vm, and Hardware that of the other one.
func VM(t *testing.T) *Kernel       { return get(t, "vm") }
func Hardware(t *testing.T) *Kernel { return get(t, "hardware") }

func get(t *testing.T, flavour string) *Kernel {
	t.Helper()
	k, err := unpack(flavour)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// unpack reads the kernel out of the packages that image.lock names. What the store lacks is fetched.
func unpack(flavour string) (*Kernel, error) {
	root, err := top()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(root, lock.FileName))
	if err != nil {
		return nil, err
	}
	l, err := lock.Parse(text)
	if err != nil {
		return nil, err
	}
	l.Sources, l.Modules = nil, nil
	l.Packages = slices.DeleteFunc(l.Packages, func(p lock.Package) bool {
		return !slices.Contains(p.Sets, flavour) || !strings.HasPrefix(p.Name, "linux-modules-") && !strings.HasPrefix(p.Name, "linux-binary-")
	})
	here := image.Here(os.Getenv)
	s, err := store.Open(here.Store)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	f := lock.Fetcher{Store: s, Net: &lock.Network{Mirrors: lock.ReadApt(os.DirFS(here.Apt))}}
	if _, err := f.Fetch(context.Background(), l, nil); err != nil {
		return nil, fmt.Errorf("the store %s: %w", here.Store, err)
	}
	k := &Kernel{modules: map[string][]byte{}}
	for _, p := range l.Packages {
		if err := k.read(s.Path(p.File.SHA256)); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	if k.Image == nil || len(k.modules) == 0 {
		return nil, fmt.Errorf("no kernel in the packages of %s", lock.FileName)
	}
	return k, nil
}

// read keeps what counts of a package. dpkg-deb is five times as fast as package image/deb here.
func (k *Kernel) read(deb string) error {
	c := exec.Command("dpkg-deb", "--fsys-tarfile", deb)
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	r := tar.NewReader(out)
	var h *tar.Header
	for err == nil {
		if h, err = r.Next(); err != nil {
			break
		}
		name, isModule := strings.CutSuffix(path.Base(h.Name), ".ko.xz")
		switch {
		case isModule:
			k.modules[kmod.Canonical(name)], err = io.ReadAll(r)
		case name == "vmlinuz":
			k.Image, err = io.ReadAll(r)
		}
	}
	if err == io.EOF {
		err = nil
	}
	_, _ = io.Copy(io.Discard, out)
	return errors.Join(err, c.Wait())
}

// top finds the tree's root.
func top() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil && dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no go.mod above: %w", err)
}

// Modules puts a directory of modules into a tree (package image/layout): those named and what they need.
// load names those that are loaded without being asked for.
func (k *Kernel) Modules(t *testing.T, to *tree.Tree, at string, load []string, names ...string) {
	t.Helper()
	var order, aliases strings.Builder
	done := map[string]bool{}
	var add func(name string)
	add = func(name string) {
		name = kmod.Canonical(name)
		if done[name] {
			return
		}
		done[name] = true
		packed := k.modules[name]
		if packed == nil {
			t.Fatalf("the kernel has no module %s", name)
		}
		r, err := xz.NewReader(bytes.NewReader(packed))
		check(t, err)
		b, err := io.ReadAll(r)
		check(t, err)
		f, err := elf.NewFile(bytes.NewReader(b))
		check(t, err)
		info, err := f.Section(".modinfo").Data()
		check(t, err)
		for field := range strings.SplitSeq(string(info), "\x00") {
			if needs, ok := strings.CutPrefix(field, "depends="); ok && needs != "" {
				for need := range strings.SplitSeq(needs, ",") {
					add(need)
				}
			}
			if alias, ok := strings.CutPrefix(field, "alias="); ok {
				fmt.Fprintf(&aliases, "alias %s %s\n", alias, name)
			}
		}
		fmt.Fprintln(&order, name)
		check(t, to.File(path.Join(at, layout.Modules, name+".ko"), 0o644, "test", b))
	}
	for _, name := range append(slices.Clone(load), names...) {
		add(name)
	}
	check(t, to.File(path.Join(at, layout.Order), 0o644, "test", []byte(order.String())))
	check(t, to.File(path.Join(at, layout.Aliases), 0o644, "test", []byte(aliases.String())))
	check(t, to.File(path.Join(at, layout.Load), 0o644, "test", []byte(strings.Join(load, "\n")+"\n")))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Program compiles a static program of this tree, with counters of coverage for the packages that are
// tested by booting when the test itself counts.
func Program(t *testing.T, pkg string) []byte {
	t.Helper()
	root, err := top()
	check(t, err)
	out := filepath.Join(t.TempDir(), "program")
	args := []string{"build", "-o", out, "-trimpath", "-buildvcs=false"}
	if testing.CoverMode() != "" {
		args = append(args, "-cover", "-covermode", testing.CoverMode(), "-coverpkg", "lethe/boot,lethe/boot/kmod,lethe/seal,"+pkg) // main has to be among them
	}
	c := exec.Command("go", append(args, pkg)...)
	c.Dir, c.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	b, err := os.ReadFile(out)
	check(t, err)
	return b
}

// Initramfs writes a tree as the kernel reads it.
func Initramfs(t *testing.T, from *tree.Tree) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithEncoderLevel(zstd.SpeedFastest))
	check(t, err)
	check(t, from.WriteCPIO(w, time.Unix(1, 0)))
	check(t, w.Close())
	return b.Bytes()
}

// Squashfs makes the root file system of a tree.
func Squashfs(t *testing.T, from *tree.Tree) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "root")
	c := exec.Command("sqfstar", "-comp", "zstd", "-quiet", "-no-progress", out)
	in, err := c.StdinPipe()
	check(t, err)
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	check(t, c.Start())
	werr := from.WriteTar(in, time.Unix(1, 0))
	_ = in.Close()
	if err := c.Wait(); err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	check(t, werr)
	b, err := os.ReadFile(out)
	check(t, err)
	return b
}

// Disk returns a disk with a GUID partition table and one partition of a type, which holds content.
func Disk(kind [16]byte, content []byte) []byte {
	const block, first = 512, 2048
	le := binary.LittleEndian
	blocks := (len(content) + block - 1) / block
	disk := make([]byte, ((first+blocks+34)*block+4095)&^4095) // whole sectors of a CD as well
	copy(disk[first*block:], content)
	entries := disk[2*block : 34*block]
	copy(entries, kind[:])
	entries[16] = 1 // the partition's own id
	le.PutUint64(entries[32:], first)
	le.PutUint64(entries[40:], uint64(first+blocks-1))
	h := disk[block : block+92]
	copy(h, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
	le.PutUint64(h[24:], 1)
	le.PutUint64(h[32:], uint64(len(disk)/block-1))
	le.PutUint64(h[40:], 34)
	le.PutUint64(h[48:], uint64(len(disk)/block-34))
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 128)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	return disk
}

// Medium is the digest of a disk from which no firmware starts.
func Medium(disk []byte) layout.MediumDigest {
	return layout.MediumDigest{SHA256: sha256.Sum256(disk), Size: int64(len(disk))}
}

// Console is the beginning of every machine's command line. On a busy host an emulated timer is late, and a
// kernel that checks it panics.
const Console = "console=ttyS0 no_timer_check"

// Machine is a virtual machine to be.
type Machine struct {
	Initramfs []byte
	Memory    int      // MiB
	CPUs      int      // 0: one
	Cmdline   string   // behind [Console]
	Disks     []string // how each is attached: virtio, scsi, sata, cd, scsi-cd, nvme, usb
	Content   [][]byte // of each disk
	Extra     []string // of QEMU's command line
	Keep      bool     // a reset starts it again instead of ending it
}

// Start starts a machine. QMP is the path of its monitor's socket.
func (m Machine) Start(t *testing.T, k *Kernel) *Running {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		check(t, os.WriteFile(p, b, 0o600))
		return p
	}
	r := &Running{dir: dir, began: time.Now(), QMP: filepath.Join(dir, "qmp")}
	args := []string{"-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", fmt.Sprint(m.Memory), "-smp", fmt.Sprint(max(1, m.CPUs)),
		"-nodefaults", "-nographic", "-display", "none",
		"-kernel", write("kernel", k.Image), "-initrd", write("initramfs", m.Initramfs),
		"-append", Console + " " + m.Cmdline,
		"-serial", "file:" + filepath.Join(dir, "console"),
		"-chardev", "socket,id=line,path=" + filepath.Join(dir, "line") + ",server=on,wait=off,logfile=" + filepath.Join(dir, "cover"), "-serial", "chardev:line",
		"-qmp", "unix:" + r.QMP + ",server=on,wait=off"}
	if !m.Keep {
		args = append(args, "-no-reboot")
	}
	for i, kind := range m.Disks {
		id := fmt.Sprintf("disk%d", i)
		r.Disks = append(r.Disks, write(id, m.Content[i]))
		args = append(args, "-drive", fmt.Sprintf("if=none,format=raw,id=%s,file=%s", id, r.Disks[i])+map[bool]string{true: ",readonly=on,media=cdrom"}[strings.HasSuffix(kind, "cd")])
		args = append(args, attachments[kind](id, i)...)
	}
	c := exec.Command("qemu-system-x86_64", append(args, m.Extra...)...)
	c.Stderr = &r.said
	r.cmd = c
	check(t, c.Start())
	r.done = make(chan error, 1)
	go func() { r.done <- c.Wait() }()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		r.Wait(t)
	})
	return r
}

var attachments = map[string]func(id string, n int) []string{
	"virtio": func(id string, n int) []string { return []string{"-device", "virtio-blk-pci,drive=" + id} },
	"scsi": func(id string, n int) []string {
		return []string{"-device", "virtio-scsi-pci,id=hba" + id, "-device", "scsi-hd,bus=hba" + id + ".0,drive=" + id}
	},
	"scsi-cd": func(id string, n int) []string {
		return []string{"-device", "virtio-scsi-pci,id=hba" + id, "-device", "scsi-cd,bus=hba" + id + ".0,drive=" + id}
	},
	"sata": func(id string, n int) []string {
		return []string{"-device", fmt.Sprintf("ide-hd,drive=%s,bus=ide.%d", id, n)}
	},
	"cd": func(id string, n int) []string {
		return []string{"-device", fmt.Sprintf("ide-cd,drive=%s,bus=ide.%d", id, n)}
	},
	"nvme": func(id string, n int) []string { return []string{"-device", "nvme,serial=" + id + ",drive=" + id} },
	"usb": func(id string, n int) []string {
		return []string{"-device", "qemu-xhci,id=hub" + id, "-device", "usb-storage,bus=hub" + id + ".0,drive=" + id}
	},
}

// Running is a machine that runs.
type Running struct {
	QMP   string
	Disks []string // files of the disks
	dir   string
	began time.Time
	cmd   *exec.Cmd
	said  bytes.Buffer
	done  chan error
	over  sync.Once
	err   error
}

// Text returns what the console said so far.
func (r *Running) Text() string {
	b, _ := os.ReadFile(filepath.Join(r.dir, "console"))
	return strings.ReplaceAll(string(b), "\r", "")
}

// Wait waits until the machine is off and returns what its console said. What its programs counted enters the
// test's coverage.
func (r *Running) Wait(t *testing.T) string {
	t.Helper()
	r.over.Do(func() {
		select {
		case r.err = <-r.done:
		case <-time.After(5 * time.Minute):
			_ = r.cmd.Process.Kill()
			r.err = fmt.Errorf("still running after five minutes: %v", <-r.done)
		}
		b, _ := os.ReadFile(filepath.Join(r.dir, "cover"))
		keepCover(t, b)
	})
	if r.said.Len() > 0 {
		t.Logf("QEMU: %s", r.said.String())
	}
	return r.Text()
}

// Run runs a machine until it is off.
func (m Machine) Run(t *testing.T, k *Kernel) (text string, took time.Duration) {
	t.Helper()
	r := m.Start(t, k)
	text = r.Wait(t)
	if r.err != nil {
		t.Fatalf("%v: %s\n%s", r.err, r.said.String(), text)
	}
	return text, time.Since(r.began)
}

// keepCover puts the files that a program sent into the directory that this test run counts in. A line is
// a file's name and its content in base64.
func keepCover(t *testing.T, sent []byte) {
	dir := ""
	for _, arg := range os.Args {
		if d, ok := strings.CutPrefix(arg, "-test.gocoverdir="); ok {
			dir = d
		}
	}
	if dir == "" {
		return
	}
	for line := range strings.SplitSeq(strings.ReplaceAll(string(sent), "\r", ""), "\n") {
		name, content, ok := strings.Cut(line, " ")
		if !ok || !strings.HasPrefix(name, "cov") || name != filepath.Base(name) {
			continue
		}
		b, err := base64.StdEncoding.DecodeString(content)
		if err != nil {
			continue // the machine ended in the middle of it
		}
		if strings.HasPrefix(name, "covcounters.") {
			name = fmt.Sprintf("%s.%d", strings.TrimSuffix(name, path.Ext(name)), time.Now().UnixNano()) // process numbers repeat here
		}
		check(t, os.WriteFile(filepath.Join(dir, name), b, fs.FileMode(0o644)))
	}
}
