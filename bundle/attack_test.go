package bundle_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/bundle"
	"lethe/fault"
	"lethe/private"
)

// attack is one way to feed a server something wrong, and its twin: the same
// steps without the wrong, which must be accepted. So it is the check that
// refuses, not an accident of the test. Both start from a client that already
// uses version 1 (unless it boots anew) while version 2 is published.
type attack struct {
	name   string
	want   bundle.Reason
	boot   bool // a freshly booted server that remembers nothing
	attack func(w *world)
	twin   func(w *world)
}

var nothing = func(*world) {}

func flip(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}

// stored returns the path of a file's stored bytes.
func stored(w *world, name string) string {
	i := slices.IndexFunc(w.manifest.Files, func(f bundle.File) bool { return f.Name == name })
	return bundle.FilePath(w.manifest.Files[i].SHA256)
}

// reseal lists the file authdb/8-9 with other stored bytes, all digests true.
func reseal(w *world, change func([]byte) []byte) {
	i := slices.IndexFunc(w.manifest.Files, func(f bundle.File) bool { return f.Name == "authdb/8-9" })
	f := &w.manifest.Files[i]
	b := change(bytes.Clone(w.published[bundle.FilePath(f.SHA256)]))
	f.SHA256 = sha256.Sum256(b)
	w.published[bundle.FilePath(f.SHA256)] = b
	w.publish()
}

func freshnessFor(d time.Duration, change func(f *bundle.Freshness)) func(*world) {
	return func(w *world) {
		w.now = w.now.Add(d)
		change(&w.freshness)
		w.publishFreshness()
	}
}

func manifestWith(change func(m *bundle.Manifest)) func(*world) {
	return func(w *world) {
		change(&w.manifest)
		w.publish()
	}
}

// rotate publishes root 2, with what change does to it, signed by those.
func rotate(change func(w *world), by func(w *world) []bundle.Signer) func(*world) {
	return func(w *world) {
		w.root = w.newRoot(2)
		if change != nil {
			change(w)
		}
		w.publishRoot(by(w)...)
	}
}

func firstRoots(w *world) []bundle.Signer { return w.roots[:2] }

const chunk = 64<<10 + 16

func attacks() []attack {
	return slices.Concat(envelopeAttacks(), timeAttacks(), versionAttacks(), rootAttacks(), formAttacks(), fileAttacks(), sealAttacks())
}

func envelopeAttacks() []attack {
	freshPath := bundle.FreshnessPath
	return []attack{
		{name: "freshness signed by a stranger", want: bundle.BelowThreshold,
			attack: func(w *world) { w.published[freshPath] = w.sign(w.freshness, bundle.GenerateSigner()) },
			twin:   func(w *world) { w.published[freshPath] = w.sign(w.freshness, w.fresh[0]) }},
		{name: "freshness not signed", want: bundle.BelowThreshold,
			attack: func(w *world) { w.published[freshPath] = w.sign(w.freshness) },
			twin:   func(w *world) { w.published[freshPath] = w.sign(w.freshness, w.fresh...) }},
		{name: "freshness signed by the config keys", want: bundle.BelowThreshold,
			attack: func(w *world) { w.published[freshPath] = w.sign(w.freshness, w.conf...) },
			twin:   func(w *world) { w.published[freshPath] = w.sign(w.freshness, append(w.conf[:1:1], w.fresh...)...) }},
		{name: "manifest with one of two signatures", want: bundle.BelowThreshold,
			attack: func(w *world) { w.publishManifest(w.sign(w.manifest, w.conf[0])) },
			twin:   func(w *world) { w.publishManifest(w.sign(w.manifest, w.conf[0], w.conf[2])) }},
		{name: "one key signs twice", want: bundle.BadSignatures,
			attack: func(w *world) { w.publishManifest(w.sign(w.manifest, w.conf[0], w.conf[0])) },
			twin:   func(w *world) { w.publishManifest(w.sign(w.manifest, w.conf[0], w.conf[1])) }},
		{name: "one key's signature under another's id", want: bundle.BelowThreshold,
			attack: func(w *world) { w.publishManifest(renamed(w, w.conf[1].Key().ID)) },
			twin:   func(w *world) { w.publishManifest(w.sign(w.manifest, w.conf[0], w.conf[1])) }},
		{name: "signature changed", want: bundle.BelowThreshold,
			attack: func(w *world) { w.published[freshPath] = resigned(w, func(s []byte) []byte { return flip(s, 3) }) },
			twin:   func(w *world) { w.published[freshPath] = resigned(w, bytes.Clone) }},
		{name: "signature too short", want: bundle.BadSignatures,
			attack: func(w *world) { w.published[freshPath] = resigned(w, func(s []byte) []byte { return s[:63] }) },
			twin:   func(w *world) { w.published[freshPath] = resigned(w, bytes.Clone) }},
		{name: "more signatures than allowed", want: bundle.BadSignatures,
			attack: func(w *world) { w.publishManifest(w.sign(w.manifest, append(signers(31), w.conf...)...)) },
			twin:   func(w *world) { w.publishManifest(w.sign(w.manifest, append(signers(29), w.conf...)...)) }},
		{name: "manifest served as freshness", want: bundle.WrongType,
			attack: func(w *world) { w.published[freshPath] = w.sign(w.manifest, w.fresh...) },
			twin:   func(w *world) { w.published[freshPath] = w.sign(w.freshness, w.fresh...) }},
		{name: "freshness under the manifest's payload type", want: bundle.WrongType,
			attack: func(w *world) {
				w.published[freshPath] = w.forge(bundle.ConfigRole.PayloadType(), edited(w.t, w.freshness, "", ""), w.fresh...)
			},
			twin: func(w *world) {
				w.published[freshPath] = w.forge(bundle.FreshRole.PayloadType(), edited(w.t, w.freshness, "", ""), w.fresh...)
			}},
		{name: "payload changed after signing", want: bundle.BelowThreshold,
			attack: func(w *world) {
				later := w.freshness
				later.Version++
				w.published[freshPath] = transplanted(w, later)
			},
			twin: func(w *world) { w.published[freshPath] = transplanted(w, w.freshness) }},
		{name: "endless freshness", want: bundle.TooLarge,
			attack: func(w *world) {
				w.published[freshPath] = append(w.published[freshPath], make([]byte, bundle.MaxFreshnessSize)...)
			},
			twin: nothing},
		{name: "endless manifest", want: bundle.TooLarge,
			attack: func(w *world) { w.publishManifest(bytes.Repeat([]byte("x"), bundle.MaxManifestSize+1)) },
			twin:   func(w *world) { w.publish() }},
	}
}

// renamed signs the manifest with conf[0] and adds the same signature under id.
func renamed(w *world, id bundle.KeyID) []byte {
	var e bundle.Envelope
	_ = json.Unmarshal(w.sign(w.manifest, w.conf[0]), &e)
	e.Signatures = append(e.Signatures, bundle.Signature{KeyID: id, Sig: e.Signatures[0].Sig})
	b, _ := json.Marshal(e)
	return b
}

// resigned changes the signature of the published freshness statement.
func resigned(w *world, change func([]byte) []byte) []byte {
	var e bundle.Envelope
	_ = json.Unmarshal(w.published[bundle.FreshnessPath], &e)
	e.Signatures[0].Sig = change(e.Signatures[0].Sig)
	b, _ := json.Marshal(e)
	return b
}

// transplanted puts another statement under the published signature.
func transplanted(w *world, f bundle.Freshness) []byte {
	var e bundle.Envelope
	_ = json.Unmarshal(w.published[bundle.FreshnessPath], &e)
	e.Payload, _ = json.Marshal(f)
	b, _ := json.Marshal(e)
	return b
}

func timeAttacks() []attack {
	return []attack{
		{name: "stale freshness (freeze)", want: bundle.Stale,
			attack: func(w *world) { w.now = w.now.Add(15 * time.Minute) },
			twin:   func(w *world) { w.now = w.now.Add(15*time.Minute - time.Second) }},
		{name: "old bundle with its own freshness after a boot", want: bundle.Stale, boot: true,
			attack: func(w *world) { w.now = w.now.Add(time.Hour) },
			twin:   func(w *world) { w.now = w.now.Add(time.Minute) }},
		{name: "freshness from the future", want: bundle.NotYet,
			attack: freshnessFor(0, func(f *bundle.Freshness) { f.Issued = start.Add(bundle.MaxSkew + time.Second) }),
			twin:   freshnessFor(0, func(f *bundle.Freshness) { f.Issued = start.Add(bundle.MaxSkew) })},
		{name: "manifest from the future", want: bundle.NotYet,
			attack: manifestWith(func(m *bundle.Manifest) { m.Issued = start.Add(bundle.MaxSkew + time.Second) }),
			twin:   manifestWith(func(m *bundle.Manifest) { m.Issued = start.Add(bundle.MaxSkew) })},
		{name: "expired manifest", want: bundle.ManifestExpired,
			attack: manifestWith(func(m *bundle.Manifest) { m.Issued, m.Expires = start.Add(-time.Hour), start }),
			twin: manifestWith(func(m *bundle.Manifest) {
				m.Issued, m.Expires = start.Add(-time.Hour), start.Add(time.Second)
			})},
		{name: "expired root", want: bundle.RootExpired,
			attack: freshnessFor(1000*24*time.Hour, func(f *bundle.Freshness) {
				f.Issued, f.Expires = start.Add(1000*24*time.Hour), start.Add(1000*24*time.Hour+time.Hour)
			}),
			twin: func(w *world) {
				w.now = start.Add(1000*24*time.Hour - time.Second)
				w.set(2, map[string]string{"node.json": "{}"})
				w.publish()
			}},
		{name: "clock before the image's time", want: bundle.ClockWrong, boot: true,
			attack: func(w *world) { w.floor.Time = start.Add(time.Second) },
			twin:   func(w *world) { w.floor.Time = start }},
		{name: "freshness that lives too long", want: bundle.Impossible,
			attack: func(w *world) { forgeFreshness(w, 24*time.Hour+time.Second) },
			twin:   func(w *world) { forgeFreshness(w, 24*time.Hour) }},
		{name: "manifest that lives too long", want: bundle.Impossible,
			attack: func(w *world) { w.forgeManifest(w.edited("2026-11-26T09:00:00Z", "2036-11-26T09:00:00Z")) },
			twin:   func(w *world) { w.forgeManifest(w.edited("2026-11-26T09:00:00Z", "2026-12-07T09:00:00Z")) }},
	}
}

func forgeFreshness(w *world, life time.Duration) {
	w.freshness.Expires = w.freshness.Issued.Add(life)
	b, _ := json.Marshal(w.freshness)
	w.published[bundle.FreshnessPath] = w.forge(bundle.FreshRole.PayloadType(), b, w.fresh...)
}

func versionAttacks() []attack {
	return []attack{
		{name: "below the image's floor", want: bundle.BelowFloor, boot: true,
			attack: func(w *world) { w.floor.Version = 3 },
			twin:   func(w *world) { w.floor.Version = 2 }},
		{name: "two manifests with one version", want: bundle.Equivocation,
			attack: func(w *world) { w.set(1, map[string]string{"node.json": "{ }"}); w.publish() },
			twin:   func(w *world) { w.set(2, map[string]string{"node.json": "{ }"}); w.publish() }},
		{name: "manifest of another version (mix and match)", want: bundle.WrongVersion,
			attack: func(w *world) {
				b := w.published[bundle.ManifestPath(2)]
				w.published[bundle.ManifestPath(3)] = b
				w.freshness.Version = 3
				w.publishFreshness()
			},
			twin: func(w *world) { w.manifest.Version = 3; w.publish() }},
		{name: "manifest that freshness does not name", want: bundle.WrongManifest,
			attack: func(w *world) {
				w.manifest.Issued = w.manifest.Issued.Add(time.Second)
				w.published[bundle.ManifestPath(2)] = w.sign(w.manifest, w.conf...)
			},
			twin: func(w *world) { w.manifest.Issued = w.manifest.Issued.Add(time.Second); w.publish() }},
	}
}

func rootAttacks() []attack {
	strangers := func(w *world) { w.roots = signers(3); w.root = w.newRoot(2) }
	return []attack{
		{name: "new root signed by strangers only", want: bundle.OldThreshold,
			attack: rotate(strangers, firstRoots),
			twin:   rotate(nil, firstRoots)},
		{name: "new root with one of two old signatures", want: bundle.OldThreshold,
			attack: rotate(nil, func(w *world) []bundle.Signer { return w.roots[:1] }),
			twin:   rotate(nil, firstRoots)},
		{name: "new root without its own threshold", want: bundle.BelowThreshold,
			attack: func(w *world) { old := w.roots; rotate(strangers, func(*world) []bundle.Signer { return old })(w) },
			twin: func(w *world) {
				old := w.roots
				rotate(strangers, func(w *world) []bundle.Signer { return append(old[:2:2], w.roots[:2]...) })(w)
			}},
		{name: "new root skips a version", want: bundle.RootVersion,
			attack: func(w *world) {
				w.root = w.newRoot(3)
				w.published[bundle.RootPath(2)] = w.sign(w.root, w.roots...)
			},
			twin: rotate(nil, firstRoots)},
		{name: "old root served as the new one", want: bundle.RootVersion,
			attack: func(w *world) { w.published[bundle.RootPath(2)] = w.published[bundle.RootPath(1)] },
			twin:   rotate(nil, firstRoots)},
		{name: "root from the future", want: bundle.NotYet,
			attack: rotate(func(w *world) { w.root.Issued = start.Add(bundle.MaxSkew + time.Second) }, firstRoots),
			twin:   rotate(func(w *world) { w.root.Issued = start.Add(bundle.MaxSkew) }, firstRoots)},
		{name: "rotated to an expired root", want: bundle.RootExpired,
			attack: rotate(func(w *world) { w.root.Issued, w.root.Expires = start.Add(-time.Hour), start }, firstRoots),
			twin: rotate(func(w *world) {
				w.root.Issued, w.root.Expires = start.Add(-time.Hour), start.Add(time.Second)
			}, firstRoots)},
		{name: "withdrawn freshness key still signs", want: bundle.BelowThreshold,
			attack: func(w *world) { old := w.fresh; w.fresh = signers(1); rotate(nil, firstRoots)(w); w.fresh = old },
			twin: func(w *world) {
				w.fresh = signers(1)
				rotate(nil, firstRoots)(w)
				w.publishFreshness()
			}},
		{name: "key under another key's id", want: bundle.Impossible,
			attack: forgeRoot(func(r *bundle.Root) { r.Keys[0].Public = r.Keys[1].Public }), twin: forgeRoot(func(*bundle.Root) {})},
		{name: "another algorithm", want: bundle.Impossible,
			attack: forgeRoot(func(r *bundle.Root) { r.Keys[0].Scheme = "none" }), twin: forgeRoot(func(*bundle.Root) {})},
		{name: "threshold of zero", want: bundle.Impossible,
			attack: forgeRoot(threshold(0)), twin: forgeRoot(threshold(1))},
		{name: "threshold above the number of keys", want: bundle.Impossible,
			attack: forgeRoot(threshold(4)), twin: forgeRoot(threshold(2))},
		{name: "role's key twice", want: bundle.Impossible,
			attack: forgeRoot(func(r *bundle.Root) { k := r.Roles[bundle.ConfigRole].Keys; k[1] = k[0] }), twin: forgeRoot(func(*bundle.Root) {})},
		{name: "key listed twice", want: bundle.Impossible,
			attack: forgeRoot(func(r *bundle.Root) { r.Keys = append(r.Keys, r.Keys[len(r.Keys)-1]) }), twin: forgeRoot(func(*bundle.Root) {})},
		{name: "unknown role", want: bundle.Impossible,
			attack: forgeRoot(func(r *bundle.Root) { r.Roles["other"] = r.Roles[bundle.RootRole] }), twin: forgeRoot(func(*bundle.Root) {})},
		{name: "root of version 0", want: bundle.Impossible,
			attack: forgeRoot(func(r *bundle.Root) { r.Version = 0 }), twin: forgeRoot(func(*bundle.Root) {})},
		{name: "root without end", want: bundle.Impossible,
			attack: forgeRoot(func(r *bundle.Root) { r.Expires = r.Issued.Add(bundle.MaxRootLife + time.Second) }),
			twin:   forgeRoot(func(r *bundle.Root) { r.Expires = r.Issued.Add(bundle.MaxRootLife) })},
	}
}

func threshold(n int) func(*bundle.Root) {
	return func(r *bundle.Root) {
		d := r.Roles[bundle.ConfigRole]
		d.Threshold = n
		r.Roles[bundle.ConfigRole] = d
	}
}

// forgeRoot publishes root 2 as signers without our checks might sign it.
func forgeRoot(change func(*bundle.Root)) func(*world) {
	return func(w *world) {
		w.root = w.newRoot(2)
		change(&w.root)
		b, _ := json.Marshal(w.root)
		w.published[bundle.RootPath(2)] = w.forge(bundle.RootRole.PayloadType(), b, w.roots...)
	}
}

func formAttacks() []attack {
	form := func(name string, want bundle.Reason, old, new string) attack {
		return attack{name: name, want: want,
			attack: func(w *world) { w.forgeManifest(w.edited(old, new)) },
			twin:   func(w *world) { w.forgeManifest(w.edited(old, old)) }}
	}
	return []attack{
		form("unknown field", bundle.Malformed, `{"version":2`, `{"more":1,"version":2`),
		form("broken JSON", bundle.Malformed, `{"version":2`, `{"version":`),
		form("short digest", bundle.Malformed, `"sha256":"`, `"sha256":"00`),
		form("repeated field", bundle.NotCanonical, `{"version":2`, `{"version":1,"version":2`),
		form("misspelt field", bundle.NotCanonical, `{"version":2`, `{"Version":2`),
		form("white space", bundle.NotCanonical, `{"version":2`, `{ "version":2`),
		form("time in another zone", bundle.Impossible, `T09:00:00Z`, `T10:00:00+01:00`),
		form("fraction of a second", bundle.Impossible, `T09:00:00Z`, `T09:00:00.5Z`),
		form("unknown field value null", bundle.Malformed, `{"version":2`, `{"x":null,"version":2`),
		form("file above the tree", bundle.Impossible, `"geoip.mmdb"`, `"../geoip.mmdb"`),
		form("segment with a name of its own", bundle.Impossible, `"authdb/8-9"`, `"authdb/9-8"`),
		form("version 0", bundle.Impossible, `{"version":2`, `{"version":0`),
		{name: "bytes after the envelope", want: bundle.NotCanonical,
			attack: func(w *world) { w.published[bundle.FreshnessPath] = append(w.published[bundle.FreshnessPath], ' ') },
			twin:   nothing},
		{name: "freshness of version 0", want: bundle.Impossible, boot: true,
			attack: func(w *world) {
				w.published[bundle.FreshnessPath] = w.forge(bundle.FreshRole.PayloadType(), edited(w.t, w.freshness, `"version":2`, `"version":0`), w.fresh...)
			},
			twin: nothing},
	}
}

func fileAttacks() []attack {
	serve := func(name string, change func([]byte) []byte) func(*world) {
		return func(w *world) { p := stored(w, name); w.published[p] = change(w.published[p]) }
	}
	longer := func(b []byte) []byte { return append(bytes.Clone(b), 0) }
	shorter := func(b []byte) []byte { return b[:len(b)-1] }
	list := func(change func(f *bundle.File)) func(*world) {
		return func(w *world) {
			for i := range w.manifest.Files {
				if w.manifest.Files[i].Name == "authdb/8-9" {
					change(&w.manifest.Files[i])
				}
			}
			b, _ := json.Marshal(w.manifest)
			w.forgeManifest(b)
		}
	}
	return []attack{
		{name: "endless file", want: bundle.TooLarge, attack: serve("geoip.mmdb", longer), twin: serve("geoip.mmdb", bytes.Clone)},
		{name: "cut file", want: bundle.WrongSize, attack: serve("geoip.mmdb", shorter), twin: serve("geoip.mmdb", bytes.Clone)},
		{name: "other file", want: bundle.WrongDigest,
			attack: serve("geoip.mmdb", func(b []byte) []byte { return flip(b, 0) }), twin: serve("geoip.mmdb", bytes.Clone)},
		{name: "sealed file with another content's digest", want: bundle.BadSeal,
			attack: list(func(f *bundle.File) { f.PlainSHA256 = &bundle.Digest{1} }), twin: list(func(*bundle.File) {})},
		{name: "segment not sealed", want: bundle.Impossible,
			attack: list(func(f *bundle.File) { f.Sealed, f.PlainSHA256, f.PlainSize = false, nil, 0 }), twin: list(func(*bundle.File) {})},
		{name: "sealed without a digest", want: bundle.Impossible,
			attack: list(func(f *bundle.File) { f.PlainSHA256 = nil }), twin: list(func(*bundle.File) {})},
		{name: "sizes that do not fit", want: bundle.Impossible,
			attack: list(func(f *bundle.File) { f.PlainSize++ }), twin: list(func(*bundle.File) {})},
		{name: "file of a gigabyte and more", want: bundle.Impossible,
			attack: list(func(f *bundle.File) {
				f.PlainSize = bundle.MaxFileSize
				f.Size = bundle.SealedSize(f.PlainSize)
			}), twin: list(func(*bundle.File) {})},
		{name: "one content, two sizes", want: bundle.WrongSize,
			attack: manifestWith(func(m *bundle.Manifest) {
				again := m.Files[len(m.Files)-1]
				again.Name, again.Size = "z.json", again.Size+1
				m.Files = append(m.Files, again)
			}),
			twin: manifestWith(func(m *bundle.Manifest) {
				again := m.Files[len(m.Files)-1]
				again.Name = "z.json"
				m.Files = append(m.Files, again)
			})},
		{name: "more than fits a server", want: bundle.Impossible,
			attack: func(w *world) { crowd(w, 4, bundle.MaxFileSize) },
			twin:   func(w *world) { w.publish() }},
		{name: "too many files", want: bundle.Impossible,
			attack: func(w *world) { crowd(w, bundle.MaxFiles+1, 1) },
			twin:   func(w *world) { w.publish() }},
		{name: "file twice", want: bundle.Impossible,
			attack: func(w *world) {
				w.manifest.Files = append(w.manifest.Files, w.manifest.Files[len(w.manifest.Files)-1])
				b, _ := json.Marshal(w.manifest)
				w.forgeManifest(b)
			}, twin: func(w *world) { w.publish() }},
	}
}

// crowd lists n files of that size.
func crowd(w *world, n int, size int64) {
	w.manifest.Files = nil
	for i := range n {
		w.manifest.Files = append(w.manifest.Files, bundle.File{Name: "f" + strings.Repeat("x", i%50) + "-" + string(rune('a'+i%26)), Size: size})
	}
	if n > bundle.MaxFiles {
		b, _ := json.Marshal(w.manifest)
		w.forgeManifest(b)
		return
	}
	slices.SortFunc(w.manifest.Files, func(a, b bundle.File) int { return strings.Compare(a.Name, b.Name) })
	b, _ := json.Marshal(w.manifest)
	w.forgeManifest(b)
}

func sealAttacks() []attack {
	swap := func(b []byte) []byte {
		return slices.Concat(b[chunk:2*chunk], b[:chunk], b[2*chunk:])
	}
	fit := func(w *world, plain int64) {
		for i := range w.manifest.Files {
			if f := &w.manifest.Files[i]; f.Name == "authdb/8-9" {
				f.PlainSize, f.Size = plain, bundle.SealedSize(plain)
			}
		}
	}
	same := func(w *world) { reseal(w, bytes.Clone) }
	return []attack{
		{name: "sealed bytes damaged, signed all the same", want: bundle.BadSeal, twin: same,
			attack: func(w *world) { reseal(w, func(b []byte) []byte { return flip(b, chunk+5) }) }},
		{name: "chunks swapped", want: bundle.BadSeal, twin: same,
			attack: func(w *world) { reseal(w, swap) }},
		{name: "last chunk cut off", want: bundle.BadSeal, twin: same,
			attack: func(w *world) { fit(w, 2*(64<<10)); reseal(w, func(b []byte) []byte { return b[:2*chunk] }) }},
		{name: "first chunk cut off", want: bundle.BadSeal, twin: same,
			attack: func(w *world) { fit(w, 150000-64<<10); reseal(w, func(b []byte) []byte { return b[chunk:] }) }},
		{name: "a chunk appended", want: bundle.BadSeal, twin: same,
			attack: func(w *world) {
				fit(w, 3*(64<<10)+150000-2*(64<<10))
				reseal(w, func(b []byte) []byte { return slices.Concat(b[:chunk], b) })
			}},
		{name: "sealed with another key", want: bundle.BadSeal, twin: same,
			attack: func(w *world) { reseal(w, sealedAs(private.Of([32]byte{9}), "new")) }},
		{name: "sealed well, but another content", want: bundle.WrongContent, twin: same,
			attack: func(w *world) { reseal(w, sealedAs(sealKey, "old")) }},
	}
}

// sealedAs seals some text of the right length for the digest of the right one.
func sealedAs(key bundle.SealKey, text string) func([]byte) []byte {
	return func([]byte) []byte {
		var b bytes.Buffer
		s := bundle.Seal(key, sha256.Sum256([]byte(strings.Repeat("new", 50000))), &b)
		_, _ = s.Write([]byte(strings.Repeat(text, 50000)))
		_ = s.Close()
		return b.Bytes()
	}
}

func TestAttacks(t *testing.T) {
	all := attacks()
	seen := map[bundle.Reason]bool{bundle.Rollback: true} // TestRollback
	for _, a := range all {
		seen[a.want] = true
		t.Run(a.name, func(t *testing.T) {
			play(t, a, a.attack, a.want)
			play(t, a, a.twin, 0)
		})
	}
	for _, r := range bundle.Reasons() {
		if !seen[r] {
			t.Errorf("no attack is refused for the reason %q", r)
		}
	}
	if len(all) < 25 {
		t.Errorf("%d attacks, want at least 25", len(all))
	}
}

// play runs one side of an attack; want is 0 for the twin.
func play(t *testing.T, a attack, change func(*world), want bundle.Reason) {
	t.Helper()
	w := newWorld(t)
	second := map[string]string{"node.json": "{}", "geoip.mmdb": "more countries", "authdb/0-7": strings.Repeat("row", 50000), "authdb/8-9": strings.Repeat("new", 50000)}
	var c *bundle.Client
	if !a.boot {
		c = w.client()
		w.update(c)
	}
	w.set(2, second)
	w.publish()
	change(w)
	if a.boot {
		c = w.client()
	}
	set, changed, err := c.Update(context.Background())
	if want == 0 {
		if err != nil || !changed {
			t.Fatalf("twin: changed %v, error %v (%v), want it accepted", changed, err, cause(err))
		}
		defer set.Close()
		if _, ok := set.File("node.json"); !ok {
			t.Error("twin: the new set lacks node.json")
		}
		return
	}
	if !errors.Is(err, want) || fault.Of(err) != kindOf(want) || changed || set != nil {
		t.Fatalf("attack: changed %v, error %v of kind %s, want the reason %q", changed, err, fault.Of(err), want)
	}
	current := c.Current()
	if a.boot {
		if current != nil {
			t.Error("attack: a booted server has a set")
		}
		return
	}
	defer current.Close()
	if b, _ := current.File("geoip.mmdb"); current.Version() != 1 || string(b) != "countries" {
		t.Errorf("attack: version %d with %q is in use, want the first", current.Version(), b)
	}
}

func TestRollback(t *testing.T) {
	w := newWorld(t)
	first := w.manifest
	c := w.client()
	w.set(2, map[string]string{"node.json": "{}"})
	w.publish()
	w.update(c)
	old := w.sign(first, w.conf...)
	w.manifest = first
	w.publishManifest(old) // a live freshness statement for an old manifest
	if _, _, err := c.Update(t.Context()); !errors.Is(err, bundle.Rollback) {
		t.Errorf("error %v, want %q", err, bundle.Rollback)
	}
	w.update(w.client()) // a booted server cannot know better: that is what the floor is for
	w.floor.Version = 2
	if _, _, err := w.client().Update(t.Context()); !errors.Is(err, bundle.BelowFloor) {
		t.Errorf("error %v, want %q", err, bundle.BelowFloor)
	}
}
