// Package archivetest is a small Debian archive, Go module proxy and checksum
// database on the loopback interface, signed by keys of its own, for tests of
// the image's inputs. It is real in all that lethe-image reads: signatures,
// indexes, digests, ranges. A test changes files to see what happens.
package archivetest

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/ulikunitz/xz"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/sumdb/note"

	"lethe/image/lock"
)

// Now is the time at which everything in the archive is fresh.
var Now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// Archive is the whole of it. It is safe for concurrent use.
type Archive struct {
	URL     string // of a root that has debian, debian-security and go below it
	Keyring []byte
	SumDB   string // verifier key
	GoSum   []byte
	Plan    lock.Plan

	mu     sync.Mutex
	files  map[string][]byte // by path from URL, without a slash before
	answer Answer

	key    *openpgp.Entity
	server *httptest.Server
	sums   http.Handler
}

// Answer is asked before the files; it returns whether it has answered.
type Answer func(w http.ResponseWriter, r *http.Request) bool

// Suite is one suite to publish.
type Suite struct {
	Name, Archive     string
	Date, Until       string // as in Release; Until may be empty
	Packages, Sources string // indexes
}

// New starts an archive with a plan that resolves in it.
func New() (*Archive, error) {
	config := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return Now.AddDate(0, -6, 0) }}
	key, err := openpgp.NewEntity("archive", "", "archive@example", config)
	if err != nil {
		return nil, err
	}
	var ring bytes.Buffer
	if err := key.Serialize(&ring); err != nil {
		return nil, err
	}
	signer, verifier, err := note.GenerateKey(nil, "sums.example")
	if err != nil {
		return nil, err
	}
	a := &Archive{Keyring: ring.Bytes(), SumDB: verifier, files: map[string][]byte{}, key: key}
	a.server = httptest.NewServer(a)
	a.URL = a.server.URL
	a.Plan = lock.Plan{Architecture: "amd64", Toolchain: "go1.26.8", Backported: []string{"kernel"},
		Suites: []lock.SuiteSpec{{Name: "trixie", Archive: lock.Main}, {Name: "trixie-security", Archive: lock.Security}, {Name: "trixie-backports", Archive: lock.Main, Backports: true}},
		Sets: []lock.Set{
			{Name: "vm", Want: []lock.Entry{{Name: "app", Why: "it serves"}, {Name: "kernel", Why: "it boots"}}, Without: []lock.Entry{{Name: "debconf", Why: "nothing is installed"}}},
			{Name: "tools", Want: []lock.Entry{{Name: "lib", Why: "it is tested with"}}},
		}}
	return a, errors.Join(a.modules(signer), a.PublishAll())
}

// Close stops the server.
func (a *Archive) Close() { a.server.Close() }

// Set puts a file up, or takes it away when b is nil. The path is from URL,
// without a slash before.
func (a *Archive) Set(path string, b []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b == nil {
		delete(a.files, path)
		return
	}
	a.files[path] = b
}

// Files returns all files by path.
func (a *Archive) Files() map[string][]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.files)
}

// Intercept lets answer have every request first; nil ends that.
func (a *Archive) Intercept(answer Answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

// ServeHTTP implements http.Handler.
func (a *Archive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/")
	a.mu.Lock()
	b, ok := a.files[path]
	answer := a.answer
	a.mu.Unlock()
	switch {
	case answer != nil && answer(w, r):
	case ok:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	case strings.HasPrefix(path, "go/sumdb/sums.example/"):
		http.StripPrefix("/go/sumdb/sums.example", a.sums).ServeHTTP(w, r)
	default:
		http.NotFound(w, r)
	}
}

// Package makes a file of the archive and returns its paragraph of an index.
func (a *Archive) Package(archive, name, version, fields string) string {
	content := []byte(strings.Repeat("the package "+name+" "+version+"\n", 500))
	path := "pool/main/" + name + "_" + version + "_amd64.deb"
	a.Set(archive+"/"+path, content)
	return fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\n%sFilename: %s\nSize: %d\nSHA256: %x\n\n", name, version, fields, path, len(content), sha256.Sum256(content))
}

// Source makes a source package and returns its paragraph of an index.
func (a *Archive) Source(archive, name, version string) string {
	text := fmt.Sprintf("Package: %s\nVersion: %s\nDirectory: pool/main\nChecksums-Sha256:\n", name, version)
	for _, file := range []string{name + "_" + version + ".tar.xz", name + "_" + version + ".dsc"} {
		content := []byte("the source " + file)
		a.Set(archive+"/pool/main/"+file, content)
		text += fmt.Sprintf(" %x %d %s\n", sha256.Sum256(content), len(content), file)
	}
	return text + "\n"
}

// PublishAll publishes the suites of the plan.
func (a *Archive) PublishAll() error {
	const date, until = "Sun, 22 Nov 2026 02:09:05 UTC", "Sun, 29 Nov 2026 02:09:05 UTC"
	return errors.Join(
		a.Publish(Suite{"trixie", lock.Main, date, "",
			a.Package("debian", "app", "1.0+b~1", "Source: app-src (1.0)\nDepends: lib (>= 2), debconf, left | right\n") + a.Package("debian", "lib", "1.0", "") +
				a.Package("debian", "left", "1.0", "Source: app-src\n") + a.Package("debian", "right", "1.0", "") + a.Package("debian", "kernel", "1.0", ""),
			a.Source("debian", "app-src", "1.0") + a.Source("debian", "lib", "1.0") + a.Source("debian", "kernel", "1.0")}),
		a.Publish(Suite{"trixie-security", lock.Security, date, until, a.Package("debian-security", "lib", "2.0", ""), a.Source("debian-security", "lib", "2.0")}),
		a.Publish(Suite{"trixie-backports", lock.Main, date, until, a.Package("debian", "kernel", "7.0", "") + a.Package("debian", "lib", "9.0", ""), a.Source("debian", "kernel", "7.0")}))
}

// Publish signs a suite and puts it up.
func (a *Archive) Publish(s Suite) error {
	release := fmt.Sprintf("Suite: stable\nCodename: %s\nAcquire-By-Hash: yes\nDate: %s\n", s.Name, s.Date)
	if s.Until != "" {
		release += "Valid-Until: " + s.Until + "\n"
	}
	release += "SHA256:\n"
	for name, text := range map[string]string{"main/binary-amd64/Packages": s.Packages, "main/source/Sources": s.Sources} {
		var packed bytes.Buffer
		w, err := xz.NewWriter(&packed)
		if err == nil {
			_, err = io.WriteString(w, text)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			return err
		}
		sum := sha256.Sum256(packed.Bytes())
		release += fmt.Sprintf(" %x %d %s.xz\n", sum, packed.Len(), name)
		dir := s.Archive + "/dists/" + s.Name + "/"
		a.Set(dir+name+".xz", packed.Bytes())
		a.Set(fmt.Sprintf("%s%s/by-hash/SHA256/%x", dir, name[:strings.LastIndexByte(name, '/')], sum), packed.Bytes())
	}
	var signed bytes.Buffer
	w, err := clearsign.Encode(&signed, a.key.PrivateKey, &packet.Config{Time: func() time.Time { return Now.Add(-time.Hour) }})
	if err == nil {
		_, err = io.WriteString(w, release)
	}
	if err == nil {
		err = w.Close()
	}
	a.Set(s.Archive+"/dists/"+s.Name+"/InRelease", signed.Bytes())
	return err
}

// modules makes a toolchain and a module with their hashes.
func (a *Archive) modules(signer string) error {
	toolchain, err := a.zip("golang.org/toolchain", "v0.0.1-go1.26.8.linux-amd64")
	if err != nil {
		return err
	}
	module, err := a.zip("example.com/mod", "v1.2.3")
	if err != nil {
		return err
	}
	mod := []byte("module example.com/mod\n")
	a.Set("go/example.com/mod/@v/v1.2.3.mod", mod)
	sum, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(mod)), nil })
	a.GoSum = fmt.Appendf(nil, "example.com/mod v1.2.3 %s\nexample.com/mod v1.2.3/go.mod %s\n", module, sum)
	a.sums = sumdb.NewServer(sumdb.NewTestServer(signer, func(path, version string) ([]byte, error) {
		if path+version != "golang.org/toolchain"+"v0.0.1-go1.26.8.linux-amd64" {
			return nil, context.DeadlineExceeded
		}
		return fmt.Appendf(nil, "%s %s %s\n%s %s/go.mod %s\n", path, version, toolchain, path, version, sum), nil
	}))
	return err
}

func (a *Archive) zip(path, version string) (string, error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	name, content := path+"@"+version+"/x.go", "package x"
	w, err := z.Create(name)
	if err == nil {
		_, err = io.WriteString(w, content)
	}
	if err := errors.Join(err, z.Close()); err != nil {
		return "", err
	}
	a.Set("go/"+path+"/@v/"+version+".zip", b.Bytes())
	return dirhash.Hash1([]string{name}, func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil })
}
