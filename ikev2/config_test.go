package ikev2_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/ikev2"
	"lethe/internal/testkit"
	"lethe/private"
	"lethe/session"
	"lethe/spec"
	"lethe/vici"
)

func TestConfigRefused(t *testing.T) {
	good := config("/run/x")
	if _, err := ikev2.New(good, nil, nil); err != nil {
		t.Fatal(err)
	}
	bad := spec.Default()
	bad.PollSeconds = 0
	for want, change := range map[string]func(*ikev2.Config){
		"runtime directory":           func(c *ikev2.Config) { c.RuntimeDir = "relative" },
		"80 plain bytes":              func(c *ikev2.Config) { c.RuntimeDir = "/run/x\n}" },
		"must not run as root":        func(c *ikev2.Config) { c.UID = 0 },
		"daemon index 128":            func(c *ikev2.Config) { c.Daemon = 128 },
		"at least one uplink":         func(c *ikev2.Config) { c.Uplinks = nil },
		"name of an interface":        func(c *ikev2.Config) { c.Uplinks = []string{"eth0", "eth1\n}"} },
		"70000 clients":               func(c *ikev2.Config) { c.MaxClients = 70000 },
		"must be on loopback":         func(c *ikev2.Config) { c.RADIUS = netip.MustParseAddrPort("192.0.2.1:1812") },
		"no specification":            func(c *ikev2.Config) { c.Node = nil },
		"poll_seconds":                func(c *ikev2.Config) { c.Node = func() spec.Node { return bad } },
		"want a PEM certificate":      func(c *ikev2.Config) { c.Certificate = private.Of("") },
		"certificate chain is damage": func(c *ikev2.Config) { c.Certificate = private.Of(block("CERTIFICATE", []byte("x"))) },
		"key is not in PEM form":      func(c *ikev2.Config) { c.Key = private.Of("secret") },
		"want an ECDSA or RSA key":    func(c *ikev2.Config) { c.Key = private.Of(block("PRIVATE KEY", []byte("x"))) },
	} {
		cfg := good
		change(&cfg)
		if _, err := ikev2.New(cfg, nil, nil); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "ikev2: ") && want != "poll_seconds" {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// TestIdentity reads keys of the kinds and forms that there are.
func TestIdentity(t *testing.T) {
	curve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	prime, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	uses := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	cert := func(name string, pub, key any) string {
		leaf := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: uses}
		der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, pub, key)
		must(t, err)
		return block("CERTIFICATE", der)
	}
	sec1, err := x509.MarshalECPrivateKey(curve)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(prime)
	must(t, err)
	pkcs8Edwards, err := x509.MarshalPKCS8PrivateKey(edwards)
	must(t, err)
	uses[0] = x509.ExtKeyUsageClientAuth
	clientCert := cert("c.example", &curve.PublicKey, curve)
	uses[0] = x509.ExtKeyUsageServerAuth
	curveCert, primeCert := cert("a.example", &curve.PublicKey, curve), cert("b.example", &prime.PublicKey, prime)
	for _, tt := range []struct{ chain, key, want string }{
		{curveCert, block("EC PRIVATE KEY", sec1), "a.example 1 ecdsa <nil>"},
		{curveCert + primeCert, block("EC PRIVATE KEY", sec1), "a.example 2 ecdsa <nil>"},
		{primeCert, block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(prime)), "b.example 1 rsa <nil>"},
		{primeCert, block("PRIVATE KEY", pkcs8), "b.example 1 rsa <nil>"},
		{primeCert, block("EC PRIVATE KEY", sec1), "b.example 1  ikev2: the key is not the certificate's"},
		{curveCert, block("PRIVATE KEY", pkcs8), "a.example 1  ikev2: the key is not the certificate's"},
		{curveCert, block("PRIVATE KEY", pkcs8Edwards), "a.example 1  ikev2: want an ECDSA or RSA key"},
		{clientCert, block("EC PRIVATE KEY", sec1), " 1  ikev2: want a certificate for server authentication, which customers' systems insist on"},
		{cert("a{b", &curve.PublicKey, curve), block("EC PRIVATE KEY", sec1), "a{b 1  ikev2: the certificate's DNS name has characters that none has"},
	} {
		name, n, kind, err := ikev2.Identify(tt.chain, tt.key)
		if got := fmt.Sprintf("%s %d %s %v", name, n, kind, err); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// TestTexts checks what charon is told, with and without what this machine may not have.
func TestTexts(t *testing.T) {
	s, err := ikev2.New(config("/run/x"), nil, nil)
	must(t, err)
	for _, tt := range []struct{ offload, hybrid bool }{{false, false}, {true, true}} {
		text, conn := ikev2.Texts(s, tt.offload, tt.hybrid)
		for _, want := range []string{
			"charon-systemd {\n", "    default = -1\n", "  interfaces_use = sv1, sv2, ", "  port = 500\n", "  port_nat_t = 4500\n", "  install_routes = no\n",
			"      socket = unix:///run/x/charon3/vici\n", "        address = 127.0.0.1\n", "    accounting = no\n",
			"  retransmit_timeout = 0.2\n", string(s.Secret().Reveal()),
		} {
			if !strings.Contains(text, want) {
				t.Errorf("want %q in\n%s", want, text)
			}
		}
		if strings.Contains(text, "load = kernel-libipsec ") == tt.offload {
			t.Errorf("kernel-libipsec with offload %t:\n%s", tt.offload, text)
		}
		if n := strings.Count(text, "log"); n != 0 {
			t.Errorf("%d loggers", n)
		}
		child := conn.Section("children").Section("lethe")
		if got := child.Get("if_id_in") + child.Get("if_id_out"); (got == "44") != tt.offload || (got == "") == tt.offload {
			t.Errorf("interface ids %q with offload %t", got, tt.offload)
		}
		for _, list := range [][]string{conn.List("proposals"), child.List("esp_proposals")} {
			if strings.Contains(list[0], "ke1_mlkem768") != tt.hybrid {
				t.Errorf("hybrid %t: %q", tt.hybrid, list)
			}
			for _, p := range list {
				for _, weak := range []string{"modp1024", "modp1536", "sha1", "3des", "md5", "null", "aes128-"} {
					if strings.Contains(p, weak) {
						t.Errorf("%s is offered: %s", weak, p)
					}
				}
			}
			if strings.Contains(list[len(list)-1], "mlkem") {
				t.Error("nothing for customers without ML-KEM")
			}
		}
		for key, want := range map[string]string{"unique": "never", "mobike": "yes", "fragmentation": "yes", "dpd_delay": "3", "reauth_time": "0", "send_cert": "always"} {
			if got := conn.Get(key); got != want {
				t.Errorf("%s is %q, want %q", key, got, want)
			}
		}
		if conn.Section("remote").Get("auth") != "eap-radius" || conn.Section("local").Get("id") != serverName || conn.List("pools")[0] != "radius" {
			t.Error("who is who")
		}
	}
	other := config("/run/x")
	other.Daemon++
	again, err := ikev2.New(other, nil, nil)
	must(t, err)
	if string(again.Secret().Reveal()) != string(s.Secret().Reveal()) || len(s.Secret().Reveal()) != 64 {
		t.Error("the next agent has another secret")
	}
	in := s.Instance()
	if in.Daemon != daemonID || in.Device == "" {
		t.Errorf("instance %+v", in)
	}
}

func TestKnowsMLKEM(t *testing.T) {
	ke := func(name string) *vici.Message {
		return new(vici.Message).SetSection("ke", new(vici.Message).Set("ECP_256", "openssl").Set(name, "ml"))
	}
	if ikev2.Knows(new(vici.Message)) || ikev2.Knows(ke("ML_KEM_512")) || !ikev2.Knows(ke("ML_KEM_768")) {
		t.Error("got it wrong")
	}
}

func TestRead(t *testing.T) {
	s, err := ikev2.New(config("/run/x"), nil, nil)
	must(t, err)
	sa := func(state string, keys ...string) *vici.Message {
		m := new(vici.Message).Set("state", state)
		for i := 0; i < len(keys); i += 2 {
			m.Set(keys[i], keys[i+1])
		}
		return m
	}
	for _, tt := range []struct {
		m    *vici.Message
		want string
	}{
		{sa("CONNECTING", "uniqueid", "5"), "0  invalid IP false"},
		{sa("REKEYED", "uniqueid", "5"), "0  invalid IP false"},
		{sa("DELETING", "uniqueid", "5"), "0  invalid IP false"},
		{sa("ESTABLISHED"), "0  invalid IP false"},
		{sa("ESTABLISHED", "uniqueid", "99999999999"), "0  invalid IP false"},
		{sa("ESTABLISHED", "uniqueid", "5", "remote-id", "ann"), "5 ann invalid IP true"},
		{sa("REKEYING", "uniqueid", "5", "remote-id", "phone", "remote-eap-id", "ann").SetList("remote-vips", "10.67.1.2", "fd6c:6574:6865:3::102"), "5 ann 10.67.1.2 true"},
		{sa("ESTABLISHED", "uniqueid", "6", "remote-id", "ann").SetList("remote-vips", "fd6c:6574:6865:3::102"), "6 ann 10.67.1.2 true"},
		{sa("ESTABLISHED", "uniqueid", "6", "remote-id", "ann").SetList("remote-vips", "junk"), "6 ann invalid IP true"},
	} {
		id, user, v4, ok := ikev2.Read(s, tt.m)
		if !ok {
			id, user, v4 = 0, "", "invalid IP"
		}
		if got := fmt.Sprintf("%d %s %s %t", id, user, v4, ok); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// TestNotStartable takes away what a process needs before it starts.
func TestNotStartable(t *testing.T) {
	dir := runtimeDir(t)
	cfg := config(dir)
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	cfg.RuntimeDir = filepath.Join(dir, "file", "sub")
	bad, err := ikev2.New(cfg, newCore(t, newLedger(t), func(session.Ref) {}), nil)
	must(t, err)
	if err := bad.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "runtime directory") {
		t.Errorf("got %v", err)
	}
	// A directory that cannot be cleared: a file system is mounted in it.
	cfg = config(dir)
	busy := filepath.Join(dir, "charon3")
	must(t, os.Mkdir(busy, 0o700))
	must(t, testkit.Command("mount -t tmpfs lethe-ike "+busy))
	defer func() { must(t, testkit.Command("umount "+busy)) }()
	s := launch(t, cfg, newLedger(t))
	testkit.Eventually(t, 5*time.Second, func() bool { return strings.Contains(s.log.String(), "trouble part=ikev2 kind=internal") }, s.log.String)
	s.stop()
}
