package lock

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/dirhash"

	"lethe/fault"
	"lethe/image/deb"
)

// toolchainModule is the module as which Go distributes its toolchains
// (go.dev/doc/toolchain).
const toolchainModule = "golang.org/toolchain"

// publicSumDB is the key of Go's checksum database, as every Go command holds it
// (cmd/go/internal/modfetch/key.go).
const publicSumDB = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"

// Bounds of what the module proxy may send. The toolchain has 72 MB.
const (
	maxZip = 512 << 20
	maxMod = 16 << 20
)

func digest(b []byte) [sha256.Size]byte { return sha256.Sum256(b) }

// parseGoSum reads go.sum: lines of path, version and h1: hash, where the
// version of a go.mod file ends in /go.mod.
func parseGoSum(b []byte) ([]Module, error) {
	var all []Module
	at := map[string]int{}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || !strings.HasPrefix(fields[2], "h1:") {
			return nil, fmt.Errorf("line %.100q", line)
		}
		version, mod := strings.CutSuffix(fields[1], "/go.mod")
		if module.Check(fields[0], version) != nil {
			return nil, fmt.Errorf("line %.100q", line)
		}
		key := fields[0] + " " + version
		i, ok := at[key]
		if !ok {
			i = len(all)
			at[key] = i
			all = append(all, Module{Path: fields[0], Version: version})
		}
		sum := &all[i].Sum
		if mod {
			sum = &all[i].ModSum
		}
		if *sum != "" {
			return nil, fmt.Errorf("%s stands twice", key)
		}
		*sum = fields[2]
	}
	return all, nil
}

// toolchain asks the checksum database for the hash of the toolchain.
func (m *Maker) toolchain(ctx context.Context) (Module, error) {
	t := Module{Path: toolchainModule, Version: fmt.Sprintf("v0.0.1-%s.linux-%s", m.Plan.Toolchain, m.Plan.Architecture)}
	ops := &sumOps{ctx: ctx, m: m}
	lines, err := sumdb.NewClient(ops).Lookup(t.Path, t.Version)
	if ops.err != nil { // that of the network says more
		return t, ops.err
	}
	if err != nil {
		return t, fault.Wrap(fault.Untrusted, "Go's checksum database: "+err.Error(), err).WithHint("try another module proxy: --go-proxy URL")
	}
	for _, line := range lines {
		if sum, ok := strings.CutPrefix(line, t.Path+" "+t.Version+" "); ok {
			t.Sum = sum
			return t, nil
		}
	}
	return t, fault.New(fault.NotFound, "Go's checksum database does not know the toolchain "+m.Plan.Toolchain).WithHint("name a released one in image/lock/plan.go")
}

// sumOps lets the checksum database's client work through the module proxy, as
// the go command does (golang.org/ref/mod#checksum-database).
type sumOps struct {
	ctx context.Context
	m   *Maker
	err error // of the network
}

// key returns the name and the whole of the database's verifier key.
func (o *sumOps) key() (name, key string) {
	key = o.m.SumDB
	if key == "" {
		key = publicSumDB
	}
	name, _, _ = strings.Cut(key, "+")
	return name, key
}

// ReadRemote implements sumdb.ClientOps.
func (o *sumOps) ReadRemote(path string) ([]byte, error) {
	name, _ := o.key()
	b, err := o.m.Net.bytes(o.ctx, o.m.Net.Proxy+"/sumdb/"+name+path, maxMod)
	if err != nil {
		o.err = err
	}
	return b, err
}

// ReadConfig implements sumdb.ClientOps: it knows the key, and no earlier tree.
func (o *sumOps) ReadConfig(file string) ([]byte, error) {
	if file == "key" {
		_, key := o.key()
		return []byte(key), nil
	}
	return nil, nil
}

// WriteConfig implements sumdb.ClientOps.
func (*sumOps) WriteConfig(string, []byte, []byte) error { return nil }

// ReadCache implements sumdb.ClientOps: there is none.
func (*sumOps) ReadCache(string) ([]byte, error) { return nil, errors.New("no cache") }

// WriteCache implements sumdb.ClientOps.
func (*sumOps) WriteCache(string, []byte) {}

// Log implements sumdb.ClientOps.
func (*sumOps) Log(string) {}

// SecurityError implements sumdb.ClientOps; Lookup returns the error as well.
func (*sumOps) SecurityError(string) {}

// moduleURL returns where the proxy has a file of a module
// (golang.org/ref/mod#goproxy-protocol).
func (n *Network) moduleURL(m Module, ending string) (string, error) {
	path, err := module.EscapePath(m.Path)
	if err != nil {
		return "", fault.Wrap(fault.Invalid, "module "+m.Path+" has no place on a proxy", err)
	}
	version, err := module.EscapeVersion(m.Version)
	if err != nil {
		return "", fault.Wrap(fault.Invalid, "module "+m.Path+" has a version that is none", err)
	}
	return n.Proxy + "/" + path + "/@v/" + version + ending, nil
}

// module fills in the files of w, whose hashes are known, and brings them into
// the store. What the old lock names and the store has is hashed again, not fetched.
func (m *Maker) module(ctx context.Context, w *Module, known Module) (err error) {
	if w.Sum != "" {
		w.Zip, err = m.hashed(ctx, *w, ".zip", known.Zip, maxZip, func(b []byte) bool { return zipHash(b) == w.Sum })
	}
	if err == nil && w.ModSum != "" {
		w.Mod, err = m.hashed(ctx, *w, ".mod", known.Mod, maxMod, func(b []byte) bool { return modHash(b) == w.ModSum })
	}
	return err
}

func (m *Maker) hashed(ctx context.Context, w Module, ending string, known deb.File, limit int64, right func([]byte) bool) (f deb.File, err error) {
	if b, err := m.Store.Get(known.SHA256); err == nil && right(b) {
		return known, nil
	}
	url, err := m.Net.moduleURL(w, ending)
	if err != nil {
		return f, err
	}
	b, err := m.Net.bytes(ctx, url, limit)
	if err != nil {
		return f, err
	}
	if !right(b) {
		return f, fault.New(fault.Untrusted, fmt.Sprintf("%s %s: what the module proxy sends for %s has another hash than it must", w.Path, w.Version, ending)).
			WithHint("try another module proxy: --go-proxy URL")
	}
	d, err := m.Store.Add(ctx, b)
	return deb.File{Size: int64(len(b)), SHA256: d}, err
}

// zipHash is the h1: hash of a module's zip file, or nothing.
func zipHash(b []byte) string {
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return ""
	}
	files := map[string]*zip.File{}
	var names []string
	for _, f := range z.File {
		files[f.Name] = f
		names = append(names, f.Name)
	}
	if len(files) != len(names) {
		return "" // a name stands twice
	}
	sum, err := dirhash.Hash1(names, func(name string) (io.ReadCloser, error) { return files[name].Open() })
	if err != nil {
		return ""
	}
	return sum
}

// modHash is the h1: hash of a go.mod file, or nothing.
func modHash(b []byte) string {
	sum, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err != nil {
		return ""
	}
	return sum
}

// CheckGoSum says whether the lock was made for this go.sum.
func (l *Lock) CheckGoSum(b []byte) error {
	if deb.Digest(digest(b)) == l.GoSum {
		return nil
	}
	wanted, _ := parseGoSum(b)
	have := map[string]bool{}
	for _, m := range l.Modules {
		have[m.Path+" "+m.Version+" "+m.Sum] = true
	}
	text := "go.sum is not the one that " + FileName + " was made for"
	if i := slices.IndexFunc(wanted, func(w Module) bool { return !have[w.Path+" "+w.Version+" "+w.Sum] }); i >= 0 {
		text += fmt.Sprintf(": it has %s %s", wanted[i].Path, wanted[i].Version)
	}
	return fault.New(fault.Conflict, text).WithHint("make the lock anew: lethe-image lock")
}
