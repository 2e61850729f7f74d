package device_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"lethe/attest"
	"lethe/attest/attesttest"
	"lethe/attest/device"
	"lethe/dsse"
	"lethe/image/pcr"
)

// rig is a machine with a real software TPM, and who judges it.
type rig struct {
	t        testing.TB
	tpm      *attesttest.TPM
	machine  *attesttest.Machine
	device   *device.Device
	channel  attest.Channel
	now      time.Time
	verifier *attest.Verifier
	server   *attest.Server
	key      ed25519.PrivateKey
	secrets  [][]byte // that the server was given
	accept   error
	last     []byte // head that came with them
	head     []byte // that an earlier agent kept
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, tpm: attesttest.StartTPM(t), channel: attest.Channel{9}, now: attesttest.Start.Add(time.Hour)}
	image := attesttest.TheImage("seven")
	r.machine = attesttest.Boot(image)
	_, _, m := attesttest.NewReleaser(t).Make(7, map[string]attesttest.Image{"vm": image}, nil)
	_, r.key, _ = ed25519.GenerateKey(rand.Reader)
	r.server = &attest.Server{ID: "nl-ams-1", Flavour: "vm", Profile: attesttest.Profile(), Confirmed: true}
	r.verifier = &attest.Verifier{Releases: []attest.Release{{Manifest: m}}, Floor: 7, Now: r.now, Phases: pcr.Phases,
		Place: func(dsse.Digest) string { return "" }, Knows: func(attest.Head) bool { return true }, Head: attest.Head{Number: 5, Floor: 7}.Sign(r.key)}
	r.boot()
	r.server.EK = attest.Digest(r.identity().EK)
	return r
}

// boot measures the machine and opens the device.
func (r *rig) boot() {
	r.t.Helper()
	r.tpm.Measure(r.machine)
	r.open(r.tpm)
}

func (r *rig) open(tpm transport.TPM) {
	r.t.Helper()
	if r.device != nil {
		_ = r.device.Close() // the TPM may have lost its keys
	}
	d, err := device.Open(tpm, device.Options{
		Channel: r.channel, Log: func() ([]byte, error) { return r.machine.Log(), nil }, Now: func() time.Time { return r.now },
		Head: r.head, Accept: func(secrets, head []byte) error {
			r.secrets, r.last = append(r.secrets, secrets), head
			return r.accept
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.device = d
}

func (r *rig) identity() (id attest.Identity) {
	r.t.Helper()
	if err := attest.Decode(r.device.Identity(), &id); err != nil {
		r.t.Fatal(err)
	}
	return id
}

// attest asks once; between changes what happens between challenge and evidence.
func (r *rig) attest() (*attest.Result, *attest.Session, error) {
	r.t.Helper()
	s, err := r.verifier.Identify(r.server, r.channel, r.device.Identity())
	if err != nil {
		return nil, nil, err
	}
	evidence, err := r.device.Evidence(s.Challenge())
	if err != nil {
		return nil, nil, err
	}
	result, err := s.Appraise(evidence)
	return result, s, err
}

func (r *rig) accepted(what string) (*attest.Result, *attest.Session) {
	r.t.Helper()
	result, s, err := r.attest()
	if err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
	return result, s
}

// grant is the whole way.
func (r *rig) grant(secrets string) {
	r.t.Helper()
	result, s := r.accepted("grant")
	g, expected, err := s.Grant([]byte(secrets), r.verifier.Head)
	if err != nil {
		r.t.Fatal(err)
	}
	receipt, err := r.device.Take(g)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := attest.Received(receipt, expected); err != nil {
		r.t.Fatal(err)
	}
	if !result.VPNKey.Equal(r.device.VPNKey.Public()) || !result.APIKey.Equal(r.device.APIKey.Public()) {
		r.t.Error("certificates would be for other keys than the server has")
	}
	memory := result.Memory
	r.server.Memory = &memory
}

// TestRealTPM is the life of a server with a real TPM: activated, renewed, rebooted,
// activated again, refused with another image.
func TestRealTPM(t *testing.T) {
	r := newRig(t)
	r.grant("first")
	if string(r.secrets[0]) != "first" {
		t.Errorf("%q", r.secrets)
	}
	before := r.identity()
	if len(before.Head) == 0 {
		t.Error("the server keeps no head")
	}
	r.grant("renewed")
	old := *r.server.Memory

	r.tpm.Reboot()
	r.boot()
	after := r.identity()
	if len(after.Head) != 0 || bytes.Equal(after.AK, before.AK) || !bytes.Equal(after.EK, before.EK) {
		t.Error("after a reboot: want the same TPM, another attestation key, and nothing remembered")
	}
	r.grant("again")
	if r.server.Memory.Resets <= old.Resets {
		t.Errorf("resets %d after %d", r.server.Memory.Resets, old.Resets)
	}

	// What was measured since has to be in the log.
	r.tpm.Extend(8, [32]byte{1})
	if _, _, err := r.attest(); !errors.Is(err, attest.LogReplay) {
		t.Errorf("a register was extended: %v", err)
	}
	r.tpm.Reboot()
	r.machine = attesttest.Boot(attesttest.TheImage("implant"))
	r.boot()
	if _, _, err := r.attest(); !errors.Is(err, attest.UnknownImage) {
		t.Errorf("another image: %v", err)
	}
	if err := r.device.Close(); err != nil {
		t.Error(err)
	}
}

// TestCopiedTPM: the state of a virtual machine's TPM was copied, and both are run.
func TestCopiedTPM(t *testing.T) {
	r := newRig(t)
	r.grant("first")
	copied := r.tpm.Copy() // of what was on the disk: the same endorsement key
	r.tpm.Reboot()
	r.boot()
	r.grant("second")
	r.tpm.Reboot()
	r.boot()
	r.grant("third")
	copied.Measure(r.machine)
	r.open(copied)
	if _, _, err := r.attest(); !errors.Is(err, attest.CounterBack) {
		t.Errorf("a copy that has fallen behind: %v", err)
	}
}

// TestRelay: a machine passes the challenge on to a genuine TPM elsewhere, or to another of its own.
func TestRelay(t *testing.T) {
	r, other := newRig(t), newRig(t)
	s, err := r.verifier.Identify(r.server, r.channel, r.device.Identity())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.device.Evidence(s.Challenge()); !errors.Is(err, device.ErrChallenge) {
		t.Errorf("another TPM opened the credential: %v", err)
	}
	// The attestation key of one, the endorsement key of the other.
	mixed := other.identity()
	mixed.EK = r.identity().EK
	if s, err = r.verifier.Identify(r.server, r.channel, attest.Encode(&mixed)); err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]*device.Device{"EK's": r.device, "AK's": other.device} {
		if _, err := d.Evidence(s.Challenge()); !errors.Is(err, device.ErrChallenge) {
			t.Errorf("the %s TPM answered for two: %v", name, err)
		}
	}
	// The right machine, spoken to over a connection that ends elsewhere.
	other.channel = attest.Channel{66}
	if s, err = r.verifier.Identify(r.server, other.channel, r.device.Identity()); err != nil {
		t.Fatal(err)
	}
	evidence, err := r.device.Evidence(s.Challenge())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Appraise(evidence); !errors.Is(err, attest.NotSameTPM) {
		t.Errorf("relayed: %v", err)
	}
	r.accepted("twin")
}

// TestTake: grants fit one evidence, once, and only what is accepted gets a receipt.
func TestTake(t *testing.T) {
	r := newRig(t)
	if _, err := r.device.Take([]byte("grant")); !errors.Is(err, device.ErrGrant) {
		t.Errorf("not a message: %v", err)
	}
	_, s := r.accepted("first")
	g, _, err := s.Grant([]byte("one"), r.verifier.Head)
	if err != nil {
		t.Fatal(err)
	}
	r.accepted("a second challenge, by anybody")
	if _, err := r.device.Take(g); err != nil || string(r.secrets[0]) != "one" {
		t.Errorf("a grant for evidence that is not the last: %v", err)
	}
	r.secrets = nil
	_, s = r.accepted("third")
	if g, _, err = s.Grant([]byte("late"), r.verifier.Head); err != nil {
		t.Fatal(err)
	}
	for range 64 {
		r.accepted("one of too many challenges")
	}
	if _, err := r.device.Take(g); !errors.Is(err, device.ErrGrant) {
		t.Errorf("a grant for evidence that is long forgotten: %v", err)
	}
	_, s = r.accepted("fourth")
	if g, _, err = s.Grant([]byte("two"), attest.Head{Number: 4, Floor: 7}.Sign(r.key)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.device.Take(g); !errors.Is(err, device.ErrHead) || len(r.secrets) != 0 {
		t.Errorf("a grant with an earlier head than the challenge's: %v", err)
	}
	kept := r.identity().Head
	r.verifier.Head = attest.Head{Number: 6, Floor: 7}.Sign(r.key)
	_, s = r.accepted("fifth")
	if g, _, err = s.Grant([]byte("two"), r.verifier.Head); err != nil {
		t.Fatal(err)
	}
	r.accept = errors.New("these are no secrets")
	if _, err := r.device.Take(g); !errors.Is(err, r.accept) {
		t.Errorf("secrets that the server cannot use: %v", err)
	}
	if !bytes.Equal(r.identity().Head, kept) {
		t.Error("a head was kept without secrets")
	}
	r.accept = nil
	if _, err := r.device.Take(g); !errors.Is(err, device.ErrGrant) {
		t.Errorf("a grant was taken twice: %v", err)
	}
	r.grant("three")
	if _, err := r.device.Take(g); !errors.Is(err, device.ErrGrant) {
		t.Errorf("an old grant: %v", err)
	}
}

// TestHeads: once activated, the server answers nobody but the same activator, and not an earlier one.
func TestHeads(t *testing.T) {
	r := newRig(t)
	r.grant("first")
	_, other, _ := ed25519.GenerateKey(rand.Reader)
	good := r.verifier.Head
	for name, head := range map[string][]byte{
		"restored from a backup": attest.Head{Number: 4, Floor: 7}.Sign(r.key),
		"with a lower floor":     attest.Head{Number: 6, Floor: 6}.Sign(r.key),
		"another activator":      attest.Head{Number: 6, Floor: 7}.Sign(other),
	} {
		r.verifier.Head = head
		if _, _, err := r.attest(); !errors.Is(err, device.ErrHead) {
			t.Errorf("%s: %v", name, err)
		}
	}
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	r.verifier.Head = forged
	if _, _, err := r.attest(); !errors.Is(err, device.ErrChallenge) {
		t.Errorf("forged: %v", err)
	}
	r.verifier.Head = attest.Head{Number: 6, Floor: 8}.Sign(r.key)
	r.grant("later")
	// An agent that was restarted keeps the head beside its secrets.
	r.head = r.last
	r.open(r.tpm)
	r.verifier.Head = good
	if _, _, err := r.attest(); !errors.Is(err, device.ErrHead) {
		t.Errorf("after a restart of the agent: %v", err)
	}
}

// TestCertificate: an endorsement key's certificate is read from the TPM's memory, of either kind.
func TestCertificate(t *testing.T) {
	for name, c := range map[string]struct {
		index tpm2.TPMHandle
		want  tpm2.TPMAlgID
	}{"RSA": {0x01c00002, tpm2.TPMAlgRSA}, "ECC": {0x01c0000a, tpm2.TPMAlgECC}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			content := bytes.Repeat([]byte("certificate "), 80) // more than is read at once
			r.tpm.Define(c.index, content)
			r.open(r.tpm)
			id := r.identity()
			if !bytes.Equal(id.EKCertificate, content) {
				t.Errorf("%d bytes, want %d", len(id.EKCertificate), len(content))
			}
			public, err := tpm2.Unmarshal[tpm2.TPMTPublic](id.EK)
			if err != nil || public.Type != c.want {
				t.Errorf("%v, want a key of the certificate's kind: %v", public, err)
			}
			id.EKCertificate = nil
			s, err := r.verifier.Identify(nil, r.channel, attest.Encode(&id))
			if err != nil {
				t.Fatal(err)
			}
			// With this kind of key the credential opens, too; the transcript differs by the certificate.
			if _, err := r.device.Evidence(s.Challenge()); err != nil {
				t.Error(err)
			}
		})
	}
}

// broken is a TPM that fails from some command on, or answers another.
type broken struct {
	transport.TPM
	after int
	fail  func(command []byte) ([]byte, error)
}

func (b *broken) Send(command []byte) ([]byte, error) {
	if b.after--; b.after < 0 {
		return b.fail(command)
	}
	return b.TPM.Send(command)
}

// TestBrokenTPM: whatever the TPM does not do, there is no evidence, and no panic.
func TestBrokenTPM(t *testing.T) {
	r := newRig(t)
	gone := errors.New("gone")
	b := &broken{TPM: r.tpm, fail: func([]byte) ([]byte, error) { return nil, gone }}
	opened := false
	for after := 0; after < 12 && !opened; after++ {
		r.tpm.Reboot()
		b.after = after
		d, err := device.Open(b, device.Options{})
		if err == nil {
			opened = true
			b.after = 0
			if err := d.Close(); !errors.Is(err, gone) {
				t.Errorf("keys that cannot be flushed: %v", err)
			}
			break
		}
		if !errors.Is(err, gone) {
			t.Errorf("after %d commands: %v", after, err)
		}
	}
	if !opened {
		t.Error("it never opens")
	}
	r.tpm.Reboot()
	b.after = 1000
	r.open(b)
	answered := false
	for after := 0; after < 40 && !answered; after++ {
		s, err := r.verifier.Identify(r.server, r.channel, r.device.Identity())
		if err != nil {
			t.Fatal(err)
		}
		b.after = after
		_, err = r.device.Evidence(s.Challenge())
		answered = err == nil
		if err != nil && !errors.Is(err, gone) {
			t.Errorf("after %d commands: %v", after, err)
		}
	}
	if !answered {
		t.Error("it never answers")
	}
	b.after = 0
	if _, err := r.device.Clock(); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
}

// TestNoLog: without the firmware's log there is no evidence.
func TestNoLog(t *testing.T) {
	r := newRig(t)
	gone := errors.New("gone")
	if err := r.device.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := device.Open(r.tpm, device.Options{Channel: r.channel, Log: func() ([]byte, error) { return nil, gone }, Now: time.Now})
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := r.verifier.Identify(nil, r.channel, d.Identity())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Evidence(s.Challenge()); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
}

// TestRestlessRegisters: registers that change under the quote are read again, not for ever.
func TestRestlessRegisters(t *testing.T) {
	r := newRig(t)
	extends := 0
	restless := &broken{TPM: r.tpm}
	restless.fail = func(command []byte) ([]byte, error) {
		if command[8] == 1 && command[9] == 0x58 && extends > 0 { // TPM2_Quote
			extends--
			r.tpm.Extend(16, [32]byte{}) // not one that counts
			r.tpm.Extend(8, [32]byte{1})
		}
		return r.tpm.Send(command)
	}
	r.open(restless)
	s, err := r.verifier.Identify(r.server, r.channel, r.device.Identity())
	if err != nil {
		t.Fatal(err)
	}
	extends = 1
	if _, err := r.device.Evidence(s.Challenge()); err != nil {
		t.Errorf("once: %v", err)
	}
	unread := restless.fail
	restless.fail = func(command []byte) ([]byte, error) {
		if command[8] == 1 && command[9] == 0x7e { // TPM2_PCR_Read of a bank that is not there
			rsp := []byte{0x80, 1, 0, 0, 0, 22, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}
			return rsp, nil
		}
		return unread(command)
	}
	if _, err := r.device.Evidence(s.Challenge()); err == nil || !strings.Contains(err.Error(), "no SHA-256 bank") {
		t.Errorf("no bank: %v", err)
	}
	restless.fail = unread
	extends = 100
	if _, err := r.device.Evidence(s.Challenge()); err == nil || extends != 97 {
		t.Errorf("for ever: %v after %d", err, 100-extends)
	}
}

func TestGuard(t *testing.T) {
	at := func(clock time.Duration) device.Reading { return device.Reading{Resets: 3, Clock: clock} }
	s := time.Second
	for name, c := range map[string]struct {
		tpm  device.Reading
		own  time.Duration
		want error
	}{
		"goes on":               {at(20 * s), 110 * s, nil},
		"a slow TPM":            {at(10*s + 85*s), 200 * s, nil},
		"paused":                {at(10*s + 60*s), 110 * s, device.ErrStopped},
		"put back":              {at(9 * s), 110 * s, device.ErrStopped},
		"TPM stood still":       {at(11 * s), 200 * s, device.ErrStopped},
		"another start":         {device.Reading{Resets: 4, Clock: 20 * s}, 110 * s, device.ErrStopped},
		"suspended and resumed": {device.Reading{Resets: 3, Restarts: 1, Clock: 20 * s}, 110 * s, device.ErrStopped},
	} {
		g := &device.Guard{}
		if err := g.Check(at(10*s), 100*s); err != nil {
			t.Fatal(err)
		}
		if err := g.Check(c.tpm, c.own); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// TestGuardRealTPM: a real TPM's clock goes with ours, and shows a restart.
func TestGuardRealTPM(t *testing.T) {
	r := newRig(t)
	g, begin := &device.Guard{}, time.Now()
	check := func() error {
		now, err := r.device.Clock()
		if err != nil {
			t.Fatal(err)
		}
		return g.Check(now, time.Since(begin))
	}
	for range 5 {
		if err := check(); err != nil {
			t.Error(err)
		}
	}
	r.tpm.Reboot()
	if err := check(); !errors.Is(err, device.ErrStopped) {
		t.Errorf("after a reset of the TPM: %v", err)
	}
}

// TestHandler speaks the protocol over TLS 1.3.
func TestHandler(t *testing.T) {
	r := newRig(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "boot"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pemCertificate(der), pemKey(t, key))
	if err != nil {
		t.Fatal(err)
	}
	if r.channel, err = device.ChannelOf(cert); err != nil {
		t.Fatal(err)
	}
	if _, err := device.ChannelOf(tls.Certificate{}); err == nil {
		t.Error("no certificate is a channel")
	}
	r.open(r.tpm)
	server := httptest.NewUnstartedServer(r.device.Handler())
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}
	server.StartTLS()
	defer server.Close()
	client := server.Client()
	client.Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true
	call := func(method, path string, body []byte) (int, []byte, attest.Channel) {
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		rsp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer rsp.Body.Close()
		b, err := io.ReadAll(rsp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return rsp.StatusCode, b, attest.ChannelOf(rsp.TLS.PeerCertificates[0])
	}
	_, id, channel := call("GET", attest.PathIdentity, nil)
	s, err := r.verifier.Identify(r.server, channel, id)
	if err != nil {
		t.Fatal(err)
	}
	_, evidence, _ := call("POST", attest.PathEvidence, s.Challenge())
	if _, err := s.Appraise(evidence); err != nil {
		t.Fatal(err)
	}
	g, expected, err := s.Grant([]byte("secrets"), r.verifier.Head)
	if err != nil {
		t.Fatal(err)
	}
	status, receipt, _ := call("POST", attest.PathSecrets, g)
	if err := attest.Received(receipt, expected); err != nil || status != http.StatusOK {
		t.Errorf("%d, %v", status, err)
	}
	for name, c := range map[string]struct {
		method, path string
		body         []byte
		want         int
	}{
		"a grant again":   {"POST", attest.PathSecrets, g, http.StatusConflict},
		"no grant":        {"POST", attest.PathSecrets, nil, http.StatusConflict},
		"no challenge":    {"POST", attest.PathEvidence, nil, http.StatusBadRequest},
		"too much":        {"POST", attest.PathEvidence, make([]byte, attest.MaxChallenge+1), http.StatusBadRequest},
		"another method":  {"POST", attest.PathIdentity, nil, http.StatusMethodNotAllowed},
		"nothing of ours": {"GET", "/", nil, http.StatusNotFound},
	} {
		if status, _, _ := call(c.method, c.path, c.body); status != c.want {
			t.Errorf("%s: %d, want %d", name, status, c.want)
		}
	}
	if s, err = r.verifier.Identify(r.server, channel, r.device.Identity()); err != nil {
		t.Fatal(err)
	}
	r.tpm.Stop()
	if status, _, _ := call("POST", attest.PathEvidence, s.Challenge()); status == http.StatusOK {
		t.Error("evidence without a TPM")
	}
}
