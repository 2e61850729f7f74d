package bundle

import (
	"crypto/sha256"
	"time"
)

// Floor is what a caller knows before it has seen any statement, because it
// came with its image: nothing older is accepted, and the clock cannot stand
// before it.
type Floor struct {
	Version uint64    // lowest manifest version that is accepted
	Time    time.Time // a moment that is surely past, for instance when the image was built
}

// Trust verifies statements. It holds the newest root, what was accepted last
// and nothing else; it reads no network and is not safe for concurrent use.
type Trust struct {
	root   Root
	floor  Floor
	now    func() time.Time
	latest time.Time // newest Issued of a verified statement: the clock cannot stand before it

	version  uint64 // manifest accepted last; 0 before the first
	manifest Digest
}

// NewTrust starts from an enveloped root that the caller trusts. The root may
// have expired, because newer ones can follow; one that has no signature of
// its own threshold is refused. A nil now means time.Now.
func NewTrust(root []byte, floor Floor, now func() time.Time) (*Trust, error) {
	e, err := readEnvelope(RootRole, root, MaxRootSize)
	if err != nil {
		return nil, err
	}
	r, err := readStatement[Root](e.Payload)
	if err != nil {
		return nil, err
	}
	if !r.signed(RootRole, e) {
		return nil, refuse(BelowThreshold, nil)
	}
	if now == nil {
		now = time.Now
	}
	return &Trust{root: r, floor: floor, now: now}, nil
}

// Root returns the newest root.
func (t *Trust) Root() Root { return t.root }

// Rotate replaces the root by the next one: its version is one higher, it is
// signed by the old root's threshold and by its own. Roots on the way may have
// expired; the last one may not when a statement is verified.
//
// When a key of the roles config or fresh is withdrawn, the version accepted
// last is forgotten (but not the floor): whoever held the stolen keys might
// have signed a huge version to lock honest ones out (the fast-forward attack
// of TUF).
func (t *Trust) Rotate(enveloped []byte) error {
	e, err := readEnvelope(RootRole, enveloped, MaxRootSize)
	if err != nil {
		return err
	}
	if !t.root.signed(RootRole, e) {
		return refuse(OldThreshold, nil)
	}
	r, err := readStatement[Root](e.Payload)
	switch {
	case err != nil:
		return err
	case !r.signed(RootRole, e):
		return refuse(BelowThreshold, nil)
	case r.Version != t.root.Version+1:
		return refuse(RootVersion, nil)
	case r.Issued.After(t.clock().Add(MaxSkew)):
		return refuse(NotYet, nil)
	}
	if withdrawn(t.root, r, ConfigRole) || withdrawn(t.root, r, FreshRole) {
		t.version, t.manifest = 0, Digest{}
	}
	t.root = r
	return nil
}

func withdrawn(old, next Root, role Role) bool {
	still := map[KeyID]bool{}
	for _, id := range next.Roles[role].Keys {
		still[id] = true
	}
	for _, id := range old.Roles[role].Keys {
		if !still[id] {
			return true
		}
	}
	return false
}

// clock returns the time, which never stands before a signed moment that we
// have seen.
func (t *Trust) clock() time.Time {
	if now := t.now(); now.After(t.latest) {
		return now
	}
	return t.latest
}

// Freshness verifies an enveloped freshness statement against the clock, the
// floor and what was accepted last.
func (t *Trust) Freshness(enveloped []byte) (Freshness, error) { return t.freshness(enveloped, false) }

// taken is Freshness for a statement of which is known that it was accepted before,
// when it was live.
func (t *Trust) taken(enveloped []byte) (Freshness, error) { return t.freshness(enveloped, true) }

func (t *Trust) freshness(enveloped []byte, taken bool) (Freshness, error) {
	f, err := verified[Freshness](t, enveloped, MaxFreshnessSize)
	now := t.clock()
	switch {
	case err != nil:
		return f, err
	case now.Before(t.floor.Time):
		return f, refuse(ClockWrong, nil)
	case f.Issued.After(now.Add(MaxSkew)):
		return f, refuse(NotYet, nil)
	case !taken && !f.Expires.After(now):
		return f, refuse(Stale, nil)
	case f.Version < t.floor.Version:
		return f, refuse(BelowFloor, nil)
	case f.Version < t.version:
		return f, refuse(Rollback, nil)
	case f.Version == t.version && f.Manifest != t.manifest:
		return f, refuse(Equivocation, nil)
	}
	if f.Issued.After(t.latest) {
		t.latest = f.Issued
	}
	return f, nil
}

// Manifest verifies an enveloped manifest that a verified freshness statement
// names.
func (t *Trust) Manifest(enveloped []byte, f Freshness) (Manifest, error) {
	if len(enveloped) > MaxManifestSize {
		return Manifest{}, refuse(TooLarge, nil)
	}
	if sha256.Sum256(enveloped) != f.Manifest {
		return Manifest{}, refuse(WrongManifest, nil)
	}
	m, err := verified[Manifest](t, enveloped, MaxManifestSize)
	now := t.clock()
	switch {
	case err != nil:
		return m, err
	case m.Version != f.Version:
		return m, refuse(WrongVersion, nil)
	case m.Issued.After(now.Add(MaxSkew)):
		return m, refuse(NotYet, nil)
	case !m.Expires.After(now):
		return m, refuse(ManifestExpired, nil)
	}
	return m, nil
}

// Accept records that the manifest which f names is in use with all its files.
// From now on nothing older is accepted.
func (t *Trust) Accept(f Freshness) { t.version, t.manifest = f.Version, f.Manifest }

// InUse reports whether f names the manifest that was accepted last.
func (t *Trust) InUse(f Freshness) bool { return t.version == f.Version && t.manifest == f.Manifest }

// verified checks the signatures before it reads what was signed.
func verified[T Statement](t *Trust, enveloped []byte, limit int) (v T, err error) {
	e, err := readEnvelope(v.role(), enveloped, limit)
	switch {
	case err != nil:
		return v, err
	case !t.root.Expires.After(t.clock()):
		return v, refuse(RootExpired, nil)
	case !t.root.signed(v.role(), e):
		return v, refuse(BelowThreshold, nil)
	}
	return readStatement[T](e.Payload)
}
