// Package sqlite keeps the control plane's store in one SQLite file
// (modernc.org/sqlite, pure Go).
//
// [Open] opens three handles on the file: one connection that writes, a few
// that read, and one that watches for changes by other processes (the
// operator's commands run beside the service) and truncates the write-ahead
// log. The file is private (mode 0600), synced at every commit, and overwrites
// what it deletes (secure_delete). The write-ahead log would keep older states
// of pages and the order of transactions, so it is truncated after each one; when
// a reader is in the way it is tried again a quarter of a second later.
//
// What the file cannot hide: the file system knows when it was written last,
// and a disk may keep overwritten blocks; put it on an encrypted one.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	driver "modernc.org/sqlite"
	codes "modernc.org/sqlite/lib"

	"lethe/fault"
	"lethe/private"
	"lethe/store"
)

// Poll is how often the store looks for changes made by other processes.
const Poll = 250 * time.Millisecond

//go:embed migrations/*.sql
var migrations embed.FS

// Options say how to open a store.
type Options struct {
	Key private.Value[[32]byte] // data key that seals VPN credentials
	// Create makes the file; without it the file must be there.
	Create bool
}

// Store is a store in one SQLite file. It is safe for concurrent use, also by
// several processes.
type Store struct {
	write, read, watch *sql.DB
	seal               store.Sealer

	notify  chan struct{}
	stale   atomic.Bool        // the write-ahead log waits for truncation
	stop    context.CancelFunc // ends the watcher
	stopped sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

// Open opens the store at path and brings its schema up to date. It fails with
// fault.NotFound or fault.Conflict when the file is not there or there
// already, fault.Denied when others may read it, and fault.Internal with a text
// that says so when it is damaged, is not a Lethe store, is from a newer
// program or was sealed under another key.
func Open(ctx context.Context, path string, o Options) (*Store, error) {
	seal, err := store.NewSealer(o.Key)
	if err != nil {
		return nil, err
	}
	if err := prepare(path, o.Create); err != nil {
		return nil, err
	}
	s := &Store{seal: seal, notify: make(chan struct{}, 1)}
	for _, h := range []struct {
		db      **sql.DB
		conns   int
		options string
	}{
		{&s.write, 1, "&_txlock=immediate&_pragma=busy_timeout(5000)"},
		{&s.read, 4, "&_pragma=busy_timeout(5000)&_pragma=query_only(1)"},
		// The watcher gives way at once: it has time.
		{&s.watch, 1, "&_pragma=busy_timeout(20)"},
	} {
		// sql.Open does not touch the file and fails only for unknown drivers.
		*h.db, _ = sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=rw&_defensive=1"+
			"&_pragma=foreign_keys(1)&_pragma=secure_delete(1)&_pragma=synchronous(FULL)&_pragma=temp_store(MEMORY)"+
			"&_pragma=trusted_schema(0)"+h.options)
		(*h.db).SetMaxOpenConns(h.conns)
		(*h.db).SetMaxIdleConns(h.conns)
	}
	seen, err := s.begin(ctx, filepath.Dir(path))
	if err != nil {
		return nil, errors.Join(classify(err), s.closeHandles())
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.stopped.Go(func() { s.watchOver(watching, seen) })
	return s, nil
}

// prepare makes the file or checks that it is there and private. It never
// opens an existing one: closing it again would drop the locks of another
// handle in this process (fcntl(2)).
func prepare(path string, create bool) error {
	if create {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		switch {
		case errors.Is(err, fs.ErrExist):
			return fault.New(fault.Conflict, "there is a store already")
		case err != nil:
			return fault.Wrap(fault.Unavailable, "the store's file cannot be made", err)
		}
		return f.Close()
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "there is no store").WithHint("lethe-control init makes one")
	case err != nil:
		return fault.Wrap(fault.Unavailable, "the store's file cannot be looked at", err)
	case info.Mode().Perm()&0o077 != 0:
		return fault.New(fault.Denied, "other users may read the store's file").WithHint("chmod 600 it, and ask who did read it")
	}
	return nil
}

// Close stops the watcher and closes the file. Closing again does nothing.
func (s *Store) Close() error {
	s.stop()
	s.stopped.Wait()
	return s.closeHandles()
}

func (s *Store) closeHandles() error {
	return errors.Join(s.read.Close(), s.watch.Close(), s.write.Close())
}

// Check reads the whole file and reports damage as fault.Internal. It takes
// about a second per gigabyte.
func (s *Store) Check(ctx context.Context) error {
	var verdict string
	err := s.read.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&verdict)
	if err == nil && verdict != "ok" {
		return damaged(nil)
	}
	return classify(err)
}

// Notify implements [publish.Source].
func (s *Store) Notify() <-chan struct{} { return s.notify }

func (s *Store) poke() {
	select {
	case s.notify <- struct{}{}:
	default:
	}
}

// watchOver pokes the publisher when the count of notices has grown, whoever
// did it, and truncates the write-ahead log when that is due. An error means
// that the file is busy or in trouble, which the next call of somebody who can
// be told will meet as well.
func (s *Store) watchOver(ctx context.Context, seen int64) {
	tick := time.NewTicker(Poll)
	defer tick.Stop()
	var version int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.stale.Load() {
			s.truncate()
		}
		var v, n int64
		// data_version costs no read of the file and changes with every
		// commit of another connection.
		if err := s.watch.QueryRow("PRAGMA data_version").Scan(&v); err != nil || v == version {
			continue
		}
		if err := s.watch.QueryRow("SELECT value FROM counter WHERE name = 'notice'").Scan(&n); err != nil {
			continue
		}
		version = v
		if n != seen {
			seen = n
			s.poke()
		}
	}
}

// truncate moves the write-ahead log into the file and cuts it to nothing. It
// marks the log stale when somebody was in the way: the transaction itself is
// safe in any case.
func (s *Store) truncate() {
	var busy, frames, moved int
	err := s.watch.QueryRow("PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &moved)
	s.stale.Store(err != nil || busy != 0)
}

// change runs one writing transaction. When notice is true the publisher is
// told.
func (s *Store) change(ctx context.Context, notice bool, do func(*sql.Tx) error) error {
	if err := s.transact(ctx, notice, do); err != nil {
		return classify(err)
	}
	s.truncate()
	if notice {
		s.poke()
	}
	return nil
}

func (s *Store) transact(ctx context.Context, notice bool, do func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	if err := do(tx); err != nil {
		return err
	}
	if notice {
		if _, err := next(ctx, tx, "notice", 0); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// next raises a counter above what it was and above floor, and returns it.
func next(ctx context.Context, tx *sql.Tx, counter string, floor int64) (n int64, err error) {
	err = tx.QueryRowContext(ctx, `UPDATE counter SET value = CASE WHEN value < $2 THEN $2 ELSE value END + 1
		WHERE name = $1 RETURNING value`, counter, floor).Scan(&n)
	return n, err
}

// one fails with what when a statement touched no row.
func one(r sql.Result, err error, what *fault.Error) error {
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, what)
	}
	return nil
}

func damaged(cause error) error {
	return fault.Wrap(fault.Internal, "the store's file is damaged", cause).
		WithHint("stop lethe-control and restore the file from a backup")
}

// full is told to customers too, who cannot free space.
func full(cause error) error {
	return fault.Wrap(fault.Full, "the service's disk is full", cause).WithHint("nothing was changed; try again later")
}

// classify gives an error of the driver its kind. Its text stays inside: it
// may name what a row held.
func classify(err error) error {
	var callers *verbatim
	var known *fault.Error
	var e *driver.Error
	switch {
	case errors.As(err, &callers):
		return callers.error
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return fault.Wrap(fault.Unavailable, "the store was interrupted", err)
	case !errors.As(err, &e):
		return fault.Wrap(fault.Internal, "the store does not work", err)
	}
	switch e.Code() {
	case codes.SQLITE_CONSTRAINT_UNIQUE, codes.SQLITE_CONSTRAINT_PRIMARYKEY:
		return fault.Wrap(fault.Conflict, "it exists already", err)
	case codes.SQLITE_CONSTRAINT_FOREIGNKEY:
		return fault.Wrap(fault.Conflict, "it is still in use", err)
	case codes.SQLITE_INTERRUPT:
		return fault.Wrap(fault.Unavailable, "the store was interrupted", err)
	case codes.SQLITE_IOERR_SHMSIZE: // no room for the index of the log
		return full(err)
	}
	switch e.Code() & 0xff {
	case codes.SQLITE_FULL:
		return full(err)
	case codes.SQLITE_CORRUPT, codes.SQLITE_NOTADB:
		return damaged(err)
	case codes.SQLITE_BUSY, codes.SQLITE_LOCKED:
		return fault.Wrap(fault.Unavailable, "the store is busy", err)
	case codes.SQLITE_READONLY, codes.SQLITE_CANTOPEN, codes.SQLITE_PERM, codes.SQLITE_IOERR:
		return fault.Wrap(fault.Unavailable, "the store's file cannot be read or written", err)
	default:
		return fault.Wrap(fault.Internal, "the store does not work", err)
	}
}
