package scan

import (
	"bytes"
	"math"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// entropy returns the bits of each byte, as Shannon counts them.
func entropy(b []byte) float64 {
	var count [256]int
	for _, c := range b {
		count[c]++
	}
	sum := 0.0
	for _, n := range count {
		if n > 0 {
			p := float64(n) / float64(len(b))
			sum -= p * math.Log2(p)
		}
	}
	return sum
}

// random reports whether bytes of a key look like ones: nearly all different, as far as so few can be.
func random(b []byte) bool { return entropy(b) > 0.75*math.Log2(float64(min(len(b), 256))) }

// mixed reports whether a token's characters look like chance: more than a word's kinds, and many of them.
func mixed(b []byte) bool {
	digits, letters := 0, 0
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			digits++
		case c|0x20 >= 'a' && c|0x20 <= 'z':
			letters++
		}
	}
	return digits > 0 && letters > 0 && entropy(b) > 2.5
}

// assignments are passwords and the like behind a name for them.
func assignments() []form {
	var all []form
	for _, word := range []string{"password", "passwd", "passphrase", "secret", "token", "api_key", "apikey", "api-key", "private_key", "privatekey", "private-key",
		"presharedkey", "preshared-key", "access_key", "accesskey", "auth_key", "authkey", "psk", "community"} {
		all = append(all, form{rule: "assigned", anchor: word, fold: true, look: lookAssigned(len(word))})
	}
	// systemd.exec(5): NAME:VALUE in the unit itself.
	return append(all, form{rule: "assigned", anchor: "SetCredential", look: func(l *look, at int) (int, int, string) {
		line := l.b[at:min(len(l.b), at+4096)]
		line = line[:span(line, alnum+"=:._-+/")]
		colon := bytes.IndexByte(line, ':')
		if l.kind != kindText || colon < 0 || len(line)-colon < 4 {
			return 0, 0, ""
		}
		return at, at + len(line), "credential in a unit"
	}})
}

// lookAssigned takes name = value and "name": "value", when the value could be a secret: in
// configuration (files of text below /etc, or ours, or with such a name) any word, elsewhere only what looks random.
func lookAssigned(word int) func(*look, int) (int, int, string) {
	return func(l *look, at int) (int, int, string) {
		if l.kind != kindText {
			return 0, 0, ""
		}
		rest := l.b[at+word:]
		rest = rest[:min(len(rest), 400)]
		if end := bytes.IndexByte(rest, '\n'); end >= 0 {
			rest = rest[:end]
		}
		i := span(rest, alnum+"_-") // the rest of the name
		j := i + span(rest[i:], "\"' \t")
		if i > 24 || j >= len(rest) || rest[j] != '=' && rest[j] != ':' || bytes.HasPrefix(rest[j:], []byte("==")) || bytes.HasPrefix(rest[j:], []byte("=~")) || bytes.HasPrefix(rest[j:], []byte("::")) {
			return 0, 0, ""
		}
		j++
		if j < len(rest) && rest[j-1] == ':' && rest[j] == '=' {
			j++
		}
		j += span(rest[j:], " \t")
		value := rest[j:]
		quoted := len(value) > 0 && (value[0] == '"' || value[0] == '\'')
		if quoted {
			end := bytes.IndexByte(value[1:], value[0])
			if end < 0 {
				return 0, 0, ""
			}
			value, j = value[1:1+end], j+1
		} else {
			value = value[:span(value, alnum+"+/=_-.!@$%^&*~")]
		}
		from := at + word + j
		what := "value of " + strings.ToLower(string(l.b[at:at+word]))
		switch {
		case len(value) >= 16 && mixed(value) && entropy(value) > 3.3 && span(value, base64Any+".") == len(value) && !wordy(value):
			return from, from + len(value), what
		case len(value) >= 4 && configuration(l.file) && utf8.Valid(value) && !placeholder(string(value)):
			return from, from + len(value), what
		}
		return 0, 0, ""
	}
}

// configuration reports whether a file says how something works here, and is no program or text for people.
func configuration(f file) bool {
	switch path.Ext(f.path) {
	case ".conf", ".cfg", ".env", ".ini", ".json", ".yaml", ".yml", ".toml", ".network", ".netdev", ".nmconnection", ".service", ".socket", ".secrets", ".properties":
		return true
	}
	return f.ours && !strings.Contains(path.Base(f.path), "lethe-") || f.layer == Boot
}

// placeholder reports whether a value stands for one, or is none: a word that says so, a variable, a path.
func placeholder(v string) bool {
	low := strings.ToLower(v)
	switch low {
	case "", "none", "null", "nil", "true", "false", "yes", "no", "off", "required", "optional", "default", "string", "password", "passwd", "pass", "secret", "token",
		"user", "username", "example", "files", "files systemd", "compat", "changeme", "xxxx", "xxxxxxxx", "****", "********", "public", "ask", "prompt":
		return true
	}
	return strings.ContainsAny(v, "$%<>{}()/\\ ") || strings.HasPrefix(v, "*") || strings.Trim(low, "x*.-_") == "" || strings.Trim(v, "0123456789") == "" || len(v) > 256
}

// wordy reports whether a long name is made of words: several parts, each in one case but for its first letter.
func wordy(b []byte) bool {
	parts := strings.FieldsFunc(string(b), func(r rune) bool { return strings.ContainsRune("-_./+=", r) })
	return len(parts) > 1 && !slices.ContainsFunc(parts, func(p string) bool {
		return len(p) > 18 || p[1:] != strings.ToLower(p[1:]) && p != strings.ToUpper(p)
	})
}

// shouldBeText reports whether a file is one of those in which every byte is for people too.
func shouldBeText(p string) bool {
	switch path.Ext(p) {
	case ".conf", ".service", ".socket", ".target", ".network", ".link", ".netdev", ".rules", ".json", ".txt", ".ini", ".slice", ".mount", ".timer", ".path":
		return true
	}
	return under(p, "etc")
}

func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// text looks at a file of text as a whole: what is random in it, and that it is text at all.
func (s *scanner) text(f file, b []byte, k kind) {
	l := &look{file: f, kind: k, b: b}
	if k == kindBinary {
		if f.layer == Root && shouldBeText(f.path) || f.layer == Boot && (f.path == ".cmdline" || f.path == ".osrel" || f.path == ".uname") {
			s.add(l.finding("random", "it should be text and is not", 0, len(b)))
		}
		return
	}
	if f.layer == Boot && f.path != ".cmdline" && f.path != ".osrel" {
		return
	}
	begin, end := []byte("-----BEGIN "), []byte("-----END ")
	for at := 0; at < len(b); {
		n := span(b[at:], alnum+"+/_-")
		n += span(b[at+n:min(len(b), at+n+2)], "=")
		if n >= 5 && bytes.HasPrefix(b[at:], begin) {
			// Public blocks are random and meant to be; private ones are another rule's.
			if length := bytes.Index(b[at:], end); length >= 0 {
				at += length + len(end)
				continue
			}
		}
		if w := b[at : at+n]; n >= 32 && randomWord(w) {
			s.add(l.finding("random", "a random word", at, at+n))
		}
		at += max(n, 1)
	}
}

// randomWord reports whether a word is as random as a key in hexadecimal or base64 is.
func randomWord(w []byte) bool {
	if bytes.HasPrefix(w, []byte("AAAA")) && (bytes.Contains(w[:min(len(w), 24)], []byte("C3NzaC1")) || bytes.Contains(w[:min(len(w), 24)], []byte("B3NzaC1")) || bytes.Contains(w[:min(len(w), 24)], []byte("E2VjZHNh"))) {
		return false // OpenSSH's public keys
	}
	core := bytes.TrimRight(w, "=")
	if span(core, hexLower) == len(core) || span(core, "0123456789ABCDEF") == len(core) {
		return len(core) >= 32 && entropy(core) > 3 && mixed(core)
	}
	if span(core, alnum+"+/") != len(core) && span(core, alnum+"-_") != len(core) {
		return false
	}
	kinds := [3]int{}
	for _, c := range core {
		switch {
		case c >= '0' && c <= '9':
			kinds[0]++
		case c >= 'a' && c <= 'z':
			kinds[1]++
		case c >= 'A' && c <= 'Z':
			kinds[2]++
		}
	}
	// Chance has one digit in six and each case in two of five; names and paths have not.
	n := len(core)
	return n >= 40 && n <= 1024 && kinds[0]*16 >= n && kinds[1]*6 >= n && kinds[2]*6 >= n && entropy(core) > 4.2 && bytes.Count(core, []byte("/"))*10 < n && bytes.Count(core, []byte("-"))*10 < n
}
