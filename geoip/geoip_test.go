package geoip_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"lethe/geoip"
	"lethe/usage"
)

// debian is where Debian's package libloc-database puts its file.
const debian = "/usr/share/libloc-location/location.db"

const extraCSV = `# what the operator knows better
203.0.113.0/24, NL, AS64500, LAB FIBRE
2001:db8:c::/48, NL, 64500, LAB FIBRE
198.51.100.0/24, US, 64501,
`

// real builds the database of Debian's file once for all tests.
var real = sync.OnceValues(func() ([]byte, error) {
	source, err := os.ReadFile(debian)
	if err != nil {
		return nil, err
	}
	extra, err := geoip.ParseExtra(strings.NewReader(extraCSV))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	_, err = geoip.Build(&out, source, extra)
	return out.Bytes(), err
})

func open(t testing.TB) *geoip.DB {
	t.Helper()
	b, err := real()
	if err != nil {
		t.Fatal(err)
	}
	db, err := geoip.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// TestKnownFacts compares with facts that do not change from one release of
// the source to the next.
func TestKnownFacts(t *testing.T) {
	db := open(t)
	for _, c := range []struct{ addr, country, isp string }{
		{"8.8.8.8", "US", "GOOGLE"},
		{"2001:4860:4860::8888", "US", "GOOGLE"},
		{"::ffff:8.8.8.8", "US", "GOOGLE"},
		{"193.0.6.139", "NL", "RIPE"},
		{"1.1.1.1", "AU", "CLOUDFLARE"},
		{"130.89.148.77", "NL", ""},
		{"203.0.113.9", "NL", "LAB FIBRE"},
		{"2001:db8:c::9%eth0", "NL", "LAB FIBRE"},
		{"198.51.100.4", "US", "AS64501"},
		{"10.1.2.3", "ZZ", ""},
		{"fe80::1", "ZZ", ""},
	} {
		country, isp := db.Lookup(netip.MustParseAddr(c.addr))
		if country != c.country || !strings.Contains(strings.ToUpper(isp), c.isp) || c.country == "ZZ" && isp != "" {
			t.Errorf("%s is in %s at %q, want %s at %q", c.addr, country, isp, c.country, c.isp)
		}
		if len(isp) > usage.MaxISP || !utf8.ValidString(isp) {
			t.Errorf("%s: provider %q", c.addr, isp)
		}
	}
	if country, isp := db.Lookup(netip.Addr{}); country != "ZZ" || isp != "" {
		t.Errorf("no address is in %s at %q", country, isp)
	}
}

func TestBuildIsDeterministic(t *testing.T) {
	source := tiny()
	var first, second bytes.Buffer
	n, err := geoip.Build(&first, source, nil)
	if err != nil || n != 2 {
		t.Fatalf("%d networks, %v", n, err)
	}
	if _, err := geoip.Build(&second, source, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two runs differ")
	}
}

// TestOtherVendors reads records shaped like those of MaxMind and IPinfo.
func TestOtherVendors(t *testing.T) {
	long := strings.Repeat("ä", 40)
	for name, c := range map[string]struct {
		record       mmdbtype.Map
		country, isp string
	}{
		"geolite2": {mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String("DE")}, "autonomous_system_organization": mmdbtype.String("X")}, "DE", "X"},
		"ipinfo":   {mmdbtype.Map{"country": mmdbtype.String("Germany"), "country_code": mmdbtype.String("DE"), "as_name": mmdbtype.String("X")}, "DE", "X"},
		"isp":      {mmdbtype.Map{"isp": mmdbtype.String("A"), "autonomous_system_organization": mmdbtype.String("B")}, "ZZ", "A"},
		"proxy":    {mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String("A1")}}, "ZZ", ""},
		"number":   {mmdbtype.Map{"country": mmdbtype.Uint16(7), "as_name": mmdbtype.Map{}}, "ZZ", ""},
		"long":     {mmdbtype.Map{"as_name": mmdbtype.String(long)}, "ZZ", long[:64]},
		"control":  {mmdbtype.Map{"as_name": mmdbtype.String("a\nb\x7f")}, "ZZ", "a b "},
	} {
		db, err := geoip.Open(file(t, 6, c.record))
		if err != nil {
			t.Fatal(err)
		}
		if country, isp := db.Lookup(netip.MustParseAddr("8.8.8.8")); country != c.country || isp != c.isp {
			t.Errorf("%s: %s, %q", name, country, isp)
		}
	}
	if _, err := geoip.Open(file(t, 4, mmdbtype.Map{})); err == nil {
		t.Error("a file without IPv6 was opened")
	}
	if _, err := geoip.Open([]byte("not a database")); err == nil {
		t.Error("junk was opened")
	}
}

// file returns a database in which all of 8.0.0.0/8 has one record.
func file(t *testing.T, version int, record mmdbtype.Map) []byte {
	t.Helper()
	tree, err := mmdbwriter.New(mmdbwriter.Options{IPVersion: version, DatabaseType: "Test", BuildEpoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	extra, err := geoip.ParseExtra(strings.NewReader("8.0.0.0/8,US,1,X\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Insert(geoip.IPNet(extra[0].Prefix), record); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := tree.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// tiny is a libloc database with a /1 of IPv6 and one of its halves.
func tiny() []byte {
	b := make([]byte, 200)
	copy(b, "LOCDBXX\x01")
	put := func(at int, v ...uint32) {
		for i, n := range v {
			binary.BigEndian.PutUint32(b[at+4*i:], n)
		}
	}
	put(28, 80, 8)   // one autonomous system
	put(36, 88, 24)  // two networks
	put(44, 112, 36) // three nodes
	put(60, 150, 10) // strings
	put(80, 64500, 1)
	copy(b[88:], "NL")
	put(92, 64500)
	copy(b[100:], "US")
	put(104, 7)
	put(112, 1, 0, noNetwork, 0, 2, 0, 0, 0, 1)
	copy(b[150:], "\x00LAB\x00")
	return b
}

const noNetwork = 0xffffffff

// chain gives a libloc database a tree of 200 nodes, each the child of the one
// before.
func chain(b []byte) []byte {
	binary.BigEndian.PutUint32(b[44:], uint32(len(b)))
	binary.BigEndian.PutUint32(b[48:], 200*12)
	for i := range uint32(200) {
		b = binary.BigEndian.AppendUint32(b, 0)
		b = binary.BigEndian.AppendUint32(b, (i+1)%200)
		b = binary.BigEndian.AppendUint32(b, noNetwork)
	}
	return b
}

func TestDamagedSource(t *testing.T) {
	for _, c := range []struct {
		want  string
		spoil func([]byte) []byte
	}{
		{"not a libloc", func(b []byte) []byte { return nil }},
		{"not a libloc", func(b []byte) []byte { b[7] = 2; return b }},
		{"beyond the file", func(b []byte) []byte { return b[:120] }},
		{"beyond the file", func(b []byte) []byte { b[51]++; return b }},
		{"leaves its section", func(b []byte) []byte { b[115] = 99; return b }},
		{"outside its section", func(b []byte) []byte { b[135] = 9; return b }},
		{"two parents", func(b []byte) []byte { b[127] = 1; b[131] = 0; return b }},
		{"two parents", func(b []byte) []byte { b[131] = 1; return b }},
		{"deeper than an address", chain},
	} {
		if _, err := geoip.Build(&bytes.Buffer{}, c.spoil(tiny()), nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
	if _, err := geoip.Build(brokenWriter{}, tiny(), nil); err == nil {
		t.Error("a failing writer goes unnoticed")
	}
}

// TestAliases shows that a network that this format cannot hold is left out of the
// source's and refused among the operator's.
func TestAliases(t *testing.T) {
	extra, err := geoip.ParseExtra(strings.NewReader("2002:cb00:7100::/40,NL,1,X\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := geoip.Build(&bytes.Buffer{}, tiny(), extra); err == nil || !strings.Contains(err.Error(), "extra network") {
		t.Errorf("an alias among the extra networks: %v", err)
	}
}

// TestVerify shows that damage which opening does not notice is found.
func TestVerify(t *testing.T) {
	b, err := real()
	if err != nil {
		t.Fatal(err)
	}
	if err := open(t).Verify(); err != nil {
		t.Error(err)
	}
	damaged := bytes.Clone(b)
	for i := range 64 { // in the middle of the search tree
		damaged[len(b)/4+i] = 0xff
	}
	db, err := geoip.Open(damaged)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Verify(); err == nil {
		t.Error("damage goes unnoticed")
	}
}

func TestParseExtraRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"1.2.3.4,NL,1,X\n":      "not a prefix",
		"1.2.3.0/24,NL,x,X\n":   "not a number",
		"1.2.3.0/24,NLD,1,X\n":  "not a country",
		"1.2.3.0/24,nl,1,X\n":   "not a country",
		"1.2.3.0/24,NL,1\n":     "wrong number of fields",
		"1.2.3.0/24,\"NL,1,X\n": "extra networks",
	} {
		if _, err := geoip.ParseExtra(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func FuzzBuild(f *testing.F) {
	f.Add(tiny())
	f.Fuzz(func(t *testing.T, source []byte) {
		var out bytes.Buffer
		if _, err := geoip.Build(&out, source, nil); err != nil {
			return
		}
		if _, err := geoip.Open(out.Bytes()); err != nil {
			t.Errorf("what was built does not open: %v", err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	var out bytes.Buffer
	if _, err := geoip.Build(&out, tiny(), nil); err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		db, err := geoip.Open(b)
		if err != nil {
			return
		}
		for _, a := range []string{"8.8.8.8", "2001:db8::1", "::", "255.255.255.255"} {
			country, isp := db.Lookup(netip.MustParseAddr(a))
			if len(country) != 2 || len(isp) > usage.MaxISP || !utf8.ValidString(isp) {
				t.Errorf("%s: %q, %q", a, country, isp)
			}
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	db := open(b)
	addrs := []netip.Addr{netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("2001:4860:4860::8888"), netip.MustParseAddr("193.0.6.139")}
	for i := 0; b.Loop(); i++ {
		db.Lookup(addrs[i%len(addrs)])
	}
}
