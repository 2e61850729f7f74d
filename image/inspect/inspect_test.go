package inspect_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"lethe/image/inspect"
	"lethe/image/medium"
	"lethe/image/medium/mediumtest"
	"lethe/image/scan"
	"lethe/image/tree"
)

const service = `# what it does
[Unit]
Description=x

[Service]
ExecStart=/usr/bin/lethe-node \
	run
User=nobody
User=lethe-openvpn
ProtectSystem=full
ProtectSystem=
ProtectSystem=strict
CapabilityBoundingSet=
SystemCallFilter=@system-service
SystemCallFilter=~@mount
; not this
nonsense
`

// self is a program that this machine has: the test itself, static or not.
func self(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// elf is the head of a program, with or without an interpreter and a first instruction.
func elf(kind byte, entry bool) []byte {
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	b[16], b[18], b[20], b[52], b[54], b[58] = kind, 62, 1, 64, 56, 64
	if entry {
		b[24] = 0x80
	}
	return b
}

func root(t testing.TB) *tree.Tree {
	t.Helper()
	x := mediumtest.Root(t)
	err := errors.Join(
		x.File("usr/bin/lethe-node", 0o755, "", self(t)),
		x.File("usr/bin/openvpn", 0o755, "", elf(2, true)),
		x.File("usr/lib/ld.so", 0o755, "", elf(3, true)),
		x.File("usr/lib/libx.so", 0o755, "", elf(3, false)),
		x.File("usr/lib/libpython3.so", 0o644, "", elf(3, false)),
		x.File("usr/lib/object.o", 0o755, "", elf(1, false)),
		x.File("usr/bin/tool", 0o755, "", []byte("#!/bin/sh\n")),
		x.File("usr/bin/odd", 0o755, "", []byte("odd")),
		x.Add(tree.Entry{Path: "usr/bin/su", Mode: fs.ModeSetuid | 0o755, Size: 3, Open: tree.Bytes([]byte("odd"))}),
		x.File("usr/lib/lethe/modules/ovpn.ko", 0o644, "", elf(1, false)),
		x.File("usr/lib/systemd/system/lethe-node.service", 0o644, "", []byte(service)),
		x.File("usr/lib/systemd/system/lethe-node.service.d/10.conf", 0o644, "", []byte("[Service]\nNoNewPrivileges=yes\n")),
		x.File("usr/lib/systemd/system/x.socket", 0o644, "", []byte("[Socket]\nListenStream=22\nListenDatagram=127.0.0.1:53\n")),
		x.File("usr/lib/systemd/system/hidden.service", 0o644, "", []byte("[Service]\nExecStart=/usr/bin/x\n")),
		x.Symlink("etc/systemd/system/hidden.service", "/dev/null", ""),
		x.File("usr/lib/systemd/system/x.target", 0o644, "", nil),
	)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// listing is what a builder would say of a report's files.
func listing(r *inspect.Report) []byte {
	var b bytes.Buffer
	layer := ""
	for _, f := range r.Files {
		if f.Layer != layer {
			layer = f.Layer
			fmt.Fprintf(&b, "# %s\n", layer)
		}
		what := f.SHA256
		if f.Link != "" {
			what = fmt.Sprintf("%q", f.Link)
		} else if what == "" {
			what = "-"
		}
		fmt.Fprintf(&b, "%s %d:%d %d %s %q %q\n", f.Mode, f.UID, f.GID, f.Size, what, "package of "+f.Path[:1], f.Path)
	}
	return b.Bytes()
}

func TestLook(t *testing.T) {
	m := mediumtest.Open(t, mediumtest.Make(t, mediumtest.Spec{Root: root(t)}))
	r, err := inspect.Look(m, inspect.Listing{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Flavour != "vm" || r.Version != "7" || r.Kernel != "7.3.4-test" || !slices.Equal(r.Cmdline, []string{"quiet", "lockdown=confidentiality"}) || r.Signed {
		t.Errorf("%+v", r)
	}
	if !r.Root.Right || !r.Rest.Right || r.Root.Packing != "zstd" || r.Root.Files < 10 || r.Root.Unpacked < 10_000 || r.Size != m.Size {
		t.Errorf("root %+v", r.Root)
	}
	var programs []string
	for _, e := range r.Executables {
		programs = append(programs, e.Path+" "+e.Kind)
	}
	slices.Sort(programs)
	want := []string{"initramfs:init other", "usr/bin/lethe-node ", "usr/bin/odd other", "usr/bin/openvpn static", "usr/bin/su other", "usr/bin/tool script", "usr/lib/ld.so static"}
	if len(programs) != len(want) {
		t.Errorf("programs %q", programs)
	}
	for i := range min(len(programs), len(want)) {
		if !strings.HasPrefix(programs[i], want[i]) {
			t.Errorf("program %q, want %q", programs[i], want[i])
		}
	}
	if !slices.Equal(r.SetUID, []string{"usr/bin/su"}) || !slices.Equal(r.Interpreter, []string{"usr/bin/tool", "usr/lib/libpython3.so"}) {
		t.Errorf("set-user-id %q, interpreters %q", r.SetUID, r.Interpreter)
	}
	if !slices.Equal(r.Modules.Root, []string{"ovpn"}) || !slices.Equal(r.Modules.Initramfs, []string{"sr_mod"}) || len(r.Users) != 2 || r.GoModules["std"] == "" {
		t.Errorf("modules %+v, users %+v, Go %v", r.Modules, r.Users, r.GoModules)
	}
	var listeners []string
	for _, l := range r.Listeners {
		listeners = append(listeners, l.Program+" "+l.Address)
	}
	if !slices.Equal(listeners, []string{"x.socket Datagram 127.0.0.1:53", "x.socket Stream 22", "lethe-node tcp 7443", "openvpn udp 1194", "openvpn tcp 443"}) {
		t.Errorf("listeners %q", listeners)
	}
	if len(r.Units) != 2 {
		t.Fatalf("units %+v", r.Units)
	}
	u := r.Units[0]
	if u.Name != "lethe-node.service" || u.User != "lethe-openvpn" || u.Exec != "/usr/bin/lethe-node run" || u.Settings["ProtectSystem"] != "strict" ||
		u.Settings["SystemCallFilter"] != "@system-service ~@mount" || u.Settings["NoNewPrivileges"] != "yes" || !slices.Contains(u.Missing, "CapabilityBoundingSet") || slices.Contains(u.Missing, "NoNewPrivileges") {
		t.Errorf("unit %+v", u)
	}
	if len(r.Packages) != 1 || r.Packages[0].Name != "?" {
		t.Errorf("packages %+v", r.Packages)
	}

	// With the builder's list.
	var l inspect.Listing
	list := listing(r)
	bill := `{"components": [{"name": "package of u", "version": "1.2", "scope": "required"}, {"name": "package of e", "version": "9", "scope": "excluded"}]}`
	if err := errors.Join(l.ReadFiles(list), l.ReadBill([]byte(bill))); err != nil {
		t.Fatal(err)
	}
	if r, err = inspect.Look(m, l); err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for _, p := range r.Packages {
		versions[p.Name] = p.Version
		if p.Size == 0 && p.Name != "package of e" || p.Files == 0 {
			t.Errorf("package %+v", p)
		}
	}
	if versions["package of u"] != "1.2" || versions["package of e"] != "" || len(versions) != 4 {
		t.Errorf("packages %v", versions)
	}
	// Another digest is another file.
	other := inspect.Listing{}
	if err := other.ReadFiles(bytes.ReplaceAll(list, []byte(r.Files[len(r.Files)-1].SHA256), bytes.Repeat([]byte("0"), 64))); err != nil {
		t.Fatal(err)
	}
	changed, err := inspect.Look(m, other)
	if err != nil || changed.Files[len(changed.Files)-1].Package != "?" {
		t.Errorf("%+v, %v", changed.Files[len(changed.Files)-1], err)
	}

	r.Secrets = []scan.Finding{{Layer: "root", Path: "x", Rule: "pem", What: "a key"}}
	var text, all bytes.Buffer
	if err := errors.Join(r.Text(&text, inspect.Detail{}), r.Text(&all, inspect.Detail{Files: true, Packages: true})); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"quiet lockdown", "not signed", "which it has", "executables   7", "set-user-id   1 usr/bin/su", "x.socket Stream 22", "lethe-openvpn", "without ", "sr_mod", "SECRETS", "usr/share"} {
		if !strings.Contains(text.String(), s) {
			t.Errorf("no %q in\n%s", s, &text)
		}
	}
	for _, s := range []string{"Go modules", "package of u 1.2", "initramfs:init", "-rw-r--r-- 0:0"} {
		if !strings.Contains(all.String(), s) {
			t.Errorf("no %q in\n%s", s, &all)
		}
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
}

// TestWrong: an image whose root is another one is not hidden, nor are many modules too long a line.
func TestWrong(t *testing.T) {
	x := mediumtest.Initramfs(t)
	for i := range 40 {
		if err := x.File(fmt.Sprintf("lethe/modules/m%02d.ko", i), 0o644, "", nil); err != nil {
			t.Fatal(err)
		}
	}
	many := mediumtest.Root(t)
	for i := range 40 {
		if err := many.File(fmt.Sprintf("usr/share/d%02d/x", i), 0o644, "", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(many.Symlink("etc/systemd/system", "x", ""), many.File("etc/os-release", 0o644, "", nil)); err != nil {
		t.Fatal(err)
	}
	sections := mediumtest.Sections()
	sections[0].Data = []byte("VARIANT_ID=vm\nVERSION_ID=7\nBUILD_ID=abc\nPRETTY_NAME=\"Lethe 7\"\n")
	iso := mediumtest.Make(t, mediumtest.Spec{Root: many, Initramfs: x, Sections: sections})
	m := mediumtest.Open(t, iso)
	iso[m.Root.Offset+m.Root.Size-1] ^= 1
	r, err := inspect.Look(mediumtest.Open(t, iso), inspect.Listing{})
	if err != nil || r.Root.Right || r.Rest.Right {
		t.Fatalf("%+v, %v", r, err)
	}
	r.Signed = true
	var b bytes.Buffer
	if err := r.Text(&b, inspect.Detail{}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"WHICH IT HAS NOT", "Lethe 7", "commit", "abc", "…", "signed for Secure Boot"} {
		if !strings.Contains(b.String(), s) {
			t.Errorf("no %q in\n%s", s, &b)
		}
	}
	for _, n := range []int{0, 3000} {
		if err := r.Text(&limited{n}, inspect.Detail{Files: true}); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("room for %d: %v", n, err)
		}
	}
}

type limited struct{ n int }

func (l *limited) Write(b []byte) (int, error) {
	if l.n -= len(b); l.n < 0 {
		return 0, io.ErrShortWrite
	}
	return len(b), nil
}

func TestUnreadable(t *testing.T) {
	iso := mediumtest.Make(t, mediumtest.Spec{})
	broken := errors.New("broken medium")
	at := &failing{Reader: bytes.NewReader(iso)}
	m, err := medium.Open(at, int64(len(iso)))
	if err != nil {
		t.Fatal(err)
	}
	at.err = broken
	if _, err := inspect.Look(m, inspect.Listing{}); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	m = mediumtest.Open(t, iso)
	if err := m.Files.Add(tree.Entry{Path: "x", Size: 1, Open: func() (io.ReadCloser, error) { return nil, broken }}); err != nil {
		t.Fatal(err)
	}
	if _, err := inspect.Look(m, inspect.Listing{}); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

type failing struct {
	*bytes.Reader
	err error
}

func (f *failing) ReadAt(b []byte, at int64) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.Reader.ReadAt(b, at)
}

var bad = []string{"-rw 0:0 1\n", "-rw 0:0 1 abc\n", "-rw 0:0 1 abc \"x\"\n", "-rw 0:0 1 abc x y\n", "lrw 0:0 1 \"abc\n", strings.Repeat("# x\n", 1<<17+1)}

func TestListing(t *testing.T) {
	for _, text := range bad {
		var l inspect.Listing
		if err := l.ReadFiles([]byte(text)); err == nil {
			t.Errorf("%.40q was read", text)
		}
	}
	var l inspect.Listing
	if err := l.ReadFiles([]byte("# root\nLrwx 0:0 0 \"a \\\"b\" \"p q\" \"x y\"\n-rw 0:0 1 abc \"p\" \"x\"\n")); err != nil {
		t.Error(err)
	}
	if err := l.ReadBill([]byte("{")); err == nil {
		t.Error("half a bill was read")
	}
}

func FuzzListing(f *testing.F) {
	f.Add([]byte("# root\nLrwx 0:0 0 \"a \\\"b\" \"p q\" \"x y\"\n-rw 0:0 1 abc \"p\" \"x\"\n"))
	for _, text := range bad[:5] {
		f.Add([]byte(text))
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		var l inspect.Listing
		_ = l.ReadFiles(b) // no panic
	})
}
