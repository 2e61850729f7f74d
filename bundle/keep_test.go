package bundle_test

import (
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/bundle"
	"lethe/memfd"
)

// manager is a service manager's descriptor store. It breaks down before the
// operation number fail, counted from 1, if that is not 0.
type manager struct {
	t          *testing.T
	files      map[string]*os.File
	operations int
	fail       int
}

var errGone = errors.New("the manager is gone")

func newManager(t *testing.T) *manager {
	m := &manager{t: t, files: map[string]*os.File{}}
	t.Cleanup(func() {
		for _, f := range m.files {
			f.Close()
		}
	})
	return m
}

func (m *manager) broken() bool {
	m.operations++
	return m.fail != 0 && m.operations >= m.fail
}

func (m *manager) Store(name string, f *os.File) error {
	if m.broken() {
		return errGone
	}
	if m.files[name] != nil {
		m.t.Errorf("%s is stored twice", name)
	}
	m.files[name] = duplicate(m.t, f)
	return nil
}

func (m *manager) Remove(name string) error {
	if m.broken() {
		return errGone
	}
	if m.files[name] == nil {
		m.t.Errorf("%s is removed and not there", name)
		return nil
	}
	m.files[name].Close()
	delete(m.files, name)
	return nil
}

func duplicate(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// pass returns what the next instance is passed.
func (m *manager) pass() map[string]*os.File {
	passed := map[string]*os.File{}
	for name, f := range m.files {
		passed[name] = duplicate(m.t, f)
	}
	return passed
}

// replace puts other content in the place of a kept file.
func (m *manager) replace(name, text string) {
	m.t.Helper()
	f, err := memfd.Sealed("lethe-bundle", func(w io.Writer) error { _, err := io.WriteString(w, text); return err })
	if err != nil {
		m.t.Fatal(err)
	}
	m.files[name].Close()
	m.files[name] = f
}

// statements returns the names of the kept statements.
func (m *manager) statements() (names []string) {
	for name := range m.files {
		if strings.Contains(name, "statements") {
			names = append(names, name)
		}
	}
	return names
}

func content(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// anySet accepts every set.
func anySet(*bundle.Set) error { return nil }

// restored returns the version that a new client works with after Restore, 0 for none.
func restored(w *world, m *manager) uint64 {
	w.t.Helper()
	c := w.client()
	defer c.Close()
	if !c.Restore(m.pass(), anySet) {
		if c.Current() != nil {
			w.t.Error("a set that was not restored is in use")
		}
		return 0
	}
	s := c.Current()
	defer s.Close()
	return s.Version()
}

func TestKeepAndRestore(t *testing.T) {
	before := mappings(t)
	w, m := newWorld(t), newManager(t)
	first := w.client()
	if err := first.Keep(m); err != nil || m.operations != 0 {
		t.Errorf("before the first set: %v, %d operations", err, m.operations)
	}
	w.root = w.newRoot(2)
	w.publishRoot(w.roots...)
	w.update(first)
	if err := first.Keep(m); err != nil || len(m.files) != 4 {
		t.Fatalf("%v, %d files kept, want three and the statements", err, len(m.files))
	}
	if m.operations = 0; first.Keep(m) != nil || m.operations != 0 {
		t.Errorf("nothing has changed and there were %d operations", m.operations)
	}

	// The control plane is away, for longer than freshness lives.
	w.now = w.now.Add(10 * time.Hour)
	w.gets = nil
	second := w.client()
	passed := m.pass()
	passed["ledger"] = duplicate(t, passed[m.statements()[0]])
	defer passed["ledger"].Close()
	var seen *bundle.Set
	if !second.Restore(passed, func(s *bundle.Set) error { seen = s; return nil }) {
		t.Fatal("not restored")
	}
	s := second.Current()
	if b, _ := s.File("authdb/0-7"); s != seen || string(b) != strings.Repeat("row", 50000) || s.Version() != 1 || len(w.gets) != 0 {
		t.Errorf("version %d with %d bytes after %v", s.Version(), len(b), w.gets)
	}
	for name, f := range passed {
		if _, err := f.Stat(); (err == nil) != (name == "ledger") {
			t.Errorf("%s after the restore: %v", name, err)
		}
	}
	if _, _, err := second.Update(t.Context()); !errors.Is(err, bundle.Stale) {
		t.Errorf("an update by a stale statement: %v", err)
	}
	_ = s.Close()

	// It is back: the same bundle is nothing new, the next costs what changed, an
	// old one is refused.
	w.freshness.Issued, w.freshness.Expires = w.now, w.now.Add(15*time.Minute)
	w.publishFreshness()
	if s, changed, err := second.Update(t.Context()); s != nil || changed || err != nil {
		t.Errorf("the same bundle: %v %v %v", s, changed, err)
	}
	old := w.published[bundle.FreshnessPath]
	w.set(2, map[string]string{"node.json": "{ }", "geoip.mmdb": "countries", "authdb/0-7": strings.Repeat("row", 50000)})
	w.publish()
	w.gets = nil
	w.update(second)
	if n := len(w.gets); n != 4 {
		t.Errorf("fetched %v, want root, freshness, manifest and one file", w.gets)
	}
	if err := second.Keep(m); err != nil || len(m.files) != 4 || len(m.statements()) != 1 || restored(w, m) != 2 {
		t.Errorf("%v, kept %v", err, slices.Collect(maps.Keys(m.files)))
	}
	third := w.client()
	if !third.Restore(m.pass(), anySet) {
		t.Fatal("not restored")
	}
	w.published[bundle.FreshnessPath] = old
	if _, _, err := third.Update(t.Context()); !errors.Is(err, bundle.Rollback) {
		t.Errorf("the bundle before: %v", err)
	}
	for _, c := range []*bundle.Client{first, second, third} {
		_ = c.Close()
	}
	// The sets of two updates are the test's until its end.
	if n := mappings(t) - before; n != 6 {
		t.Errorf("%d files still mapped", n)
	}
}

// TestRestoreRefuses bends what was kept, one thing at a time.
func TestRestoreRefuses(t *testing.T) {
	for name, bend := range map[string]func(w *world, c *bundle.Client, m *manager){
		"nothing": func(*world, *bundle.Client, *manager) {},
		"the manifest has ended": func(w *world, _ *bundle.Client, _ *manager) {
			w.now = w.manifest.Expires
		},
		"below the floor": func(w *world, _ *bundle.Client, _ *manager) { w.floor.Version = 2 },
		"the clock stands before the floor": func(w *world, _ *bundle.Client, _ *manager) {
			w.floor.Time = w.now.Add(time.Hour)
		},
		"from the future": func(w *world, _ *bundle.Client, _ *manager) { w.now = w.now.Add(-time.Hour) },
		"the root has ended": func(w *world, _ *bundle.Client, _ *manager) {
			w.now = w.root.Expires
		},
		"a file is missing": func(_ *world, _ *bundle.Client, m *manager) {
			for name := range m.files {
				if !strings.Contains(name, "statements") {
					_ = m.Remove(name)
					return
				}
			}
		},
		"a file has other content": func(_ *world, _ *bundle.Client, m *manager) {
			for name, f := range m.files {
				if text := content(m.t, f); text == "countries" {
					m.replace(name, "somewhere")
				}
			}
		},
		"a file has more content": func(_ *world, _ *bundle.Client, m *manager) {
			for name, f := range m.files {
				if text := content(m.t, f); text == "countries" {
					m.replace(name, "countries and more")
				}
			}
		},
		"a file can change": func(_ *world, _ *bundle.Client, m *manager) {
			for name, f := range m.files {
				if content(m.t, f) == "countries" {
					open, err := memfd.Fixed("lethe-bundle", 9)
					if err == nil {
						_, err = open.WriteAt([]byte("countries"), 0)
					}
					if err != nil {
						m.t.Fatal(err)
					}
					f.Close()
					m.files[name] = open
				}
			}
		},
		"statements can change": func(_ *world, _ *bundle.Client, m *manager) {
			name := m.statements()[0]
			text := content(m.t, m.files[name])
			open, err := memfd.Fixed("lethe-bundle", int64(len(text)))
			if err == nil {
				_, err = open.WriteAt([]byte(text), 0)
			}
			if err != nil {
				m.t.Fatal(err)
			}
			m.files[name].Close()
			m.files[name] = open
		},
		"no statements": func(_ *world, _ *bundle.Client, m *manager) { m.replace(m.statements()[0], "{}") },
		"no JSON":       func(_ *world, _ *bundle.Client, m *manager) { m.replace(m.statements()[0], "statements") },
		"an unknown field": func(_ *world, _ *bundle.Client, m *manager) {
			m.edit("{", `{"more":1,`)
		},
		"white space":        func(_ *world, _ *bundle.Client, m *manager) { m.edit("{", "{ ") },
		"no freshness":       func(_ *world, _ *bundle.Client, m *manager) { m.edit(`"freshness":"`, `"freshness":"AAAA`) },
		"a bad manifest":     func(_ *world, _ *bundle.Client, m *manager) { m.edit(`"manifest":"`, `"manifest":"AAAA`) },
		"a root of nobody's": func(_ *world, _ *bundle.Client, m *manager) { m.edit(`"roots":[]`, `"roots":["AAAA"]`) },
		"endless roots": func(_ *world, _ *bundle.Client, m *manager) {
			m.edit(`"roots":[]`, `"roots":["AAAA"`+strings.Repeat(`,"AAAA"`, bundle.MaxRotations)+`]`)
		},
		"too large": func(_ *world, _ *bundle.Client, m *manager) {
			m.edit(`"roots":[]`, `"roots":["`+strings.Repeat("AAAA", 8<<20)+`"]`)
		},
		"somebody else's first root": func(w *world, _ *bundle.Client, _ *manager) {
			w.roots, w.conf, w.fresh = signers(3), signers(3), signers(1)
			w.root = w.newRoot(1)
			w.publishRoot(w.roots...)
		},
		"a root that withdraws the keys": func(w *world, c *bundle.Client, m *manager) {
			w.conf = signers(3)
			w.root = w.newRoot(2)
			w.publishRoot(w.roots...)
			if _, _, err := c.Update(w.t.Context()); err == nil {
				w.t.Error("a manifest by withdrawn keys was taken")
			}
			if err := c.Keep(m); err != nil {
				w.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, m := newWorld(t), newManager(t)
			c := w.client()
			w.update(c)
			if err := c.Keep(m); err != nil {
				t.Fatal(err)
			}
			if bend(w, c, m); restored(w, m) != 0 != (name == "nothing") {
				t.Error("the outcome is wrong")
			}
		})
	}
}

// edit changes a text in the statements.
func (m *manager) edit(old, new string) {
	m.t.Helper()
	name := m.statements()[0]
	text := content(m.t, m.files[name])
	if !strings.Contains(text, old) {
		m.t.Fatalf("the statements have no %s", old)
	}
	m.replace(name, strings.Replace(text, old, new, 1))
}

// TestKeepAtomic ends the process before each operation of a Keep: the next instance
// finds the set before or this one. An interrupted Keep goes on.
func TestKeepAtomic(t *testing.T) {
	versions := map[uint64]int{}
	for fail := 1; ; fail++ {
		w, m := newWorld(t), newManager(t)
		c := w.client()
		w.update(c)
		if err := c.Keep(m); err != nil {
			t.Fatal(err)
		}
		w.set(2, map[string]string{"node.json": "{ }", "geoip.mmdb": "new", "authdb/0-7": strings.Repeat("row", 50000)})
		w.publish()
		w.update(c)
		m.operations, m.fail = 0, fail
		if err := c.Keep(m); err == nil {
			break
		} else if !errors.Is(err, errGone) {
			t.Fatal(err)
		}
		versions[restored(w, m)]++

		// Whoever takes over cleans up, by the next Keep, also when use accepts none
		// but the old one.
		m.fail = 0
		next := w.client()
		old := errors.New("not this one")
		ok := next.Restore(m.pass(), func(s *bundle.Set) error {
			if s.Version() != 1 {
				return old
			}
			return nil
		})
		if ok {
			w.update(next)
		} else if s, changed, err := next.Update(t.Context()); err != nil || !changed {
			t.Fatal(err)
		} else {
			_ = s.Close()
		}
		if err := next.Keep(m); err != nil || len(m.files) != 4 || restored(w, m) != 2 {
			t.Errorf("failed before %d: %v, then %d files", fail, err, len(m.files))
		}

		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(versions) != 2 || versions[1] < 3 || versions[2] < 2 {
		t.Errorf("restored %v, want versions 1 and 2 and nothing else", versions)
	}
}

// FuzzRestore gives the statements of a former instance any content.
func FuzzRestore(f *testing.F) {
	w := newWorld(f)
	c := w.client()
	if s, _, err := c.Update(f.Context()); err != nil {
		f.Fatal(err)
	} else {
		_ = s.Close()
	}
	var good []byte
	if err := c.Keep(store(func(name string, file *os.File) {
		if strings.Contains(name, "statements") {
			good, _ = io.ReadAll(io.NewSectionReader(file, 0, 1<<20))
		}
	})); err != nil || len(good) == 0 {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"roots":[],"freshness":"","manifest":""}`))
	f.Add([]byte(`{"roots":null,"freshness":null,"manifest":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := memfd.Sealed("lethe-bundle", func(w io.Writer) error { _, err := w.Write(text); return err })
		if err != nil {
			t.Fatal(err)
		}
		c, err := bundle.NewClient(bundle.Config{Root: w.published[bundle.RootPath(1)], Seal: sealKey, Fetch: w})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if c.Restore(map[string]*os.File{"bundle-statements-": file}, anySet) {
			t.Error("restored without a file")
		}
	})
}

// store is a Keeper that looks at what it gets.
type store func(name string, f *os.File)

func (s store) Store(name string, f *os.File) error { s(name, f); return nil }
func (store) Remove(string) error                   { return nil }
