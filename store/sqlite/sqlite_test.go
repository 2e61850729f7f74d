package sqlite_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/account"
	"lethe/fault"
	"lethe/location"
	"lethe/private"
	"lethe/publish"
	"lethe/store"
	"lethe/store/sqlite"
	"lethe/store/storetest"
	"lethe/usage"
)

func key(b byte) private.Value[[32]byte] { return private.Of([32]byte{b}) }

func open(dir string, create bool) (store.Store, error) {
	s, err := sqlite.Open(context.Background(), file(dir), sqlite.Options{Key: key(1), Create: create})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func file(dir string) string { return filepath.Join(dir, "lethe.sqlite") }

func TestMain(m *testing.M) { storetest.Main(m, open) }

func TestContract(t *testing.T) { storetest.Run(t, open) }

// made returns the directory of a new store with one account in it, closed.
func made(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	s, err := open(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.AddAccount(t.Context(), storetest.Record("ann")), s.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// raw runs statements on the file behind the store's back.
func raw(t *testing.T, dir string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", file(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSchema holds every column against a list, so that none comes in without a
// look at what it tells: nothing finer than a day, no row numbers.
func TestSchema(t *testing.T) {
	db, err := sql.Open("sqlite", file(made(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	rows, err := db.Query(`SELECT t.name, t.wr, c.name || ' ' || c.type FROM pragma_table_list t, pragma_table_info(t.name) c
		WHERE t.schema = 'main' AND t.name NOT LIKE 'sqlite_schema' ORDER BY t.name, c.cid`)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for rows.Next() {
		var table, column string
		var withoutRowID bool
		if err := rows.Scan(&table, &withoutRowID, &column); err != nil {
			t.Fatal(err)
		}
		if !withoutRowID {
			t.Errorf("table %s has row numbers", table)
		}
		got[table] = append(got[table], column)
		if regexp.MustCompile(`(?i)time|stamp|created|updated|(^|_)at |addr_|ip_`).MatchString(column) {
			t.Errorf("table %s has a column %s", table, column)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"account": "id TEXT, email TEXT, password TEXT, disabled BOOLEAN, plan TEXT, devices INTEGER, paid_until INTEGER, " +
			"licence_disabled BOOLEAN, vpn_username BYTEA, vpn_password BYTEA, app_os TEXT, app_version TEXT",
		"token":    "hash BYTEA, account TEXT, expires INTEGER",
		"change":   "sequence BIGINT, account TEXT, vpn_username BYTEA",
		"location": "id INTEGER, code TEXT, country TEXT, city TEXT",
		"server":   "id TEXT, location INTEGER, addresses TEXT, endpoints TEXT, ca TEXT, tls_crypt TEXT, enabled BOOLEAN",
		"usage": "user_hash BYTEA, date INTEGER, country TEXT, isp TEXT, location INTEGER, protocol INTEGER, " +
			"mb_in BIGINT, mb_out BIGINT",
		"batch":   "server TEXT, id BYTEA",
		"counter": "name TEXT, value BIGINT",
		"seal":    "name TEXT, value BYTEA",
	}
	for table, columns := range got {
		if strings.Join(columns, ", ") != want[table] {
			t.Errorf("table %s has %q, want %q", table, columns, want[table])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d tables, want %d", len(got), len(want))
	}
	// Dates are days: the store refuses what would be seconds.
	for _, s := range []string{
		"INSERT INTO usage VALUES (x'01', 1763850000, 'DE', '', 1, 1, 1, 1)",
		"INSERT INTO token VALUES (x'01', 'id-ann', 1763850000)",
		"UPDATE account SET paid_until = 1763850000",
	} {
		if _, err := db.Exec(s); err == nil {
			t.Errorf("accepted: %s", s)
		}
	}
}

// TestDisk looks at the bytes: credentials are nowhere in clear, what was
// deleted is overwritten, the write-ahead log is empty after every
// transaction, and files are private.
func TestDisk(t *testing.T) {
	dir := t.TempDir()
	s, err := open(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	ctx := t.Context()
	search := func(want bool, words ...string) {
		t.Helper()
		for _, name := range []string{"", "-wal", "-shm"} {
			info, err := os.Stat(file(dir) + name)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("file%s has mode %v", name, info.Mode())
			}
			if name == "-wal" && info.Size() != 0 {
				t.Errorf("the write-ahead log has %d bytes", info.Size())
			}
		}
		content, err := os.ReadFile(file(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range words {
			if got := bytes.Contains(content, []byte(w)); got != want {
				t.Errorf("%q on disk: %v, want %v", w, got, want)
			}
		}
	}
	hash := usage.UserHash{0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4}
	batch := usage.Batch{ID: usage.NewBatchID(), Records: []usage.Record{{
		Key: usage.Key{Date: 9, User: hash, Country: "DE", ISP: "Lahn Net", Location: 1}, In: 1, Out: 1,
	}}}
	if err := errors.Join(s.AddAccount(ctx, storetest.Record("ann")), s.AcceptUsage(ctx, "a", batch)); err != nil {
		t.Fatal(err)
	}
	search(true, "ann@example.org", "Lahn Net", string(hash[:8]))
	search(false, "user-ann", "secret-ann")
	if _, err := s.PurgeUsage(ctx, 10); err != nil {
		t.Fatal(err)
	}
	search(false, "Lahn Net", string(hash[:8]))
	if err := s.DeleteAccount(ctx, "id-ann"); err != nil {
		t.Fatal(err)
	}
	search(false, "ann@example.org", "id-ann", "user-ann")
}

// TestReaderInTheWay shows that a reader delays the truncation of the
// write-ahead log, not the writer, and that the watcher makes up for it.
func TestReaderInTheWay(t *testing.T) {
	dir := made(t)
	s, err := open(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	ctx := t.Context()
	if err := s.AddAccount(ctx, storetest.Record("ben")); err != nil {
		t.Fatal(err)
	}
	size := func() int64 {
		info, err := os.Stat(file(dir) + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	added := false
	_, err = s.All(ctx, func(publish.Credential) error {
		if added {
			return nil
		}
		added = true
		start := time.Now()
		if err := s.AddAccount(ctx, storetest.Record("cem")); err != nil {
			return err
		}
		if took := time.Since(start); took > 2*time.Second {
			return fmt.Errorf("the writer waited %v for a reader", took)
		}
		if size() == 0 {
			return errors.New("the log was truncated under a reader")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); size() != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the log was not truncated when the reader had gone")
		}
	}
}

func TestRefusals(t *testing.T) {
	options := sqlite.Options{Key: key(1)}
	for _, c := range []struct {
		name, want string
		kind       fault.Kind
		spoil      func(t *testing.T, dir string)
		options    sqlite.Options
	}{
		{"no file", "there is no store", fault.NotFound, func(t *testing.T, dir string) {
			if err := os.Remove(file(dir)); err != nil {
				t.Fatal(err)
			}
		}, options},
		{"no directory", "there is no store", fault.NotFound, func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}, options},
		{"nowhere to make it", "cannot be made", fault.Unavailable, func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}, sqlite.Options{Key: key(1), Create: true}},
		{"a file in place of the directory", "cannot be looked at", fault.Unavailable, func(t *testing.T, dir string) {
			if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}, options},
		{"a directory in place of the file", "cannot be read or written", fault.Unavailable, func(t *testing.T, dir string) {
			if err := errors.Join(os.Remove(file(dir)), os.Mkdir(file(dir), 0o700)); err != nil {
				t.Fatal(err)
			}
		}, options},
		{"others may read", "other users may read", fault.Denied, func(t *testing.T, dir string) {
			if err := os.Chmod(file(dir), 0o640); err != nil {
				t.Fatal(err)
			}
		}, options},
		{"another key", "data key does not fit", fault.Internal, func(*testing.T, string) {}, sqlite.Options{Key: key(2)}},
		{"the key check swapped", "data key does not fit", fault.Internal, func(t *testing.T, dir string) {
			raw(t, dir, "UPDATE seal SET value = (SELECT vpn_username FROM account)")
		}, options},
		{"newer", "newer program", fault.Internal, func(t *testing.T, dir string) { raw(t, dir, "PRAGMA user_version = 99") }, options},
		{"another program's", "not a Lethe store", fault.Internal, func(t *testing.T, dir string) {
			raw(t, dir, "PRAGMA application_id = 7")
		}, options},
		{"a migration that cannot be", "does not work", fault.Internal, func(t *testing.T, dir string) {
			raw(t, dir, "PRAGMA user_version = 0")
		}, options},
		{"no counters", "does not work", fault.Internal, func(t *testing.T, dir string) { raw(t, dir, "DROP TABLE counter") }, options},
		{"no key check", "does not work", fault.Internal, func(t *testing.T, dir string) { raw(t, dir, "DROP TABLE seal") }, options},
		{"no SQLite file", "damaged", fault.Internal, func(t *testing.T, dir string) {
			if err := os.WriteFile(file(dir), bytes.Repeat([]byte("junk"), 5000), 0o600); err != nil {
				t.Fatal(err)
			}
		}, options},
		{"a damaged schema", "damaged", fault.Internal, func(t *testing.T, dir string) {
			damage(t, dir, 100, 4096)
		}, options},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := made(t)
			c.spoil(t, dir)
			s, err := sqlite.Open(t.Context(), file(dir), c.options)
			if err == nil || fault.Of(err) != c.kind || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v (%v), want %v %q", s, err, fault.Of(err), c.kind, c.want)
			}
		})
	}
}

// damage overwrites a part of the file.
func damage(t *testing.T, dir string, from, to int64) {
	t.Helper()
	f, err := os.OpenFile(file(dir), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, int(to-from)), from)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestDamage damages pages behind the first ones: the store opens, and every
// call that meets them says what is wrong; Check finds it without one.
func TestDamage(t *testing.T) {
	dir := made(t)
	s, err := sqlite.Open(t.Context(), file(dir), sqlite.Options{Key: key(1)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	for i := range 50 {
		if err := s.AddAccount(t.Context(), storetest.Record(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(file(dir))
	if err != nil {
		t.Fatal(err)
	}
	page := int64(bytes.Index(content, []byte("id-30")) &^ 4095)
	damage(t, dir, page, page+200)
	s, err = sqlite.Open(t.Context(), file(dir), sqlite.Options{Key: key(1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for name, err := range map[string]error{
		"Check":       s.Check(t.Context()),
		"EachAccount": s.EachAccount(t.Context(), func(account.Record) error { return nil }),
	} {
		if fault.Of(err) != fault.Internal || err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestSpoiledFields changes single fields: none is taken for what it was.
func TestSpoiledFields(t *testing.T) {
	for _, c := range []struct {
		name, statement string
		call            func(context.Context, *sqlite.Store) error
	}{
		{"a credential moved to another column", "UPDATE account SET vpn_password = vpn_username", account1},
		{"a truncated credential", "UPDATE account SET vpn_username = x'00'", account1},
		{"a credential of another type", "UPDATE account SET devices = 'many'", account1},
		{"in a list", "UPDATE account SET vpn_username = x'00'", func(ctx context.Context, s *sqlite.Store) error {
			return s.EachAccount(ctx, func(account.Record) error { return nil })
		}},
		{"in a change", "UPDATE account SET vpn_username = x'00'", changes1},
		{"in a change's type", "UPDATE account SET paid_until = 1.5", changes1},
		{"in the snapshot", "UPDATE account SET vpn_username = x'00'", all1},
		{"in the snapshot's type", "UPDATE account SET paid_until = 1.5", all1},
		{"no counter", "DELETE FROM counter", all1},
		{"no table", "DROP TABLE change", changes1},
		{"a buried name", "UPDATE change SET account = NULL, vpn_username = x'00'", changes1},
		{"addresses", "INSERT INTO location VALUES (1, '', '', ''); INSERT INTO server VALUES ('a', 1, '{', '[]', '', '', 1)", directory1},
		{"no servers", "DROP TABLE server", directory1},
		{"no locations", "DROP TABLE server; DROP TABLE location", directory1},
		{"a location's id", "INSERT INTO location VALUES (70000, '', '', '')", directory1},
		{"the counter of changes", "DELETE FROM counter WHERE name = 'change'", func(ctx context.Context, s *sqlite.Store) error {
			return s.AddAccount(ctx, storetest.Record("eve"))
		}},
		{"the counter of notices", "DELETE FROM counter WHERE name = 'notice'", func(ctx context.Context, s *sqlite.Store) error {
			return s.AddAccount(ctx, storetest.Record("eve"))
		}},
		{"the counter of changes when a name is replaced", "DELETE FROM counter WHERE name = 'change'", func(ctx context.Context, s *sqlite.Store) error {
			return s.EditAccount(ctx, "id-ann", func(r *account.Record) error { r.Credential = storetest.Record("x").Credential; return nil })
		}},
		{"the counter of changes when a licence is extended", "DELETE FROM counter WHERE name = 'change'", func(ctx context.Context, s *sqlite.Store) error {
			return s.EditAccount(ctx, "id-ann", func(r *account.Record) error { r.Licence.PaidUntil++; return nil })
		}},
		{"the counter of locations", "DELETE FROM counter WHERE name = 'location'", func(ctx context.Context, s *sqlite.Store) error {
			_, err := s.AddLocation(ctx, location.Location{})
			return err
		}},
		{"no location table", "DROP TABLE server; DROP TABLE location", func(ctx context.Context, s *sqlite.Store) error {
			return s.AddServer(ctx, storetest.Server("nl-ams-1", 1))
		}},
		{"no batches", "DROP TABLE batch", usage1},
		{"no usage", "DROP TABLE usage", usage1},
		{"usage that takes nothing", "CREATE TRIGGER t BEFORE INSERT ON usage BEGIN SELECT RAISE(ABORT, 'no'); END", usage1},
		{"no usage to purge", "DROP TABLE usage", func(ctx context.Context, s *sqlite.Store) error {
			_, err := s.PurgeUsage(ctx, 1)
			return err
		}},
		{"no tokens", "DROP TABLE token", func(ctx context.Context, s *sqlite.Store) error {
			return s.AddToken(ctx, "id-ann", account.TokenHash{}, 1, 2, account.App{})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := sqlite.Open(t.Context(), file(made(t)), sqlite.Options{Key: key(1)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			if err := c.call(t.Context(), s); err != nil && !slices.Contains([]fault.Kind{fault.Invalid, fault.NotFound}, fault.Of(err)) {
				t.Fatalf("before: %v", err)
			}
			s2 := made(t)
			raw(t, s2, "PRAGMA ignore_check_constraints = 1; "+c.statement)
			s, err = sqlite.Open(t.Context(), file(s2), sqlite.Options{Key: key(1)})
			if c.statement == "DELETE FROM counter" || strings.Contains(c.statement, "'notice'") {
				// Open wants the counters too: take them away afterwards.
				dir := made(t)
				if s, err = sqlite.Open(t.Context(), file(dir), sqlite.Options{Key: key(1)}); err == nil {
					raw(t, dir, c.statement)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			if err := c.call(t.Context(), s); fault.Of(err) != fault.Internal || err == nil {
				t.Errorf("got %v (%v), want internal", err, fault.Of(err))
			}
		})
	}
}

func account1(ctx context.Context, s *sqlite.Store) error {
	_, err := s.Account(ctx, "id-ann")
	return err
}

func changes1(ctx context.Context, s *sqlite.Store) error {
	_, err := s.Changes(ctx, 10)
	return err
}

func all1(ctx context.Context, s *sqlite.Store) error {
	_, err := s.All(ctx, func(publish.Credential) error { return nil })
	return err
}

func directory1(ctx context.Context, s *sqlite.Store) error {
	_, err := s.Directory(ctx)
	return err
}

func usage1(ctx context.Context, s *sqlite.Store) error {
	r := usage.Record{Key: usage.Key{Country: "DE", Location: 1}}
	return errors.Join(s.AcceptUsage(ctx, "a", usage.Batch{ID: usage.NewBatchID(), Records: []usage.Record{r}}),
		func() error { _, err := s.UsageOf(ctx, usage.UserHash{}, 0, 1); return err }())
}

// TestLocations uses up every location number.
func TestLocations(t *testing.T) {
	dir := made(t)
	raw(t, dir, "UPDATE counter SET value = 65535 WHERE name = 'location'")
	s, err := open(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for range 2 {
		if id, err := s.AddLocation(t.Context(), location.Location{Code: "nl-ams", Country: "NL", City: "A"}); fault.Of(err) != fault.Invalid {
			t.Errorf("got location %d, %v", id, err)
		}
	}
}

// TestBusy holds the write lock as another program would.
func TestBusy(t *testing.T) {
	t.Parallel() // it waits five seconds
	dir := made(t)
	s, err := open(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	db, err := sql.Open("sqlite", file(dir)+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AddAccount(t.Context(), storetest.Record("ben")); fault.Of(err) != fault.Unavailable {
		t.Errorf("got %v, want unavailable", err)
	}
	if _, err := s.Account(t.Context(), "id-ann"); err != nil {
		t.Errorf("a reader waits for a writer: %v", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := s.AddAccount(t.Context(), storetest.Record("ben")); err != nil {
		t.Error(err)
	}
}
