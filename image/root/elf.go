package root

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"lethe/image/tree"
)

// opened is a library that no other file names as needed: a program opens it by name.
type opened struct{ path, by, why string }

// libraryDirs are where the dynamic loader looks when it has no cache (ld.so(8)).
var libraryDirs = []string{lib[:len(lib)-1], "usr/lib"}

// object is what the dynamic loader needs to know of an ELF file.
type object struct {
	interpreter string // the loader's path; empty for a static program and for a library
	soname      string
	needed      []string // sonames
	runpath     []string // directories in which those are looked for first
}

// closure does for each program in t what the dynamic loader would: it checks that the
// loader and each library are in t, and in the end that each library in t was loaded by somebody.
func closure(t *tree.Tree, byName []opened) error {
	objects, err := readObjects(t)
	if err != nil {
		return err
	}
	loaded := map[string]bool{}
	var errs []error
	for _, at := range slices.Sorted(maps.Keys(objects)) {
		o := objects[at]
		if isLibrary(at) {
			continue
		}
		l := loader{tree: t, objects: objects, loaded: map[string]bool{}, sonames: map[string]bool{}}
		if o.interpreter != "" {
			l.load(o.interpreter, at)
		}
		l.needs(at, o)
		for _, n := range byName {
			if n.by == at {
				l.load(n.path, at)
			}
		}
		l.run()
		maps.Copy(loaded, l.loaded)
		errs = append(errs, l.errs...)
	}
	for _, n := range byName {
		if objects[n.by] == nil {
			errs = append(errs, fmt.Errorf("%s, which opens %s, is missing", n.by, n.path))
		}
	}
	for _, at := range slices.Sorted(maps.Keys(objects)) {
		if isLibrary(at) && !loaded[at] {
			errs = append(errs, fmt.Errorf("no program needs %s", at))
		}
	}
	return errors.Join(errs...)
}

func isLibrary(at string) bool {
	base := path.Base(at)
	return strings.HasSuffix(base, ".so") || strings.Contains(base, ".so.")
}

// loader is one program's.
type loader struct {
	tree    *tree.Tree
	objects map[string]*object
	loaded  map[string]bool // paths
	sonames map[string]bool // what is loaded is found by its soname, wherever it lies
	wanted  []wanted
	errs    []error
}

type wanted struct {
	soname, by string
	dirs       []string
}

// needs notes what o, which lies at at, needs.
func (l *loader) needs(at string, o *object) {
	for _, n := range o.needed {
		l.wanted = append(l.wanted, wanted{n, at, slices.Concat(o.runpath, libraryDirs)})
	}
}

// load loads the library at a path.
func (l *loader) load(at, by string) {
	e := l.tree.Resolve(at)
	if e == nil || l.objects[e.Path] == nil {
		l.errs = append(l.errs, fmt.Errorf("%s needs %s, which is missing", by, at))
		return
	}
	if l.loaded[e.Path] {
		return
	}
	o := l.objects[e.Path]
	l.loaded[e.Path], l.sonames[o.soname] = true, true
	l.needs(e.Path, o)
}

// run loads, breadth first as the dynamic loader does, until nothing is wanted.
func (l *loader) run() {
	for ; len(l.wanted) > 0; l.wanted = l.wanted[1:] {
		w := l.wanted[0]
		if l.sonames[w.soname] {
			continue
		}
		at := w.soname
		for _, d := range w.dirs {
			if p := path.Join(d, w.soname); l.tree.Resolve(p) != nil {
				at = p
				break
			}
		}
		l.load(at, w.by)
	}
}

// readObjects reads every file of t that is linked, by its path.
func readObjects(t *tree.Tree) (map[string]*object, error) {
	all := map[string]*object{}
	for e := range t.All() {
		if !e.Mode.IsRegular() {
			continue
		}
		b, err := e.Read()
		if err != nil {
			return nil, err
		}
		o, err := parseObject(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Path, err)
		}
		if o != nil {
			all[e.Path] = o
		}
	}
	return all, nil
}

// parseObject returns nil for what is no ELF file, and for a kernel module, which the kernel links.
func parseObject(b []byte) (*object, error) {
	if !bytes.HasPrefix(b, []byte(elf.ELFMAG)) {
		return nil, nil
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return nil, fmt.Errorf("it is for %v, %v", f.Machine, f.Class)
	}
	if f.Type == elf.ET_REL {
		return nil, nil
	}
	var o object
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			i := make([]byte, min(p.Filesz, 4096))
			if _, err := p.ReadAt(i, 0); err != nil {
				return nil, fmt.Errorf("interpreter: %w", err)
			}
			o.interpreter = strings.TrimRight(string(i), "\x00")
		}
	}
	var names, paths []string
	for tag, list := range map[elf.DynTag]*[]string{elf.DT_NEEDED: &o.needed, elf.DT_SONAME: &names, elf.DT_RUNPATH: &paths} {
		if *list, err = f.DynString(tag); err != nil {
			return nil, err
		}
	}
	if rpath, _ := f.DynString(elf.DT_RPATH); len(rpath) > 0 {
		return nil, fmt.Errorf("it has the old kind of path, %q, which counts for its libraries as well", rpath)
	}
	if len(names) > 0 {
		o.soname = names[0]
	}
	for _, list := range paths {
		for dir := range strings.SplitSeq(list, ":") {
			if !strings.HasPrefix(dir, "/usr/lib/") {
				return nil, fmt.Errorf("it looks for libraries in %q", dir)
			}
			o.runpath = append(o.runpath, dir)
		}
	}
	return &o, nil
}
