package dsse_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"testing"

	"lethe/dsse"
)

// TestPAE holds the example of the specification (protocol.md).
func TestPAE(t *testing.T) {
	got := string(dsse.PAE("http://example.com/HelloWorld", []byte("hello world")))
	if want := "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDigest(t *testing.T) {
	public, _, _ := ed25519.GenerateKey(nil)
	id, err := dsse.ID(public)
	if err != nil || len(id.String()) != 64 {
		t.Errorf("id %v: %v", id, err)
	}
	if _, err := dsse.ID("no key"); err == nil {
		t.Error("a string has an id")
	}
	var again dsse.Digest
	for text, ok := range map[string]bool{id.String(): true, "": false, id.String()[1:]: false, "zz" + id.String()[2:]: false} {
		if err := again.UnmarshalText([]byte(text)); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
	if again != id {
		t.Error("a digest's text is of another")
	}
}

func TestDecode(t *testing.T) {
	good, _ := json.Marshal(dsse.Envelope{PayloadType: "t", Payload: []byte("p"), Signatures: []dsse.Signature{}})
	for text, want := range map[string]error{
		string(good):       nil,
		string(good) + " ": dsse.ErrNotCanonical,
		`{"payloadtype":"t","payload":"cA==","signatures":[]}`:           dsse.ErrNotCanonical,
		`{"payloadType":"t","payload":"cA==","signatures":[],"more":[]}`: dsse.ErrMalformed,
		`{`: dsse.ErrMalformed,
	} {
		if _, err := dsse.Decode[dsse.Envelope]([]byte(text)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", text, err, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"payloadType":"t","payload":"cA==","signatures":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := dsse.Decode[dsse.Envelope](b)
		if err != nil {
			return
		}
		if again, err := json.Marshal(e); err != nil || string(again) != string(b) {
			t.Errorf("read %q, wrote %q", b, again)
		}
	})
}
