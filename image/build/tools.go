package build

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"

	"lethe/fault"
	"lethe/image/deb"
	"lethe/image/lock"
	"lethe/image/store"
)

// goRoot is where the toolchain is in the tree of tools.
const goRoot = "/usr/local/go"

// toolchainModule is the module as which Go distributes its toolchains.
const toolchainModule = "golang.org/toolchain"

// merged are the names that have led into /usr since Debian merged them; packages do
// not hold them, base-files would make them.
var merged = []string{"bin", "lib", "lib64", "sbin"}

// unpackTools makes the tree of tools in dir, which must be empty.
func unpackTools(ctx context.Context, l *lock.Lock, s *store.Store, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range merged {
		if err := errors.Join(root.MkdirAll("usr/"+name, 0o755), root.Symlink("usr/"+name, name)); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel())
	for _, p := range l.Packages {
		if !slices.Contains(p.Sets, lock.Tools) {
			continue
		}
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			b, err := s.Get(p.File.SHA256)
			if err == nil {
				err = unpackPackage(root, b)
			}
			return inInput(p.File.Path, err)
		})
	}
	group.Go(func() error {
		i := slices.IndexFunc(l.Modules, func(m lock.Module) bool { return m.Path == toolchainModule })
		if i < 0 {
			return fault.New(fault.Invalid, "the lock names no Go toolchain").WithHint("make it anew: lethe-image lock")
		}
		b, err := s.Get(l.Modules[i].Zip.SHA256)
		if err == nil {
			err = unpackToolchain(root, b)
		}
		return inInput(toolchainModule, err)
	})
	return group.Wait()
}

// inInput says which input an error is about.
func inInput(name string, err error) error {
	var e *fault.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return fault.Wrap(e.Kind, name+": "+e.Text, err).WithHint(e.Hint)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// idle are directories of packages that no tool reads.
var idle = []string{"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/"}

func unpackPackage(root *os.Root, b []byte) error {
	_, err := deb.ReadArchive(bytes.NewReader(b), func(e deb.Entry, content io.Reader) error {
		if e.Path == "." || slices.ContainsFunc(idle, func(dir string) bool { return strings.HasPrefix(e.Path+"/", dir) }) {
			return nil
		}
		switch e.Type {
		case deb.Directory:
			return root.MkdirAll(e.Path, 0o755)
		case deb.Symlink:
			return root.Symlink(e.Target, e.Path)
		case deb.Hardlink:
			return root.Link(e.Target, e.Path)
		}
		return put(root, e.Path, e.Mode&0o111 != 0, content)
	})
	return err
}

// put makes a file whose mode the umask has no part in.
func put(root *os.Root, name string, executable bool, content io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	mode := os.FileMode(0o644)
	if executable {
		mode = 0o755
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// unpackToolchain puts what compiles programs below goRoot. A module's zip has no
// modes: what is in bin and pkg/tool can be run, as the go command sees to itself.
func unpackToolchain(root *os.Root, b []byte) error {
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return err
	}
	for _, f := range z.File {
		_, name, ok := strings.Cut(f.Name, "linux-amd64/")
		if !ok || strings.HasSuffix(name, "/") || needless(name) {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return err
		}
		executable := strings.HasPrefix(name, "bin/") || strings.HasPrefix(name, "pkg/tool/")
		err = put(root, path.Join(goRoot[1:], name), executable, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

// needless says whether a file of the toolchain is in nobody's way to a program.
func needless(name string) bool {
	return strings.HasPrefix(name, "test/") || strings.HasPrefix(name, "doc/") || strings.HasPrefix(name, "api/") || strings.HasPrefix(name, "src/cmd/") ||
		strings.Contains(name, "/testdata/") || strings.HasSuffix(name, "_test.go")
}

// writeProxy makes the directory of a module proxy (golang.org/ref/mod#goproxy-protocol)
// of the modules in the store.
func writeProxy(l *lock.Lock, s *store.Store, dir string) error {
	for _, m := range l.Modules {
		if m.Path == toolchainModule {
			continue
		}
		escaped, err := module.EscapePath(m.Path)
		if err != nil {
			return err
		}
		version, err := module.EscapeVersion(m.Version)
		if err != nil {
			return err
		}
		at := filepath.Join(dir, filepath.FromSlash(escaped), "@v")
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(at, version+".info"), []byte(`{"Version":"`+m.Version+`"}`), 0o644); err != nil {
			return err
		}
		for _, x := range []struct {
			file   deb.File
			ending string
		}{{m.Zip, ".zip"}, {m.Mod, ".mod"}} {
			if x.file == (deb.File{}) {
				continue
			}
			b, err := s.Get(x.file.SHA256)
			if err == nil {
				err = os.WriteFile(filepath.Join(at, version+x.ending), b, 0o644)
			}
			if err != nil {
				return inInput(m.Path+" "+m.Version, err)
			}
		}
	}
	return nil
}
