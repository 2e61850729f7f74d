package attesttest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"lethe/attest"
)

// Soft is an attester whose keys are not in a TPM, so that it can say what no TPM
// would. What it says unless told otherwise is right.
type Soft struct {
	T        testing.TB
	Machine  *Machine
	Channel  attest.Channel
	Clock    tpm2.TPMSClockInfo
	Now      time.Time
	EK       *ecdh.PrivateKey
	AK       *ecdsa.PrivateKey
	Identity attest.Identity
	SealKey  hpke.PrivateKey

	Challenge  attest.Challenge
	Transcript attest.Transcript // of the last evidence

	// Ways to lie, in the order in which they are asked; nil for the truth.
	Keys    func(*attest.Evidence)         // before the quote
	Qualify func(*attest.Transcript)       // what the quote is about
	Attest  func(*tpm2.TPMSAttest)         // before it is encoded
	Quote   func([]byte) []byte            // before it is signed
	Sign    func([]byte) []byte            // instead of the key
	Lie     func(*attest.Evidence)         // before the proof
	Prove   func(credential []byte) []byte // another credential
}

// NewSoft returns an attester with new keys on a machine.
func NewSoft(t testing.TB, m *Machine, channel attest.Channel, now time.Time) *Soft {
	t.Helper()
	s := &Soft{T: t, Machine: m, Channel: channel, Now: now, Clock: tpm2.TPMSClockInfo{Clock: 1_000_000, ResetCount: 7, Safe: true}}
	var err error
	if s.EK, err = ecdh.P256().GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	if s.AK, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	s.Identity = attest.Identity{EK: Public(tpm2.ECCEKTemplate, s.EK.PublicKey()), AK: s.AKPublic(attest.AKTemplate([32]byte{}))}
	return s
}

// AKPublic returns the attestation key as a template's.
func (s *Soft) AKPublic(template tpm2.TPMTPublic) []byte {
	public, err := s.AK.PublicKey.ECDH()
	if err != nil {
		s.T.Fatal(err)
	}
	return Public(template, public)
}

// Public returns a TPMT_PUBLIC of a point.
func Public(template tpm2.TPMTPublic, key *ecdh.PublicKey) []byte {
	b := key.Bytes()
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: b[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: b[33:]}})
	return tpm2.Marshal(template)
}

// Say returns the identity.
func (s *Soft) Say() []byte { return attest.Encode(&s.Identity) }

// name returns the name of the attestation key.
func (s *Soft) name() []byte {
	sum := sha256.Sum256(s.Identity.AK)
	return append([]byte{0, 0x0b}, sum[:]...)
}

// credential opens the credential of a challenge (TPM 2.0 Library, part 1, 24), without looking at its HMAC.
func (s *Soft) credential() []byte {
	point, err := tpm2.Unmarshal[tpm2.TPMSECCPoint](s.Challenge.Secret)
	if err != nil {
		s.T.Fatal(err)
	}
	x, y := pad(point.X.Buffer), pad(point.Y.Buffer)
	ephemeral, err := ecdh.P256().NewPublicKey(append(append([]byte{4}, x...), y...))
	if err != nil {
		s.T.Fatal(err)
	}
	z, err := s.EK.ECDH(ephemeral)
	if err != nil {
		s.T.Fatal(err)
	}
	hash := tpm2.TPMAlgSHA256
	h, _ := hash.Hash()
	seed := tpm2.KDFe(h, z, "IDENTITY", x, s.EK.PublicKey().Bytes()[1:33], 256)
	key := tpm2.KDFa(h, seed, "STORAGE", s.name(), nil, 128)
	block, err := aes.NewCipher(key)
	if err != nil {
		s.T.Fatal(err)
	}
	encrypted := bytes.Clone(s.Challenge.Credential[2+sha256.Size:])
	//lint:ignore SA1019 it is the TPM's mode (TPM 2.0 Library, part 1, 24)
	cipher.NewCFBDecrypter(block, make([]byte, aes.BlockSize)).XORKeyStream(encrypted, encrypted)
	return encrypted[2:]
}

func pad(b []byte) []byte { return append(make([]byte, 32-len(b)), b...) }

// SPKI returns a new key's SubjectPublicKeyInfo.
func SPKI(t testing.TB) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Answer returns evidence.
func (s *Soft) Answer(challenge []byte) []byte {
	s.T.Helper()
	if err := attest.Decode(challenge, &s.Challenge); err != nil {
		s.T.Fatal(err)
	}
	s.Transcript = attest.Transcript{Identity: s.Identity, Challenge: s.Challenge, Channel: s.Channel}
	t := &s.Transcript
	e := &t.Evidence
	var err error
	if s.SealKey, err = attest.NewSealKey(); err != nil {
		s.T.Fatal(err)
	}
	e.Time = binary.BigEndian.AppendUint64(nil, uint64(s.Now.Unix()))
	e.SealKey, e.VPNKey, e.APIKey = s.SealKey.PublicKey().Bytes(), SPKI(s.T), SPKI(s.T)
	if s.Keys != nil {
		s.Keys(e)
	}
	for _, v := range s.Machine.Registers() {
		e.PCRs = append(e.PCRs, v[:]...)
	}
	e.Log = s.Machine.Log()
	about := *t
	if s.Qualify != nil {
		s.Qualify(&about)
	}
	extra, digest := about.Qualifying(), sha256.Sum256(e.PCRs)
	a := tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote, QualifiedSigner: tpm2.TPM2BName{Buffer: s.QualifiedName(tpm2.TPMRHEndorsement)},
		ExtraData: tpm2.TPM2BData{Buffer: extra[:]}, ClockInfo: s.Clock, FirmwareVersion: 1,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{PCRSelect: attest.Selection(), PCRDigest: tpm2.TPM2BDigest{Buffer: digest[:]}}),
	}
	if s.Attest != nil {
		s.Attest(&a)
	}
	e.Quote = tpm2.Marshal(a)
	if s.Quote != nil {
		e.Quote = s.Quote(e.Quote)
	}
	sign := s.SignWith(s.AK)
	if s.Sign != nil {
		sign = s.Sign
	}
	e.Signature = sign(e.Quote)
	if s.Lie != nil {
		s.Lie(e)
	}
	credential := s.credential()
	if s.Prove != nil {
		credential = s.Prove(credential)
	}
	e.Proof = t.Proof(credential)
	return attest.Encode(e)
}

// QualifiedName returns the qualified name of the attestation key in a hierarchy.
func (s *Soft) QualifiedName(hierarchy tpm2.TPMHandle) []byte {
	sum := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(hierarchy)), s.name()...))
	return append([]byte{0, 0x0b}, sum[:]...)
}

// SignWith returns what signs as a TPM does.
func (s *Soft) SignWith(key *ecdsa.PrivateKey) func([]byte) []byte {
	return func(message []byte) []byte {
		digest := sha256.Sum256(message)
		r, v, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			s.T.Fatal(err)
		}
		return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: r.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: v.Bytes()}})})
	}
}

// Open opens a grant for the last evidence.
func (s *Soft) Open(grant []byte) (secrets, receipt []byte, err error) {
	var g attest.Grant
	if err := attest.Decode(grant, &g); err != nil {
		return nil, nil, err
	}
	secrets, r, err := attest.Open(&s.Transcript, s.SealKey, &g)
	if err != nil {
		return nil, nil, err
	}
	return secrets, attest.Encode(r), nil
}
