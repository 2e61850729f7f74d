// Package kmod loads kernel modules from a directory of ours: what modprobe(8)
// does elsewhere, without its configuration, its index files and its search paths.
//
// A directory ([Open]; package image/layout describes it) lists its modules in an order in which they can be
// loaded, and which of them drives which device. [Dir.Load] loads modules by name with
// what they need; [Dir.Coldplug] those that the devices in /sys ask for by their
// modalias, as depmod.d(5) and the kernel's uevents write it; [Loaded] and [Unload] are the way back.
// [Events] tells when there is a new device to look at.
//
// A module is read by the kernel, which checks its signature (finit_module(2)).
// The kernel itself can ask nobody for a module here: there is no /sbin/modprobe.
package kmod

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lethe/image/layout"
)

// Dir is a directory of modules. It is not safe for concurrent use.
type Dir struct {
	path    string
	order   []string       // as the file says
	index   map[string]int // in order, by canonical name
	aliases []Alias
	load    []string
	tried   map[string]error // modules that were loaded, or refused
}

// Alias says that a module drives the devices whose modalias matches Pattern.
type Alias struct {
	Pattern string // with the wildcards of fnmatch(3): *, ?, […]
	Module  string // canonical
}

// Canonical returns a module's name as the kernel writes it: with underscores.
func Canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// Open reads a directory's lists.
func Open(path string) (*Dir, error) {
	d := &Dir{path: path, index: map[string]int{}, tried: map[string]error{}}
	text := map[string][]byte{}
	for _, name := range []string{layout.Order, layout.Aliases, layout.Load} {
		b, err := os.ReadFile(filepath.Join(path, name))
		if err != nil {
			return nil, fmt.Errorf("modules: %w", err)
		}
		text[name] = b
	}
	var err error
	if d.order, err = ParseNames(text[layout.Order]); err != nil {
		return nil, fmt.Errorf("modules: %s: %w", layout.Order, err)
	}
	for i, name := range d.order {
		if _, twice := d.index[Canonical(name)]; twice {
			return nil, fmt.Errorf("modules: %s: %s stands there twice", layout.Order, name)
		}
		d.index[Canonical(name)] = i
	}
	if d.load, err = ParseNames(text[layout.Load]); err != nil {
		return nil, fmt.Errorf("modules: %s: %w", layout.Load, err)
	}
	if d.aliases, err = ParseAliases(text[layout.Aliases]); err != nil {
		return nil, fmt.Errorf("modules: %s: %w", layout.Aliases, err)
	}
	named := slices.Clone(d.load)
	for _, a := range d.aliases {
		named = append(named, a.Module)
	}
	for _, name := range named {
		if _, ok := d.index[Canonical(name)]; !ok {
			return nil, fmt.Errorf("modules: %s is not in %s", name, layout.Order)
		}
	}
	return d, nil
}

// ParseNames reads a list of module names, a line each.
func ParseNames(b []byte) ([]string, error) {
	var names []string
	for i, line := range lines(b) {
		if !validName(line) {
			return nil, fmt.Errorf("line %d: %q is no module's name", i+1, line)
		}
		names = append(names, line)
	}
	return names, nil
}

// ParseAliases reads lines "alias PATTERN MODULE".
func ParseAliases(b []byte) ([]Alias, error) {
	var aliases []Alias
	for i, line := range lines(b) {
		f := strings.Split(line, " ")
		if len(f) != 3 || f[0] != "alias" || f[1] == "" || !validName(f[2]) {
			return nil, fmt.Errorf("line %d: want alias, pattern and module", i+1)
		}
		aliases = append(aliases, Alias{Pattern: f[1], Module: Canonical(f[2])})
	}
	return aliases, nil
}

// lines splits at line feeds; after the last one there is nothing.
func lines(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// validName keeps names from leading out of the directory.
func validName(s string) bool {
	return s != "" && len(s) < 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	})
}

// Match returns the modules that drive a device of that modalias, canonical, in the order of loading.
func (d *Dir) Match(modalias string) []string {
	var names []string
	for _, a := range d.aliases {
		if !slices.Contains(names, a.Module) && fnmatch(a.Pattern, modalias) {
			names = append(names, a.Module)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return d.index[a] - d.index[b] })
	return names
}

// Names returns the canonical names of all modules of the directory, in the order of loading.
func (d *Dir) Names() []string {
	names := make([]string, len(d.order))
	for i, name := range d.order {
		names[i] = Canonical(name)
	}
	return names
}

// LoadListed loads what the directory says is to be loaded on every machine. A module
// for what this machine does not have (a processor without AES) is no error.
func (d *Dir) LoadListed() error {
	var errs []error
	for _, name := range d.load {
		if err := d.Load(name); !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Load loads a module, and before it what it needs. A module that is there already is no error; one that was
// refused once is not tried again, and its error returned again.
func (d *Dir) Load(name string) error {
	i, ok := d.index[Canonical(name)]
	if !ok {
		return fmt.Errorf("module %s: there is none", name)
	}
	name = d.order[i]
	if err, done := d.tried[name]; done {
		return err
	}
	err := d.insert(name, i)
	d.tried[name] = err
	return err
}

func (d *Dir) insert(name string, i int) error {
	path := filepath.Join(d.path, layout.Modules, name+".ko")
	needs, err := Needs(path)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, need := range needs {
		if at, ok := d.index[Canonical(need)]; !ok || at >= i {
			return fmt.Errorf("module %s: needs %s, which %s does not have above it", name, need, layout.Order)
		}
		if err := d.Load(need); err != nil {
			return err
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("module %s: %w", name, err)
	}
	return nil
}

// Needs returns the modules that the module in a file depends on: the field "depends" of its section
// .modinfo, which modpost writes (Linux, scripts/mod/modpost.c).
func Needs(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if needs, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(needs) > 0 {
			return strings.Split(string(needs), ","), nil
		}
	}
	return nil, nil
}

// Coldplug loads what the devices below sys ("/sys") ask for. It returns the modules that were not tried before,
// and the errors of those that did not load. To drive one device a bus may have to appear first: call
// it again when there are new devices.
func (d *Dir) Coldplug(sys string) (tried []string, err error) {
	var errs []error
	seen := map[string]bool{}
	// A device that goes while the tree is walked is no error.
	_ = filepath.WalkDir(filepath.Join(sys, "devices"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "modalias" {
			return nil
		}
		b, err := os.ReadFile(path)
		alias := string(bytes.TrimSpace(b))
		if err != nil || alias == "" || seen[alias] {
			return nil
		}
		seen[alias] = true
		for _, name := range d.Match(alias) {
			if _, done := d.tried[d.order[d.index[name]]]; done {
				continue
			}
			tried = append(tried, name)
			errs = append(errs, d.Load(name))
		}
		return nil
	})
	return tried, errors.Join(errs...)
}

// Module is a module in the running kernel.
type Module struct {
	Name string // canonical
	Uses int    // how many hold it: other modules, open files, mounts
}

// Loaded returns the modules that are in the kernel, from the file "/proc/modules" (proc_modules(5)), the last
// that was loaded first.
func Loaded(path string) ([]Module, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a kernel without loadable modules
	}
	if err != nil {
		return nil, err
	}
	return ParseLoaded(b)
}

// ParseLoaded reads /proc/modules: name, size, uses and more on each line.
func ParseLoaded(b []byte) ([]Module, error) {
	var all []Module
	for i, line := range lines(b) {
		f := strings.Fields(line)
		if len(f) < 3 {
			return nil, fmt.Errorf("modules: line %d has %d fields", i+1, len(f))
		}
		uses, err := strconv.Atoi(f[2])
		if err != nil { // "-": a module that cannot be unloaded
			uses = -1
		}
		all = append(all, Module{Name: f[0], Uses: uses})
	}
	return all, nil
}

// Unload takes a module out of the kernel (delete_module(2)). It does not wait for a module that is in use.
func Unload(name string) error {
	if err := unix.DeleteModule(name, unix.O_NONBLOCK); err != nil && err != unix.ENOENT {
		return fmt.Errorf("module %s: unload: %w", name, err)
	}
	return nil
}
