package build_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"lethe/image/build"
	"lethe/image/deb"
	"lethe/image/imagetest"
	"lethe/image/lock"
	"lethe/image/root"
	"lethe/image/sandbox"
	"lethe/image/store"
	"lethe/image/tree"
)

func TestMain(m *testing.M) {
	if code, inside := sandbox.Inside(); inside {
		os.Exit(code)
	}
	if os.Args[0] == elsewhere {
		os.Exit(runElsewhere(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// world is a small source with a lock of few inputs, and a store that has them. Tools, toolchain and packages are the real ones.
type world struct {
	tree, out string
	store     *store.Store
	lock      *lock.Lock
}

// goMod wants one module, so that modules are read.
const (
	goMod  = "module lethe\n\ngo 1.26.0\n\nrequire golang.org/x/sync v0.24.0\n"
	source = "package main\n\nimport \"golang.org/x/sync/semaphore\"\n\nfunc main() { println(semaphore.NewWeighted(1) != nil, lab) }\n"
)

// real is the tree's own lock and sums.
var real = sync.OnceValues(func() (*lock.Lock, error) {
	text, err := os.ReadFile(filepath.Join("..", "..", lock.FileName))
	if err != nil {
		return nil, err
	}
	return lock.Parse(text)
})

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// newWorld makes one whose tools are those that keep says, nil for all.
func newWorld(t *testing.T, keep func(name string) bool) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{tree: filepath.Join(dir, "tree"), out: filepath.Join(dir, "out")}
	sums := ""
	for line := range strings.Lines(string(must(os.ReadFile(filepath.Join("..", "..", "go.sum")))(t))) {
		if strings.HasPrefix(line, "golang.org/x/sync v0.24.0") {
			sums += line
		}
	}
	l := *must(real())(t)
	l.GoSum, l.Sources, l.Left, l.Choices = sha256.Sum256([]byte(sums)), nil, nil, nil
	l.Packages = nil
	for _, p := range must(real())(t).Packages {
		p.Sets = slices.DeleteFunc(slices.Clone(p.Sets), func(s string) bool {
			return s == lock.Hardware || s == lock.Tools && keep != nil && !keep(p.Name) || s == lock.VM && p.Name != "netbase"
		})
		if len(p.Sets) > 0 {
			p.By, p.Why = "", "tests"
			l.Packages = append(l.Packages, p)
			l.Sources = append(l.Sources, lock.Source{Name: p.Source, Version: p.SourceVersion, Suite: p.Suite})
		}
	}
	for _, s := range must(real())(t).Sources {
		for i := range l.Sources {
			if l.Sources[i].Name == s.Name && l.Sources[i].Version == s.Version {
				l.Sources[i] = s
			}
		}
	}
	slices.SortFunc(l.Sources, func(a, b lock.Source) int {
		return strings.Compare(a.Name+" "+string(a.Version), b.Name+" "+string(b.Version))
	})
	l.Sources = slices.CompactFunc(l.Sources, func(a, b lock.Source) bool { return a.Name == b.Name && a.Version == b.Version })
	l.Modules = slices.DeleteFunc(slices.Clone(l.Modules), func(m lock.Module) bool {
		return m.Path != "golang.org/toolchain" && (m.Path != "golang.org/x/sync" || m.Version != "v0.24.0")
	})
	w.lock = &l
	w.store = must(store.Open(filepath.Join(dir, "store")))(t)
	t.Cleanup(func() { w.store.Close() })
	stock(t, w.store, w.digests())
	files := map[string]string{"go.mod": goMod, "go.sum": sums, lock.FileName: string(l.Text()), "sub/README": "words\n"}
	for _, p := range []string{"lethe-init", "lethe-node", "lethe-seal"} {
		files["cmd/"+p+"/main.go"] = source
		files["cmd/"+p+"/lab.go"] = "//go:build lab\n\npackage main\n\nconst lab = true\n"
		files["cmd/"+p+"/real.go"] = "//go:build !lab\n\npackage main\n\nconst lab = false\n"
	}
	for name, text := range files {
		w.write(t, name, text)
	}
	if err := errors.Join(os.Mkdir(w.out, 0o755), os.Chmod(filepath.Join(w.tree, "go.mod"), 0o755)); err != nil {
		t.Fatal(err)
	}
	w.git(t, "init", "-q")
	w.commit(t)
	return w
}

// stock puts inputs of the images' store into another one.
func stock(t testing.TB, to *store.Store, inputs []deb.Digest) {
	t.Helper()
	from := must(store.Open(imagetest.Store(t)))(t)
	defer from.Close()
	for _, d := range inputs {
		at := to.Path(d)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if os.Link(from.Path(d), at) != nil {
			if err := os.WriteFile(at, must(from.Get(d))(t), 0o444); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (w *world) digests() (all []deb.Digest) {
	for _, p := range w.lock.Packages {
		all = append(all, p.File.SHA256)
	}
	for _, m := range w.lock.Modules {
		for _, f := range []deb.File{m.Zip, m.Mod} {
			if f != (deb.File{}) {
				all = append(all, f.SHA256)
			}
		}
	}
	return all
}

func (w *world) write(t testing.TB, name, text string) {
	t.Helper()
	at := filepath.Join(w.tree, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func (w *world) git(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", w.tree, "-c", "user.name=x", "-c", "user.email=x@example", "-c", "init.defaultBranch=main"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=1790000000 +0200", "GIT_AUTHOR_DATE=1790000000 +0200")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (w *world) commit(t testing.TB) {
	t.Helper()
	w.git(t, "add", "-A")
	w.git(t, "commit", "-q", "--allow-empty", "-m", "x")
}

// epoch of every commit.
const epoch = 1790000000

// kernel has a kernel's setup header, and is long enough to be found.
func kernel() []byte {
	b := make([]byte, 0x1000)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x300)
	copy(b[0x500:], "7.3.4-test (somebody@somewhere) #1\x00")
	return b
}

// decide is a small stand-in for what decides about the image's files.
func decide(in root.Input) (*root.Result, error) {
	r := &root.Result{Root: &tree.Tree{}, Initramfs: &tree.Tree{}, Kernel: kernel(), Cmdline: "quiet", OSRelease: []byte("ID=lethe\nVERSION_ID=" + in.Version + "\n")}
	for _, p := range in.Packages {
		f, err := p.Open()
		if err != nil {
			return nil, err
		}
		if _, err := deb.ReadArchive(f, func(e deb.Entry, content io.Reader) error {
			if e.Type != deb.Regular {
				return nil
			}
			b, err := io.ReadAll(content)
			if err != nil {
				return err
			}
			return r.Root.File(e.Path, fs.FileMode(e.Mode), p.Name, b)
		}); err != nil {
			return nil, err
		}
	}
	return r, errors.Join(
		r.Root.File("usr/bin/lethe-node", 0o755, "git", in.Programs["lethe-node"]), r.Root.Symlink("bin", "usr/bin", "build"),
		r.Root.Add(tree.Entry{Path: "dev/null", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: 1, Minor: 3, From: "build"}),
		r.Initramfs.File("init", 0o755, "git", in.Programs["lethe-init"]))
}

// builder builds w's commit.
func (w *world) builder() *build.Builder {
	return &build.Builder{Tree: w.tree, Store: w.store, Out: w.out, Flavours: []string{"vm"}, Root: decide}
}

// build builds and returns what is in the directory afterwards.
func (w *world) build(t testing.TB, b *build.Builder) (*build.Made, map[string]string) {
	t.Helper()
	made, err := b.Build(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return made, contents(t, b.Out)
}

func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, e := range must(os.ReadDir(dir))(t) {
		if e.IsDir() {
			t.Errorf("a directory %s is left", e.Name())
			continue
		}
		all[e.Name()] = string(must(os.ReadFile(filepath.Join(dir, e.Name())))(t))
	}
	return all
}
