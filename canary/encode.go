package canary

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"math/bits"
	"mime/quotedprintable"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	//lint:ignore SA1019 an NT hash is an MD4, and one that leaks must be found
	"golang.org/x/crypto/md4"
)

// distinct drops forms that are too short and those that say the same twice.
func distinct(all []form) []form {
	var kept []form
	for _, f := range all {
		same := func(k form) bool {
			return (k.fold || !f.fold) && len(k.bytes) == len(f.bytes) &&
				(bytes.Equal(k.bytes, f.bytes) || k.fold && bytes.EqualFold(k.bytes, f.bytes))
		}
		if len(f.bytes) >= minForm && !slices.ContainsFunc(kept, same) {
			kept = append(kept, f)
		}
	}
	return kept
}

func folded(encoding, text string) form    { return form{encoding, []byte(text), true} }
func exact(encoding string, b []byte) form { return form{encoding, b, false} }

// textForms are the forms of a text; what names it when it is itself a form of
// something.
func textForms(what, s string) []form {
	if what == "" {
		what = "text"
	}
	quoted, _ := json.Marshal(s) // a string always has a form
	var printable bytes.Buffer
	w := quotedprintable.NewWriter(&printable)
	_, _ = w.Write([]byte(s)) // a buffer takes all
	_ = w.Close()
	var percent strings.Builder
	for _, b := range []byte(s) {
		fmt.Fprintf(&percent, "%%%02X", b)
	}
	all := []form{
		folded(what, s),
		folded(what+" reversed", reversed(s)),
		folded(what+" utf-16le", utf16Text(s, binary.LittleEndian)),
		folded(what+" utf-16be", utf16Text(s, binary.BigEndian)),
		folded(what+" url-escaped", url.QueryEscape(s)),
		folded(what+" path-escaped", url.PathEscape(s)),
		folded(what+" percent", percent.String()),
		folded(what+" json", string(bytes.Trim(quoted, `"`))),
		folded(what+" html", html.EscapeString(s)),
		folded(what+" quoted-printable", printable.String()),
	}
	all = append(all, encodedForms(what, []byte(s))...)
	all = append(all, digestForms(what, []byte(s))...)
	h := md4.New()
	_, _ = h.Write([]byte(utf16Text(s, binary.LittleEndian))) // a hash takes all
	return append(all, digest(what+" nt-hash", h.Sum(nil))...)
}

// byteForms are the forms of a block of bytes.
func byteForms(what string, b []byte) []form {
	if what == "" {
		what = "bytes"
	}
	back := slices.Clone(b)
	slices.Reverse(back)
	all := append([]form{exact(what, b), exact(what+" reversed", back)}, encodedForms(what, b)...)
	return append(all, digestForms(what, b)...)
}

// encodedForms are bytes written in printable characters.
func encodedForms(what string, b []byte) []form {
	digits := hex.EncodeToString(b)
	all := []form{
		folded(what+" hex", digits),
		folded(what+" hex with spaces", separated(digits, 2, " ")),
		folded(what+" hex with colons", separated(digits, 2, ":")),
	}
	for phase := range 3 {
		std, safe := phased(base64.RawStdEncoding, b, phase), phased(base64.RawURLEncoding, b, phase)
		if len(std) >= weakForm {
			all = append(all, exact(fmt.Sprintf("%s base64 phase %d", what, phase), []byte(std)),
				exact(fmt.Sprintf("%s base64url phase %d", what, phase), []byte(safe)))
		}
	}
	return all
}

// phased returns the characters of base64 that depend on b alone when it stands
// phase bytes after a boundary of three.
func phased(alphabet *base64.Encoding, b []byte, phase int) string {
	e := alphabet.EncodeToString(append(make([]byte, phase), b...))
	first := []int{0, 2, 3}[phase]
	last := (phase + len(b)) * 8 / 6
	return e[min(first, last):last]
}

// digestForms are the usual digests of b.
func digestForms(what string, b []byte) []form {
	m, s1, s2 := md5.Sum(b), sha1.Sum(b), sha256.Sum256(b)
	return slices.Concat(digest(what+" md5", m[:]), digest(what+" sha-1", s1[:]), digest(what+" sha-256", s2[:]))
}

func digest(what string, sum []byte) []form {
	return []form{
		exact(what, sum), folded(what+" hex", hex.EncodeToString(sum)),
		exact(what+" base64", []byte(base64.RawStdEncoding.EncodeToString(sum))),
		exact(what+" base64url", []byte(base64.RawURLEncoding.EncodeToString(sum))),
	}
}

func domainForms(name string) []form {
	name = strings.TrimSuffix(name, ".")
	first, _, _ := strings.Cut(name, ".")
	return slices.Concat([]form{exact("dns wire", labels(name))}, textForms("", name), textForms("first label", first))
}

// labels is a DNS name as it stands in messages (RFC 1035 section 3.1), without
// the empty label at its end, which may be a pointer.
func labels(name string) []byte {
	var b []byte
	for l := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(l))), l...)
	}
	return b
}

func forms4(a netip.Addr) []form {
	b := a.As4()
	n := binary.BigEndian.Uint32(b[:])
	little := bits.ReverseBytes32(n)
	d := func(v uint32) string { return strconv.FormatUint(uint64(v), 10) }
	arpa := fmt.Sprintf("%d.%d.%d.%d", b[3], b[2], b[1], b[0])
	all := []form{
		exact("4 bytes", b[:]),
		exact("4 bytes little-endian", binary.BigEndian.AppendUint32(nil, little)),
		folded("hex little-endian", fmt.Sprintf("%08x", little)),
		folded("decimal", d(n)), folded("decimal little-endian", d(little)),
		folded("octal", fmt.Sprintf("%011o", n)), folded("dotted octal", fmt.Sprintf("0%o.0%o.0%o.0%o", b[0], b[1], b[2], b[3])),
		folded("dotted with zeros", fmt.Sprintf("%03d.%03d.%03d.%03d", b[0], b[1], b[2], b[3])),
		folded("dotted reversed", arpa), folded("dns wire reversed", string(labels(arpa))),
		folded("mapped", fmt.Sprintf("ffff:%x:%x", n>>16, n&0xffff)),
	}
	all = append(all, textForms("dotted", a.String())...)
	return slices.Concat(all, encodedForms("4 bytes", b[:]), digestForms("4 bytes", b[:]))
}

func forms6(a netip.Addr) []form {
	b := a.As16()
	digits := hex.EncodeToString(b[:])
	var words strings.Builder // as in /proc/net/tcp6 of a little-endian machine
	var groups []string
	for i := 0; i < 16; i += 4 {
		fmt.Fprintf(&words, "%08x", binary.LittleEndian.Uint32(b[i:]))
	}
	for i := 0; i < 16; i += 2 {
		groups = append(groups, strconv.FormatUint(uint64(binary.BigEndian.Uint16(b[i:])), 16))
	}
	arpa := separated(reversed(digits), 1, ".")
	all := []form{
		folded("expanded", a.StringExpanded()), folded("uncompressed", strings.Join(groups, ":")),
		folded("hex little-endian words", words.String()),
		folded("nibbles reversed", arpa), folded("dns wire reversed", string(labels(arpa))),
	}
	all = append(all, textForms("compressed", a.String())...)
	return append(all, byteForms("16 bytes", b[:])...)
}

func networkForms(p netip.Prefix) []form {
	a := p.Addr()
	if a.Is4() {
		b := a.As4()
		text := fmt.Sprintf("%d.%d.%d.", b[0], b[1], b[2])
		return []form{
			folded("dotted", text), folded("utf-16le", utf16Text(text, binary.LittleEndian)),
			exact("4 bytes", b[:]), exact("4 bytes little-endian", []byte{0, b[2], b[1], b[0]}),
			folded("hex", hex.EncodeToString(b[:])),
		}
	}
	b := a.As16()
	short := strings.TrimSuffix(a.String(), "::")
	long := a.StringExpanded()[:20]
	return []form{
		folded("compressed", short+":"), folded("expanded", long),
		folded("utf-16le", utf16Text(short+":", binary.LittleEndian)),
		exact("8 bytes", b[:8]), folded("hex", hex.EncodeToString(b[:8])),
	}
}

func numberForms(n uint64) []form {
	text := strconv.FormatUint(n, 10)
	all := []form{
		folded("decimal", text), folded("decimal reversed", reversed(text)),
		folded("decimal utf-16le", utf16Text(text, binary.LittleEndian)),
		folded("grouped by commas", grouped(text, ",")), folded("grouped by points", grouped(text, ".")),
		folded("grouped by spaces", grouped(text, " ")), folded("grouped by underscores", grouped(text, "_")),
		folded("hex", strconv.FormatUint(n, 16)),
	}
	all = append(all, exact("8 bytes big-endian", binary.BigEndian.AppendUint64(nil, n)),
		exact("8 bytes little-endian", binary.LittleEndian.AppendUint64(nil, n)))
	if n>>16 != 0 && n>>32 == 0 {
		all = append(all, exact("4 bytes big-endian", binary.BigEndian.AppendUint32(nil, uint32(n))),
			exact("4 bytes little-endian", binary.LittleEndian.AppendUint32(nil, uint32(n))))
	}
	return append(all, digestForms("decimal", []byte(text))...)
}

// grouped puts sep between groups of three digits, from the right.
func grouped(digits, sep string) string {
	head := len(digits) % 3
	tail := separated(digits[head:], 3, sep)
	if head == 0 || tail == "" {
		return digits[:head] + tail
	}
	return digits[:head] + sep + tail
}

// separated puts sep between groups of n characters, from the left.
func separated(s string, n int, sep string) string {
	var parts []string
	for chunk := range slices.Chunk([]byte(s), n) {
		parts = append(parts, string(chunk))
	}
	return strings.Join(parts, sep)
}

func reversed(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

func utf16Text(s string, order binary.AppendByteOrder) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = order.AppendUint16(b, u)
	}
	return string(b)
}
