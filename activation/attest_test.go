package activation_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"

	"lethe/activation"
	"lethe/attest"
	"lethe/attest/attesttest"
	"lethe/dsse"
	"lethe/event"
	"lethe/image/pcr"
	"lethe/private"
	"lethe/secret"
)

// attester is a port on a machine with a software TPM, and an activator that knows it.
type attester struct {
	t        *testing.T
	port     *activation.Server
	url      string
	verifier *attest.Verifier
	server   *attest.Server
	key      ed25519.PrivateKey // of the activator's record
	ca       *ecdsa.PrivateKey
	caCert   *x509.Certificate
}

func newAttester(t *testing.T, head []byte) *attester {
	a := &attester{t: t}
	tpm, image := attesttest.StartTPM(t), attesttest.TheImage("seven")
	machine := attesttest.Boot(image)
	tpm.Measure(machine)
	s, err := activation.New("", "", event.New(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Attest(tpm, func() ([]byte, error) { return machine.Log(), nil }, head)
	if err != nil {
		t.Fatal(err)
	}
	var id attest.Identity
	if err := attest.Decode(d.Identity(), &id); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, d.Close()); err != nil {
			t.Error(err)
		}
	})
	a.port, a.url = s, "https://"+l.Addr().String()
	r := attesttest.NewReleaser(t)
	r.Start = time.Now().Add(-time.Hour)
	_, _, m := r.Make(7, map[string]attesttest.Image{"vm": image}, nil)
	_, a.key, _ = ed25519.GenerateKey(rand.Reader)
	a.server = &attest.Server{ID: "nl-ams-1", EK: attest.Digest(id.EK), Flavour: "vm", Profile: attesttest.Profile(), Confirmed: true}
	a.verifier = &attest.Verifier{Releases: []attest.Release{{Manifest: m}}, Now: time.Now(), Phases: pcr.Phases, Head: attest.Head{Number: 1}.Sign(a.key),
		Place: func(dsse.Digest) string { return "" }, Knows: func(attest.Head) bool { return true }}
	if a.ca, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	a.caCert = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true}, &a.ca.PublicKey)
	return a
}

func (a *attester) sign(template *x509.Certificate, public *ecdsa.PublicKey) *x509.Certificate {
	a.t.Helper()
	template.SerialNumber, template.NotAfter = big.NewInt(1), time.Now().Add(time.Hour)
	parent := a.caCert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, a.ca)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// call asks the port: one request, one connection.
func (a *attester) call(method, path string, body []byte) (int, []byte, attest.Channel) {
	a.t.Helper()
	r, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, bytes.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	rsp, err := c.Do(r)
	if err != nil {
		a.t.Fatal(err)
	}
	defer rsp.Body.Close()
	b, err := io.ReadAll(rsp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return rsp.StatusCode, b, attest.ChannelOf(rsp.TLS.PeerCertificates[0])
}

// activate attests the machine and grants secrets for a server of that name.
func (a *attester) activate(name string) (status int) {
	a.t.Helper()
	_, identity, channel := a.call("GET", attest.PathIdentity, nil)
	s, err := a.verifier.Identify(a.server, channel, identity)
	if err != nil {
		a.t.Fatal(err)
	}
	_, evidence, _ := a.call("POST", attest.PathEvidence, s.Challenge())
	result, err := s.Appraise(evidence)
	if err != nil {
		a.t.Fatal(err)
	}
	text := func(c *x509.Certificate) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	of := func(public *ecdsa.PublicKey) private.Value[string] {
		return private.Of(text(a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}}, public)))
	}
	n := secret.Node{Server: "nl-ams-1", VPNCertificate: of(result.VPNKey), APICertificate: of(result.APIKey), ControlURL: "https://control.example",
		Control: []netip.Addr{netip.MustParseAddr("198.51.100.10")}, ControlCA: text(a.caCert), TrustRoot: []byte("{}"),
		TLSCrypt: private.Of("-----BEGIN OpenVPN Static key V1-----\n00\n-----END OpenVPN Static key V1-----\n")}
	granted, err := n.Encode()
	if err != nil {
		a.t.Fatal(err)
	}
	g, expected, err := s.Grant(granted, a.verifier.Head)
	if err != nil {
		a.t.Fatal(err)
	}
	status, receipt, _ := a.call("POST", attest.PathSecrets, g)
	if got := attest.Received(receipt, expected); (got == nil) != (status == http.StatusOK) {
		a.t.Errorf("status %d, receipt: %v", status, got)
	}
	return status
}

// TestAttest: an activator proves what the machine is over the port, and its secrets come out; later ones
// as renewed.
func TestAttest(t *testing.T) {
	a := newAttester(t, nil)
	if status := a.activate("us-nyc-1"); status != http.StatusInternalServerError {
		t.Errorf("certificates for another server: %d", status)
	}
	if a.port.State().Phase != activation.Awaiting {
		t.Error("active without secrets")
	}
	if status := a.activate("nl-ams-1"); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	first, err := a.port.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Kept.Close()
	kept, err := secret.Restore(first.Kept)
	if err != nil || kept.VPNKey.Reveal() != first.Secrets.VPNKey.Reveal() || !bytes.Equal(first.Head, a.verifier.Head) {
		t.Errorf("%v", err)
	}
	if a.port.State().Phase != activation.Active {
		t.Error("not active with secrets")
	}
	if status := a.activate("nl-ams-1"); status != http.StatusOK {
		t.Errorf("renewed: status %d", status)
	}
	if status := a.activate("nl-ams-1"); status != http.StatusInternalServerError {
		t.Errorf("renewed before the last ones were taken up: status %d", status)
	}
	renewed := <-a.port.Renewed()
	defer renewed.Kept.Close()
	if renewed.Secrets.VPNKey.Reveal() != first.Secrets.VPNKey.Reveal() || renewed.Secrets.VPNCertificate.Reveal() == first.Secrets.VPNCertificate.Reveal() {
		t.Error("want a new certificate for the same key")
	}
	if status, body, _ := a.call("GET", "/v1/state", nil); status != http.StatusOK || len(body) == 0 {
		t.Errorf("state: %d", status)
	}
	if status, body, _ := a.call("GET", "/v1/other", nil); status != http.StatusNotFound || len(body) != 0 {
		t.Errorf("another path: %d", status)
	}
}

// TestAttestHead: an instance of the agent that has secrets answers the activator that they came from.
func TestAttestHead(t *testing.T) {
	_, other, _ := ed25519.GenerateKey(rand.Reader)
	a := newAttester(t, attest.Head{Number: 9}.Sign(other))
	_, identity, channel := a.call("GET", attest.PathIdentity, nil)
	s, err := a.verifier.Identify(a.server, channel, identity)
	if err != nil {
		t.Fatal(err)
	}
	if status, _, _ := a.call("POST", attest.PathEvidence, s.Challenge()); status != http.StatusConflict {
		t.Errorf("another activator: %d", status)
	}
}

// noTPM answers nothing.
type noTPM struct{}

func (noTPM) Send([]byte) ([]byte, error) { return nil, errors.New("gone") }

func TestNoTPM(t *testing.T) {
	s, err := activation.New(filepath.Join(t.TempDir(), "none"), "", event.New(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Attest(transport.TPM(noTPM{}), nil, nil); err == nil {
		t.Error("attests without a TPM")
	}
}
