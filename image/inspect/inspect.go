// Package inspect says what is inside an image, from the image itself: nothing is
// started, mounted or believed.
//
// [Look] goes through the layers that package medium opens and gives a [Report]: what
// the image is, its executables, units with their sandboxes, listeners, users, kernel modules
// and sizes. From which package a file comes is not in the image; a [Listing] says so, which
// the builder leaves beside it, and which counts for a file only when digest and path agree. [Report.Text]
// writes the report for people.
package inspect

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"io/fs"
	"path"
	"slices"
	"strings"

	"lethe/image/medium"
	"lethe/image/scan"
	"lethe/image/tree"
)

// Report is what is inside an image.
type Report struct {
	Flavour  string   `json:"flavour"`
	Version  string   `json:"version"`
	Commit   string   `json:"commit,omitempty"`
	Name     string   `json:"name"`
	Kernel   string   `json:"kernel"`
	Cmdline  []string `json:"cmdline"`
	Size     int64    `json:"size"`   // bytes of the image
	Signed   bool     `json:"signed"` // for Secure Boot; by whom is for verify to say
	Sections []Size   `json:"sections"`
	Root     Root     `json:"root"`
	Rest     Rest     `json:"rest"`

	Packages    []Package         `json:"packages"`             // those that files come from
	GoModules   map[string]string `json:"go_modules,omitempty"` // versions of what is linked into our programs, by path
	Executables []Executable      `json:"executables"`
	SetUID      []string          `json:"set_uid"`      // files with set-user-id or set-group-id
	Interpreter []string          `json:"interpreters"` // scripts, and libraries that run them
	Attributes  uint32            `json:"attributes"`
	Listeners   []Listener        `json:"listeners"`
	Modules     Modules           `json:"modules"`
	Units       []Unit            `json:"units"`
	Users       []User            `json:"users"`
	Directories []Size            `json:"directories"`
	Files       []File            `json:"files,omitempty"`
	Secrets     []scan.Finding    `json:"secrets,omitempty"`
}

// Root is the root file system.
type Root struct {
	SHA256   string `json:"sha256"` // that the initramfs asks for
	Right    bool   `json:"right"`  // the root has it
	Size     int64  `json:"size"`   // bytes, packed
	Packing  string `json:"packing"`
	Unpacked int64  `json:"unpacked"` // bytes of all files
	Files    int    `json:"files"`    // regular ones
}

// Rest is all of the medium but the boot image.
type Rest struct {
	SHA256 string `json:"sha256"` // that the initramfs asks for
	Right  bool   `json:"right"`  // the medium has it
}

// Size is how large a part is.
type Size struct {
	Name  string `json:"name"`
	Size  int64  `json:"size"`
	Files int    `json:"files,omitempty"`
}

// Package is a package, or what else files come from.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Size    int64  `json:"size"`
	Files   int    `json:"files"`
}

// Executable is a file that the kernel would start.
type Executable struct {
	Path    string `json:"path"`
	Package string `json:"package,omitempty"`
	Size    int64  `json:"size"`
	Kind    string `json:"kind"` // "dynamic", "static", "script" or "other"
}

// Modules are the kernel modules, by name.
type Modules struct {
	Initramfs     []string `json:"initramfs"`
	Root          []string `json:"root"`
	InitramfsSize int64    `json:"initramfs_size"`
	RootSize      int64    `json:"root_size"`
}

// User is a line of passwd(5).
type User struct {
	Name  string `json:"name"`
	ID    string `json:"id"`
	Shell string `json:"shell"`
}

// File is one file of the root or the initramfs.
type File struct {
	Layer   string `json:"layer"`
	Path    string `json:"path"`
	Mode    string `json:"mode"`
	UID     uint32 `json:"uid"`
	GID     uint32 `json:"gid"`
	Size    int64  `json:"size"`
	Link    string `json:"link,omitempty"`
	SHA256  string `json:"sha256,omitempty"`
	Package string `json:"package,omitempty"`
}

// unknown is what a file comes from when nothing says so.
const unknown = "?"

// Look looks into an image. The listing may be empty.
func Look(m *medium.Medium, l Listing) (*Report, error) {
	r := &Report{Size: m.Size, Kernel: string(m.Section(medium.Uname)), Cmdline: strings.Fields(string(m.Section(medium.Cmdline))), Attributes: m.FS.Xattrs,
		SetUID: []string{}, Interpreter: []string{}, Executables: []Executable{}, Listeners: []Listener{}, Units: []Unit{}, Users: []User{}, Packages: []Package{}, GoModules: map[string]string{}}
	release := keys(m.Section(medium.OSRelease))
	r.Flavour, r.Version, r.Commit, r.Name = release["VARIANT_ID"], release["VERSION_ID"], release["BUILD_ID"], release["PRETTY_NAME"]
	for _, s := range m.PE.Sections() {
		r.Sections = append(r.Sections, Size{Name: s.Name, Size: int64(len(s.Data))})
	}
	table := m.PE.Table()
	r.Signed = len(bytes.Trim(m.Boot[table.Offset:], "\x00")) > 0
	sum, err := m.RootSum()
	if err != nil {
		return nil, err
	}
	r.Root = Root{SHA256: hex.EncodeToString(m.Digest.SHA256[:]), Right: sum == m.Digest.SHA256, Size: m.Digest.Size, Packing: m.FS.Compression.String()}
	rest, err := m.RestSum()
	if err != nil {
		return nil, err
	}
	r.Rest = Rest{hex.EncodeToString(m.Rest.SHA256[:]), rest == m.Rest.SHA256}
	g := gather{r: r, listing: l, packages: map[string]*Package{}, directories: map[string]*Size{}}
	for _, layer := range []struct {
		name string
		tree *tree.Tree
	}{{scan.Root, m.Files}, {scan.Initramfs, m.Initramfs}} {
		for e := range layer.tree.All() {
			if err := g.file(layer.name, e); err != nil {
				return nil, err
			}
		}
	}
	g.finish()
	r.Units = units(m.Files)
	r.Users = users(m.Files)
	r.Listeners = listeners(m.Files, r.Executables)
	return r, nil
}

// gather goes through the files.
type gather struct {
	r           *Report
	listing     Listing
	packages    map[string]*Package
	directories map[string]*Size
}

func (g *gather) file(layer string, e *tree.Entry) error {
	f := File{Layer: layer, Path: e.Path, Mode: e.Mode.String(), UID: e.UID, GID: e.GID, Size: e.Size, Link: e.Link}
	if e.Mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 && !e.Mode.IsDir() {
		g.r.SetUID = append(g.r.SetUID, e.Path)
	}
	if e.Mode.IsRegular() {
		b, err := e.Read()
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		f.SHA256 = hex.EncodeToString(sum[:])
		f.Package = g.listing.of(layer, f)
		g.regular(layer, e, f, b)
	}
	g.r.Files = append(g.r.Files, f)
	return nil
}

func (g *gather) regular(layer string, e *tree.Entry, f File, b []byte) {
	p := g.packages[f.Package]
	if p == nil {
		p = &Package{Name: f.Package, Version: g.listing.Versions[f.Package]}
		g.packages[f.Package] = p
	}
	p.Size += e.Size
	p.Files++
	if layer == scan.Root {
		g.r.Root.Unpacked += e.Size
		g.r.Root.Files++
		d := g.directories[directory(e.Path)]
		if d == nil {
			d = &Size{Name: directory(e.Path)}
			g.directories[d.Name] = d
		}
		d.Size += e.Size
		d.Files++
	}
	if name, ok := strings.CutSuffix(path.Base(e.Path), ".ko"); ok {
		m := &g.r.Modules
		if layer == scan.Root {
			m.Root, m.RootSize = append(m.Root, name), m.RootSize+e.Size
		} else {
			m.Initramfs, m.InitramfsSize = append(m.Initramfs, name), m.InitramfsSize+e.Size
		}
	}
	kind := executable(b)
	if kind == script || slices.ContainsFunc(interpreters, func(name string) bool { return strings.HasPrefix(path.Base(e.Path), name) }) {
		g.r.Interpreter = append(g.r.Interpreter, e.Path)
	}
	if e.Mode&0o111 == 0 || kind == library {
		return
	}
	at := e.Path
	if layer == scan.Initramfs {
		at = scan.Initramfs + ":" + at
	}
	g.r.Executables = append(g.r.Executables, Executable{Path: at, Package: f.Package, Size: e.Size, Kind: kind})
	if info, err := buildinfo.Read(bytes.NewReader(b)); err == nil {
		g.r.GoModules["std"] = info.GoVersion
		for _, m := range info.Deps {
			g.r.GoModules[m.Path] = m.Version
		}
	}
}

// interpreters are how libraries and programs begin that run scripts.
var interpreters = []string{"libpython", "python", "libperl", "perl", "liblua", "lua", "libruby", "libmozjs", "libjavascriptcore", "libguile", "libtcl", "bash", "dash", "busybox", "sh.", "awk", "mawk", "gawk", "sed."}

// finish sorts what was gathered.
func (g *gather) finish() {
	for _, p := range g.packages {
		g.r.Packages = append(g.r.Packages, *p)
	}
	slices.SortFunc(g.r.Packages, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	for _, d := range g.directories {
		g.r.Directories = append(g.r.Directories, *d)
	}
	slices.SortFunc(g.r.Directories, func(a, b Size) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(g.r.Modules.Root)
	slices.Sort(g.r.Modules.Initramfs)
}

// directory returns the first three parts of a file's directory.
func directory(p string) string {
	parts := strings.Split(path.Dir(p), "/")
	return strings.Join(parts[:min(len(parts), 3)], "/")
}

// users reads passwd(5).
func users(t *tree.Tree) []User {
	all := []User{}
	for line := range lines(t, "etc/passwd") {
		if f := strings.Split(line, ":"); len(f) == 7 {
			all = append(all, User{f[0], f[2], f[6]})
		}
	}
	return all
}

// lines returns a file's lines; none when there is no such file.
func lines(t *tree.Tree, p string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		e := t.Resolve(p)
		if e == nil || !e.Mode.IsRegular() || e.Size > 1<<20 {
			return
		}
		b, err := e.Read()
		if err != nil {
			return
		}
		for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
			if !yield(s.Text()) {
				return
			}
		}
	}
}

// keys reads os-release(5).
func keys(b []byte) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			all[k] = strings.Trim(v, `"'`)
		}
	}
	return all
}
