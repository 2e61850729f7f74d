//go:build cgo

package token

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"strings"
	"unsafe"

	"github.com/miekg/pkcs11"

	"lethe/fault"
)

// Token is an open token, logged in. It is not safe for concurrent use.
type Token struct {
	context *pkcs11.Ctx
	session pkcs11.SessionHandle
	pin     PIN
}

// Open loads a PKCS #11 module, finds the token of that label and logs in. An empty
// label means the only token there is.
//
// Errors are of kind NotFound (module, token), Conflict (several tokens),
// Unauthenticated (wrong PIN), Denied (PIN locked) or Unavailable (token removed).
func Open(module, label string, pin PIN) (*Token, error) {
	if _, err := os.Stat(module); err != nil {
		return nil, fault.Wrap(fault.NotFound, "there is no PKCS #11 module at "+module, err).
			WithHint("for a YubiKey: apt-get install ykcs11, then libykcs11.so")
	}
	context := pkcs11.New(module)
	if context == nil {
		return nil, fault.New(fault.NotFound, module+" is no PKCS #11 module")
	}
	t := &Token{context: context, pin: pin}
	if err := context.Initialize(); err != nil {
		context.Destroy()
		return nil, classify("load the module", err)
	}
	if err := t.begin(label); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// begin opens a session with a token and logs in.
func (t *Token) begin(label string) error {
	slot, flags, err := t.find(label)
	if err != nil {
		return err
	}
	if err := locked(flags); err != nil {
		return err
	}
	if t.session, err = t.context.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION); err != nil {
		return classify("open a session", err)
	}
	return t.authenticate(pkcs11.CKU_USER)
}

// locked says no before a PIN is asked for.
func locked(flags uint) error {
	if flags&pkcs11.CKF_USER_PIN_LOCKED != 0 {
		return classify("log in", pkcs11.Error(pkcs11.CKR_PIN_LOCKED))
	}
	return nil
}

// find returns the slot of a token, and its flags.
func (t *Token) find(label string) (slot, flags uint, err error) {
	slots, err := t.context.GetSlotList(true)
	if err != nil {
		return 0, 0, classify("list tokens", err)
	}
	found := 0
	for _, s := range slots {
		info, err := t.context.GetTokenInfo(s)
		// SoftHSM shows a token without PIN, on which new ones can be made.
		if err == nil && info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 && (label == "" || strings.TrimRight(info.Label, " \x00") == label) {
			slot, flags = s, info.Flags
			found++
		}
	}
	switch found {
	case 1:
		return slot, flags, nil
	case 0:
		return 0, 0, fault.New(fault.NotFound, fmt.Sprintf("there is no token %q", label)).WithHint("is it plugged in?")
	}
	return 0, 0, fault.New(fault.Conflict, fmt.Sprintf("there are %d tokens %q", found, label)).WithHint("name one by its label, and leave one of that label plugged in")
}

// authenticate asks for the PIN and overwrites it. The module and the C library's
// copy of the argument, which is freed right away, are out of our hands.
func (t *Token) authenticate(user uint) error {
	pin, err := t.pin()
	if err != nil {
		return err
	}
	defer clear(pin)
	if len(pin) == 0 {
		return classify("log in", pkcs11.Error(pkcs11.CKR_PIN_INCORRECT))
	}
	// A string of the same memory, so that no second copy is left behind.
	if err := t.context.Login(t.session, user, unsafe.String(&pin[0], len(pin))); err != nil {
		return classify("log in", err)
	}
	return nil
}

// Close ends the session and unloads the module.
func (t *Token) Close() {
	_ = t.context.Logout(t.session) // ends with the session at the latest
	_ = t.context.CloseSession(t.session)
	_ = t.context.Finalize()
	t.context.Destroy()
}

// classify gives a token's answer the kind that a person can act on.
func classify(doing string, err error) error {
	wrap := func(k fault.Kind, text, hint string) error {
		return fault.Wrap(k, doing+": "+text, err).WithHint(hint)
	}
	var code pkcs11.Error
	errors.As(err, &code)
	switch uint(code) {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE:
		return wrap(fault.Unauthenticated, "the PIN is wrong", "a token locks itself after a few wrong PINs (a YubiKey after three)")
	case pkcs11.CKR_PIN_LOCKED:
		return wrap(fault.Denied, "the PIN is locked", "unlock it with the PUK (YubiKey: ykman piv access unblock-pin)")
	case pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return wrap(fault.Denied, "the token has no valid PIN", "set one with the maker's tool")
	case pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SESSION_HANDLE_INVALID,
		pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_DEVICE_ERROR:
		return wrap(fault.Unavailable, "the token or its key is gone", "plug it in and repeat")
	}
	return wrap(fault.Internal, "the token refuses", "")
}

// Key is a private key in a token. It implements [crypto.Signer] for RSA (PKCS #1
// v1.5 with SHA-256) and ECDSA (SHA-256, SHA-384), and lives as long as its Token.
type Key struct {
	token  *Token
	handle pkcs11.ObjectHandle
	public crypto.PublicKey
	always bool // wants the PIN for every signature
}

// Public returns the public key.
func (k *Key) Public() crypto.PublicKey { return k.public }

// named selects objects by label or, written "id:02", by id, which a key and its
// certificate share. ykcs11 gives fixed labels, and ids by slot: 9a is 01, 9c is 02,
// 9d is 03, 9e is 04.
func named(label string) *pkcs11.Attribute {
	if text, ok := strings.CutPrefix(label, "id:"); ok {
		if id, err := hex.DecodeString(text); err == nil {
			return pkcs11.NewAttribute(pkcs11.CKA_ID, id)
		}
	}
	return pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)
}

// Key returns the private key of that label or id. The token must hold the public key
// under the same id (ykcs11 shows it for every slot with a certificate). NotFound: no such key; Conflict: several; Invalid:
// not RSA of 2048 or 3072 bits and not ECDSA on P-256 or P-384.
func (t *Token) Key(label string) (*Key, error) {
	handle, err := t.one(label, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), named(label))
	if err != nil {
		return nil, err
	}
	v, err := t.attributes(handle, pkcs11.CKA_ID)
	if err != nil {
		return nil, err
	}
	k := &Key{token: t, handle: handle}
	public, err := t.one(label, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), pkcs11.NewAttribute(pkcs11.CKA_ID, v[0]))
	if err != nil {
		return nil, err
	}
	// An error: the module knows no such keys.
	always, err := t.attributes(handle, pkcs11.CKA_ALWAYS_AUTHENTICATE)
	k.always = err == nil && bytes.Equal(always[0], []byte{1})
	k.public, err = t.public(public)
	return k, err
}

// Certificate returns the certificate of that label or id.
func (t *Token) Certificate(label string) (*x509.Certificate, error) {
	handle, err := t.one(label, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE), named(label))
	if err != nil {
		return nil, err
	}
	v, err := t.attributes(handle, pkcs11.CKA_VALUE)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(v[0])
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, fmt.Sprintf("the token's certificate %q is damaged", label), err)
	}
	return c, nil
}

// one returns the only object that has these attributes.
func (t *Token) one(label string, want ...*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if err := t.context.FindObjectsInit(t.session, want); err != nil {
		return 0, classify("find "+label, err)
	}
	found, _, err := t.context.FindObjects(t.session, 2)
	if end := t.context.FindObjectsFinal(t.session); err == nil {
		err = end
	}
	switch {
	case err != nil:
		return 0, classify("find "+label, err)
	case len(found) == 0:
		return 0, fault.New(fault.NotFound, fmt.Sprintf("the token has no complete key or certificate %q", label)).
			WithHint("pkcs11-tool --module MODULE --login --list-objects shows what it has")
	case len(found) > 1:
		return 0, fault.New(fault.Conflict, fmt.Sprintf("the token has several objects %q", label))
	}
	return found[0], nil
}

// attributes reads attributes of an object.
func (t *Token) attributes(handle pkcs11.ObjectHandle, kinds ...uint) ([][]byte, error) {
	var want []*pkcs11.Attribute
	for _, k := range kinds {
		want = append(want, pkcs11.NewAttribute(k, nil))
	}
	got, err := t.context.GetAttributeValue(t.session, handle, want)
	if err != nil {
		return nil, classify("read the key", err)
	}
	var values [][]byte
	for _, a := range got {
		values = append(values, a.Value)
	}
	return values, nil
}

var curves = map[string]elliptic.Curve{
	"1.2.840.10045.3.1.7": elliptic.P256(),
	"1.3.132.0.34":        elliptic.P384(),
}

func (t *Token) public(handle pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	if v, err := t.attributes(handle, pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT); err == nil {
		return rsaKey(v[0], v[1])
	}
	v, err := t.attributes(handle, pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT)
	if err != nil {
		return nil, err
	}
	return ecKey(v[0], v[1])
}

var errKind = fault.New(fault.Invalid, "the token's key cannot be used").WithHint("want RSA of 2048 or 3072 bits, or ECDSA on P-256 or P-384")

func rsaKey(modulus, exponent []byte) (crypto.PublicKey, error) {
	k := &rsa.PublicKey{N: new(big.Int).SetBytes(modulus)}
	e := new(big.Int).SetBytes(exponent)
	if bits := k.N.BitLen(); bits != 2048 && bits != 3072 || e.Cmp(big.NewInt(65537)) != 0 {
		return nil, errKind
	}
	k.E = 65537
	return k, nil
}

func ecKey(params, point []byte) (crypto.PublicKey, error) {
	var oid asn1.ObjectIdentifier
	var raw []byte
	rest, err := asn1.Unmarshal(params, &oid)
	curve, ok := curves[oid.String()]
	if err != nil || len(rest) != 0 || !ok {
		return nil, errKind
	}
	if rest, err := asn1.Unmarshal(point, &raw); err != nil || len(rest) != 0 {
		return nil, errKind
	}
	k, err := ecdsa.ParseUncompressedPublicKey(curve, raw)
	if err != nil {
		return nil, errKind
	}
	return k, nil
}

// sha256Prefix is the DER of DigestInfo before a SHA-256 (RFC 8017, 9.2, note 1).
var sha256Prefix = []byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}

// Sign implements [crypto.Signer]. The source of randomness is the token's.
func (k *Key) Sign(_ io.Reader, digest []byte, options crypto.SignerOpts) ([]byte, error) {
	hash := options.HashFunc()
	if hash == 0 || len(digest) != hash.Size() {
		return nil, errors.New("token: want a digest of the hash's size")
	}
	mechanism, input := uint(pkcs11.CKM_ECDSA), digest
	if _, isRSA := k.public.(*rsa.PublicKey); isRSA {
		if _, pss := options.(*rsa.PSSOptions); pss || hash != crypto.SHA256 {
			return nil, errors.New("token: RSA keys sign by PKCS #1 v1.5 with SHA-256 only")
		}
		mechanism, input = pkcs11.CKM_RSA_PKCS, append(bytes.Clone(sha256Prefix), digest...)
	}
	t := k.token
	if err := t.context.SignInit(t.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, k.handle); err != nil {
		return nil, classify("sign", err)
	}
	if k.always {
		if err := t.authenticate(pkcs11.CKU_CONTEXT_SPECIFIC); err != nil {
			return nil, err
		}
	}
	signature, err := t.context.Sign(t.session, input)
	if err != nil {
		return nil, classify("sign", err)
	}
	if mechanism == pkcs11.CKM_ECDSA {
		return ecdsaDER(signature)
	}
	return signature, nil
}

// ecdsaDER turns r and s side by side (PKCS #11) into their ASN.1 (RFC 3279, 2.2.3).
func ecdsaDER(raw []byte) ([]byte, error) {
	if len(raw) == 0 || len(raw)%2 != 0 {
		return nil, errors.New("token: the signature has an odd form")
	}
	half := len(raw) / 2
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:half]), new(big.Int).SetBytes(raw[half:])})
}
