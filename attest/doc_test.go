package attest_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"

	"lethe/attest"
)

// TestDoc: doc/activation.md names every reason, in the order in which they are looked for, and the messages are as
// it says, byte by byte.
func TestDoc(t *testing.T) {
	b, err := os.ReadFile("../doc/activation.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	_, table, _ := strings.Cut(doc, "| | codes, in order |")
	at := 0
	for _, r := range attest.Reasons() {
		n := strings.Index(table[at:], "`"+r.Code()+"`")
		if n < 0 {
			t.Errorf("%s is not there, or not in its order", r.Code())
			continue
		}
		at += n
	}
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	head := attest.Head{Number: 7, Floor: 3}.Sign(key)
	if want := fmt.Sprintf("head (%d)", len(head)); !strings.Contains(doc, want) {
		t.Errorf("no %q", want)
	}
	want := []byte("lethe/1C")
	for _, field := range [][]byte{make([]byte, 32), []byte("nl-ams-1"), {1}, {2}, head} {
		want = append(binary.BigEndian.AppendUint32(want, uint32(len(field))), field...)
	}
	if got := attest.Encode(&attest.Challenge{Nonce: make([]byte, 32), Server: []byte("nl-ams-1"), Credential: []byte{1}, Secret: []byte{2}, Head: head}); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	if want := fmt.Sprintf("| Evidence | `E` | time: seconds since 1970, big-endian (8); seal key (%d)", attest.SealKeySize); !strings.Contains(doc, want) {
		t.Errorf("no %q", want)
	}
}
