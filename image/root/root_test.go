package root_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"lethe/boot/kmod"
	"lethe/image/layout"
	"lethe/image/root"
	"lethe/image/tree"
)

func text(t testing.TB, tr *tree.Tree, p string) string {
	t.Helper()
	e := tr.Get(p)
	if e == nil {
		t.Fatalf("%s is missing", p)
	}
	b, err := e.Read()
	check(t, err)
	return string(b)
}

func TestMake(t *testing.T) {
	for _, flavour := range []string{root.VM, root.Hardware} {
		w := newWorld(t, flavour)
		r, err := root.Make(w.input(t))
		check(t, err)
		if string(r.Kernel) != "kernel" || !strings.Contains(string(r.OSRelease), "\nVARIANT_ID="+flavour+"\n") || text(t, r.Root, "usr/lib/os-release") != string(r.OSRelease) {
			t.Errorf("kernel %q, os-release %q", r.Kernel, r.OSRelease)
		}
		for p := range map[string]bool{"usr/share/doc": true, "usr/bin/systemd-shell": true, "boot": true, "postinst": true} {
			if r.Root.Get(p) != nil {
				t.Errorf("%s is in the root", p)
			}
		}
		if e := r.Root.Get(multiarch + "libc.so.6"); e.Mode != 0o644 || e.From != "libc6" {
			t.Errorf("libc: %v from %s", e.Mode, e.From)
		}
		if r.Initramfs.Get(layout.Init).Mode != 0o755 || r.Initramfs.Get(layout.Root) != nil || r.Root.Resolve("lib64/ld-linux-x86-64.so.2") == nil {
			t.Error("init, or the loader")
		}
		for _, at := range []string{layout.RootModules, layout.InitramfsModules} {
			tr := map[string]*tree.Tree{layout.RootModules: r.Root, layout.InitramfsModules: r.Initramfs}[at]
			if text(t, tr, at+"/"+layout.Cmdline) != r.Cmdline+"\n" {
				t.Error("another command line in", at)
			}
			checkModules(t, tr, at)
		}
		lab := w.input(t)
		lab.Lab = true
		if r2, err := root.Make(lab); err != nil || !strings.HasPrefix(r2.Cmdline, r.Cmdline+" ") || !strings.Contains(string(r2.OSRelease), "VARIANT_ID="+flavour+"-lab\n") {
			t.Errorf("lab: %v", err)
		}
	}
}

// checkModules reads a directory of modules as the programs of the image do.
func checkModules(t *testing.T, tr *tree.Tree, at string) {
	t.Helper()
	order, err := kmod.ParseNames([]byte(text(t, tr, at+"/"+layout.Order)))
	check(t, err)
	load, err := kmod.ParseNames([]byte(text(t, tr, at+"/"+layout.Load)))
	check(t, err)
	aliases, err := kmod.ParseAliases([]byte(text(t, tr, at+"/"+layout.Aliases)))
	check(t, err)
	for _, name := range load {
		if !slices.Contains(order, name) {
			t.Errorf("%s: %s is loaded, and has no place in the order", at, name)
		}
	}
	for _, a := range aliases {
		if !slices.Contains(order, a.Module) || slices.Contains(load, a.Module) {
			t.Errorf("%s: alias of %s", at, a.Module)
		}
	}
	if len(order) < 10 || len(load) < 3 || len(aliases) == 0 {
		t.Errorf("%s: %d modules, %d loaded, %d aliases", at, len(order), len(load), len(aliases))
	}
	for _, name := range order {
		if tr.Get(at+"/"+layout.Modules+"/"+name+".ko") == nil {
			t.Errorf("%s: %s is missing", at, name)
		}
	}
}

func TestModules(t *testing.T) {
	w := newWorld(t, root.VM)
	files := w.packages["linux-modules-1-amd64"]
	files[w.module("tun")] = file{mode: 0o644, content: pack(t, module("name=tun", "depends=udp-tunnel,base", "softdep=pre: helper nothing post: later", "alias=x"))}
	for name, depends := range map[string]string{"udp_tunnel": "base", "base": "", "helper": "base", "later": ""} {
		files[w.module(name)] = file{mode: 0o644, content: pack(t, module("name="+name, "depends="+depends, "alias=of "+name))}
	}
	files[w.module("unwanted")] = file{mode: 0o644, content: []byte("not even xz")}
	r, err := root.Make(w.input(t))
	check(t, err)
	order := text(t, r.Root, layout.RootModules+"/"+layout.Order)
	if !strings.HasPrefix(order, "base\nudp_tunnel\nhelper\ntun\n") || strings.Contains(order, "later") {
		t.Errorf("order %.80q", order)
	}
	if load := text(t, r.Root, layout.RootModules+"/"+layout.Load); !strings.HasPrefix(load, "tun\n") || !strings.HasSuffix(load, "\nhelper\n") || strings.Contains(load, "base") {
		t.Errorf("load %q", load)
	}
	if aliases := text(t, r.Root, layout.RootModules+"/"+layout.Aliases); strings.Contains(aliases, "tun") || strings.Contains(aliases, "base") || !strings.Contains(aliases, "alias pci:virtio_net virtio_net\n") {
		t.Errorf("aliases %q", aliases)
	}
}

func TestRefusals(t *testing.T) {
	ko := func(info ...string) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			w.packages["linux-modules-1-amd64"][w.module("tun")] = file{mode: 0o644, content: pack(t, module(info...))}
		}
	}
	put := func(pkg, at string, f file) func(*testing.T, *world) {
		return func(_ *testing.T, w *world) { w.packages[pkg][at] = f }
	}
	gone := func(pkg, at string) func(*testing.T, *world) {
		return func(_ *testing.T, w *world) { delete(w.packages[pkg], at) }
	}
	const nft = "usr/sbin/nft"
	program := func(needed []string, tags ...string) file {
		return file{mode: 0o755, content: linked(loaderAt, "", needed, tags...)}
	}
	damaged := linked(loaderAt, "", []string{"libc.so.6"})
	damaged[40], damaged[41] = 0xff, 0xff // where the sections are
	other := linked(loaderAt, "", nil)
	other[18] = 183 // EM_AARCH64
	shortInterpreter := linked(loaderAt, "", nil)
	shortInterpreter[64+8+7] = 0x7f // its offset
	for name, c := range map[string]struct {
		do   func(*testing.T, *world)
		want string
	}{
		"flavour":               {func(_ *testing.T, w *world) { w.flavour = "cloud" }, `flavour "cloud"`},
		"a package is missing":  {func(_ *testing.T, w *world) { delete(w.packages, "openvpn") }, "package openvpn has no usr/sbin/openvpn"},
		"a file is missing":     {gone("nftables", "sbin/nft"), "package nftables has no " + nft},
		"no kernel":             {func(_ *testing.T, w *world) { delete(w.packages, "linux-binary-1-amd64") }, "no kernel"},
		"no modules":            {func(_ *testing.T, w *world) { delete(w.packages, "linux-modules-1-amd64") }, "none of its modules"},
		"a second kernel":       {put("linux-modules-1-amd64", "usr/lib/modules/2/vmlinuz", file{mode: 0o644}), "a second kernel"},
		"a module twice":        {put("linux-modules-1-amd64", kernelDir+"x/tun.ko.xz", file{mode: 0o644}), "module tun stands in"},
		"no module":             {func(_ *testing.T, w *world) { delete(w.packages["linux-modules-1-amd64"], w.module("tun")) }, "there is no module tun"},
		"no early module":       {func(_ *testing.T, w *world) { delete(w.packages["linux-modules-1-amd64"], w.module("loop")) }, "there is no module loop"},
		"a module's module":     {ko("name=tun", "depends=nothing"), "there is no module nothing, needed by [tun]"},
		"a circle":              {ko("name=tun", "depends=tun"), "module tun needs itself"},
		"a soft circle":         {ko("name=tun", "softdep=pre: tun"), "module tun needs itself"},
		"another module's name": {ko("name=tap"), "module tun says that it is tap"},
		"a module without name": {ko("license=GPL"), "module tun: no name"},
		"a module not packed":   {func(_ *testing.T, w *world) { w.packages["linux-modules-1-amd64"][w.module("tun")] = file{mode: 0o644} }, "module tun: "},
		"a module that is none": {func(t *testing.T, w *world) {
			w.packages["linux-modules-1-amd64"][w.module("tun")] = file{mode: 0o644, content: pack(t, []byte("text"))}
		}, "module tun: "},
		"no init":              {func(_ *testing.T, w *world) { delete(w.programs, "lethe-init") }, "program lethe-init is missing"},
		"set-user-ID":          {put("nftables", "sbin/nft", file{mode: 0o4755}), "with mode 4755"},
		"writable":             {put("nftables", "sbin/nft", file{mode: 0o775}), "with mode 775"},
		"somebody's":           {put("nftables", "sbin/nft", file{mode: 0o755, uid: 1}), "belongs to 1:0"},
		"a hard link":          {put("nftables", "sbin/nft", file{mode: 0o755, kind: tar.TypeLink, link: "usr/x"}), "neither a regular file nor"},
		"a script":             {put("nftables", "sbin/nft", file{mode: 0o755, content: []byte("#!/bin/sh\n")}), "nft, from nftables, is a script"},
		"not executable":       {put("nftables", "sbin/nft", file{mode: 0o644, content: linked(loaderAt, "", nil)}), "program " + nft + " is missing"},
		"another executable":   {put("netbase", "etc/protocols", file{mode: 0o755, content: []byte("x")}), "etc/protocols, from netbase, is executable"},
		"a dangling link":      {put("netbase", "etc/protocols", file{kind: tar.TypeSymlink, mode: 0o777, link: "nowhere"}), "leads to nowhere"},
		"a library is missing": {put("nftables", "sbin/nft", program([]string{"libedit.so.2", "libnone.so.1"})), nft + " needs libnone.so.1, which is missing"},
		"a library for nobody": {put("systemd", "usr/lib/systemd/systemd", program(nil)), "no program needs"},
		"no loader":            {put("nftables", "sbin/nft", file{mode: 0o755, content: linked("/lib/ld.so", "", nil)}), nft + " needs /lib/ld.so, which is missing"},
		"an old path":          {put("nftables", "sbin/nft", program(nil, "rpath=/usr/lib/x")), "the old kind of path"},
		"a path to elsewhere":  {put("nftables", "sbin/nft", program(nil, "runpath=$ORIGIN")), `it looks for libraries in "$ORIGIN"`},
		"for another machine":  {put("nftables", "sbin/nft", file{mode: 0o755, content: other}), "it is for EM_AARCH64"},
		"damaged":              {put("nftables", "sbin/nft", file{mode: 0o755, content: damaged}), nft + ": "},
		"loader's name is not": {put("nftables", "sbin/nft", file{mode: 0o755, content: shortInterpreter}), nft + ": "},
		"a program that opens": {put("charon-systemd", "usr/sbin/charon-systemd", file{mode: 0o755, content: []byte("text")}), "usr/sbin/charon-systemd, which opens"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, root.VM)
			c.do(t, w)
			_, err := root.Make(w.input(t))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	w := newWorld(t, root.VM)
	in := w.input(t)
	broken := errors.New("the disk is broken")
	in.Packages[0].Open = func() (io.ReadCloser, error) { return nil, broken }
	in.Packages[0].Name = "openvpn"
	if _, err := root.Make(in); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	in.Packages[0].Open = func() (io.ReadCloser, error) { return io.NopCloser(iotest.ErrReader(broken)), nil }
	if _, err := root.Make(in); err == nil {
		t.Error("a package that cannot be read was accepted")
	}
}

// TestInspect puts into a tree what Make would not let in.
func TestInspect(t *testing.T) {
	for name, c := range map[string]struct {
		e    tree.Entry
		want string
	}{
		"somebody's file":      {tree.Entry{Path: "x", Mode: 0o644, UID: 7, Open: tree.Bytes(nil)}, "belongs to 7:0"},
		"a device":             {tree.Entry{Path: "dev/x", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600}, "is neither file nor directory"},
		"a set-group-ID file":  {tree.Entry{Path: "x", Mode: fs.ModeSetgid | 0o755, Open: tree.Bytes(nil)}, "has mode g"},
		"a writable directory": {tree.Entry{Path: "x", Mode: fs.ModeDir | 0o777}, "is a directory with mode"},
		"a directory's group":  {tree.Entry{Path: "x", Mode: fs.ModeDir | fs.ModeSetgid | 0o755}, "is a directory with mode"},
		"another size":         {tree.Entry{Path: "x", Mode: 0o644, Size: 3, Open: tree.Bytes(nil)}, "another size"},
	} {
		r, err := root.Make(newWorld(t, root.VM).input(t))
		check(t, err)
		check(t, root.Inspect(r.Root))
		c.e.From = "a test"
		check(t, r.Root.Add(c.e))
		if err := root.Inspect(r.Root); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestTables(t *testing.T) {
	for i, why := range root.Reasons() {
		if strings.TrimSpace(why) == "" {
			t.Errorf("row %d has no reason", i)
		}
	}
	r, err := root.Make(newWorld(t, root.VM).input(t))
	check(t, err)
	seen := map[string]bool{}
	for p := range strings.FieldsSeq(r.Cmdline) {
		key, _, _ := strings.Cut(p, "=")
		if seen[key] || strings.ContainsAny(p, `"'`) {
			t.Errorf("parameter %s stands twice, or needs quotes", key)
		}
		seen[key] = true
	}
	for _, p := range []string{"init_on_alloc=1", "init_on_free=1", "lockdown=integrity", "module.sig_enforce=1", "nohibernate", "systemd.import_credentials=no", "net.ifnames=0", "efi_pstore.pstore_disable=1", "erst_disable", "audit=0"} {
		if !slices.Contains(strings.Fields(r.Cmdline), p) {
			t.Errorf("no %s", p)
		}
	}
	if strings.Contains(r.Cmdline, "console=") {
		t.Error("a release has a console")
	}
}

func TestUsers(t *testing.T) {
	r, err := root.Make(newWorld(t, root.VM).input(t))
	check(t, err)
	row := regexp.MustCompile(`^[a-z0-9-]+:\*:(\d+):(\d+)::/:/usr/sbin/nologin$`)
	ids := map[string]bool{}
	for line := range strings.Lines(text(t, r.Root, "etc/passwd")) {
		m := row.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil || m[1] != m[2] || ids[m[1]] {
			t.Errorf("passwd: %q", line)
			continue
		}
		ids[m[1]] = true
	}
	for _, id := range []string{"0", "998", "64100", "64101", "64102", "64103", "65534"} {
		if !ids[id] {
			t.Errorf("no user %s", id)
		}
	}
	if strings.Count(text(t, r.Root, "etc/group"), "\n") != len(ids) || r.Root.Get("etc/shadow") != nil {
		t.Error("groups, or a file of passwords")
	}
	for _, bad := range []string{"u x", "g x 1 y", "u x y z", "u x 0 z", "u x 99999999999 z"} {
		if got, err := root.ParseUsers([]byte(bad + "\n")); err == nil {
			t.Errorf("%q: accepted as %v", bad, got)
		}
	}
}

// TestUnits reads the units: what they start, wait for and run as is there.
func TestUnits(t *testing.T) {
	r, err := root.Make(newWorld(t, root.VM).input(t))
	check(t, err)
	const dir = "usr/lib/systemd/system"
	passwd := text(t, r.Root, "etc/passwd")
	var names []string
	for e := range r.Root.All() {
		if path.Dir(e.Path) == dir && !e.Mode.IsDir() {
			names = append(names, path.Base(e.Path))
		}
	}
	want := []string{"basic.target", "default.target", "final.target", "lethe-node.service", "lethe-seal.service", "lethe.target",
		"network-pre.target", "network.target", "poweroff.target", "reboot.target", "shutdown.target", "sysinit.target",
		"systemd-networkd.service", "systemd-poweroff.service", "systemd-reboot.service", "umount.target"}
	if !slices.Equal(names, want) {
		t.Errorf("units %v, want %v", names, want)
	}
	for _, name := range names {
		if r.Root.Get(dir+"/"+name).From != "lethe" || !strings.HasSuffix(name, ".service") && name != "lethe.target" {
			continue
		}
		for line := range strings.Lines(text(t, r.Root, dir+"/"+name)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "ExecStart":
				if e := r.Root.Resolve(strings.Fields(value)[0]); e == nil || e.Mode != 0o755 {
					t.Errorf("%s starts %s", name, value)
				}
			case "User":
				if !strings.Contains(passwd, "\n"+value+":") {
					t.Errorf("%s runs as %s", name, value)
				}
			case "Requires", "Wants", "After", "Before", "Conflicts":
				for u := range strings.FieldsSeq(value) {
					if !slices.Contains(names, u) {
						t.Errorf("%s: %s %s", name, key, u)
					}
				}
			case "StandardOutput", "StandardError":
				if value != "null" && value != "journal" { // there is no journal
					t.Errorf("%s: %s", name, line)
				}
			}
		}
	}
	for _, gone := range []string{"usr/lib/systemd/system-generators", "usr/lib/systemd/systemd-journald", "usr/lib/systemd/systemd-udevd", "etc/systemd/system", "usr/lib/udev"} {
		if r.Root.Get(gone) != nil {
			t.Errorf("%s is there", gone)
		}
	}
}

// TestReproducible makes an image twice, with packages and programs in another order.
func TestReproducible(t *testing.T) {
	var first []byte
	for i := range 2 {
		in := newWorld(t, root.Hardware).input(t)
		if i == 1 {
			slices.Reverse(in.Packages)
		}
		r, err := root.Make(in)
		check(t, err)
		var b bytes.Buffer
		check(t, r.Root.WriteTar(&b, time.Unix(0, 0)))
		check(t, r.Initramfs.WriteCPIO(&b, time.Unix(0, 0)))
		if i == 0 {
			first = b.Bytes()
		} else if !bytes.Equal(first, b.Bytes()) {
			t.Error("the order of packages shows")
		}
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(module("name=tun", "depends=a,b", "softdep=pre: x post: y", "alias=z", "firmware=f"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, _, _, _, _, err := root.ParseModinfo(b)
		if err == nil && (name == "" || strings.Contains(name, "\x00")) {
			t.Errorf("name %q", name)
		}
	})
}

func FuzzObject(f *testing.F) {
	f.Add(linked(loaderAt, "", []string{"libc.so.6"}, "runpath=/usr/lib/x"))
	f.Add(linked("", "libc.so.6", nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _, runpath, err := root.ParseObject(b)
		for _, p := range runpath {
			if err == nil && !strings.HasPrefix(p, "/usr/lib/") {
				t.Errorf("path %q", p)
			}
		}
	})
}

func TestModinfo(t *testing.T) {
	name, depends, before, alias, firmware, err := root.ParseModinfo(module("license=GPL", "name=a_b", "depends=c-d,,e", "softdep=pre: f g post: h", "alias=pci:*", "alias=x", "firmware=i/j"))
	if err != nil || name != "a_b" || !slices.Equal(depends, []string{"c_d", "e"}) || !slices.Equal(before, []string{"f", "g"}) || len(alias) != 2 || !slices.Equal(firmware, []string{"i/j"}) {
		t.Error(name, depends, before, alias, firmware, err)
	}
	if _, _, _, _, _, err := root.ParseModinfo(elfFile(1, "")); err == nil {
		t.Error("a module that says nothing was accepted")
	}
}
