package test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/bundle"
	"lethe/canary"
	"lethe/lab"
	"lethe/private"
	record "lethe/usage"
)

// hunt is the setting of TestCanary: a lab, its marked customers, and what
// watches it.
type hunt struct {
	t    *testing.T
	l    *lab.Lab
	keys struct {
		Salt      []byte `json:"salt"`
		Seal      []byte `json:"seal"`
		TrustRoot []byte `json:"trust_root"`
	}
	guests  []*marked
	strong  *strongClient // the sixth guest's
	sampler *sampler
	wire    *wire
	began   time.Time // files that are older hold no mark
	ended   time.Time // the last session
	logged  uint64    // last line of the kernel's log before the test

	mu     sync.Mutex
	tunnel []canary.Mark
	known  map[netip.Addr]bool

	set      *canary.Set
	marks    int
	chance   map[[3]string]bool // hits from before any mark was used
	surfaces map[string]bool    // of the last search
	bytes    int64
}

// newHunt brings up the lab, its watchers and the customers.
func newHunt(t *testing.T) *hunt {
	h := &hunt{t: t, began: time.Now(), chance: map[[3]string]bool{}, known: map[netip.Addr]bool{}}
	h.l = newLab(t, func(o *lab.Options) {
		o.Customers = 8
		// A peer is dead after six seconds, keys live for the shortest time that
		// there is.
		o.Spec = `{"poll_seconds": 1, "usage_seconds": 2, "keepalive_seconds": 1, "renegotiate_seconds": 60}`
	})
	_, h.logged = kernelLog(t, 0)
	out := h.operate("", "keys", "node", "--json")
	if err := json.Unmarshal([]byte(out), &h.keys); err != nil || len(h.keys.Salt) != 32 || len(h.keys.Seal) != 32 {
		t.Fatal("the keys of servers are not what was agreed")
	}
	for i := range 8 {
		h.guests = append(h.guests, newMarked(h, i))
	}
	h.sampler = newSampler(t, h.l)
	h.wire = newWire(t, h)
	return h
}

// operate runs lethe-control with something on its standard input.
func (h *hunt) operate(stdin string, args ...string) string {
	h.t.Helper()
	c := h.l.Control().Command(deadline(h.t), "lethe-control", append(args, "--dir", "/var/lib/lethe-control")...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.Output()
	if err != nil {
		h.t.Fatal(err)
	}
	return string(out)
}

// connected are the guests who are let in and stay.
func (h *hunt) connected() []*marked { return append(slices.Clone(h.guests[:4]), h.guests[5]) }

// settle waits until the servers have the last change.
func (h *hunt) settle(t *testing.T) { (&trial{Lab: h.l, t: t, ctx: deadline(t)}).settle() }

func (h *hunt) userHash(username string) record.UserHash {
	return record.Hash(private.Of([32]byte(h.keys.Salt)), []byte(username))
}

// learned adds tunnel addresses to the marks.
func (h *hunt) learned(label string, addrs []netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range addrs {
		family := "v4"
		if a.Is6() {
			family = "v6"
		}
		if !h.known[a] {
			h.known[a] = true
			h.tunnel = append(h.tunnel, canary.Address(fmt.Sprintf("%stunnel %s no. %d", label, family, len(h.tunnel)), a))
		}
	}
}

// gather makes the set of all marks that there are now.
func (h *hunt) gather(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	marks := slices.Clone(h.tunnel)
	for _, g := range h.guests {
		marks = append(marks, g.marks()...)
	}
	set, err := canary.NewSet(marks...)
	if err != nil {
		t.Fatal(err)
	}
	h.set, h.marks = set, len(marks)
	h.surfaces, h.bytes = map[string]bool{}, 0
}

// look searches a file.
func (h *hunt) look(surface string, r io.ReaderAt, size int64) ([]canary.Hit, error) {
	h.surfaces[surface] = true
	h.bytes += size
	hits, err := h.set.SearchFile(surface, r)
	return h.fresh(hits), err
}

// lookAt searches bytes.
func (h *hunt) lookAt(surface string, b []byte) []canary.Hit {
	h.surfaces[surface] = true
	h.bytes += int64(len(b))
	return h.fresh(h.set.Find(surface, b))
}

// fresh drops what was found before any mark was used.
func (h *hunt) fresh(hits []canary.Hit) []canary.Hit {
	return slices.DeleteFunc(hits, func(hit canary.Hit) bool { return h.chance[[3]string{hit.Surface, hit.Mark, hit.Encoding}] })
}

// search searches everything; with live, the memory of processes too.
func (h *hunt) search(t *testing.T, live bool) []canary.Hit {
	t.Helper()
	hits := h.volatile(t)
	hits = append(hits, h.files(t)...)
	hits = append(hits, h.store(t)...)
	hits = append(hits, h.bundle(t)...)
	hits = append(hits, h.sampler.search(h)...)
	hits = append(hits, h.wire.search(h)...)
	if live {
		hits = append(hits, h.memory(t)...)
	}
	return hits
}

// volatile searches what is nowhere but in memory: the kernel's tables and open
// files without a name.
func (h *hunt) volatile(t *testing.T) []canary.Hit {
	t.Helper()
	h.gather(t)
	return append(h.kernel(t), h.nameless(t)...)
}

// service are the machines of the provider.
func (h *hunt) service() []*lab.Machine {
	return []*lab.Machine{h.l.Control(), h.l.Server(0), h.l.Server(1)}
}

// files searches every file of the lab: the machines' /etc, /run, /var/lib, homes
// and data, the output of the services, and the places that every program
// may write to, as each machine sees them. Of those, files that are older than the
// test cannot hold a mark.
func (h *hunt) files(t *testing.T) (hits []canary.Hit) {
	t.Helper()
	seen := map[[2]uint64]bool{}
	search := func(surface, path string, all bool) {
		info, err := os.Lstat(path)
		if err != nil || !info.Mode().IsRegular() {
			return // gone, or not something to read
		}
		st := info.Sys().(*syscall.Stat_t)
		if id := [2]uint64{st.Dev, st.Ino}; seen[id] || !all && info.ModTime().Before(h.began) {
			return
		} else {
			seen[id] = true
		}
		f, err := os.Open(path)
		if err != nil {
			return
		}
		defer f.Close()
		more, err := h.look(surface, f, info.Size())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", surface, err)
		}
		hits = append(hits, more...)
	}
	walk := func(root string, all bool, name func(rel string) string) {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // it went away; files come and go
			}
			if d.IsDir() && strings.HasPrefix(d.Name(), "go-build") {
				return filepath.SkipDir // a compiler's
			}
			// Instrumented programs, the customers' too, write their arguments beside
			// what they covered.
			if !d.IsDir() && !strings.HasPrefix(d.Name(), "covcounters.") {
				rel, _ := filepath.Rel(root, path)
				search(name(rel), path, all)
			}
			return nil
		})
	}
	for _, m := range h.l.Machines() {
		walk(m.Dir, true, func(rel string) string { return "file:" + m.Name + "/" + rel })
	}
	dir := filepath.Dir(filepath.Dir(h.l.Control().Dir)) // the lab's
	walk(filepath.Join(dir, "log"), true, func(rel string) string { return "log:" + rel })
	walk(dir, true, func(rel string) string { return "file:lab/" + rel })
	for _, m := range h.service() {
		for _, root := range h.roots(t, m) {
			for _, d := range []string{"etc", "run", "tmp", "var/tmp", "var/log", "var/lib", "var/cache", "var/spool", "dev/shm", "root"} {
				walk(filepath.Join(root, d), false, func(rel string) string { return "file:" + m.Name + ":/" + d + "/" + rel })
			}
		}
	}
	return hits
}

// roots returns the roots of the file systems that processes of m see: one of
// each mount namespace, and of each process that has changed its root.
func (h *hunt) roots(t *testing.T, m *lab.Machine) (roots []string) {
	t.Helper()
	pids, err := m.PIDs()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[[3]uint64]bool{}
	for _, pid := range pids {
		var ns, root unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/mnt", pid), &ns) != nil || unix.Stat(fmt.Sprintf("/proc/%d/root/", pid), &root) != nil {
			continue // it has ended
		}
		if id := [3]uint64{ns.Ino, root.Dev, root.Ino}; !seen[id] {
			seen[id] = true
			roots = append(roots, fmt.Sprintf("/proc/%d/root", pid))
		}
	}
	return roots
}

// store searches the tables, column by column.
func (h *hunt) store(t *testing.T) (hits []canary.Hit) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+h.l.Control().Path("/var/lib/lethe-control/lethe.sqlite")+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	columns := query(t, db, "SELECT m.name || '.' || c.name FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table'")
	if len(columns) < 20 {
		t.Fatalf("the store has %d columns", len(columns))
	}
	for _, c := range columns {
		table, column, _ := strings.Cut(c, ".")
		values := query(t, db, fmt.Sprintf(`SELECT CAST(%q AS BLOB) FROM %q`, column, table))
		hits = append(hits, h.lookAt("store:"+c, []byte(strings.Join(values, "\n")))...)
	}
	return hits
}

func query(t *testing.T, db *sql.DB, statement string) (values []string) {
	t.Helper()
	rows, err := db.QueryContext(deadline(t), statement)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			t.Fatal(err)
		}
		values = append(values, string(b))
	}
	if rows.Err() != nil {
		t.Fatal(rows.Err())
	}
	return values
}

// bundle searches what servers are told, in plain: the files of the published
// bundle as a server opens them.
func (h *hunt) bundle(t *testing.T) (hits []canary.Hit) {
	t.Helper()
	c, err := bundle.NewClient(bundle.Config{
		Root: h.keys.TrustRoot, Seal: private.Of([32]byte(h.keys.Seal)),
		Fetch: bundle.Directory(h.l.Control().Path("/var/lib/lethe-control/bundles")),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	set, changed, err := c.Update(deadline(t))
	if err != nil || !changed {
		t.Fatal("the published bundle does not open:", err)
	}
	defer set.Close()
	for _, f := range set.Files() {
		b, ok := set.File(f.Name)
		if !ok {
			t.Errorf("the bundle has no %s", f.Name)
		}
		hits = append(hits, h.lookAt("bundle:"+f.Name, b)...)
	}
	return hits
}
