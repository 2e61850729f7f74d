package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lethe/fault"
	"lethe/image/deb"
	"lethe/image/lock"
	"lethe/image/store"
)

// summary is what lock and fetch tell with --json.
type summary struct {
	Changed  bool             `json:"changed"`            // the lock is another than before
	Packages int              `json:"packages"`           // binary packages
	Sources  int              `json:"sources"`            // source packages
	Modules  int              `json:"modules"`            // Go modules, the toolchain among them
	Bytes    map[string]int64 `json:"bytes"`              // of packages, by set
	Differ   []string         `json:"differ,omitempty"`   // packages that are new, gone or of another version
	Files    int64            `json:"files,omitempty"`    // in the store, verified
	Size     int64            `json:"size,omitempty"`     // of those, in bytes
	Mended   int64            `json:"mended,omitempty"`   // files of the store that were damaged
	Duration float64          `json:"duration,omitempty"` // seconds
}

func summarise(l *lock.Lock, plan lock.Plan) summary {
	s := summary{Packages: len(l.Packages), Sources: len(l.Sources), Modules: len(l.Modules), Bytes: map[string]int64{}}
	for _, set := range plan.Sets {
		s.Bytes[set.Name] = l.Bytes(set.Name)
	}
	return s
}

// lock makes the lock and writes it when it is another one.
func (p *program) lock(ctx context.Context) error {
	began := time.Now()
	root, err := p.root()
	if err != nil {
		return err
	}
	old, text, sum, err := load(root)
	if err != nil {
		return err
	}
	ring, err := os.ReadFile(p.keyring)
	if err != nil {
		return fault.Wrap(fault.NotFound, "there are no keys of the archive in "+p.keyring, err).WithHint("apt-get install debian-archive-keyring, or name a file with --keyring")
	}
	keys, err := deb.ReadKeyring(ring)
	if err != nil {
		return fault.Wrap(fault.Invalid, p.keyring+" holds no OpenPGP keys", err).WithHint("apt-get install debian-archive-keyring, or name a file with --keyring")
	}
	s, err := p.open()
	if err != nil {
		return err
	}
	defer s.Close()
	progress := p.progress()
	defer progress.stop()
	maker := lock.Maker{Plan: p.m.Plan, Store: s, Net: p.network(), Keys: keys, SumDB: p.m.SumDB, GoSum: sum, Now: p.m.Now(), Say: progress.say}
	l, err := maker.Make(ctx, old)
	if err != nil {
		return err
	}
	progress.stop()
	out := summarise(l, p.m.Plan)
	if again := l.Text(); !bytes.Equal(again, text) {
		out.Changed, out.Differ = true, differ(old, l)
		if err := replace(filepath.Join(root, lock.FileName), again); err != nil {
			return err
		}
	}
	out.Duration = time.Since(began).Seconds()
	line := lock.FileName + " is up to date"
	if out.Changed {
		line = fmt.Sprintf("%s: %d packages are other ones", lock.FileName, len(out.Differ))
	}
	if old == nil {
		line = lock.FileName + " is new"
	}
	line += fmt.Sprintf("\n%d packages, %d source packages, %d Go modules", out.Packages, out.Sources, out.Modules)
	for _, set := range p.m.Plan.Sets {
		line += fmt.Sprintf("\n%-10s %s of packages", set.Name, megabytes(out.Bytes[set.Name]))
	}
	return p.print(out, line)
}

// differ lists the packages that are not the same in both.
func differ(old, l *lock.Lock) (names []string) {
	if old == nil {
		return nil
	}
	had := map[string]deb.Digest{}
	for _, p := range old.Packages {
		had[p.Name] = p.File.SHA256
	}
	for _, p := range l.Packages {
		if had[p.Name] != p.File.SHA256 {
			names = append(names, p.Name)
		}
		delete(had, p.Name)
	}
	for _, p := range old.Packages {
		if _, gone := had[p.Name]; gone {
			names = append(names, p.Name)
		}
	}
	return names
}

// replace writes a file whole or not at all.
func replace(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".image.lock-*")
	if err == nil {
		_, err = f.Write(b)
		err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
		if err == nil {
			err = os.Rename(f.Name(), path)
		}
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}
	switch {
	case errors.Is(err, unix.ENOSPC):
		return fault.Wrap(fault.Full, "the disk of the tree is full", err).WithHint("make room and repeat")
	case err != nil:
		return fault.Wrap(fault.Denied, lock.FileName+" cannot be written", err).WithHint("may you write to the tree?")
	}
	return nil
}

// fetch fills the store.
func (p *program) fetch(ctx context.Context) error {
	began := time.Now()
	l, err := p.current()
	if err != nil {
		return err
	}
	s, err := p.open()
	if err != nil {
		return err
	}
	defer s.Close()
	done, err := p.fill(ctx, s, l)
	if err != nil {
		return err
	}
	out := summarise(l, p.m.Plan)
	out.Files, out.Size, out.Mended, out.Duration = done.Files.Load(), done.AllBytes, done.Mended.Load(), time.Since(began).Seconds()
	line := fmt.Sprintf("the store is complete: %d files, %s, all verified", out.Files, megabytes(out.Size))
	if out.Mended > 0 {
		line += fmt.Sprintf("\n%d damaged files were fetched anew", out.Mended)
	}
	return p.print(out, line)
}

// fill brings what the lock names into the store, and shows how far it is.
func (p *program) fill(ctx context.Context, s *store.Store, l *lock.Lock) (*lock.Progress, error) {
	progress := p.progress()
	defer progress.stop()
	f := lock.Fetcher{Store: s, Net: p.network(), Sources: p.sources}
	done, err := f.Fetch(ctx, l, func(now *lock.Progress) {
		progress.live(func() string {
			return fmt.Sprintf("fetching: %d of %d files, %s of %s", now.Files.Load(), now.AllFiles, megabytes(now.Bytes.Load()), megabytes(now.AllBytes))
		})
	})
	var e *fault.Error
	if fault.Of(err) == fault.NotFound && errors.As(err, &e) {
		err = e.WithHint("the archive drops what it has replaced: make the lock anew (lethe-image lock), or name a mirror that keeps it (--mirror)")
	}
	return done, err
}

// current returns the tree's lock, which must be there and fit the tree.
func (p *program) current() (*lock.Lock, error) {
	root, err := p.root()
	if err != nil {
		return nil, err
	}
	l, _, sum, err := load(root)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, fault.New(fault.NotFound, "the tree has no "+lock.FileName).WithHint("make it: lethe-image lock")
	}
	return l, l.CheckGoSum(sum)
}

// prune removes what the lock does not name.
func (p *program) prune() error {
	l, err := p.current()
	if err != nil {
		return err
	}
	s, err := p.open()
	if err != nil {
		return err
	}
	defer s.Close()
	files, size, err := s.Prune(l.Keeps())
	if err != nil {
		return err
	}
	return p.print(map[string]int64{"files": int64(files), "size": size}, fmt.Sprintf("removed %d files, %s", files, megabytes(size)))
}

// progress tells on standard error what a slow command does.
type progress struct {
	mu   sync.Mutex
	text func() string
	last string
	done chan struct{}
	idle chan struct{} // closed when nothing is written any more
}

// progress begins to tell, once the command turns out to be slow.
func (p *program) progress() *progress {
	g := &progress{text: func() string { return "" }, done: make(chan struct{}), idle: make(chan struct{})}
	go func() {
		defer close(g.idle)
		tick := time.NewTicker(p.m.Slow)
		defer tick.Stop()
		for {
			select {
			case <-g.done:
				return
			case <-tick.C:
				g.tell(p.stderr)
			}
		}
	}()
	return g
}

func (g *progress) tell(w io.Writer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if text := g.text(); text != g.last {
		g.last = text
		fmt.Fprintln(w, text)
	}
}

func (g *progress) say(step string) { g.live(func() string { return step }) }

func (g *progress) live(text func() string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.text = text
}

// stop ends the telling; it may be called again.
func (g *progress) stop() {
	g.mu.Lock()
	select {
	case <-g.done:
	default:
		close(g.done)
	}
	g.mu.Unlock()
	<-g.idle
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
