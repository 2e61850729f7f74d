package deb_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"lethe/image/deb"
)

func TestVersions(t *testing.T) {
	// In ascending order; from deb-version(7), Debian Policy 5.6.12 and dpkg's own tests.
	ascending := []deb.Version{
		"0~~", "0~~a", "0~", "0", "0a", "0+", "0.1~rc1-1", "0.1-1~bpo13+1", "0.1-1", "0.1-1+deb13u1", "0.1-1+deb13u10", "0.1.1", "0.2", "0.10",
		"1.0~beta1~svc1", "1.0~beta1", "1.0", "1.0-0.1", "1.0-1", "1.0-1.1", "1.0-2", "1.0-10", "1.0a", "1.0+git1", "7.3.4-1", "99999999999999999999", "100000000000000000000", "1:0", "1:0.4", "2:0~", "10:0",
	}
	for i, v := range ascending {
		if err := v.Check(); err != nil {
			t.Error(err)
		}
		for j, w := range ascending {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := v.Compare(w); got != want {
				t.Errorf("%s against %s is %d, want %d", v, w, got, want)
			}
		}
	}
	for _, same := range [][2]deb.Version{{"1.0", "0:1.0"}, {"1.0", "1.0-0"}, {"1.01", "1.1"}, {"1.0", "1.00"}, {"1.a0", "1.a"}} {
		if same[0].Compare(same[1]) != 0 {
			t.Errorf("%s and %s differ", same[0], same[1])
		}
	}
	for _, bad := range []deb.Version{"", "1:", "x:1", "1 2", "1_2", "1.0-é", "-1", deb.Version(strings.Repeat("1", 300))} {
		if bad.Check() == nil {
			t.Errorf("version %.20q is accepted", bad)
		}
	}
}

// FuzzVersion wants a total order: antisymmetric, and each version equal to itself.
func FuzzVersion(f *testing.F) {
	for _, s := range [][2]string{{"1.0", "1.0~rc1"}, {"1:2-3", "2-3"}, {"~", ""}, {"a+b", "a-b"}, {"00", "0"}, {"1:", ":1"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		v, w := deb.Version(a), deb.Version(b)
		_ = v.Check()
		if v.Compare(v) != 0 || v.Compare(w) != -w.Compare(v) {
			t.Errorf("%q and %q have no order", a, b)
		}
	})
}

func TestDigest(t *testing.T) {
	text := strings.Repeat("0a", 32)
	if d, err := deb.ParseDigest(text); err != nil || d.String() != text {
		t.Error(d, err)
	}
	for _, bad := range []string{"", text[2:], text + "00", strings.ToUpper(text), strings.Repeat("x", 64)} {
		if _, err := deb.ParseDigest(bad); err == nil {
			t.Errorf("digest %q is accepted", bad)
		}
	}
}

func TestParagraphs(t *testing.T) {
	read := func(text string) (all []deb.Paragraph, err error) {
		err = deb.Paragraphs(strings.NewReader(text), func(p deb.Paragraph) error {
			all = append(all, p)
			return nil
		})
		return all, err
	}
	all, err := read("\n\nA: 1\r\n# note\nLong: first\n second\n  third\n\t.\n\n\nB:2\nempty:\n")
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	if got := all[0].Get("lOnG"); got != "first\nsecond\n third\n." || all[0].Get("a") != "1" || all[1].Get("B") != "2" || all[1].Get("none") != "" {
		t.Errorf("%q", all)
	}
	for text, want := range map[string]string{
		" x\n":                            "line 1 continues nothing",
		"A: 1\n\n x":                      "line 3 continues nothing",
		"A: 1\na: 2":                      "line 2: field a stands twice",
		"no field":                        "line 1 is not a field",
		"-A: 1":                           "not a field",
		"Ä: 1":                            "not a field",
		": 1":                             "not a field",
		"A: 1\nB C: 2":                    "line 2 is not a field",
		"A:" + strings.Repeat("x", 5<<20): "longer than",
	} {
		if _, err := read(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %s", text, err, want)
		}
	}
	stop := errors.New("stop")
	for _, text := range []string{"A: 1", "A: 1\n\nB: 1"} {
		if err := deb.Paragraphs(strings.NewReader(text), func(deb.Paragraph) error { return stop }); !errors.Is(err, stop) {
			t.Error(err)
		}
	}
	if err := deb.Paragraphs(broken{}, nil); !errors.Is(err, errBroken) {
		t.Error(err)
	}
}

var errBroken = errors.New("broken")

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errBroken }

func FuzzParagraphs(f *testing.F) {
	f.Add([]byte("Package: a\nDepends: b (>= 1) | c,\n d\n\nPackage: b\n"))
	f.Add([]byte(" x\n# y\n\n:\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = deb.Paragraphs(bytes.NewReader(b), func(p deb.Paragraph) error {
			for name := range p {
				if name != strings.ToLower(name) || p.Get(strings.ToUpper(name)) != p[name] && name == strings.ToLower(strings.ToUpper(name)) {
					t.Errorf("field %q", name)
				}
			}
			return nil
		})
	})
}

func TestRelations(t *testing.T) {
	clauses, err := deb.ParseRelations("aa, bb (>= 1:2~) | cc(<<3), ,dd:any (= 1), ee:amd64 | ff:arm64 (>> 1),gg (<= 2)", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range clauses {
		got = append(got, c.String())
	}
	if want := []string{"aa", "bb (>= 1:2~) | cc (<< 3)", "dd (= 1)", "ee | ff:arm64 (>> 1)", "gg (<= 2)"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for _, bad := range []string{"|", "aa |", "aa (1)", "aa (> 1)", "aa (>= )", "aa (>= 1", "aa (>= 1) x", "aa bb", "A$", "aa:", "+a", "ää", "aa (>= 1) (<< 2)", "a", "a:any", "aa:x y"} {
		if c, err := deb.ParseRelations(bad, "amd64"); err == nil {
			t.Errorf("%q is accepted as %q", bad, c)
		}
	}
	for _, m := range []struct {
		op      string
		v       deb.Version
		matches bool
	}{
		{"", "1", true}, {"<<", "1", true}, {"<<", "2", false}, {"<=", "2", true}, {"<=", "3", false}, {"=", "2", true}, {"=", "2-1", false},
		{">=", "2", true}, {">=", "1", false}, {">>", "2", false}, {">>", "3", true},
	} {
		if got := (deb.Relation{Name: "x", Op: m.op, Version: "2"}).Met(m.v); got != m.matches {
			t.Errorf("%s %s 2 is %t", m.v, m.op, got)
		}
	}
}

// FuzzRelations wants what was read to be read again as the same.
func FuzzRelations(f *testing.F) {
	f.Add("libc6 (>= 2.38), debconf (>= 0.5) | debconf-2.0")
	f.Add("python3:any, gcc:arm64 (= 1)")
	f.Fuzz(func(t *testing.T, s string) {
		clauses, err := deb.ParseRelations(s, "amd64")
		if err != nil {
			return
		}
		for _, c := range clauses {
			again, err := deb.ParseRelations(c.String(), "amd64")
			if err != nil || len(again) != 1 || again[0].String() != c.String() {
				t.Errorf("%q becomes %q, %v", c, again, err)
			}
		}
	})
}

func TestLocalPath(t *testing.T) {
	for _, good := range []string{"a", "pool/main/a+b~1_2.deb", "..a", "a/..b"} {
		if !deb.LocalPath(good) {
			t.Errorf("%q is refused", good)
		}
	}
	for _, bad := range []string{"", ".", "..", "/a", "../a", "a/../b", "a//b", "a/", "./a", "a b", "a\nb", "a\\b", "ä"} {
		if deb.LocalPath(bad) {
			t.Errorf("%q is accepted", bad)
		}
	}
}

const digestA = "0000000000000000000000000000000000000000000000000000000000000001"

const stanza = "Package: openvpn\nSource: openvpn-src (2.6-1)\nVersion: 2.6-1+b1\nArchitecture: amd64\nEssential: yes\nPre-Depends: libc6\nDepends: libssl3 (>= 3)\n" +
	"Breaks: old (<< 2)\nConflicts: other\nProvides: vpn (= 2)\nFilename: pool/o.deb\nSize: 10\nSHA256: " + digestA + "\n"

func packages(text string) (all []*deb.Package, err error) {
	err = deb.ReadPackages(strings.NewReader(text), "trixie", "amd64", func(p *deb.Package) error {
		all = append(all, p)
		return nil
	})
	return all, err
}

func TestPackages(t *testing.T) {
	all, err := packages(stanza)
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	p := all[0]
	if p.Name != "openvpn" || p.Source != "openvpn-src" || p.SourceVersion != "2.6-1" || p.Suite != "trixie" || !p.Essential || p.File.Size != 10 || p.File.SHA256.String() != digestA ||
		len(p.Depends) != 2 || p.Depends[0].String() != "libc6" || len(p.Conflicts) != 2 || p.Provides[0].String() != "vpn (= 2)" {
		t.Errorf("%+v", p)
	}
	if all, err = packages(strings.Replace(strings.Replace(stanza, "Source: openvpn-src (2.6-1)\n", "", 1), "amd64", "all", 1)); err != nil || all[0].Source != "openvpn" || all[0].SourceVersion != "2.6-1+b1" {
		t.Error(all, err)
	}
	for name, change := range map[string][2]string{
		"name": {"Package: openvpn", "Package: ../x"}, "version": {"Version: 2.6-1+b1", "Version: "}, "architecture": {"amd64", "arm64"},
		"source": {"openvpn-src", "/etc"}, "source version": {"(2.6-1)", "(é)"}, "digest": {digestA, "12"}, "size": {"Size: 10", "Size: -1"}, "huge": {"Size: 10", "Size: 99999999999999"},
		"path": {"pool/o.deb", "../../etc/passwd"}, "depends": {"libssl3 (>= 3)", "libssl3 (3)"}, "provides": {"vpn (= 2)", "$"},
	} {
		if all, err := packages(strings.Replace(stanza, change[0], change[1], 1)); err == nil {
			t.Errorf("%s: accepted as %+v", name, all[0])
		}
	}
}

const source = "Package: openvpn\nVersion: 2.6-1\nDirectory: pool/main/o\nChecksums-Sha256:\n " + digestA + " 5 openvpn_2.6-1.dsc\n " + digestA + " 6 openvpn_2.6.orig.tar.xz\n"

func sources(text string) (all []*deb.Source, err error) {
	err = deb.ReadSources(strings.NewReader(text), "trixie", func(name string) bool { return name != "other" }, func(s *deb.Source) error {
		all = append(all, s)
		return nil
	})
	return all, err
}

func TestSources(t *testing.T) {
	all, err := sources("Package: other\n\n" + source)
	if err != nil || len(all) != 1 || all[0].Name != "openvpn" || all[0].Suite != "trixie" || len(all[0].Files) != 2 || all[0].Files[1].Path != "pool/main/o/openvpn_2.6.orig.tar.xz" || all[0].Files[1].Size != 6 {
		t.Fatal(all, err)
	}
	for name, change := range map[string][2]string{
		"name": {"Package: openvpn", "Package: é"}, "version": {"2.6-1\n", "\n"}, "directory": {"pool/main/o", "/pool"}, "words": {" 5 ", " "}, "digest": {digestA, "1"},
		"size": {" 6 ", " six "}, "above": {"openvpn_2.6-1.dsc", "../a.dsc"}, "below": {"openvpn_2.6-1.dsc", "a/b.dsc"}, "no dsc": {".dsc", ".txt"},
	} {
		if all, err := sources(strings.Replace(source, change[0], change[1], 1)); err == nil {
			t.Errorf("%s: accepted as %+v", name, all)
		}
	}
}

// FuzzIndexes reads both kinds of index.
func FuzzIndexes(f *testing.F) {
	f.Add(stanza)
	f.Add(source)
	f.Fuzz(func(t *testing.T, text string) {
		binary, _ := packages(text)
		for _, p := range binary {
			if !deb.LocalPath(p.File.Path) || !deb.PackageName(p.Name) || p.File.Size < 0 {
				t.Errorf("%+v", p)
			}
		}
		all, _ := sources(text)
		for _, s := range all {
			for _, file := range s.Files {
				if !deb.LocalPath(file.Path) {
					t.Errorf("%+v", s)
				}
			}
		}
	})
}
