package control_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lethe/control"
	"lethe/fault"
)

func TestLoadServeConfig(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "control.json")
	good := `"version":1,"app":{"listen":":443","certificate":"app.pem","key":"/k/app.key"},"node":{"listen":":8443"},"client_ca":"ca.pem"`
	for in, want := range map[string]string{
		"{" + good + "}":                        "",
		"{" + good + `,"usage_days":30}`:        "",
		"{" + good + `,"usage_days":0}`:         "usage_days",
		"{" + good + `,"usage_days":4000}`:      "usage_days",
		"{" + good + `,"log_level":"debug"}`:    "unknown field",
		"{" + good + `,"version":2}`:            "version must be 1",
		`{"version":1}`:                         "are needed",
		`{"version":1,"app":{"listen":[":1"]}}`: "cannot unmarshal",
		`not json`:                              "invalid character",
	} {
		if err := os.WriteFile(path, []byte(in), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := control.LoadServeConfig(path)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", in, err)
		case want == "" && (c.App.Certificate != filepath.Join(dir, "app.pem") || c.App.Key != "/k/app.key" || c.UsageDays == 0):
			t.Errorf("%s: %+v", in, c)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v, want %q", in, err, want)
		}
	}
	if _, err := control.LoadServeConfig(filepath.Join(dir, "none")); err == nil {
		t.Error("an absent file was read")
	}
}

// TestServeRefuses starts the service with parts that cannot work.
func TestServeRefuses(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	run := func(args ...string) (int, string) {
		var out bytes.Buffer
		code := control.Run(t.Context(), append(args, "--dir", data), strings.NewReader(""), &out, &out)
		return code, out.String()
	}
	if code, out := run("init"); code != 0 {
		t.Fatal(out)
	}
	config := filepath.Join(t.TempDir(), "control.json")
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(filepath.Dir(config), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("control.json", `{"version":1,"app":{"listen":"127.0.0.1:0","certificate":"c","key":"k"},"node":{"listen":"127.0.0.1:0","certificate":"c","key":"k"},"client_ca":"ca"}`)
	if code, out := run("serve", "--config", config); code != 2 || !strings.Contains(out, "client_ca holds no certificate") {
		t.Errorf("without a CA: %d, %s", code, out)
	}
	write("ca", selfSigned(t))
	if code, out := run("serve", "--config", config); code != 2 || !strings.Contains(out, "certificate and key") {
		t.Errorf("without a certificate: %d, %s", code, out)
	}
	if code, out := run("serve", "--config", config+".none"); code != 3 || !strings.Contains(out, "hint: doc/control.md") {
		t.Errorf("without a configuration: %d, %s", code, out)
	}
}

func TestForgetful(t *testing.T) {
	setting := filepath.Join(t.TempDir(), "tcp_no_metrics_save")
	write := func(text string) {
		if err := os.WriteFile(setting, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	local, public := []string{"127.0.0.1:1", "[::1]:2", "localhost:3"}, []string{":443", "[::]:1", "198.51.100.1:2", "control.example:3"}
	if err := control.Forgetful(setting, local...); err != nil {
		t.Error("nobody but this machine can connect:", err)
	}
	for _, l := range public {
		if err := control.Forgetful(setting, "127.0.0.1:1", l); fault.Of(err) != fault.Internal {
			t.Errorf("%s, setting unknown: %v", l, err)
		}
	}
	for value, kept := range map[string]bool{"1\n": false, "0\n": true, "": true} {
		write(value)
		for _, l := range public {
			if err := control.Forgetful(setting, l); (err != nil) != kept || kept && fault.Of(err) != fault.Unavailable {
				t.Errorf("%s, setting %q: %v", l, value, err)
			}
		}
	}
}

// selfSigned returns a certificate that nothing trusts, in PEM.
func selfSigned(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestGeoIPCommand(t *testing.T) {
	dir := t.TempDir()
	source, extra, out := filepath.Join(dir, "location.db"), filepath.Join(dir, "extra.csv"), filepath.Join(dir, "geoip.mmdb")
	// A libloc database with a tree of one empty node.
	b := make([]byte, 100)
	copy(b, "LOCDBXX\x01")
	binary.BigEndian.PutUint32(b[44:], 80)
	binary.BigEndian.PutUint32(b[48:], 12)
	binary.BigEndian.PutUint32(b[88:], 0xffffffff)
	for path, content := range map[string][]byte{source: b, extra: []byte("203.0.113.0/24,NL,64500,LAB\n")} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) (int, string) {
		var all bytes.Buffer
		code := control.Run(t.Context(), append([]string{"geoip", "build"}, args...), strings.NewReader(""), &all, &all)
		return code, all.String()
	}
	if code, got := run("--from", source, "--extra", extra, "-o", out, "--json"); code != 0 || !strings.Contains(got, `"networks":0`) {
		t.Errorf("build: %d, %s", code, got)
	}
	if info, err := os.Stat(out); err != nil || info.Size() < 100 {
		t.Errorf("the file: %v", err)
	}
	for want, args := range map[string][]string{
		"apt-get install libloc-database": {"--from", filepath.Join(dir, "none")},
		"extra networks cannot be read":   {"--from", source, "--extra", filepath.Join(dir, "none")},
		"extra networks: ":                {"--from", source, "--extra", source},
		"could not be made":               {"--from", extra, "-o", out},
		"cannot be written":               {"--from", source, "-o", filepath.Join(dir, "no", "such", "dir")},
	} {
		if code, got := run(args...); code == 0 || !strings.Contains(got, want) {
			t.Errorf("%v: %d, %s", args, code, got)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, ".geoip-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
