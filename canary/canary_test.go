package canary_test

import (
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf16"

	"lethe/canary"
)

func set(t testing.TB, marks ...canary.Mark) *canary.Set {
	t.Helper()
	s, err := canary.NewSet(marks...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// noise is bytes that hold nothing; with a fixed seed, so that chance is the same
// in every run.
func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(b)
	return b
}

func wide(s string, high bool) string {
	var b strings.Builder
	for _, u := range utf16.Encode([]rune(s)) {
		if high {
			b.WriteByte(byte(u >> 8))
		}
		b.WriteByte(byte(u))
		if !high {
			b.WriteByte(byte(u >> 8))
		}
	}
	return b.String()
}

// written is every form that must be found, made by other means than the
// package's where there are any.
func written() map[string]struct {
	mark canary.Mark
	as   map[string]string // encoding to bytes
} {
	b64 := base64.StdEncoding.EncodeToString
	sum := md5.Sum([]byte("Karpfen+Ünal/42"))
	return map[string]struct {
		mark canary.Mark
		as   map[string]string
	}{
		"text": {canary.Text("text", "Karpfen+Ünal/42"), map[string]string{
			"text": "kARPFEN+Ünal/42", "text reversed": "24/lan\x9c\xc3+nefpraK",
			"text utf-16le": wide("Karpfen+Ünal/42", false), "text utf-16be": wide("KARPFEN+Ünal/42", true),
			"text url-escaped": "karpfen%2B%C3%9Cnal%2F42", "text path-escaped": "Karpfen+%C3%9Cnal%2F42",
			"text percent":          "%4b%61%72%70%66%65%6e%2b%c3%9c%6e%61%6c%2f%34%32",
			"text quoted-printable": "Karpfen+=C3=9Cnal/42",
			"text hex":              "4b61727066656e2bc39c6e616c2f3432", "text hex with colons": "4B:61:72:70:66:65:6E:2B:C3:9C:6E:61:6C:2F:34:32",
			"text hex with spaces": "4b 61 72 70 66 65 6e 2b c3 9c 6e 61 6c 2f 34 32",
			"text base64 phase 0":  b64([]byte("Karpfen+Ünal/42")), "text base64 phase 1": b64([]byte("xKarpfen+Ünal/42y")),
			"text base64 phase 2": b64([]byte("xyKarpfen+Ünal/42zzz")), "text md5": string(sum[:]), "text md5 hex": fmt.Sprintf("%X", sum),
		}},
		// Test vectors that others have published.
		"nt":   {canary.Text("nt", "password"), map[string]string{"text nt-hash hex": "8846F7EAEE8FB117AD06BDD830B7586C"}},
		"sha1": {canary.Text("sha1", "abcd"), map[string]string{"text sha-1 hex": "81fe8bfe87576c3ecb22426f8e57847382917acf"}},
		"sha256": {canary.Text("sha256", "password"), map[string]string{
			"text sha-256 hex": "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"}},
		"json": {canary.Text("json", `a"b\cd`), map[string]string{"text json": `a\"b\\cd`, "text html": "a&#34;b\\cd"}},
		"domain": {canary.Domain("domain", "x7q.Wild.river.example."), map[string]string{
			"dns wire": "\x03x7q\x04Wild\x05river\x07example\x00", "text": "X7Q.wild.RIVER.example"}},
		"label": {canary.Domain("label", "kestrel.wild.river.example"), map[string]string{"first label": "\x07KesTrel\x04wild\xc0\x0c"}},
		"v4": {canary.Address("v4", netip.MustParseAddr("::ffff:45.112.203.9")), map[string]string{
			"4 bytes": "\x2d\x70\xcb\x09", "4 bytes little-endian": "\x09\xcb\x70\x2d", "dotted": "45.112.203.9:1194",
			"4 bytes hex": "2D70CB09", "hex little-endian": "09CB702D", "decimal": "762366729", "decimal little-endian": "164327469",
			"octal": "05534145411", "dotted octal": "055.0160.0313.011", "dotted with zeros": "045.112.203.009",
			"dotted reversed": "9.203.112.45.in-addr.arpa", "dns wire reversed": "\x019\x03203\x03112\x0245\x07in-addr",
			"mapped": "::ffff:2d70:cb09", "dotted utf-16le": wide("45.112.203.9", false), "dotted base64 phase 1": b64([]byte("@45.112.203.9@")),
		}},
		"v6": {canary.Address("v6", netip.MustParseAddr("2a0d:5600:33::9c7f")), map[string]string{
			"16 bytes": "\x2a\x0d\x56\x00\x00\x33" + strings.Repeat("\x00", 8) + "\x9c\x7f", "compressed": "[2A0D:5600:33::9C7F]:443",
			"expanded": "2a0d:5600:0033:0000:0000:0000:0000:9c7f", "uncompressed": "2a0d:5600:33:0:0:0:0:9c7f",
			"16 bytes hex": "2a0d560000330000000000000000" + "9c7f", "hex little-endian words": "00560D2A0000330000000000" + "7F9C0000",
			"nibbles reversed":  "f.7.c.9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.3.0.0.0.0.6.5.d.0.a.2.ip6.arpa",
			"16 bytes reversed": "\x7f\x9c" + strings.Repeat("\x00", 8) + "\x33\x00\x00\x56\x0d\x2a",
		}},
		"network4": {canary.Network("network4", netip.MustParsePrefix("45.112.203.9/24")), map[string]string{
			"dotted": "45.112.203.0/24", "4 bytes": "\x2d\x70\xcb\x00", "hex": "2d70cb00"}},
		"network6": {canary.Network("network6", netip.MustParsePrefix("2a0d:5600:33:7::9/64")), map[string]string{
			"compressed": "2a0d:5600:33:7::/64", "expanded": "2a0d:5600:0033:0007:0000", "8 bytes": "\x2a\x0d\x56\x00\x00\x33\x00\x07"}},
		"bytes": {canary.Bytes("bytes", []byte{0, 1, 2, 0xfe, 0xff, 0x80, 0x7f, 0}), map[string]string{
			"bytes": "\x00\x01\x02\xfe\xff\x80\x7f\x00", "bytes reversed": "\x00\x7f\x80\xff\xfe\x02\x01\x00", "bytes hex": "000102FEFF807F00",
			"bytes base64url phase 0": base64.RawURLEncoding.EncodeToString([]byte{0, 1, 2, 0xfe, 0xff, 0x80, 0x7f, 0})[:10]}},
		"number": {canary.Number("number", 1234567891), map[string]string{
			"decimal": "1234567891", "grouped by commas": "1,234,567,891", "hex": "499602D3", "decimal reversed": "1987654321",
			"8 bytes little-endian": "\xd3\x02\x96\x49\x00\x00\x00\x00", "4 bytes big-endian": "\x49\x96\x02\xd3"}},
	}
}

// TestForms puts every form into noise, across the border of two reads too, and
// wants exactly that mark and form back; the noise alone has none.
func TestForms(t *testing.T) {
	for name, c := range written() {
		t.Run(name, func(t *testing.T) {
			s := set(t, c.mark)
			b := noise(1<<20 + 8192)
			if hits := s.Find("noise", b); len(hits) > 0 {
				t.Fatal("noise:", hits)
			}
			for encoding, text := range c.as {
				for _, at := range []int{0, 1<<20 - 3, len(b) - len(text)} {
					in := slices.Clone(b)
					copy(in[at:], text)
					hits, err := s.Search("stream", iotest.HalfReader(bytes.NewReader(in)))
					i := slices.IndexFunc(hits, func(h canary.Hit) bool { return h.Encoding == encoding })
					if err != nil || i < 0 {
						t.Fatalf("%s at %d: got %v, %v", encoding, at, hits, err)
					}
					h := hits[i]
					if h.Mark != c.mark.Name() || h.Surface != "stream" || h.Count != 1 || h.Offset < int64(at) || h.Offset >= int64(at+len(text)) {
						t.Errorf("%s at %d: got %+v", encoding, at, h)
					}
				}
			}
		})
	}
}

// TestCase shows that case is folded in letters and nowhere else.
func TestCase(t *testing.T) {
	s := set(t, canary.Text("m", "aB[z@9"))
	for text, want := range map[string]int{"Ab[Z@9": 1, "ab{z@9": 0, "ab[z`9": 0, "ab[z@\x19": 0} {
		if hits := s.Find("s", []byte(text)); len(hits) != want {
			t.Errorf("%q: %v", text, hits)
		}
	}
}

func TestGzip(t *testing.T) {
	mark := canary.Text("m", "a river in the underworld")
	pack := func(b []byte) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		_, _ = z.Write(b)
		_ = z.Close()
		return out.Bytes()
	}
	// What is easy to pack, so that no block is stored as it is.
	easy := bytes.Repeat([]byte("Styx "), 1000)
	inner := slices.Concat(easy, []byte("A river in the underworld"), easy)
	twice := slices.Concat(noise(100), pack(slices.Concat(easy, pack(inner), easy)), []byte("tail"))
	s := set(t, mark)
	for name, in := range map[string][]byte{"whole": twice, "cut": twice[:len(twice)-10]} {
		hits, err := s.SearchFile("f", bytes.NewReader(in))
		if err != nil || len(hits) != 1 || hits[0].Surface != "f!gzip@100!gzip@5000" || hits[0].Offset != 5000 {
			t.Errorf("%s: got %v, %v", name, hits, err)
		}
	}
	deep := inner
	for range 5 {
		deep = pack(slices.Concat(easy, deep, easy))
	}
	if hits := s.Find("f", deep); len(hits) != 0 {
		t.Errorf("five members deep: %v", hits)
	}
	if hits := s.Find("f", []byte("\x1f\x8b\x08\x00junk")); len(hits) != 0 {
		t.Errorf("no member: %v", hits)
	}
	if hits, err := s.Search("f", bytes.NewReader(twice)); err != nil || len(hits) != 0 {
		t.Errorf("a stream is not unpacked: %v, %v", hits, err)
	}
}

// TestHitsHaveNoValue prints everything that the package hands out.
func TestHitsHaveNoValue(t *testing.T) {
	mark := canary.Text("m", "kestrel")
	s := set(t, mark)
	hits := s.Find("s", []byte("kestrel and kestrel"))
	if len(hits) != 1 || hits[0].Count != 2 || hits[0].String() != "s: m as text at 0, 2 times" {
		t.Fatal(hits)
	}
	said := fmt.Sprintf("%v %+v %#v %s %d %v", mark, mark, mark, mark, mark, hits) + hits[0].String()
	if strings.Contains(said, "kestrel") || strings.Contains(said, hex.EncodeToString([]byte("kestrel"))) {
		t.Error(said)
	}
}

// TestConfirmed shows what becomes of hits that may be chance.
func TestConfirmed(t *testing.T) {
	a, b := canary.Address("a", netip.MustParseAddr("45.112.203.9")), canary.Address("b", netip.MustParseAddr("45.112.203.10"))
	s := set(t, a, b)
	one, both := []byte("..\x2d\x70\xcb\x09.."), []byte("..\x2d\x70\xcb\x09..\x2d\x70\xcb\x0a")
	if hits := s.Find("s", one); len(hits) != 1 || !hits[0].Weak || len(canary.Confirmed(hits)) != 0 {
		t.Errorf("one address of four bytes: %v", hits)
	}
	if hits := s.Find("s", both); len(canary.Confirmed(hits)) != 2 {
		t.Errorf("two addresses of four bytes: %v", hits)
	}
	if hits := append(s.Find("s", one), s.Find("t", []byte("\x2d\x70\xcb\x0a"))...); len(canary.Confirmed(hits)) != 0 {
		t.Errorf("on two surfaces: %v", hits)
	}
	if hits := s.Find("s", []byte("45.112.203.9")); len(canary.Confirmed(hits)) != 1 {
		t.Errorf("text: %v", hits)
	}
}

// TestNoise puts addresses into random bytes, alone and in structures.
func TestNoise(t *testing.T) {
	var marks []canary.Mark
	var forms [][]byte
	for i := range byte(8) {
		forms = append(forms, []byte{45, 112, 203, 9 + i})
		marks = append(marks, canary.Address(fmt.Sprint(i), netip.AddrFrom4([4]byte(forms[i]))))
	}
	s := set(t, marks...)
	put := func(n int, neighbour []byte) []byte {
		b := noise(1 << 16)
		for i := range n {
			copy(b[5000*(i+1):], slices.Concat(forms[i], neighbour))
		}
		return b
	}
	zeros := make([]byte, 24)
	for name, c := range map[string]struct {
		in   []byte
		want int
	}{
		"alone":                    {put(1, nil), 0},
		"seven":                    {put(7, nil), 0},
		"eight":                    {put(8, nil), 8},
		"one before zeros":         {put(1, zeros), 0},
		"two before zeros":         {put(2, zeros), 2},
		"two, no context":          {slices.Concat(forms[0], forms[1]), 2},
		"one clear, one in noise":  {slices.Concat(put(1, nil), zeros, zeros, forms[1], zeros), 0},
		"one, in noise and clear":  {slices.Concat(put(1, nil), zeros, zeros, forms[0], zeros, forms[1]), 2},
		"two before zeros, sliced": {slices.Concat(noise(1<<20-5010), put(2, zeros)), 2},
	} {
		find := canary.Confirmed(s.Find("s", c.in))
		stream, err := s.Search("s", iotest.HalfReader(bytes.NewReader(c.in)))
		if stream = canary.Confirmed(stream); err != nil || len(find) != c.want || len(stream) != c.want {
			t.Errorf("%s: got %v, %v, %v, want %d", name, find, stream, err, c.want)
		}
	}
}

// TestChance compares the promised number of chance hits with a count.
func TestChance(t *testing.T) {
	var marks []canary.Mark
	for i := range 2000 {
		b := []byte{45, byte(i >> 8), byte(i), 0x9e}
		marks = append(marks, canary.Address(fmt.Sprint(i), netip.AddrFrom4([4]byte(b))))
	}
	s := set(t, marks...)
	const n = 16 << 20
	want := s.Chance(n)
	got := 0
	for _, h := range s.Find("noise", noise(n)) {
		got += h.Count
	}
	if want < 15 || want > 20 || float64(got) < want/2 || float64(got) > want*2 {
		t.Errorf("%d hits in noise, expected %.1f", got, want)
	}
}

func TestRefused(t *testing.T) {
	for want, marks := range map[string][]canary.Mark{
		"without":        {canary.Bytes("short", nil)},
		"without a name": {canary.Text("", "long enough")},
		"are called m":   {canary.Text("m", "one value"), canary.Text("m", "another")},
		"at most":        {canary.Text("long", strings.Repeat("x", 5000))},
	} {
		if _, err := canary.NewSet(marks...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestBrokenReader returns what was found before the error.
func TestBrokenReader(t *testing.T) {
	boom := errors.New("boom")
	s := set(t, canary.Text("m", "kestrel"))
	hits, err := s.Search("s", io.MultiReader(strings.NewReader("a kestrel"), iotest.ErrReader(boom)))
	if !errors.Is(err, boom) || len(hits) != 1 {
		t.Errorf("got %v, %v", hits, err)
	}
}

// FuzzSearch compares the stream search with the plain one and with
// bytes.Contains.
func FuzzSearch(f *testing.F) {
	f.Add([]byte("kestrel"), uint16(3))
	f.Add([]byte("--kestrelKESTREL.."), uint16(40000))
	f.Add([]byte{0x1f, 0x8b, 8, 0, 0, 0}, uint16(1))
	s := set(f, canary.Bytes("bytes", []byte("kestrel\x00\xff")), canary.Text("text", "kestrel"))
	f.Fuzz(func(t *testing.T, in []byte, pad uint16) {
		in = append(make([]byte, 1<<20-int(pad)), in...)
		hits, err := s.Search("s", bytes.NewReader(in))
		if err != nil {
			t.Fatal(err)
		}
		has := func(encoding string) bool {
			return slices.ContainsFunc(hits, func(h canary.Hit) bool { return h.Encoding == encoding })
		}
		if has("text") != bytes.Contains(bytes.ToLower(in), []byte("kestrel")) || has("bytes") != bytes.Contains(in, []byte("kestrel\x00\xff")) {
			t.Errorf("got %v", hits)
		}
	})
}

// BenchmarkSearch searches noise: for 4,096 forms of texts, for the 4,096 texts
// themselves in all forms, and for addresses. bytes.Contains for one is the floor.
func BenchmarkSearch(b *testing.B) {
	in := noise(64 << 20)
	random := noise(4096 * 6)
	text := func(i int) []byte { return []byte(hex.EncodeToString(random[6*i : 6*i+6])) }
	asText := func(i int) canary.Mark { return canary.Text(fmt.Sprint(i), string(text(i))) }
	for _, c := range []struct {
		name string
		n    int
		make func(i int) canary.Mark
	}{
		{"162-texts", 162, asText}, {"4096-texts", 4096, asText},
		{"24-addresses", 24, func(i int) canary.Mark { return canary.Address(fmt.Sprint(i), netip.AddrFrom4([4]byte(random[4*i:]))) }},
	} {
		marks := make([]canary.Mark, c.n)
		for i := range marks {
			marks[i] = c.make(i)
		}
		s := set(b, marks...)
		b.Run(fmt.Sprintf("%s/%d-forms", c.name, s.Forms()), func(b *testing.B) {
			b.SetBytes(int64(len(in)))
			for b.Loop() {
				if _, err := s.Search("noise", bytes.NewReader(in)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("peer-bytes-contains-1", func(b *testing.B) {
		one := text(0)
		b.SetBytes(int64(len(in)))
		for b.Loop() {
			if bytes.Contains(in, one) {
				b.Fatal("noise has a mark")
			}
		}
	})
}
