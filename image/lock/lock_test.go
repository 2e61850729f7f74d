package lock_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"lethe/fault"
	"lethe/image/archivetest"
	"lethe/image/deb"
	"lethe/image/lock"
	"lethe/image/store"
)

type world struct {
	*archivetest.Archive
	maker *lock.Maker
	fetch *lock.Fetcher
}

func newWorld(t *testing.T) *world {
	t.Helper()
	a, err := archivetest.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	keys, err := deb.ReadKeyring(a.Keyring)
	if err != nil {
		t.Fatal(err)
	}
	n := &lock.Network{Mirrors: map[string]string{lock.Main: a.URL + "/debian", lock.Security: a.URL + "/debian-security"}, Proxy: a.URL + "/go", Pause: time.Millisecond}
	return &world{a, &lock.Maker{Plan: a.Plan, Store: s, Net: n, Keys: keys, SumDB: a.SumDB, GoSum: a.GoSum, Now: archivetest.Now}, &lock.Fetcher{Store: s, Net: n}}
}

func (w *world) make(t *testing.T, old *lock.Lock) *lock.Lock {
	t.Helper()
	l, err := w.maker.Make(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestMakeAndFetch(t *testing.T) {
	w := newWorld(t)
	l := w.make(t, nil)
	text := l.Text()
	var got []string
	for _, p := range l.Packages {
		got = append(got, fmt.Sprintf("%s %s %s %v", p.Name, p.Version, p.Suite, p.Sets))
	}
	want := "app 1.0+b~1 trixie [vm], kernel 7.0 trixie-backports [vm], left 1.0 trixie [vm], lib 2.0 trixie-security [tools vm]"
	if strings.Join(got, ", ") != want || len(l.Sources) != 3 || len(l.Modules) != 2 || len(l.Choices) != 1 || len(l.Left) != 1 {
		t.Errorf("%s", text)
	}
	if again := w.make(t, l).Text(); !bytes.Equal(again, text) {
		t.Errorf("a second lock is\n%s\nafter\n%s", again, text)
	}
	if strings.Contains(string(text), w.URL) || strings.Contains(string(text), "127.0.0.1") {
		t.Error("a host's name is in the lock")
	}
	parsed, err := lock.Parse(text)
	if err != nil || !bytes.Equal(parsed.Text(), text) || parsed.Bytes("") <= parsed.Bytes("tools") || parsed.Bytes("tools") == 0 {
		t.Error(err)
	}
	if err := l.CheckGoSum(w.GoSum); err != nil {
		t.Error(err)
	}
	if err := l.CheckGoSum([]byte("example.com/new v1.0.0 h1:x\n")); fault.Of(err) != fault.Conflict || !strings.Contains(err.Error(), "example.com/new v1.0.0") {
		t.Error(err)
	}
	w.fetch.Sources = true
	progress, err := w.fetch.Fetch(t.Context(), parsed, func(*lock.Progress) {})
	if err != nil || progress.Files.Load() != progress.AllFiles || progress.Bytes.Load() != progress.AllBytes || progress.AllFiles != 4+6+3 {
		t.Fatal(progress, err)
	}
	for _, p := range l.Packages {
		if b, err := w.fetch.Store.Get(p.File.SHA256); err != nil || !strings.Contains(string(b), "the package "+p.Name) || !l.Keeps()(p.File.SHA256) {
			t.Error(err)
		}
	}
	// A damaged file in the store is fetched anew, and only that.
	path := w.fetch.Store.Path(l.Packages[0].File.SHA256)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o444); err != nil {
		t.Fatal(err)
	}
	progress, err = w.fetch.Fetch(t.Context(), l, nil)
	if err != nil || progress.Mended.Load() != 1 || progress.Bytes.Load() != progress.AllBytes {
		t.Error(progress, err)
	}
}

// TestEveryBit changes one bit of each file that a lock is made of, or filled
// from: nothing goes through.
func TestEveryBit(t *testing.T) {
	w := newWorld(t)
	l := w.make(t, nil)
	for path, good := range w.Files() {
		if strings.Contains(path, "right_") || strings.Contains(path, "lib_1") || strings.Contains(path, "lib_9") || strings.Contains(path, "kernel_1") || strings.Contains(path, "/main/source/Sources") ||
			strings.Contains(path, "/main/binary-amd64/Packages") {
			continue // not needed, or behind another path of the same content
		}
		s, err := store.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		bad[len(bad)/2] ^= 1
		w.Set(path, bad)
		fresh, fetch := *w.maker, lock.Fetcher{Store: s, Net: w.maker.Net, Sources: true}
		fresh.Store = s
		_, made := fresh.Make(t.Context(), nil)
		_, fetched := fetch.Fetch(t.Context(), l, nil)
		if fault.Of(made) != fault.Untrusted && fault.Of(fetched) != fault.Untrusted {
			t.Errorf("%s: %v, %v", path, made, fetched)
		}
		w.Set(path, good)
		s.Close()
	}
}

func TestMakeRefusals(t *testing.T) {
	const date = "Sun, 22 Nov 2026 02:09:05 UTC"
	for name, tt := range map[string]struct {
		change func(w *world)
		kind   fault.Kind
		text   string
	}{
		"other keys": {func(w *world) { w.maker.Keys = nil }, fault.Untrusted, "no valid signature"},
		"expired":    {func(w *world) { w.maker.Now = archivetest.Now.AddDate(0, 0, 8) }, fault.Expired, "trixie-security is past its Valid-Until"},
		"future":     {func(w *world) { w.maker.Now = archivetest.Now.AddDate(0, 0, -8) }, fault.Untrusted, "trixie"},
		"other suite": {func(w *world) {
			w.Set("debian/dists/trixie/InRelease", w.Files()["debian/dists/trixie-backports/InRelease"])
		}, fault.Untrusted, "for trixie"},
		"no mirror":       {func(w *world) { w.maker.Net.Mirrors = nil }, fault.Invalid, "not known where"},
		"not a URL":       {func(w *world) { w.maker.Net.Mirrors = map[string]string{lock.Main: "http://a b\x7f"} }, fault.Invalid, "no URL"},
		"nobody there":    {func(w *world) { w.Close() }, fault.Unavailable, "refused"},
		"no release":      {func(w *world) { w.Set("debian/dists/trixie/InRelease", nil) }, fault.NotFound, "InRelease"},
		"large release":   {func(w *world) { w.Set("debian/dists/trixie/InRelease", make([]byte, deb.MaxRelease+1)) }, fault.Untrusted, "larger than"},
		"unknown package": {func(w *world) { w.maker.Plan.Sets[0].Want[0].Name = "nothing" }, fault.NotFound, "no package nothing"},
		"useless without": {func(w *world) { w.maker.Plan.Sets[0].Without[0].Name = "nothing" }, fault.NotFound, "debconf"},
		"unused without":  {func(w *world) { w.maker.Plan.Sets[1].Without = []lock.Entry{{Name: "zz", Why: "x"}} }, fault.Invalid, "nothing depends on zz"},
		"bad go.sum":      {func(w *world) { w.maker.GoSum = []byte("x\n") }, fault.Invalid, "go.sum"},
		"bad path":        {func(w *world) { w.maker.GoSum = []byte("../x v1.0.0 h1:x\n") }, fault.Invalid, "go.sum"},
		"twice":           {func(w *world) { w.maker.GoSum = append(w.maker.GoSum, w.maker.GoSum...) }, fault.Invalid, "twice"},
		"other module":    {func(w *world) { w.maker.GoSum = bytes.Replace(w.maker.GoSum, []byte("h1:"), []byte("h1:A"), 1) }, fault.Untrusted, "another hash"},
		"missing module":  {func(w *world) { w.Set("go/example.com/mod/@v/v1.2.3.mod", nil) }, fault.NotFound, "v1.2.3.mod"},
		"not a zip":       {func(w *world) { w.Set("go/example.com/mod/@v/v1.2.3.zip", []byte("hello")) }, fault.Untrusted, "another hash"},
		"other toolchain": {func(w *world) { w.maker.Plan.Toolchain = "go1.0" }, fault.Unavailable, "lookup"},
		"other sum key":   {func(w *world) { w.maker.SumDB = "sums.example+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8" }, fault.Untrusted, "checksum database"},
		"public sum key":  {func(w *world) { w.maker.SumDB = "" }, fault.NotFound, "sum.golang.org"},
		"no source": {func(w *world) {
			_ = w.Publish(archivetest.Suite{Name: "trixie-security", Archive: lock.Security, Date: date, Packages: w.Package("debian-security", "lib", "2.0", "")})
		}, fault.NotFound, "built from lib 2.0"},
		"bad sources": {func(w *world) {
			_ = w.Publish(archivetest.Suite{Name: "trixie-security", Archive: lock.Security, Date: date, Packages: w.Package("debian-security", "lib", "2.0", ""), Sources: "Package: lib\n"})
		}, fault.Untrusted, "trixie-security has an index"},
		"bad packages": {func(w *world) {
			_ = w.Publish(archivetest.Suite{Name: "trixie", Archive: lock.Main, Date: date, Packages: "nonsense"})
		}, fault.Untrusted, "trixie has an index"},
		"bad source path": {func(w *world) {
			_ = w.Publish(archivetest.Suite{Name: "trixie", Archive: lock.Main, Date: date, Packages: w.Package("debian", "a", "1", "")})
		}, fault.Untrusted, "not a name"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tt.change(w)
			_, err := w.maker.Make(t.Context(), nil)
			if fault.Of(err) != tt.kind || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v %v, want %v with %q", fault.Of(err), err, tt.kind, tt.text)
			}
		})
	}
	w := newWorld(t)
	l := w.make(t, nil)
	l.Suites[0].Date = l.Suites[0].Date.Add(time.Hour)
	if _, err := w.maker.Make(t.Context(), l); fault.Of(err) != fault.Untrusted || !strings.Contains(err.Error(), "older than the lock's") {
		t.Error(err)
	}
}

func TestNetwork(t *testing.T) {
	w := newWorld(t)
	l := w.make(t, nil)
	deb := "/debian/pool/main/app_1.0+b~1_amd64.deb"
	// Two failures, a connection that breaks off in the middle, then the rest by a range.
	var failures, ranges atomic.Int32
	w.Intercept(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != deb {
			return false
		}
		switch failures.Add(1) {
		case 1:
			http.Error(rw, "busy", http.StatusServiceUnavailable)
			return true
		case 2:
			rw.Header().Set("Content-Length", "14500")
			_, _ = io.WriteString(rw, strings.Repeat("the package app 1.0+b~1\n", 100))
			panic(http.ErrAbortHandler)
		}
		if r.Header.Get("Range") != "" {
			ranges.Add(1)
		}
		return false
	})
	if p, err := w.fetch.Fetch(t.Context(), l, nil); err != nil || failures.Load() != 3 || ranges.Load() != 1 || p.Bytes.Load() != p.AllBytes {
		t.Error(err, failures.Load(), ranges.Load())
	}
	fail := func(kind fault.Kind, text string, answer func(http.ResponseWriter, *http.Request)) {
		t.Helper()
		if err := w.fetch.Store.Remove(l.Packages[0].File.SHA256); err != nil {
			t.Fatal(err)
		}
		w.Intercept(func(rw http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == deb {
				answer(rw, r)
			}
			return r.URL.Path == deb
		})
		if _, err := w.fetch.Fetch(t.Context(), l, nil); fault.Of(err) != kind || !strings.Contains(err.Error(), text) {
			t.Errorf("%v %v, want %v %s", fault.Of(err), err, kind, text)
		}
	}
	status := func(code int) func(http.ResponseWriter, *http.Request) {
		return func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(code) }
	}
	fail(fault.NotFound, "does not have", status(http.StatusNotFound))
	fail(fault.Unavailable, "503", status(http.StatusServiceUnavailable))
	fail(fault.Unavailable, "206", status(http.StatusPartialContent))
	fail(fault.Untrusted, "something else", func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(rw, strings.Repeat("x", int(l.Packages[0].File.Size)))
	})
	w.maker.Net.Stall = 50 * time.Millisecond
	fail(fault.Unavailable, "no answer in time", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
}

func TestParseRefusals(t *testing.T) {
	w := newWorld(t)
	text := string(w.make(t, nil).Text())
	for name, c := range map[string][2]string{
		"version": {"Lock: 1", "Lock: 2"}, "space": {"Lock: 1", "Lock:  1"}, "unknown field": {"Lock: 1", "Lock: 1\nMore: x"}, "unknown stanza": {"Lock: 1", "Thing: 1"},
		"digest": {"Go-Sum: ", "Go-Sum: 0"}, "date": {"Date: 2026", "Date: x"}, "package version": {"Version: 7.0", "Version: "}, "name": {"Package: app", "Package: /app"},
		"size": {" 14500 ", " x "}, "path": {" pool/main/app", " ../pool/main/app"}, "words": {" 14500 ", " "}, "suite": {"Suite: trixie-security\nArchive", "Suite: other\nArchive"},
		"sets": {"Sets: tools vm\n", ""}, "lines": {"Because: it serves", "Because: it\n serves"}, "module": {"Zip: ", "Zip: 0"}, "source": {"Source: app-src", "Source: app-src2"},
		"order": {"Package: kernel", "Package: aa"}, "cut": {"Choice: ", "Choices: "},
	} {
		if !strings.Contains(text, c[0]) && name != "size" && name != "words" {
			t.Errorf("%s: no %q", name, c[0])
		}
		changed := strings.Replace(text, c[0], c[1], 1)
		if _, err := lock.Parse([]byte(changed)); changed != text && fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := lock.Parse(nil); fault.Of(err) != fault.Invalid {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	if b, err := os.ReadFile("../../" + lock.FileName); err == nil {
		f.Add(b[:min(len(b), 4000)])
	}
	f.Add([]byte("Lock: 1\nArchitecture: amd64\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := lock.Parse(b); err == nil && !bytes.Equal(l.Text(), b) {
			t.Error("two texts of one lock")
		}
	})
}

// TestTree wants the tree's own lock to be of this tree.
func TestTree(t *testing.T) {
	text, err := os.ReadFile("../../" + lock.FileName)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := os.ReadFile("../../go.sum")
	if err != nil {
		t.Fatal(err)
	}
	l, err := lock.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.CheckGoSum(sum); err != nil {
		t.Error(err)
	}
	have := map[string]string{}
	for _, p := range l.Packages {
		have[p.Name] = strings.Join(p.Sets, " ")
	}
	for _, set := range lock.Wanted().Sets {
		for _, e := range set.Want {
			if !strings.Contains(have[e.Name], set.Name) || e.Why == "" {
				t.Errorf("%s of set %s is not in the lock, or has no reason", e.Name, set.Name)
			}
		}
	}
}

func TestReadApt(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for name, tt := range map[string]struct {
		files fstest.MapFS
		want  map[string]string
	}{
		"one line": {fstest.MapFS{"sources.list": file("# x\ndeb [arch=amd64] http://a.example/debian/ bookworm main # y\ndeb-src http://b.example/debian x main\ndeb https://a.example/debian-security bookworm-security main\n")},
			map[string]string{"debian": "http://a.example/debian", "debian-security": "https://a.example/debian-security"}},
		"stanzas": {fstest.MapFS{
			"sources.list.d/a.sources": file("Types: deb deb-src\nURIs: http://other.example/nodistro\nSuites: x\n\nTypes: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: x\n\nTypes: deb\nURIs: http://c.example/debian http://d.example/debian\nSuites: bookworm bookworm-updates\n"),
			"sources.list.d/b.sources": file("Types: deb\nURIs: http://e.example/debian\nSuites: bookworm-security\n"), "sources.list.d/c.bak": file("deb http://f.example/debian x y")},
			map[string]string{"debian": "http://c.example/debian", "debian-security": "http://e.example/debian"}},
		"nothing": {fstest.MapFS{"sources.list": file("deb cdrom:[x]/ x y\ndeb file:/srv/debian x y\ndeb http:///debian x y\ndeb http://a\x7f/debian x y\ndeb http://x.example/ubuntu x y\n")}, map[string]string{}},
	} {
		if got := lock.ReadApt(tt.files); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
