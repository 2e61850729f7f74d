package activator_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/activator"
	"lethe/attest"
	"lethe/attest/attesttest"
	"lethe/event"
	"lethe/internal/testkit"
	"lethe/inventory"
)

// TestLife is the life of a service's activator with one server, by its commands.
func TestLife(t *testing.T) {
	o := newOffice(t)
	seven := attesttest.TheImage("seven")
	o.admit(7, seven)
	m := newMachine(t, seven)

	if out := o.run("enrol", "nl-ams-1", "--address", m.address.String(), "--flavour", "vm", "--profile", "test", "--public", "198.51.100.20", "--public", "2001:db8::20"); !strings.Contains(out, m.ek()) {
		t.Errorf("the operator is not told the EK: %s", out)
	}
	o.refused(8, "server-pending", "activate", "nl-ams-1")
	o.refused(4, "another EK", "confirm", "nl-ams-1", "--ek", strings.Repeat("0", 64))
	o.run("confirm", "nl-ams-1", "--ek", m.ek())
	o.run("activate", "nl-ams-1")
	if len(m.taken()) != 1 {
		t.Fatalf("%d secrets", len(m.taken()))
	}
	n := m.taken()[0]
	checkSecrets(t, o, m)
	o.run("activate", "nl-ams-1") // renewed
	if again := m.taken()[1]; again.VPNCertificate.Reveal() == n.VPNCertificate.Reveal() || again.VPNKey.Reveal() != n.VPNKey.Reveal() {
		t.Error("want a new certificate for the same key")
	}

	m.reboot()
	o.run("activate", "nl-ams-1")
	if again := m.taken()[0]; again.VPNKey.Reveal() == n.VPNKey.Reveal() || again.APIKey.Reveal() == n.APIKey.Reveal() {
		t.Error("the server has a key of an earlier boot")
	}
	list := decode[struct {
		Floor   uint64
		Servers []activator.Server
	}](t, o.run("list", "--json"))
	if s := list.Servers[0]; len(list.Servers) != 1 || s.ID != "nl-ams-1" || s.Version != 7 || s.Accepted == nil || time.Until(s.Accepted.Until) < 47*time.Hour || s.Refusals != 0 {
		t.Errorf("%+v", list)
	}

	// An image that is not released, then released, then below the floor, then revoked.
	m.image = attesttest.TheImage("eight")
	m.reboot()
	o.refused(8, "unknown-image", "activate", "nl-ams-1")
	if out := o.run("list"); !strings.Contains(out, "refused: unknown-image") {
		t.Errorf("list: %s", out)
	}
	why := o.run("why", "nl-ams-1")
	if !strings.Contains(why, "no admitted release has this image (unknown-image)") || !strings.Contains(why, "accepted with release 7") || !strings.Contains(why, "nobody has confirmed it (server-pending)") {
		t.Errorf("why: %s", why)
	}
	o.admit(8, m.image)
	o.run("activate", "nl-ams-1")
	o.run("floor", "raise", "9", "--change", o.sign(o.propose("floor", "propose", "9"), o.operators...))
	o.refused(8, "below-floor", "activate", "nl-ams-1")
	o.admit(9, seven2())
	m.image = seven2()
	m.reboot()
	o.run("activate", "nl-ams-1")
	o.run("release", "revoke", "9")
	o.refused(8, "release-revoked", "activate", "nl-ams-1")
	releases := o.run("release", "list")
	for _, want := range []string{"7        below the floor", "8        below the floor", "9        revoked"} {
		if !strings.Contains(releases, want) {
			t.Errorf("%s: no %q", releases, want)
		}
	}
	o.run("revoke", "nl-ams-1")
	o.refused(8, "server-revoked", "activate", "nl-ams-1")
	if out := o.run("list"); !strings.Contains(out, "revoked") {
		t.Errorf("list: %s", out)
	}
	// The name is free again, and the TPM.
	o.enrol("nl-ams-1", m)

	verified := o.run("log", "verify")
	if !strings.Contains(verified, "every signature is right") {
		t.Errorf("%s", verified)
	}
	lines := strings.Count(o.run("log", "show"), "\n")
	if v := decode[struct{ Records int }](t, o.run("log", "verify", "--json")); v.Records != lines || lines < 20 {
		t.Errorf("%d records, %d lines", v.Records, lines)
	}
	record, err := os.ReadFile(filepath.Join(o.dir, "record.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	inv, err := inventory.Load()
	if err != nil {
		t.Fatal(err)
	}
	for name := range o.backup() {
		if _, ok := inv.Find("file:lethe-activator/" + name); !ok {
			t.Errorf("no fact of the inventory declares the file %s", name)
		}
	}
	for _, private := range []string{"PRIVATE KEY", "Static key", "AQEBAQEB"} {
		if strings.Contains(string(record), private) {
			t.Errorf("the record holds %q", private)
		}
	}
}

func seven2() attesttest.Image { return attesttest.TheImage("nine") }

// checkSecrets looks at what a server was given as customers and the control plane do.
func checkSecrets(t *testing.T, o *office, m *machine) {
	t.Helper()
	dir := t.TempDir()
	o.run("authorities", dir)
	pool := func(name string) *x509.CertPool {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		p := x509.NewCertPool()
		if !p.AppendCertsFromPEM(b) {
			t.Fatalf("%s holds no certificate", name)
		}
		return p
	}
	n := m.taken()[0]
	parse := func(cert, key string) *x509.Certificate {
		pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf
	}
	vpn, api := parse(n.VPNCertificate.Reveal(), n.VPNKey.Reveal()), parse(n.APICertificate.Reveal(), n.APIKey.Reveal())
	for _, name := range []string{"nl-ams-1", "198.51.100.20", "2001:db8::20"} {
		if _, err := vpn.Verify(x509.VerifyOptions{Roots: pool("vpn-ca.pem"), DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !slices.Contains(vpn.DNSNames, name) {
			t.Errorf("%s is not among the DNS names, where Windows looks", name)
		}
	}
	if len(vpn.UnknownExtKeyUsage) != 1 || vpn.DNSNames[0] != "nl-ams-1" {
		t.Errorf("%v %v", vpn.UnknownExtKeyUsage, vpn.DNSNames)
	}
	if _, err := api.Verify(x509.VerifyOptions{Roots: pool("api-ca.pem"), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil || api.Subject.CommonName != "nl-ams-1" {
		t.Errorf("%v %v", api.Subject, err)
	}
	if _, err := api.Verify(x509.VerifyOptions{Roots: pool("vpn-ca.pem"), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("one authority signs for both uses")
	}
	for _, c := range []*x509.Certificate{vpn, api} {
		if life := time.Until(c.NotAfter); life > 48*time.Hour || life < 47*time.Hour || time.Since(c.NotBefore) < 5*time.Minute {
			t.Errorf("from %v to %v", c.NotBefore, c.NotAfter)
		}
	}
	crypt, err := os.ReadFile(filepath.Join(dir, "tls-crypt.key"))
	if err != nil || n.TLSCrypt.Reveal() != string(crypt) || n.ControlURL != "https://198.51.100.10:8443" || n.Seal.Reveal()[0] != 1 || string(n.TrustRoot) != "{}" {
		t.Errorf("%v %v", n, err)
	}
	o.refused(4, "exists already", "authorities", dir)
}

// run runs the service until the returned function is called, which returns its error.
func (o *office) serve() func() error {
	o.t.Helper()
	ctx, stop := context.WithCancel(o.t.Context())
	a := o.open()
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, event.New(io.Discard)) }()
	return func() error { stop(); return <-done }
}

// quick makes the service visit servers all the time.
func (o *office) quick() {
	o.t.Helper()
	b := []byte(`{"version":1,"control_url":"https://198.51.100.10:8443","control_addresses":["198.51.100.10"],"waiting":"20ms","active":"20ms","witness":"witness"}`)
	if err := os.WriteFile(filepath.Join(o.dir, "activator.json"), b, 0o600); err != nil {
		o.t.Fatal(err)
	}
}

// TestRun: servers that wait are activated without a hand, and again after a reboot.
func TestRun(t *testing.T) {
	o := newOffice(t)
	o.quick()
	seven := attesttest.TheImage("seven")
	o.admit(7, seven)
	a, b := newMachine(t, seven), newMachine(t, seven)
	o.enrol("nl-ams-1", a)
	o.enrol("us-nyc-1", b)
	refused := newMachine(t, attesttest.TheImage("implant"))
	o.enrol("de-fra-1", refused)
	o.run("enrol", "se-sto-1", "--address", newMachine(t, seven).address.String(), "--flavour", "vm", "--profile", "test") // nobody confirms it
	stop := o.serve()
	for _, m := range []*machine{a, b} {
		<-m.given
	}
	a.reboot()
	if n := <-a.given; n.Server != "nl-ams-1" {
		t.Errorf("%s", n.Server)
	}
	testkit.Eventually(t, time.Minute, func() bool { return strings.Contains(o.run("why", "de-fra-1"), "unknown-image") },
		func() string { return o.run("why", "de-fra-1") })
	if err := stop(); err != nil {
		t.Errorf("stopped: %v", err)
	}
	if len(a.taken()) != 1 || len(b.taken()) != 1 || len(refused.taken()) != 0 {
		t.Errorf("%d, %d and %d secrets", len(a.taken()), len(b.taken()), len(refused.taken()))
	}
	if out := o.run("list"); !strings.Contains(out, "to be confirmed") {
		t.Errorf("%s", out)
	}
	// A new process attests everybody once: it does not know whether secrets got there.
	stop = o.serve()
	for _, m := range []*machine{a, b} {
		<-m.given
	}
	if err := stop(); err != nil {
		t.Errorf("stopped: %v", err)
	}
	// A server that is gone is no reason to stop.
	a.server.Close()
	stop = o.serve()
	<-b.given
	if err := stop(); err != nil {
		t.Errorf("stopped: %v", err)
	}
}

// TestRenewal: a server is attested again when half of its certificates' life is over.
func TestRenewal(t *testing.T) {
	o := newOffice(t)
	seven := attesttest.TheImage("seven")
	o.admit(7, seven)
	m := newMachine(t, seven)
	o.enrol("nl-ams-1", m)
	o.quick()
	a := o.open()
	for name, c := range map[string]struct {
		s    activator.Server
		want bool
	}{
		"never seen":                      {activator.Server{}, true},
		"has most of its life":            {activator.Server{Accepted: &activator.Acceptance{Until: time.Now().Add(25 * time.Hour)}}, false},
		"has less than half":              {activator.Server{Accepted: &activator.Acceptance{Until: time.Now().Add(23 * time.Hour)}}, true},
		"took no secrets, or was refused": {activator.Server{Refusals: 1, Accepted: &activator.Acceptance{Until: time.Now().Add(25 * time.Hour)}}, true},
	} {
		if got := activator.Due(a, &c.s); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	o.run("activate", "nl-ams-1")
	stop := o.serve()
	<-m.given
	<-m.given // once by the new process
	// Secrets that the server did not take are offered again.
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	m.accept = func() error { return errors.New("no space") }
	o.refused(8, "no-receipt", "activate", "nl-ams-1")
	m.accept = nil
	stop = o.serve()
	<-m.given
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if s := decode[struct{ Servers []activator.Server }](t, o.run("list", "--json")).Servers[0]; s.Last != nil {
		t.Errorf("%+v", s)
	}
}

// TestRestored: an activator that is put back to an old backup notices by its servers, by the copy of its
// head, and goes on with the newest record.
func TestRestored(t *testing.T) {
	o := newOffice(t)
	seven := attesttest.TheImage("seven")
	o.admit(7, seven)
	m := newMachine(t, seven)
	o.enrol("nl-ams-1", m)
	backup := o.backup()
	o.run("activate", "nl-ams-1")
	o.run("release", "revoke", "7") // that the backup has not heard of
	newest := o.backup()

	o.restore(backup)
	o.quick()
	// Twin: a server that has seen nothing cannot tell. It would be activated.
	stop := o.serve()
	testkit.Eventually(t, time.Minute, func() bool {
		code, _, errs := o.try("list")
		return code == 8 && strings.Contains(errs, "restored from an old backup")
	}, func() string { return "the activator goes on with an old record" })
	err := stop()
	if !errors.Is(err, attest.ActivatorRestored) && (err == nil || !strings.Contains(err.Error(), "restored from an old backup")) {
		t.Errorf("the service ended with %v", err)
	}
	if len(m.taken()) != 1 {
		t.Errorf("%d secrets", len(m.taken()))
	}
	o.refused(8, "restored from an old backup", "activate", "nl-ams-1")
	o.refused(8, "restored from an old backup", "revoke", "nl-ams-1")
	o.refused(8, "restored from an old backup", "log", "verify")

	for name, b := range newest {
		if name == "record.jsonl" || name == "head" {
			o.put(name, b)
		}
	}
	o.refused(8, "release-revoked", "activate", "nl-ams-1")

	// The whole directory put back, but not the witness on another medium.
	o.quick()
	o.run("revoke", "nl-ams-1")
	witness, err := os.ReadFile(filepath.Join(o.dir, "witness"))
	if err != nil {
		t.Fatal(err)
	}
	o.restore(backup)
	o.put("witness", witness)
	o.quick()
	o.refused(8, "restored from an old backup", "list")
	// The server itself answers no activator that has forgotten: see attest/device.
	o.restore(backup)
	o.run("list")
}

// backup returns every file of the data directory.
func (o *office) backup() map[string][]byte {
	o.t.Helper()
	all := map[string][]byte{}
	err := filepath.WalkDir(o.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(o.dir, path)
		if err != nil {
			return err
		}
		all[rel], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		o.t.Fatal(err)
	}
	return all
}

// restore makes the data directory what it was.
func (o *office) restore(backup map[string][]byte) {
	o.t.Helper()
	for name := range o.backup() {
		if err := os.Remove(filepath.Join(o.dir, name)); err != nil {
			o.t.Fatal(err)
		}
	}
	for name, b := range backup {
		o.put(name, b)
	}
}

func (o *office) put(name string, b []byte) {
	o.t.Helper()
	if err := os.WriteFile(filepath.Join(o.dir, name), b, 0o600); err != nil {
		o.t.Fatal(err)
	}
}

// TestAuthoritiesFile: what is not an authority is not loaded.
func TestAuthoritiesFile(t *testing.T) {
	o := newOffice(t)
	good := o.backup()
	key := func(name string) []byte { return good["keys/"+name] }
	block, rest := pem.Decode(key("vpn-ca.pem"))
	for name, b := range map[string][]byte{
		"nothing": nil, "no key": pem.EncodeToMemory(block), "key first": append(rest, pem.EncodeToMemory(block)...),
		"another's key": append(pem.EncodeToMemory(block), second(key("api-ca.pem"))...), "more": append(key("vpn-ca.pem"), 'x'),
	} {
		o.put("keys/vpn-ca.pem", b)
		if _, err := activator.Open(o.dir); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}

func second(b []byte) []byte {
	_, rest := pem.Decode(b)
	return rest
}
