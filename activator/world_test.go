package activator_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/activator"
	"lethe/attest"
	"lethe/attest/attesttest"
	"lethe/attest/device"
	"lethe/secret"
)

// office is an activator's machine with its operators, used by its commands.
type office struct {
	t         testing.TB
	dir       string   // data directory
	files     string   // everything else
	operators []string // private keys' files
	releaser  *attesttest.Releaser
}

func pemOf(t testing.TB, kind string, der []byte, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// file writes a file and returns its path.
func (o *office) file(name string, b []byte) string {
	o.t.Helper()
	path := filepath.Join(o.files, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		o.t.Fatal(err)
	}
	return path
}

// operator makes an operator, and returns the files of both keys.
func (o *office) operator(name string) (private, public string) {
	o.t.Helper()
	p, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		o.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	private = o.file(name+".key", pemOf(o.t, "PRIVATE KEY", der, err))
	der, err = x509.MarshalPKIXPublicKey(p)
	return private, o.file(name+".pub", pemOf(o.t, "PUBLIC KEY", der, err))
}

func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "boot"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

const nodeKeys = `{"salt":"` + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" + `","seal":"` + "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=" + `","trust_root":"e30="}`

// newOffice makes an activator by its own command.
func newOffice(t testing.TB) *office {
	t.Helper()
	o := &office{t: t, dir: filepath.Join(t.TempDir(), "activator"), files: t.TempDir(), releaser: attesttest.NewReleaser(t)}
	o.releaser.Start, o.releaser.Phases = time.Now().Add(-time.Hour), nil
	args := o.setup()
	o.run(args...)
	b, err := json.Marshal(attesttest.Profile())
	if err != nil {
		t.Fatal(err)
	}
	o.run("profile", "set", o.file("profile.json", b))
	return o
}

// setup returns the arguments of init.
func (o *office) setup() []string {
	ada, adaPublic := o.operator("ada")
	ben, benPublic := o.operator("ben")
	_, cyd := o.operator("cyd")
	o.operators = []string{ada, ben}
	c := certificate(o.t)
	return []string{"init", "--operator", adaPublic, "--operator", benPublic, "--operator", cyd, "--trust", o.file("trust.json", o.releaser.TrustFile()),
		"--control-url", "https://198.51.100.10:8443", "--control-address", "198.51.100.10", "--control-ca", o.file("control-ca.pem", pemOf(o.t, "CERTIFICATE", c.Leaf.Raw, nil)),
		"--node-keys", o.file("node.json", []byte(nodeKeys))}
}

// try runs a command and returns what it says.
func (o *office) try(args ...string) (code int, stdout, stderr string) {
	o.t.Helper()
	var out, errs bytes.Buffer
	code = activator.Run(o.t.Context(), append([]string{"--dir", o.dir}, args...), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// run runs a command that must do.
func (o *office) run(args ...string) string {
	o.t.Helper()
	code, out, errs := o.try(args...)
	if code != 0 {
		o.t.Fatalf("%q: exit %d: %s", args, code, errs)
	}
	return out
}

// refused runs a command that must fail with this code and these words.
func (o *office) refused(code int, words string, args ...string) {
	o.t.Helper()
	got, out, errs := o.try(args...)
	if got != code || !strings.HasPrefix(errs, "error: ") && !strings.Contains(errs, "\nerror: ") || !strings.Contains(errs, words) {
		o.t.Errorf("%q: exit %d, %q, %q; want %d and %q", args, got, out, errs, code, words)
	}
}

func decode[T any](t testing.TB, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

// unique returns names that no other call has returned.
var (
	countMu sync.Mutex
	count   int
)

func unique(name string) string {
	countMu.Lock()
	defer countMu.Unlock()
	count++
	return name + "-" + string(rune('a'+count/26%26)) + string(rune('a'+count%26)) + "-" + time.Now().Format("150405.000000")
}

// sign lets operators sign a change, one after the other.
func (o *office) sign(change string, keys ...string) string {
	o.t.Helper()
	for _, k := range keys {
		next := filepath.Join(o.files, unique("change"))
		o.run("sign", "--key", k, "--out", next, change)
		change = next
	}
	return change
}

// release makes a release of an image, and returns its files.
func (o *office) release(version uint64, i attesttest.Image) (manifest string, statements []string) {
	o.t.Helper()
	m, s, _ := o.releaser.Make(version, map[string]attesttest.Image{"vm": i}, nil)
	for _, b := range s {
		statements = append(statements, "--statement", o.file(unique("statement"), b))
	}
	return o.file(unique("manifest"), m), statements
}

// propose writes a change and returns its file.
func (o *office) propose(args ...string) string {
	o.t.Helper()
	path := filepath.Join(o.files, unique("proposed"))
	o.run(append(args, "--out", path)...)
	return path
}

// admit does all that admits a release of an image.
func (o *office) admit(version uint64, i attesttest.Image) {
	o.t.Helper()
	manifest, statements := o.release(version, i)
	change := o.sign(o.propose("release", "propose", manifest), o.operators...)
	o.run(append([]string{"release", "admit", "--change", change, "--manifest", manifest}, statements...)...)
}

// open opens the activator.
func (o *office) open() *activator.Activator {
	o.t.Helper()
	a, err := activator.Open(o.dir)
	if err != nil {
		o.t.Fatal(err)
	}
	return a
}

// machine is a server with a real software TPM that waits at an address.
type machine struct {
	t       testing.TB
	tpm     *attesttest.TPM
	image   attesttest.Image
	device  *device.Device
	server  *httptest.Server
	address netip.AddrPort

	mu      sync.Mutex
	config  *tls.Config    // of this boot
	handler http.Handler   // of this boot
	secrets []*secret.Node // that it was given in this boot
	given   chan *secret.Node
	accept  func() error // before it takes secrets
}

func newMachine(t testing.TB, i attesttest.Image) *machine {
	t.Helper()
	m := &machine{t: t, tpm: attesttest.StartTPM(t), image: i, given: make(chan *secret.Node, 100)}
	m.boot()
	// The port stays while the machine starts again, so that nobody else gets it.
	m.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		h := m.handler
		m.mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	m.server.TLS = &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.config, nil
	}}
	m.server.Config.ErrorLog = nobody()
	m.server.StartTLS()
	m.address = netip.MustParseAddrPort(m.server.Listener.Addr().String())
	t.Cleanup(m.server.Close)
	return m
}

// boot starts the machine.
func (m *machine) boot() {
	m.t.Helper()
	boot := attesttest.Boot(m.image)
	boot.Phases = nil
	m.tpm.Measure(boot)
	cert := certificate(m.t)
	channel, err := device.ChannelOf(cert)
	if err != nil {
		m.t.Fatal(err)
	}
	d, err := device.Open(m.tpm, device.Options{Channel: channel, Log: func() ([]byte, error) { return boot.Log(), nil }, Now: time.Now, Accept: m.take})
	if err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.device, m.secrets, m.handler = d, nil, d.Handler()
	m.config = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}
}

// serve lets something else answer on the machine's port.
func (m *machine) serve(h http.Handler) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handler = h
}

// reboot is a power cut and a start.
func (m *machine) reboot() {
	m.t.Helper()
	m.serve(http.NotFoundHandler())
	m.server.CloseClientConnections()
	m.tpm.Reboot()
	m.boot()
}

func (m *machine) take(granted, _ []byte) error {
	if m.accept != nil {
		if err := m.accept(); err != nil {
			return err
		}
	}
	b, err := secret.Complete(granted, m.device.VPNKey, m.device.APIKey)
	if err != nil {
		return err
	}
	n, err := secret.Decode(b)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secrets = append(m.secrets, n)
	m.given <- n
	return nil
}

func (m *machine) taken() []*secret.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.secrets
}

// ek returns the digest of its endorsement key, as its console would.
func (m *machine) ek() string {
	m.t.Helper()
	var id attest.Identity
	if err := attest.Decode(m.device.Identity(), &id); err != nil {
		m.t.Fatal(err)
	}
	return attest.Digest(id.EK).String()
}

// enrol does all that makes a machine a server.
func (o *office) enrol(id string, m *machine) {
	o.t.Helper()
	o.run("enrol", id, "--address", m.address.String(), "--flavour", "vm", "--profile", "test", "--public", "198.51.100.20", "--public", "2001:db8::20")
	o.run("confirm", id, "--ek", m.ek())
}
