package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// Name is the name of a TPM's object: the algorithm and the digest of its public area
// (TPM 2.0 Library, part 1, 16).
type Name [2 + sha256.Size]byte

func nameOf(public []byte) (n Name) {
	binary.BigEndian.PutUint16(n[:], uint16(tpm2.TPMAlgSHA256))
	sum := sha256.Sum256(public)
	copy(n[2:], sum[:])
	return n
}

// qualifiedName is that of a primary key in the endorsement hierarchy: the digest of the
// hierarchy's handle and the name (part 1, 26.5).
func qualifiedName(n Name) Name {
	return nameOf(append(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)), n[:]...))
}

// AKTemplate is what an attestation key is made from: ECDSA on P-256, restricted to what the
// TPM says itself, bound to the TPM. It is a primary key of the endorsement hierarchy,
// because a quote by a key of another hierarchy hides the counters (part 1, 36.7). The unique
// part, random in each boot, makes it another key in each.
func AKTemplate(unique [sha256.Size]byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
			Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unique[:]}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, sha256.Size)}}),
	}
}

// parsePublic reads a TPMT_PUBLIC that is what the template makes: all but the unique
// part, which is the public key, is as in the template.
func parsePublic(b []byte, template tpm2.TPMTPublic) (*tpm2.TPMTPublic, bool) {
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil || !bytes.Equal(tpm2.Marshal(*p), b) || p.Type != template.Type {
		return nil, false
	}
	like := *p
	like.Unique = template.Unique
	return p, bytes.Equal(tpm2.Marshal(like), tpm2.Marshal(template))
}

// parseEK reads an endorsement key: RSA-2048 or ECC P-256 as the TCG EK Credential
// Profile 2.5, annex B.3.3 and B.3.4, makes it (templates L-1 and L-2).
func parseEK(b []byte) (tpm2.LabeledEncapsulationKey, *tpm2.TPMTPublic, bool) {
	for _, template := range []tpm2.TPMTPublic{tpm2.RSAEKTemplate, tpm2.ECCEKTemplate} {
		p, ok := parsePublic(b, template)
		if !ok {
			continue
		}
		if n, err := p.Unique.RSA(); err == nil && (len(n.Buffer) != 256 || n.Buffer[0] < 0x80 || n.Buffer[255]&1 == 0) {
			return nil, nil, false
		}
		key, err := tpm2.ImportEncapsulationKey(p) // checks that a point is on the curve
		return key, p, err == nil
	}
	return nil, nil, false
}

// parseAK reads an attestation key as [AKTemplate] makes it.
func parseAK(b []byte) (*ecdsa.PublicKey, bool) {
	p, ok := parsePublic(b, AKTemplate([sha256.Size]byte{}))
	if !ok {
		return nil, false
	}
	public, err := tpm2.Pub(*p)
	if err != nil {
		return nil, false
	}
	key, ok := public.(*ecdsa.PublicKey)
	if !ok {
		return nil, false
	}
	_, err = key.ECDH() // fails for points that are not on the curve
	return key, err == nil
}

// quote is what counts of a TPMS_ATTEST.
type quote struct {
	signer    []byte // qualified name
	extra     []byte
	clock     tpm2.TPMSClockInfo
	selection tpm2.TPMLPCRSelection
	digest    []byte
}

// parseQuote reads a TPMS_ATTEST. It looks at magic and type by itself, so that
// what is no quote is told from a damaged one.
func parseQuote(b []byte) (*quote, error) {
	switch {
	case len(b) < 6:
		return nil, Refuse(MalformedQuote, "too short")
	case binary.BigEndian.Uint32(b) != uint32(tpm2.TPMGeneratedValue):
		return nil, Refuse(WrongMagic, "")
	case binary.BigEndian.Uint16(b[4:]) != uint16(tpm2.TPMSTAttestQuote):
		return nil, Refuse(NotQuote, fmt.Sprintf("type %04x", b[4:6]))
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](b)
	if err != nil || !bytes.Equal(tpm2.Marshal(*a), b) {
		return nil, Refuse(MalformedQuote, "")
	}
	info, err := a.Attested.Quote()
	if err != nil {
		return nil, Refuse(MalformedQuote, "")
	}
	return &quote{a.QualifiedSigner.Buffer, a.ExtraData.Buffer, a.ClockInfo, info.PCRSelect, info.PCRDigest.Buffer}, nil
}

// verify checks a TPMT_SIGNATURE: ECDSA with SHA-256, nothing else.
func verify(ak *ecdsa.PublicKey, message, signature []byte) bool {
	s, err := tpm2.Unmarshal[tpm2.TPMTSignature](signature)
	if err != nil || !bytes.Equal(tpm2.Marshal(*s), signature) || s.SigAlg != tpm2.TPMAlgECDSA {
		return false
	}
	e, err := s.Signature.ECDSA()
	if err != nil || e.Hash != tpm2.TPMAlgSHA256 {
		return false
	}
	digest := sha256.Sum256(message)
	return ecdsa.Verify(ak, digest[:], new(big.Int).SetBytes(e.SignatureR.Buffer), new(big.Int).SetBytes(e.SignatureS.Buffer))
}

// Selection returns what a quote must cover: registers 0 to 15 of the SHA-256 bank.
func Selection() tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{pcrMask & 0xff, pcrMask >> 8, 0}}}}
}

// checkSelection says what is wrong with what a quote covers (CVE-2022-0317,
// CVE-2024-29038 and its siblings: verifiers that did not look).
func checkSelection(s tpm2.TPMLPCRSelection) error {
	bits := 0
	for _, bank := range s.PCRSelections {
		for _, b := range bank.PCRSelect {
			bits |= int(b)
		}
	}
	switch {
	case bits == 0:
		return Refuse(EmptySelection, "")
	case len(s.PCRSelections) != 1 || s.PCRSelections[0].Hash != tpm2.TPMAlgSHA256:
		return Refuse(WrongBank, "")
	case !bytes.Equal(tpm2.Marshal(s), tpm2.Marshal(Selection())):
		return Refuse(WrongSelection, fmt.Sprintf("bits %x", s.PCRSelections[0].PCRSelect))
	}
	return nil
}
