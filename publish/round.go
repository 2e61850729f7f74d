package publish

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"lethe/authdb"
	"lethe/bundle"
	"lethe/event"
	"lethe/fault"
	"lethe/memfd"
)

// changesAtOnce bounds the memory of one round; more changes take more rounds.
const changesAtOnce = 1 << 18

// Publish publishes everything that has changed and renews the freshness
// statement when it is due. It returns the version that is published
// afterwards.
//
// An error with a version greater than before means that something is published but
// a part of it is the last good one: a GeoIP file, directory or specification
// that is not valid never stops credentials. Any other error leaves the last bundle as
// it was and no change acknowledged that is not published. Kinds: fault.Full
// (disk), fault.Invalid (an input), fault.Expired (the root), or the source's.
func (p *Publisher) Publish(ctx context.Context) (version uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		stale := p.refresh(ctx)
		if stale != nil && !p.complete() {
			return p.manifest.Version, stale
		}
		more, err := p.round(ctx)
		if err != nil {
			return p.manifest.Version, err
		}
		if !more {
			return p.manifest.Version, errors.Join(stale, p.sweep())
		}
	}
}

// round publishes at most changesAtOnce changes and reports whether there may
// be more.
func (p *Publisher) round(ctx context.Context) (more bool, err error) {
	var changes []Change
	if p.segments != nil { // else everything is read anyway
		if changes, err = p.cfg.Source.Changes(ctx, changesAtOnce); err != nil {
			return false, err
		}
	}
	now := p.now()
	first := p.made.IsZero()
	if !first && len(changes) == 0 && p.acked >= p.last() && now.Before(p.made.Add(p.cfg.ManifestEvery)) && !p.inputsChanged() {
		return false, p.renew(now)
	}
	version, err := p.cfg.Source.NextVersion(ctx, 0)
	if err != nil {
		return false, err
	}
	if version <= p.newest {
		// The directory is ahead of the store, which was set back to a backup. What
		// was published holds changes that the store no longer knows, and its
		// sequence numbers mean other changes now.
		p.forget()
		if version, err = p.cfg.Source.NextVersion(ctx, p.newest); err != nil {
			return false, err
		}
	}
	next, sequence, err := p.nextSegments(ctx, changes, now)
	if err != nil {
		return false, err
	}
	if err := p.issue(version, next, now); err != nil {
		next.discard(p.segments)
		return false, err
	}
	if err := p.cfg.Source.Published(ctx, sequence); err != nil {
		return false, err // it is published; the next round acknowledges it
	}
	p.acked = sequence
	return len(changes) == changesAtOnce, nil
}

// last returns the sequence number up to which changes are published.
func (p *Publisher) last() uint64 {
	if len(p.segments) == 0 {
		return 0
	}
	return p.segments[len(p.segments)-1].Head().To
}

// inputsChanged reports whether the files besides the segments differ from
// those published.
func (p *Publisher) inputsChanged() bool {
	return !reflect.DeepEqual(p.files(p.segments), p.manifest.Files)
}

// files returns the manifest's list.
func (p *Publisher) files(segments []segment) []bundle.File {
	var files []bundle.File
	for _, s := range segments {
		files = append(files, s.file)
	}
	for _, i := range p.inputs {
		files = append(files, i.file)
	}
	slices.SortFunc(files, func(a, b bundle.File) int { return strings.Compare(a.Name, b.Name) })
	return files
}

// issue writes a manifest and then its freshness statement, and takes both
// over as what is published.
func (p *Publisher) issue(version uint64, next list, now time.Time) error {
	// The hour is enough for servers and tells less about when somebody signed up.
	issued := now.Truncate(time.Hour)
	m := bundle.Manifest{Version: version, Issued: issued, Expires: issued.Add(p.cfg.ManifestLife), Files: p.files(next.segments)}
	manifest, freshness, digest, err := p.sign(m, now)
	if err != nil {
		return err
	}
	p.newest = version
	if err := p.disk.put(whole(bundle.ManifestPath(version), manifest)); err != nil {
		return err
	}
	if err := p.disk.put(whole(bundle.FreshnessPath, freshness)); err != nil {
		return err
	}
	old := p.segments
	p.manifest, p.digest, p.made, p.freshAt = m, digest, now, now
	p.segments, p.seam, p.seamAt = next.segments, next.seam, next.seamAt
	list{segments: old}.discard(p.segments)
	p.log(event.Published{Version: version})
	return nil
}

// renew signs a new freshness statement for the published manifest when the
// last one is half as old as it may get.
func (p *Publisher) renew(now time.Time) error {
	if now.Before(p.freshAt.Add(p.cfg.FreshEvery / 2)) {
		return nil
	}
	f := bundle.Freshness{Version: p.manifest.Version, Manifest: p.digest, Issued: now, Expires: now.Add(p.cfg.FreshLife)}
	b, err := bundle.Sign(f, p.cfg.Fresh...)
	if err == nil {
		_, err = p.trust.Freshness(b)
	}
	if err == nil {
		err = p.disk.put(whole(bundle.FreshnessPath, b))
	}
	if err == nil {
		p.freshAt = now
	}
	return err
}

// list is what the next manifest lists of the authentication database.
//
// Segments before the seam have been listed, cut as they are, since seamAt; the
// one after it, if any, is the open delta, which every round replaces by a
// longer one. When all healthy servers have had the time to poll since seamAt,
// those before the seam are merged as authdb.Plan says, which servers can repeat
// with what they hold, and the seam moves behind the open delta. Without the
// seam, changes that come every second would be merged before most servers have
// seen the parts, and each new base would be a download of the whole.
type list struct {
	segments []segment
	seam     int
	seamAt   time.Time
}

// discard closes the segments that are not in keep.
func (l list) discard(keep []segment) {
	for _, s := range l.segments {
		if !slices.ContainsFunc(keep, func(k segment) bool { return k.Segment == s.Segment }) {
			s.Close()
		}
	}
}

// nextSegments makes the list that publishes the changes, and the highest
// sequence number in it.
func (p *Publisher) nextSegments(ctx context.Context, changes []Change, now time.Time) (next list, sequence uint64, err error) {
	if p.segments == nil {
		return p.rebuild(ctx, now)
	}
	next = list{slices.Clone(p.segments), p.seam, p.seamAt}
	defer func() {
		if err != nil {
			next.discard(p.segments)
		}
	}()
	if !now.Before(p.seamAt.Add(p.cfg.Settle)) {
		if err := p.tidy(&next); err != nil {
			return next, 0, err
		}
		next.seam, next.seamAt = len(next.segments), now
	}
	last := p.last()
	// What is published already but was not acknowledged before a crash comes
	// again and is left out.
	changes = slices.DeleteFunc(changes, func(c Change) bool { return c.Sequence <= last })
	if len(changes) == 0 {
		return next, last, nil
	}
	sequence = changes[len(changes)-1].Sequence
	delta, err := p.delta(changes, authdb.Span{From: last + 1, To: sequence})
	if err != nil {
		return next, 0, err
	}
	fresh := []*authdb.Segment{delta}
	defer delta.Close() // the list has the published form of it
	if len(next.segments) > next.seam {
		fresh = []*authdb.Segment{next.segments[next.seam].Segment, delta}
	}
	made, err := p.make(func(w io.Writer) error { return authdb.Merge(w, fresh...) })
	if err != nil {
		return next, 0, err
	}
	next.segments = append(next.segments[:next.seam], made)
	return next, sequence, nil
}

// tidy merges the settled segments as planned.
func (p *Publisher) tidy(l *list) error {
	lo, hi := authdb.Plan(parts(l.segments[:l.seam]))
	if room := authdb.MaxSegments - 2; hi > room { // one place each for the frozen and the open delta
		lo = min(lo, room-1)
	}
	if hi-lo < 2 {
		return nil
	}
	var old []*authdb.Segment
	for _, s := range l.segments[lo:hi] {
		old = append(old, s.Segment)
	}
	made, err := p.make(func(w io.Writer) error { return authdb.Merge(w, old...) })
	if err != nil {
		return err
	}
	l.segments = slices.Replace(l.segments, lo, hi, made)
	return nil
}

// rebuild makes a base of the whole source.
func (p *Publisher) rebuild(ctx context.Context, now time.Time) (list, uint64, error) {
	key := p.cfg.HashKey.Reveal()
	var rows []authdb.Row
	sequence, err := p.cfg.Source.All(ctx, func(c Credential) error {
		rows = append(rows, row(&key, c))
		return nil
	})
	if err != nil {
		return list{}, 0, err
	}
	base, err := p.make(func(w io.Writer) error {
		return authdb.Build(w, authdb.Head{Span: authdb.Span{To: sequence}, HashKey: key}, rows)
	})
	return list{[]segment{base}, 1, now}, sequence, err
}

// delta makes a segment of changes in memory. Of several changes of one user
// name the last one counts.
func (p *Publisher) delta(changes []Change, span authdb.Span) (*authdb.Segment, error) {
	key := p.cfg.HashKey.Reveal()
	latest := make(map[authdb.RowKey]authdb.Row, len(changes))
	for _, c := range changes {
		r := authdb.Row{Key: key.Key([]byte(c.Username.Reveal())), Deleted: true}
		if !c.Deleted {
			r = row(&key, c.Credential)
		}
		latest[r.Key] = r
	}
	f, s, err := inMemory(func(w io.Writer) error {
		return authdb.Build(w, authdb.Head{Span: span, HashKey: key}, slices.Collect(maps.Values(latest)))
	})
	if err != nil {
		return nil, err
	}
	return s, f.Close()
}

func row(key *authdb.HashKey, c Credential) authdb.Row {
	return authdb.Row{
		Key: key.Key([]byte(c.Username.Reveal())), Secret: authdb.NTHash([]byte(c.Password.Reveal())),
		PaidUntil: c.PaidUntil, Disabled: c.Disabled,
	}
}

// inMemory opens the segment that fill writes. The caller closes both; the
// segment does not need the file.
func inMemory(fill func(io.Writer) error) (*os.File, *authdb.Segment, error) {
	f, err := memfd.Sealed("authdb", fill)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Of(err), "publisher: a database segment cannot be made", err)
	}
	s, err := authdb.Map(f)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Of(err), "publisher: a database segment cannot be made", errors.Join(err, f.Close()))
	}
	return f, s, nil
}

// make writes a segment into memory and, sealed, into the directory.
func (p *Publisher) make(fill func(io.Writer) error) (segment, error) {
	f, s, err := inMemory(fill)
	if err != nil {
		return segment{}, err
	}
	defer f.Close()
	file, err := p.store(bundle.SegmentName(s.Head().Span), f, true)
	if err != nil {
		s.Close()
		return segment{}, err
	}
	return segment{file, s}, nil
}

// store puts a file of the bundle into the directory, sealed or as it is.
func (p *Publisher) store(name string, content io.ReadSeeker, seal bool) (bundle.File, error) {
	plain := sha256.New()
	_, err := content.Seek(0, io.SeekStart)
	var size int64
	if err == nil {
		size, err = io.Copy(plain, content)
	}
	if err == nil {
		_, err = content.Seek(0, io.SeekStart)
	}
	if err != nil {
		return bundle.File{}, err
	}
	digest := bundle.Digest(plain.Sum(nil))
	file := bundle.File{Name: name, Size: size, SHA256: digest}
	err = p.disk.put(func(w io.Writer) (string, error) {
		if !seal {
			_, err := io.Copy(w, content)
			return bundle.FilePath(digest), err
		}
		sum := sha256.New()
		s := bundle.Seal(p.cfg.Seal, digest, io.MultiWriter(w, sum))
		_, err := io.Copy(s, content)
		err = errors.Join(err, s.Close())
		file = bundle.File{Name: name, Size: bundle.SealedSize(size), SHA256: bundle.Digest(sum.Sum(nil)),
			Sealed: true, PlainSize: size, PlainSHA256: &digest}
		return bundle.FilePath(file.SHA256), err
	})
	return file, err
}
