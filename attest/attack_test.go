package attest_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"lethe/attest"
	"lethe/attest/attesttest"
	"lethe/attest/eventlog"
	"lethe/dsse"
	"lethe/image/pcr"
	"lethe/image/release"
)

// attack is one way to be activated without right, and its twin: nearly the same, by right.
// Both begin with a world in which all is well.
type attack struct {
	name   string
	want   attest.Reason
	attack func(w *world)
	twin   func(w *world) // nil: the world as it is
}

// both applies changes after each other.
func both(changes ...func(w *world)) func(w *world) {
	return func(w *world) {
		for _, c := range changes {
			c(w)
		}
	}
}

// boots lets the server start an image.
func boots(change func(i *attesttest.Image)) func(w *world) {
	return func(w *world) {
		i := w.image
		change(&i)
		w.soft.Machine = attesttest.Boot(i)
	}
}

// machine changes what the machine measures, in its TPM and its log.
func machine(change func(m *attesttest.Machine)) func(w *world) {
	return func(w *world) { change(w.soft.Machine) }
}

// logs changes the log only.
func logs(change func(m *attesttest.Machine) []byte) func(w *world) {
	return func(w *world) {
		m := w.soft.Machine.Clone()
		w.soft.Lie = func(e *attest.Evidence) { e.Log = change(m) }
	}
}

// same returns events in a log whose registers stay as they are.
func same(change func(m *attesttest.Machine)) func(w *world) {
	return logs(func(m *attesttest.Machine) []byte { change(m); return m.Log() })
}

func attested(change func(a *tpm2.TPMSAttest)) func(w *world) {
	return func(w *world) { w.soft.Attest = change }
}

func selects(s ...tpm2.TPMSPCRSelection) func(w *world) {
	return attested(func(a *tpm2.TPMSAttest) {
		q, _ := a.Attested.Quote()
		q.PCRSelect = tpm2.TPMLPCRSelection{PCRSelections: s}
		a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, q)
	})
}

func bank(alg tpm2.TPMAlgID, bits ...byte) tpm2.TPMSPCRSelection {
	return tpm2.TPMSPCRSelection{Hash: alg, PCRSelect: bits}
}

func remember(change func(m *attest.Memory)) func(w *world) {
	return func(w *world) { change(w.server.Memory) }
}

// sameBoot makes the last attestation one of this boot, half an hour ago.
func sameBoot(w *world) {
	w.server.Memory = &attest.Memory{Resets: 7, Clock: 1_000_000, At: w.verifier.Now.Add(-30 * time.Minute)}
	w.soft.Clock.Clock += 30 * 60 * 1000
}

func clock(change func(c *tpm2.TPMSClockInfo)) func(w *world) {
	return func(w *world) { change(&w.soft.Clock) }
}

// identity changes what the server says that it is.
func identity(change func(w *world, id *attest.Identity)) func(w *world) {
	return func(w *world) { change(w, &w.soft.Identity) }
}

// ak makes the attestation key after another template.
func ak(change func(t *tpm2.TPMTPublic)) func(w *world) {
	return func(w *world) {
		t := attest.AKTemplate([32]byte{})
		change(&t)
		w.soft.Identity.AK = w.soft.AKPublic(t)
	}
}

// enrol makes the server's endorsement key, whatever it is, that of the inventory.
func enrol(w *world) {
	w.server.EK = attest.Digest(w.soft.Identity.EK)
	w.places[w.server.EK] = w.server.ID
}

func whoItIs() []attack {
	head := func(number uint64) func(w *world) {
		return func(w *world) { w.soft.Identity.Head = attest.Head{Number: number, Floor: 7}.Sign(w.key) }
	}
	known := func(w *world) { w.known[9] = true }
	return []attack{
		{"identity of another protocol", attest.MalformedIdentity, func(w *world) { w.onIdentity = func(b []byte) []byte { return append([]byte("lethe/2"), b[7:]...) } }, nil},
		{"another message as identity", attest.MalformedIdentity, func(w *world) {
			w.onIdentity = func([]byte) []byte { return attest.Encode(&attest.Receipt{MAC: make([]byte, 32)}) }
		}, nil},
		{"identity cut short", attest.MalformedIdentity, func(w *world) { w.onIdentity = func(b []byte) []byte { return b[:len(b)-1] } }, nil},
		{"identity with bytes after it", attest.MalformedIdentity, func(w *world) { w.onIdentity = func(b []byte) []byte { return append(b, 0) } }, nil},
		{"identity with a length of 4 GiB", attest.MalformedIdentity, func(w *world) {
			w.onIdentity = func(b []byte) []byte { copy(b[8:], "\xff\xff\xff\xff"); return b }
		}, nil},
		{"head that nobody signed", attest.MalformedIdentity, both(head(9), known, func(w *world) { w.soft.Identity.Head[20] ^= 1 }), both(head(9), known)},
		{"nobody confirmed the server", attest.ServerPending, func(w *world) { w.server.Confirmed = false }, nil},
		{"revoked server", attest.ServerRevoked, func(w *world) { w.server.Revoked = true }, nil},
		{"endorsement key that may sign", attest.BadEK, both(func(w *world) {
			t := tpm2.ECCEKTemplate
			t.ObjectAttributes.SignEncrypt = true
			w.soft.Identity.EK = attesttest.Public(t, w.soft.EK.PublicKey())
		}, enrol), enrol},
		{"endorsement key that can leave its TPM", attest.BadEK, both(func(w *world) {
			t := tpm2.ECCEKTemplate
			t.ObjectAttributes.FixedTPM, t.ObjectAttributes.FixedParent = false, false
			w.soft.Identity.EK = attesttest.Public(t, w.soft.EK.PublicKey())
		}, enrol), enrol},
		{"endorsement key with another policy", attest.BadEK, both(func(w *world) {
			t := tpm2.ECCEKTemplate
			t.AuthPolicy.Buffer = make([]byte, 32)
			w.soft.Identity.EK = attesttest.Public(t, w.soft.EK.PublicKey())
		}, enrol), enrol},
		{"endorsement key that is no point of the curve", attest.BadEK, both(func(w *world) {
			w.soft.Identity.EK[len(w.soft.Identity.EK)-1] ^= 1
		}, enrol), enrol},
		{"endorsement key of RSA with an even modulus", attest.BadEK, both(rsaEK(func(n []byte) { n[255] &^= 1 }), enrol), enrol},
		{"endorsement key of RSA with a short modulus", attest.BadEK, both(rsaEK(func(n []byte) { n[0] = 0 }), enrol), enrol},
		{"endorsement key with bytes after it", attest.BadEK, both(identity(func(_ *world, id *attest.Identity) { id.EK = append(id.EK, 0) }), enrol), enrol},
		{"TPM in no inventory", attest.ForeignEK, func(w *world) {
			w.soft = attesttest.NewSoft(w.t, w.soft.Machine, w.channel, w.verifier.Now)
		}, func(w *world) {
			w.soft = attesttest.NewSoft(w.t, w.soft.Machine, w.channel, w.verifier.Now)
			enrol(w)
		}},
		{"TPM of another place", attest.WrongPlace, func(w *world) {
			w.soft = attesttest.NewSoft(w.t, w.soft.Machine, w.channel, w.verifier.Now)
			w.places[attest.Digest(w.soft.Identity.EK)] = "us-nyc-1"
		}, nil},
		{"no certificate of the TPM's maker", attest.BadEKCertificate, certified(nil), certified(func(m *attesttest.Maker, w *world) []byte { return m.Issue(w.soft.EK.PublicKey()) })},
		{"certificate of another TPM", attest.BadEKCertificate, certified(func(m *attesttest.Maker, w *world) []byte {
			other, _ := ecdh.P256().GenerateKey(rand.Reader)
			return m.Issue(other.PublicKey())
		}), certified(func(m *attesttest.Maker, w *world) []byte { return m.Issue(w.soft.EK.PublicKey()) })},
		{"certificate by a maker nobody trusts", attest.BadEKCertificate, certified(func(_ *attesttest.Maker, w *world) []byte {
			return attesttest.NewMaker(w.t).Issue(w.soft.EK.PublicKey())
		}), certified(func(m *attesttest.Maker, w *world) []byte { return m.Issue(w.soft.EK.PublicKey()) })},
		{"certificate that is none", attest.BadEKCertificate, certified(func(_ *attesttest.Maker, _ *world) []byte { return []byte("certificate") }), nil},
		{"attestation key that signs anything", attest.BadAK, ak(func(t *tpm2.TPMTPublic) { t.ObjectAttributes.Restricted = false }), nil},
		{"attestation key made outside the TPM", attest.BadAK, ak(func(t *tpm2.TPMTPublic) { t.ObjectAttributes.SensitiveDataOrigin = false }), nil},
		{"attestation key that can leave its TPM", attest.BadAK, ak(func(t *tpm2.TPMTPublic) { t.ObjectAttributes.FixedTPM = false }), nil},
		{"attestation key that decrypts", attest.BadAK, ak(func(t *tpm2.TPMTPublic) { t.ObjectAttributes.Decrypt = true }), nil},
		{"attestation key with a weak hash", attest.BadAK, ak(func(t *tpm2.TPMTPublic) {
			p, _ := t.Parameters.ECCDetail()
			p.Scheme.Details = tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA1})
			t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, p)
		}), nil},
		{"attestation key of the endorsement key's kind", attest.BadAK, identity(func(_ *world, id *attest.Identity) { id.AK = id.EK }), nil},
		{"attestation key that is no point of the curve", attest.BadAK, identity(func(_ *world, id *attest.Identity) { id.AK[len(id.AK)-1] ^= 1 }), nil},
		{"activator restored from an old backup", attest.ActivatorRestored, head(42), both(head(9), known)},
		{"activator whose record was rewritten", attest.ActivatorRestored, both(known, head(8)), func(w *world) {
			_, other, _ := ed25519.GenerateKey(rand.Reader)
			w.soft.Identity.Head = attest.Head{Number: 8}.Sign(other) // another activator's: it refuses ours by itself
		}},
	}
}

// rsaKey is one that all tests share: making it takes a while.
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

// rsaEK gives the server an RSA endorsement key whose modulus is changed.
func rsaEK(change func(n []byte)) func(w *world) {
	return func(w *world) {
		t := tpm2.RSAEKTemplate
		n := rsaKey().N.Bytes()
		change(n)
		t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: n})
		w.soft.Identity.EK = tpm2.Marshal(t)
	}
}

func whetherItSaysSo() []attack {
	evidence := func(change func([]byte) []byte) func(w *world) { return func(w *world) { w.onEvidence = change } }
	key := func(change func(e *attest.Evidence)) func(w *world) { return func(w *world) { w.soft.Keys = change } }
	lie := func(change func(e *attest.Evidence)) func(w *world) { return func(w *world) { w.soft.Lie = change } }
	raw := func(change func(b []byte) []byte) func(w *world) { return func(w *world) { w.soft.Quote = change } }
	signature := func(change func(s *tpm2.TPMTSignature)) func(w *world) {
		return func(w *world) {
			sign := w.soft.SignWith(w.soft.AK)
			w.soft.Sign = func(m []byte) []byte {
				s, err := tpm2.Unmarshal[tpm2.TPMTSignature](sign(m))
				if err != nil {
					w.t.Fatal(err)
				}
				change(s)
				return tpm2.Marshal(*s)
			}
		}
	}
	return []attack{
		{"evidence cut short", attest.MalformedEvidence, evidence(func(b []byte) []byte { return b[:len(b)-1] }), nil},
		{"evidence with bytes after it", attest.MalformedEvidence, evidence(func(b []byte) []byte { return append(b, 0) }), nil},
		{"identity as evidence", attest.MalformedEvidence, func(w *world) { w.onEvidence = func([]byte) []byte { return w.soft.Say() } }, nil},
		{"event log of more than a MiB", attest.MalformedEvidence, lie(func(e *attest.Evidence) { e.Log = make([]byte, 1<<20+1) }), nil},
		{"key to be certified that is none", attest.MalformedEvidence, key(func(e *attest.Evidence) { e.VPNKey = []byte("key") }), nil},
		{"key to be certified on another curve", attest.MalformedEvidence, key(func(e *attest.Evidence) {
			k, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			e.APIKey, _ = x509.MarshalPKIXPublicKey(k.Public())
		}), key(func(e *attest.Evidence) {
			k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			e.APIKey, _ = x509.MarshalPKIXPublicKey(k.Public())
		})},
		{"one key for both certificates", attest.MalformedEvidence, key(func(e *attest.Evidence) { e.APIKey = e.VPNKey }), nil},
		{"registers that are too few", attest.MalformedEvidence, lie(func(e *attest.Evidence) { e.PCRs = e.PCRs[:15*32] }), nil},
		{"no proof", attest.NotSameTPM, evidence(func(b []byte) []byte { clear(b[len(b)-32:]); return b }), nil},
		{"attestation key of another TPM", attest.NotSameTPM, func(w *world) {
			// The endorsement key's TPM would not open the credential for a key that it does not hold.
			w.soft.Prove = func([]byte) []byte { return make([]byte, 32) }
		}, nil},
		{"evidence changed after the proof", attest.NotSameTPM, evidence(func(b []byte) []byte { b[19] ^= 1; return b }), nil},
		{"evidence of another server, relayed", attest.NotSameTPM, func(w *world) {
			other := attesttest.NewSoft(w.t, w.soft.Machine, w.channel, w.verifier.Now)
			other.EK = w.soft.EK // so that it can read the challenge at all; a TPM could not
			w.onEvidence = func([]byte) []byte { return other.Answer(attest.Encode(&w.soft.Challenge)) }
		}, nil},
		{"statement that no TPM made", attest.WrongMagic, raw(func(b []byte) []byte { b[0] = 0; return b }), nil},
		{"certified key instead of a quote", attest.NotQuote, attested(func(a *tpm2.TPMSAttest) {
			a.Type = tpm2.TPMSTAttestCertify
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{})
		}), nil},
		{"certified time instead of a quote", attest.NotQuote, attested(func(a *tpm2.TPMSAttest) {
			a.Type = tpm2.TPMSTAttestTime
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestTime, &tpm2.TPMSTimeAttestInfo{})
		}), nil},
		{"quote with bytes after it", attest.MalformedQuote, raw(func(b []byte) []byte { return append(b, 0) }), nil},
		{"quote cut short", attest.MalformedQuote, raw(func(b []byte) []byte { return b[:len(b)-1] }), nil},
		{"quote of two bytes", attest.MalformedQuote, raw(func(b []byte) []byte { return b[:2] }), nil},
		{"quote whose clock is neither safe nor unsafe", attest.MalformedQuote, raw(func(b []byte) []byte {
			at := bytes.Index(b, []byte{0, 0, 0, 7, 0, 0, 0, 0, 1}) // resets, restarts, safe
			b[at+8] = 2
			return b
		}), nil},
		{"attestation key in the owner's hierarchy", attest.WrongSigner, func(w *world) {
			w.soft.Attest = func(a *tpm2.TPMSAttest) { a.QualifiedSigner.Buffer = w.soft.QualifiedName(tpm2.TPMRHOwner) }
		}, nil},
		{"quote that names another key", attest.WrongSigner, attested(func(a *tpm2.TPMSAttest) { a.QualifiedSigner.Buffer[5] ^= 1 }), nil},
		{"quote that names no key", attest.WrongSigner, attested(func(a *tpm2.TPMSAttest) { a.QualifiedSigner.Buffer = nil }), nil},
		{"quote signed by another key", attest.BadSignature, func(w *world) {
			k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			w.soft.Sign = w.soft.SignWith(k)
		}, nil},
		{"quote changed after it was signed", attest.BadSignature, lie(func(e *attest.Evidence) { e.Quote[len(e.Quote)-1] ^= 1 }), nil},
		{"signature with bytes after it", attest.BadSignature, lie(func(e *attest.Evidence) { e.Signature = append(e.Signature, 0) }), nil},
		{"signature of zeros", attest.BadSignature, signature(func(s *tpm2.TPMTSignature) {
			s.Signature = tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{Hash: tpm2.TPMAlgSHA256})
		}), nil},
		{"signature with another hash", attest.BadSignature, signature(func(s *tpm2.TPMTSignature) {
			e, _ := s.Signature.ECDSA()
			e.Hash = tpm2.TPMAlgSHA1
		}), nil},
		{"signature by HMAC", attest.BadSignature, signature(func(s *tpm2.TPMTSignature) {
			*s = tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgHMAC, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgHMAC, &tpm2.TPMTHA{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)})}
		}), nil},
		{"no signature", attest.BadSignature, lie(func(e *attest.Evidence) { e.Signature = []byte{0, 0x10} }), nil},
		{"no nonce", attest.NoNonce, attested(func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = nil }), nil},
		{"replayed quote", attest.NotBound, replayed(func(e *attest.Evidence, old attest.Evidence) { e.Quote, e.Signature = old.Quote, old.Signature }), nil},
		{"nonce alone as qualifying data", attest.NotBound, func(w *world) {
			w.soft.Attest = func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = w.soft.Challenge.Nonce }
		}, nil},
		{"qualifying data and more", attest.NotBound, attested(func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = append(a.ExtraData.Buffer, 0) }), nil},
		{"key for secrets swapped by a man in the middle", attest.NotBound, lie(func(e *attest.Evidence) {
			k, _ := attest.NewSealKey()
			e.SealKey = k.PublicKey().Bytes()
		}), key(func(e *attest.Evidence) {
			k, _ := attest.NewSealKey()
			e.SealKey = k.PublicKey().Bytes()
		})},
		{"key to be certified swapped", attest.NotBound, func(w *world) {
			w.soft.Lie = func(e *attest.Evidence) { e.VPNKey = attesttest.SPKI(w.t) }
		}, func(w *world) { w.soft.Keys = func(e *attest.Evidence) { e.VPNKey = attesttest.SPKI(w.t) } }},
		{"server's clock changed on the way", attest.NotBound, lie(func(e *attest.Evidence) { e.Time[7] ^= 1 }), key(func(e *attest.Evidence) { e.Time[7] ^= 1 })},
		{"quote for another place", attest.NotBound, func(w *world) {
			w.soft.Qualify = func(t *attest.Transcript) { t.Challenge.Server = []byte("us-nyc-1") }
		}, nil},
		{"quote for another question", attest.NotBound, func(w *world) {
			w.soft.Qualify = func(t *attest.Transcript) { t.Challenge.Nonce = make([]byte, 32) }
		}, nil},
		{"quote for another connection", attest.NotBound, func(w *world) {
			w.soft.Qualify = func(t *attest.Transcript) { t.Channel[0] ^= 1 }
		}, nil},
		{"connection that ends at a man in the middle", attest.NotSameTPM, func(w *world) { w.channel[0] ^= 1 }, func(w *world) {
			w.channel[0] ^= 1
			w.soft.Channel = w.channel
		}},
		{"challenge changed on the way", attest.NotSameTPM, func(w *world) {
			w.onChallenge = func(b []byte) []byte { b[12] ^= 1; return b }
		}, nil},
		{"quote that selects no bank", attest.EmptySelection, selects(), nil},
		{"quote that selects no register (CVE-2022-0317)", attest.EmptySelection, selects(bank(tpm2.TPMAlgSHA256, 0, 0, 0)), nil},
		{"quote of the SHA-1 bank", attest.WrongBank, selects(bank(tpm2.TPMAlgSHA1, 0xff, 0xff, 0)), selects(bank(tpm2.TPMAlgSHA256, 0xff, 0xff, 0))},
		{"quote of two banks", attest.WrongBank, selects(bank(tpm2.TPMAlgSHA256, 0xff, 0xff, 0), bank(tpm2.TPMAlgSHA1, 1, 0, 0)), selects(bank(tpm2.TPMAlgSHA256, 0xff, 0xff, 0))},
		{"quote of one bank, named twice", attest.WrongBank, selects(bank(tpm2.TPMAlgSHA256, 0xff, 0, 0), bank(tpm2.TPMAlgSHA256, 0, 0xff, 0)), nil},
		{"quote without register 11", attest.WrongSelection, selects(bank(tpm2.TPMAlgSHA256, 0xff, 0xf7, 0)), nil},
		{"quote with register 16, which anybody resets, for another", attest.WrongSelection, selects(bank(tpm2.TPMAlgSHA256, 0xff, 0x7f, 1)), nil},
		{"quote with a register more", attest.WrongSelection, selects(bank(tpm2.TPMAlgSHA256, 0xff, 0xff, 1)), nil},
		{"selection written in another way", attest.WrongSelection, selects(bank(tpm2.TPMAlgSHA256, 0xff, 0xff)), nil},
		{"registers that were not quoted", attest.WrongPCRs, lie(func(e *attest.Evidence) { e.PCRs[40] ^= 1 }), nil},
		{"registers in another order", attest.WrongPCRs, lie(func(e *attest.Evidence) {
			e.PCRs = slices.Concat(e.PCRs[32:64], e.PCRs[:32], e.PCRs[64:])
		}), nil},
	}
}

// replayed lets the server answer a first time, and put parts of that into its second answer.
func replayed(put func(e *attest.Evidence, old attest.Evidence)) func(w *world) {
	return func(w *world) {
		if _, _, err := w.run(); err != nil {
			w.t.Fatal(err)
		}
		old := w.soft.Transcript.Evidence
		w.soft.Lie = func(e *attest.Evidence) { put(e, old) }
	}
}

func when() []attack {
	year := 365 * 24 * time.Hour
	exact := func(w *world) { w.server.Profile.Clock = 1 }
	server := func(off time.Duration) func(w *world) { return func(w *world) { w.soft.Now = w.soft.Now.Add(off) } }
	ours := func(off time.Duration) func(w *world) {
		return func(w *world) {
			w.verifier.Now = w.verifier.Now.Add(off)
			w.soft.Now = w.verifier.Now
		}
	}
	return []attack{
		{"server's clock ten years ahead", attest.ServerClockOff, server(10 * year), server(time.Minute)},
		{"server's clock ten years behind", attest.ServerClockOff, server(-10 * year), server(-time.Minute)},
		{"server's clock beyond all years", attest.ServerClockOff, func(w *world) {
			w.soft.Keys = func(e *attest.Evidence) { binary.BigEndian.PutUint64(e.Time, 1<<63) }
		}, nil},
		{"evidence from before the last reset", attest.CounterBack, remember(func(m *attest.Memory) { m.Resets = 8 }), remember(func(m *attest.Memory) { m.Resets = 7; m.Clock = 999_000; m.At = m.At.Add(time.Hour) })},
		{"evidence from before the last resume", attest.CounterBack, both(sameBoot, remember(func(m *attest.Memory) { m.Restarts = 1 })), sameBoot},
		{"machine that was suspended and resumed", attest.Resumed, both(sameBoot, clock(func(c *tpm2.TPMSClockInfo) { c.RestartCount = 1 })), sameBoot},
		{"machine put back to a snapshot of this boot", attest.ClockBack, both(sameBoot, remember(func(m *attest.Memory) { m.Clock = 9_000_000 })), sameBoot},
		{"TPM whose clock was set back by hours", attest.ClockBack, remember(func(m *attest.Memory) { m.Clock = 90_000_000 }), remember(func(m *attest.Memory) { m.Clock = 3_000_000 })},
		{"machine that stood still for ten minutes", attest.ClockGap, both(sameBoot, clock(func(c *tpm2.TPMSClockInfo) { c.Clock -= 10 * 60 * 1000 })), both(sameBoot, clock(func(c *tpm2.TPMSClockInfo) { c.Clock -= 60 * 1000 }))},
		{"machine whose clock ran ahead by ten minutes", attest.ClockGap, both(sameBoot, clock(func(c *tpm2.TPMSClockInfo) { c.Clock += 10 * 60 * 1000 })), both(sameBoot, clock(func(c *tpm2.TPMSClockInfo) { c.Clock += 60 * 1000 }))},
		{"software TPM's machine put back by a minute", attest.ClockGap, both(exact, sameBoot, clock(func(c *tpm2.TPMSClockInfo) { c.Clock -= 60 * 1000 })), both(exact, sameBoot, clock(func(c *tpm2.TPMSClockInfo) { c.Clock -= 45 * 1000 }))},
		{"activator's clock ten years ahead", attest.ReleaseExpired, ours(10 * year), ours(24 * time.Hour)},
		{"activator's clock ten years behind", attest.ReleaseNotYet, both(ours(-10*year), remember(func(m *attest.Memory) { m.At = m.At.Add(-11 * year) })), nil},
		{"activator's clock set back within a boot", attest.ClockGap, both(sameBoot, remember(func(m *attest.Memory) { m.At = m.At.Add(24 * time.Hour) })), sameBoot},
	}
}

// event changes the first event of a register and type.
func event(index int, t eventlog.Type, change func(e *attesttest.Event)) func(m *attesttest.Machine) {
	return func(m *attesttest.Machine) { change(&m.Events[m.Find(index, t)]) }
}

func insert(at func(m *attesttest.Machine) int, e attesttest.Event) func(m *attesttest.Machine) {
	return func(m *attesttest.Machine) { m.Events = slices.Insert(m.Events, at(m), e) }
}

func first(*attesttest.Machine) int  { return 0 }
func last(m *attesttest.Machine) int { return len(m.Events) }

func forgetEvent(index int, t eventlog.Type) func(m *attesttest.Machine) {
	return func(m *attesttest.Machine) {
		at := m.Find(index, t)
		m.Events = slices.Delete(m.Events, at, at+1)
	}
}

func whatBooted() []attack {
	raw := func(change func(b []byte) []byte) func(w *world) {
		return logs(func(m *attesttest.Machine) []byte { return change(m.Log()) })
	}
	header := func(algorithms ...uint16) func(w *world) {
		return raw(func(b []byte) []byte {
			return append(attesttest.Header(algorithms...), b[len(attesttest.Header(4, 20, 11, 32)):]...)
		})
	}
	variable := func(name string, value []byte) attesttest.Event {
		return attesttest.Hashed(7, eventlog.VariableDriver, attesttest.VariableData(pcr.Global, name, value))
	}
	off := machine(event(7, eventlog.VariableDriver, func(e *attesttest.Event) { *e = variable("SecureBoot", []byte{0}) }))
	locality := append([]byte("StartupLocality\x00"), 3)
	return []attack{
		{"event log cut within an event", attest.MalformedLog, raw(func(b []byte) []byte { return b[:len(b)-1] }), nil},
		{"event log padded with zeros", attest.MalformedLog, raw(func(b []byte) []byte { return append(b, make([]byte, 64)...) }), nil},
		{"event log padded with 0xff", attest.MalformedLog, raw(func(b []byte) []byte { return append(b, bytes.Repeat([]byte{0xff}, 64)...) }), nil},
		{"event log without header", attest.MalformedLog, raw(func(b []byte) []byte { return b[len(attesttest.Header(4, 20, 11, 32)):] }), nil},
		{"event log of the old form", attest.MalformedLog, raw(func(b []byte) []byte { b[32+15] = '2'; return b }), nil},
		{"event log whose header names an algorithm twice", attest.MalformedLog, header(11, 32, 11, 32), nil},
		{"event log whose header gives SHA-256 another size", attest.MalformedLog, header(4, 20, 11, 20), nil},
		{"event log with one digest for an event", attest.MalformedLog, raw(func(b []byte) []byte { b[len(attesttest.Header(4, 20, 11, 32))+8] = 1; return b }), nil},
		{"event log with two digests of one algorithm", attest.MalformedLog, raw(func(b []byte) []byte { b[len(attesttest.Header(4, 20, 11, 32))+12] = 11; return b }), nil},
		{"event log with register 24", attest.MalformedLog, raw(func(b []byte) []byte { b[len(attesttest.Header(4, 20, 11, 32))] = 24; return b }), nil},
		{"event log of 5,000 events", attest.MalformedLog, same(func(m *attesttest.Machine) {
			for range 5000 {
				m.Events = append(m.Events, attesttest.Event{Type: eventlog.NoAction})
			}
		}), nil},
		{"event that extends nothing and has a digest", attest.MalformedLog, same(insert(first, attesttest.Event{Type: eventlog.NoAction, Digest: [32]byte{1}})), nil},
		{"event log of the SHA-1 bank only", attest.NoBank, logs(func(*attesttest.Machine) []byte { return attesttest.Header(4, 20) }), nil},
		{"event log cut between events", attest.LogReplay, same(func(m *attesttest.Machine) { m.Events = m.Events[:len(m.Events)-1] }), nil},
		{"event log of another boot", attest.LogReplay, logs(func(*attesttest.Machine) []byte { return attesttest.Boot(attesttest.TheImage("other")).Log() }), nil},
		{"events in another order", attest.LogReplay, same(func(m *attesttest.Machine) {
			a, b := m.Find(7, eventlog.VariableDriver), m.Find(7, eventlog.Separator)
			m.Events[a], m.Events[b] = m.Events[b], m.Events[a]
		}), same(func(m *attesttest.Machine) { // between registers there is no order
			a := m.Find(2, eventlog.BootDriver)
			m.Events[a], m.Events[a-1] = m.Events[a-1], m.Events[a]
		})},
		{"event left out", attest.LogReplay, same(forgetEvent(2, eventlog.BootDriver)), machine(forgetEvent(2, eventlog.BootDriver))},
		{"event made up", attest.LogReplay, same(insert(first, attesttest.Blob(1, eventlog.HandoffTables, "more"))), machine(insert(first, attesttest.Blob(1, eventlog.HandoffTables, "more")))},
		{"event with another digest", attest.LogReplay, same(event(0, eventlog.FirmwareBlob, func(e *attesttest.Event) { e.Digest = attesttest.Hash([]byte("DXE")) })), nil},
		{"event whose type says that it extends nothing", attest.LogReplay, same(event(2, eventlog.BootDriver, func(e *attesttest.Event) { e.Type, e.Digest = eventlog.NoAction, [32]byte{} })), nil},
		{"start from another locality", attest.LogReplay, both(allow(attest.Rule{PCR: 0, Type: eventlog.NoAction, Why: "start-up", Max: 1, Any: true}),
			same(insert(first, attesttest.Event{Type: eventlog.NoAction, Data: locality}))), nil},
		{"register extended by nobody knows whom", attest.LogReplay, func(w *world) {
			full := w.soft.Machine
			full.Events = append(full.Events, attesttest.Blob(15, eventlog.IPL, "machine id"))
			w.soft.Lie = func(e *attest.Evidence) {
				m := full.Clone()
				m.Events = m.Events[:len(m.Events)-1]
				e.Log = m.Log()
			}
		}, nil},
		{"system that has not come up", attest.WrongPhase, machine(func(m *attesttest.Machine) { m.Phases = m.Phases[:1] }), nil},
		{"system before its first phase", attest.WrongPhase, machine(func(m *attesttest.Machine) { m.Phases = nil }), nil},
		{"system that is going down", attest.WrongPhase, machine(func(m *attesttest.Machine) { m.Phases = append(m.Phases, "shutdown") }), nil},
		{"system that measures phases where the release knows none", attest.WrongPhase, func(w *world) { w.verifier.Phases = nil }, both(func(w *world) {
			w.verifier.Phases = nil
			w.releaser.Phases = nil
			w.admit(8, attesttest.TheImage("other"), nil)
			w.soft.Machine = attesttest.Boot(attesttest.TheImage("other"))
			w.soft.Machine.Phases = nil
		})},
		{"system in a phase of its own", attest.LogReplay, machine(func(m *attesttest.Machine) { m.Phases = append(m.Phases, "party") }), nil},
		{"Secure Boot off", attest.SecureBootOff, off, nil},
		{"Secure Boot off, and the log says on", attest.LogReplay, both(off, same(event(7, eventlog.VariableDriver, func(e *attesttest.Event) { *e = variable("SecureBoot", []byte{1}) }))), nil},
		{"Secure Boot off, and the log's data says on", attest.SecureBootOff, both(off, same(event(7, eventlog.VariableDriver, func(e *attesttest.Event) {
			e.Data = attesttest.VariableData(pcr.Global, "SecureBoot", []byte{1})
		}))), nil},
		{"Secure Boot measured twice", attest.SecureBootOff, machine(insert(first, variable("SecureBoot", []byte{1}))), nil},
		{"Secure Boot not measured", attest.SecureBootOff, machine(forgetEvent(7, eventlog.VariableDriver)), nil},
		{"Secure Boot measured after the separator", attest.SecureBootOff, machine(func(m *attesttest.Machine) {
			at := m.Find(7, eventlog.VariableDriver)
			e := m.Events[at]
			m.Events = append(slices.Delete(m.Events, at, at+1), e)
		}), nil},
		{"separator left out", attest.Separators, machine(forgetEvent(1, eventlog.Separator)), nil},
		{"separator twice", attest.Separators, machine(insert(last, attesttest.Hashed(1, eventlog.Separator, make([]byte, 4)))), nil},
		{"separator of a failed firmware", attest.Separators, machine(event(1, eventlog.Separator, func(e *attesttest.Event) { *e = attesttest.Hashed(1, eventlog.Separator, []byte{1, 0, 0, 0}) })), nil},
		{"separator whose data is not what was measured", attest.Separators, machine(event(3, eventlog.Separator, func(e *attesttest.Event) { e.Digest = attesttest.Hash([]byte("code")) })), nil},
		{"separator in a register that has none", attest.Separators, machine(insert(last, attesttest.Hashed(14, eventlog.Separator, make([]byte, 4)))), nil},
		{"event of a type that no rule names", attest.UnknownEvent, machine(insert(first, attesttest.Blob(0, eventlog.NonhostCode, "management engine"))), nil},
		{"event of a type that nobody knows", attest.UnknownEvent, machine(insert(first, attesttest.Blob(1, 0x80001234, "?"))), nil},
		{"event in a register of no rule", attest.UnknownEvent, machine(insert(last, attesttest.Blob(14, eventlog.IPL, "MokList"))), nil},
		{"event in a register that is not quoted", attest.UnknownEvent, machine(insert(last, attesttest.Blob(17, eventlog.IPL, "?"))), nil},
		{"command line from outside the image", attest.UnknownEvent, machine(insert(last, attesttest.Hashed(12, eventlog.IPL, []byte("init=/bin/sh")))), nil},
		{"add-on to the image", attest.UnknownEvent, machine(insert(last, attesttest.Blob(13, eventlog.IPL, "sysext"))), nil},
		{"firmware driver after the separator", attest.UnknownEvent, machine(insert(last, attesttest.Blob(2, eventlog.BootDriver, "network adapter"))), nil},
		{"debugger of the firmware", attest.UnknownEvent, machine(insert(first, attesttest.Hashed(7, eventlog.EFIAction, []byte("UEFI Debug Mode")))), nil},
		{"nothing, said without rule", attest.UnknownEvent, machine(insert(first, attesttest.Event{Type: eventlog.NoAction, Data: []byte("hello")})),
			both(allow(attest.Rule{PCR: 0, Type: eventlog.NoAction, Why: "hello", Max: 1, Any: true}), machine(insert(first, attesttest.Event{Type: eventlog.NoAction, Data: []byte("hello")})))},
		{"firmware that is not known", attest.RefusedEvent, machine(event(0, eventlog.FirmwareBlob, func(e *attesttest.Event) { *e = attesttest.Blob(0, eventlog.FirmwareBlob, "implant") })),
			machine(event(0, eventlog.FirmwareBlob, func(e *attesttest.Event) { *e = attesttest.Blob(0, eventlog.FirmwareBlob, "DXE") }))},
		{"adapter's code that is not known", attest.RefusedEvent, machine(event(2, eventlog.BootDriver, func(e *attesttest.Event) { *e = attesttest.Blob(2, eventlog.BootDriver, "implant") })), nil},
		{"another way to boot", attest.RefusedEvent, machine(event(4, eventlog.EFIAction, func(e *attesttest.Event) {
			*e = attesttest.Hashed(4, eventlog.EFIAction, []byte("Returning from EFI Application"))
		})), nil},
		{"event whose text is not what was measured", attest.RefusedEvent, machine(event(4, eventlog.EFIAction, func(e *attesttest.Event) { e.Digest = attesttest.Hash([]byte("implant")) })), nil},
		{"boot variable that is not known", attest.RefusedEvent, machine(insert(first, attesttest.BootVariable("PlatformRecovery0000", "disk"))), machine(insert(first, attesttest.BootVariable("Boot0001", "disk")))},
		{"boot variable whose data is not what was measured", attest.RefusedEvent, machine(event(1, eventlog.VariableBoot, func(e *attesttest.Event) { e.Digest = attesttest.Hash([]byte("implant")) })), nil},
		{"variable that is none", attest.RefusedEvent, machine(insert(first, attesttest.Hashed(1, eventlog.VariableBoot, []byte("Boot0001")))), nil},
		{"firmware volume under the type of another register's rule", attest.UnknownEvent, machine(insert(first, attesttest.Blob(0, eventlog.HandoffTables, "implant"))), nil},
		{"a firmware volume more", attest.TooManyEvents, machine(insert(first, attesttest.Blob(0, eventlog.FirmwareBlob, "DXE"))), nil},
		{"an adapter more", attest.TooManyEvents, machine(insert(first, attesttest.Blob(2, eventlog.BootDriver, "network adapter"))), nil},
		{"firmware that was not measured", attest.MissingEvent, machine(forgetEvent(0, eventlog.FirmwareBlob)), nil},
		{"Secure Boot variable that was not measured", attest.MissingEvent, machine(func(m *attesttest.Machine) {
			at := m.Find(7, eventlog.Separator) - 1
			m.Events = slices.Delete(m.Events, at, at+1)
		}), nil},
	}
}

// allow adds a rule to the profile.
func allow(r attest.Rule) func(w *world) {
	return func(w *world) { w.server.Profile.Rules = append(w.server.Profile.Rules, r) }
}

func whetherThatIsARelease() []attack {
	other := attesttest.TheImage("other")
	admits := func(i attesttest.Image, change func(*release.Addition), then func(w *world, r *attest.Release)) func(w *world) {
		return func(w *world) {
			r := w.admit(8, i, change)
			w.soft.Machine = attesttest.Boot(i)
			if then != nil {
				then(w, r)
			}
		}
	}
	right := admits(other, nil, nil)
	fixes := func(index int, v pcr.Value) func(*release.Addition) {
		return func(a *release.Addition) {
			a.PCRs["vm"] = append(a.PCRs["vm"], release.PCR{Index: index, SHA256: dsse.Digest(v)})
		}
	}
	loads := func(m *attesttest.Machine) {
		insert(func(m *attesttest.Machine) int { return m.Find(4, eventlog.BootApplication) }, attesttest.Blob(4, eventlog.BootApplication, "shim"))(m)
	}
	keys := func(change func(v *pcr.Variables)) func(w *world) {
		return func(w *world) {
			v := attesttest.Keys
			change(&v)
			for name, c := range map[string][2]any{"PK": {pcr.Global, v.PK}, "KEK": {pcr.Global, v.KEK}, "db": {pcr.Security, v.DB}, "dbx": {pcr.Security, v.DBX}} {
				for n, e := range w.soft.Machine.Events {
					if x, err := eventlog.ParseVariable(e.Data); err == nil && e.Type == eventlog.VariableDriver && x.Name == name {
						w.soft.Machine.Events[n] = attesttest.Hashed(7, eventlog.VariableDriver, attesttest.VariableData(c[0].(pcr.GUID), name, c[1].([]byte)))
					}
				}
			}
		}
	}
	return []attack{
		{"image that nobody released", attest.UnknownImage, func(w *world) { w.soft.Machine = attesttest.Boot(other) }, right},
		{"debug image", attest.UnknownImage, boots(func(i *attesttest.Image) { i.Cmdline += " debug"; i.Name += " lab" }), nil},
		{"image with another kernel", attest.UnknownImage, boots(func(i *attesttest.Image) { i.Kernel = "implant" }), nil},
		{"image with another initrd", attest.UnknownImage, boots(func(i *attesttest.Image) { i.Initrd = "implant" }), nil},
		{"image with another command line", attest.UnknownImage, boots(func(i *attesttest.Image) { i.Cmdline += " init=/bin/sh" }), nil},
		{"no release at all", attest.UnknownImage, func(w *world) { w.verifier.Releases = nil }, nil},
		{"image for other machines", attest.WrongFlavour, func(w *world) { w.soft.Machine = attesttest.Boot(attesttest.TheImage("iron")) }, func(w *world) {
			w.soft.Machine = attesttest.Boot(attesttest.TheImage("iron"))
			w.server.Flavour = "hardware"
		}},
		{"image with another signature region's code", attest.WrongBoot, boots(func(i *attesttest.Image) { i.Name += "x" }), nil},
		{"another loader before the image", attest.WrongBoot, machine(loads), nil},
		{"image started after another failed", attest.WrongBoot, machine(insert(last, attesttest.Blob(4, eventlog.BootApplication, "again"))), nil},
		{"other platform key enrolled", attest.WrongKeys, keys(func(v *pcr.Variables) { v.PK = []byte("attacker") }), keys(func(*pcr.Variables) {})},
		{"other key exchange key enrolled", attest.WrongKeys, keys(func(v *pcr.Variables) { v.KEK = []byte("attacker") }), keys(func(*pcr.Variables) {})},
		{"other signature database enrolled", attest.WrongKeys, keys(func(v *pcr.Variables) { v.DB = append([]byte("attacker"), v.DB...) }), keys(func(*pcr.Variables) {})},
		{"other list of forbidden keys", attest.WrongKeys, keys(func(v *pcr.Variables) { v.DBX = []byte("one") }), keys(func(*pcr.Variables) {})},
		{"started by another certificate of the database", attest.WrongKeys, machine(event(7, eventlog.VariableAuthority, func(e *attesttest.Event) {
			*e = attesttest.Hashed(7, eventlog.VariableAuthority, attesttest.VariableData(pcr.Security, "db", []byte("attacker")))
		})), nil},
		{"release that fixes a register more", attest.WrongRegister, admits(other, fixes(14, pcr.Value{1}), nil), admits(other, fixes(14, pcr.Value{}), nil)},
		{"release that fixes a register that nobody quotes", attest.WrongRegister, admits(other, fixes(23, pcr.Value{}), nil), right},
		{"revoked release", attest.ReleaseRevoked, admits(other, nil, func(_ *world, r *attest.Release) { r.Revoked = true }), right},
		{"release of the future", attest.ReleaseNotYet, admits(other, nil, func(_ *world, r *attest.Release) { r.Manifest.Issued = r.Manifest.Issued.Add(24 * time.Hour) }), right},
		{"expired release", attest.ReleaseExpired, admits(other, nil, func(w *world, r *attest.Release) { r.Manifest.Expires = w.verifier.Now }), right},
		{"old release", attest.BelowFloor, func(w *world) { w.verifier.Floor = 8 }, both(right, func(w *world) { w.verifier.Floor = 8 })},
	}
}

// TestAttacks holds every way in that is known to have been tried on somebody, refused for its
// reason, and its twin, accepted.
func TestAttacks(t *testing.T) {
	newWorld(t).accepted(t, "the twin of all that have none of their own")
	count, met := 0, map[attest.Reason]bool{}
	for _, list := range [][]attack{whoItIs(), whetherItSaysSo(), when(), whatBooted(), whetherThatIsARelease()} {
		for _, a := range list {
			count++
			met[a.want] = true
			t.Run(a.name, func(t *testing.T) {
				w := newWorld(t)
				a.attack(w)
				_, _, err := w.run()
				if got, detail := attest.ReasonOf(err); got != a.want {
					t.Errorf("refused for %s (%s), want %s: %v", got.Code(), detail, a.want.Code(), err)
				}
				if a.twin != nil {
					twin := newWorld(t)
					a.twin(twin)
					twin.accepted(t, "twin")
				}
			})
		}
	}
	t.Logf("%d attacks", count)
	if count < 80 {
		t.Errorf("%d attacks, want 80", count)
	}
	for _, r := range attest.Reasons() {
		if !met[r] && r != attest.NoReceipt { // TestGrants
			t.Errorf("no attack meets %s", r.Code())
		}
	}
}

// TestGrants: secrets open for one attestation, on one boot, once.
func TestGrants(t *testing.T) {
	w := newWorld(t)
	_, s := w.accepted(t, "first")
	before := *w.soft
	grant, expected, err := s.Grant([]byte("secrets"), w.verifier.Head)
	if err != nil {
		t.Fatal(err)
	}
	// The twin first: it opens where it belongs.
	if _, receipt, err := before.Open(grant); err != nil || attest.Received(receipt, expected) != nil {
		t.Fatalf("the grant does not open: %v", err)
	}
	_, s2 := w.accepted(t, "another boot")
	if _, _, err := w.soft.Open(grant); err == nil {
		t.Error("secrets replayed to another boot open there")
	}
	kept := *w.soft
	kept.SealKey = before.SealKey
	if _, _, err := kept.Open(grant); err == nil {
		t.Error("secrets open for another attestation, with the same key")
	}
	for n := 0; n < len(grant); n += 3 {
		changed := bytes.Clone(grant)
		changed[n] ^= 1
		if _, _, err := before.Open(changed); err == nil {
			t.Fatalf("a grant with byte %d changed opens", n)
		}
	}
	grant2, expected2, err := s2.Grant([]byte("secrets"), w.verifier.Head)
	if err != nil {
		t.Fatal(err)
	}
	_, receipt2, err := w.soft.Open(grant2)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"another attestation's": receipt2, "none": nil, "zeros": attest.Encode(&attest.Receipt{MAC: make([]byte, 32)})} {
		if r, _ := attest.ReasonOf(attest.Received(b, expected)); r != attest.NoReceipt {
			t.Errorf("%s receipt is taken", name)
		}
	}
	if err := attest.Received(receipt2, expected2); err != nil {
		t.Error(err)
	}
}

// TestOnce: a challenge is answered once, and a refused server is granted nothing.
func TestOnce(t *testing.T) {
	w := newWorld(t)
	s, err := w.verifier.Identify(w.server, w.channel, w.soft.Say())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Grant(nil, w.verifier.Head); err == nil {
		t.Error("a grant before evidence")
	}
	evidence := w.soft.Answer(s.Challenge())
	if _, err := s.Appraise(evidence); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Appraise(evidence); err == nil {
		t.Error("the same evidence was accepted twice")
	}
	w.verifier.Floor = 99
	s, err = w.verifier.Identify(w.server, w.channel, w.soft.Say())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Appraise(w.soft.Answer(s.Challenge())); err == nil {
		t.Error("accepted below the floor")
	}
	if _, _, err := s.Grant(nil, w.verifier.Head); err == nil {
		t.Error("a grant for a refused server")
	}
}

// TestEnrolment: without a server nothing is accepted, but the TPM proves itself.
func TestEnrolment(t *testing.T) {
	w := newWorld(t)
	s, err := w.verifier.Identify(nil, w.channel, w.soft.Say())
	if err != nil {
		t.Fatal(err)
	}
	log, err := s.Genuine(w.soft.Answer(s.Challenge()))
	if err != nil || !bytes.Equal(log, w.soft.Machine.Log()) {
		t.Errorf("%d bytes, %v", len(log), err)
	}
	if s, err = w.verifier.Identify(nil, w.channel, w.soft.Say()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Appraise(w.soft.Answer(s.Challenge())); err == nil {
		t.Error("a session without server was accepted")
	}
	w.soft.Prove = func([]byte) []byte { return make([]byte, sha256.Size) }
	if s, err = w.verifier.Identify(nil, w.channel, w.soft.Say()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Genuine(w.soft.Answer(s.Challenge())); err == nil {
		t.Error("a TPM that does not hold the attestation key was enrolled")
	}
	w.soft.Identity.EK[3] ^= 1
	if _, err := w.verifier.Identify(nil, w.channel, w.soft.Say()); err == nil {
		t.Error("a bad endorsement key was enrolled")
	}
}
