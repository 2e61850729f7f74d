package release_test

import (
	"errors"
	"testing"

	"lethe/image/release"
)

func TestEnvelope(t *testing.T) {
	const kind = "application/vnd.lethe.test+json"
	k := keyring()
	b, err := release.SealEnvelope(kind, []byte(`{"x":1}`))
	if err != nil {
		t.Fatal(err)
	}
	for n, s := range k.release[:2] {
		if b, err = release.Countersign(b, kind, s); err != nil {
			t.Fatal(err)
		}
		payload, by, err := release.OpenEnvelope(b, kind, keysOf(k.release))
		if err != nil || string(payload) != `{"x":1}` || len(by) != n+1 {
			t.Errorf("%d signatures: %q by %v: %v", n+1, payload, by, err)
		}
	}
	if _, by, err := release.OpenEnvelope(b, kind, keysOf(k.strangers)); err != nil || len(by) != 0 {
		t.Errorf("strangers signed: %v, %v", by, err)
	}
	if _, err := release.Countersign(b, kind, k.release[0]); !errors.Is(err, release.BadSignatures) {
		t.Errorf("a key signed twice: %v", err)
	}
	if _, err := release.Countersign(b, "other", k.release[2]); !errors.Is(err, release.WrongType) {
		t.Errorf("another type was signed: %v", err)
	}
	if _, _, err := release.OpenEnvelope(b, "other", nil); !errors.Is(err, release.WrongType) {
		t.Errorf("another type was read: %v", err)
	}
	if _, err := release.Countersign(b, kind, strange{}); err == nil {
		t.Error("no key signed")
	}
}
