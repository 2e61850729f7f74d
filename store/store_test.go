package store_test

import (
	"bytes"
	"strings"
	"testing"

	"lethe/fault"
	"lethe/private"
	"lethe/store"
)

func TestSealer(t *testing.T) {
	sealer := func(b byte) store.Sealer {
		s, err := store.NewSealer(private.Of([32]byte{b}))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := sealer(1)
	one, two := s.Seal("here", private.Of("hidden")), s.Seal("here", private.Of("hidden"))
	if bytes.Equal(one, two) || bytes.Contains(one, []byte("hidden")) || len(one) != len("hidden")+28 {
		t.Errorf("sealed %x and %x", one, two)
	}
	if got, err := s.Open("here", one); err != nil || got.Reveal() != "hidden" {
		t.Errorf("opened as %q, %v", got.Reveal(), err)
	}
	changed := bytes.Clone(one)
	changed[20] ^= 1
	for name, open := range map[string]func() (private.Value[string], error){
		"elsewhere":   func() (private.Value[string], error) { return s.Open("there", one) },
		"changed":     func() (private.Value[string], error) { return s.Open("here", changed) },
		"truncated":   func() (private.Value[string], error) { return s.Open("here", one[:20]) },
		"empty":       func() (private.Value[string], error) { return s.Open("here", nil) },
		"another key": func() (private.Value[string], error) { return sealer(2).Open("here", one) },
	} {
		if got, err := open(); fault.Of(err) != fault.Internal || err == nil || got.Reveal() != "" || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: got %q, %v", name, got.Reveal(), err)
		}
	}
}
