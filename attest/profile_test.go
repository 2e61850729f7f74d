package attest_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"lethe/attest"
	"lethe/attest/attesttest"
	"lethe/attest/eventlog"
	"lethe/dsse"
	"lethe/fault"
)

// TestDraft: rules made from a log explain that log, and can be read.
func TestDraft(t *testing.T) {
	w := newWorld(t)
	w.soft.Machine.Events = append([]attesttest.Event{{Type: eventlog.NoAction, Data: []byte("hello")}}, w.soft.Machine.Events...)
	// Firmware that measures something else than it logs.
	odd := attesttest.Event{Index: 1, Type: eventlog.EFIAction, Digest: [32]byte{7}, Data: []byte("Booting")}
	w.soft.Machine.Events = append(w.soft.Machine.Events, odd, attesttest.Hashed(1, eventlog.EFIAction, []byte("Booted")))
	l, err := eventlog.Parse(w.soft.Machine.Log())
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(attest.Draft("draft", l))
	if err != nil {
		t.Fatal(err)
	}
	if w.server.Profile, err = attest.ParseProfile(b); err != nil {
		t.Fatal(err)
	}
	w.accepted(t, "by rules made from its log")
	w.soft.Machine.Events[w.soft.Machine.Find(0, eventlog.FirmwareBlob)] = attesttest.Blob(0, eventlog.FirmwareBlob, "implant")
	if _, _, err := w.run(); !errors.Is(err, attest.RefusedEvent) {
		t.Errorf("other firmware: %v", err)
	}
}

func TestProfileRefusals(t *testing.T) {
	for want, change := range map[string]func(p *attest.Profile){
		"name":       func(p *attest.Profile) { p.Name = "Q 35" },
		"1 to 512":   func(p *attest.Profile) { p.Rules = nil },
		"register":   func(p *attest.Profile) { p.Rules[0].PCR = 16 },
		"why":        func(p *attest.Profile) { p.Rules[0].Why = "" },
		"separators": func(p *attest.Profile) { p.Rules[0].Type = eventlog.Separator },
		"at least 1": func(p *attest.Profile) { p.Rules[0].Max = 0 },
		"min":        func(p *attest.Profile) { p.Rules[0].Min = 9 },
		"one of":     func(p *attest.Profile) { p.Rules[0].Any = true },
		"one of d":   func(p *attest.Profile) { p.Rules[0].Digests = nil },
		"code":       func(p *attest.Profile) { p.Rules[0].Digests, p.Rules[0].Any = []dsse.Digest(nil), true },
		"no separat": func(p *attest.Profile) { p.Rules[0].PCR, p.Rules[0].AfterSeparator = 11, true },
		"1 to 20":    func(p *attest.Profile) { p.Clock = 21 },
		"clock_perc": func(p *attest.Profile) { p.Clock = -1 },
		"pattern":    func(p *attest.Profile) { p.Rules[3].Variables = []string{"Boot[0"} },
	} {
		p := attesttest.Profile()
		change(p)
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := attest.ParseProfile(b); fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	for _, text := range []string{"", "{", `{"name":"x","rules":[],"more":1}`, `{"name":"x","rules":[{"type":"EV_SEPARATR"}]}`} {
		if _, err := attest.ParseProfile([]byte(text)); fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestHead(t *testing.T) {
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	_, other, _ := ed25519.GenerateKey(rand.Reader)
	parse := func(b []byte) attest.Head {
		h, err := attest.ParseHead(b)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	last := attest.Head{Number: 7, Hash: [32]byte{7}, Floor: 3}
	seen := parse(last.Sign(key))
	if seen.Number != 7 || seen.Hash != last.Hash || seen.Floor != 3 || !seen.Key.Equal(key.Public()) {
		t.Errorf("%+v", seen)
	}
	for name, c := range map[string]struct {
		h    attest.Head
		key  ed25519.PrivateKey
		want bool
	}{
		"the same":          {last, key, true},
		"a later one":       {attest.Head{Number: 8, Hash: [32]byte{8}, Floor: 4}, key, true},
		"an earlier one":    {attest.Head{Number: 6, Hash: [32]byte{6}, Floor: 3}, key, false},
		"another history":   {attest.Head{Number: 7, Hash: [32]byte{8}, Floor: 3}, key, false},
		"a lower floor":     {attest.Head{Number: 8, Hash: [32]byte{8}, Floor: 2}, key, false},
		"another activator": {attest.Head{Number: 8, Hash: [32]byte{8}, Floor: 3}, other, false},
	} {
		if got := parse(c.h.Sign(c.key)).Follows(seen); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	b := last.Sign(key)
	for n := range b {
		changed := bytes.Clone(b)
		changed[n] ^= 1
		if _, err := attest.ParseHead(changed); !errors.Is(err, attest.ErrMessage) {
			t.Errorf("byte %d changed: %v", n, err)
		}
	}
}

// TestSealRefuses: a key that is none is an error, not a panic.
func TestSealRefuses(t *testing.T) {
	if _, _, err := attest.Seal(&attest.Transcript{}, nil, nil); !errors.Is(err, attest.ErrMessage) {
		t.Errorf("%v", err)
	}
	for id, want := range map[string]bool{"nl-ams-1": true, "a": true, "": false, "-a": false, "a-": false, "A": false, "a/b": false, strings.Repeat("a", 64): false} {
		if attest.ValidServer(id) != want {
			t.Errorf("server %q", id)
		}
	}
}
