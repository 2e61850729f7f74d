package scan

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
)

// forms returns everything that is searched for.
func forms() []form {
	all := []form{
		{rule: "pem", anchor: "-----BEGIN ", look: lookPEM},
		{rule: "openssh", anchor: "openssh-key-v1\x00\x00\x00\x00", look: lookOpenSSH},
		{rule: "putty", anchor: "PuTTY-User-Key-File-", look: lookPuTTY},
		{rule: "dropbear", anchor: "\x00\x00\x00\x07ssh-rsa\x00\x00\x00", look: lookDropbear},
		{rule: "dropbear", anchor: "\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x40", look: fixed(0x40, "Dropbear's private Ed25519 key")},
		{rule: "dropbear", anchor: "\x00\x00\x00\x13ecdsa-sha2-nistp", look: lookDropbear},
		{rule: "age", anchor: "AGE-SECRET-KEY-", fold: true, look: run(alnum+"-", 50, 4096, "private key of age")},
		{rule: "pgp", anchor: "private-key", look: lookGPG},
		{rule: "minisign", anchor: "encrypted secret key\n", look: secondLine("private key of minisign")},
		{rule: "minisign", anchor: "signify secret key\n", look: secondLine("private key of signify")},
		{rule: "jwt", anchor: "eyJ", look: lookJWT},
		{rule: "url", anchor: "://", look: lookURL},
		{rule: "netrc", anchor: "machine ", look: lookNetrc},
		{rule: "home", anchor: "/home/", look: lookHome},
		{rule: "home", anchor: "/Users/", look: lookHome},
		{rule: "lease", anchor: "lease {", look: lookLease},
		{rule: "lease", anchor: "default-duid \"", look: run(alnum+`\`, 4, 200, "identifier of a DHCP client")},
		{rule: "tpm", anchor: "\xba\xdc\xc0\xde\x00\x00\x00", look: lookTPM},
		{rule: "credential", anchor: "Whxqht+dQJax1aZeCGLxm", look: run(base64Std, 60, 1<<16, "credential of systemd")},
		{rule: "credential", anchor: "DHzAexF2RZGcSwvqCLwg/", look: run(base64Std, 60, 1<<16, "credential of systemd")},
		{rule: "credential", anchor: "k6iUCUh0RJCQyvL8k8q1U", look: run(base64Std, 60, 1<<16, "credential of systemd")},
	}
	for _, c := range alnum { // an anchor has two bytes: the last one of a mailbox
		all = append(all, form{rule: "email", anchor: string(c) + "@", look: lookEmail})
	}
	all = append(all, tokens()...)
	all = append(all, hashes()...)
	all = append(all, derForms()...)
	return append(all, assignments()...)
}

// Sets of characters.
const (
	alnum     = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	base64Std = alnum + "+/="
	base64Any = alnum + "+/=_-"
	hexLower  = "0123456789abcdef"
	upper     = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// span returns how many bytes from the beginning of b are in a set.
//
//go:norace
func span(b []byte, set string) int {
	for i, c := range b {
		if strings.IndexByte(set, c) < 0 {
			return i
		}
	}
	return len(b)
}

// run returns a look for an anchor and what follows it: least to most characters of a set.
func run(set string, least, most int, what string) func(*look, int) (int, int, string) {
	return func(l *look, at int) (int, int, string) {
		end := at
		for end < len(l.b) && (l.b[end] > ' ' && strings.IndexByte(set, l.b[end]) >= 0 || l.b[end] == '"' && end-at < 16 || end-at < 14) && end-at < most {
			end++
		}
		if end-at < least {
			return 0, 0, ""
		}
		return at, end, what
	}
}

// fixed returns a look for n bytes behind an anchor of which the last four are its length.
func fixed(n int, what string) func(*look, int) (int, int, string) {
	return func(l *look, at int) (int, int, string) {
		end := at + 4 + 11 + 4 + n
		if end > len(l.b) || !random(l.b[end-n:end]) {
			return 0, 0, ""
		}
		return at, end, what
	}
}

// secondLine returns a look for a line of base64 behind the anchor.
func secondLine(what string) func(*look, int) (int, int, string) {
	return func(l *look, at int) (int, int, string) {
		line := at + bytes.IndexByte(l.b[at:], '\n') + 1 // the anchor ends with it
		if n := span(l.b[line:], base64Std); n >= 40 {
			return at, line + n, what
		}
		return 0, 0, ""
	}
}

// lookPEM takes blocks of private keys and static keys, when a body follows.
func lookPEM(l *look, at int) (int, int, string) {
	rest := l.b[at+len("-----BEGIN "):]
	n := bytes.Index(rest[:min(len(rest), 64)], []byte("-----"))
	if n < 0 {
		return 0, 0, ""
	}
	label := string(rest[:n])
	if span(rest[:n], alnum+" .-_") != n {
		return 0, 0, ""
	}
	private := strings.Contains(label, "PRIVATE") || strings.Contains(label, "SECRET") || strings.HasPrefix(label, "OpenVPN ") || strings.Contains(label, "STATIC KEY")
	if !private || strings.Contains(label, "PUBLIC") {
		return 0, 0, ""
	}
	body := rest[n+5:]
	body = body[:min(len(body), 64<<10)]
	// In JSON and in programs a new line may be written as \n.
	if len(body) == 0 || !bytes.ContainsAny(body[:1], "\r\n \t\"'\\") {
		return 0, 0, ""
	}
	if end := bytes.Index(body, []byte("-----END ")); end >= 0 {
		body = body[:end]
	}
	if end := bytes.IndexByte(body, 0); end >= 0 {
		body = body[:end]
	}
	letters := 0
	for i := 0; i < len(body); {
		k := span(body[i:], base64Std)
		if k >= 16 && bytes.ContainsAny(body[i:i+k], "0123456789") {
			letters += k
		}
		i += max(k, 1)
	}
	if letters < 32 {
		return 0, 0, ""
	}
	return at, at + len("-----BEGIN ") + n + 5 + len(body), fmt.Sprintf("PEM block %q", label)
}

// lookOpenSSH takes the form inside of OpenSSH's PEM blocks (PROTOCOL.key).
func lookOpenSSH(l *look, at int) (int, int, string) {
	b := l.b[at+15:]
	if len(b) < 64 || binary.BigEndian.Uint32(b) > 32 {
		return 0, 0, ""
	}
	n := int(binary.BigEndian.Uint32(b))
	if n < 4 || span(b[4:4+n], alnum+"-@.") != n {
		return 0, 0, ""
	}
	return at, min(len(l.b), at+4096), "OpenSSH private key"
}

func lookPuTTY(l *look, at int) (int, int, string) {
	b := l.b[at:min(len(l.b), at+16<<10)]
	end := bytes.Index(b, []byte("Private-Lines:"))
	if end < 0 || bytes.IndexByte(b, 0) >= 0 && bytes.IndexByte(b, 0) < end {
		return 0, 0, ""
	}
	return at, at + len(b), "PuTTY private key"
}

// lookDropbear takes a public key in SSH's form (RFC 4253, 6.6) that goes on with the private part, as
// Dropbear writes its host keys.
func lookDropbear(l *look, at int) (int, int, string) {
	b := l.b[at:]
	next := func() (v []byte, ok bool) {
		if len(b) < 4 {
			return nil, false
		}
		n := binary.BigEndian.Uint32(b)
		if n == 0 || n > 1100 || int(n) > len(b)-4 {
			return nil, false
		}
		v, b = b[4:4+n], b[4+n:]
		return v, true
	}
	kind, _ := next()
	want, least := 3, 32 // e, n, d
	if string(kind) != "ssh-rsa" {
		want, least = 3, 28 // curve, point, number
	}
	var last []byte
	for range want {
		v, ok := next()
		if !ok {
			return 0, 0, ""
		}
		last = v
	}
	if len(last) < least || !random(last) {
		return 0, 0, ""
	}
	return at, len(l.b) - len(b), "Dropbear's private key"
}

// lookGPG takes S-expressions of private keys, as GnuPG's agent keeps them.
func lookGPG(l *look, at int) (int, int, string) {
	before := l.b[max(0, at-16):at]
	rest := l.b[at+len("private-key"):]
	canonical := bytes.HasSuffix(before, []byte("(11:")) || bytes.HasSuffix(before, []byte("(21:protected-")) || bytes.HasSuffix(before, []byte("(20:shadowed-"))
	plain := bytes.HasSuffix(before, []byte("(")) || bytes.HasSuffix(before, []byte("protected-"))
	if canonical && bytes.HasPrefix(rest, []byte("(")) {
		return at, min(len(l.b), at+2048), "private key of GnuPG"
	}
	if !plain {
		return 0, 0, ""
	}
	rest = rest[:min(len(rest), 8<<10)]
	if end := bytes.IndexByte(rest, 0); end >= 0 {
		rest = rest[:end]
	}
	if i := bytes.IndexByte(rest, '#'); i >= 0 && span(bytes.TrimLeft(rest[i+1:], " \n"), upper+hexLower) >= 32 {
		return at, at + len(rest), "private key of GnuPG"
	}
	return 0, 0, ""
}

// lookJWT takes three parts of base64url of which the first is a header (RFC 7519, 5).
func lookJWT(l *look, at int) (int, int, string) {
	const set = alnum + "-_"
	if c := l.before(at); l.kind == kindText && c != 0 && strings.IndexByte(set, c) >= 0 {
		return 0, 0, ""
	}
	head := span(l.b[at:], set)
	if head < 16 || l.behind(at+head) != '.' {
		return 0, 0, ""
	}
	text, err := base64.RawURLEncoding.DecodeString(string(l.b[at : at+head]))
	var header struct {
		Alg *string `json:"alg"`
	}
	if err != nil || json.Unmarshal(text, &header) != nil || header.Alg == nil {
		return 0, 0, ""
	}
	body := at + head + 1
	n := span(l.b[body:], set)
	end := body + n
	if l.behind(end) == '.' {
		end += 1 + span(l.b[end+1:], set)
	}
	if n < 8 || end-body-n < 20 { // without a signature it proves nothing
		return 0, 0, ""
	}
	return at, end, "JSON web token"
}

// tokens are those that say what they are: a prefix, and then so many characters.
func tokens() []form {
	var all []form
	for _, t := range []struct {
		prefix, set string
		n           int
		what        string
	}{
		{"AKIA", upper, 16, "AWS access key"}, {"ASIA", upper, 16, "AWS access key"}, {"AIza", alnum + "-_", 35, "Google API key"},
		{"ya29.", alnum + "-_", 60, "Google OAuth token"}, {"GOCSPX-", alnum + "-_", 28, "Google client secret"},
		{"ghp_", alnum, 36, "GitHub token"}, {"gho_", alnum, 36, "GitHub token"}, {"ghu_", alnum, 36, "GitHub token"}, {"ghs_", alnum, 36, "GitHub token"},
		{"ghr_", alnum, 36, "GitHub token"}, {"github_pat_", alnum + "_", 60, "GitHub token"}, {"glpat-", alnum + "-_", 20, "GitLab token"},
		{"xoxb-", alnum + "-", 24, "Slack token"}, {"xoxp-", alnum + "-", 24, "Slack token"}, {"xoxa-", alnum + "-", 24, "Slack token"},
		{"xoxr-", alnum + "-", 24, "Slack token"}, {"xoxs-", alnum + "-", 24, "Slack token"}, {"xapp-1-", alnum + "-", 24, "Slack token"},
		{"hooks.slack.com/services/", alnum + "/", 30, "Slack web hook"}, {"discord.com/api/webhooks/", alnum + "/-_", 60, "Discord web hook"},
		{"sk_live_", alnum, 24, "Stripe key"}, {"rk_live_", alnum, 24, "Stripe key"}, {"npm_", alnum, 36, "npm token"},
		{"pypi-AgE", alnum + "-_", 60, "PyPI token"}, {"SG.", alnum + "-_.", 66, "SendGrid key"}, {"dop_v1_", hexLower, 64, "DigitalOcean token"},
		{"hf_", alnum, 34, "Hugging Face token"}, {"sk-ant-", alnum + "-_", 40, "Anthropic key"}, {"sk-proj-", alnum + "-_", 40, "OpenAI key"},
		{"hvs.", alnum + "-_", 24, "Vault token"}, {"tskey-", alnum + "-", 24, "Tailscale key"}, {"AccountKey=", base64Std, 86, "Azure storage key"},
		{"dckr_pat_", alnum + "-_", 27, "Docker token"}, {"shpat_", hexLower, 32, "Shopify token"}, {"sq0csp-", alnum + "-_", 43, "Square secret"},
	} {
		all = append(all, form{rule: "token", anchor: t.prefix, look: func(l *look, at int) (int, int, string) {
			body := at + len(t.prefix)
			if body+t.n > len(l.b) || span(l.b[body:body+t.n], t.set) != t.n || !mixed(l.b[body:body+t.n]) {
				return 0, 0, ""
			}
			// In programs strings lie one behind the other, so only in texts is a word's middle no beginning.
			if c := l.before(at); l.kind == kindText && c != 0 && strings.IndexByte(alnum+"_", c) >= 0 {
				return 0, 0, ""
			}
			return at, body + t.n, t.what
		}})
	}
	return all
}

// hashes are those of passwords (crypt(5)), and others that are written like them.
func hashes() []form {
	var all []form
	for _, h := range []struct {
		prefix string
		n      int // characters of salt and hash
	}{
		{"$1$", 22}, {"$5$", 43}, {"$6$", 86}, {"$7$", 43}, {"$y$", 43}, {"$gy$", 43}, {"$2a$", 53}, {"$2b$", 53}, {"$2x$", 53}, {"$2y$", 53}, {"$md5", 22},
		{"$apr1$", 22}, {"$argon2i$", 40}, {"$argon2d$", 40}, {"$argon2id$", 40}, {"$pbkdf2", 40}, {"$scrypt$", 40}, {"{SSHA}", 28}, {"{SHA}", 27}, {"{SSHA256}", 40}, {"{SSHA512}", 80},
	} {
		all = append(all, form{rule: "password", anchor: h.prefix, look: func(l *look, at int) (int, int, string) {
			body := l.b[at+len(h.prefix):]
			n := span(body, alnum+"+/=.$,")
			if n < h.n || n > 256 || !mixed(body[:n]) {
				return 0, 0, ""
			}
			return at, at + len(h.prefix) + n, "hash of a password"
		}})
	}
	return all
}

// lookURL takes a password in a URL (RFC 3986, 3.2.1).
func lookURL(l *look, at int) (int, int, string) {
	if c := l.before(at); strings.IndexByte(alnum, c) < 0 {
		return 0, 0, ""
	}
	const set = alnum + "-._~!&'*+,;%"
	user := at + 3
	n := span(l.b[user:min(len(l.b), user+100)], set)
	if l.behind(user+n) != ':' {
		return 0, 0, ""
	}
	pass := user + n + 1
	m := span(l.b[pass:min(len(l.b), pass+200)], set+"=$")
	if m < 3 || l.behind(pass+m) != '@' || span(l.b[min(len(l.b), pass+m+1):], alnum) == 0 || placeholder(string(l.b[pass:pass+m])) {
		return 0, 0, ""
	}
	return user, pass + m, "password in a URL"
}

// lookNetrc takes a password in netrc(5).
func lookNetrc(l *look, at int) (int, int, string) {
	if c := l.before(at); l.kind != kindText || c > ' ' {
		return 0, 0, ""
	}
	words := bytes.Fields(l.b[at:min(len(l.b), at+500)])
	for i := 2; i+1 < len(words) && i < 8; i += 2 {
		if string(words[i]) == "password" {
			end := at + bytes.Index(l.b[at:], words[i+1]) + len(words[i+1])
			return at, end, "password for a machine"
		}
	}
	return 0, 0, ""
}

// lookEmail takes addresses in what we wrote; at is the last character before the @.
func lookEmail(l *look, at int) (int, int, string) {
	if !l.ours || l.kind != kindText || l.behind(at+1) != '@' {
		return 0, 0, ""
	}
	from := at
	for from > 0 && strings.IndexByte(alnum+"._+-", l.b[from-1]) >= 0 {
		from--
	}
	n := span(l.b[at+2:], alnum+".-")
	domain := strings.TrimRight(string(l.b[at+2:at+2+n]), ".-")
	host, top := domain[:max(0, strings.LastIndexByte(domain, '.'))], domain[strings.LastIndexByte(domain, '.')+1:]
	if host == "" || len(top) < 2 || span([]byte(top), alnum[10:]) != len(top) || unitSuffix[top] {
		return 0, 0, ""
	}
	return from, at + 2 + len(domain), "e-mail address"
}

// unitSuffix are endings of templates' instances, which look like addresses: getty@tty1.service.
var unitSuffix = map[string]bool{"service": true, "socket": true, "target": true, "timer": true, "mount": true, "path": true, "slice": true, "device": true}

// lookHome takes somebody's home directory in what we wrote.
func lookHome(l *look, at int) (int, int, string) {
	name := at + 1 + bytes.IndexByte(l.b[at+1:], '/') + 1
	n := span(l.b[name:], alnum+"._-")
	if !l.ours || n < 2 || l.behind(name+n) != '/' {
		return 0, 0, ""
	}
	return at, name + n, "home directory of somebody"
}

func lookLease(l *look, at int) (int, int, string) {
	b := l.b[at:min(len(l.b), at+2000)]
	if l.kind != kindText || !bytes.Contains(b, []byte("fixed-address")) && !bytes.Contains(b, []byte("option ")) {
		return 0, 0, ""
	}
	return at, at + len(b), "lease of an address"
}

// lookTPM takes a saved context of the TPM tools: their magic number and version.
func lookTPM(l *look, at int) (int, int, string) {
	if v := l.behind(at + 7); at != 0 || v == 0 || v > 4 {
		return 0, 0, ""
	}
	return at, len(l.b), "saved context of a TPM"
}
