//go:build cgo

package cli_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"lethe/internal/testkit"

	"github.com/miekg/pkcs11"
	"github.com/spf13/cobra"

	"lethe/fault"
	"lethe/image/medium/mediumtest"
	"lethe/image/pe"
	"lethe/image/release"
	"lethe/image/release/cli"
	"lethe/image/secureboot"
)

const (
	userPIN = "12345678"
	module  = "/usr/lib/softhsm/libsofthsm2.so"
)

// desk is what signers have before them: a token, two statements, an image.
type desk struct {
	t   *testing.T
	dir string
}

func (d desk) path(name string) string { return filepath.Join(d.dir, name) }

func (d desk) write(name string, b []byte) {
	d.t.Helper()
	if err := os.WriteFile(d.path(name), b, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// run runs the commands as lethe-image does. Each line of pins is one answer.
func (d desk) run(pins string, args ...string) (string, error) {
	d.t.Helper()
	if pins != "" {
		r, w, err := os.Pipe()
		if err != nil {
			d.t.Fatal(err)
		}
		defer r.Close()
		_, _ = w.WriteString(pins)
		_ = w.Close()
		// The command owns the descriptor that it is given.
		args = append(args, "--module", module, "--pin-fd", strconv.Itoa(testkit.Must[int](d.t)(dup(r))))
	}
	root := &cobra.Command{Use: "lethe-image", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(cli.Commands()...)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.Execute()
	return out.String(), err
}

func block(kind string, b []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
}

func public(t *testing.T, k crypto.Signer) string {
	return block("PUBLIC KEY", testkit.Must[[]byte](t)(x509.MarshalPKIXPublicKey(k.Public())))
}

// token makes a SoftHSM with these keys, each with a certificate under the same label.
func (d desk) token(keys map[string]crypto.Signer) map[string]*x509.Certificate {
	t := d.t
	t.Helper()
	d.write("softhsm2.conf", []byte("directories.tokendir = "+d.dir+"\nlog.level = ERROR\n"))
	t.Setenv("SOFTHSM2_CONF", d.path("softhsm2.conf"))
	util := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("softhsm2-util", args...).CombinedOutput(); err != nil {
			t.Fatalf("softhsm2-util: %v\n%s", err, out)
		}
	}
	util("--init-token", "--free", "--label", "release", "--so-pin", "87654321", "--pin", userPIN)
	certificates := map[string]*x509.Certificate{}
	n := 10
	for label, k := range keys {
		n++
		d.write(label+".pem", []byte(block("PRIVATE KEY", testkit.Must[[]byte](t)(x509.MarshalPKCS8PrivateKey(k)))))
		util("--import", d.path(label+".pem"), "--token", "release", "--label", label, "--id", strconv.Itoa(n), "--pin", userPIN)
		certificates[label] = testkit.Must[*x509.Certificate](t)(secureboot.Certificate("Lethe "+label, k))
	}
	c := pkcs11.New(module)
	defer c.Destroy()
	if err := c.Initialize(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Finalize() }()
	s := testkit.Must[pkcs11.SessionHandle](t)(c.OpenSession(testkit.Must[[]uint](t)(c.GetSlotList(true))[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION))
	if err := c.Login(s, pkcs11.CKU_USER, userPIN); err != nil {
		t.Fatal(err)
	}
	for label, certificate := range certificates {
		a := pkcs11.NewAttribute
		if _, err := c.CreateObject(s, []*pkcs11.Attribute{a(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE), a(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509),
			a(pkcs11.CKA_TOKEN, true), a(pkcs11.CKA_LABEL, label), a(pkcs11.CKA_SUBJECT, certificate.RawSubject), a(pkcs11.CKA_VALUE, certificate.Raw)}); err != nil {
			t.Fatal(err)
		}
	}
	return certificates
}

// bootable returns the smallest PE32+ image with space for a signature.
func bootable(t *testing.T) []byte {
	return testkit.Must[[]byte](t)(pe.Reserve(mediumtest.PE(nil), 3000))
}

func newDesk(t *testing.T) desk {
	d := desk{t, t.TempDir()}
	var builders []ed25519.PrivateKey
	var texts []string
	for range 2 {
		_, k, _ := ed25519.GenerateKey(rand.Reader)
		builders, texts = append(builders, k), append(texts, public(t, k))
	}
	boot := testkit.Must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	ec := func() *ecdsa.PrivateKey {
		return testkit.Must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	}
	releaser := ec()
	certificates := d.token(map[string]crypto.Signer{"boot": boot, "release": releaser, "PK": ec(), "KEK": ec(), "other": ec()})
	d.write("trust.json", testkit.Must[[]byte](t)(json.Marshal(map[string]any{"builders": texts, "threshold": 2, "release": []string{public(t, releaser)},
		"release_threshold": 1, "boot": []string{block("CERTIFICATE", certificates["boot"].Raw)}, "floor": 1})))
	image := bootable(t)
	iso := append(image, []byte("root file system")...)
	table := testkit.Must[*pe.Image](t)(pe.Parse(image)).Table()
	description := release.Image{Flavour: "vm", Size: int64(len(iso)), BootLength: int64(len(image)), Parts: []release.Part{}, PCRs: []release.PCR{},
		Regions: []release.Region{{Name: "boot", Length: int64(table.Offset)},
			{Name: "boot.signatures", Offset: int64(table.Offset), Length: int64(table.Length), Signature: true},
			{Name: "root", Offset: int64(len(image)), Length: 16}}}
	description, digest, err := release.Describe(description, bytes.NewReader(iso))
	if err != nil {
		t.Fatal(err)
	}
	d.write("lethe-3-vm.iso", iso)
	for i, k := range builders {
		s := release.NewStatement("builder", release.Parameters{Version: 3, Commit: strings.Repeat("a", 40), Epoch: 1}, []release.Input{},
			[]release.Subject{{Name: "lethe-3-vm.iso", Digest: release.DigestSet{SHA256: &digest}, Annotations: description}})
		d.write("statement-"+strconv.Itoa(i), testkit.Must[[]byte](t)(release.SignStatement(s, k)))
		s.Predicate.Definition.External.Epoch = 2
		d.write("different-"+strconv.Itoa(i), testkit.Must[[]byte](t)(release.SignStatement(s, k)))
	}
	if err := errors.Join(os.Mkdir(d.path("out"), 0o700), os.Mkdir(d.path("keys"), 0o700)); err != nil {
		t.Fatal(err)
	}
	return d
}

// common are the flags of sign and verify.
func (d desk) common(command string, more ...string) []string {
	return append([]string{command, "--trust", d.path("trust.json"), "--statement", d.path("statement-0"), "--statement", d.path("statement-1")}, more...)
}

// TestRelease goes the whole way: keys, sign, verify.
func TestRelease(t *testing.T) {
	d := newDesk(t)
	const pin = userPIN + "\n"
	if out, err := d.run(pin, "keys", "--out", d.path("keys"), "--enrol", "/usr/share/OVMF/OVMF_VARS_4M.fd", "--store", d.path("vars.fd")); err != nil {
		t.Fatalf("keys: %v\n%s", err, out)
	}
	stored := testkit.Must[[]secureboot.Stored](t)(secureboot.ReadStore(testkit.Must[[]byte](t)(os.ReadFile(d.path("vars.fd")))))
	if len(stored) < 5 {
		t.Errorf("%d variables", len(stored))
	}
	sign := d.common("sign", "--images", d.dir, "--out", d.path("out"), "--keys", d.path("keys"), "--floor", "2")
	sign = slices.Clip(sign)
	out, err := d.run(pin, sign...)
	if err != nil || !strings.Contains(out, "2 builders agree on release 3") {
		t.Fatalf("sign: %v\n%s", err, out)
	}
	manifest, iso := d.path("out/release.json"), d.path("out/lethe-3-vm.iso")
	m := testkit.Must[release.Manifest](t)(release.ReadManifest(testkit.Must[[]byte](t)(os.ReadFile(manifest))))
	if m.Floor != 2 || len(m.Images) != 1 || len(m.Images[0].PCRs) != 1 || m.Images[0].PCRs[0].Index != 7 {
		t.Errorf("%+v", m)
	}
	verify := slices.Clip(d.common("verify", "--manifest", manifest))
	if out, err := d.run("", append(verify, iso)...); err != nil || !strings.Contains(out, "every bit is right") {
		t.Errorf("verify: %v\n%s", err, out)
	}
	out, err = d.run("", append(verify, "--json", iso)...)
	var result map[string]any
	if err != nil || json.Unmarshal([]byte(out), &result) != nil || result["version"] != 3.0 {
		t.Errorf("verify --json: %v\n%s", err, out)
	}
	for name, c := range map[string]struct {
		args []string
		want error
	}{
		"unsigned image":    {append(verify, d.path("lethe-3-vm.iso")), release.NotSigned},
		"floor":             {append(verify, "--floor", "4", iso), release.BelowFloor},
		"renamed":           {append(verify, d.path("trust.json")), release.NoImage},
		"another's flavour": {append(verify, "--flavour", "vm", d.path("trust.json")), release.WrongSize},
		"one statement":     {append([]string{}, "verify", "--trust", d.path("trust.json"), "--statement", d.path("statement-0"), "--manifest", manifest), release.TooFewBuilders},
		"no image":          {append(verify, d.path("lethe-3-vm.iso")+"x", "--flavour", "vm"), fault.New(fault.NotFound, "")},
		"no manifest":       {d.common("verify", "--manifest", d.path("none")), fault.New(fault.NotFound, "")},
		"no trust":          {[]string{"verify", "--trust", d.path("none"), "--manifest", manifest}, fault.New(fault.NotFound, "")},
		"not a trust file":  {[]string{"verify", "--trust", manifest, "--manifest", manifest}, fault.New(fault.Invalid, "")},
		"no statement":      {d.common("verify", "--statement", d.path("none"), "--manifest", manifest), fault.New(fault.NotFound, "")},
		"a directory":       {d.common("verify", "--manifest", d.dir), fault.New(fault.Internal, "")},
	} {
		if out, err := d.run("", c.args...); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v\n%s", name, err, c.want, out)
		}
	}
	for name, c := range map[string]struct {
		pin  string
		args []string
		want error
	}{
		"written twice":      {pin, sign, fault.New(fault.Conflict, "")},
		"keys twice":         {pin, []string{"keys", "--out", d.path("keys")}, fault.New(fault.Conflict, "")},
		"wrong PIN":          {"1\n", sign, fault.New(fault.Unauthenticated, "")},
		"keys, wrong PIN":    {"1\n", []string{"keys"}, fault.New(fault.Unauthenticated, "")},
		"keys, no label":     {pin, []string{"keys", "--out", d.path("out"), "--pk", "none"}, fault.New(fault.NotFound, "")},
		"one builder":        {pin, []string{"sign", "--trust", d.path("trust.json"), "--statement", d.path("statement-0"), "--out", d.path("out")}, release.TooFewBuilders},
		"disagreement":       {pin, append(sign, "--statement", d.path("different-1")), release.Disagree},
		"no trust to sign":   {pin, []string{"sign", "--trust", d.path("none"), "--out", d.path("out")}, fault.New(fault.NotFound, "")},
		"another boot key":   {pin, append(sign, "--boot-certificate", "other"), fault.New(fault.Denied, "")},
		"no boot key":        {pin, append(sign, "--boot-key", "none"), fault.New(fault.NotFound, "")},
		"no certificate":     {pin, append(sign, "--boot-certificate", "none"), fault.New(fault.NotFound, "")},
		"no release key":     {pin, append(sign, "--release-key", "none"), fault.New(fault.NotFound, "")},
		"no images":          {pin, append(sign, "--images", d.path("out/none")), fault.New(fault.NotFound, "")},
		"signed images":      {pin, append(sign, "--images", d.path("out")), release.Damaged},
		"no keys":            {pin, append(sign, "--keys", d.path("none")), fault.New(fault.NotFound, "")},
		"no place to write":  {pin, append(sign, "--out", d.path("none")), fault.New(fault.NotFound, "")},
		"no store":           {pin, []string{"keys", "--out", d.fresh("a"), "--enrol", d.path("none")}, fault.New(fault.NotFound, "")},
		"not a store":        {pin, []string{"keys", "--out", d.fresh("b"), "--enrol", d.path("trust.json")}, fault.New(fault.Invalid, "")},
		"no KEK":             {pin, []string{"keys", "--out", d.fresh("c"), "--kek", "none"}, fault.New(fault.NotFound, "")},
		"no such descriptor": {"", slices.Concat(sign, []string{"--module", module, "--pin-fd", "999"}), fault.New(fault.Unavailable, "")},
		"damaged keys":       {pin, append(sign, "--keys", d.damagedKeys()), fault.New(fault.Invalid, "")},
		"keys nowhere":       {pin, []string{"keys", "--out", d.path("none")}, fault.New(fault.NotFound, "")},
		"certificate not in": {pin, append(sign, "--keys", d.otherKeys()), fault.New(fault.Denied, "")},
	} {
		if out, err := d.run(c.pin, c.args...); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v\n%s", name, err, c.want, out)
		}
	}
	if _, err := d.run("", append(sign, "--module", module)...); fault.Of(err) != fault.Invalid {
		t.Errorf("no terminal: %v", err)
	}
	left, _ := filepath.Glob(d.path("out/.part-*"))
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// otherKeys makes a directory whose db knows another key.
func (d desk) otherKeys() string {
	d.t.Helper()
	if err := os.Mkdir(d.path("other"), 0o700); err != nil {
		d.t.Fatal(err)
	}
	kek := testkit.Must[[]byte](d.t)(os.ReadFile(d.path("keys/KEK.esl")))
	for _, name := range []string{"PK", "KEK", "db"} {
		d.write("other/"+name+".esl", kek)
	}
	return d.path("other")
}

// damagedKeys makes a directory whose db is none.
func (d desk) damagedKeys() string {
	dir := d.fresh("damaged")
	for _, name := range []string{"PK", "KEK", "db"} {
		d.write("damaged/"+name+".esl", []byte("text"))
	}
	return dir
}

// fresh makes an empty directory.
func (d desk) fresh(name string) string {
	d.t.Helper()
	if err := os.Mkdir(d.path(name), 0o700); err != nil {
		d.t.Fatal(err)
	}
	return d.path(name)
}

func TestCompare(t *testing.T) {
	d := newDesk(t)
	if out, err := d.run("", "compare", d.path("statement-0"), d.path("statement-1")); err != nil || out != "they agree\n" {
		t.Errorf("%v\n%s", err, out)
	}
	out, err := d.run("", "compare", d.path("statement-0"), d.path("different-1"))
	if fault.Of(err) != fault.Untrusted || out != "predicate/buildDefinition/externalParameters/epoch: 1 and 2\n" {
		t.Errorf("%v\n%s", err, out)
	}
	out, _ = d.run("", "compare", "--json", d.path("statement-0"), d.path("different-1"))
	var list []release.Difference
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 || list[0].B != "2" {
		t.Errorf("%v\n%s", err, out)
	}
	for name, args := range map[string][]string{
		"no A": {"none", "statement-0"}, "no B": {"statement-0", "none"}, "not a statement": {"statement-0", "trust.json"},
	} {
		if _, err := d.run("", "compare", d.path(args[0]), d.path(args[1])); err == nil {
			t.Errorf("%s: compared", name)
		}
	}
}
