//go:build cgo

package token_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"lethe/internal/testkit"

	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"lethe/fault"
	"lethe/image/token"
)

const (
	userPIN = "12345678"
	module  = "/usr/lib/softhsm/libsofthsm2.so"
)

func pin(text string) token.PIN { return func() ([]byte, error) { return []byte(text), nil } }

// softhsm makes a SoftHSM with tokens of these labels in a directory of the test's own.
func softhsm(t *testing.T, labels ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+dir+"\nlog.level = ERROR\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	for _, l := range labels {
		out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", l, "--so-pin", "87654321", "--pin", userPIN).CombinedOutput()
		if err != nil {
			t.Fatalf("softhsm2-util: %v\n%s", err, out)
		}
	}
	return dir
}

// maker makes keys in the only token, as the maker's tools do.
type maker struct {
	t       *testing.T
	context *pkcs11.Ctx
	session pkcs11.SessionHandle
}

func make1(t *testing.T, work func(m maker)) {
	t.Helper()
	c := pkcs11.New(module)
	if err := c.Initialize(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Finalize(); c.Destroy() }()
	slots := testkit.Must[[]uint](t)(c.GetSlotList(true))
	m := maker{t, c, testkit.Must[pkcs11.SessionHandle](t)(c.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION))}
	if err := c.Login(m.session, pkcs11.CKU_USER, userPIN); err != nil {
		t.Fatal(err)
	}
	work(m)
}

func attr(kind uint, v any) *pkcs11.Attribute { return pkcs11.NewAttribute(kind, v) }

func (m maker) key(label, id string, mechanism uint, always bool, public ...*pkcs11.Attribute) {
	m.t.Helper()
	public = append(public, attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_VERIFY, true), attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, id))
	secret := []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_SIGN, true),
		attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, id), attr(pkcs11.CKA_ALWAYS_AUTHENTICATE, always)}
	if _, _, err := m.context.GenerateKeyPair(m.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, public, secret); err != nil {
		m.t.Fatal(err)
	}
}

func (m maker) rsa(label, id string, bits int, always bool) {
	m.key(label, id, pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, always, attr(pkcs11.CKA_MODULUS_BITS, bits), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
}

func (m maker) ec(label, id string, oid asn1.ObjectIdentifier) {
	m.key(label, id, pkcs11.CKM_EC_KEY_PAIR_GEN, false, attr(pkcs11.CKA_EC_PARAMS, testkit.Must[[]byte](m.t)(asn1.Marshal(oid))))
}

// forget removes the public half of a key.
func (m maker) forget(label string) {
	m.t.Helper()
	if err := m.context.FindObjectsInit(m.session, []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_LABEL, label)}); err != nil {
		m.t.Fatal(err)
	}
	found, _, err := m.context.FindObjects(m.session, 1)
	if err != nil || len(found) != 1 {
		m.t.Fatal(len(found), err)
	}
	_ = m.context.FindObjectsFinal(m.session)
	if err := m.context.DestroyObject(m.session, found[0]); err != nil {
		m.t.Fatal(err)
	}
}

func (m maker) certificate(label string, raw []byte) {
	m.t.Helper()
	_, err := m.context.CreateObject(m.session, []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE), attr(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509),
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, label), attr(pkcs11.CKA_SUBJECT, []byte("s")), attr(pkcs11.CKA_VALUE, raw)})
	if err != nil {
		m.t.Fatal(err)
	}
}

var (
	p256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	p384 = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	p521 = asn1.ObjectIdentifier{1, 3, 132, 0, 35}
)

// verifies checks a signature with the standard library.
func verifies(public crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, hash, digest, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest, signature)
	}
	return false
}

func TestSign(t *testing.T) {
	softhsm(t, "release")
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "boot"}, NotAfter: time.Unix(1<<32, 0)}
	raw := testkit.Must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	make1(t, func(m maker) {
		m.rsa("rsa2048", "1", 2048, false)
		m.rsa("rsa3072", "2", 3072, true)
		m.ec("p256", "3", p256)
		m.ec("p384", "4", p384)
		m.ec("p521", "5", p521)
		m.rsa("short", "6", 1024, false)
		m.ec("twice", "7", p256)
		m.ec("twice", "8", p256)
		m.ec("orphan", "9", p256)
		m.forget("orphan")
		m.certificate("boot", raw)
		m.certificate("damaged", raw[1:])
	})
	asked := 0
	kept := make([]byte, len(userPIN))
	k := testkit.Must[*token.Token](t)(token.Open(module, "release", func() ([]byte, error) {
		asked++
		copy(kept, userPIN)
		return kept, nil
	}))
	defer k.Close()
	if !bytes.Equal(kept, make([]byte, len(userPIN))) {
		t.Error("the PIN was not overwritten")
	}
	for _, c := range []struct {
		label string
		hash  crypto.Hash
	}{{"rsa2048", crypto.SHA256}, {"rsa3072", crypto.SHA256}, {"p256", crypto.SHA256}, {"p384", crypto.SHA384}} {
		signer := testkit.Must[*token.Key](t)(k.Key(c.label))
		h := c.hash.New()
		h.Write([]byte("message"))
		digest := h.Sum(nil)
		signature, err := signer.Sign(nil, digest, c.hash)
		if err != nil || !verifies(signer.Public(), c.hash, digest, signature) {
			t.Errorf("%s: %v", c.label, err)
		}
		digest[0] ^= 1
		if verifies(signer.Public(), c.hash, digest, signature) {
			t.Errorf("%s: verifies anything", c.label)
		}
	}
	// rsa3072 wants the PIN for every signature, as a YubiKey's signature slot does.
	if asked != 2 {
		t.Errorf("the PIN was asked for %d times, want 2", asked)
	}
	for label, want := range map[string]fault.Kind{"none": fault.NotFound, "orphan": fault.NotFound, "twice": fault.Conflict, "short": fault.Invalid, "p521": fault.Invalid} {
		if _, err := k.Key(label); fault.Of(err) != want {
			t.Errorf("key %s: %v, want %v", label, err, want)
		}
	}
	// By id: "3" is p256's, and the certificate's is its label.
	byID := testkit.Must[*token.Key](t)(k.Key("id:33"))
	if byLabel := testkit.Must[*token.Key](t)(k.Key("p256")); !byLabel.Public().(*ecdsa.PublicKey).Equal(byID.Public()) {
		t.Error("another key has the id")
	}
	for label, want := range map[string]fault.Kind{"id:": fault.NotFound, "id:zz": fault.NotFound, "id:99": fault.NotFound} {
		if _, err := k.Key(label); fault.Of(err) != want {
			t.Errorf("key %s: %v, want %v", label, err, want)
		}
	}
	if c, err := k.Certificate("id:626f6f74"); err != nil || !bytes.Equal(c.Raw, raw) {
		t.Errorf("certificate by id: %v", err)
	}
	if c, err := k.Certificate("boot"); err != nil || !bytes.Equal(c.Raw, raw) {
		t.Errorf("certificate: %v", err)
	}
	for label, want := range map[string]fault.Kind{"none": fault.NotFound, "damaged": fault.Invalid} {
		if _, err := k.Certificate(label); fault.Of(err) != want {
			t.Errorf("certificate %s: %v, want %v", label, err, want)
		}
	}
	signer := testkit.Must[*token.Key](t)(k.Key("rsa2048"))
	digest := sha256.Sum256(nil)
	long := sha512.Sum512(nil)
	for name, sign := range map[string]func() ([]byte, error){
		"short digest": func() ([]byte, error) { return signer.Sign(nil, digest[1:], crypto.SHA256) },
		"no hash":      func() ([]byte, error) { return signer.Sign(nil, digest[:], crypto.Hash(0)) },
		"PSS":          func() ([]byte, error) { return signer.Sign(nil, digest[:], &rsa.PSSOptions{Hash: crypto.SHA256}) },
		"SHA-512":      func() ([]byte, error) { return signer.Sign(nil, long[:], crypto.SHA512) },
	} {
		if _, err := sign(); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

// TestPINForEverySignature: a PIN that stops coming stops the signing.
func TestPINForEverySignature(t *testing.T) {
	softhsm(t, "release")
	make1(t, func(m maker) { m.rsa("boot", "1", 2048, true) })
	pins := []string{userPIN, "wrong", ""}
	k := testkit.Must[*token.Token](t)(token.Open(module, "", func() ([]byte, error) {
		p := pins[0]
		pins = pins[1:]
		return []byte(p), nil
	}))
	defer k.Close()
	signer := testkit.Must[*token.Key](t)(k.Key("boot"))
	digest := sha256.Sum256(nil)
	if _, err := signer.Sign(nil, digest[:], crypto.SHA256); fault.Of(err) != fault.Unauthenticated {
		t.Errorf("wrong PIN: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	softhsm(t, "a", "b", "c", "c")
	k := testkit.Must[*token.Token](t)(token.Open(module, "a", pin(userPIN)))
	k.Close()
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		module, label, pin string
		want               fault.Kind
	}{
		"no module":    {module + ".not", "a", userPIN, fault.NotFound},
		"not a module": {text, "a", userPIN, fault.NotFound},
		"no token":     {module, "d", userPIN, fault.NotFound},
		"which token":  {module, "", userPIN, fault.Conflict},
		"same label":   {module, "c", userPIN, fault.Conflict},
		"wrong PIN":    {module, "a", "87654321", fault.Unauthenticated},
		"no PIN":       {module, "a", "", fault.Unauthenticated},
	} {
		_, err := token.Open(c.module, c.label, pin(c.pin))
		if fault.Of(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if err != nil && c.pin != "" && strings.Contains(err.Error(), c.pin) {
			t.Errorf("%s: the error holds the PIN", name)
		}
	}
	gone := errors.New("gone")
	if _, err := token.Open(module, "a", func() ([]byte, error) { return nil, gone }); !errors.Is(err, gone) {
		t.Errorf("nobody types: %v", err)
	}
}

// TestRemoved takes the token away between opening and signing.
func TestRemoved(t *testing.T) {
	dir := softhsm(t, "release")
	make1(t, func(m maker) { m.ec("boot", "1", p256) })
	k := testkit.Must[*token.Token](t)(token.Open(module, "release", pin(userPIN)))
	defer k.Close()
	signer := testkit.Must[*token.Key](t)(k.Key("boot"))
	digest := sha256.Sum256(nil)
	if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	entries := testkit.Must[[]os.DirEntry](t)(os.ReadDir(dir))
	for _, e := range entries {
		if e.IsDir() {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := signer.Sign(nil, digest[:], crypto.SHA256); fault.Of(err) != fault.Unavailable {
		t.Errorf("removed token: %v", err)
	}
	if _, err := k.Key("boot"); err == nil {
		t.Error("a removed token has keys")
	}
}

// TestAnswers: SoftHSM never locks a PIN and is never unplugged; the answers of tokens
// that do are turned into kinds here.
func TestAnswers(t *testing.T) {
	if err := token.Locked(pkcs11.CKF_TOKEN_INITIALIZED | pkcs11.CKF_USER_PIN_LOCKED); fault.Of(err) != fault.Denied {
		t.Errorf("locked: %v", err)
	}
	if err := token.Locked(pkcs11.CKF_TOKEN_INITIALIZED | pkcs11.CKF_USER_PIN_FINAL_TRY); err != nil {
		t.Errorf("not yet locked: %v", err)
	}
	for code, want := range map[uint]fault.Kind{
		pkcs11.CKR_PIN_INCORRECT: fault.Unauthenticated, pkcs11.CKR_PIN_LOCKED: fault.Denied, pkcs11.CKR_PIN_EXPIRED: fault.Denied,
		pkcs11.CKR_DEVICE_REMOVED: fault.Unavailable, pkcs11.CKR_TOKEN_NOT_PRESENT: fault.Unavailable, pkcs11.CKR_GENERAL_ERROR: fault.Internal,
	} {
		err := token.Classify("sign", pkcs11.Error(code))
		if fault.Of(err) != want || !errors.Is(err, pkcs11.Error(code)) {
			t.Errorf("%v: %v, want %v", pkcs11.Error(code), fault.Of(err), want)
		}
	}
}

// TestKeyForms: what a broken token may answer is refused, and does not panic.
func TestKeyForms(t *testing.T) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	point := testkit.Must[[]byte](t)(asn1.Marshal(testkit.Must[[]byte](t)(key.PublicKey.Bytes())))
	params := testkit.Must[[]byte](t)(asn1.Marshal(p256))
	if _, err := token.ECKey(params, point); err != nil {
		t.Errorf("twin: %v", err)
	}
	for name, c := range map[string][2][]byte{
		"no curve": {nil, point}, "another curve": {testkit.Must[[]byte](t)(asn1.Marshal(p384)), point}, "no point": {params, nil},
		"point and more": {params, append(bytes.Clone(point), 0)}, "raw point": {params, point[2:]},
	} {
		if _, err := token.ECKey(c[0], c[1]); fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	modulus := bytes.Repeat([]byte{0xff}, 256)
	if _, err := token.RSAKey(modulus, []byte{1, 0, 1}); err != nil {
		t.Errorf("twin: %v", err)
	}
	if _, err := token.RSAKey(modulus, []byte{3}); fault.Of(err) != fault.Invalid {
		t.Errorf("exponent 3: %v", err)
	}
	for _, raw := range [][]byte{nil, {1}} {
		if _, err := token.ECDSADER(raw); err == nil {
			t.Errorf("%x is a signature", raw)
		}
	}
}

func TestDescriptor(t *testing.T) {
	r := strings.NewReader("123456\nabc\n" + strings.Repeat("x", 256) + "\n")
	p := token.Descriptor(r)
	for _, want := range []string{"123456", "abc"} {
		if got, err := p(); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}
	if _, err := p(); fault.Of(err) != fault.Invalid {
		t.Errorf("too long: %v", err)
	}
	if _, err := token.Descriptor(strings.NewReader(""))(); fault.Of(err) != fault.Invalid {
		t.Errorf("nothing: %v", err)
	}
	if got, err := token.Descriptor(strings.NewReader("end"))(); err != nil || string(got) != "end" {
		t.Errorf("no line's end: %q, %v", got, err)
	}
	if _, err := token.Descriptor(iotest.ErrReader(io.ErrClosedPipe))(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("broken pipe: %v", err)
	}
}

func TestTerminal(t *testing.T) {
	master := testkit.Must[*os.File](t)(os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0))
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n := testkit.Must[int](t)(unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN))
	tty := testkit.Must[*os.File](t)(os.OpenFile("/dev/pts/"+big.NewInt(int64(n)).String(), os.O_RDWR|unix.O_NOCTTY, 0))
	if _, err := master.WriteString("2468\n"); err != nil {
		t.Fatal(err)
	}
	var prompt bytes.Buffer
	got, err := token.Terminal(t.Context(), tty, &prompt)()
	if err != nil || string(got) != "2468" || !strings.HasPrefix(prompt.String(), "PIN") || strings.Contains(prompt.String(), "2468") {
		t.Errorf("%q, %v, %q", got, err, prompt.String())
	}
	// ^C, which the program has turned into the end of a context.
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := token.Terminal(ended, tty, &prompt)(); fault.Of(err) != fault.Unavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if state := testkit.Must[*unix.Termios](t)(unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)); state.Lflag&unix.ECHO == 0 {
		t.Error("the terminal is left without echo")
	}
	_ = tty.Close()
	file := testkit.Must[*os.File](t)(os.Open(os.DevNull))
	defer file.Close()
	if _, err := token.Terminal(t.Context(), file, &prompt)(); fault.Of(err) != fault.Invalid {
		t.Errorf("not a terminal: %v", err)
	}
}

// TestModule: one program opens a module once at a time, and survives that the module
// is shut down behind its back.
func TestModule(t *testing.T) {
	softhsm(t, "release")
	make1(t, func(m maker) { m.ec("boot", "1", p256) })
	k := testkit.Must[*token.Token](t)(token.Open(module, "release", pin(userPIN)))
	defer k.Close()
	if _, err := token.Open(module, "release", pin(userPIN)); err == nil {
		t.Error("opened twice")
	}
	signer := testkit.Must[*token.Key](t)(k.Key("boot"))
	other := pkcs11.New(module)
	defer other.Destroy()
	if err := other.Finalize(); err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err == nil {
		t.Error("signed without a module")
	}
	if _, err := k.Key("boot"); err == nil {
		t.Error("found a key without a module")
	}
	if _, err := k.Certificate("boot"); err == nil {
		t.Error("found a certificate without a module")
	}
}
