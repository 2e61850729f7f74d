// Package attest is how a server proves to the activator what it is, in the terms
// of RFC 9334: the server is the Attester, the activator's machine the Verifier, its
// issuance of secrets the Relying Party.
//
// Over a TLS connection whose server key was made in this boot:
//
//	activator                             server
//	    |  --- request ------------------->  |
//	    |  <-- Identity: EK, AK -----------  |   who the TPM is
//	    |  --- Challenge: nonce, place, -->  |   and a credential that only the TPM
//	    |       credential for EK and AK     |   with this EK opens, and only for this AK
//	    |  <-- Evidence: quote, log, ------  |   what booted, bound to nonce, place, TLS key
//	    |       fresh key, proof             |   and a fresh key
//	    |  --- Grant: secrets to that key->  |   appraised; HPKE, once
//	    |  <-- Receipt --------------------  |   they arrived
//
// [Verifier.Identify] judges the identity and gives the challenge, [Verifier.Appraise]
// judges evidence against a release's manifest, the rules of a hardware [Profile]
// and what was known of the server before ([Memory]). Each refusal has a [Reason], and
// the first check that fails decides; doc/activation.md has the order, every message
// byte by byte, and what attestation cannot show.
//
// The package is pure: it talks to no TPM and no network. Package attest/device is the
// server's side, attest/eventlog reads what firmware measured, package activator keeps
// inventory, releases and secrets.
package attest

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
)

// Sizes in bytes.
const (
	NonceSize      = 32
	CredentialSize = 32 // of the value that credential activation gives back
	SealKeySize    = 1216
	ReceiptSize    = 32
	maxPublic      = 1024    // TPMT_PUBLIC
	maxCertificate = 8 << 10 // of an endorsement key
	maxQuote       = 1024
	maxLog         = 1 << 20
	maxSecrets     = 256 << 10
	MaxMessage     = maxLog + 16<<10
	MaxChallenge   = 4 << 10
	MaxGrant       = maxSecrets + 8<<10
)

// Paths of the protocol on a server. Bodies are messages of package attest.
const (
	PathIdentity = "/v1/identity" // GET: Identity
	PathEvidence = "/v1/evidence" // POST Challenge: Evidence
	PathSecrets  = "/v1/secrets"  // POST Grant: Receipt
)

// MediaType is that of every message.
const MediaType = "application/vnd.lethe.attestation"

// PCRs are the registers that evidence covers: all that firmware, boot loader and
// operating system extend before anybody can reset one (TCG PFP 1.05, 3.3.4). It is not the
// manifest's choice nor the server's: what no rule explains must be as it was at power-on.
const (
	PCRs    = 16
	pcrMask = 1<<PCRs - 1
)

// magic begins every message: name and version of the protocol.
const magic = "lethe/1"

// Kinds of messages: the byte after the magic.
const (
	kindIdentity  = 'I'
	kindChallenge = 'C'
	kindEvidence  = 'E'
	kindGrant     = 'G'
	kindReceipt   = 'R'
	kindHead      = 'H'
)

// Identity says which TPM a server has. Whoever asks may know it: it
// proves nothing yet.
type Identity struct {
	EK            []byte // TPMT_PUBLIC of the endorsement key
	EKCertificate []byte // X.509 in DER by the TPM's maker; empty when the TPM has none
	AK            []byte // TPMT_PUBLIC of the attestation key of this boot
	Head          []byte // the [Head] that came with the secrets in use; empty while the server has none
}

// Challenge is what evidence must answer.
type Challenge struct {
	Nonce      []byte // 32 random bytes
	Server     []byte // id of the server at that place, ASCII
	Credential []byte // TPM2B_ID_OBJECT without its size: the credential, for EK and AK
	Secret     []byte // TPM2B_ENCRYPTED_SECRET without its size: what the EK opens
	Head       []byte // [Head] of the activator's record
}

// Evidence says what has booted.
type Evidence struct {
	Time      []byte // the server's clock, seconds since 1970, 64 bits big-endian
	SealKey   []byte // public key that the secrets are to be encrypted to (HPKE, see [Seal]); made for this answer
	VPNKey    []byte // SubjectPublicKeyInfo of the key that OpenVPN and IKEv2 will use; made in this boot
	APIKey    []byte // the same for the node API
	Quote     []byte // TPMS_ATTEST
	Signature []byte // TPMT_SIGNATURE of the AK over it
	PCRs      []byte // 16 values of the SHA-256 bank, PCR 0 first
	Log       []byte // event log, see package eventlog
	Proof     []byte // [Transcript.Proof]
}

// Grant is secrets for one server, boot and moment.
type Grant struct {
	Head         []byte // [Head] of the activator's record, in which this grant stands already
	Encapsulated []byte // HPKE's enc
	Ciphertext   []byte
}

// Receipt says that a grant was opened.
type Receipt struct {
	MAC []byte // see [Seal]
}

// field is one field of a message: a 32-bit big-endian length and as many bytes.
type field struct {
	name     string
	value    *[]byte
	min, max int
}

func (m *Identity) fields() (byte, []field) {
	return kindIdentity, []field{{"EK", &m.EK, 1, maxPublic}, {"EK certificate", &m.EKCertificate, 0, maxCertificate}, {"AK", &m.AK, 1, maxPublic},
		{"head", &m.Head, 0, headSize}}
}

func (m *Challenge) fields() (byte, []field) {
	return kindChallenge, []field{{"nonce", &m.Nonce, NonceSize, NonceSize}, {"server", &m.Server, 1, 63},
		{"credential", &m.Credential, 1, maxPublic}, {"secret", &m.Secret, 1, maxPublic}, {"head", &m.Head, headSize, headSize}}
}

func (m *Evidence) fields() (byte, []field) {
	return kindEvidence, []field{{"time", &m.Time, 8, 8}, {"seal key", &m.SealKey, SealKeySize, SealKeySize}, {"VPN key", &m.VPNKey, 1, maxPublic},
		{"API key", &m.APIKey, 1, maxPublic}, {"quote", &m.Quote, 1, maxQuote}, {"signature", &m.Signature, 1, maxQuote},
		{"PCRs", &m.PCRs, PCRs * sha256.Size, PCRs * sha256.Size}, {"event log", &m.Log, 1, maxLog}, {"proof", &m.Proof, sha256.Size, sha256.Size}}
}

func (m *Grant) fields() (byte, []field) {
	return kindGrant, []field{{"head", &m.Head, headSize, headSize}, {"key", &m.Encapsulated, 1, 4096}, {"secrets", &m.Ciphertext, 1, maxSecrets}}
}

func (m *Receipt) fields() (byte, []field) {
	return kindReceipt, []field{{"MAC", &m.MAC, ReceiptSize, ReceiptSize}}
}

// Message is one of the protocol's messages.
type Message interface {
	fields() (kind byte, all []field)
}

// ErrMessage says that bytes are not such a message.
var ErrMessage = errors.New("attestation message: malformed")

// Encode returns the one encoding of m. A field that is out of its bounds is a
// defect of the caller, and decoding will tell.
func Encode(m Message) []byte {
	kind, all := m.fields()
	b := append([]byte(magic), kind)
	for _, f := range all {
		b = binary.BigEndian.AppendUint32(b, uint32(len(*f.value)))
		b = append(b, *f.value...)
	}
	return b
}

// Decode reads m from b. Every field must be there, within its bounds, and
// nothing may follow. The fields are copies.
func Decode(b []byte, m Message) error {
	kind, all := m.fields()
	if len(b) < len(magic)+1 || string(b[:len(magic)]) != magic || b[len(magic)] != kind {
		return fmt.Errorf("%w: not a message of kind %c", ErrMessage, kind)
	}
	b = b[len(magic)+1:]
	for _, f := range all {
		if len(b) < 4 {
			return fmt.Errorf("%w: no %s", ErrMessage, f.name)
		}
		n := binary.BigEndian.Uint32(b)
		if b = b[4:]; int64(n) < int64(f.min) || int64(n) > int64(f.max) || int64(n) > int64(len(b)) {
			return fmt.Errorf("%w: %s of %d bytes", ErrMessage, f.name, n)
		}
		*f.value = append([]byte(nil), b[:n]...)
		b = b[n:]
	}
	if len(b) != 0 {
		return fmt.Errorf("%w: %d bytes too many", ErrMessage, len(b))
	}
	return nil
}

// serverID is the form of a server's id, as in the directory.
var serverID = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ValidServer says whether id can name a server.
func ValidServer(id string) bool { return serverID.MatchString(id) }
