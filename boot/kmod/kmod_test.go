package kmod_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/boot/kmod"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dir makes a directory of modules. A module is an object file that depends on what needs says; a kernel takes none of them.
func dir(t *testing.T, order, aliases, load string, needs map[string]string) string {
	t.Helper()
	d := t.TempDir()
	check(t, os.Mkdir(filepath.Join(d, "modules"), 0o755))
	for name, content := range map[string]string{"order": order, "aliases": aliases, "load": load} {
		check(t, os.WriteFile(filepath.Join(d, name), []byte(content), 0o644))
	}
	for name, n := range needs {
		source := fmt.Sprintf(`const char a[] __attribute__((section(".modinfo"))) = "license=GPL\0%s\0name=%s";`, n, name)
		c := exec.Command("gcc", "-x", "c", "-c", "-o", filepath.Join(d, "modules", name+".ko"), "-")
		c.Stdin = strings.NewReader(source)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return d
}

func TestFnmatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"pci:v00001AF4d00001000sv*sd*bc*sc*i*", "pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00", true},
		{"pci:v00001AF4d00001000sv*sd*bc*sc*i*", "pci:v00001AF4d00001001sv00001AF4sd00000001bc02sc00i00", false},
		{"scsi:t-0x00*", "scsi:t-0x00", true},
		{"usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*", "usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00", true},
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "abc", true}, {"a*", "ba", false},
		{"?", "a", true}, {"?", "", false}, {"a?c", "abc", true},
		{"[ab]", "b", true}, {"[ab]", "c", false}, {"[!ab]", "c", true}, {"[^ab]", "a", false}, {"[a-c]x", "bx", true}, {"[a-c]x", "dx", false},
		{"[]]", "]", true}, {"[a-]", "-", true}, {"[", "[", true}, {"[a", "[a", true}, {"[a", "a", false},
		{"*a*b*c", "xxaxxbxxc", true}, {"*a*b*c", "xxaxxcxxb", false}, {"a**", "a", true}, {`\*`, `\x`, true},
	} {
		if got := kmod.Fnmatch(c.pattern, c.s); got != c.want {
			t.Errorf("%q on %q: got %v", c.pattern, c.s, got)
		}
	}
}

// naive is fnmatch as its manual says it, in exponential time.
func naive(p, s string) bool {
	switch {
	case p == "":
		return s == ""
	case p[0] == '*':
		return naive(p[1:], s) || s != "" && naive(p, s[1:])
	case s == "":
		return false
	case p[0] == '?' || p[0] == s[0]:
		return naive(p[1:], s[1:])
	}
	return false
}

func FuzzFnmatch(f *testing.F) {
	f.Add("pci:v*d*", "pci:v1d2")
	f.Add("*a?*b", "xab")
	f.Add("[a-", "[")
	f.Fuzz(func(t *testing.T, p, s string) {
		got := kmod.Fnmatch(p, s)
		if len(p) < 12 && len(s) < 12 && !strings.Contains(p, "[") && got != naive(p, s) {
			t.Errorf("%q on %q: got %v", p, s, got)
		}
	})
}

func FuzzLists(f *testing.F) {
	f.Add([]byte("a\nb-c\n"))
	f.Add([]byte("alias pci:* a\n"))
	f.Add([]byte("loop 49152 2 - Live 0x0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if names, err := kmod.ParseNames(b); err == nil {
			for _, n := range names {
				if n == "" || strings.ContainsAny(n, "/. \x00\n") {
					t.Errorf("the name %q was taken", n)
				}
			}
		}
		if aliases, err := kmod.ParseAliases(b); err == nil {
			for _, a := range aliases {
				if a.Pattern == "" || strings.ContainsAny(a.Module, "/. \x00\n-") {
					t.Errorf("the alias %q was taken", a)
				}
				kmod.Fnmatch(a.Pattern, string(b))
			}
		}
		_, _ = kmod.ParseLoaded(b)
	})
}

func TestOpen(t *testing.T) {
	d, err := kmod.Open(dir(t, "virtio_net\nb-c\n", "alias pci:v1* virtio_net\nalias pci:*2 b-c\nalias pci:v12 b_c\n", "b_c\n", nil))
	check(t, err)
	if got := d.Match("pci:v12"); !reflect.DeepEqual(got, []string{"virtio_net", "b_c"}) {
		t.Errorf("got %q", got)
	}
	if got := d.Match("usb:v12"); got != nil {
		t.Errorf("got %q", got)
	}
	if got := d.Names(); !reflect.DeepEqual(got, []string{"virtio_net", "b_c"}) {
		t.Errorf("got %q", got)
	}
	for name, c := range map[string]struct{ order, aliases, load, want string }{
		"name with a path":         {"../a\n", "", "", `order: line 1: "../a" is no module's name`},
		"empty line":               {"a\n\nb\n", "", "", `order: line 2: "" is no module's name`},
		"twice":                    {"a-b\na_b\n", "", "", "order: a_b stands there twice"},
		"load is not a name":       {"a\n", "", "a b\n", `load: line 1: "a b" is no module's name`},
		"alias without a module":   {"a\n", "alias pci:*\n", "", "aliases: line 1: want alias, pattern and module"},
		"alias with a comment":     {"a\n", "# Aliases\n", "", "aliases: line 1: want"},
		"alias of nobody":          {"a\n", "alias x b\n", "", "modules: b is not in order"},
		"something else is loaded": {"a\n", "", "b\n", "modules: b is not in order"},
	} {
		if _, err := kmod.Open(dir(t, c.order, c.aliases, c.load, nil)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
	}
	for _, name := range []string{"order", "aliases", "load"} {
		path := dir(t, "a\n", "", "", nil)
		check(t, os.Remove(filepath.Join(path, name)))
		if _, err := kmod.Open(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

// TestLoad goes as far as this machine's kernel, which takes none of these. What it does take is
// loaded by the tests that boot (package boot).
func TestLoad(t *testing.T) {
	path := dir(t, "a\nb\nc\nd\ne\nf\ng\n", "alias usb:* b\nalias pci:* g\n", "a\n", map[string]string{"a": "depends=", "b": "depends=a", "c": "depends=x", "d": "depends=e", "e": "x=", "g": "depends="})
	check(t, os.WriteFile(filepath.Join(path, "modules", "f.ko"), []byte("no ELF"), 0o644))
	d, err := kmod.Open(path)
	check(t, err)
	for name, want := range map[string]string{
		"a": "module a: ", "b": "module a: ", "c": "module c: needs x, which order does not have above it",
		"d": "module d: needs e, which order does not have above it", "f": "module f: ", "z": "module z: there is none",
	} {
		err := d.Load(name)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v", name, err)
		}
		if again := d.Load(name); again == nil || again.Error() != err.Error() {
			t.Errorf("%s again: got %v", name, again)
		}
	}
	if err := d.LoadListed(); err == nil {
		t.Error("a kernel took what is no module")
	}
	sys := t.TempDir()
	for name, alias := range map[string]string{"pci0/1": "pci:v1", "pci0/2": "pci:v2", "usb/1": "usb:1", "none": "", "other": "acpi:x"} {
		check(t, os.MkdirAll(filepath.Join(sys, "devices", name), 0o755))
		check(t, os.WriteFile(filepath.Join(sys, "devices", name, "modalias"), []byte(alias+"\n"), 0o644))
	}
	check(t, os.MkdirAll(filepath.Join(sys, "devices/odd/modalias"), 0o755))
	tried, err := d.Coldplug(sys)
	if err == nil || !reflect.DeepEqual(tried, []string{"g"}) { // b was refused before
		t.Errorf("tried %q: %v", tried, err)
	}
	if tried, err := d.Coldplug(sys); tried != nil || err != nil {
		t.Errorf("tried %q again: %v", tried, err)
	}
}

func TestNeeds(t *testing.T) {
	path := dir(t, "", "", "", map[string]string{"a": "depends=b,c-d", "b": "depends=", "c": "nothing="})
	for name, want := range map[string][]string{"a": {"b", "c-d"}, "b": nil, "c": nil} {
		if got, err := kmod.Needs(filepath.Join(path, "modules", name+".ko")); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if _, err := kmod.Needs("/proc/self/exe"); err == nil {
		t.Error("a program without .modinfo is a module")
	}
}

func TestLoaded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "modules")
	if got, err := kmod.Loaded(path); got != nil || err != nil {
		t.Errorf("without a list: %v, %v", got, err)
	}
	check(t, os.WriteFile(path, []byte("overlay 229376 1 - Live 0x0\nxhci 1 - - Live 0x0\n"), 0o644))
	if got, err := kmod.Loaded(path); err != nil || !reflect.DeepEqual(got, []kmod.Module{{Name: "overlay", Uses: 1}, {Name: "xhci", Uses: -1}}) {
		t.Errorf("got %v, %v", got, err)
	}
	check(t, os.WriteFile(path, []byte("overlay\n"), 0o644))
	if _, err := kmod.Loaded(path); err == nil {
		t.Error("a line with one field was taken")
	}
	if _, err := kmod.Loaded(filepath.Dir(path)); err == nil {
		t.Error("a directory was read")
	}
	// ENOSYS where the kernel has no modules, EPERM without the right.
	if err := kmod.Unload("no_such_module"); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
		t.Error(err)
	}
}

func TestEvents(t *testing.T) {
	e, err := kmod.Listen()
	check(t, err)
	began := time.Now()
	e.Wait(10 * time.Millisecond)
	if d := time.Since(began); d > time.Minute {
		t.Errorf("waited %v", d)
	}
	check(t, e.Close())
}
