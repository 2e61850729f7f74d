package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"lethe/attest/eventlog"
	"lethe/dsse"
	"lethe/image/pcr"
	"lethe/image/release"
)

// Tolerances.
const (
	MaxClockSkew = 5 * time.Minute  // between the server's clock and ours
	minGap       = 30 * time.Second // that the TPM's clock and ours may drift apart, at least; beside [Profile.Clock]
	// clockUpdate is how far a TPM's clock may go back when power was lost: it
	// is stored at least every 2^22 ms (part 1, 36.3.2).
	clockUpdate = 1 << 22
)

// Server is what the inventory knows of a server.
type Server struct {
	ID        string
	EK        dsse.Digest // [Digest] of its endorsement key
	Flavour   string      // of the image that it must run, "vm" or "hardware"
	Profile   *Profile
	Confirmed bool // by an operator
	Revoked   bool
	Memory    *Memory // of the last attestation that was accepted; nil before the first
}

// Memory is what must only go forward.
type Memory struct {
	Resets   uint32    `json:"resets"`   // TPM resets: starts of the machine
	Restarts uint32    `json:"restarts"` // TPM restarts and resumes since
	Clock    uint64    `json:"clock"`    // the TPM's clock, milliseconds
	At       time.Time `json:"at"`       // when, by our clock
}

// Release is one that was admitted.
type Release struct {
	Manifest release.Manifest
	Revoked  bool
}

// Verifier is what appraisal goes by. It is not changed by it, and safe for
// concurrent use.
type Verifier struct {
	Releases []Release
	Floor    uint64
	Now      time.Time
	Phases   []string                 // boot phases that the manifests' PCR 11 holds, see image/pcr
	EKRoots  *x509.CertPool           // makers of TPMs; nil: certificates are not asked for
	Place    func(dsse.Digest) string // which server has this endorsement key; "" for none
	Knows    func(Head) bool          // whether the record has this head; heads of other activators are not asked about
	Head     []byte                   // that the server is shown
}

// Result is an accepted attestation.
type Result struct {
	Release uint64 // version
	Flavour string
	Memory  Memory
	VPNKey  *ecdsa.PublicKey // to be certified
	APIKey  *ecdsa.PublicKey
}

// Session is one attestation, from challenge to receipt.
type Session struct {
	v          *Verifier
	server     *Server
	transcript Transcript
	credential []byte
	ak         *ecdsa.PublicKey
	name       Name
	answered   bool // evidence came; a challenge is answered once
	accepted   bool // and granted once
}

// Digest returns the name of a TPM's public key: the SHA-256 of its TPMT_PUBLIC.
func Digest(public []byte) dsse.Digest { return sha256.Sum256(public) }

// Known judges which machine a server says that it is, before anything is proven.
func (v *Verifier) Known(s *Server, id *Identity) error {
	switch {
	case !s.Confirmed && !s.Revoked:
		return Refuse(ServerPending, "")
	case s.Revoked:
		return Refuse(ServerRevoked, "")
	}
	if _, _, ok := parseEK(id.EK); !ok {
		return Refuse(BadEK, "")
	}
	if ek := Digest(id.EK); ek != s.EK {
		if other := v.Place(ek); other != "" {
			return Refuse(WrongPlace, "it is the TPM of "+other)
		}
		return Refuse(ForeignEK, ek.String())
	}
	return nil
}

// Identify judges an identity that came over a connection, and returns a session whose
// challenge is to be answered. With a nil server it judges all but the inventory: that is
// how servers are enrolled, and such a session appraises nothing.
func (v *Verifier) Identify(s *Server, channel Channel, identity []byte) (*Session, error) {
	session := &Session{v: v, server: s, transcript: Transcript{Channel: channel}}
	id := &session.transcript.Identity
	if err := Decode(identity, id); err != nil {
		return nil, Refuse(MalformedIdentity, err.Error())
	}
	place := "enrolment"
	if s != nil {
		place = s.ID
		if err := v.Known(s, id); err != nil {
			return nil, err
		}
	}
	ek, public, ok := parseEK(id.EK)
	if !ok {
		return nil, Refuse(BadEK, "")
	}
	if err := v.certificate(public, id.EKCertificate); err != nil {
		return nil, err
	}
	if session.ak, ok = parseAK(id.AK); !ok {
		return nil, Refuse(BadAK, "")
	}
	if len(id.Head) > 0 {
		seen, err := ParseHead(id.Head)
		if err != nil {
			return nil, Refuse(MalformedIdentity, err.Error())
		}
		if own, err := ParseHead(v.Head); err == nil && own.Key.Equal(seen.Key) && !v.Knows(seen) {
			return nil, Refuse(ActivatorRestored, fmt.Sprintf("it has seen record %d", seen.Number))
		}
	}
	session.name = nameOf(id.AK)
	return session, session.challenge(ek, place)
}

// challenge makes nonce and credential.
func (s *Session) challenge(ek tpm2.LabeledEncapsulationKey, place string) error {
	s.credential = make([]byte, CredentialSize)
	nonce := make([]byte, NonceSize)
	_, _ = rand.Read(nonce) // crypto/rand.Read never fails
	_, _ = rand.Read(s.credential)
	object, secret, err := tpm2.CreateCredential(rand.Reader, ek, s.name[:], s.credential)
	if err != nil {
		return Refuse(BadEK, err.Error())
	}
	s.transcript.Challenge = Challenge{nonce, []byte(place), object, secret, s.v.Head}
	return nil
}

// Challenge returns the message that the server must answer.
func (s *Session) Challenge() []byte { return Encode(&s.transcript.Challenge) }

// subjectAltName is id-ce-subjectAltName (RFC 5280, 4.2.1.6).
var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// certificate judges an endorsement key's certificate (TCG EK Credential Profile 2.5, 3).
func (v *Verifier) certificate(ek *tpm2.TPMTPublic, der []byte) error {
	if len(der) == 0 {
		if v.EKRoots != nil {
			return Refuse(BadEKCertificate, "the TPM has none")
		}
		return nil
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return Refuse(BadEKCertificate, "it cannot be read")
	}
	public, err := tpm2.Pub(*ek)
	if key, ok := public.(interface{ Equal(crypto.PublicKey) bool }); err != nil || !ok || !key.Equal(c.PublicKey) {
		return Refuse(BadEKCertificate, "it is for another key")
	}
	if v.EKRoots == nil {
		return nil
	}
	// The subject's alternative name of such certificates is critical, and a directory name that
	// crypto/x509 does not read; TPMs outlive their certificates' dates.
	c.UnhandledCriticalExtensions = slices.DeleteFunc(c.UnhandledCriticalExtensions, func(id asn1.ObjectIdentifier) bool { return id.Equal(subjectAltName) })
	if _, err := c.Verify(x509.VerifyOptions{Roots: v.EKRoots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: c.NotBefore}); err != nil {
		return Refuse(BadEKCertificate, "by nobody who is trusted")
	}
	return nil
}

// Appraise judges evidence: first whether it is this TPM's answer to this session's
// challenge, then whether time has gone forward, what booted, and whether that is a release.
func (s *Session) Appraise(evidence []byte) (*Result, error) {
	e, q, err := s.genuine(evidence)
	if err != nil {
		return nil, err
	}
	if s.server == nil {
		return nil, errors.New("attest: internal error: a session without server appraises nothing")
	}
	result := &Result{Flavour: s.server.Flavour}
	if result.Memory, err = s.v.forward(s.server, e, q); err != nil {
		return nil, err
	}
	quoted := registers(e.PCRs)
	if err := s.v.booted(s.server.Profile, e.Log, quoted); err != nil {
		return nil, err
	}
	if result.Release, err = s.v.released(s.server.Flavour, quoted); err != nil {
		return nil, err
	}
	result.VPNKey, _ = certifiable(e.VPNKey)
	result.APIKey, _ = certifiable(e.APIKey)
	s.accepted = true
	return result, nil
}

// Genuine judges only whether evidence is this TPM's answer to this session's challenge,
// and returns its event log: for enrolment.
func (s *Session) Genuine(evidence []byte) (log []byte, err error) {
	e, _, err := s.genuine(evidence)
	if err != nil {
		return nil, err
	}
	return e.Log, nil
}

// certifiable reads a key that a certificate may be given for: ECDSA on P-256.
func certifiable(spki []byte) (*ecdsa.PublicKey, bool) {
	k, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, false
	}
	key, ok := k.(*ecdsa.PublicKey)
	return key, ok && key.Curve == elliptic.P256()
}

func (s *Session) genuine(evidence []byte) (*Evidence, *quote, error) {
	if s.answered {
		return nil, nil, Refuse(NotBound, "the challenge was answered before")
	}
	s.answered = true
	t := &s.transcript
	e := &t.Evidence
	if err := Decode(evidence, e); err != nil {
		return nil, nil, Refuse(MalformedEvidence, err.Error())
	}
	_, err := kem().NewPublicKey(e.SealKey)
	_, vpn := certifiable(e.VPNKey)
	_, api := certifiable(e.APIKey)
	switch {
	case err != nil || !vpn || !api || bytes.Equal(e.VPNKey, e.APIKey):
		return nil, nil, Refuse(MalformedEvidence, "keys")
	case !hmac.Equal(e.Proof, t.Proof(s.credential)):
		return nil, nil, Refuse(NotSameTPM, "")
	}
	q, err := parseQuote(e.Quote)
	if err != nil {
		return nil, nil, err
	}
	want, signer := t.Qualifying(), qualifiedName(s.name)
	switch {
	case !bytes.Equal(q.signer, signer[:]):
		return nil, nil, Refuse(WrongSigner, "")
	case !verify(s.ak, e.Quote, e.Signature):
		return nil, nil, Refuse(BadSignature, "")
	case len(q.extra) == 0:
		return nil, nil, Refuse(NoNonce, "")
	case !hmac.Equal(q.extra, want[:]):
		return nil, nil, Refuse(NotBound, "")
	}
	if err := checkSelection(q.selection); err != nil {
		return nil, nil, err
	}
	if sum := sha256.Sum256(e.PCRs); !bytes.Equal(q.digest, sum[:]) {
		return nil, nil, Refuse(WrongPCRs, "")
	}
	return e, q, nil
}

// forward judges the clocks and counters, and returns what is to be remembered.
func (v *Verifier) forward(s *Server, e *Evidence, q *quote) (Memory, error) {
	last, percent := s.Memory, s.Profile.Clock
	if percent == 0 {
		percent = maxClock
	}
	now := Memory{q.clock.ResetCount, q.clock.RestartCount, q.clock.Clock, v.Now.UTC().Round(0)}
	if off := float64(int64(binary.BigEndian.Uint64(e.Time))) - float64(v.Now.Unix()); off > MaxClockSkew.Seconds() || off < -MaxClockSkew.Seconds() {
		return now, Refuse(ServerClockOff, fmt.Sprintf("by %.0f s", off))
	}
	if last == nil {
		return now, nil
	}
	again := now.Resets == last.Resets // the same boot
	switch {
	case now.Resets < last.Resets || again && now.Restarts < last.Restarts:
		return now, Refuse(CounterBack, fmt.Sprintf("%d.%d after %d.%d", now.Resets, now.Restarts, last.Resets, last.Restarts))
	case again && now.Restarts > last.Restarts:
		return now, Refuse(Resumed, "")
	case again && now.Clock < last.Clock || !again && now.Clock+clockUpdate < last.Clock:
		return now, Refuse(ClockBack, fmt.Sprintf("%d ms after %d ms", now.Clock, last.Clock))
	}
	if !again {
		return now, nil
	}
	there, here := time.Duration(now.Clock-last.Clock)*time.Millisecond, v.Now.Sub(last.At)
	if gap := (there - here).Abs(); there < 0 || gap > minGap+here.Abs()*time.Duration(percent)/100 {
		return now, Refuse(ClockGap, fmt.Sprintf("%v there, %v here", there.Round(time.Second), here.Round(time.Second)))
	}
	return now, nil
}

func registers(b []byte) (values [PCRs]pcr.Value) {
	for i := range values {
		values[i] = pcr.Value(b[i*sha256.Size:])
	}
	return values
}

// ending are the phases that systemd measures when a system goes down (systemd-pcrphase(8)).
var ending = []string{"shutdown", "final"}

// booted judges the event log.
func (v *Verifier) booted(p *Profile, raw []byte, quoted [PCRs]pcr.Value) error {
	l, err := eventlog.Parse(raw)
	switch {
	case errors.Is(err, eventlog.ErrNoBank):
		return Refuse(NoBank, "")
	case err != nil:
		return Refuse(MalformedLog, err.Error())
	}
	replayed := l.Replay()
	// The system's phases are in no log of the firmware's.
	phased := replayed[11]
	for _, phase := range v.Phases {
		phased = phased.Extend([]byte(phase))
	}
	for index, want := range quoted {
		got := replayed[index]
		if index == 11 {
			if want != phased && v.otherPhase(replayed[11], want) {
				return Refuse(WrongPhase, "")
			}
			got = phased
		}
		if got != want {
			return Refuse(LogReplay, fmt.Sprintf("PCR %d", index))
		}
	}
	if err := secureBoot(l); err != nil {
		return err
	}
	return p.check(l)
}

// otherPhase says whether PCR 11 is that of the same image before or after the phase in which it serves.
func (v *Verifier) otherPhase(value, want pcr.Value) bool {
	if value == want {
		return true
	}
	for _, phase := range slices.Concat(pcr.Phases, ending) {
		if value = value.Extend([]byte(phase)); value == want {
			return true
		}
	}
	return false
}

// released finds the release that fixes these registers, and judges it. When there is none,
// the registers are compared in an order that says most: the image, what started it, the keys, the rest.
func (v *Verifier) released(flavour string, quoted [PCRs]pcr.Value) (uint64, error) {
	type candidate struct {
		release *Release
		pcrs    map[int]pcr.Value
	}
	var all []candidate
	var other string
	for i := range v.Releases {
		r := &v.Releases[i]
		for _, image := range r.Manifest.Images {
			pcrs := map[int]pcr.Value{}
			for _, p := range slices.Concat(image.Image.PCRs, image.PCRs) {
				pcrs[p.Index] = pcr.Value(p.SHA256)
			}
			if pcrs[11] != quoted[11] || pcrs[11] == (pcr.Value{}) {
				continue
			}
			if image.Image.Flavour != flavour {
				other = image.Image.Flavour
				continue
			}
			all = append(all, candidate{r, pcrs})
		}
	}
	if len(all) == 0 && other != "" {
		return 0, Refuse(WrongFlavour, other+", want "+flavour)
	}
	reason := UnknownImage
	for _, step := range []struct {
		reason Reason
		fits   func(c candidate) bool
	}{
		{WrongBoot, func(c candidate) bool { return c.pcrs[4] == quoted[4] }},
		{WrongKeys, func(c candidate) bool { return c.pcrs[7] == quoted[7] }},
		{WrongRegister, func(c candidate) bool {
			for index, value := range c.pcrs {
				if index >= PCRs || value != quoted[index] {
					return false
				}
			}
			return true
		}},
	} {
		if len(all) == 0 {
			break
		}
		reason = step.reason
		all = slices.DeleteFunc(all, func(c candidate) bool { return !step.fits(c) })
	}
	if len(all) == 0 {
		return 0, Refuse(reason, "")
	}
	return v.current(all[0].release)
}

// current judges whether a release may still be activated.
func (v *Verifier) current(r *Release) (uint64, error) {
	m := r.Manifest
	version := fmt.Sprintf("version %d", m.Version)
	switch {
	case r.Revoked:
		return 0, Refuse(ReleaseRevoked, version)
	case m.Issued.After(v.Now.Add(release.MaxSkew)):
		return 0, Refuse(ReleaseNotYet, version)
	case !m.Expires.After(v.Now):
		return 0, Refuse(ReleaseExpired, version)
	case m.Version < v.Floor:
		return 0, Refuse(BelowFloor, fmt.Sprintf("%s, want %d", version, v.Floor))
	}
	return m.Version, nil
}

// Grant encrypts secrets for the server whose evidence was accepted, once. The head is that of the record in
// which the acceptance stands: the server keeps it.
func (s *Session) Grant(secrets, head []byte) (grant []byte, expected *Receipt, err error) {
	if !s.accepted {
		return nil, nil, errors.New("attest: internal error: a grant without accepted evidence")
	}
	s.accepted = false
	g, r, err := Seal(&s.transcript, secrets, head)
	if err != nil {
		return nil, nil, err
	}
	return Encode(g), r, nil
}

// Received judges the server's answer to a grant.
func Received(receipt []byte, expected *Receipt) error {
	var r Receipt
	if err := Decode(receipt, &r); err != nil || !r.Equal(expected) {
		return Refuse(NoReceipt, "")
	}
	return nil
}
