//go:build lab

package activation_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/activation"
	"lethe/private"
	"lethe/secret"
)

// secrets returns the encoding of secrets that are good.
func secrets(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nl-ams-1"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	private8 := private.Of(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
	n := &secret.Node{
		Server: "nl-ams-1", VPNCertificate: private.Of(cert), VPNKey: private8,
		TLSCrypt:   private.Of("-----BEGIN OpenVPN Static key V1-----\n00ff\n-----END OpenVPN Static key V1-----\n"),
		ControlURL: "https://control.example", Control: []netip.Addr{netip.MustParseAddr("198.51.100.100")}, ControlCA: cert,
		APICertificate: private.Of(cert), APIKey: private8, TrustRoot: []byte(`{"root":1}`),
	}
	b, err := n.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// post hands b over and returns the status and what was said.
func (p *port) post(b []byte) (int, string) {
	p.t.Helper()
	hc := http.Client{Transport: &http.Transport{TLSClientConfig: trusting(), DisableKeepAlives: true}}
	resp, err := hc.Post("https://"+p.addr+"/v1/secrets", "application/json", bytes.NewReader(b))
	if err != nil {
		p.t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(said)
}

func TestHandover(t *testing.T) {
	p, good := start(t, ""), secrets(t)
	if got := p.say("GET /v1/secrets HTTP/1.1\r\nHost: x\r\n\r\n"); !strings.Contains(got, "405") || !strings.Contains(got, "Allow: POST") {
		t.Errorf("GET: %q", got)
	}
	if code, said := p.post([]byte(`{"server": "x"}`)); code != http.StatusBadRequest || !strings.HasPrefix(said, "secrets: ") {
		t.Errorf("half of it: %d %q", code, said)
	}
	if code, _ := p.post(make([]byte, secret.MaxSize+1)); code != http.StatusRequestEntityTooLarge {
		t.Errorf("too much: %d", code)
	}
	if s, _ := p.state(); s.Phase != activation.Awaiting {
		t.Fatalf("refused secrets, and the server is %s", s.Phase)
	}
	// Of many at once one is taken.
	codes := make(chan int, 8)
	var wg sync.WaitGroup
	for range cap(codes) {
		wg.Go(func() { code, _ := p.post(good); codes <- code })
	}
	wg.Wait()
	close(codes)
	count := map[int]int{}
	for c := range codes {
		count[c]++
	}
	if count[http.StatusNoContent] != 1 || count[http.StatusConflict] != cap(codes)-1 {
		t.Errorf("answers %v", count)
	}
	h, err := p.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Kept.Close()
	again, err := secret.Restore(h.Kept)
	if err != nil || again.Server != "nl-ams-1" || h.Secrets.Server != "nl-ams-1" {
		t.Errorf("got %+v, %v", again, err)
	}
	p.Use(activation.Drivers{OpenVPN: "tun", IKEv2: "xfrm"})
	if s, text := p.state(); s.Phase != activation.Active || s.Drivers == nil || s.Drivers.IKEv2 != "xfrm" || !strings.Contains(text, `"drivers":{"openvpn":"tun","ikev2":"xfrm"}`) {
		t.Errorf("got %s", text)
	}
}
