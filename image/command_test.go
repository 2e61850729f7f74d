package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lethe/fault"
	"lethe/image"
	"lethe/image/archivetest"
	"lethe/image/lock"
	"lethe/image/store"
)

type world struct {
	*archivetest.Archive
	image.Machine
	tree string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	a, err := archivetest.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	dir := t.TempDir()
	w := &world{Archive: a, tree: filepath.Join(dir, "tree")}
	for path, b := range map[string]string{
		"tree/go.mod": "module lethe\n", "tree/go.sum": string(a.GoSum), "tree/cmd/x": "", "keys": string(a.Keyring),
		"apt/sources.list": "deb " + a.URL + "/debian bookworm main\ndeb " + a.URL + "/debian-security bookworm-security main\n",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755), os.WriteFile(filepath.Join(dir, path), []byte(b), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	w.Machine = image.Machine{Dir: filepath.Join(w.tree, "cmd"), Apt: filepath.Join(dir, "apt"), Keyring: filepath.Join(dir, "keys"), Store: filepath.Join(dir, "store"),
		GoProxy: "off|" + a.URL + "/go,direct", SumDB: a.SumDB, Plan: a.Plan, Now: func() time.Time { return archivetest.Now }, Slow: time.Hour}
	return w
}

// run returns the exit code and what was written.
func (w *world) run(args ...string) (code int, out, errs string) {
	var stdout, stderr bytes.Buffer
	code = image.Run(context.Background(), args, &stdout, &stderr, w.Machine)
	return code, stdout.String(), stderr.String()
}

func (w *world) want(t *testing.T, code int, text string, args ...string) string {
	t.Helper()
	got, out, errs := w.run(args...)
	if got != code || !strings.Contains(out+errs, text) || code != 0 && !strings.HasPrefix(errs, "error: ") {
		t.Errorf("%v: exit code %d, want %d with %q\n%s%s", args, got, code, text, out, errs)
	}
	return out
}

func TestCommands(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(w.tree, lock.FileName)
	w.want(t, 3, "has no image.lock", "fetch")
	w.want(t, 0, "image.lock is new\n4 packages, 3 source packages, 2 Go modules", "lock")
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w.want(t, 0, "image.lock is up to date", "lock")
	w.want(t, 0, "the store is complete: 7 files", "fetch")
	w.want(t, 0, "the store is complete: 13 files", "fetch", "--sources")
	// Everything is there: no network is needed any more.
	w.Intercept(func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(http.StatusTeapot)
		return true
	})
	var s struct {
		Files, Mended int
		Bytes         map[string]int64
	}
	if err := json.Unmarshal([]byte(w.want(t, 0, "", "fetch", "--json")), &s); err != nil || s.Files != 7 || s.Bytes["vm"] == 0 {
		t.Error(s, err)
	}
	w.Intercept(nil)
	// The archive goes on: a newer package, and one that is gone.
	if err := w.Publish(archivetest.Suite{Name: "trixie-security", Archive: lock.Security, Date: "Mon, 23 Nov 2026 02:09:05 UTC",
		Packages: w.Package("debian-security", "lib", "2.1", "") + w.Package("debian-security", "right", "3", "") + w.Package("debian-security", "app", "2", "Depends: lib, debconf, right\nSource: lib (2.1)\n"),
		Sources:  w.Source("debian-security", "lib", "2.1") + w.Source("debian-security", "right", "3")}); err != nil {
		t.Fatal(err)
	}
	if out := w.want(t, 0, "", "lock", "--json"); !strings.Contains(out, `"changed":true`) || !strings.Contains(out, `"differ":["app","lib","right","left"]`) {
		t.Error(out)
	}
	w.want(t, 0, "removed ", "prune")
	w.want(t, 0, "removed 0 files", "prune")
	if err := os.WriteFile(file, first, 0o644); err != nil {
		t.Fatal(err)
	}
	w.Set("debian/pool/main/app_1.0+b~1_amd64.deb", nil)
	w.want(t, 3, "the archive drops what it has replaced", "fetch")
	w.want(t, 0, "4 packages are other ones", "lock", "--mirror", w.URL+"/debian/", "--security-mirror", w.URL+"/debian-security/", "--go-proxy", w.URL+"/go/")
}

func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(w *world)
		code   int
		text   string
		args   []string
	}{
		"unknown command": {nil, 2, "unknown command", []string{"burn"}},
		"unknown help":    {nil, 2, "no command \"burn\"", []string{"help", "burn"}},
		"unknown flag":    {nil, 2, "see `lethe-image --help`", []string{"lock", "--nothing"}},
		"not a tree":      {func(w *world) { w.Dir = "/" }, 3, "not Lethe's source tree", []string{"lock"}},
		"not that tree":   {nil, 3, "not Lethe's source tree", []string{"lock", "--tree", "/nowhere"}},
		"other tree":      {nil, 3, "not Lethe's source tree", []string{"prune", "--tree", "x"}},
		"no go.sum":       {func(w *world) { os.Remove(filepath.Join(w.tree, "go.sum")) }, 3, "no go.sum", []string{"lock"}},
		"bad lock":        {func(w *world) { os.WriteFile(filepath.Join(w.tree, lock.FileName), []byte("x"), 0o644) }, 2, "cannot be read", []string{"fetch"}},
		"lock is no file": {func(w *world) { os.Mkdir(filepath.Join(w.tree, lock.FileName), 0o755) }, 1, "cannot be read", []string{"prune"}},
		"no keys":         {nil, 3, "no keys", []string{"lock", "--keyring", "/nowhere"}},
		"bad keys":        {func(w *world) { w.Machine.Keyring = filepath.Join(w.tree, "go.mod") }, 2, "holds no OpenPGP keys", []string{"lock"}},
		"no place":        {func(w *world) { w.Store = "" }, 2, "no place for the store", []string{"lock"}},
		"no mirror":       {func(w *world) { w.Apt = "/nowhere" }, 2, "name a mirror", []string{"lock"}},
		"expired":         {func(w *world) { w.Now = func() time.Time { return archivetest.Now.AddDate(0, 1, 0) } }, 5, "try another mirror", []string{"lock"}},
		"nobody there":    {nil, 6, "cannot fetch", []string{"lock", "--mirror", "http://127.0.0.1:1/debian"}},
		"argument":        {nil, 2, "unknown command", []string{"lock", "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if tt.change != nil {
				tt.change(w)
			}
			w.want(t, tt.code, tt.text, tt.args...)
			if _, err := os.ReadFile(filepath.Join(w.tree, lock.FileName)); err == nil && name != "bad lock" {
				t.Error("a lock was written")
			}
		})
	}
}

func TestStoreTrouble(t *testing.T) {
	w := newWorld(t)
	w.want(t, 0, "new", "lock")
	s, err := store.Open(w.Store)
	if err != nil {
		t.Fatal(err)
	}
	w.want(t, 4, "in use by another builder", "prune")
	if _, _, err := s.Prune(func([32]byte) bool { return true }); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"lock", "fetch", "prune"} {
		w.want(t, 4, "being pruned", c)
	}
	if err := errors.Join(s.Close(), os.WriteFile(filepath.Join(w.tree, "go.sum"), []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	w.want(t, 4, "go.sum is not the one", "fetch")
}

// TestInterrupted ends a fetch while the archive hangs.
func TestInterrupted(t *testing.T) {
	w := newWorld(t)
	w.want(t, 0, "new", "lock")
	ctx, cancel := context.WithCancel(t.Context())
	w.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		cancel()
		<-r.Context().Done()
		return true
	})
	var stderr bytes.Buffer
	if code := image.Run(ctx, []string{"fetch"}, &stderr, &stderr, w.Machine); code != 1 || !strings.Contains(stderr.String(), "error: interrupted\nhint: repeat") {
		t.Error(code, stderr.String())
	}
	w.Intercept(nil)
	w.want(t, 0, "complete", "fetch")
}

// told closes a channel at the first line of progress.
type told struct {
	bytes.Buffer
	seen chan struct{}
	once atomic.Bool
}

func (w *told) Write(b []byte) (int, error) {
	n, err := w.Buffer.Write(b)
	if w.once.CompareAndSwap(false, true) {
		close(w.seen)
	}
	return n, err
}

// TestProgress holds the archive back until progress has been shown.
func TestProgress(t *testing.T) {
	w := newWorld(t)
	w.Slow = time.Millisecond
	for command, text := range map[string]string{"lock": "verifying trixie\n", "fetch": "fetching: "} {
		if command == "fetch" {
			w.Slow = time.Hour
			w.want(t, 0, "", "lock")
			w.Slow = time.Millisecond
		}
		stderr := &told{seen: make(chan struct{})}
		w.Intercept(func(http.ResponseWriter, *http.Request) bool {
			<-stderr.seen
			return false
		})
		var stdout bytes.Buffer
		if code := image.Run(t.Context(), []string{command}, &stdout, stderr, w.Machine); code != 0 || !strings.Contains(stderr.String(), text) {
			t.Errorf("%s: %d %s", command, code, stderr.String())
		}
		w.Intercept(nil)
	}
}

func TestVersionAndHelp(t *testing.T) {
	w := newWorld(t)
	w.want(t, 0, "lethe-image ", "version")
	w.want(t, 0, `{"version":`, "version", "--json")
	w.want(t, 0, "Exit codes:", "--help")
	w.want(t, 0, "bash completion", "completion", "bash")
	if code := image.Run(t.Context(), []string{"version"}, closed{}, &bytes.Buffer{}, w.Machine); code != 6 {
		t.Error(code)
	}
}

type closed struct{}

func (closed) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestHere(t *testing.T) {
	env := map[string]string{"XDG_CACHE_HOME": "/cache", "HOME": "/home/ada", "GOPROXY": "x"}
	get := func(name string) string { return env[name] }
	m := image.Here(get)
	if m.Store != "/cache/lethe-image" || m.GoProxy != "x" || m.Now == nil || len(m.Plan.Sets) != 3 {
		t.Errorf("%+v", m)
	}
	delete(env, "XDG_CACHE_HOME")
	if m := image.Here(get); m.Store != "/home/ada/.cache/lethe-image" {
		t.Error(m.Store)
	}
	delete(env, "HOME")
	if m := image.Here(get); m.Store != "" {
		t.Error(m.Store)
	}
}

func TestExitCodes(t *testing.T) {
	seen := map[int]int{}
	for _, k := range fault.Kinds() {
		seen[image.ExitCode(k)]++
	}
	for code := 1; code <= 7; code++ {
		if seen[code] == 0 {
			t.Errorf("no error has the exit code %d", code)
		}
	}
}
