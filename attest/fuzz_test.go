package attest_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"lethe/attest"
	"lethe/attest/attesttest"
	"lethe/attest/eventlog"
)

// FuzzDecode: what is decoded is the one encoding of what it says.
func FuzzDecode(f *testing.F) {
	w := newWorld(f)
	_, s := w.accepted(f, "seed")
	grant, expected, err := s.Grant([]byte("secrets"), w.verifier.Head)
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{w.soft.Say(), s.Challenge(), attest.Encode(&w.soft.Transcript.Evidence), grant, attest.Encode(expected), nil, []byte("lethe/1I")} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range []attest.Message{&attest.Identity{}, &attest.Challenge{}, &attest.Evidence{}, &attest.Grant{}, &attest.Receipt{}} {
			if attest.Decode(b, m) == nil && !bytes.Equal(attest.Encode(m), b) {
				t.Errorf("%T: %x is %x", m, b, attest.Encode(m))
			}
		}
		if h, err := attest.ParseHead(b); err == nil && !h.Follows(h) {
			t.Error("a head does not follow itself")
		}
	})
}

// FuzzIdentify: no identity but the right one is taken, whatever stands in it.
func FuzzIdentify(f *testing.F) {
	w := newWorld(f)
	f.Add(w.soft.Say())
	w.soft.Identity.EKCertificate = attesttest.NewMaker(f).Issue(w.soft.EK.PublicKey())
	f.Add(w.soft.Say())
	rsaEK(func([]byte) {})(w)
	f.Add(w.soft.Say())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := w.verifier.Identify(nil, w.channel, b)
		if err != nil {
			if r, _ := attest.ReasonOf(err); r == 0 {
				t.Errorf("a refusal without reason: %v", err)
			}
			return
		}
		if len(s.Challenge()) == 0 {
			t.Error("no challenge")
		}
	})
}

// FuzzEvidence changes quote, signature and log of evidence that would be accepted, with a proof
// that fits: only what was accepted unchanged is accepted.
func FuzzEvidence(f *testing.F) {
	w := newWorld(f)
	s, err := w.verifier.Identify(w.server, w.channel, w.soft.Say())
	if err != nil {
		f.Fatal(err)
	}
	w.soft.Answer(s.Challenge())
	e := w.soft.Transcript.Evidence
	f.Add(e.Quote, e.Signature, e.Log)
	f.Fuzz(func(t *testing.T, quote, signature, log []byte) {
		w.t, w.soft.T = t, t
		same := true
		w.soft.Lie = func(e *attest.Evidence) {
			same = bytes.Equal(e.Quote, quote)
			e.Quote, e.Signature, e.Log = quote, signature, log
		}
		_, _, err := w.run()
		if r, _ := attest.ReasonOf(err); r == 0 && !same {
			t.Errorf("accepted, or refused without reason: %v", err)
		}
	})
}

// FuzzProfile: what is read can be written and read again.
func FuzzProfile(f *testing.F) {
	b, err := json.Marshal(attesttest.Profile())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	l, err := eventlog.Parse(attesttest.Boot(attesttest.TheImage("seven")).Log())
	if err != nil {
		f.Fatal(err)
	}
	if b, err = json.Marshal(attest.Draft("draft", l)); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := attest.ParseProfile(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := attest.ParseProfile(again); err != nil {
			t.Errorf("%s was a profile, %s is none: %v", b, again, err)
		}
	})
}
