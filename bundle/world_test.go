package bundle_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/bundle"
	"lethe/fault"
	"lethe/private"
)

var (
	start   = time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	sealKey = private.Of([32]byte{1, 2, 3})
)

// world is a publisher and its signers in memory, every part of which a test
// can bend before it is signed, after, or on the way.
type world struct {
	t     testing.TB
	now   time.Time
	roots []bundle.Signer // 2 of 3
	conf  []bundle.Signer // 2 of 3
	fresh []bundle.Signer // 1 of 1

	root      bundle.Root
	manifest  bundle.Manifest
	freshness bundle.Freshness
	published map[string][]byte
	cut       map[string]error // paths whose transfer breaks off half-way
	gets      []string
	bytes     int64
	floor     bundle.Floor
	rebuild   bundle.Rebuild
}

func signers(n int) (s []bundle.Signer) {
	for range n {
		s = append(s, bundle.GenerateSigner())
	}
	return s
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, now: start, roots: signers(3), conf: signers(3), fresh: signers(1),
		published: map[string][]byte{}, cut: map[string]error{}}
	w.root = w.newRoot(1)
	w.publishRoot(w.roots[:2]...)
	w.set(1, map[string]string{"node.json": "{}", "geoip.mmdb": "countries", "authdb/0-7": strings.Repeat("row", 50000)})
	w.publish()
	return w
}

func (w *world) newRoot(version uint64) bundle.Root {
	all := append(append(append([]bundle.Signer{}, w.roots...), w.conf...), w.fresh...)
	return bundle.Root{Version: version, Issued: w.now, Expires: w.now.Add(1000 * 24 * time.Hour), Keys: bundle.Keys(all...),
		Roles: map[bundle.Role]bundle.Delegation{
			bundle.RootRole:   bundle.Delegate(2, w.roots...),
			bundle.ConfigRole: bundle.Delegate(2, w.conf...),
			bundle.FreshRole:  bundle.Delegate(1, w.fresh...),
		}}
}

// set replaces the manifest by one with these files; authdb files are sealed.
func (w *world) set(version uint64, files map[string]string) {
	w.manifest = bundle.Manifest{Version: version, Issued: w.now, Expires: w.now.Add(72 * time.Hour)}
	for name, text := range files {
		w.manifest.Files = append(w.manifest.Files, w.file(name, text))
	}
	slices.SortFunc(w.manifest.Files, func(a, b bundle.File) int { return strings.Compare(a.Name, b.Name) })
}

func (w *world) file(name, text string) bundle.File {
	f := bundle.File{Name: name, Size: int64(len(text)), SHA256: sha256.Sum256([]byte(text))}
	stored := []byte(text)
	if strings.HasPrefix(name, "authdb/") {
		plain := f.SHA256
		stored = sealed(w.t, text)
		f = bundle.File{Name: name, Size: int64(len(stored)), SHA256: sha256.Sum256(stored),
			Sealed: true, PlainSize: int64(len(text)), PlainSHA256: &plain}
	}
	w.published[bundle.FilePath(f.SHA256)] = stored
	return f
}

func sealed(t testing.TB, text string) []byte {
	var b bytes.Buffer
	s := bundle.Seal(sealKey, sha256.Sum256([]byte(text)), &b)
	_, err := io.WriteString(s, text)
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (w *world) sign(s bundle.Statement, by ...bundle.Signer) []byte {
	w.t.Helper()
	b, err := bundle.Sign(s, by...)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) publishRoot(by ...bundle.Signer) {
	w.published[bundle.RootPath(w.root.Version)] = w.sign(w.root, by...)
}

// publish signs the manifest and a freshness statement for it.
func (w *world) publish() { w.publishManifest(w.sign(w.manifest, w.conf[:2]...)) }

func (w *world) publishManifest(b []byte) {
	w.published[bundle.ManifestPath(w.manifest.Version)] = b
	w.freshness = bundle.Freshness{Version: w.manifest.Version, Manifest: sha256.Sum256(b), Issued: w.now, Expires: w.now.Add(15 * time.Minute)}
	w.publishFreshness()
}

func (w *world) publishFreshness() {
	w.published[bundle.FreshnessPath] = w.sign(w.freshness, w.fresh...)
}

// forge signs any payload under any payload type, valid or not.
func (w *world) forge(payloadType string, payload []byte, by ...bundle.Signer) []byte {
	w.t.Helper()
	e := bundle.Envelope{PayloadType: payloadType, Payload: payload, Signatures: []bundle.Signature{}}
	b, err := json.Marshal(e)
	for _, s := range by {
		if err == nil {
			b, err = bundle.AddSignature(b, s)
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// forgeManifest publishes a manifest that a signer of ours would not sign.
func (w *world) forgeManifest(payload []byte) {
	w.publishManifest(w.forge(bundle.ConfigRole.PayloadType(), payload, w.conf[:2]...))
}

// edited returns the JSON of the manifest with one text replaced.
func (w *world) edited(old, new string) []byte { return edited(w.t, w.manifest, old, new) }

func edited(t testing.TB, v any, old, new string) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil || !bytes.Contains(b, []byte(old)) {
		t.Fatalf("%s (%v): want %s in it", b, err, old)
	}
	return bytes.Replace(b, []byte(old), []byte(new), 1)
}

func (w *world) Get(_ context.Context, path string, max int64) (io.ReadCloser, error) {
	w.gets = append(w.gets, path)
	b, ok := w.published[path]
	if !ok {
		return nil, fault.New(fault.NotFound, "not there")
	}
	var r io.Reader = bytes.NewReader(b)
	if err := w.cut[path]; err != nil {
		r = io.MultiReader(bytes.NewReader(b[:len(b)/2]), failing{err})
	}
	w.bytes += int64(len(b))
	return io.NopCloser(r), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func (w *world) client() *bundle.Client {
	w.t.Helper()
	c, err := bundle.NewClient(bundle.Config{Root: w.published[bundle.RootPath(1)], Seal: sealKey, Floor: w.floor, Fetch: w,
		Rebuild: w.rebuild, Now: func() time.Time { return w.now }})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (w *world) update(c *bundle.Client) *bundle.Set {
	w.t.Helper()
	s, changed, err := c.Update(w.t.Context())
	if err != nil || !changed {
		w.t.Fatalf("update: changed %v, error %v", changed, cause(err))
	}
	w.t.Cleanup(func() { _ = s.Close() })
	return s
}

// cause makes the reason behind a public text visible in a test's output.
func cause(err error) error {
	for e := err; e != nil; e = errors.Unwrap(e) {
		err = e
	}
	return err
}

func kindOf(r bundle.Reason) fault.Kind {
	if r == bundle.RootExpired || r == bundle.ManifestExpired || r == bundle.Stale {
		return fault.Expired
	}
	return fault.Untrusted
}
