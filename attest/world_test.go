package attest_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"lethe/attest"
	"lethe/attest/attesttest"
	"lethe/dsse"
	"lethe/image/pcr"
	"lethe/image/release"
)

// world is a server that is attested, and who judges it: all is as it should be.
type world struct {
	t        testing.TB
	releaser *attesttest.Releaser
	image    attesttest.Image
	soft     *attesttest.Soft
	verifier *attest.Verifier
	server   *attest.Server
	channel  attest.Channel // as the verifier sees it
	key      ed25519.PrivateKey
	places   map[dsse.Digest]string
	known    map[uint64]bool

	// Ways to interfere with messages on the wire.
	onIdentity  func([]byte) []byte
	onChallenge func([]byte) []byte
	onEvidence  func([]byte) []byte
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, releaser: attesttest.NewReleaser(t), image: attesttest.TheImage("seven"), channel: attest.Channel{1, 2, 3}, known: map[uint64]bool{}}
	now := attesttest.Start.Add(time.Hour)
	w.soft = attesttest.NewSoft(t, attesttest.Boot(w.image), w.channel, now)
	_, _, m := w.releaser.Make(7, map[string]attesttest.Image{"vm": w.image, "hardware": attesttest.TheImage("iron")}, nil)
	_, w.key, _ = ed25519.GenerateKey(rand.Reader)
	w.places = map[dsse.Digest]string{attest.Digest(w.soft.Identity.EK): "nl-ams-1"}
	w.server = &attest.Server{ID: "nl-ams-1", EK: attest.Digest(w.soft.Identity.EK), Flavour: "vm", Profile: attesttest.Profile(), Confirmed: true,
		Memory: &attest.Memory{Resets: 6, Clock: 900_000, At: now.Add(-time.Hour)}}
	w.verifier = &attest.Verifier{Releases: []attest.Release{{Manifest: m}}, Floor: 7, Now: now, Phases: pcr.Phases,
		Place: func(ek dsse.Digest) string { return w.places[ek] },
		Knows: func(h attest.Head) bool { return w.known[h.Number] },
		Head:  attest.Head{Number: 10, Floor: 7}.Sign(w.key)}
	return w
}

// run is one attestation. It returns its result, session and the server's evidence.
func (w *world) run() (*attest.Result, *attest.Session, error) {
	pass := func(f func([]byte) []byte, b []byte) []byte {
		if f != nil {
			return f(b)
		}
		return b
	}
	s, err := w.verifier.Identify(w.server, w.channel, pass(w.onIdentity, w.soft.Say()))
	if err != nil {
		return nil, nil, err
	}
	r, err := s.Appraise(pass(w.onEvidence, w.soft.Answer(pass(w.onChallenge, s.Challenge()))))
	return r, s, err
}

func (w *world) accepted(t testing.TB, what string) (*attest.Result, *attest.Session) {
	t.Helper()
	r, s, err := w.run()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return r, s
}

// admit adds a release of an image.
func (w *world) admit(version uint64, i attesttest.Image, change func(*release.Addition)) *attest.Release {
	_, _, m := w.releaser.Make(version, map[string]attesttest.Image{"vm": i}, change)
	w.verifier.Releases = append(w.verifier.Releases, attest.Release{Manifest: m})
	return &w.verifier.Releases[len(w.verifier.Releases)-1]
}

func TestAccepted(t *testing.T) {
	w := newWorld(t)
	r, s := w.accepted(t, "all right")
	if r.Release != 7 || r.Flavour != "vm" || r.Memory.Resets != 7 || r.Memory.Clock != 1_000_000 || !r.Memory.At.Equal(w.verifier.Now) ||
		r.VPNKey == nil || r.APIKey == nil || r.VPNKey.Equal(r.APIKey) {
		t.Errorf("%+v", r)
	}
	grant, expected, err := s.Grant([]byte("secrets"), w.verifier.Head)
	if err != nil {
		t.Fatal(err)
	}
	secrets, receipt, err := w.soft.Open(grant)
	if err != nil || string(secrets) != "secrets" {
		t.Fatalf("%q, %v", secrets, err)
	}
	if err := attest.Received(receipt, expected); err != nil {
		t.Error(err)
	}
	if _, _, err := s.Grant([]byte("secrets"), w.verifier.Head); err == nil {
		t.Error("a second grant for the same evidence")
	}
	// The profile survives its own file.
	b, err := json.Marshal(w.server.Profile)
	if err != nil {
		t.Fatal(err)
	}
	if w.server.Profile, err = attest.ParseProfile(b); err != nil {
		t.Fatal(err)
	}
	w.accepted(t, "with the profile read from a file")
}

// TestReasons: every reason has a code and a text of its own.
func TestReasons(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range attest.Reasons() {
		if seen[r.Code()] || seen[r.Error()] || r.Code() == "" || strings.ToLower(r.Code()) != r.Code() {
			t.Errorf("%d: %q, %q", r, r.Code(), r.Error())
		}
		seen[r.Code()], seen[r.Error()] = true, true
	}
	if attest.NoReceipt.Code() != "no-receipt" || attest.Reason(200).Code() == "" || attest.Reason(0).Code() != "unknown" {
		t.Error("codes and reasons are out of step")
	}
	if len(seen) != 2*len(attest.Reasons()) || attest.Reasons()[len(attest.Reasons())-1] != attest.NoReceipt {
		t.Error("reasons are missing")
	}
	if r, _ := attest.ReasonOf(nil); r != 0 {
		t.Error("no error has a reason")
	}
}
