package root

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"lethe/image/deb"
	"lethe/image/tree"
)

// ours is where those entries come from that no package has.
const ours = "lethe"

// pick is files of a package.
type pick struct {
	pkg   string   // name, a pattern (path.Match)
	why   string   // what needs them
	paths []string // patterns, counted from the root as after the merge of /bin, /lib and /sbin into /usr
}

// pool is what was found in packages and does not go into the root as it is.
type pool struct {
	kernel  []byte
	modules map[string]module // by name
}

// module is a kernel module as the package has it.
type module struct {
	path, pkg string
	packed    []byte // xz
}

// collect reads the packages that picks or the kernel need, and adds the picked files to root.
func collect(packages []Package, picks []pick, root *tree.Tree) (*pool, error) {
	found := map[string]bool{} // patterns that found something
	key := func(p pick, pattern string) string { return p.pkg + ": " + pattern }
	all := &pool{modules: map[string]module{}}
	for _, pkg := range packages {
		var mine []pick
		for _, p := range picks {
			if ok, _ := path.Match(p.pkg, pkg.Name); ok {
				mine = append(mine, p)
			}
		}
		kernel := strings.HasPrefix(pkg.Name, "linux-binary-") || strings.HasPrefix(pkg.Name, "linux-modules-")
		if len(mine) == 0 && !kernel {
			continue
		}
		err := read(pkg, func(e deb.Entry, r io.Reader) error {
			at := merged(e.Path)
			if kernel && e.Type == deb.Regular {
				if err := all.add(at, pkg.Name, e.Size, r); err != nil {
					return err
				}
			}
			for _, p := range mine {
				for _, pattern := range p.paths {
					if ok, err := path.Match(pattern, at); err != nil {
						return err
					} else if !ok {
						continue
					}
					if found[key(p, pattern)] = true; root.Get(at) != nil {
						continue
					}
					return addEntry(root, at, pkg.Name, e, r)
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("root: package %s: %w", pkg.Name, err)
		}
	}
	for _, p := range picks {
		for _, pattern := range p.paths {
			if !found[key(p, pattern)] {
				return nil, fmt.Errorf("root: package %s has no %s", p.pkg, pattern)
			}
		}
	}
	if len(all.kernel) == 0 || len(all.modules) == 0 {
		return nil, fmt.Errorf("root: no kernel, or none of its modules")
	}
	return all, nil
}

func read(pkg Package, each func(deb.Entry, io.Reader) error) error {
	r, err := pkg.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = deb.ReadArchive(r, each)
	return err
}

// merged returns a package's path as it is after the merge of /bin, /lib, /lib64 and /sbin into /usr.
func merged(p string) string {
	switch first, _, _ := strings.Cut(p, "/"); first {
	case "bin", "lib", "lib64", "sbin":
		return "usr/" + p
	}
	return p
}

// add keeps a kernel and its modules.
func (a *pool) add(at, pkg string, size int64, r io.Reader) error {
	name, isModule := strings.CutSuffix(path.Base(at), ".ko.xz")
	isKernel, _ := path.Match("usr/lib/modules/*/vmlinuz", at)
	if !isModule && !isKernel {
		return nil
	}
	b, err := io.ReadAll(r)
	switch {
	case err != nil:
		return err
	case isKernel && a.kernel != nil:
		return fmt.Errorf("a second kernel, %s", at)
	case isKernel:
		a.kernel = b
		return nil
	}
	name = moduleName(name)
	if had, ok := a.modules[name]; ok {
		return fmt.Errorf("module %s stands in %s and in %s", name, had.path, at)
	}
	a.modules[name] = module{path: at, pkg: pkg, packed: b}
	return nil
}

// addEntry adds a package's file. A directory is not taken: parents are made as
// they are needed.
func addEntry(root *tree.Tree, at, pkg string, e deb.Entry, r io.Reader) error {
	if e.Type != deb.Symlink && (e.UID != 0 || e.GID != 0 || e.Mode&0o7022 != 0) {
		return fmt.Errorf("%s belongs to %d:%d with mode %o", at, e.UID, e.GID, e.Mode)
	}
	switch e.Type {
	case deb.Regular:
		b, err := io.ReadAll(r)
		return errors.Join(err, root.File(at, libraryMode(at, e.Mode), pkg, b))
	case deb.Symlink:
		return root.Symlink(at, e.Target, pkg)
	}
	return fmt.Errorf("%s is neither a regular file nor a symbolic link", at)
}
