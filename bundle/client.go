package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"sync"
	"time"

	"lethe/fault"
)

// Fetcher gets published bytes from wherever they are. Get fails with
// fault.NotFound when there is nothing under that path and should not start a
// transfer that it knows to be larger than max; the [Client] counts the bytes
// itself in any case.
type Fetcher interface {
	Get(ctx context.Context, path string, max int64) (io.ReadCloser, error)
}

// Rebuild writes the content of f, made from what the server holds already, to
// w and reports whether it could. have is nil before the first Set. What it
// wrote is verified like a download; when it could not, failed or wrote
// something else, the file is downloaded.
type Rebuild func(f File, have *Set, w io.Writer) bool

// Config is what a [Client] needs.
type Config struct {
	Root    []byte           // enveloped root to start from
	Seal    SealKey          // opens sealed files
	Floor   Floor            // what came with the image; the zero Floor insists on nothing
	Fetch   Fetcher          // where bundles come from
	Rebuild Rebuild          // optional
	Now     func() time.Time // nil means time.Now
}

// Client keeps one server's Set up to date. It is safe for concurrent use;
// updates run one at a time.
type Client struct {
	root    []byte // enveloped, where trust began
	fetch   Fetcher
	seal    SealKey
	rebuild Rebuild

	mu         sync.Mutex
	trust      *Trust
	current    *Set               // nil before the first; the client holds one reference
	staged     map[Digest]*memory // files of a failed update, held for the next try
	statements statements         // that led to trust's root and to current
	unkept     bool               // statements have changed since the last Keep
	kept       map[string]bool    // names that a Keeper has
}

// NewClient returns a client that trusts cfg.Root.
func NewClient(cfg Config) (*Client, error) {
	trust, err := NewTrust(cfg.Root, cfg.Floor, cfg.Now)
	if err != nil {
		return nil, err
	}
	return &Client{root: cfg.Root, fetch: cfg.Fetch, seal: cfg.Seal, rebuild: cfg.Rebuild, trust: trust,
		staged: map[Digest]*memory{}, statements: statements{Roots: [][]byte{}}, kept: map[string]bool{}}, nil
}

// Current returns the Set in use with a reference of the caller's own, or nil
// before the first successful update.
func (c *Client) Current() *Set {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return nil
	}
	return c.current.Retain()
}

// Update looks for a newer bundle. When there is one and all of it verifies,
// it becomes the Set in use and is returned with a reference of the caller's
// own and true. When nothing is new it returns nil, false and no error.
//
// On an error the Set in use stays. Kinds: fault.Unavailable (the source does
// not answer or breaks off), fault.NotFound (the source lacks a part),
// fault.Untrusted and fault.Expired (refused, with a [Reason]), fault.Full (no
// memory). What was fetched completely is kept for the next try, so a slow line
// makes progress. The caller bounds the time by ctx.
func (c *Client) Update(ctx context.Context) (set *Set, changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.walk(ctx); err != nil {
		return nil, false, err
	}
	fresh, err := c.get(ctx, FreshnessPath, MaxFreshnessSize)
	if err != nil {
		return nil, false, err
	}
	f, err := c.trust.Freshness(fresh)
	if err != nil || c.trust.InUse(f) {
		return nil, false, err
	}
	manifest, err := c.get(ctx, ManifestPath(f.Version), MaxManifestSize)
	if err != nil {
		return nil, false, err
	}
	m, err := c.trust.Manifest(manifest, f)
	if err != nil {
		return nil, false, err
	}
	next, err := c.assemble(ctx, m)
	if err != nil {
		return nil, false, err
	}
	c.trust.Accept(f)
	if c.current != nil {
		_ = c.current.Close()
	}
	c.current = next
	c.statements.Freshness, c.statements.Manifest, c.unkept = fresh, manifest, true
	return next.Retain(), true, nil
}

// Close drops the client's own references. Sets that callers hold stay valid.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unstage(nil)
	if c.current != nil {
		_ = c.current.Close()
		c.current = nil
	}
	return nil
}

// walk takes every newer root there is.
func (c *Client) walk(ctx context.Context) error {
	for range MaxRotations {
		b, err := c.get(ctx, RootPath(c.trust.Root().Version+1), MaxRootSize)
		if errors.Is(err, fault.New(fault.NotFound, "")) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := c.trust.Rotate(b); err != nil {
			return err
		}
		// A manifest whose keys the new root withdraws is not restored.
		c.statements.Roots, c.unkept = append(c.statements.Roots, b), true
	}
	return nil
}

// get fetches a small object whole.
func (c *Client) get(ctx context.Context, path string, limit int64) ([]byte, error) {
	body, err := c.fetch.Get(ctx, path, limit)
	if err != nil {
		return nil, unavailable(err)
	}
	defer body.Close()
	b, err := io.ReadAll(&limited{body, limit})
	if err != nil {
		return nil, unavailable(err)
	}
	return b, nil
}

// unavailable classifies an error of the source, unless it has a kind.
func unavailable(err error) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	return fault.Wrap(fault.Unavailable, "bundle: the source broke off or did not answer", err)
}

// limited reads at most left bytes and refuses more.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, refuse(TooLarge, nil)
	}
	return n, err
}

// assemble makes the Set of m out of what is held, what can be rebuilt and
// what must be downloaded.
func (c *Client) assemble(ctx context.Context, m Manifest) (*Set, error) {
	held := map[Digest]*memory{}
	if c.current != nil {
		for _, f := range c.current.Files() {
			_, digest := f.Content()
			held[digest] = c.current.files[f.Name]
		}
	}
	wanted := map[Digest]bool{}
	for _, f := range m.Files {
		_, digest := f.Content()
		wanted[digest] = true
	}
	c.unstage(wanted)
	for _, f := range m.Files {
		size, digest := f.Content()
		if held[digest] != nil || c.staged[digest] != nil {
			continue
		}
		content, err := c.obtain(ctx, f, size, digest)
		if err != nil {
			return nil, err
		}
		c.staged[digest] = content
	}
	set := &Set{manifest: m, files: make(map[string]*memory, len(m.Files))}
	set.refs.Store(1)
	for _, f := range m.Files {
		_, digest := f.Content()
		content := held[digest]
		if content == nil {
			content = c.staged[digest]
		}
		if size, _ := f.Content(); int64(len(content.data)) != size {
			_ = set.Close()
			return nil, refuse(WrongSize, nil)
		}
		set.files[f.Name] = content.retain()
	}
	c.unstage(nil)
	return set, nil
}

// unstage drops the staged files that are not wanted.
func (c *Client) unstage(wanted map[Digest]bool) {
	for digest, m := range c.staged {
		if !wanted[digest] {
			m.release()
			delete(c.staged, digest)
		}
	}
}

// obtain rebuilds or downloads the content of one file.
func (c *Client) obtain(ctx context.Context, f File, size int64, digest Digest) (*memory, error) {
	if c.rebuild != nil {
		errNot := errors.New("not rebuilt")
		content, err := newMemory(size, func(w io.Writer) error {
			sum := sha256.New()
			if !c.rebuild(f, c.current, io.MultiWriter(w, sum)) || Digest(sum.Sum(nil)) != digest {
				return errNot
			}
			return nil
		})
		if err == nil {
			return content, nil
		}
	}
	return newMemory(size, func(w io.Writer) error { return c.download(ctx, f, digest, w) })
}

// download writes the verified content of f to w. Nothing is believed before
// the last byte: w is memory that nobody sees until this returns nil.
func (c *Client) download(ctx context.Context, f File, digest Digest, w io.Writer) error {
	body, err := c.fetch.Get(ctx, FilePath(f.SHA256), f.Size)
	if err != nil {
		return unavailable(err)
	}
	defer body.Close()
	stored, plain := sha256.New(), sha256.New()
	counted := &limited{body, f.Size}
	var src io.Reader = io.TeeReader(counted, stored)
	if f.Sealed {
		src = Open(c.seal, digest, src)
	}
	buf := make([]byte, chunkSize)
	if _, err := io.CopyBuffer(io.MultiWriter(w, plain), struct{ io.Reader }{src}, buf); err != nil {
		return unavailable(err)
	}
	switch {
	case counted.left != 0:
		return refuse(WrongSize, nil)
	case Digest(stored.Sum(nil)) != f.SHA256:
		return refuse(WrongDigest, nil)
	case Digest(plain.Sum(nil)) != digest:
		return refuse(WrongContent, nil)
	}
	return nil
}
