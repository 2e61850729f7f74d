package sqlite

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"

	"lethe/fault"
	"lethe/private"
)

// applicationID stands in the file's header ("LETH"), see PRAGMA
// application_id.
const applicationID = 0x4c455448

// begin checks that the file is ours, brings the schema up to date and checks
// the key. It returns the count of notices so far.
func (s *Store) begin(ctx context.Context, dir string) (notices int64, err error) {
	unlock, err := lock(dir)
	if err != nil {
		return 0, err
	}
	defer unlock()
	var id, tables int64
	err = s.write.QueryRowContext(ctx, `SELECT (SELECT application_id FROM pragma_application_id),
		(SELECT count(*) FROM sqlite_schema)`).Scan(&id, &tables)
	if err != nil {
		return 0, err
	}
	if id != applicationID && tables > 0 {
		return 0, fault.New(fault.Internal, "the file is not a Lethe store")
	}
	if _, err := s.write.ExecContext(ctx, "PRAGMA journal_mode = WAL"); err != nil {
		return 0, err
	}
	if err := s.migrate(ctx); err != nil {
		return 0, err
	}
	if err := s.checkKey(ctx); err != nil {
		return 0, err
	}
	err = s.watch.QueryRowContext(ctx, "SELECT value FROM counter WHERE name = 'notice'").Scan(&notices)
	return notices, err
}

// lock keeps two programs from migrating at once. It locks the directory: a
// lock on the file itself could drop SQLite's.
func lock(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return func() { _ = d.Close() }, nil // read-only: nothing can be lost
}

func (s *Store) migrate(ctx context.Context) error {
	files, err1 := fs.Sub(migrations, "migrations")
	p, err2 := goose.NewProvider(database.DialectCustom, s.write, files, goose.WithStore(versions{}),
		goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	have, newest, err := p.GetVersions(ctx)
	if err != nil {
		return err
	}
	if have > newest {
		return fault.New(fault.Internal, "the store is from a newer program").WithHint("run that program, or restore a backup from before")
	}
	_, err = p.Up(ctx)
	return err
}

const (
	keyCheckPlace = "seal/check"
	keyCheckText  = "the data key of this store"
)

// checkKey compares the data key with the one that the store was made with.
func (s *Store) checkKey(ctx context.Context) error {
	want := private.Of(keyCheckText)
	_, err := s.write.ExecContext(ctx, "INSERT INTO seal (name, value) VALUES ('check', $1) ON CONFLICT DO NOTHING",
		s.seal.Seal(keyCheckPlace, want))
	if err != nil {
		return err
	}
	var sealed []byte
	if err := s.write.QueryRowContext(ctx, "SELECT value FROM seal WHERE name = 'check'").Scan(&sealed); err != nil {
		return err
	}
	got, err := s.seal.Open(keyCheckPlace, sealed)
	if err != nil || subtle.ConstantTimeCompare([]byte(got.Reveal()), []byte(keyCheckText)) != 1 {
		return fault.Wrap(fault.Internal, "the data key does not fit the store", err).
			WithHint("data.key must be the one that the store was made with")
	}
	return nil
}

// versions keeps goose's schema version in PRAGMA user_version. Goose's own
// table would hold the time of every migration.
type versions struct{}

var _ database.StoreExtender = versions{}

func (versions) Tablename() string { return "user_version" }

// CreateVersionTable is not called: the table is always there.
func (versions) CreateVersionTable(context.Context, database.DBTxConn) error {
	return database.ErrNotImplemented
}

func (versions) TableExists(context.Context, database.DBTxConn) (bool, error) { return true, nil }

func (versions) Insert(ctx context.Context, db database.DBTxConn, r database.InsertRequest) error {
	_, err := db.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", r.Version))
	return err
}

// Delete is not called: Lethe does not migrate down, it restores a backup.
func (versions) Delete(context.Context, database.DBTxConn, int64) error {
	return database.ErrNotImplemented
}

func (versions) GetLatestVersion(ctx context.Context, db database.DBTxConn) (n int64, err error) {
	err = db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&n)
	return n, err
}

// GetMigration is not called: it is for reports of when a migration ran.
func (versions) GetMigration(context.Context, database.DBTxConn, int64) (*database.GetMigrationResult, error) {
	return nil, database.ErrNotImplemented
}

func (v versions) ListMigrations(ctx context.Context, db database.DBTxConn) (l []*database.ListMigrationsResult, err error) {
	n, err := v.GetLatestVersion(ctx, db)
	for ; n >= 0 && err == nil; n-- {
		l = append(l, &database.ListMigrationsResult{Version: n, IsApplied: true})
	}
	return l, err
}

// snapshot runs do in one reading transaction.
func (s *Store) snapshot(ctx context.Context, do func(*sql.Tx) error) error {
	tx, err := s.read.BeginTx(ctx, nil)
	if err != nil {
		return classify(err)
	}
	defer func() { _ = tx.Rollback() }()
	return classify(do(tx))
}
