// Package root decides what is in the image: it makes the tree of the root file
// system, that of the initramfs and the kernel's command line out of unpacked Debian
// packages and our own programs. It is a pure function: it runs nothing, least of
// all a package's scripts, and reads nothing of the machine that it runs on.
//
// Everything is added, nothing is taken away. What enters stands in a table,
// each with its reason:
//
//	table.go     which files of which package
//	modules.go   which kernel modules; what those need follows from the modules themselves
//	cmdline.go   the kernel's command line
//	files/       our configuration and units, at their places below the root
//	lab/         more of it in an image for the lab: the DNS root of the lab's internet, a reboot by the keyboard
//	users.go     the users
//
// A pattern that finds nothing is an error, so that a package's new layout is
// noticed; a library that is missing is one, and so is a library that nothing
// needs ([Make], elf.go). In the end the tree is gone through once more for what
// must not be in it (check.go).
package root

import (
	"errors"
	"fmt"
	"io"
	"time"

	"lethe/image/layout"
	"lethe/image/tree"
)

// Flavours of the image.
const (
	VM       = "vm"       // for virtual machines
	Hardware = "hardware" // for real servers
)

// Input is what an image is made from.
type Input struct {
	Flavour  string
	Lab      bool // the programs may be handed secrets by anybody: for tests, and trusted by no release
	Version  string
	Commit   string
	Epoch    time.Time // of everything that has a time
	Packages []Package
	Programs map[string][]byte // ELF, by name: lethe-init, lethe-seal, lethe-node
}

// Package is a Debian package.
type Package struct {
	Name, Version string
	Open          func() (io.ReadCloser, error) // the .deb
}

// Result is what an image consists of.
type Result struct {
	Root      *tree.Tree
	Initramfs *tree.Tree // all but layout.Root, the digest of Root
	Kernel    []byte
	Cmdline   string // one line without its end
	OSRelease []byte // os-release(5)
}

// Name returns the flavour's name, which says whether it is a lab's.
func (in Input) Name() string {
	if in.Lab {
		return in.Flavour + "-lab"
	}
	return in.Flavour
}

// The programs of ours.
const (
	initProgram = "lethe-init"
	sealProgram = "lethe-seal"
	nodeProgram = "lethe-node"
)

// Make makes an image's trees.
func Make(in Input) (*Result, error) {
	if in.Flavour != VM && in.Flavour != Hardware {
		return nil, fmt.Errorf("root: flavour %q, want %s or %s", in.Flavour, VM, Hardware)
	}
	r := &Result{Root: &tree.Tree{}, Initramfs: &tree.Tree{}, Cmdline: cmdline(in.Lab), OSRelease: osRelease(in)}
	pool, err := collect(in.Packages, picks, r.Root)
	if err != nil {
		return nil, err
	}
	r.Kernel = pool.kernel
	steps := []func() error{
		func() error {
			return addModules(r.Initramfs, layout.InitramfsModules, pool, initramfsModules(in.Flavour))
		},
		func() error { return addModules(r.Root, layout.RootModules, pool, rootModules(in.Flavour)) },
		func() error { return addPrograms(r, in.Programs) },
		func() error { return addFiles(r.Root, r.OSRelease) },
		func() error { return addLab(r.Root, in.Lab) },
		func() error { return addSkeleton(r.Root) },
		func() error { return addCmdline(r) },
		func() error { return closure(r.Root, byName) },
		func() error { return inspect(r.Root) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, fmt.Errorf("root: %w", err)
		}
	}
	return r, nil
}

// addPrograms puts our programs where the kernel and the units look for them.
func addPrograms(r *Result, programs map[string][]byte) (err error) {
	for _, p := range []struct {
		name, path string
		tree       *tree.Tree
	}{
		{initProgram, layout.Init, r.Initramfs},
		{sealProgram, "usr/bin/" + sealProgram, r.Root},
		{nodeProgram, "usr/bin/" + nodeProgram, r.Root},
	} {
		if len(programs[p.name]) == 0 {
			err = errors.Join(err, fmt.Errorf("program %s is missing", p.name))
		}
		err = errors.Join(err, p.tree.File(p.path, 0o755, p.name, programs[p.name]))
	}
	return err
}

// addCmdline puts the command line beside the modules, for the programs that start
// with them: a hypervisor can add to it (systemd-stub(7), SMBIOS strings), and they
// refuse one that is not ours.
func addCmdline(r *Result) error {
	line := []byte(r.Cmdline + "\n")
	return errors.Join(
		r.Root.File(layout.RootModules+"/"+layout.Cmdline, 0o644, ours, line),
		r.Initramfs.File(layout.InitramfsModules+"/"+layout.Cmdline, 0o644, ours, line))
}

// osRelease returns os-release(5).
func osRelease(in Input) []byte {
	return fmt.Appendf(nil, `NAME=Lethe
PRETTY_NAME="Lethe %[1]s (%[2]s)"
ID=lethe
ID_LIKE=debian
VERSION_ID=%[1]s
IMAGE_ID=lethe
IMAGE_VERSION=%[1]s
BUILD_ID=%[3]s
VARIANT_ID=%[2]s
`, in.Version, in.Name(), in.Commit)
}
