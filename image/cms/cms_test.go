package cms_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"lethe/image/cms"
)

var (
	rsaKey = sync.OnceValue(func() crypto.Signer { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	ecKey  = sync.OnceValue(func() crypto.Signer { k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader); return k })
)

// signer returns a signer with a self-signed certificate of that serial number.
func signer(t testing.TB, key crypto.Signer, serial int64) cms.Signer {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0),
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return cms.Signer{Key: key, Certificate: c}
}

func content(t testing.TB) cms.Content {
	v, err := asn1.Marshal([]byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	return cms.Content{Type: cms.Data, Value: v}
}

// TestSignAndVerify goes both ways for both key types, and OpenSSL reads each.
func TestSignAndVerify(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"rsa": rsaKey(), "ecdsa": ecKey()} {
		t.Run(name, func(t *testing.T) {
			s := signer(t, key, 7)
			embedded, err := cms.Sign(content(t), s)
			if err != nil {
				t.Fatal(err)
			}
			detached, err := cms.SignDetached([]byte("content"), s)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				message, content []byte
			}{{embedded, nil}, {detached, []byte("content")}} {
				p, err := cms.Parse(c.message)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := p.Verify(c.content, []*x509.Certificate{signer(t, key, 8).Certificate, s.Certificate}); err != nil || got != s.Certificate {
					t.Errorf("verify: %v", err)
				}
				if _, err := p.Verify(c.content, []*x509.Certificate{signer(t, key, 8).Certificate}); !errors.Is(err, cms.ErrSigner) {
					t.Errorf("another serial number: %v", err)
				}
				other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
				if _, err := p.Verify(c.content, []*x509.Certificate{signer(t, other, 7).Certificate}); !errors.Is(err, cms.ErrSignature) {
					t.Errorf("another key under that name: %v", err)
				}
				wrong := []byte("other")
				if c.content == nil {
					if _, err := p.Verify(wrong, []*x509.Certificate{s.Certificate}); err == nil {
						t.Error("embedded content was replaced")
					}
					continue
				}
				if _, err := p.Verify(wrong, []*x509.Certificate{s.Certificate}); !errors.Is(err, cms.ErrSignature) {
					t.Errorf("another content: %v", err)
				}
				if _, err := p.Verify(nil, []*x509.Certificate{s.Certificate}); err == nil {
					t.Error("no content verified")
				}
			}
			dir := t.TempDir()
			write(t, dir, "p7", embedded)
			write(t, dir, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate.Raw}))
			out, err := exec.Command("openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", filepath.Join(dir, "p7"),
				"-CAfile", filepath.Join(dir, "cert.pem"), "-purpose", "any", "-out", filepath.Join(dir, "out")).CombinedOutput()
			if err != nil {
				t.Errorf("openssl: %v\n%s", err, out)
			}
		})
	}
}

// TestDeterministic: RSA signatures hold nothing of the moment.
func TestDeterministic(t *testing.T) {
	s := signer(t, rsaKey(), 1)
	a, err := cms.Sign(content(t), s)
	b, _ := cms.Sign(content(t), s)
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("two signatures differ (%v)", err)
	}
}

func write(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// broken signs nothing, or nonsense.
type broken struct {
	crypto.Signer
	err error
}

func (b broken) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return []byte("x"), b.err }

func TestSignRefuses(t *testing.T) {
	good := signer(t, rsaKey(), 1)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	lost := errors.New("lost")
	for name, s := range map[string]cms.Signer{
		"no key":            {Certificate: good.Certificate},
		"no certificate":    {Key: good.Key},
		"another's":         {Key: ecKey(), Certificate: good.Certificate},
		"ed25519":           signer(t, ed, 1),
		"token gone":        {Key: broken{rsaKey(), lost}, Certificate: good.Certificate},
		"nonsense returned": {Key: broken{rsaKey(), nil}, Certificate: good.Certificate},
	} {
		if _, err := cms.Sign(content(t), s); err == nil {
			t.Errorf("%s: signed", name)
		}
		if _, err := cms.SignDetached([]byte("content"), s); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if _, err := cms.Sign(content(t), cms.Signer{Key: broken{rsaKey(), lost}, Certificate: good.Certificate}); !errors.Is(err, lost) {
		t.Errorf("the token's error is lost: %v", err)
	}
	if _, err := cms.Sign(cms.Content{Type: cms.Data, Value: []byte{4, 9}}, good); err == nil {
		t.Error("half an element was signed")
	}
	if _, err := cms.Sign(cms.Content{Type: asn1.ObjectIdentifier{9, 9}, Value: content(t).Value}, good); err == nil {
		t.Error("an impossible type was signed")
	}
}

// TestFlips changes every bit of a message: nothing verifies that says something else.
func TestFlips(t *testing.T) {
	s := signer(t, ecKey(), 1)
	m, err := cms.SignDetached([]byte("content"), s)
	if err != nil {
		t.Fatal(err)
	}
	certificate := bytes.Index(m, s.Certificate.Raw)
	refused := 0
	for i := range len(m) * 8 {
		b := bytes.Clone(m)
		b[i/8] ^= 1 << (i % 8)
		p, err := cms.Parse(b)
		if err == nil {
			_, err = p.Verify([]byte("content"), []*x509.Certificate{s.Certificate})
		}
		if err != nil {
			refused++
			continue
		}
		// The certificate inside is not used, nor is the tag around it.
		if at := i / 8; at < certificate-4 || at >= certificate+len(s.Certificate.Raw) {
			t.Errorf("bit %d of byte %d does not matter", i%8, at)
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
	for i := range m {
		if _, err := cms.Parse(m[:i]); err == nil {
			t.Errorf("the first %d bytes parse", i)
		}
	}
	if _, err := cms.Parse(append(bytes.Clone(m), 0)); err == nil {
		t.Error("bytes behind the message were accepted")
	}
}

// TestAttributes: signed attributes that do not name the content are refused.
func TestAttributes(t *testing.T) {
	s := signer(t, rsaKey(), 1)
	m, err := cms.Sign(content(t), s)
	if err != nil {
		t.Fatal(err)
	}
	trusted := []*x509.Certificate{s.Certificate}
	start := bytes.LastIndex(m, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03})
	end := bytes.LastIndex(m, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04}) + 9 + 4 + 32
	for i := start; i < end; i++ {
		b := bytes.Clone(m)
		b[i] ^= 1
		p, err := cms.Parse(b)
		if err != nil {
			continue
		}
		if _, err := p.Verify(nil, trusted); err == nil {
			t.Errorf("byte %d of the attributes does not matter", i-start)
		}
	}
	at := bytes.Index(m, []byte("content"))
	b := bytes.Clone(m)
	b[at] ^= 1
	p, err := cms.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Verify(nil, trusted); !errors.Is(err, cms.ErrSignature) {
		t.Errorf("changed content: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	s := signer(f, ecKey(), 1)
	for _, sign := range []func() ([]byte, error){
		func() ([]byte, error) { return cms.Sign(content(f), s) },
		func() ([]byte, error) { return cms.SignDetached([]byte("content"), s) },
	} {
		b, err := sign()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	strange := signer(f, ecKey(), 2).Certificate
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := cms.Parse(b)
		if err != nil {
			return
		}
		for _, c := range [][]byte{nil, []byte("fuzz")} {
			if _, err := p.Verify(c, []*x509.Certificate{strange}); err == nil {
				t.Error("a message verified with a certificate that signed none")
			}
		}
	})
}
