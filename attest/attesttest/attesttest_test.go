package attesttest_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"lethe/attest"
	"lethe/attest/attesttest"
	"lethe/attest/eventlog"
	"lethe/dsse"
	"lethe/image/pcr"
	"lethe/image/release"
)

// TestMachine: a real TPM that a machine is measured into holds what the machine says, also its copy.
func TestMachine(t *testing.T) {
	tpm := attesttest.StartTPM(t)
	m := attesttest.Boot(attesttest.TheImage("seven")).Clone()
	m.Events = append(m.Events, attesttest.Event{Type: eventlog.NoAction})
	tpm.Measure(m)
	for index, want := range m.Registers() {
		rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
			{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(uint(index))}}}}.Execute(tpm)
		if err != nil || !bytes.Equal(rsp.PCRValues.Digests[0].Buffer, want[:]) {
			t.Errorf("PCR %d: %v, want %x", index, err, want)
		}
	}
	if !strings.Contains(tpm.String(), tpm.Dir) || tpm.Copy().Dir == tpm.Dir {
		t.Error("a TPM and its copy are in one place")
	}
	tpm.Define(0x01c0000a, []byte("certificate"))
	tpm.Reboot()
}

// TestSoft: the attester in software is as good as a TPM while it tells the truth.
func TestSoft(t *testing.T) {
	image := attesttest.TheImage("seven")
	soft := attesttest.NewSoft(t, attesttest.Boot(image), attest.Channel{1}, attesttest.Start)
	soft.Identity.EKCertificate = attesttest.NewMaker(t).Issue(soft.EK.PublicKey())
	r := attesttest.NewReleaser(t)
	_, _, m := r.Make(7, map[string]attesttest.Image{"vm": image}, func(a *release.Addition) { a.Floor = 2 })
	if _, err := release.ParsePolicy(r.TrustFile()); err != nil || m.Floor != 2 {
		t.Errorf("floor %d: %v", m.Floor, err)
	}
	v := &attest.Verifier{Releases: []attest.Release{{Manifest: m}}, Now: attesttest.Start, Phases: pcr.Phases, Place: func(dsse.Digest) string { return "" },
		Head: make([]byte, 152)}
	s, err := v.Identify(&attest.Server{ID: "x", EK: attest.Digest(soft.Identity.EK), Flavour: "vm", Profile: attesttest.Profile(), Confirmed: true}, attest.Channel{1}, soft.Say())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Appraise(soft.Answer(s.Challenge())); err != nil {
		t.Fatal(err)
	}
	grant, expected, err := s.Grant([]byte("secrets"), v.Head)
	if err != nil {
		t.Fatal(err)
	}
	secrets, receipt, err := soft.Open(grant)
	if err != nil || string(secrets) != "secrets" || attest.Received(receipt, expected) != nil {
		t.Errorf("%q: %v", secrets, err)
	}
	if _, _, err := soft.Open(grant[1:]); err == nil {
		t.Error("opened what is no grant")
	}
	if _, _, err := soft.Open(append(grant[:len(grant)-1:len(grant)-1], grant[len(grant)-1]^1)); err == nil {
		t.Error("opened a damaged grant")
	}
}
