package publish_test

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/authdb"
	"lethe/bundle"
	"lethe/day"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
	"lethe/publish"
)

const today = day.Day(20000)

// register is a store in memory that follows the contract of [publish.Source]
// to the letter.
type register struct {
	mu       sync.Mutex
	rows     map[string]publish.Credential
	changed  map[string]uint64 // number of the latest change, by user name
	sequence uint64
	version  uint64
	places   location.Directory
	notify   chan struct{}
	broken   map[string]error // methods that fail
	rebuilds int
}

func newRegister() *register {
	return &register{rows: map[string]publish.Credential{}, changed: map[string]uint64{}, notify: make(chan struct{}, 1),
		broken: map[string]error{}, places: location.Directory{
			Locations: []location.Location{{ID: 1, Code: "nl-ams", Country: "NL", City: "Amsterdam"}},
			Servers: []location.Server{{ID: "nl-ams-1", Location: 1, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
				Endpoints: []location.Endpoint{{Protocol: protocol.OpenVPNUDP, Port: 1194}}}},
		}}
}

func (r *register) touch(name string) {
	r.sequence++
	r.changed[name] = r.sequence
	select {
	case r.notify <- struct{}{}:
	default:
	}
}

func (r *register) put(name, password string, paid day.Day) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows[name] = publish.Credential{Username: private.Of(name), Password: private.Of(password), PaidUntil: paid}
	r.touch(name)
}

func (r *register) remove(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.rows, name)
	r.touch(name)
}

func (r *register) Changes(_ context.Context, limit int) ([]publish.Change, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := slices.SortedFunc(maps.Keys(r.changed), func(a, b string) int { return int(r.changed[a]) - int(r.changed[b]) })
	var changes []publish.Change
	for _, name := range names[:min(limit, len(names))] {
		c, ok := r.rows[name]
		c.Username = private.Of(name)
		changes = append(changes, publish.Change{Credential: c, Deleted: !ok, Sequence: r.changed[name]})
	}
	if err := r.broken["Changes"]; err != nil {
		return nil, err
	}
	return changes, nil
}

func (r *register) All(_ context.Context, yield func(publish.Credential) error) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rebuilds++
	for _, c := range r.rows {
		if err := yield(c); err != nil {
			return 0, err
		}
	}
	return r.sequence, r.broken["All"]
}

func (r *register) Published(_ context.Context, sequence uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.broken["Published"]; err != nil {
		return err
	}
	maps.DeleteFunc(r.changed, func(_ string, n uint64) bool { return n <= sequence })
	return nil
}

func (r *register) NextVersion(_ context.Context, floor uint64) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.broken["NextVersion"]; err != nil {
		return 0, err
	}
	r.version = max(r.version, floor) + 1
	return r.version, nil
}

func (r *register) Directory(context.Context) (location.Directory, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.places, r.broken["Directory"]
}

func (r *register) Notify() <-chan struct{} { return r.notify }

// fail makes a method of a register in use fail.
func (r *register) fail(method string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken[method] = err
}

// pending returns how many changes are not acknowledged.
func (r *register) pending() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.changed)
}

// backup returns a copy of the register as it is now.
func (r *register) backup() *register {
	c := newRegister()
	c.rows, c.changed, c.sequence, c.version = maps.Clone(r.rows), maps.Clone(r.changed), r.sequence, r.version
	return c
}

// service is a publisher, its register, and the keys and clock of both ends.
type service struct {
	t   testing.TB
	now time.Time
	reg *register
	cfg publish.Config
}

var start = time.Now().UTC().Truncate(time.Hour)

func newService(t testing.TB) *service {
	s := &service{t: t, now: start, reg: newRegister()}
	root, config, fresh := bundle.GenerateSigner(), bundle.GenerateSigner(), bundle.GenerateSigner()
	s.cfg = publish.Config{Dir: filepath.Join(t.TempDir(), "out"), Source: s.reg,
		Roots: [][]byte{signRoot(t, 1, []bundle.Signer{root}, root, config, fresh)}, Signers: []bundle.Signer{config}, Fresh: []bundle.Signer{fresh},
		Seal: private.Of([32]byte{1}), HashKey: private.Of(authdb.HashKey{2}), Now: func() time.Time { return s.now },
		Settle: 90 * time.Second}
	return s
}

func signRoot(t testing.TB, version uint64, by []bundle.Signer, root, config, fresh bundle.Signer) []byte {
	b, err := bundle.Sign(bundle.Root{Version: version, Issued: start, Expires: start.Add(9000 * time.Hour),
		Keys: bundle.Keys(root, config, fresh), Roles: map[bundle.Role]bundle.Delegation{
			bundle.RootRole: bundle.Delegate(1, root), bundle.ConfigRole: bundle.Delegate(1, config), bundle.FreshRole: bundle.Delegate(1, fresh)}}, by...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *service) open() *publish.Publisher {
	s.t.Helper()
	p, err := publish.New(s.cfg)
	if err != nil {
		s.t.Fatal(err, errors.Unwrap(err))
	}
	s.t.Cleanup(func() { _ = p.Close() })
	return p
}

func (s *service) publish(p *publish.Publisher) uint64 {
	s.t.Helper()
	v, err := p.Publish(context.Background())
	if err != nil {
		s.t.Fatalf("publish: %v (%v)", err, errors.Unwrap(err))
	}
	return v
}

// server is a VPN server's side: a client over HTTP that counts what it
// downloads.
type server struct {
	*service
	client *bundle.Client
	web    *httptest.Server
	bytes  int64
	files  map[string]bool // paths fetched
}

func (s *service) server() *server {
	n := &server{service: s, files: map[string]bool{}}
	files := http.FileServer(http.Dir(s.cfg.Dir))
	n.web = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/files/") {
			n.files[strings.TrimPrefix(r.URL.Path, "/")] = true
		}
		files.ServeHTTP(counter{w, &n.bytes}, r)
	}))
	c, err := bundle.NewClient(bundle.Config{Root: s.cfg.Roots[0], Seal: s.cfg.Seal, Rebuild: bundle.MergeSegments,
		Fetch: bundle.HTTP{Client: n.web.Client(), Base: n.web.URL}, Now: func() time.Time { return s.now }})
	if err != nil {
		s.t.Fatal(err)
	}
	n.client = c
	s.t.Cleanup(func() { n.web.Close(); _ = c.Close() })
	return n
}

type counter struct {
	http.ResponseWriter
	n *int64
}

func (c counter) Write(b []byte) (int, error) {
	*c.n += int64(len(b))
	return c.ResponseWriter.Write(b)
}

// poll updates and returns the database in use.
func (n *server) poll() *authdb.DB {
	n.t.Helper()
	set, changed, err := n.client.Update(context.Background())
	if err != nil {
		n.t.Fatalf("poll: %v (%v)", err, errors.Unwrap(err))
	}
	if !changed {
		set = n.client.Current()
	}
	defer set.Close()
	db, err := set.Database()
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(db.Close)
	return db
}

// agrees compares the database with the register, for these names.
func (s *service) agrees(db *authdb.DB, names ...string) {
	s.t.Helper()
	for _, name := range names {
		c, ok := s.reg.rows[name]
		want := authdb.OK
		switch {
		case !ok:
			want = authdb.Unknown
		case c.PaidUntil < today || c.Disabled:
			want = authdb.Ended
		}
		if got := db.Check([]byte(name), []byte(c.Password.Reveal()), today); got != want {
			s.t.Errorf("login of %s: %v, want %v", name, got, want)
		}
	}
}

var names = []string{"ann", "bob", "cid", "dan", "eve"}

func (s *service) populate() {
	for i, n := range names[:4] {
		s.reg.put(n, "secret of "+n, today+day.Day(i)-1)
	}
}
