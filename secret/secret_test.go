package secret_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/private"
	"lethe/secret"
)

const staticKey = "-----BEGIN OpenVPN Static key V1-----\n00ff\n-----END OpenVPN Static key V1-----\n"

// pair returns a self-signed certificate for a name and its key, in PEM.
func pair(t testing.TB, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func node(t testing.TB) *secret.Node {
	vpnCert, vpnKey := pair(t, "nl-ams-1")
	apiCert, apiKey := pair(t, "nl-ams-1")
	return &secret.Node{
		Server: "nl-ams-1", VPNCertificate: private.Of(vpnCert), VPNKey: private.Of(vpnKey),
		TLSCrypt: private.Of(staticKey), ControlURL: "https://control.example", ControlCA: apiCert,
		APICertificate: private.Of(apiCert), APIKey: private.Of(apiKey),
		Salt: private.Of([32]byte{1}), Seal: private.Of([32]byte{2}), TrustRoot: []byte(`{"root":1}`),
	}
}

func encoded(t testing.TB, n *secret.Node) []byte {
	t.Helper()
	b, err := n.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type received struct {
	node *secret.Node
	file *os.File
	err  error
}

// wait starts a server that waits for its secrets.
func wait(t *testing.T, ctx context.Context) (path string, got <-chan received) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "activate.sock")
	c, waiting := make(chan received, 1), make(chan struct{})
	go func() {
		n, f, err := secret.Receive(ctx, path, func() error { close(waiting); return nil })
		c <- received{n, f, err}
	}()
	<-waiting
	return path, c
}

func TestHandover(t *testing.T) {
	path, got := wait(t, t.Context())
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", info.Mode(), err)
	}
	want := node(t)
	if err := secret.Handover(t.Context(), path, want); err != nil {
		t.Fatal(err)
	}
	r := <-got
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer r.file.Close()
	if !bytes.Equal(encoded(t, r.node), encoded(t, want)) {
		t.Error("what arrived is not what was sent")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if err := secret.Handover(t.Context(), path, want); err == nil {
		t.Error("a second handover was taken")
	}
	again, err := secret.Restore(r.file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encoded(t, again), encoded(t, want)) {
		t.Error("what was restored is not what was sent")
	}
	if _, err := r.file.WriteAt([]byte{0}, 0); err == nil {
		t.Error("the stored secrets can be changed")
	}
	if s := fmt.Sprintf("%+v %#v", r.node, *r.node); strings.Contains(s, "PRIVATE KEY") || strings.Contains(s, "Static key") {
		t.Error("a printed Node shows a key")
	}
}

// spoiled returns the encoding of a good Node with one field replaced.
func spoiled(t *testing.T, field string, value any) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(encoded(t, node(t)), &m); err != nil {
		t.Fatal(err)
	}
	m[field] = value
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRefusals(t *testing.T) {
	otherCert, _ := pair(t, "us-nyc-1")
	foreignCert, foreignKey := pair(t, "us-nyc-1")
	_ = foreignCert
	for _, c := range []struct {
		want string
		body []byte
	}{
		{"not the JSON", nil},
		{"not the JSON", encoded(t, node(t))[:500]},
		{"more than", make([]byte, secret.MaxSize+1)},
		{"server or trust root", spoiled(t, "server", "")},
		{"server or trust root", spoiled(t, "trust_root", nil)},
		{"32 bytes", spoiled(t, "salt", []byte{1})},
		{"32 bytes", spoiled(t, "seal", nil)},
		{"must be https", spoiled(t, "control_url", "http://control.example")},
		{"static key", spoiled(t, "tls_crypt", "x")},
		{"control CA", spoiled(t, "control_ca", "x")},
		{"VPN certificate and key do not fit", spoiled(t, "vpn_certificate", otherCert)},
		{"API certificate and key do not fit", spoiled(t, "api_key", foreignKey)},
		{"not for the server named", spoiled(t, "server", "us-nyc-1")},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		path, got := wait(t, ctx)
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		u := conn.(*net.UnixConn)
		_, _ = u.Write(c.body)
		_ = u.CloseWrite()
		answer, _ := io.ReadAll(u)
		u.Close()
		if !strings.HasPrefix(string(answer), "refused: ") || !strings.Contains(string(answer), c.want) {
			t.Errorf("answer %q, want %q", answer, c.want)
		}
		// A refused server still waits.
		if err := secret.Handover(ctx, path, node(t)); err != nil {
			t.Errorf("after %q a good handover fails: %v", c.want, err)
		}
		if r := <-got; r.err == nil {
			r.file.Close()
		}
		cancel()
	}
}

func TestHandoverReportsTheReason(t *testing.T) {
	path, got := wait(t, t.Context())
	bad := node(t)
	bad.ControlURL = "http://x"
	if err := secret.Handover(t.Context(), path, bad); err == nil || err.Error() != "the control URL must be https" {
		t.Errorf("got %v", err)
	}
	if err := secret.Handover(t.Context(), path, node(t)); err != nil {
		t.Fatal(err)
	}
	(<-got).file.Close()
}

func TestReceiveEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	path, got := wait(t, ctx)
	// A peer that goes away without a word changes nothing.
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	cancel()
	if r := <-got; !errors.Is(r.err, context.Canceled) {
		t.Errorf("got %v", r.err)
	}
	nothing := func() error { return nil }
	if _, _, err := secret.Receive(t.Context(), filepath.Join(t.TempDir(), "no", "such", "dir"), nothing); err == nil {
		t.Error("listened in a directory that does not exist")
	}
	boom := errors.New("boom")
	if _, _, err := secret.Receive(t.Context(), filepath.Join(t.TempDir(), "s"), func() error { return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v, want the error of the callback", err)
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := secret.Receive(t.Context(), full, nothing); err == nil {
		t.Error("replaced a directory")
	}
}

func TestSilentServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
	}()
	if err := secret.Handover(t.Context(), path, node(t)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

func TestRestoreRefuses(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secret.Restore(f); err == nil {
		t.Error("an empty file was restored")
	}
	f.Close()
	if _, err := secret.Restore(f); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed file gives %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encoded(f, node(f)))
	f.Add([]byte(`{"server":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := secret.Decode(b)
		if err == nil && (n.Server == "" || len(n.TrustRoot) == 0) {
			t.Error("an incomplete Node was decoded")
		}
		if err != nil && !strings.HasPrefix(err.Error(), "secrets: ") {
			t.Errorf("error %q", err)
		}
	})
}
