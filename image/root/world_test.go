package root_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ulikunitz/xz"

	"lethe/image/root"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// section is one of an ELF file that a test makes.
type section struct {
	name string
	kind uint32
	data []byte
	link uint32
}

// elfFile makes an ELF file of the type (1 relocatable, 3 shared) with sections, and with a
// program header for an interpreter if there is one.
func elfFile(kind uint16, interpreter string, sections ...section) []byte {
	const head, phead, shead = 64, 56, 64
	names := []byte{0}
	var body bytes.Buffer
	start := head + phead
	body.WriteString(interpreter + "\x00")
	type placed struct{ name, offset, size int }
	var at []placed
	put := func(name string, data []byte) {
		at = append(at, placed{len(names), start + body.Len(), len(data)})
		names = append(names, name+"\x00"...)
		body.Write(data)
	}
	for _, s := range sections {
		put(s.name, s.data)
	}
	sections = append(slices.Clone(sections), section{name: ".shstrtab", kind: 3})
	put(".shstrtab", append(slices.Clone(names), ".shstrtab\x00"...))
	le := binary.LittleEndian
	b := make([]byte, start)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], kind)
	le.PutUint16(b[18:], 62) // EM_X86_64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], head)
	le.PutUint64(b[40:], uint64(start+body.Len()))
	le.PutUint16(b[52:], head)
	le.PutUint16(b[54:], phead)
	if interpreter != "" {
		le.PutUint16(b[56:], 1)
		le.PutUint32(b[head:], 3) // PT_INTERP
		le.PutUint64(b[head+8:], uint64(start))
		le.PutUint64(b[head+32:], uint64(len(interpreter)+1))
	}
	le.PutUint16(b[58:], shead)
	le.PutUint16(b[60:], uint16(len(sections)+1))
	le.PutUint16(b[62:], uint16(len(sections)))
	b = append(b, body.Bytes()...)
	b = append(b, make([]byte, shead)...)
	for i, s := range sections {
		h := make([]byte, shead)
		le.PutUint32(h, uint32(at[i].name))
		le.PutUint32(h[4:], s.kind)
		le.PutUint64(h[24:], uint64(at[i].offset))
		le.PutUint64(h[32:], uint64(at[i].size))
		le.PutUint32(h[40:], s.link)
		b = append(b, h...)
	}
	return b
}

// linked makes a program, or a library when there is no interpreter, with a dynamic section
// (debug/elf's tags by number: 1 NEEDED, 14 SONAME, 15 RPATH, 29 RUNPATH).
func linked(interpreter, soname string, needed []string, tags ...string) []byte {
	text := []byte{0}
	var dynamic []byte
	add := func(tag uint64, s string) {
		dynamic = binary.LittleEndian.AppendUint64(dynamic, tag)
		dynamic = binary.LittleEndian.AppendUint64(dynamic, uint64(len(text)))
		text = append(text, s+"\x00"...)
	}
	for _, n := range needed {
		add(1, n)
	}
	if soname != "" {
		add(14, soname)
	}
	for _, tag := range tags {
		n, value, _ := strings.Cut(tag, "=")
		add(map[string]uint64{"rpath": 15, "runpath": 29}[n], value)
	}
	dynamic = append(dynamic, make([]byte, 16)...)
	return elfFile(3, interpreter, section{".dynstr", 3, text, 0}, section{".dynamic", 6, dynamic, 1})
}

// module makes a kernel module that says this about itself.
func module(info ...string) []byte {
	return elfFile(1, "", section{".modinfo", 1, []byte(strings.Join(info, "\x00") + "\x00"), 0})
}

func pack(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := xz.NewWriter(&out)
	check(t, err)
	_, err = w.Write(b)
	check(t, err)
	check(t, w.Close())
	return out.Bytes()
}

// packed are modules that were made before.
var packed sync.Map

// small returns a module that needs nothing and drives one device, packed.
func small(name string) []byte {
	if b, ok := packed.Load(name); ok {
		return b.([]byte)
	}
	var out bytes.Buffer
	w, err := xz.WriterConfig{DictCap: 4096}.NewWriter(&out)
	if err == nil {
		_, err = w.Write(module("name="+name, "alias=pci:"+name))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err)
	}
	packed.Store(name, out.Bytes())
	return out.Bytes()
}

// file is one of a package that a test makes.
type file struct {
	mode    int64
	kind    byte // tar's; 0 is a regular file
	link    string
	content []byte
	uid     int
}

// debian makes a package.
func debian(t testing.TB, name string, files map[string]file) root.Package {
	t.Helper()
	archive := func(files map[string]file) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, p := range slices.Sorted(maps.Keys(files)) {
			f := files[p]
			if f.kind == 0 {
				f.kind = tar.TypeReg
			}
			check(t, w.WriteHeader(&tar.Header{Name: "./" + p, Typeflag: f.kind, Mode: f.mode, Size: int64(len(f.content)), Linkname: f.link, Uid: f.uid}))
			_, err := w.Write(f.content)
			check(t, err)
		}
		check(t, w.Close())
		return b.Bytes()
	}
	b := container(archive(map[string]file{"control": {content: []byte("Package: " + name + "\nVersion: 1\n")}, "postinst": {content: []byte("#!/bin/sh\nexit 1\n")}}), archive(files))
	return root.Package{Name: name, Version: "1", Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

// container makes a package of its control files and its files, tar archives both (deb(5)).
func container(control, data []byte) []byte {
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar", control}, {"data.tar", data}} {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", m.name, 0, 0, 0, "100644", len(m.data), m.data)
		if len(m.data)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

// world is packages and programs from which an image can be made, small ones.
type world struct {
	packages map[string]map[string]file
	programs map[string][]byte
	flavour  string
}

const (
	multiarch = "usr/lib/x86_64-linux-gnu/"
	loaderAt  = "/lib64/ld-linux-x86-64.so.2"
	kernelDir = "usr/lib/modules/1-amd64/"
)

// newWorld makes what the tables name: libraries and programs of a few bytes, all of which systemd
// needs, and modules that depend on nothing.
func newWorld(t testing.TB, flavour string) *world {
	w := &world{packages: map[string]map[string]file{}, flavour: flavour}
	var libraries []string
	picked := root.Picked()
	for _, pkg := range slices.Sorted(maps.Keys(picked)) {
		patterns := picked[pkg]
		files := map[string]file{"usr/share/doc/" + pkg + "/copyright": {mode: 0o644, content: []byte("free")}, "usr/bin/" + pkg + "-shell": {mode: 0o755, content: []byte("#!/bin/sh\n")}}
		w.packages[pkg] = files
		for _, p := range patterns {
			name, at := p[strings.LastIndex(p, "/")+1:], strings.TrimSuffix(p, "*")
			switch {
			case p == "usr/lib64/ld-linux-x86-64.so.2":
				files[p] = file{kind: tar.TypeSymlink, mode: 0o777, link: "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"}
			case p == multiarch+"ld-linux-x86-64.so.2":
				files[p] = file{mode: 0o755, content: linked("", name, nil)}
			case slices.Contains(root.Programs(), p):
				if p == "usr/sbin/nft" {
					p = "sbin/nft" // as packages had it before the merge of /sbin into /usr
				}
				files[p] = file{mode: 0o755, content: linked(loaderAt, "", []string{"libc.so.6"})}
			case strings.Contains(p, "/plugins/"):
				files[p] = file{mode: 0o644, content: linked("", "", []string{"libc.so.6"}, "runpath=/usr/lib/ipsec")}
			case strings.HasSuffix(p, "*"):
				files[at] = file{kind: tar.TypeSymlink, mode: 0o777, link: strings.TrimSuffix(name, "*") + ".9"}
				files[at+".9"] = file{mode: 0o755, content: linked("", strings.TrimSuffix(name, "*"), nil)}
				libraries = append(libraries, strings.TrimSuffix(name, "*"))
			case strings.Contains(p, ".so"):
				name = strings.ReplaceAll(name, "*", "1")
				files[strings.ReplaceAll(p, "*", "1")] = file{mode: 0o644, content: linked("", name, nil)}
				libraries = append(libraries, name)
			default:
				files[p] = file{mode: 0o644, content: []byte("text\n")}
			}
		}
	}
	w.packages["systemd"]["usr/lib/systemd/systemd"] = file{mode: 0o755, content: linked(loaderAt, "", libraries, "runpath=/usr/lib/x86_64-linux-gnu/systemd:/usr/lib/ipsec")}
	early, late := root.Modules(flavour)
	modules := map[string]file{}
	for _, m := range append(early, late...) {
		modules[w.module(m.Name)] = file{mode: 0o644, content: small(m.Name)}
	}
	w.packages["linux-modules-1-amd64"] = modules
	w.packages["linux-binary-1-amd64"] = map[string]file{kernelDir + "vmlinuz": {mode: 0o644, content: []byte("kernel")}}
	w.packages["linux-image-amd64"] = map[string]file{"usr/share/doc/x": {mode: 0o644}}
	w.programs = map[string][]byte{}
	for _, p := range []string{"lethe-init", "lethe-seal", "lethe-node"} {
		w.programs[p] = elfFile(2, "")
	}
	return w
}

// module returns where a module is.
func (w *world) module(name string) string {
	return kernelDir + "kernel/drivers/" + strings.ReplaceAll(name, "_", "-") + ".ko.xz"
}

func (w *world) input(t testing.TB) root.Input {
	in := root.Input{Flavour: w.flavour, Version: "20261123", Commit: "abc", Programs: w.programs}
	for _, name := range slices.Sorted(maps.Keys(w.packages)) {
		in.Packages = append(in.Packages, debian(t, name, w.packages[name]))
	}
	return in
}
