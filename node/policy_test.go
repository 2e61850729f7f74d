package node_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"lethe/authdb"
	"lethe/bundle"
	"lethe/day"
	"lethe/event"
	"lethe/fault"
	"lethe/location"
	"lethe/node"
	"lethe/private"
	"lethe/protocol"
)

// seal is the key that opens the segments.
var seal = private.Of([32]byte{2})

// house publishes bundles in memory, with one key for all roles.
type house struct {
	t       *testing.T
	keys    []bundle.Signer // of the three roles
	root    []byte
	version uint64

	mu    sync.Mutex
	files map[string][]byte
	down  error // what every request meets, when not nil
}

func newHouse(t *testing.T) *house {
	h := &house{t: t, files: map[string][]byte{}}
	var keys []bundle.Signer
	roles := map[bundle.Role]bundle.Delegation{}
	for _, r := range []bundle.Role{bundle.RootRole, bundle.ConfigRole, bundle.FreshRole} {
		k := bundle.GenerateSigner()
		keys, roles[r] = append(keys, k), bundle.Delegate(1, k)
	}
	now := time.Now().UTC().Truncate(time.Second)
	h.root = h.sign(bundle.Root{Version: 1, Issued: now, Expires: now.AddDate(1, 0, 0), Keys: bundle.Keys(keys...), Roles: roles}, keys[0])
	h.files[bundle.RootPath(1)] = h.root
	h.keys = keys
	return h
}

func (h *house) sign(s bundle.Statement, by bundle.Signer) []byte {
	h.t.Helper()
	b, err := bundle.Sign(s, by)
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// Get implements [bundle.Fetcher].
func (h *house) Get(_ context.Context, path string, _ int64) (io.ReadCloser, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b, ok := h.files[path]
	if h.down != nil || !ok {
		return nil, errors.Join(h.down, fault.New(fault.NotFound, "no such file"))
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// publish publishes the next version, good for an hour, of which it is fresh for ten minutes.
func (h *house) publish(files map[string][]byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.version++
	now := time.Now().UTC().Truncate(time.Second)
	m := bundle.Manifest{Version: h.version, Issued: now, Expires: now.Add(time.Hour)}
	for name, content := range files {
		f := bundle.File{Name: name}
		if strings.HasPrefix(name, bundle.SegmentPrefix) {
			plain := bundle.Digest(sha256.Sum256(content))
			f.Sealed, f.PlainSize, f.PlainSHA256 = true, int64(len(content)), &plain
			var sealed bytes.Buffer
			w := bundle.Seal(seal, plain, &sealed)
			if _, err := w.Write(content); err != nil || w.Close() != nil {
				h.t.Fatal(err)
			}
			content = sealed.Bytes()
		}
		f.Size, f.SHA256 = int64(len(content)), sha256.Sum256(content)
		m.Files = append(m.Files, f)
		h.files[bundle.FilePath(f.SHA256)] = content
	}
	slices.SortFunc(m.Files, func(a, b bundle.File) int { return strings.Compare(a.Name, b.Name) })
	manifest := h.sign(m, h.keys[1])
	h.files[bundle.ManifestPath(h.version)] = manifest
	h.files[bundle.FreshnessPath] = h.sign(bundle.Freshness{
		Version: h.version, Manifest: sha256.Sum256(manifest), Issued: now, Expires: now.Add(time.Hour)}, h.keys[2])
}

func (h *house) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = err
}

// good returns the files of a bundle in which ann may log in.
func (h *house) good(password string) map[string][]byte {
	h.t.Helper()
	directory, err := json.Marshal(location.Directory{
		Locations: []location.Location{{ID: 1, Code: "nl-ams", Country: "NL", City: "Amsterdam"}},
		Servers: []location.Server{{ID: "nl-ams-1", Location: 1, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			Endpoints: []location.Endpoint{{Protocol: protocol.OpenVPNUDP, Port: 1194}}}},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	key := authdb.HashKey{1}
	var users bytes.Buffer
	err = authdb.Build(&users, authdb.Head{Span: authdb.Span{To: h.version}, HashKey: key}, []authdb.Row{
		{Key: key.Key([]byte("ann")), Secret: authdb.NTHash([]byte(password)), PaidUntil: day.Today().Add(90)},
		{Key: key.Key([]byte("eve")), Secret: authdb.NTHash([]byte(password)), PaidUntil: day.Today() - 1},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return map[string][]byte{
		bundle.DirectoryFile: directory, bundle.NodeFile: []byte(`{"poll_seconds": 30}`),
		bundle.SegmentName(authdb.Span{To: h.version}): users.Bytes(),
	}
}

// TestPolicy takes a server through its life with bundles: none, a good one, a control
// plane that is away for too long, one that is back, and sets that verify but cannot be used.
func TestPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		client, err := bundle.NewClient(bundle.Config{Root: h.root, Seal: seal, Fetch: h})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		var log bytes.Buffer
		p, polls := node.NewPolicy("nl-ams-1"), make(chan bool)
		ctx, cancel := context.WithCancel(t.Context())
		var following sync.WaitGroup
		following.Go(func() { p.Follow(ctx, client, event.New(&log), polls) })
		defer following.Wait()
		defer cancel()

		says := func(when string, user, password string, want fault.Kind, stays bool) {
			t.Helper()
			err := p.Check(user, password)
			// A client that shows no password gets the same answer.
			proved := p.Prove(user, func(hash *[16]byte) bool { return authdb.Secret(*hash) == authdb.NTHash([]byte(password)) })
			if (err == nil) != (proved == nil) || fault.Of(err) != fault.Of(proved) {
				t.Errorf("%s: %s: %v by password, %v by proof", when, user, err, proved)
			}
			if (err != nil) != (want != 0) || err != nil && fault.Of(err) != want {
				t.Errorf("%s: %s: %v, want kind %v", when, user, err, want)
			}
			if p.Allowed(user) != stays {
				t.Errorf("%s: %s may stay: %t", when, user, !stays)
			}
		}
		if <-polls {
			t.Error("a bundle came from nowhere")
		}
		says("before the first bundle", "ann", "good", fault.Unavailable, true)
		if c, isp := p.Locate(netip.MustParseAddr("192.0.2.9")); c != "ZZ" || isp != "" {
			t.Errorf("before the first bundle: somebody is in %s with %s", c, isp)
		}

		h.publish(h.good("good"))
		began := time.Now()
		if !<-polls || time.Since(began) > 2*time.Second {
			t.Errorf("the first bundle took %v", time.Since(began))
		}
		good := func(when string) {
			t.Helper()
			says(when, "ann", "good", 0, true)
			says(when, "ann", "bad", fault.Unauthenticated, true)
			says(when, "bob", "good", fault.Unauthenticated, false)
			says(when, "eve", "good", fault.Expired, false)
		}
		good("with a bundle")

		// The control plane is away: the bundle holds for its hour and no longer.
		h.fail(errors.New("away"))
		away := time.Now()
		for time.Since(away) < 58*time.Minute {
			if began := time.Now(); <-polls || time.Since(began) > 30*time.Second {
				t.Fatalf("away: a new bundle, or %v to the next try", time.Since(began))
			}
			good("while it holds")
		}
		for time.Since(away) < 62*time.Minute {
			<-polls
		}
		says("after its end", "ann", "good", fault.Unavailable, true)
		h.fail(nil)
		h.publish(h.good("good"))
		for !<-polls {
		}
		good("when it is back")

		// What verifies and cannot be used changes nothing.
		for name, spoil := range map[string]func(map[string][]byte){
			"no directory":         func(f map[string][]byte) { delete(f, bundle.DirectoryFile) },
			"not in the directory": func(f map[string][]byte) { f[bundle.DirectoryFile] = []byte(`{"locations":[],"servers":[]}`) },
			"no specification":     func(f map[string][]byte) { f[bundle.NodeFile] = []byte(`{"poll_seconds": -1}`) },
			"no geography":         func(f map[string][]byte) { f[bundle.GeoIPFile] = []byte("not a database") },
			"no users":             func(f map[string][]byte) { delete(f, bundle.SegmentName(authdb.Span{To: h.version})) },
			"a broken segment":     func(f map[string][]byte) { f[bundle.SegmentName(authdb.Span{To: h.version})] = []byte("rows") },
		} {
			f := h.good("other")
			spoil(f)
			h.publish(f)
			if <-polls {
				t.Errorf("%s: taken", name)
			}
			good(name)
		}
		h.publish(h.good("new"))
		for !<-polls {
		}
		says("after all that", "ann", "new", 0, true)
		cancel()
		following.Wait()
		for line, want := range map[string]int{"bundle.lapsed\n": 1, "bundle.refused kind=unavailable\n": 0, "bundle.refused kind=invalid\n": 1} {
			if n := strings.Count(log.String(), line); want > 0 && n < want {
				t.Errorf("%q %d times, want %d:\n%s", line, n, want, &log)
			}
		}
		if n := strings.Count(log.String(), "bundle.lapsed\n"); n != 1 {
			t.Errorf("the end of the bundle was logged %d times", n)
		}
	})
}

// shelf is a service manager that keeps what a client leaves.
type shelf map[string]*os.File

func (s shelf) Store(name string, f *os.File) error {
	fd, err := unix.Dup(int(f.Fd()))
	s[name] = os.NewFile(uintptr(fd), name)
	return err
}

func (s shelf) Remove(name string) error {
	err := s[name].Close()
	delete(s, name)
	return err
}

// TestPolicyRestored lets a server begin with the bundle of the instance before it while
// the control plane is away. One that it cannot use is as none, and the next that comes is
// applied, whatever its version.
func TestPolicyRestored(t *testing.T) {
	h := newHouse(t)
	newClient := func() *bundle.Client {
		t.Helper()
		c, err := bundle.NewClient(bundle.Config{Root: h.root, Seal: seal, Fetch: h})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	// kept returns what an instance leaves that has worked with these files.
	kept := func(files map[string][]byte) shelf {
		t.Helper()
		h.publish(files)
		c, s := newClient(), shelf{}
		set, changed, err := c.Update(t.Context())
		if err != nil || !changed || c.Keep(s) != nil {
			t.Fatal("no bundle:", err)
		}
		if err := set.Close(); err != nil {
			t.Error(err)
		}
		return s
	}
	var log bytes.Buffer
	good := kept(h.good("good"))
	h.fail(errors.New("away"))
	p := node.NewPolicy("nl-ams-1")
	if !p.Restore(newClient(), good, event.New(&log)) {
		t.Fatal("not restored")
	}
	for password, want := range map[string]fault.Kind{"good": 0, "bad": fault.Unauthenticated} {
		if err := p.Check("ann", password); (err != nil) != (want != 0) || err != nil && fault.Of(err) != want {
			t.Errorf("%s: %v", password, err)
		}
	}
	if log.String() != "bundle.applied version=1\n" {
		t.Errorf("the log says %q", &log)
	}

	h.fail(nil)
	bad := h.good("bad")
	bad[bundle.NodeFile] = []byte(`{"poll_seconds": -1}`)
	s, c := kept(bad), newClient()
	p = node.NewPolicy("nl-ams-1")
	if log.Reset(); p.Restore(c, s, event.New(&log)) || log.Len() > 0 {
		t.Errorf("restored what cannot be used: %q", &log)
	}
	if err := p.Check("ann", "bad"); fault.Of(err) != fault.Unavailable {
		t.Errorf("without a bundle: %v", err)
	}
	h.publish(h.good("new"))
	polls := make(chan bool)
	ctx, cancel := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() { p.Follow(ctx, c, event.New(io.Discard), polls) })
	if !<-polls {
		t.Error("the next bundle was not applied")
	}
	cancel()
	following.Wait()
	if err := p.Check("ann", "new"); err != nil {
		t.Error(err)
	}
}
