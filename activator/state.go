package activator

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"lethe/attest"
	"lethe/dsse"
	"lethe/fault"
	"lethe/image/release"
)

// Server is what the record says of a server.
type Server struct {
	ID string `json:"id"`
	Enrolment
	Enrolled  time.Time        `json:"enrolled"`
	Confirmed bool             `json:"confirmed"`
	Revoked   bool             `json:"revoked"`
	Accepted  *Acceptance      `json:"accepted"` // the last one; null before the first
	Version   uint64           `json:"version"`  // that it ran then
	Last      *RefusalRecorded `json:"refused"`  // why it was refused, unless it has been accepted since
	LastAt    time.Time        `json:"decided"`  // when the last attestation was decided
	Refusals  int              `json:"refusals"` // since it was last accepted
}

// Release is one that was admitted.
type Release struct {
	Manifest release.Manifest
	Digest   dsse.Digest // of the manifest's file
	Admitted time.Time
	Revoked  bool
	By       []dsse.KeyID // operators
}

// State is what replaying the record gives.
type State struct {
	number    uint64
	hash      dsse.Digest // of the last line
	last      time.Time
	hashes    []dsse.Digest // of all lines
	id        dsse.Digest   // of the first line: which activator this is
	key       ed25519.PublicKey
	operators []release.Key
	trust     release.Policy
	floor     uint64

	servers  map[string]*Server
	profiles map[string]*attest.Profile
	releases map[uint64]*Release
}

func newState() *State {
	return &State{servers: map[string]*Server{}, profiles: map[string]*attest.Profile{}, releases: map[uint64]*Release{}}
}

// threshold is how many people's keys must sign a [Change].
const threshold = 2

// head returns the head without signature.
func (s *State) head() attest.Head {
	return attest.Head{Number: s.number, Hash: s.hash, Floor: s.floor}
}

// knows says whether the record was once as the head says.
func (s *State) knows(h attest.Head) bool {
	return h.Number >= 1 && h.Number <= uint64(len(s.hashes)) && s.hashes[h.Number-1] == h.Hash
}

// place returns which server has an endorsement key.
func (s *State) place(ek dsse.Digest) string {
	for _, server := range s.servers {
		if server.EK == ek && !server.Revoked {
			return server.ID
		}
	}
	return ""
}

// read checks a line and applies it. When it fails, the state is as before.
func (s *State) read(line []byte) error {
	if len(line) > maxLine {
		return errors.New("too long")
	}
	r, err := dsse.Decode[Record](line)
	switch {
	case err != nil:
		return err
	case r.Number != s.number+1 || r.Previous != s.hash:
		return errors.New("it does not follow the one before")
	case r.Time.Location() != time.UTC || r.Time.Nanosecond() != 0 || r.Time.Before(s.last):
		return errors.New("its time is before the one before")
	case (r.Number == 1) != (r.Kind == Began):
		return errors.New("it does not begin once, at the beginning")
	}
	if err := s.apply(&r); err != nil {
		return err
	}
	s.number, s.hash, s.last = r.Number, lineHash(line), r.Time
	s.hashes = append(s.hashes, s.hash)
	if r.Number == 1 {
		s.id = s.hash
	}
	return nil
}

// apply is every rule about decisions. It is asked before a decision is written and each time that
// the record is read.
func (s *State) apply(r *Record) error {
	switch r.Kind {
	case Began:
		return s.begin(r)
	case ProfileSet:
		return s.setProfile(r)
	case Enrolled:
		return s.enrol(r)
	case Admitted:
		return s.admit(r)
	case ReleaseRevoked:
		return s.revokeRelease(r)
	case FloorRaised:
		return s.raise(r)
	}
	server := s.servers[r.Server]
	if server == nil {
		return fault.New(fault.NotFound, "no server has this name").WithHint("`lethe-activator list` shows them")
	}
	switch r.Kind {
	case Confirmed:
		if server.Confirmed || server.Revoked {
			return fault.New(fault.Conflict, "the server is not waiting for a confirmation")
		}
		server.Confirmed = true
	case ServerRevoked:
		if server.Revoked {
			return fault.New(fault.Conflict, "the server is revoked already")
		}
		server.Revoked = true
	case Accepted:
		if r.Accept == nil || !server.Confirmed || server.Revoked || s.releases[r.Version] == nil {
			return fault.New(fault.Conflict, "the server cannot be accepted")
		}
		server.Accepted, server.Version, server.LastAt, server.Last, server.Refusals = r.Accept, r.Version, r.Time, nil, 0
	case Refused:
		if r.Refuse == nil {
			return errors.New("a refusal without reason")
		}
		server.Last, server.LastAt = r.Refuse, r.Time
		server.Refusals++
	default:
		return fmt.Errorf("unknown kind %q", r.Kind)
	}
	return nil
}

func (s *State) begin(r *Record) error {
	b := r.Begin
	if b == nil || len(b.Key) != ed25519.PublicKeySize {
		return errors.New("no beginning")
	}
	var operators []release.Key
	seen := map[dsse.KeyID]bool{}
	for _, text := range b.Operators {
		k, err := release.ParseKey([]byte(text))
		if err != nil {
			return fault.Wrap(fault.Invalid, "an operator's key cannot be used: "+err.Error(), err)
		}
		if seen[k.ID] {
			return fault.New(fault.Invalid, "an operator's key stands twice")
		}
		seen[k.ID] = true
		operators = append(operators, k)
	}
	if len(operators) < threshold {
		return fault.New(fault.Invalid, fmt.Sprintf("%d operators' keys, want at least %d, of as many people", len(operators), threshold))
	}
	trust, err := release.ParsePolicy(b.Trust)
	if err != nil {
		return err
	}
	s.operators, s.trust, s.key, s.floor = operators, trust, b.Key, trust.Floor
	return nil
}

func (s *State) setProfile(r *Record) error {
	if r.Profile == nil || !attest.ValidServer(r.Profile.Name) {
		return errors.New("no profile")
	}
	s.profiles[r.Profile.Name] = r.Profile
	return nil
}

// flavours are words as releases have them.
var flavour = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

func (s *State) enrol(r *Record) error {
	e := r.Enrol
	if e == nil || !attest.ValidServer(r.Server) || !flavour.MatchString(e.Flavour) || !e.Address.IsValid() ||
		slices.ContainsFunc(e.Public, func(a netip.Addr) bool { return !a.IsValid() }) {
		return fault.New(fault.Invalid, "a server wants a name of small letters, an address and a flavour")
	}
	if s.profiles[e.Profile] == nil {
		return fault.New(fault.NotFound, "there is no profile "+e.Profile).WithHint("`lethe-activator profile set FILE` makes one")
	}
	if old := s.servers[r.Server]; old != nil && !old.Revoked {
		return fault.New(fault.Conflict, "there is such a server").WithHint("`lethe-activator revoke " + r.Server + "` first")
	}
	if other := s.place(e.EK); other != "" {
		return fault.New(fault.Conflict, "its TPM is that of the server "+other)
	}
	s.servers[r.Server] = &Server{ID: r.Server, Enrolment: *e, Enrolled: r.Time}
	return nil
}

// fixed are the registers that a manifest must give, or it could not tell its image from another.
var fixed = []int{4, 7, 11}

func (s *State) admit(r *Record) error {
	if r.Release == nil {
		return errors.New("no release")
	}
	digest := dsse.Digest(lineHash(r.Release.Manifest))
	by, err := s.approved(r.Change, Change{Activator: s.id, Action: AdmitRelease, Version: r.Version, Manifest: &digest})
	if err != nil {
		return err
	}
	// At the time of the decision; appraisal looks at the time again, at the floor and at revocation.
	policy := s.trust
	policy.Now, policy.Floor = r.Time, 0
	m, err := policy.Verify(r.Release.Manifest, r.Release.Statements)
	if err != nil {
		return err
	}
	if m.Version != r.Version {
		return fault.New(fault.Invalid, fmt.Sprintf("the manifest is of version %d", m.Version))
	}
	if old := s.releases[m.Version]; old != nil {
		return fault.New(fault.Conflict, "a release of this version was admitted before")
	}
	if m.Version < s.floor {
		return fault.New(fault.Denied, fmt.Sprintf("the release is below the floor, %d", s.floor))
	}
	for _, image := range m.Images {
		for _, index := range fixed {
			if !slices.ContainsFunc(slices.Concat(image.Image.PCRs, image.PCRs), func(p release.PCR) bool { return p.Index == index }) {
				return fault.New(fault.Invalid, fmt.Sprintf("the manifest's image %s does not say what PCR %d will be", image.Image.Flavour, index))
			}
		}
	}
	s.releases[m.Version] = &Release{Manifest: m, Digest: digest, Admitted: r.Time, By: by}
	return nil
}

func (s *State) revokeRelease(r *Record) error {
	old := s.releases[r.Version]
	if old == nil {
		return fault.New(fault.NotFound, "no such release was admitted").WithHint("`lethe-activator release list` shows them")
	}
	if old.Revoked {
		return fault.New(fault.Conflict, "the release is revoked already")
	}
	old.Revoked = true
	return nil
}

func (s *State) raise(r *Record) error {
	if _, err := s.approved(r.Change, Change{Activator: s.id, Action: RaiseFloor, Version: r.Version}); err != nil {
		return err
	}
	if r.Version <= s.floor {
		return fault.New(fault.Conflict, fmt.Sprintf("the floor is %d already, and only goes up", s.floor))
	}
	s.floor = r.Version
	return nil
}

// approved says who signed a change, if enough did and it is this one.
func (s *State) approved(enveloped []byte, want Change) ([]dsse.KeyID, error) {
	payload, by, err := release.OpenEnvelope(enveloped, ChangeType, s.operators)
	if err != nil {
		return nil, err
	}
	if len(by) < threshold {
		return nil, fault.New(fault.Denied, fmt.Sprintf("%d of %d operators signed the change", len(by), threshold)).
			WithHint("each signs it with `lethe-activator sign`")
	}
	if b := want.encode(); !bytes.Equal(payload, b) {
		return nil, fault.New(fault.Denied, "the operators signed another change")
	}
	return by, nil
}

// verifier returns what an attestation is judged by now. It may be kept.
func (s *State) verifier(now time.Time, phases []string, roots *x509.CertPool, head []byte) *attest.Verifier {
	v := &attest.Verifier{Floor: s.floor, Now: now, Phases: phases, EKRoots: roots, Head: head}
	for _, r := range s.releases {
		v.Releases = append(v.Releases, attest.Release{Manifest: r.Manifest, Revoked: r.Revoked})
	}
	places := map[dsse.Digest]string{}
	for _, server := range s.servers {
		if !server.Revoked {
			places[server.EK] = server.ID
		}
	}
	hashes := s.hashes[:len(s.hashes):len(s.hashes)] // appended to, never changed
	v.Place = func(ek dsse.Digest) string { return places[ek] }
	v.Knows = func(h attest.Head) bool { return (&State{hashes: hashes}).knows(h) }
	return v
}

// attested returns a server, which must be there, as attestation sees it.
func (s *State) attested(id string) *attest.Server {
	server := s.servers[id]
	a := &attest.Server{ID: id, EK: server.EK, Flavour: server.Flavour, Profile: s.profiles[server.Profile], Confirmed: server.Confirmed, Revoked: server.Revoked}
	if server.Accepted != nil {
		memory := server.Accepted.Memory
		a.Memory = &memory
	}
	return a
}
