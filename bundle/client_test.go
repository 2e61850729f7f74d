package bundle_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/authdb"
	"lethe/bundle"
	"lethe/day"
	"lethe/fault"
)

func TestUpdateFetchesOnlyWhatChanged(t *testing.T) {
	w := newWorld(t)
	c := w.client()
	if c.Current() != nil {
		t.Fatal("a set before the first update")
	}
	first := w.update(c)
	if b, ok := first.File("authdb/0-7"); !ok || string(b) != strings.Repeat("row", 50000) {
		t.Error("the sealed file did not arrive opened")
	}
	if _, ok := first.File("nothing"); ok {
		t.Error("a file that is not there")
	}
	if _, _, ok := first.Borrow("nothing"); ok {
		t.Error("a file that is not there was lent")
	}
	w.gets = nil
	if s, changed, err := c.Update(t.Context()); s != nil || changed || err != nil {
		t.Errorf("second update: %v %v %v, want nothing new", s, changed, err)
	}
	if want := []string{"root/2.json", "freshness.json"}; !slices.Equal(w.gets, want) {
		t.Errorf("fetched %v, want %v", w.gets, want)
	}
	w.now = w.now.Add(time.Hour) // an outage longer than the freshness lives
	if _, _, err := c.Update(t.Context()); !errors.Is(err, bundle.Stale) {
		t.Errorf("update with a stale statement: %v", err)
	}
	if first.Expired(w.now) || !first.Expired(w.manifest.Expires) {
		t.Error("the set in use ends with its manifest, neither sooner nor later")
	}
	w.set(5, map[string]string{"node.json": "{}", "geoip.mmdb": "countries", "authdb/0-7": strings.Repeat("row", 50000), "authdb/8-8": "delta"})
	w.publish()
	w.gets = nil
	second := w.update(c)
	if n := len(w.gets); n != 4 || w.gets[n-1] != bundle.FilePath(second.Files()[1].SHA256) {
		t.Errorf("fetched %v, want root, freshness, manifest and one file", w.gets)
	}
	if second.Version() != 5 || second.Manifest().Version != 5 {
		t.Errorf("version %d, want 5", second.Version())
	}
	current := c.Current()
	if current != second {
		t.Error("the set returned is not the one in use")
	}
	_ = current.Close()
}

// TestLastGoodSetStays breaks the transfer at every path in turn.
func TestLastGoodSetStays(t *testing.T) {
	w := newWorld(t)
	c := w.client()
	w.update(c)
	w.root = w.newRoot(2)
	w.publishRoot(w.roots...)
	w.set(2, map[string]string{"node.json": "{}", "geoip.mmdb": "new", "authdb/0-7": strings.Repeat("two", 50000)})
	w.publish()
	paths := []string{bundle.RootPath(2), bundle.FreshnessPath, bundle.ManifestPath(2), stored(w, "authdb/0-7"), stored(w, "geoip.mmdb")}
	for _, path := range paths {
		w.cut[path] = io.ErrUnexpectedEOF
		if _, _, err := c.Update(t.Context()); fault.Of(err) != fault.Unavailable {
			t.Errorf("%s breaks off: %v of kind %s", path, err, fault.Of(err))
		}
		delete(w.cut, path)
		b := w.published[path]
		delete(w.published, path)
		if _, _, err := c.Update(t.Context()); path != paths[0] && fault.Of(err) != fault.NotFound {
			t.Errorf("%s is missing: %v of kind %s", path, err, fault.Of(err))
		}
		w.published[path] = b
		if path == paths[0] { // without root 2 the update worked; start again
			c = w.client()
			continue
		}
		if s := c.Current(); s != nil {
			t.Fatal("a set out of a failed update")
		}
	}
	w.gets = nil
	if s := w.update(c); s.Version() != 2 {
		t.Errorf("version %d, want 2", s.Version())
	}
	if slices.Contains(w.gets, paths[3]) {
		t.Error("a file of a failed update was fetched again")
	}
}

func TestStagedFilesAreDropped(t *testing.T) {
	before := mappings(t)
	w := newWorld(t)
	c := w.client()
	w.cut[stored(w, "node.json")] = io.ErrUnexpectedEOF // the last of the three
	if _, _, err := c.Update(t.Context()); err == nil {
		t.Fatal("update worked")
	}
	if n := mappings(t) - before; n != 2 {
		t.Errorf("%d files staged, want 2", n)
	}
	w.set(2, map[string]string{"other.json": "x"})
	w.publish()
	s := w.update(c)
	if n := mappings(t) - before; n != 1 {
		t.Errorf("%d files in memory, want 1", n)
	}
	_ = c.Close()
	if b, _ := s.File("other.json"); string(b) != "x" {
		t.Error("closing the client took a caller's set")
	}
}

// mappings counts the process's mapped bundle files.
func mappings(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("memfd:lethe-bundle"))
}

func TestSetIsFreedWithItsLastReference(t *testing.T) {
	before := mappings(t)
	w := newWorld(t)
	c := w.client()
	s, _, err := c.Update(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again := s.Retain()
	_, _ = c.Close(), s.Close()
	if b, _ := again.File("node.json"); string(b) != "{}" {
		t.Error("memory went with the first of two references")
	}
	_ = again.Close()
	if n := mappings(t) - before; n != 0 {
		t.Errorf("%d files still mapped", n)
	}
	for name, misuse := range map[string]func(){"close": func() { _ = s.Close() }, "retain": func() { s.Retain() }} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s of a closed set went unnoticed", name)
				}
			}()
			misuse()
		}()
	}
}

// TestMemoryIsSealed shows that the process itself cannot change what was
// verified, nor make it writable.
func TestMemoryIsSealed(t *testing.T) {
	w := newWorld(t)
	s := w.update(w.client())
	b, _ := s.File("node.json")
	if err := unix.Mprotect(b[:len(b):len(b)], unix.PROT_READ|unix.PROT_WRITE); err == nil {
		t.Error("verified memory was made writable")
	}
}

// TestBorrow shows that lent content outlives its set.
func TestBorrow(t *testing.T) {
	before := mappings(t)
	w := newWorld(t)
	c := w.client()
	s, _, err := c.Update(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, release, _ := s.Borrow("geoip.mmdb")
	_, _ = s.Close(), c.Close()
	if n := mappings(t) - before; n != 1 || string(b) != "countries" {
		t.Errorf("%d files mapped and %q in it, want the one that was lent", n, b)
	}
	release()
	if n := mappings(t) - before; n != 0 {
		t.Errorf("%d files mapped after the release", n)
	}
}

func TestConcurrentUse(t *testing.T) {
	w := newWorld(t)
	w.set(2, map[string]string{"node.json": "{}"})
	w.publish()
	c := w.client()
	w.update(c)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 200 {
				s := c.Current()
				if b, _ := s.File("node.json"); len(b) != int(s.Version()) {
					t.Errorf("version %d has %d bytes", s.Version(), len(b))
				}
				_ = s.Close()
			}
		})
	}
	for v := uint64(3); v < 60; v++ {
		w.set(v, map[string]string{"node.json": strings.Repeat("x", int(v))})
		w.publish()
		w.update(c)
	}
	group.Wait()
}

func TestRebuild(t *testing.T) {
	for name, c := range map[string]struct {
		build bundle.Rebuild
		fetch bool
	}{
		"right":      {func(_ bundle.File, _ *bundle.Set, w io.Writer) bool { return say(w, "local") }, false},
		"cannot":     {func(_ bundle.File, _ *bundle.Set, w io.Writer) bool { return false }, true},
		"wrong":      {func(_ bundle.File, _ *bundle.Set, w io.Writer) bool { return say(w, "lacol") }, true},
		"too long":   {func(_ bundle.File, _ *bundle.Set, w io.Writer) bool { return say(w, "local and more") }, true},
		"too short":  {func(_ bundle.File, _ *bundle.Set, w io.Writer) bool { return say(w, "loc") }, true},
		"gives up":   {func(_ bundle.File, _ *bundle.Set, w io.Writer) bool { say(w, "loc"); return false }, true},
		"not needed": {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.set(2, map[string]string{"node.json": "local"})
			w.publish()
			w.rebuild = c.build
			s := w.update(w.client())
			if b, _ := s.File("node.json"); string(b) != "local" {
				t.Errorf("content %q", b)
			}
			if got := slices.Contains(w.gets, stored(w, "node.json")); got != c.fetch {
				t.Errorf("downloaded %v, want %v", got, c.fetch)
			}
		})
	}
}

func say(w io.Writer, text string) bool {
	_, err := io.WriteString(w, text)
	return err == nil
}

// segment returns an encoded segment of n rows.
func segment(t *testing.T, span authdb.Span, n int) string {
	t.Helper()
	var key authdb.HashKey
	var rows []authdb.Row
	for i := range n {
		name := []byte{byte(span.To), byte(i), byte(i >> 8)}
		rows = append(rows, authdb.Row{Key: key.Key(name), Secret: authdb.NTHash([]byte("pass")), PaidUntil: day.Day(30000)})
	}
	var b bytes.Buffer
	if err := authdb.Build(&b, authdb.Head{Span: span}, rows); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func merge(t *testing.T, parts ...string) string {
	t.Helper()
	var segments []*authdb.Segment
	for _, p := range parts {
		s, err := authdb.Open([]byte(p))
		if err != nil {
			t.Fatal(err)
		}
		segments = append(segments, s)
	}
	var b bytes.Buffer
	if err := authdb.Merge(&b, segments...); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestDatabaseAndMergeSegments(t *testing.T) {
	w := newWorld(t)
	w.rebuild = bundle.MergeSegments
	base, one, two := segment(t, authdb.Span{To: 9}, 5000), segment(t, authdb.Span{From: 10, To: 11}, 20), segment(t, authdb.Span{From: 12, To: 12}, 1)
	w.set(2, map[string]string{"node.json": "{}", "authdb/0-9": base, "authdb/10-11": one, "authdb/12-12": two})
	w.publish()
	c := w.client()
	s := w.update(c)
	db, err := s.Database()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, name := range [][]byte{{9, 7, 1}, {11, 3, 0}, {12, 0, 0}} {
		if got := db.Check(name, []byte("pass"), 30000); got != authdb.OK {
			t.Errorf("login of %v: %v, want ok", name, got)
		}
	}
	w.set(3, map[string]string{"node.json": "{}", "authdb/0-11": merge(t, base, one), "authdb/12-12": two})
	w.publish()
	w.gets = nil
	merged, err := w.update(c).Database()
	if err != nil || len(w.gets) != 3 {
		t.Errorf("fetched %v (%v), want no file", w.gets, err)
	}
	if got := merged.Check([]byte{11, 3, 0}, []byte("pass"), 30000); got != authdb.OK {
		t.Errorf("login in the merged database: %v, want ok", got)
	}
	merged.Close()
}

func TestDatabaseRefuses(t *testing.T) {
	base, delta := segment(t, authdb.Span{To: 9}, 50), segment(t, authdb.Span{From: 10, To: 11}, 2)
	for name, files := range map[string]map[string]string{
		"no segment":      {"node.json": "{}"},
		"no base":         {"authdb/10-11": delta},
		"junk":            {"authdb/0-9": "junk"},
		"another's name":  {"authdb/0-9": base, "authdb/10-12": delta},
		"a gap":           {"authdb/0-9": base, "authdb/11-11": segment(t, authdb.Span{From: 11, To: 11}, 2)},
		"merge from junk": {"authdb/0-9": "junk", "authdb/10-11": delta},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.rebuild = bundle.MergeSegments
			w.set(2, files)
			w.publish()
			c := w.client()
			s := w.update(c)
			if db, err := s.Database(); err == nil {
				db.Close()
				t.Error("opened")
			}
			var b bytes.Buffer
			if bundle.MergeSegments(bundle.File{Name: "authdb/0-11"}, s, &b) && name != "another's name" {
				t.Error("merged")
			}
		})
	}
}

func TestHTTP(t *testing.T) {
	w := newWorld(t)
	var status int
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		b, ok := w.published[strings.TrimPrefix(r.URL.Path, "/bundle/")]
		switch {
		case status != 0:
			rw.WriteHeader(status)
		case !ok:
			http.NotFound(rw, r)
		case r.Header.Get("Accept-Encoding") != "identity":
			rw.WriteHeader(http.StatusNotAcceptable)
		default:
			_, _ = rw.Write(b)
		}
	}))
	defer server.Close()
	source := bundle.HTTP{Client: server.Client(), Base: server.URL + "/bundle/"}
	c, err := bundle.NewClient(bundle.Config{Root: w.published[bundle.RootPath(1)], Seal: sealKey, Fetch: source, Now: func() time.Time { return start }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, changed, err := c.Update(t.Context())
	if err != nil || !changed {
		t.Fatalf("update: %v %v", changed, cause(err))
	}
	_ = s.Close()
	if _, err := source.Get(t.Context(), bundle.FreshnessPath, 3); !errors.Is(err, bundle.TooLarge) {
		t.Errorf("announced length beyond the limit: %v", err)
	}
	status = http.StatusBadGateway
	if _, _, err := c.Update(t.Context()); fault.Of(err) != fault.Unavailable {
		t.Errorf("status 502: %v of kind %s", err, fault.Of(err))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.Update(ctx); fault.Of(err) != fault.Unavailable || !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("cancelled: %v of kind %s", err, fault.Of(err))
	}
	if _, err := (bundle.HTTP{Client: server.Client(), Base: ":"}).Get(t.Context(), "x", 1); fault.Of(err) != fault.Invalid {
		t.Errorf("bad URL: %v", err)
	}
}

func TestDirectory(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	for path, b := range w.published {
		place := filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(place), 0o755), os.WriteFile(place, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := bundle.NewClient(bundle.Config{Root: w.published[bundle.RootPath(1)], Seal: sealKey, Fetch: bundle.Directory(dir), Now: func() time.Time { return start }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, changed, err := c.Update(t.Context())
	if err != nil || !changed {
		t.Fatalf("update: %v %v", changed, cause(err))
	}
	_ = s.Close()
	if _, err := bundle.Directory(dir).Get(t.Context(), bundle.FreshnessPath+"/x", 1); fault.Of(err) != fault.Unavailable {
		t.Errorf("a path through a file: %v", err)
	}
}
