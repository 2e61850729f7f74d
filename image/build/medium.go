package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lethe/image/gpt"
	"lethe/image/layout"
	"lethe/image/pe"
	"lethe/image/root"
	"lethe/image/sandbox"
	"lethe/image/tree"
)

// signatureSpace is what the boot image keeps for signatures, in bytes.
const signatureSpace = 4096

// workshop is where the tools run for one flavour.
type workshop struct {
	tools sandbox.Tree
	work  string // outside; /work inside
	epoch time.Time
	cores int
	log   *log
}

// log is what was run inside, a line for each tool. It holds nothing of this machine, so it is the same everywhere.
type log []string

func (l *log) add(args []string) { *l = append(*l, strings.Join(args, " ")+"\n") }

// run runs a tool with the time that everything in the image has.
func (w *workshop) run(ctx context.Context, in *bytes.Reader, args ...string) error {
	c := sandbox.Command{Args: args, Env: []string{"SOURCE_DATE_EPOCH=" + strconv.FormatInt(w.epoch.Unix(), 10), "TMPDIR=/work/tmp"},
		Dir: "/work", Binds: []sandbox.Bind{{Outside: w.work, Inside: "/work"}}}
	if in != nil {
		c.Stdin = in
	}
	w.log.add(args)
	return w.tools.Run(ctx, c)
}

// squash makes the root file system, work/root, and returns what fixes it.
func (w *workshop) squash(ctx context.Context, t *tree.Tree) (d layout.RootDigest, err error) {
	r, pipe, err := os.Pipe()
	if err != nil {
		return d, err
	}
	written := make(chan error, 1)
	go func() {
		err := t.WriteTar(pipe, w.epoch)
		written <- errors.Join(err, pipe.Close())
	}()
	args := []string{"/usr/bin/sqfstar", "-quiet", "-no-progress", "-comp", "zstd", "-Xcompression-level", "15", "-b", "256K", "-no-xattrs", "/work/root"}
	w.log.add(args)
	err = w.tools.Run(ctx, sandbox.Command{
		// How many cores work is nobody's business: the bytes do not depend on it.
		Args:  slices.Insert(args, len(args)-1, "-processors", strconv.Itoa(w.cores)),
		Env:   []string{"SOURCE_DATE_EPOCH=" + strconv.FormatInt(w.epoch.Unix(), 10)},
		Stdin: r, Binds: []sandbox.Bind{{Outside: w.work, Inside: "/work"}},
	})
	r.Close() // lets the writer go when the tool ended early
	if writeErr := <-written; err == nil {
		err = writeErr
	}
	if err != nil {
		return d, fmt.Errorf("root file system: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(w.work, "root"))
	if err != nil {
		return d, err
	}
	if pad := -len(b) & 4095; pad > 0 {
		b = append(b, make([]byte, pad)...)
		if err := os.WriteFile(filepath.Join(w.work, "root"), b, 0o644); err != nil {
			return d, err
		}
	}
	return layout.RootDigest{SHA256: digest(b), Size: int64(len(b))}, nil
}

// pack returns the initramfs: the tree and the root's digest, compressed.
func (w *workshop) pack(ctx context.Context, t *tree.Tree, d layout.RootDigest) ([]byte, error) {
	if err := t.File(layout.Root, 0o444, "build", []byte(d.String())); err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	if err := t.WriteCPIO(&archive, w.epoch); err != nil {
		return nil, err
	}
	front, err := front(layout.MediumDigest{}, w.epoch)
	if err != nil {
		return nil, err
	}
	// A window of 8 MiB is what every kernel's decompressor takes.
	if err := w.run(ctx, bytes.NewReader(archive.Bytes()), "/usr/bin/zstd", "-q", "-19", "-T1", "-f", "-o", "/work/initrd"); err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	packed, err := os.ReadFile(filepath.Join(w.work, "initrd"))
	return append(front, packed...), err
}

// front returns the first archive of the initramfs.
func front(d layout.MediumDigest, at time.Time) ([]byte, error) {
	var t tree.Tree
	var b bytes.Buffer
	if err := errors.Join(t.File(layout.Medium, 0o444, "build", []byte(d.String())), t.WriteCPIO(&b, at)); err != nil {
		return nil, err
	}
	if b.Len() > layout.FrontArchive {
		return nil, fmt.Errorf("initramfs: the first archive has %d bytes", b.Len())
	}
	return append(b.Bytes(), make([]byte, layout.FrontArchive-b.Len())...), nil
}

// fix writes the medium's digest into the initramfs of the boot image, where an empty one stands,
// and that into the ISO. It returns the boot image and its initramfs as they are then.
func (w *workshop) fix(uki, initrd []byte) (fixedUKI, fixedInitrd []byte, err error) {
	path := filepath.Join(w.work, "iso")
	iso, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	at, within := bytes.Index(iso, uki), bytes.Index(uki, initrd)
	if at < 0 || within < 0 {
		return nil, nil, errors.New("the boot image does not lie in one piece in the ISO")
	}
	d := layout.MediumDigest{Size: int64(len(iso)), BootOffset: int64(at), BootLength: int64(len(uki))}
	h := sha256.New()
	h.Write(iso[:at])
	h.Write(iso[at+len(uki):])
	d.SHA256 = [sha256.Size]byte(h.Sum(nil))
	archive, err := front(d, w.epoch)
	if err != nil {
		return nil, nil, err
	}
	boot := iso[at : at+len(uki)]
	copy(boot[within:], archive)
	return boot, boot[within : within+len(initrd)], os.WriteFile(path, iso, 0o644)
}

// stubPath is systemd's stub in the tree of tools.
const stubPath = "usr/lib/systemd/boot/efi/linuxx64.efi.stub"

// unify makes the unified kernel image, with empty space for its signature.
func (w *workshop) unify(r *root.Result, initrd []byte) ([]byte, error) {
	stub, err := os.ReadFile(filepath.Join(w.tools.Dir, stubPath))
	if err != nil {
		return nil, fmt.Errorf("boot image: %w", err)
	}
	uname, err := kernelRelease(r.Kernel)
	if err != nil {
		return nil, err
	}
	// The stub has a section .sbat of its own.
	b, err := pe.Append(stub, pe.Section{Name: ".osrel", Data: r.OSRelease}, pe.Section{Name: ".cmdline", Data: []byte(r.Cmdline)},
		pe.Section{Name: ".uname", Data: []byte(uname)}, pe.Section{Name: ".initrd", Data: initrd}, pe.Section{Name: ".linux", Data: r.Kernel})
	if err != nil {
		return nil, fmt.Errorf("boot image: %w", err)
	}
	return pe.Reserve(b, signatureSpace)
}

// kernelRelease reads a kernel's release from its setup header (Linux,
// Documentation/arch/x86/boot.rst, kernel_version): what uname -r prints.
func kernelRelease(kernel []byte) (string, error) {
	const magic, pointer, base = 0x202, 0x20e, 0x200
	if len(kernel) < pointer+2 || string(kernel[magic:magic+4]) != "HdrS" {
		return "", errors.New("the kernel is no bzImage")
	}
	at := int(binary.LittleEndian.Uint16(kernel[pointer:])) + base
	if at >= len(kernel) {
		return "", errors.New("the kernel does not say which release it is")
	}
	text := kernel[at:min(len(kernel), at+256)]
	end := bytes.IndexAny(text, " \x00")
	if end < 1 {
		return "", errors.New("the kernel does not say which release it is")
	}
	return string(text[:end]), nil
}

// FAT16 (Microsoft, FAT specification 1.03) wants 4085 to 65524 clusters.
const (
	cluster     = 2048
	minClusters = 4200
)

// partition makes the EFI system partition work/esp with the boot image.
func (w *workshop) partition(ctx context.Context, uki []byte) error {
	if err := os.WriteFile(filepath.Join(w.work, "uki"), uki, 0o644); err != nil {
		return err
	}
	if err := os.Chtimes(filepath.Join(w.work, "uki"), w.epoch, w.epoch); err != nil { // FAT keeps it
		return err
	}
	clusters := max(minClusters, (len(uki)+cluster-1)/cluster+16)
	overhead := 64<<10 + 2*2*clusters // boot sector, root directory, two tables
	blocks := (clusters*cluster + overhead) / 1024
	for _, args := range [][]string{
		{"/usr/sbin/mkfs.vfat", "--invariant", "-C", "-F", "16", "-s", strconv.Itoa(cluster / 512), "-n", "LETHE", "-i", "4c455448", "/work/esp", strconv.Itoa(blocks)},
		{"/usr/bin/mmd", "-i", "/work/esp", "::EFI", "::EFI/BOOT"},
		{"/usr/bin/mcopy", "-m", "-i", "/work/esp", "/work/uki", "::" + layout.BootImage},
	} {
		if err := w.run(ctx, nil, args...); err != nil {
			return fmt.Errorf("EFI system partition: %w", err)
		}
	}
	return nil
}

// burn makes the ISO of both partitions, work/iso.
func (w *workshop) burn(ctx context.Context) error {
	if err := os.Mkdir(filepath.Join(w.work, "volume"), 0o755); err != nil {
		return err
	}
	err := w.run(ctx, nil, "/usr/bin/xorriso", "-report_about", "SORRY", "-as", "mkisofs", "-quiet", "-o", "/work/iso", "-V", "LETHE", "-r", "-no-pad",
		"--set_all_file_dates", fmt.Sprintf("=%d", w.epoch.Unix()),
		"-append_partition", "2", gpt.System.String(), "/work/esp", "-append_partition", "3", layout.RootTypeName, "/work/root", "-appended_part_as_gpt",
		"-e", "--interval:appended_partition_2:all::", "-no-emul-boot", "/work/volume")
	if err != nil {
		return fmt.Errorf("ISO: %w", err)
	}
	return nil
}
