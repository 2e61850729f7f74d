package bundle_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"lethe/bundle"
	"lethe/private"
)

// TestDocumentedExample makes the example of doc/bundle.md anew: a change of
// the format fails here, because servers in the field would refuse it.
func TestDocumentedExample(t *testing.T) {
	doc, err := os.ReadFile("../doc/bundle.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("\",\n     \"", "\",\"").Replace(string(doc))
	seeded := func(b byte) bundle.Signer {
		s, err := bundle.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	root, config, fresh := seeded(1), seeded(2), seeded(3)
	at := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	content := []byte(`{"poll_seconds":20}`)
	digest := bundle.Digest(sha256.Sum256(content))
	var file bytes.Buffer
	s := bundle.Seal(private.Of([32]byte{}), digest, &file)
	_, _ = s.Write(content)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	m := bundle.Manifest{Version: 7, Issued: at, Expires: at.Add(72 * time.Hour), Files: []bundle.File{{Name: bundle.NodeFile,
		Size: int64(file.Len()), SHA256: sha256.Sum256(file.Bytes()), Sealed: true, PlainSize: int64(len(content)), PlainSHA256: &digest}}}
	manifest, err := bundle.Sign(m, config)
	if err != nil {
		t.Fatal(err)
	}
	f := bundle.Freshness{Version: 7, Manifest: sha256.Sum256(manifest), Issued: at.Add(620 * time.Second), Expires: at.Add(1820 * time.Second)}
	freshness, err := bundle.Sign(f, fresh)
	if err != nil {
		t.Fatal(err)
	}
	r := bundle.Root{Version: 1, Issued: at, Expires: at.AddDate(1, 0, 0), Keys: bundle.Keys(root, config, fresh, root),
		Roles: map[bundle.Role]bundle.Delegation{bundle.RootRole: bundle.Delegate(1, root),
			bundle.ConfigRole: bundle.Delegate(1, config), bundle.FreshRole: bundle.Delegate(1, fresh)}}
	for name, part := range map[string]any{"root": r, "manifest": m, "freshness": f} {
		b, err := json.Marshal(part)
		if err != nil || !strings.Contains(text, string(b)) {
			t.Errorf("the document does not show this %s (%v): %s", name, err, b)
		}
	}
	var e bundle.Envelope
	if err := json.Unmarshal(freshness, &e); err != nil {
		t.Fatal(err)
	}
	for name, part := range map[string]string{
		"payload": base64.StdEncoding.EncodeToString(e.Payload), "signature": base64.StdEncoding.EncodeToString(e.Signatures[0].Sig),
		"sealed file": hex.EncodeToString(file.Bytes()), "file path": bundle.FilePath(m.Files[0].SHA256),
		"freshness path": bundle.FreshnessPath, "manifest path": bundle.ManifestPath(7), "root path": bundle.RootPath(1),
	} {
		if !strings.Contains(text, part) {
			t.Errorf("the document does not show this %s: %s", name, part)
		}
	}
}
