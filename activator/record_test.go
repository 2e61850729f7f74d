package activator_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/activator"
	"lethe/attest"
	"lethe/attest/attesttest"
	"lethe/fault"
	"lethe/image/release"
)

// TestTampering changes the record in every way that somebody could who has the disk but not the
// operators' keys.
func TestTampering(t *testing.T) {
	o := newOffice(t)
	o.admit(7, attesttest.TheImage("seven"))
	m := newMachine(t, attesttest.TheImage("seven"))
	o.enrol("nl-ams-1", m)
	o.run("activate", "nl-ams-1")
	good := o.backup()
	lines := bytes.SplitAfter(good["record.jsonl"], []byte("\n"))
	lines = lines[:len(lines)-1]
	if n, err := activator.ReadRecord(trimmed(lines)...); err != nil || n != len(lines) {
		t.Fatalf("%d of %d: %v", n, len(lines), err)
	}
	join := func(lines ...[]byte) []byte { return bytes.Join(lines, nil) }
	swap := func(old, new string) []byte {
		b := bytes.Replace(good["record.jsonl"], []byte(old), []byte(new), 1)
		if bytes.Equal(b, good["record.jsonl"]) {
			t.Fatalf("no %q in the record", old)
		}
		return b
	}
	for name, record := range map[string][]byte{
		"last line gone":          join(lines[:len(lines)-1]...),
		"a line gone":             join(append(append([][]byte{}, lines[:2]...), lines[3:]...)...),
		"first line gone":         join(lines[1:]...),
		"all gone":                nil,
		"lines exchanged":         join(lines[0], lines[1], lines[3], lines[2], lines[4], lines[5]),
		"a line twice":            join(append(lines, lines[len(lines)-1])...),
		"another decision":        swap(`"kind":"accepted"`, `"kind":"refused"`),
		"another server":          swap(`"server":"nl-ams-1"`, `"server":"nl-ams-2"`),
		"another time":            swap(`"time":"20`, `"time":"19`),
		"another version":         swap(`"version":7`, `"version":8`),
		"a space":                 swap(`"kind":`, `"kind": `),
		"a field more":            swap(`"kind":`, `"customer":"ada","kind":`),
		"nothing between":         append(good["record.jsonl"], '\n'),
		"rest of an unknown kind": append(good["record.jsonl"], "{}\n"...),
	} {
		o.put("record.jsonl", record)
		if code, _, errs := o.try("log", "verify"); code == 0 || !strings.Contains(errs, "record") && !strings.Contains(errs, "backup") {
			t.Errorf("%s: exit %d, %s", name, code, errs)
		}
		if _, err := activator.Open(o.dir); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	for n := 0; n < len(good["record.jsonl"]); n += 1 + len(good["record.jsonl"])/400 {
		changed := bytes.Clone(good["record.jsonl"])
		changed[n] ^= 1
		o.put("record.jsonl", changed)
		if code, _, _ := o.try("log", "verify"); code == 0 {
			t.Errorf("byte %d changed, and every signature is right", n)
		}
	}
	// An append that was cut off was no decision, and the next one takes its place.
	o.put("record.jsonl", append(bytes.Clone(good["record.jsonl"]), lines[len(lines)-1][:40]...))
	o.run("log", "verify")
	o.run("revoke", "nl-ams-1")
	o.run("log", "verify")
	// The head must be there, and be ours.
	for name, head := range map[string][]byte{"nothing": nil, "damaged": append(good["head"][:100:100], make([]byte, len(good["head"])-100)...)} {
		o.restore(good)
		o.put("head", head)
		o.refused(8, "head", "log", "verify")
		_ = name
	}
	o.restore(good)
	if err := os.Remove(filepath.Join(o.dir, "head")); err != nil {
		t.Fatal(err)
	}
	o.refused(3, "no activator", "log", "verify")
	o.restore(good)
	o.run("log", "verify")
}

func trimmed(lines [][]byte) (all [][]byte) {
	for _, l := range lines {
		all = append(all, bytes.TrimSuffix(l, []byte("\n")))
	}
	return all
}

// TestShrinking: a record that becomes shorter under a running service stops it.
func TestShrinking(t *testing.T) {
	o := newOffice(t)
	a := o.open()
	if err := os.Truncate(filepath.Join(o.dir, "record.jsonl"), 10); err != nil {
		t.Fatal(err)
	}
	if err := a.Store.View(func(*activator.State) error { return nil }); fault.Of(err) != fault.Untrusted {
		t.Errorf("%v", err)
	}
	if err := os.Remove(filepath.Join(o.dir, "record.jsonl")); err != nil {
		t.Fatal(err)
	}
	if err := a.Store.View(func(*activator.State) error { return nil }); fault.Of(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
}

// TestClock: a decision is never written before the last one.
func TestClock(t *testing.T) {
	o := newOffice(t)
	a := o.open()
	set := func(now time.Time) error {
		return a.Store.Append(now, func(*activator.State) (*activator.Record, error) {
			return &activator.Record{Kind: activator.ProfileSet, Profile: attesttest.Profile()}, nil
		})
	}
	if err := set(time.Now().Add(-30 * time.Second)); err != nil {
		t.Errorf("half a minute back: %v", err)
	}
	if err := set(time.Now().Add(-10 * 365 * 24 * time.Hour)); fault.Of(err) != fault.Unavailable {
		t.Errorf("ten years back: %v", err)
	}
	if err := set(time.Now().Add(10 * 365 * 24 * time.Hour)); err != nil {
		t.Errorf("ten years ahead: %v", err)
	}
	if err := set(time.Now()); fault.Of(err) != fault.Unavailable {
		t.Errorf("after ten years: %v", err)
	}
}

// TestRules: what the record cannot say is not written.
func TestRules(t *testing.T) {
	o := newOffice(t)
	a := o.open()
	try := func(r activator.Record) error {
		return a.Store.Append(time.Now(), func(*activator.State) (*activator.Record, error) { return &r, nil })
	}
	enrolled := activator.Enrolment{Flavour: "vm", Profile: "test"}
	for name, r := range map[string]activator.Record{
		"a second beginning":          {Kind: activator.Began, Begin: &activator.Beginning{}},
		"an unknown kind":             {Kind: "party"},
		"an unknown kind of a server": {Kind: "party", Server: "nl-ams-1"},
		"no profile":                  {Kind: activator.ProfileSet},
		"no enrolment":                {Kind: activator.Enrolled, Server: "nl-ams-1"},
		"no address":                  {Kind: activator.Enrolled, Server: "nl-ams-1", Enrol: &enrolled},
		"a server nobody knows":       {Kind: activator.Confirmed, Server: "nl-ams-1"},
		"no release":                  {Kind: activator.Admitted},
		"a release nobody admitted":   {Kind: activator.ReleaseRevoked, Version: 9},
	} {
		if err := try(r); err == nil {
			t.Errorf("%s was written", name)
		}
	}
	m := newMachine(t, attesttest.TheImage("seven"))
	o.enrol("nl-ams-1", m)
	for name, r := range map[string]activator.Record{
		"an unknown kind":                    {Kind: "party", Server: "nl-ams-1"},
		"a refusal without reason":           {Kind: activator.Refused, Server: "nl-ams-1"},
		"an acceptance of nothing":           {Kind: activator.Accepted, Server: "nl-ams-1"},
		"accepted with what nobody admitted": {Kind: activator.Accepted, Server: "nl-ams-1", Version: 1, Accept: &activator.Acceptance{}},
	} {
		if err := try(r); err == nil {
			t.Errorf("%s was written", name)
		}
	}
	o.run("log", "verify")
	if err := a.Store.Append(time.Now(), func(*activator.State) (*activator.Record, error) { return nil, errors.New("no") }); err == nil {
		t.Error("an error was written")
	}
	o.refused(4, "there is such a server", "enrol", "nl-ams-1", "--address", m.address.String(), "--flavour", "vm", "--profile", "test")
	o.refused(4, "its TPM is that of the server nl-ams-1", "enrol", "nl-ams-2", "--address", m.address.String(), "--flavour", "vm", "--profile", "test")
	o.refused(3, "no profile", "enrol", "nl-ams-2", "--address", m.address.String(), "--flavour", "vm", "--profile", "none")
	o.refused(2, "small letters", "enrol", "NL", "--address", m.address.String(), "--flavour", "vm", "--profile", "test")
	o.refused(4, "not waiting", "confirm", "nl-ams-1", "--ek", m.ek())
	o.run("revoke", "nl-ams-1")
	o.refused(4, "revoked already", "revoke", "nl-ams-1")
}

// TestTwoPeople: to admit a release and to raise the floor two operators must have signed that
// very change.
func TestTwoPeople(t *testing.T) {
	o := newOffice(t)
	manifest, statements := o.release(7, attesttest.TheImage("seven"))
	change := o.propose("release", "propose", manifest)
	admit := func(change string) []string {
		return append([]string{"release", "admit", "--change", change, "--manifest", manifest}, statements...)
	}
	stranger, _ := o.operator("stranger")
	one := o.sign(change, o.operators[0])
	o.refused(5, "0 of 2", admit(change)...)
	o.refused(5, "1 of 2", admit(one)...)
	o.refused(5, "1 of 2", admit(o.sign(one, stranger))...)
	o.refused(8, "signs twice", "sign", "--key", o.operators[0], one)
	// The same change of another activator, of another version, of another manifest, for the floor.
	other := newOffice(t)
	o.refused(5, "another change", admit(o.sign(other.propose("release", "propose", manifest), o.operators...))...)
	o.refused(5, "another change", admit(o.sign(o.propose("floor", "propose", "7"), o.operators...))...)
	second, _ := o.release(7, attesttest.TheImage("implant"))
	o.refused(5, "another change", admit(o.sign(o.propose("release", "propose", second), o.operators...))...)
	both := o.sign(one, o.operators[1])
	o.refused(8, "too few builders", append([]string{"release", "admit", "--change", both, "--manifest", manifest}, statements[:2]...)...)
	o.run(admit(both)...)
	o.refused(4, "admitted before", admit(both)...)
	o.run("release", "revoke", "7")
	o.refused(4, "revoked already", "release", "revoke", "7")
	o.refused(4, "admitted before", admit(both)...) // what two people signed once does not undo it

	floor := o.propose("floor", "propose", "8")
	o.refused(5, "0 of 2", "floor", "raise", "8", "--change", floor)
	o.refused(5, "1 of 2", "floor", "raise", "8", "--change", o.sign(floor, o.operators[0]))
	raised := o.sign(floor, o.operators...)
	o.refused(5, "another change", "floor", "raise", "9", "--change", raised)
	o.run("floor", "raise", "8", "--change", raised)
	o.refused(4, "only goes up", "floor", "raise", "8", "--change", raised)
	o.refused(4, "only goes up", "floor", "raise", "6", "--change", o.sign(o.propose("floor", "propose", "6"), o.operators...))

	// Not below the floor, and only what can be told apart.
	old, oldStatements := o.release(6, attesttest.TheImage("six"))
	o.refused(5, "below the floor", append([]string{"release", "admit", "--change", o.sign(o.propose("release", "propose", old), o.operators...), "--manifest", old}, oldStatements...)...)
	o.run("log", "verify")
	// What does not say what its image measures could be any image.
	blind, blindStatements, _ := o.releaser.Make(10, map[string]attesttest.Image{"vm": attesttest.TheImage("ten")}, func(a *release.Addition) { a.PCRs = nil })
	path := o.file("blind", blind)
	args := []string{"release", "admit", "--change", o.sign(o.propose("release", "propose", path), o.operators...), "--manifest", path}
	for _, s := range blindStatements {
		args = append(args, "--statement", o.file(unique("blind"), s))
	}
	o.refused(2, "what PCR 7 will be", args...)
	for words, off := range map[string]time.Duration{"not-yet": time.Hour, "expired": -61 * 24 * time.Hour} {
		o.releaser.Start = time.Now().Add(off)
		path, statements := o.release(11, attesttest.TheImage("eleven"))
		code := map[string]int{"not-yet": 8, "expired": 5}[words]
		o.refused(code, words, append([]string{"release", "admit", "--change", o.sign(o.propose("release", "propose", path), o.operators...), "--manifest", path}, statements...)...)
	}
	// Releases by others.
	foreign := newOffice(t)
	theirs, theirStatements := foreign.release(9, attesttest.TheImage("nine"))
	o.refused(8, "not-released", append([]string{"release", "admit", "--change", o.sign(o.propose("release", "propose", theirs), o.operators...), "--manifest", theirs}, theirStatements...)...)
}

// TestPauses: who is refused is asked less and less often, so that the record does not fill.
func TestPauses(t *testing.T) {
	c := activator.Config{Waiting: activator.Duration(2 * time.Second), Active: activator.Duration(30 * time.Second)}
	refused := attest.Refuse(attest.UnknownImage, "")
	many := make([]error, 20)
	for n := range many {
		many[n] = refused
	}
	got := activator.Pauses(c, append([]error{nil, errors.New("unreachable"), refused, refused, refused, nil, refused}, many...)...)
	for n, want := range []time.Duration{30 * time.Second, 2 * time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 30 * time.Second, 2 * time.Second} {
		if got[n] != want {
			t.Errorf("pause %d: %v, want %v", n, got[n], want)
		}
	}
	if last := got[len(got)-1]; last != 10*time.Minute {
		t.Errorf("at last %v", last)
	}
}

// FuzzRecord: a line that follows a real beginning is in the one encoding of a record, or refused.
func FuzzRecord(f *testing.F) {
	o := newOffice(f)
	o.admit(7, attesttest.TheImage("seven"))
	a := o.open()
	for _, r := range []activator.Record{
		{Kind: activator.Enrolled, Enrol: &activator.Enrolment{Address: netip.MustParseAddrPort("192.0.2.1:7443"), Flavour: "vm", Profile: "test"}},
		{Kind: activator.Confirmed}, {Kind: activator.Accepted, Version: 7, Accept: &activator.Acceptance{Until: time.Now().UTC()}},
		{Kind: activator.Refused, Refuse: &activator.RefusalRecorded{Code: "no-receipt"}}, {Kind: activator.ServerRevoked},
	} {
		r.Server = "nl-ams-1"
		if err := a.Store.Append(time.Now(), func(*activator.State) (*activator.Record, error) { return &r, nil }); err != nil {
			f.Fatal(err)
		}
	}
	lines := trimmed(bytes.Split(bytes.TrimSuffix(o.backup()["record.jsonl"], []byte("\n")), []byte("\n")))
	for _, l := range lines {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		for n := range lines {
			read, err := activator.ReadRecord(append(append([][]byte{}, lines[:n]...), line)...)
			if err != nil {
				continue
			}
			var r activator.Record
			if err := json.Unmarshal(line, &r); err != nil || r.Number != uint64(read) {
				t.Errorf("%s was read as record %d: %v", line, read, err)
			}
		}
	})
}
