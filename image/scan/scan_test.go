package scan_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"lethe/internal/testkit"

	"golang.org/x/crypto/ssh"

	"lethe/image/medium"
	"lethe/image/medium/mediumtest"
	"lethe/image/scan"
	"lethe/image/tree"
)

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// letters returns n characters of a set, by chance, some of them digits.
func letters(n int, set string) string {
	for {
		b := noise(n)
		for i := range b {
			b[i] = set[int(b[i])%len(set)]
		}
		if bytes.ContainsAny(b, "0123456789") && bytes.ContainsAny(b, set[10:]) {
			return string(b)
		}
	}
}

const (
	alnum = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	upper = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	b32   = "023456789ACDEFGHJKLMNPQRSTUVWXYZ"
)

func openssl(t testing.TB, in []byte, args ...string) []byte {
	t.Helper()
	c := exec.Command("openssl", args...)
	c.Stdin = bytes.NewReader(in)
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		t.Fatalf("openssl %q: %v\n%s", args, err, &errs)
	}
	return out
}

// wire is SSH's form of strings (RFC 4251, 5).
func wire(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
	}
	return b
}

// kind is a kind of secret, and what it must be found as.
type kind struct {
	rule   string
	secret []byte
	text   bool // it is found in files of text only
}

// kinds makes one of each kind.
func kinds(t testing.TB) map[string]kind {
	t.Helper()
	rsaKey := testkit.Must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	ecKey := testkit.Must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8 := func(k crypto.Signer) []byte { return testkit.Must[[]byte](t)(x509.MarshalPKCS8PrivateKey(k)) }
	block := func(label string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: b}) }
	sec1 := testkit.Must[[]byte](t)(x509.MarshalECPrivateKey(ecKey))
	openSSH := pem.EncodeToMemory(testkit.Must[*pem.Block](t)(ssh.MarshalPrivateKey(edKey, "")))
	raw, _ := pem.Decode(openSSH)
	encrypted, _ := pem.Decode(openssl(t, block("PRIVATE KEY", pkcs8(edKey)), "pkcs8", "-topk8", "-passout", "pass:x", "-v2", "aes-256-cbc"))
	template := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(template, block("PRIVATE KEY", pkcs8(ecKey)), 0o600); err != nil {
		t.Fatal(err)
	}
	cert := openssl(t, nil, "req", "-x509", "-new", "-key", template, "-subj", "/CN=x")
	p12 := openssl(t, append(block("PRIVATE KEY", pkcs8(ecKey)), cert...), "pkcs12", "-export", "-passout", "pass:x")
	static := "-----BEGIN OpenVPN Static key V1-----\n"
	for range 16 {
		static += hex.EncodeToString(noise(16)) + "\n"
	}
	jwt := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"somebody"}`)) + "." + base64.RawURLEncoding.EncodeToString(noise(32))
	wgKey := base64.StdEncoding.EncodeToString(noise(32))
	account := testkit.Must[[]byte](t)(json.Marshal(map[string]string{"type": "service_account", "private_key": string(block("PRIVATE KEY", pkcs8(rsaKey)))}))
	modulus := rsaKey.N.Bytes()
	m := map[string]kind{
		"PKCS #8":              {"pem", block("PRIVATE KEY", pkcs8(rsaKey)), false},
		"PKCS #8, short":       {"pem", block("PRIVATE KEY", pkcs8(edKey)), false},
		"PKCS #1":              {"pem", block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), false},
		"SEC 1":                {"pem", block("EC PRIVATE KEY", sec1), false},
		"encrypted":            {"pem", block("ENCRYPTED PRIVATE KEY", encrypted.Bytes), false},
		"TPM":                  {"pem", block("TSS2 PRIVATE KEY", noise(200)), false},
		"PGP":                  {"pem", block("PGP PRIVATE KEY BLOCK", noise(300)), false},
		"OpenSSH":              {"pem", openSSH, false},
		"service account":      {"pem", account, false},
		"OpenVPN":              {"pem", []byte(static + "-----END OpenVPN Static key V1-----\n"), false},
		"tls-crypt-v2":         {"pem", block("OpenVPN tls-crypt-v2 client key", noise(400)), false},
		"PKCS #8, DER":         {"der", pkcs8(rsaKey), false},
		"PKCS #8, DER, EC":     {"der", pkcs8(ecKey), false},
		"PKCS #8, DER, short":  {"der", pkcs8(edKey), false},
		"PKCS #1, DER":         {"der", x509.MarshalPKCS1PrivateKey(rsaKey), false},
		"SEC 1, DER":           {"der", sec1, false},
		"encrypted, DER":       {"der", encrypted.Bytes, false},
		"PKCS #12":             {"der", p12, false},
		"OpenSSH, raw":         {"openssh", raw.Bytes, false},
		"PuTTY":                {"putty", []byte("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nPrivate-Lines: 1\n" + wgKey + "\n"), false},
		"Dropbear, RSA":        {"dropbear", wire([]byte("ssh-rsa"), []byte{1, 0, 1}, append([]byte{0}, modulus...), rsaKey.D.Bytes(), rsaKey.Primes[0].Bytes()), false},
		"Dropbear, EC":         {"dropbear", wire([]byte("ecdsa-sha2-nistp256"), []byte("nistp256"), append([]byte{4}, noise(64)...), noise(32)), false},
		"Dropbear, Ed25519":    {"dropbear", wire([]byte("ssh-ed25519"), edKey), false},
		"age":                  {"age", []byte("AGE-SECRET-KEY-1" + letters(58, b32)), false},
		"GnuPG":                {"pgp", []byte("(11:private-key(3:ecc(5:curve7:Ed25519)(1:d32:" + string(noise(32)) + ")))"), false},
		"GnuPG, text":          {"pgp", []byte("Key: (protected-private-key (ecc (curve Ed25519)(q #40" + strings.ToUpper(hex.EncodeToString(noise(32))) + "#)))"), false},
		"minisign":             {"minisign", []byte("untrusted comment: minisign encrypted secret key\n" + base64.StdEncoding.EncodeToString(noise(158)) + "\n"), false},
		"signify":              {"minisign", []byte("untrusted comment: signify secret key\n" + base64.StdEncoding.EncodeToString(noise(104)) + "\n"), false},
		"JWT":                  {"jwt", []byte(jwt), false},
		"AWS":                  {"token", []byte("AKIA" + letters(16, upper)), false},
		"Google":               {"token", []byte("AIza" + letters(35, alnum)), false},
		"GitHub":               {"token", []byte("ghp_" + letters(36, alnum)), false},
		"GitHub, fine":         {"token", []byte("github_pat_" + letters(82, alnum)), false},
		"GitLab":               {"token", []byte("glpat-" + letters(20, alnum)), false},
		"Slack":                {"token", []byte("xoxb-" + letters(12, "0123456789ab") + "-" + letters(24, alnum)), false},
		"Azure":                {"token", []byte("AccountKey=" + base64.StdEncoding.EncodeToString(noise(64))), false},
		"crypt, yescrypt":      {"password", []byte("$y$j9T$" + letters(22, alnum) + "$" + letters(43, alnum)), false},
		"crypt, SHA-512":       {"password", []byte("$6$" + letters(16, alnum) + "$" + letters(86, alnum)), false},
		"bcrypt":               {"password", []byte("$2b$12$" + letters(53, alnum)), false},
		"Argon2":               {"password", []byte("$argon2id$v=19$m=65536,t=3,p=4$" + letters(22, alnum) + "$" + letters(43, alnum)), false},
		"htpasswd":             {"password", []byte("ada:$apr1$" + letters(8, alnum) + "$" + letters(22, alnum)), false},
		"URL":                  {"url", []byte("postgres://ada:" + letters(10, alnum) + "@db.river.example/x"), false},
		"credential":           {"credential", []byte("Whxqht+dQJax1aZeCGLxmiAAAAABAAAADAAAABAAAA" + base64.StdEncoding.EncodeToString(noise(60))), false},
		"netrc":                {"netrc", []byte("machine api.river.example login ada password river7\n"), true},
		"assigned":             {"assigned", []byte("api_key = \"" + letters(32, alnum) + "\"\n"), true},
		"assigned, unquoted":   {"assigned", []byte("RADIUS_SECRET=" + letters(24, alnum) + "\n"), true},
		"WireGuard":            {"assigned", []byte("[Interface]\nPrivateKey = " + wgKey + "\n"), true},
		"JSON":                 {"assigned", []byte(`{"auth_token": "` + letters(30, alnum) + `"}`), true},
		"unit":                 {"assigned", []byte("[Service]\nSetCredential=key:" + letters(20, alnum) + "\n"), true},
		"random, hexadecimal":  {"random", []byte("id " + hex.EncodeToString(noise(32)) + "\n"), true},
		"random, base64":       {"random", []byte("seed " + base64.StdEncoding.EncodeToString(noise(64)) + "\n"), true},
		"lease":                {"lease", []byte("lease {\n  interface \"eth0\";\n  fixed-address 192.0.2.7;\n}\n"), true},
		"DUID":                 {"lease", []byte(`default-duid "\000\001\000\001\052\161";` + "\n"), true},
		"host name of builder": {"builder", []byte("builder-7f3a.river.example"), false},
		"and in UTF-16":        {"builder", wide("builder-7f3a"), false},
	}
	return m
}

func wide(s string) (b []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return b
}

var options = scan.Options{Needles: []scan.Needle{{What: "host name of the builder", Value: "builder-7f3a"}}}

func rules(found []scan.Finding) (all []string) {
	for _, f := range found {
		all = append(all, f.Rule)
	}
	return all
}

func search(t testing.TB, path string, b []byte) []scan.Finding {
	t.Helper()
	x := &tree.Tree{}
	if err := x.File(path, 0o644, "", b); err != nil {
		t.Fatal(err)
	}
	found, err := scan.Tree(context.Background(), scan.Root, x, options)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// elf is bytes as of a program, with something inside.
func elf(secret []byte) []byte {
	b := append([]byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"), bytes.Repeat([]byte{0x48, 0x89, 0xe5, 0}, 2000)...)
	b = append(append(b, "a string\x00"...), secret...)
	return append(b, bytes.Repeat([]byte{0, 0xc3, 0x90, 0x0f}, 2000)...)
}

// TestKinds plants every kind of secret in every kind of file. A finding says the rule and
// the digest, never the secret.
func TestKinds(t *testing.T) {
	for name, k := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			var packed bytes.Buffer
			w := gzip.NewWriter(&packed)
			_, err := w.Write(append([]byte("a line before\n"), k.secret...))
			if err := errors.Join(err, w.Close()); err != nil {
				t.Fatal(err)
			}
			places := map[string][]byte{
				"usr/share/notes": append([]byte("a line before\n"), k.secret...), "etc/some.conf": append([]byte("# a comment\n"), k.secret...), "usr/share/notes.gz": packed.Bytes(),
			}
			if !k.text {
				places["usr/bin/program"] = elf(k.secret)
			}
			for path, b := range places {
				found := search(t, path, b)
				if !slices.Contains(rules(found), k.rule) {
					t.Errorf("%s: found as %q, want %s", path, rules(found), k.rule)
				}
				for _, f := range found {
					text := testkit.Must[[]byte](t)(json.Marshal(f))
					if n := min(len(k.secret), 24); bytes.Contains(text, k.secret[len(k.secret)-n:]) || strings.Contains(f.String(), string(k.secret[len(k.secret)-n:])) {
						t.Errorf("the finding holds the secret: %s", text)
					}
					if f.Digest == (scan.Digest{}) || f.Packed && !strings.HasSuffix(path, ".gz") {
						t.Errorf("finding %+v", f)
					}
				}
			}
		})
	}
}

// TestHarmless: what looks like a secret and is none.
func TestHarmless(t *testing.T) {
	key := testkit.Must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: testkit.Must[[]byte](t)(x509.MarshalPKIXPublicKey(&key.PublicKey))})
	sshKey := ssh.MarshalAuthorizedKey(testkit.Must[ssh.PublicKey](t)(ssh.NewPublicKey(&key.PublicKey)))
	for name, c := range map[string]struct {
		path string
		b    []byte
	}{
		"words of a reader":     {"usr/bin/x", elf([]byte("-----BEGIN PRIVATE KEY-----\x00-----BEGIN RSA PRIVATE KEY-----\x00openssh-key-v1\x00\x00\x00\x00\x00$6$\x00ghp_\x00eyJ\x00private-key\x00"))},
		"strings of Go":         {"usr/bin/x", elf([]byte("-----BEGIN OPENSSH PRIVATE KEY-----reflect.Value.SetMapIndexruntime.panicSliceB4096"))},
		"format":                {"usr/bin/x", elf([]byte("https://%s:%s@%s/\x00password: %s\x00"))},
		"public key":            {"etc/x.conf", public},
		"SSH's public key":      {"etc/x.conf", sshKey},
		"its wire form":         {"usr/bin/x", elf(testkit.Must[ssh.PublicKey](t)(ssh.NewPublicKey(&key.PublicKey)).Marshal())},
		"certificate":           {"usr/share/x", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: noise(900)})},
		"PKIX":                  {"usr/bin/x", testkit.Must[[]byte](t)(x509.MarshalPKIXPublicKey(&key.PublicKey))},
		"placeholders":          {"etc/x.conf", []byte("password = ${PASSWORD}\nsecret = /run/secret\ntoken: none\npassphrase = \"\"\npasswd: files systemd\nurl = http://user:password@host/\npsk = xxxxxxxx\n")},
		"comparison":            {"usr/share/x", []byte("if password == thePasswordOfTheUser2024 {}\nsecret::TheNextThing1234567890\n")},
		"path":                  {"etc/x.conf", []byte("/usr/lib/x86_64-linux-gnu/security/pam_systemd_home_and_more_of_it.so.0\n")},
		"instance":              {"etc/x.conf", []byte("After=getty@tty1.service user@1000.service\n")},
		"nobody's password":     {"etc/shadow", []byte("root:*:1::::::\nada:!:1::::::\nbob:!*:1::::::\n")},
		"groups":                {"etc/group", []byte("root::0:\nada:x:1:\n")},
		"no machine":            {"etc/machine-id", []byte("uninitialized\n")},
		"an empty file":         {"etc/credstore/x", nil},
		"a header with no body": {"usr/share/x", []byte("-----BEGIN PRIVATE KEY-----\nhere comes the key\n-----END PRIVATE KEY-----\n")},
		"no JSON web token":     {"usr/share/x", []byte("eyJhbGciOiJub25lIn0aaaaaaaa.bbb eyJxIjoxMjM0NTY3OH0.eyJzdWIiOiJ4In0." + letters(24, alnum))},
		"not random":            {"usr/share/x", []byte(strings.Repeat("0", 64) + "\n" + strings.Repeat("ab", 40) + "\n")},
		"long names":            {"usr/share/x", []byte("x = token_of_a_thing: This-Is-A-Name_With-Words-2\n")},
	} {
		if found := search(t, c.path, c.b); len(found) > 0 {
			t.Errorf("%s: %v", name, found)
		}
	}
}

// TestNames: files that are secrets by their names, and those that must be empty.
func TestNames(t *testing.T) {
	for path, rule := range map[string]string{
		"etc/ssh/ssh_host_ed25519_key": "name", "etc/dropbear/dropbear_rsa_host_key": "name", "root/.ssh/id_ed25519": "name", "usr/share/x/.env": "name", "srv/.netrc": "name",
		"var/lib/systemd/random-seed": "name", "etc/machine-id": "name", "var/lib/dhcp/dhclient.leases": "name", "etc/swanctl/private/x": "name", "etc/x.p12": "name",
		"var/lib/systemd/credential.secret": "name", "etc/credstore/x": "name", "root/.bash_history": "name", "etc/dhcpcd.duid": "name", "var/lib/systemd/tpm2-srk-public-key.pem": "name",
		"boot/loader/random-seed": "name",
	} {
		found := search(t, path, []byte("something\n"))
		if !slices.Contains(rules(found), rule) {
			t.Errorf("%s: %v", path, found)
		}
		if found := search(t, path, nil); len(found) > 0 {
			t.Errorf("%s, empty: %v", path, found)
		}
	}
	for path, text := range map[string]string{"etc/shadow": "root::1::::::\n", "etc/passwd": "ada:x:1:\nbob:abJnggxhB/yWI:2:\n", "etc/gshadow": "ada:" + "$6$" + letters(8, alnum) + "$" + letters(86, alnum) + "::\n"} {
		found := search(t, path, []byte(text))
		if len(found) != 1 || found[0].Rule != "password" || found[0].Line == 0 {
			t.Errorf("%s: %v", path, found)
		}
	}
	found := search(t, "etc/ssl/x.conf", []byte{0, 1, 2, 3})
	if len(found) != 1 || found[0].Rule != "random" {
		t.Errorf("a file that should be text: %v", found)
	}
	if found := search(t, "x/context", append([]byte{0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1}, noise(80)...)); len(found) != 1 || found[0].Rule != "tpm" {
		t.Errorf("a saved context: %v", found)
	}
	// Names themselves, and links.
	x := &tree.Tree{}
	token := "ghp_" + letters(36, alnum)
	if err := errors.Join(x.File("usr/share/builder-7f3a/x", 0o644, "", nil), x.Symlink("usr/l", "https://"+token, "")); err != nil {
		t.Fatal(err)
	}
	found, err := scan.Tree(context.Background(), scan.Root, x, options)
	if err != nil || len(found) != 3 || found[0].Rule != "token" && found[1].Rule != "token" {
		t.Errorf("names: %v, %v", found, err)
	}
}

// TestOurs: in what we wrote there is nobody's address and nobody's home.
func TestOurs(t *testing.T) {
	text := []byte("# written by ada@river.example\npath = /home/ada/work\n")
	if got := rules(search(t, "etc/lethe/x.conf", text)); !slices.Equal(got, []string{"email", "home"}) {
		t.Errorf("ours: %q", got)
	}
	if found := search(t, "usr/share/perl/x.pm", text); len(found) > 0 {
		t.Errorf("Debian's: %v", found)
	}
	if found := search(t, "usr/bin/lethe-x", elf([]byte("/Users/ada/go"))); len(found) != 1 || found[0].Rule != "home" {
		t.Errorf("a program of ours: %v", found)
	}
}

func TestAllowed(t *testing.T) {
	secret := kinds(t)["PKCS #8"].secret
	b := elf(secret)
	x := &tree.Tree{}
	if err := errors.Join(x.File("usr/lib/libx.so.1", 0o644, "", b), x.File("usr/lib/liby.so", 0o644, "", b)); err != nil {
		t.Fatal(err)
	}
	all, err := scan.Tree(context.Background(), scan.Root, x, scan.Options{})
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, %v", all, err)
	}
	allow := []scan.Allowed{{Path: "usr/lib/libx.so*", Rule: "pem", SHA256: all[0].Digest.String(), Reason: "a test vector"}}
	left, err := scan.Tree(context.Background(), scan.Root, x, scan.Options{Allow: allow})
	if err != nil || len(left) != 1 || left[0].Path != "usr/lib/liby.so" {
		t.Errorf("left %v, %v", left, err)
	}
	// Another secret in the file that has an allowed one is found.
	y := &tree.Tree{}
	if err := y.File("usr/lib/libx.so.1", 0o644, "", append(b, kinds(t)["PKCS #1"].secret...)); err != nil {
		t.Fatal(err)
	}
	left, err = scan.Tree(context.Background(), scan.Root, y, scan.Options{Allow: allow})
	if err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
	for _, a := range scan.Known() {
		if a.Reason == "" || a.Path == "" || a.Rule == "" {
			t.Errorf("%+v has no reason", a)
		}
	}
}

// TestProgram: strings of a real Go program lie one behind the other, without ends.
func TestProgram(t *testing.T) {
	dir := t.TempDir()
	secrets := kinds(t)
	want := []string{"AWS", "GitHub", "JWT", "age", "bcrypt", "PKCS #8, short", "PKCS #8, DER, short", "URL"}
	source := "package main\n\nimport \"os\"\n\nfunc main() {\n"
	for i, name := range want {
		source += fmt.Sprintf("\tif len(os.Args) == %d { println(%q) }\n", i+2, secrets[name].secret)
	}
	err := errors.Join(os.WriteFile(filepath.Join(dir, "main.go"), []byte(source+"}\n"), 0o600), os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module x\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("go", "build", "-trimpath", "-o", "x", ".")
	c.Dir, c.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	found := search(t, "usr/bin/x", testkit.Must[[]byte](t)(os.ReadFile(filepath.Join(dir, "x"))))
	for _, name := range want {
		if !slices.Contains(rules(found), secrets[name].rule) {
			t.Errorf("%s is not found among %v", name, found)
		}
	}
	if len(found) != len(want) {
		t.Errorf("%d findings, want %d: %v", len(found), len(want), found)
	}
}

func medFind(t *testing.T, s mediumtest.Spec) []scan.Finding {
	t.Helper()
	found, err := scan.Medium(context.Background(), mediumtest.Open(t, mediumtest.Make(t, s)), options)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestMedium plants a key in every layer of an image.
func TestMedium(t *testing.T) {
	secret := kinds(t)["PKCS #8"].secret
	if found := medFind(t, mediumtest.Spec{}); len(found) > 0 {
		t.Fatalf("an image without secrets: %v", found)
	}
	root, initramfs := mediumtest.Root(t), mediumtest.Initramfs(t)
	if err := errors.Join(root.File("usr/share/x", 0o644, "", secret), initramfs.File("lethe/x", 0o644, "", secret)); err != nil {
		t.Fatal(err)
	}
	sections := mediumtest.Sections()
	sections[1].Data = append(sections[1].Data, " luks.key="+letters(40, alnum)+" password=river77"...)
	for name, c := range map[string]struct {
		spec mediumtest.Spec
		want []string
	}{
		"root":                 {mediumtest.Spec{Root: root}, []string{"root usr/share/x pem"}},
		"initramfs":            {mediumtest.Spec{Initramfs: initramfs}, []string{"initramfs lethe/x pem"}},
		"command line":         {mediumtest.Spec{Sections: sections}, []string{"boot image .cmdline random", "boot image .cmdline assigned"}},
		"kernel":               {mediumtest.Spec{Sections: append(mediumtest.Sections(), mediumtest.Section{Name: ".data", Data: elf(secret)})}, []string{"boot image .data pem"}},
		"EFI system partition": {mediumtest.Spec{System: map[string][]byte{"x": secret}}, []string{"EFI system partition x pem"}},
		"ISO 9660 volume":      {mediumtest.Spec{Files: map[string][]byte{"x": secret}}, []string{"ISO 9660 volume x pem"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, f := range medFind(t, c.spec) {
				got = append(got, fmt.Sprintf("%s %s %s", f.Layer, f.Path, f.Rule))
			}
			slices.Sort(got)
			slices.Sort(c.want)
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestGaps: what belongs to nothing must be empty, whatever it looks like.
func TestGaps(t *testing.T) {
	good := mediumtest.Make(t, mediumtest.Spec{})
	spans, err := mediumtest.Open(t, good).Unused()
	if err != nil {
		t.Fatal(err)
	}
	secret := kinds(t)["PKCS #8, DER"].secret
	for _, span := range spans {
		for what, b := range map[string][]byte{"hidden": {7}, "der": secret} {
			if span.To-span.From < int64(len(b)) {
				continue
			}
			iso := bytes.Clone(good)
			copy(iso[span.To-int64(len(b)):], b)
			found, err := scan.Medium(context.Background(), mediumtest.Open(t, iso), scan.Options{})
			if err != nil || !slices.Contains(rules(found), what) || !slices.Contains(rules(found), "hidden") || found[len(found)-1].Layer != scan.Bytes {
				t.Errorf("%s: %v, %v", span.What, found, err)
			}
		}
	}
}

// TestWindows: a key on the border of two windows of the medium is found, once.
func TestWindows(t *testing.T) {
	iso := mediumtest.Make(t, mediumtest.Spec{SystemKiB: 12_000})
	m := mediumtest.Open(t, iso)
	secret := kinds(t)["PKCS #8"].secret
	const border = 8<<20 - 100
	copy(iso[border:], secret)
	if border < m.System.Offset || border > m.System.Offset+m.System.Size {
		t.Fatal("the border is elsewhere")
	}
	var keys []scan.Finding
	found, err := scan.Medium(context.Background(), mediumtest.Open(t, iso), scan.Options{})
	for _, f := range found {
		if f.Rule == "pem" {
			keys = append(keys, f)
		}
	}
	if err != nil || len(keys) != 1 || keys[0].Offset != border || keys[0].Layer != scan.Bytes {
		t.Errorf("%v, %v", found, err)
	}
}

func TestErrors(t *testing.T) {
	x := &tree.Tree{}
	broken := errors.New("broken")
	if err := x.Add(tree.Entry{Path: "x", Size: 1, Open: func() (io.ReadCloser, error) { return nil, broken }}); err != nil {
		t.Fatal(err)
	}
	if err := x.Add(tree.Entry{Path: "etc/shadow", Size: 1, Open: func() (io.ReadCloser, error) { return nil, broken }}); err != nil {
		t.Fatal(err)
	}
	if err := x.Add(tree.Entry{Path: "etc/machine-id", Size: 1, Open: func() (io.ReadCloser, error) { return nil, broken }}); err != nil {
		t.Fatal(err)
	}
	if _, err := scan.Tree(context.Background(), scan.Root, x, scan.Options{}); !errors.Is(err, broken) {
		t.Errorf("a file that cannot be read: %v", err)
	}
	if _, err := scan.Tree(context.Background(), scan.Root, x, scan.Options{Needles: []scan.Needle{{What: "host", Value: "ada"}}}); err == nil {
		t.Error("a needle of three bytes")
	}
	if _, err := scan.Medium(context.Background(), &medium.Medium{}, scan.Options{Needles: []scan.Needle{{What: "host", Value: "ada"}}}); err == nil {
		t.Error("a needle of three bytes")
	}
	large := &tree.Tree{}
	if err := large.Add(tree.Entry{Path: "x", Size: 2 << 30, Open: tree.Bytes(nil)}); err != nil {
		t.Fatal(err)
	}
	if _, err := scan.Tree(context.Background(), scan.Root, large, scan.Options{}); err == nil {
		t.Error("a file of 2 GiB")
	}
	m := mediumtest.Open(t, mediumtest.Make(t, mediumtest.Spec{}))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := scan.Medium(ctx, m, scan.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// TestDebian: the packages that the image is made of, as Debian made them and this machine has
// them, hold nothing.
func TestDebian(t *testing.T) {
	x := &tree.Tree{}
	for _, name := range []string{"openvpn", "charon-systemd", "libstrongswan", "strongswan-swanctl", "unbound", "nftables", "systemd", "libc6", "libssl3", "libssl3t64", "libsystemd0", "libnftables1", "libcharon-extra-plugins"} {
		out, err := exec.Command("dpkg-query", "-L", name).Output()
		if err != nil { // of the two names of OpenSSL's library a Debian has one
			continue
		}
		for path := range strings.Lines(string(out)) {
			path = strings.TrimSpace(path)
			info, err := os.Lstat(path)
			p := strings.TrimPrefix(path, "/")
			if err != nil || !info.Mode().IsRegular() || x.Get(p) != nil || strings.HasPrefix(p, "usr/share/doc") || strings.HasPrefix(p, "usr/share/man") || strings.HasPrefix(p, "etc") {
				continue // what this machine's operator may have changed, and what is for people
			}
			if err := x.Add(tree.Entry{Path: p, Mode: info.Mode(), Size: info.Size(), From: name, Open: func() (io.ReadCloser, error) { return os.Open(path) }}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if x.Len() < 300 {
		t.Fatalf("only %d files", x.Len())
	}
	found, err := scan.Tree(context.Background(), scan.Root, x, scan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Error(f)
	}
}

// TestPieces: a piece of a secret is no reason to panic, nor is a byte that is another one.
func TestPieces(t *testing.T) {
	for name, k := range kinds(t) {
		for n := 1; n < len(k.secret); n += 1 + len(k.secret)/16 {
			damaged := bytes.Clone(k.secret)
			damaged[n] ^= 0x81
			for _, b := range [][]byte{k.secret[:n], k.secret[n:], damaged} {
				for _, f := range search(t, "usr/share/x", b) {
					if f.Offset < 0 || f.Offset >= int64(len(b)) {
						t.Errorf("%s: %v", name, f)
					}
				}
			}
		}
	}
}

func FuzzScan(f *testing.F) {
	for _, k := range kinds(f) {
		f.Add(k.secret)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x := &tree.Tree{}
		if err := x.Add(tree.Entry{Path: "etc/shadow", Mode: fs.FileMode(0o644), Size: int64(len(b)), Open: tree.Bytes(b)}); err != nil {
			t.Fatal(err)
		}
		if _, err := scan.Tree(context.Background(), scan.Root, x, options); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkTree(b *testing.B) {
	x := &tree.Tree{}
	for i := range 64 {
		if err := x.File(fmt.Sprint(i), 0o644, "", noise(1<<20)); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(64 << 20)
	for b.Loop() {
		if _, err := scan.Tree(context.Background(), scan.Root, x, scan.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestMachine(t *testing.T) {
	got := scan.Machine("builder-7f3a", "ada", "/home/ada/", "/srv/build/x", "/root", "/src")
	want := []scan.Needle{{What: "host name of the builder", Value: "builder-7f3a"}, {What: "home directory of the builder", Value: "/home/ada"}, {What: "directory of the build", Value: "/srv/build/x"}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if got := scan.Machine("debian", "ada-lovelace", "/root"); !slices.Equal(got, []scan.Needle{{What: "user name of the builder", Value: "ada-lovelace"}}) {
		t.Errorf("%+v", got)
	}
	if found := search(t, "usr/bin/x", elf([]byte("/go/src/builder-7f3a/x.go"))); len(found) != 1 || found[0].Rule != "builder" {
		t.Errorf("%v", found)
	}
}
