package publish_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"lethe/authdb"
	"lethe/bundle"
	"lethe/event"
	"lethe/fault"
	"lethe/private"
	"lethe/publish"
)

func TestPublishAndPoll(t *testing.T) {
	s := newService(t)
	s.populate()
	p, n := s.open(), s.server()
	s.publish(p)
	s.agrees(n.poll(), names...)
	s.reg.put("ann", "another", today)
	s.reg.remove("bob")
	s.reg.put("eve", "new", today)
	c := s.reg.rows["cid"]
	c.Disabled = true
	s.reg.rows["cid"] = c
	s.reg.touch("cid")
	s.publish(p)
	db := n.poll()
	s.agrees(db, names...)
	if got := db.Check([]byte("ann"), []byte("secret of ann"), today); got != authdb.Unknown {
		t.Errorf("login with the old password: %v", got)
	}
	if len(s.reg.changed) != 0 {
		t.Errorf("%d changes unacknowledged", len(s.reg.changed))
	}
	if s.reg.rebuilds != 1 {
		t.Errorf("%d full rebuilds, want 1", s.reg.rebuilds)
	}
	before := p.Version()
	if v := s.publish(p); v != before {
		t.Errorf("version %d without a change, want %d", v, before)
	}
	s.now = s.now.Add(19 * time.Minute)
	s.publish(p) // renews the freshness statement
	s.now = s.now.Add(15 * time.Minute)
	s.agrees(s.server().poll(), names...)
	s.now = start.Add(24 * time.Hour)
	if v := s.publish(p); v == before {
		t.Error("no manifest after a day")
	}
}

func TestPublishedFilesHoldNothingPlain(t *testing.T) {
	s := newService(t)
	s.populate()
	s.publish(s.open())
	key := s.cfg.HashKey.Reveal()
	row, secret := key.Key([]byte("ann")), authdb.NTHash([]byte("secret of ann"))
	_ = filepath.WalkDir(s.cfg.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, mark := range [][]byte{[]byte("ann"), row[:8], secret[:8], []byte("192.0.2.1"), []byte("LetheADB")} {
			if bytes.Contains(b, mark) {
				t.Errorf("%s holds %x", filepath.Base(path), mark)
			}
		}
		return err
	})
}

// TestCrash kills the publisher at every step of publishing a change, starts a
// new one, and compares what servers see before and after with the register.
func TestCrash(t *testing.T) {
	for at := 1; ; at++ {
		s := newService(t)
		s.cfg.Keep, s.cfg.KeepFor = 1, time.Nanosecond // so that tidying the directory has steps, too
		s.populate()
		p, n := s.open(), s.server()
		s.publish(p)
		first := n.poll()
		s.now = s.now.Add(2 * time.Minute)
		s.reg.put("eve", "new", today)
		s.reg.remove("ann")
		steps := p.CrashAt(at)
		v, err := p.Publish(t.Context())
		_ = p.Close()
		if err == nil {
			if *steps >= at || at < 6 {
				t.Fatalf("no crash at step %d of %d", at, *steps)
			}
			return
		}
		if !errors.Is(err, publish.ErrCrash) {
			t.Fatalf("step %d: %v", at, err)
		}
		db := n.poll() // whole, old or new
		if got := db.Check([]byte("eve"), []byte("new"), today); got == authdb.Unknown {
			if db.Check([]byte("ann"), []byte("secret of ann"), today) != first.Check([]byte("ann"), []byte("secret of ann"), today) {
				t.Errorf("step %d: half of the change is published", at)
			}
		} else {
			s.agrees(db, names...)
		}
		s.reg.put("bob", "late", today)
		q := s.open()
		if again := s.publish(q); again <= v {
			t.Errorf("step %d: version %d after %d", at, again, v)
		}
		s.agrees(n.poll(), names...)
		s.agrees(s.server().poll(), names...)
		if len(s.reg.changed) != 0 || s.reg.rebuilds != 1 {
			t.Errorf("step %d: %d changes left, %d rebuilds, want 0 and 1", at, len(s.reg.changed), s.reg.rebuilds)
		}
		_ = q.Close()
	}
}

// TestSourceFails breaks every method of the source in turn.
func TestSourceFails(t *testing.T) {
	for _, method := range []string{"Changes", "NextVersion", "Published", "All", "Directory"} {
		t.Run(method, func(t *testing.T) {
			s := newService(t)
			s.populate()
			s.reg.broken[method] = fault.New(fault.Unavailable, "store is down")
			p := s.open()
			if _, err := p.Publish(t.Context()); method != "Changes" && fault.Of(err) != fault.Unavailable {
				t.Errorf("first publish: %v", err)
			}
			delete(s.reg.broken, method)
			s.publish(p)
			n := s.server()
			s.agrees(n.poll(), names...)
			s.reg.put("eve", "new", today)
			s.reg.broken[method] = fault.New(fault.Unavailable, "store is down")
			_, err := p.Publish(t.Context())
			if method != "All" && fault.Of(err) != fault.Unavailable {
				t.Errorf("second publish: %v", err)
			}
			delete(s.reg.broken, method)
			s.publish(p)
			s.agrees(n.poll(), names...)
			if len(s.reg.changed) != 0 {
				t.Errorf("%d changes left", len(s.reg.changed))
			}
		})
	}
}

func TestStoreSetBackToABackup(t *testing.T) {
	s := newService(t)
	s.populate()
	p, n := s.open(), s.server()
	s.publish(p)
	old := s.reg.backup()
	for i := range 5 {
		s.reg.put("eve", fmt.Sprint("new", i), today)
		s.publish(p)
	}
	before := p.Version()
	s.agrees(n.poll(), names...)
	_ = p.Close()
	old.put("dan", "after the backup", today) // its number was given before, to eve
	s.reg, s.cfg.Source = old, old
	if v := s.publish(s.open()); v <= before {
		t.Errorf("version %d after %d", v, before)
	}
	s.agrees(n.poll(), names...)
}

func TestDamagedDirectoryIsRebuilt(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"freshness": func(t *testing.T, dir string) { overwrite(t, filepath.Join(dir, "freshness.json")) },
		"manifests": func(t *testing.T, dir string) {
			overwriteAll(t, filepath.Join(dir, "manifest"))
			overwrite(t, filepath.Join(dir, "manifest", "007.json"))
		},
		"files":    func(t *testing.T, dir string) { overwriteAll(t, filepath.Join(dir, "files")) },
		"all gone": func(t *testing.T, dir string) { _ = os.RemoveAll(dir) },
		"no files": func(t *testing.T, dir string) { _ = os.RemoveAll(filepath.Join(dir, "files")) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t)
			s.populate()
			p, n := s.open(), s.server()
			s.publish(p)
			s.agrees(n.poll(), names...)
			_ = p.Close()
			damage(t, s.cfg.Dir)
			var log bytes.Buffer
			s.cfg.Log = event.New(&log)
			s.publish(s.open())
			s.agrees(n.poll(), names...)
			s.agrees(s.server().poll(), names...)
			if s.reg.rebuilds != 2 {
				t.Errorf("%d rebuilds, want 2", s.reg.rebuilds)
			}
			if told := strings.Contains(log.String(), "trouble"); told != (name != "all gone") && name != "no files" && name != "manifests" {
				t.Errorf("log %q", log.String())
			}
		})
	}
}

func overwriteAll(t *testing.T, dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		overwrite(t, filepath.Join(dir, e.Name()))
	}
}

func overwrite(t *testing.T, path string) {
	if err := os.WriteFile(path, []byte("junk"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestNewHashKeyRebuilds(t *testing.T) {
	s := newService(t)
	s.populate()
	p, n := s.open(), s.server()
	s.publish(p)
	n.poll()
	_ = p.Close()
	s.cfg.HashKey = private.Of(authdb.HashKey{3})
	s.publish(s.open())
	s.agrees(n.poll(), names...)
}

func TestRootRotation(t *testing.T) {
	s := newService(t)
	s.populate()
	root, config, fresh := bundle.GenerateSigner(), bundle.GenerateSigner(), bundle.GenerateSigner()
	s.cfg.Roots = [][]byte{signRoot(t, 1, []bundle.Signer{root}, root, config, fresh)}
	s.cfg.Signers, s.cfg.Fresh = []bundle.Signer{config}, []bundle.Signer{fresh}
	p, n := s.open(), s.server()
	s.publish(p)
	s.agrees(n.poll(), names...)
	_ = p.Close()
	config2, fresh2 := bundle.GenerateSigner(), bundle.GenerateSigner()
	s.cfg.Roots = append(s.cfg.Roots, signRoot(t, 2, []bundle.Signer{root}, root, config2, fresh2))
	if _, err := publish.New(s.cfg); fault.Of(err) != fault.Invalid {
		t.Errorf("old keys under the new root: %v", err)
	}
	s.cfg.Signers, s.cfg.Fresh = []bundle.Signer{config2}, []bundle.Signer{fresh2}
	s.reg.put("eve", "new", today)
	s.publish(s.open())
	s.agrees(n.poll(), names...)
	s.agrees(s.server().poll(), names...)
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *service)
		want   fault.Kind
	}{
		"no root":                       {func(s *service) { s.cfg.Roots = nil }, fault.Invalid},
		"junk for a root":               {func(s *service) { s.cfg.Roots = [][]byte{nil} }, fault.Invalid},
		"same root twice":               {func(s *service) { s.cfg.Roots = append(s.cfg.Roots, s.cfg.Roots[0]) }, fault.Invalid},
		"no signer":                     {func(s *service) { s.cfg.Signers = nil }, fault.Invalid},
		"no fresh signer":               {func(s *service) { s.cfg.Fresh = nil }, fault.Invalid},
		"root expired":                  {func(s *service) { s.now = start.Add(9000 * time.Hour) }, fault.Invalid},
		"file in the way":               {func(s *service) { _ = os.WriteFile(s.cfg.Dir, nil, 0o644) }, fault.Internal},
		"statements that live too long": {func(s *service) { s.cfg.FreshLife = bundle.MaxFreshnessLife + time.Second }, fault.Invalid},
		"two publishers":                {func(s *service) { s.open() }, fault.Conflict},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t)
			c.change(s)
			if _, err := publish.New(s.cfg); fault.Of(err) != c.want || err == nil {
				t.Errorf("%v of kind %s, want %s", err, fault.Of(err), c.want)
			}
		})
	}
}

func geoip(t testing.TB, country string) []byte {
	w, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Lethe", Description: map[string]string{"en": "test"}, RecordSize: 24})
	if err == nil {
		_, network, _ := net.ParseCIDR("1.0.0.0/24")
		err = w.Insert(network, mmdbtype.String(country))
	}
	var b bytes.Buffer
	if err == nil {
		_, err = w.WriteTo(&b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestInputs(t *testing.T) {
	s := newService(t)
	s.populate()
	dir := t.TempDir()
	s.cfg.GeoIP, s.cfg.Spec = filepath.Join(dir, "geoip.mmdb"), filepath.Join(dir, "node.json")
	p := s.open()
	if v, err := p.Publish(t.Context()); v != 0 || fault.Of(err) != fault.Invalid {
		t.Errorf("without inputs: version %d, %v", v, err)
	}
	put := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(s.cfg.GeoIP, string(geoip(t, "NL")))
	put(s.cfg.Spec, `{"poll_seconds":7}`)
	s.publish(p)
	n := s.server()
	n.poll()
	content := func(name string) string {
		set := n.client.Current()
		defer set.Close()
		b, _ := set.File(name)
		return string(b)
	}
	if got := content(bundle.GeoIPFile); got != string(geoip(t, "NL")) && len(got) == 0 {
		t.Error("no GeoIP file arrived")
	}
	if got := content(bundle.NodeFile); !strings.Contains(got, `"poll_seconds":7`) {
		t.Errorf("specification %s", got)
	}
	if got := content(bundle.DirectoryFile); !strings.Contains(got, "nl-ams-1") {
		t.Errorf("directory %s", got)
	}
	for name, spoil := range map[string]func(){
		"geoip":     func() { put(s.cfg.GeoIP, "junk") },
		"cut geoip": func() { put(s.cfg.GeoIP, string(geoip(t, "DE")[:60])) },
		"spec":      func() { put(s.cfg.Spec, `{"poll_seconds":7000}`) },
		"directory": func() { s.reg.places.Locations = nil },
	} {
		spoil()
		s.reg.put("eve", name, today)
		before := p.Version()
		if v, err := p.Publish(t.Context()); v <= before || fault.Of(err) != fault.Invalid {
			t.Errorf("bad %s: version %d, %v; want credentials published and the fault reported", name, v, err)
		}
		s.agrees(n.poll(), names...)
	}
	if got := content(bundle.NodeFile); !strings.Contains(got, `"poll_seconds":7,`) {
		t.Errorf("specification %s, want the last good one", got)
	}
}

// TestFullDisk fills a small tmpfs that only this thread sees.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	s := newService(t)
	mountPoint := t.TempDir()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread and its mounts end with the goroutine
		err := syscall.Unshare(syscall.CLONE_NEWNS | syscall.CLONE_FS)
		if err == nil {
			err = syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
		}
		if err == nil {
			err = syscall.Mount("tmpfs", mountPoint, "tmpfs", 0, "size=512k")
		}
		if err != nil {
			t.Errorf("tmpfs: %v", err)
			return
		}
		s.cfg.Dir = filepath.Join(mountPoint, "out")
		s.populate()
		p, err := publish.New(s.cfg)
		if err != nil {
			t.Errorf("new: %v", err)
			return
		}
		defer func() { p.Close() }()
		s.publish(p)
		client, err := bundle.NewClient(bundle.Config{Root: s.cfg.Roots[0], Seal: s.cfg.Seal, Fetch: bundle.Directory(s.cfg.Dir), Now: s.cfg.Now})
		if err != nil {
			t.Errorf("client: %v", err)
			return
		}
		n := &server{service: s, client: client}
		defer client.Close()
		first := n.poll()
		for i := range 40000 {
			s.reg.put(fmt.Sprint("user", i), "p", today)
		}
		before := p.Version()
		if v, err := p.Publish(context.Background()); v != before || fault.Of(err) != fault.Full {
			t.Errorf("version %d after %d, error %v of kind %s, want full", v, before, err, fault.Of(err))
		}
		n.poll() // the old bundle is intact
		_ = first
		// With no byte left a publisher starts all the same, and knows what is published.
		filler := filepath.Join(mountPoint, "filler")
		if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("the disk is not full: %v", err)
		}
		p.Close()
		again, err := publish.New(s.cfg)
		if err != nil {
			t.Errorf("a start on a full disk: %v", err)
			return
		}
		if p = again; p.Version() != before {
			t.Errorf("version %d after a start on a full disk, want %d", p.Version(), before)
		}
		if err := os.Remove(filler); err != nil {
			t.Error(err)
		}
		for i := range 39000 {
			delete(s.reg.rows, fmt.Sprint("user", i))
			delete(s.reg.changed, fmt.Sprint("user", i))
		}
		s.publish(p)
		s.agrees(n.poll(), append(names, "user39999")...)
	}()
	<-done
}

// TestGarbage replaces bundles for hours and looks at what stays published.
func TestGarbage(t *testing.T) {
	s := newService(t)
	s.cfg.Keep, s.cfg.KeepFor = 3, time.Nanosecond
	s.populate()
	p, n := s.open(), s.server()
	for i := range 30 {
		s.reg.put("eve", fmt.Sprint(i), today)
		s.now = s.now.Add(2 * time.Minute)
		s.publish(p)
	}
	s.agrees(n.poll(), names...)
	manifests, _ := os.ReadDir(filepath.Join(s.cfg.Dir, "manifest"))
	files, _ := os.ReadDir(filepath.Join(s.cfg.Dir, "files"))
	if len(manifests) != 3 || len(files) > 20 {
		t.Errorf("%d manifests and %d files stay, want 3 and a few", len(manifests), len(files))
	}
}

// TestSeam publishes a change every ten seconds for simulated hours to a server
// that polls every thirty: it must never download a base again.
func TestSeam(t *testing.T) {
	s := newService(t)
	for i := range 2000 {
		s.reg.put(fmt.Sprint("user", i), "p", today)
	}
	p, n := s.open(), s.server()
	s.publish(p)
	n.poll()
	n.bytes, n.files = 0, map[string]bool{}
	bases := map[string]bool{}
	for i := range 900 {
		s.reg.put(fmt.Sprint("user", i*7%2500), fmt.Sprint("q", i), today)
		s.now = s.now.Add(10 * time.Second)
		s.publish(p)
		if i%3 != 0 {
			continue
		}
		n.poll()
		set := n.client.Current()
		segments := 0
		for _, f := range set.Files() {
			if span, ok := bundle.SegmentSpan(f.Name); ok {
				segments++
				if span.Base() {
					bases[f.Name] = true
					if n.files[bundle.FilePath(f.SHA256)] {
						t.Fatalf("poll %d: the base %s was downloaded", i, f.Name)
					}
				}
			}
		}
		_ = set.Close()
		if segments > authdb.MaxSegments {
			t.Fatalf("%d segments, want at most %d", segments, authdb.MaxSegments)
		}
	}
	db := n.poll()
	for i := range 2500 {
		s.agrees(db, fmt.Sprint("user", i))
	}
	if len(bases) < 3 {
		t.Errorf("%d bases in all, want several", len(bases))
	}
	t.Logf("%d bases, %d bytes downloaded for 900 changes", len(bases), n.bytes)
}

// TestLateServer polls once an hour while changes go on: it downloads bases, and
// what it gets is right.
func TestLateServer(t *testing.T) {
	s := newService(t)
	for i := range 100 {
		s.reg.put(fmt.Sprint("user", i), "p", today)
	}
	p, n := s.open(), s.server()
	for i := range 200 {
		s.reg.put(fmt.Sprint("user", i%150), fmt.Sprint("q", i), today)
		s.now = s.now.Add(2 * time.Minute)
		s.publish(p)
		if i%30 == 0 {
			s.agrees(n.poll(), "user1", "user99", fmt.Sprint("user", i%150))
		}
	}
}

// TestFaultsWhilePublishing reports a failing directory query, an unreadable
// manifest directory and a root that ends while the publisher runs.
func TestFaultsWhilePublishing(t *testing.T) {
	s := newService(t)
	s.populate()
	p, n := s.open(), s.server()
	s.publish(p)
	before := n.poll()
	s.now = start.Add(9000 * time.Hour)
	if _, err := p.Publish(t.Context()); fault.Of(err) != fault.Expired {
		t.Errorf("publish under an expired root: %v of kind %s", err, fault.Of(err))
	}
	s.agrees(before, names...)
	s.now = start.Add(2 * time.Minute)
	if err := os.RemoveAll(filepath.Join(s.cfg.Dir, "manifest")); err != nil {
		t.Fatal(err)
	}
	overwrite(t, filepath.Join(s.cfg.Dir, "manifest"))
	s.reg.put("eve", "new", today)
	if _, err := p.Publish(t.Context()); fault.Of(err) != fault.Internal {
		t.Errorf("publish without a manifest directory: %v of kind %s", err, fault.Of(err))
	}
	_ = p.Close()
	if err := os.RemoveAll(s.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.cfg.Dir, "new.part"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := publish.New(s.cfg); fault.Of(err) != fault.Internal {
		t.Errorf("new in a directory that cannot be written: %v of kind %s", err, fault.Of(err))
	}
}

// TestSetBackWhileRunning finds a store set back to a backup under a running
// publisher, and then a store that cannot be read for the rebuild.
func TestSetBackWhileRunning(t *testing.T) {
	s := newService(t)
	s.populate()
	p, n := s.open(), s.server()
	s.publish(p)
	n.poll()
	s.reg.version = 0
	s.reg.put("eve", "new", today)
	s.reg.broken["All"] = fault.New(fault.Unavailable, "store is down")
	if _, err := p.Publish(t.Context()); fault.Of(err) != fault.Unavailable {
		t.Errorf("publish: %v", err)
	}
	n.poll()
	s.reg.broken["All"] = nil
	s.publish(p)
	s.agrees(n.poll(), names...)
}

func TestRun(t *testing.T) {
	s := newService(t)
	s.populate()
	dir := s.cfg.Dir
	synctest.Test(t, func(t *testing.T) {
		s.reg.notify = make(chan struct{}, 1)
		origin := time.Now()
		s.cfg.Now = func() time.Time { return start.Add(time.Since(origin)) }
		var log bytes.Buffer
		s.cfg.Log = event.New(&log)
		p, err := publish.New(s.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if p.Version() != 1 {
			t.Errorf("version %d at once, want 1", p.Version())
		}
		for range 5 { // five changes in half a second are one bundle
			s.reg.put("eve", "x", today)
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if p.Version() > 3 || p.Version() < 2 || s.reg.pending() != 0 {
			t.Errorf("version %d with %d changes left, want 2 or 3 and none", p.Version(), s.reg.pending())
		}
		s.reg.fail("Changes", fault.New(fault.Unavailable, "store is down"))
		time.Sleep(3 * time.Minute)
		s.reg.fail("Changes", nil)
		time.Sleep(24 * time.Hour)
		s.reg.put("eve", "y", today)
		time.Sleep(100 * time.Millisecond)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := p.Run(ctx); err != nil {
			t.Errorf("run with a context that has ended: %v", err)
		}
		b, _ := os.ReadFile(filepath.Join(dir, "freshness.json"))
		if f, err := bundle.Inspect[bundle.Freshness](b); err != nil || s.cfg.Now().Sub(f.Issued) > 6*time.Minute {
			t.Errorf("freshness statement of %v (%v), now %v", f.Issued, err, s.cfg.Now())
		}
		for _, want := range []string{"started part=publisher", "bundle.published version=1", "trouble part=publisher kind=unavailable", "stopped part=publisher"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("log lacks %q", want)
			}
		}
	})
}
