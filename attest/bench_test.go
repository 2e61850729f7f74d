package attest_test

import (
	"crypto"
	"testing"

	referee "github.com/google/go-attestation/attest"

	"lethe/attest"
)

// BenchmarkAppraisal is what the verifier does for one attestation on recorded answers, in attestations per minute
// and core. The peer, go-attestation, verifies the same quote, and replays the same log; it looks at no identity,
// clock, profile or release, and encrypts no secrets.
func BenchmarkAppraisal(b *testing.B) {
	w := newWorld(b)
	b.Run("lethe", func(b *testing.B) {
		identity, secrets := w.soft.Say(), make([]byte, 8<<10)
		for b.Loop() {
			s, err := w.verifier.Identify(w.server, w.channel, identity)
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			evidence := w.soft.Answer(s.Challenge())
			b.StartTimer()
			if _, err := s.Appraise(evidence); err != nil {
				b.Fatal(err)
			}
			if _, _, err := s.Grant(secrets, w.verifier.Head); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Minutes(), "attestations/min")
	})
	b.Run("go-attestation", func(b *testing.B) {
		w.accepted(b, "to have evidence")
		t := &w.soft.Transcript
		nonce := t.Qualifying()
		var pcrs []referee.PCR
		for index := range attest.PCRs {
			pcrs = append(pcrs, referee.PCR{Index: index, Digest: t.Evidence.PCRs[32*index : 32*index+32], DigestAlg: crypto.SHA256})
		}
		for b.Loop() {
			ak, err := referee.ParseAKPublic(t.Identity.AK)
			if err != nil {
				b.Fatal(err)
			}
			if err := ak.Verify(referee.Quote{Quote: t.Evidence.Quote, Signature: t.Evidence.Signature}, pcrs, nonce[:]); err != nil {
				b.Fatal(err)
			}
			l, err := referee.ParseEventLog(t.Evidence.Log)
			if err != nil {
				b.Fatal(err)
			}
			// Our log lacks the system's phases, which register 11 has: the other registers are enough.
			if _, err := l.Verify(append(pcrs[:11:11], pcrs[12:]...)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Minutes(), "attestations/min")
	})
}
