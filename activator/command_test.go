package activator_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"lethe/activator"
	"lethe/attest"
	"lethe/attest/attesttest"
	"lethe/fault"
)

// TestWrongUse: every mistake has an exit code and words that help.
func TestWrongUse(t *testing.T) {
	o := newOffice(t)
	here := filepath.Join(o.files, "trust.json")
	nowhere := filepath.Join(o.files, "nowhere")
	large := o.file("large", make([]byte, 3<<20))
	public := filepath.Join(o.files, "ada.pub")
	secretKey := filepath.Join(o.files, "ada.key")
	change := o.propose("floor", "propose", "5")
	notSigning := o.file("x25519.key", []byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VuBCIEIAhtlT3ypzpSqFzCXEIbHZdFFpQHhCS+UOEDrgmAL0BY\n-----END PRIVATE KEY-----\n"))
	for _, c := range []struct {
		code  int
		words string
		args  []string
	}{
		{2, "no command \"party\"", []string{"party"}},
		{2, "no command \"party\"", []string{"help", "party"}},
		{2, "needs a subcommand", []string{"release"}},
		{2, "an argument is missing", []string{"why"}},
		{2, "too many arguments", []string{"list", "all"}},
		{2, "unknown flag", []string{"list", "--party"}},
		{2, "--ek must be given", []string{"confirm", "nl-ams-1"}},
		{3, "no server has this name", []string{"activate", "nl-ams-1"}},
		{3, "no server has this name", []string{"confirm", "nl-ams-1", "--ek", "x"}},
		{3, "no server has this name", []string{"revoke", "nl-ams-1"}},
		{3, "nothing was ever decided", []string{"why", "nl-ams-1"}},
		{2, "--address wants", []string{"enrol", "nl-ams-1", "--flavour", "vm", "--profile", "test", "--address", "nl.example"}},
		{2, "--public wants", []string{"enrol", "nl-ams-1", "--flavour", "vm", "--profile", "test", "--address", "192.0.2.1", "--public", "x"}},
		{2, "--profile or --log", []string{"enrol", "nl-ams-1", "--flavour", "vm", "--address", "192.0.2.1"}},
		{6, "does not answer", []string{"enrol", "nl-ams-1", "--flavour", "vm", "--profile", "test", "--address", "127.0.0.1:1"}},
		{3, "no file", []string{"profile", "set", nowhere}},
		{2, "profile cannot be used", []string{"profile", "set", here}},
		{2, "too large", []string{"profile", "set", large}},
		{6, "cannot be read", []string{"profile", "set", o.files}},
		{3, "no file", []string{"profile", "draft", nowhere}},
		{2, "Spec ID event", []string{"profile", "draft", here}},
		{3, "no file", []string{"release", "propose", nowhere}},
		{8, "malformed", []string{"release", "propose", here}},
		{3, "no file", []string{"release", "admit", "--change", nowhere, "--manifest", here, "--statement", here}},
		{3, "no file", []string{"release", "admit", "--change", change, "--manifest", nowhere, "--statement", here}},
		{3, "no file", []string{"release", "admit", "--change", change, "--manifest", here, "--statement", nowhere}},
		{8, "malformed", []string{"release", "admit", "--change", change, "--manifest", here, "--statement", here}},
		{2, "whole number", []string{"release", "revoke", "x"}},
		{3, "no such release", []string{"release", "revoke", "5"}},
		{2, "whole number", []string{"floor", "propose", "0"}},
		{2, "whole number", []string{"floor", "raise", "-x", "--change", change}},
		{3, "no file", []string{"floor", "raise", "5", "--change", nowhere}},
		{8, "malformed", []string{"floor", "raise", "5", "--change", here}},
		{4, "exists already", []string{"floor", "propose", "5", "--out", change}},
		{6, "cannot be read or written", []string{"floor", "propose", "5", "--out", filepath.Join(here, "x")}},
		{3, "no file", []string{"sign", "--key", secretKey, nowhere}},
		{8, "malformed", []string{"sign", "--key", secretKey, here}},
		{3, "no file", []string{"sign", "--key", nowhere, change}},
		{2, "no private key (", []string{"sign", "--key", public, change}},
		{2, "no private key (", []string{"sign", "--key", here, change}},
		{2, "no private key that", []string{"sign", "--key", notSigning, change}},
		{4, "exists already", []string{"sign", "--key", secretKey, "--out", change, change}},
		{4, "is not empty", o.setup()},
	} {
		if strings.HasPrefix(c.args[0], "floor") && len(c.args) > 2 && c.args[2] == "-x" {
			c.args[2] = "x"
		}
		o.refused(c.code, c.words, c.args...)
	}
	// What nobody would sign: an envelope of the right type around something else.
	sealed := o.file("sealed", []byte(`{"payloadType":"`+activator.ChangeType+`","payload":"e30=","signatures":[]}`))
	o.refused(8, "change cannot be read", "sign", "--key", secretKey, sealed)

	// No directory, or one that others may read.
	empty := &office{t: t, dir: t.TempDir(), files: o.files}
	empty.refused(3, "no activator", "list")
	empty.refused(3, "no activator", "log", "verify")
	empty.refused(3, "no activator", "log", "show")
	if err := os.Chmod(filepath.Join(o.dir, "keys"), 0o750); err != nil {
		t.Fatal(err)
	}
	o.refused(5, "others may read", "list")
}

// TestOutput: lists are JSON when asked for, and a full pipe is an error.
func TestOutput(t *testing.T) {
	o := newOffice(t)
	o.admit(7, attesttest.TheImage("seven"))
	m := newMachine(t, attesttest.TheImage("seven"))
	// A profile for a machine that nobody knows begins with its log.
	log := filepath.Join(o.files, "log")
	if out := o.run("enrol", "nl-ams-1", "--address", m.address.String(), "--flavour", "vm", "--log", log); !strings.Contains(out, "not enrolled") {
		t.Errorf("%s", out)
	}
	draft := o.run("profile", "draft", "--name", "drafted", log)
	o.run("profile", "set", o.file("draft.json", []byte(draft)))
	if out := o.run("profile", "list"); !strings.Contains(out, "drafted") || !strings.Contains(out, "test") {
		t.Errorf("%s", out)
	}
	o.run("enrol", "nl-ams-1", "--address", m.address.String(), "--flavour", "vm", "--profile", "drafted")
	o.run("confirm", "nl-ams-1", "--ek", m.ek())
	o.run("activate", "nl-ams-1", "--json")
	for _, args := range [][]string{{"list"}, {"release", "list"}, {"profile", "list"}, {"why", "nl-ams-1"}, {"log", "verify"}} {
		if out := o.run(append(args, "--json")...); !json.Valid([]byte(out)) {
			t.Errorf("%q: %s", args, out)
		}
		var errs bytes.Buffer
		if code := activator.Run(t.Context(), append([]string{"--dir", o.dir}, args...), nil, full{}, &errs); code != 6 {
			t.Errorf("%q into a full pipe: exit %d, %s", args, code, errs.String())
		}
	}
	if out := o.run("floor", "propose", "9"); !json.Valid([]byte(out)) {
		t.Errorf("%s", out)
	}
	for _, line := range strings.Split(strings.TrimSpace(o.run("log", "show")), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("%s", line)
		}
	}
	var errs bytes.Buffer
	if code := activator.Run(t.Context(), []string{"--dir", o.dir, "log", "show"}, nil, full{}, &errs); code == 0 {
		t.Error("a record into a full pipe")
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if code := activator.Run(ctx, []string{"--dir", o.dir, "run"}, nil, full{}, &errs); code != 0 {
		t.Errorf("run, told to stop: exit %d, %s", code, errs.String())
	}
}

// full is a pipe that takes nothing.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("full") }

// TestSetup: an activator is made from what fits together, or not at all.
func TestSetup(t *testing.T) {
	good := newOffice(t)
	ada, ben := filepath.Join(good.files, "ada.pub"), filepath.Join(good.files, "ben.pub")
	key := filepath.Join(good.files, "ada.key")
	trust, ca, node := filepath.Join(good.files, "trust.json"), filepath.Join(good.files, "control-ca.pem"), filepath.Join(good.files, "node.json")
	nothing := good.file("nothing", []byte("{}"))
	text := good.file("text", []byte("text"))
	const url = "https://198.51.100.10:8443"
	for _, c := range []struct {
		words     string
		operators []string
		trust     string
		url       string
		ca        string
		node      string
	}{
		{"", []string{ada, ben}, trust, url, ca, node},
		{"1 operators", []string{ada}, trust, url, ca, node},
		{"stands twice", []string{ada, ada}, trust, url, ca, node},
		{"operator's key", []string{ada, key}, trust, url, ca, node},
		{"no file", []string{ada, "nowhere"}, trust, url, ca, node},
		{"trust file", []string{ada, ben}, nothing, url, ca, node},
		{"too large for the record", []string{ada, ben}, text, url, ca, node},
		{"no file", []string{ada, ben}, "nowhere", url, ca, node},
		{"control_url", []string{ada, ben}, trust, "http://198.51.100.10", ca, node},
		{"no certificate", []string{ada, ben}, trust, url, nothing, node},
		{"no file", []string{ada, ben}, trust, url, "nowhere", node},
		{"keys node", []string{ada, ben}, trust, url, ca, nothing},
		{"no file", []string{ada, ben}, trust, url, ca, "nowhere"},
	} {
		dir := filepath.Join(t.TempDir(), "new")
		args := []string{"--dir", dir, "init", "--trust", c.trust, "--control-url", c.url, "--control-address", "198.51.100.10", "--control-ca", c.ca, "--node-keys", c.node}
		for _, path := range c.operators {
			args = append(args, "--operator", path)
		}
		var out, errs bytes.Buffer
		code := activator.Run(t.Context(), args, strings.NewReader(""), &out, &errs)
		if (code == 0) != (c.words == "") || !strings.Contains(errs.String(), c.words) {
			t.Errorf("want %q: exit %d, %s", c.words, code, errs.String())
		}
		if entries, err := os.ReadDir(dir); code != 0 && err == nil && len(entries) != 0 {
			t.Errorf("%q leaves %v behind", c.words, entries)
		}
	}
	blocked := filepath.Join(good.files, "text", "x")
	var errs bytes.Buffer
	if code := activator.Run(t.Context(), []string{"--dir", blocked, "init", "--operator", ada, "--operator", ben, "--trust", trust, "--control-url", url, "--control-address", "198.51.100.10", "--control-ca", ca, "--node-keys", node}, nil, full{}, &errs); code != 6 {
		t.Errorf("in a place that cannot be: exit %d, %s", code, errs.String())
	}
}

// TestConfig: unknown keys and impossible values are errors, and so is a file that is not there.
func TestConfig(t *testing.T) {
	o := newOffice(t)
	const url = `"control_url":"https://198.51.100.10:8443","control_addresses":["198.51.100.10"]`
	roots := `"ek_roots":"control-ca.pem"`
	for text, want := range map[string]fault.Kind{
		`{`:                         fault.Invalid,
		`{"version":2,` + url + `}`: fault.Invalid,
		`{"version":1,"control_url":"https://control.example"}`: fault.Invalid,
		`{"version":1}`:                                                     fault.Invalid,
		`{"version":1,` + url + `,"x":1}`:                                   fault.Invalid,
		`{"version":1,` + url + `,"life":"9h x"}`:                           fault.Invalid,
		`{"version":1,` + url + `,"life":"193h"}`:                           fault.Invalid,
		`{"version":1,` + url + `,"life":"59s"}`:                            fault.Invalid,
		`{"version":1,` + url + `,"waiting":"-1s"}`:                         fault.Invalid,
		`{"version":1,` + url + `,"active":"0s"}`:                           fault.Invalid,
		`{"version":1,` + url + `,"control_ca":"no"}`:                       fault.Unavailable,
		`{"version":1,` + url + `,"ek_roots":"no"}`:                         fault.Unavailable,
		`{"version":1,` + url + `,"ek_roots":"head"}`:                       fault.Invalid,
		`{"version":1,` + url + `,"witness":"no/witness"}`:                  fault.Internal, // none until something is decided
		`{"version":1,` + url + `,` + roots + `,"life":"192h","phases":[]}`: fault.Internal,
	} {
		o.put("activator.json", []byte(text))
		_, err := activator.Open(o.dir)
		if want == fault.Internal {
			if err != nil {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		if err == nil || fault.Of(err) != want {
			t.Errorf("%s: %v (%v), want %v", text, err, fault.Of(err), want)
		}
	}
	// With makers of TPMs, a TPM without certificate is refused.
	o.put("activator.json", []byte(`{"version":1,`+url+`,`+roots+`}`))
	m := newMachine(t, attesttest.TheImage("seven"))
	o.refused(8, "bad-ek-certificate", "enrol", "nl-ams-1", "--address", m.address.String(), "--flavour", "vm", "--profile", "test")
	// A witness that cannot be written: the decision stands, and the operator is told.
	o.put("activator.json", []byte(`{"version":1,`+url+`,"witness":"no/witness"}`))
	o.refused(6, "its head cannot be written", "profile", "set", filepath.Join(o.files, "profile.json"))
	o.put("activator.json", []byte(`{"version":1,`+url+`}`))
	o.run("log", "verify")
	good := o.backup()
	for name, b := range map[string][]byte{"keys/record.pem": nil, "keys/node.json": []byte("{}"), "keys/api-ca.pem": nil} {
		o.restore(good)
		o.put(name, b)
		o.refused(2, "", "list")
	}
	o.restore(good)
	o.put("keys/record.pem", second(good["keys/vpn-ca.pem"])) // a key of another kind
	o.refused(2, "holds no key", "list")
	o.restore(good)
	if err := os.Remove(filepath.Join(o.dir, "activator.json")); err != nil {
		t.Fatal(err)
	}
	o.refused(3, "no activator", "list")
	d, err := activator.Duration(90 * time.Minute).MarshalText()
	if err != nil || string(d) != "1h30m0s" {
		t.Errorf("%s, %v", d, err)
	}
}

// TestHostileServer: what answers at a server's address may be anything.
func TestHostileServer(t *testing.T) {
	o := newOffice(t)
	o.admit(7, attesttest.TheImage("seven"))
	m := newMachine(t, attesttest.TheImage("seven"))
	o.enrol("nl-ams-1", m)
	genuine := m.device.Handler()
	var path string // that goes wrong
	var wrong http.HandlerFunc
	m.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == path {
			wrong(w, r)
			return
		}
		genuine.ServeHTTP(w, r)
	}))
	o.run("activate", "nl-ams-1") // the twin
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	hangUp := func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			c.Close()
		}
	}
	for _, c := range []struct {
		name, path string
		wrong      http.HandlerFunc
		code       int
		words      string
	}{
		{"nothing", attest.PathIdentity, hangUp, 6, "does not answer"},
		{"a page", attest.PathIdentity, status(http.StatusNotFound), 6, "404"},
		{"a redirection", attest.PathIdentity, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, 6, "302"},
		{"something else", attest.PathIdentity, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }, 8, "malformed-identity"},
		{"more than any message", attest.PathIdentity, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 4<<20)) }, 8, "malformed-identity"},
		{"an end in the middle", attest.PathIdentity, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("hello"))
		}, 6, "does not answer"},
		{"no evidence", attest.PathEvidence, status(http.StatusInternalServerError), 6, "500"},
		{"refusal of this activator", attest.PathEvidence, status(http.StatusConflict), 4, "refuses this activator"},
		{"no receipt", attest.PathSecrets, hangUp, 8, "no-receipt"},
		{"a receipt of its own", attest.PathSecrets, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(attest.Encode(&attest.Receipt{MAC: make([]byte, attest.ReceiptSize)}))
		}, 8, "no-receipt"},
	} {
		path, wrong = c.path, c.wrong
		o.refused(c.code, c.words, "activate", "nl-ams-1")
	}
	path = attest.PathEvidence
	wrong = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }
	o.refused(8, "malformed-evidence", "enrol", "se-sto-1", "--address", m.address.String(), "--flavour", "vm", "--profile", "test")
	wrong = status(http.StatusBadRequest)
	o.refused(6, "400", "enrol", "se-sto-1", "--address", m.address.String(), "--flavour", "vm", "--profile", "test")
	path, wrong = attest.PathIdentity, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }
	o.refused(8, "malformed-identity", "enrol", "se-sto-1", "--address", m.address.String(), "--flavour", "vm", "--profile", "test")
	// The world changes between evidence and decision.
	path = attest.PathEvidence
	once := func(do func()) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			path = ""
			before := httptest.NewRecorder()
			genuine.ServeHTTP(before, r)
			do()
			_, _ = w.Write(before.Body.Bytes())
		}
	}
	wrong = once(func() { o.run("activate", "nl-ams-1") })
	o.refused(4, "by somebody else meanwhile", "activate", "nl-ams-1")
	path, wrong = attest.PathEvidence, once(func() { o.run("release", "revoke", "7") })
	o.refused(4, "revoked meanwhile", "activate", "nl-ams-1")
	path, wrong = attest.PathEvidence, once(func() { o.run("revoke", "nl-ams-1") })
	o.refused(8, "release-revoked", "activate", "nl-ams-1")
	o.enrol("nl-ams-1", m)
	// Another machine takes over in the middle of an attestation: another key, another connection.
	path = ""
	other := newMachine(t, attesttest.TheImage("seven"))
	path = attest.PathEvidence
	wrong = func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			c.Close()
		}
		genuine = other.device.Handler()
	}
	o.refused(6, "does not answer", "activate", "nl-ams-1")
	path = ""
	o.refused(8, "foreign-ek", "activate", "nl-ams-1")
	o.run("log", "verify")
}

// TestKeyChange: a server that shows another key in the middle of an attestation is not answered.
func TestKeyChange(t *testing.T) {
	o := newOffice(t)
	m := newMachine(t, attesttest.TheImage("seven"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		// Each connection has a certificate of its own, and ends after one answer.
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Connection", "close")
				m.device.Handler().ServeHTTP(w, r)
			}), ErrorLog: nobody()}
			one := &single{conn: c}
			s.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate(t)}}
			go func() { _ = s.ServeTLS(one, "", "") }()
		}
	}()
	o.refused(6, "does not answer", "enrol", "nl-ams-1", "--address", l.Addr().String(), "--flavour", "vm", "--profile", "test")
}

// single is a listener with one connection.
type single struct {
	conn net.Conn
}

func (s *single) Accept() (net.Conn, error) {
	if c := s.conn; c != nil {
		s.conn = nil
		return c, nil
	}
	return nil, net.ErrClosed
}
func (s *single) Close() error   { return nil }
func (s *single) Addr() net.Addr { return &net.TCPAddr{} }

// TestExitCodes: every kind of fault has an exit code, and none is success.
func TestExitCodes(t *testing.T) {
	for _, k := range fault.Kinds() {
		if code := activator.ExitCode(k); code < 1 || code > 8 {
			t.Errorf("%v: %d", k, code)
		}
	}
}

// TestMakers: with makers of TPMs configured, a TPM needs a certificate by one of them.
func TestMakers(t *testing.T) {
	o := newOffice(t)
	o.admit(7, attesttest.TheImage("seven"))
	maker := attesttest.NewMaker(t)
	o.put("makers.pem", pemOf(t, "CERTIFICATE", maker.Certificate.Raw, nil))
	o.put("activator.json", []byte(`{"version":1,"control_url":"https://198.51.100.10:8443","control_addresses":["198.51.100.10"],"ek_roots":"makers.pem"}`))
	for name, issued := range map[string]*attesttest.Maker{"": nil, "another": attesttest.NewMaker(t), "maker": maker} {
		m := newMachine(t, attesttest.TheImage("seven"))
		if issued != nil {
			var id attest.Identity
			if err := attest.Decode(m.device.Identity(), &id); err != nil {
				t.Fatal(err)
			}
			public, err := tpm2.Unmarshal[tpm2.TPMTPublic](id.EK)
			if err != nil {
				t.Fatal(err)
			}
			point, err := public.Unique.ECC()
			if err != nil {
				t.Fatal(err)
			}
			key, err := ecdh.P256().NewPublicKey(append(append([]byte{4}, point.X.Buffer...), point.Y.Buffer...))
			if err != nil {
				t.Fatal(err)
			}
			m.tpm.Define(0x01c0000a, issued.Issue(key))
			m.reboot()
		}
		enrol := []string{"enrol", "nl-ams-1", "--address", m.address.String(), "--flavour", "vm", "--profile", "test"}
		if name != "maker" {
			o.refused(8, "bad-ek-certificate", enrol...)
			continue
		}
		if out := o.run(enrol...); !strings.Contains(out, "maker's certificate:  yes") {
			t.Errorf("%s", out)
		}
		o.run("confirm", "nl-ams-1", "--ek", m.ek())
		o.run("activate", "nl-ams-1")
	}
}
