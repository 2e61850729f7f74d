package publish

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"lethe/authdb"
	"lethe/bundle"
	"lethe/event"
	"lethe/fault"
	"lethe/private"
)

// Config is what a [Publisher] needs. Durations left at zero take their
// default.
type Config struct {
	Dir    string // directory to publish into; made when it is missing
	Source Source

	Roots   [][]byte                      // enveloped roots in ascending version without a gap; the last one is in force
	Signers []bundle.Signer               // sign manifests: at least the config threshold of the last root
	Fresh   []bundle.Signer               // sign freshness statements: at least the fresh threshold
	Seal    bundle.SealKey                // seals files; servers have it among their secrets
	HashKey private.Value[authdb.HashKey] // hashes user names; another key than last time means a full rebuild

	GeoIP string // path of a MaxMind DB file, or empty for none
	Spec  string // path of the node specification, or empty for spec.Default

	Coalesce      time.Duration // how long changes gather; default 1 s
	FreshEvery    time.Duration // between freshness statements; default 5 min
	FreshLife     time.Duration // how long one lives; default 20 min
	ManifestEvery time.Duration // between manifests when nothing changes; default 24 h
	ManifestLife  time.Duration // how long servers work without news; default 72 h
	Settle        time.Duration // by when every healthy server has polled; default 90 s
	Keep          int           // how many manifests stay published at least; default 8
	KeepFor       time.Duration // how long a replaced manifest stays published at least; default 1 h

	Now func() time.Time // nil means time.Now
	Log *event.Logger
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.Coalesce, time.Second}, {&c.FreshEvery, 5 * time.Minute}, {&c.FreshLife, 20 * time.Minute},
		{&c.ManifestEvery, 24 * time.Hour}, {&c.ManifestLife, 72 * time.Hour}, {&c.Settle, 90 * time.Second},
		{&c.KeepFor, time.Hour},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.Keep == 0 {
		c.Keep = 8
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Publisher publishes bundles. One process at a time may publish into a
// directory; New takes a lock on it.
type Publisher struct {
	cfg   Config
	trust *bundle.Trust // verifies what we publish, with the eyes of a server
	disk  disk
	lock  interface{ Close() error }

	mu       sync.Mutex
	manifest bundle.Manifest // published last; version 0 before the first
	digest   bundle.Digest   // of its envelope
	newest   uint64          // highest version in the directory, published or not
	made     time.Time       // when manifest was made, by our clock; zero after a start
	freshAt  time.Time       // when its last freshness statement was signed; zero after a start
	swept    time.Time       // when the directory was last tidied
	acked    uint64          // highest sequence number acknowledged to the source since the start
	segments []segment       // of the manifest, oldest first, open
	seam     int             // segments before it have been listed unchanged since seamAt
	seamAt   time.Time
	inputs   map[string]input // the other files by name
}

// segment is one listed segment: the file of the manifest and its rows.
type segment struct {
	file bundle.File
	*authdb.Segment
}

func parts(segments []segment) []authdb.Part {
	var p []authdb.Part
	for _, s := range segments {
		p = append(p, s.Part())
	}
	return p
}

// New checks the configuration, takes the directory's lock, publishes the
// roots and recovers what was published last. What is missing or damaged in the
// directory is rebuilt by the first [Publisher.Publish]; keys that do not meet
// the root's thresholds are an error here, not a surprise on servers.
func New(cfg Config) (*Publisher, error) {
	cfg = cfg.withDefaults()
	p := &Publisher{cfg: cfg, disk: directory(cfg.Dir), inputs: map[string]input{}}
	if err := p.checkRoots(); err != nil {
		return nil, err
	}
	lock, err := lockDirectory(cfg.Dir)
	if err != nil {
		return nil, err
	}
	p.lock = lock
	for _, root := range cfg.Roots {
		r, _ := bundle.Inspect[bundle.Root](root) // checkRoots has read it
		path := bundle.RootPath(r.Version)
		if b, err := readAll(cfg.Dir, path); err == nil && bytes.Equal(b, root) {
			continue // nothing is written, so that a full disk does not stop a start
		}
		if err := p.disk.put(whole(path, root)); err != nil {
			return nil, errors.Join(err, lock.Close())
		}
	}
	if err := p.recover(); err != nil {
		p.forget()
		if fault.Of(err) != fault.NotFound { // an empty directory is no trouble
			p.log(event.Trouble{Part: event.Publisher, Kind: fault.Of(err)})
		}
	}
	return p, nil
}

// checkRoots walks the roots as a server does and tries our keys against the
// last one.
func (p *Publisher) checkRoots() error {
	if len(p.cfg.Roots) == 0 {
		return fault.New(fault.Invalid, "publisher: no root to publish under")
	}
	trust, err := bundle.NewTrust(p.cfg.Roots[0], bundle.Floor{}, p.cfg.Now)
	for _, next := range p.cfg.Roots[1:] {
		if err == nil {
			err = trust.Rotate(next)
		}
	}
	if err != nil {
		return fault.Wrap(fault.Invalid, "publisher: the roots do not follow each other", err)
	}
	p.trust = trust
	now := p.now()
	try := bundle.Manifest{Version: 1, Issued: now, Expires: now.Add(time.Hour), Files: []bundle.File{{Name: "try", Size: 1}}}
	if _, _, _, err := p.sign(try, now); err != nil {
		return fault.Wrap(fault.Invalid, "publisher: the keys do not meet the thresholds of the root, or it has expired", err)
	}
	return nil
}

// sign signs a manifest and a freshness statement and reads both as a server
// does.
func (p *Publisher) sign(m bundle.Manifest, now time.Time) (manifest, freshness []byte, digest bundle.Digest, err error) {
	if manifest, err = bundle.Sign(m, p.cfg.Signers...); err != nil {
		return nil, nil, digest, err
	}
	digest = sha256.Sum256(manifest)
	f := bundle.Freshness{Version: m.Version, Manifest: digest, Issued: now, Expires: now.Add(p.cfg.FreshLife)}
	if freshness, err = bundle.Sign(f, p.cfg.Fresh...); err != nil {
		return nil, nil, digest, err
	}
	if f, err = p.trust.Freshness(freshness); err == nil {
		_, err = p.trust.Manifest(manifest, f)
	}
	return manifest, freshness, digest, err
}

// now returns the time in the form of statements.
func (p *Publisher) now() time.Time { return p.cfg.Now().UTC().Truncate(time.Second) }

func (p *Publisher) log(e event.Event) { p.cfg.Log.Log(e) }

// Version returns the version published last, 0 before the first.
func (p *Publisher) Version() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.manifest.Version
}

// Run publishes what there is, then whenever the source notifies and on
// schedule, until ctx ends. Failures are logged by kind and tried again: what
// was published stays published meanwhile.
func (p *Publisher) Run(ctx context.Context) error {
	p.log(event.Started{Part: event.Publisher})
	defer p.log(event.Stopped{Part: event.Publisher})
	wait := time.Duration(0)
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-p.cfg.Source.Notify():
			timer.Reset(p.cfg.Coalesce) // Go 1.23 and later need no draining
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-timer.C:
			}
		case <-timer.C:
		}
		wait = p.cfg.FreshEvery / 2
		if _, err := p.Publish(ctx); err != nil && ctx.Err() == nil {
			p.log(event.Trouble{Part: event.Publisher, Kind: fault.Of(err)})
			wait = min(wait, 10*time.Second)
		}
	}
}

// Close releases the directory and the memory. The last bundle stays
// published.
func (p *Publisher) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget()
	return p.lock.Close()
}

// forget drops what is known of the published bundle, so that the next one is
// built from the whole source.
func (p *Publisher) forget() {
	for _, s := range p.segments {
		s.Close()
	}
	p.segments, p.seam = nil, 0
}
