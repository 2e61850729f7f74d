// Package secureboot makes what a machine needs to boot a provider's own images
// and no others: the certificates PK, KEK and db, as signature lists and as updates that
// firmware in setup mode, or with older keys, takes (UEFI 2.10, 8.2.2 and 32.4), and
// a variable store of OVMF with all of them enrolled.
//
// PK owns the platform and signs changes of KEK, KEK signs changes of db and dbx, and db
// signs boot images. They are different keys: db's is used at every release, PK's
// and KEK's lie in a safe. Real hardware takes the .auth files ([Update]) or the
// .esl files in its setup screens; virtual machines take the store ([Enrol]).
//
// Certificates here are names for keys: firmware looks at no dates. Everything but the
// time of an update is fixed by its inputs.
package secureboot

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"time"
	"unicode/utf16"

	"lethe/dsse"
	"lethe/fault"
	"lethe/image/cms"
)

// GUID is an EFI_GUID in memory order (UEFI 2.10, appendix A).
type GUID [16]byte

// guid turns the written form into memory order: the first three groups are little-endian.
func guid(a uint32, b, c uint16, d uint64) (g GUID) {
	binary.LittleEndian.PutUint32(g[0:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	binary.BigEndian.PutUint64(g[8:], d)
	return g
}

// GUIDs of UEFI 2.10, 3.3, 8.2.2 and 32.4.1, and of EDK II.
var (
	globalVariable = guid(0x8be4df61, 0x93ca, 0x11d2, 0xaa0d00e098032b8c)
	imageSecurity  = guid(0xd719b2cb, 0x3d3a, 0x4596, 0xa3bcdad00e67656f)
	certX509       = guid(0xa5c059a1, 0x94e4, 0x4aa7, 0x87b5ab155c2bf072)
	certSHA256     = guid(0xc1c41626, 0x504c, 0x4092, 0xaca941f936934328)
	certPKCS7      = guid(0x4aafd29d, 0x68df, 0x49ee, 0x8aa9347d375665a7)
	bootEnable     = guid(0xf0a30bc7, 0xaf08, 0x4556, 0x99c4001009c93a44)
	customMode     = guid(0xc076ec0c, 0x7028, 0x4399, 0xa07271ee5c448b9f)
)

// Owner is the SignatureOwner of all our entries: made up, and used by nobody else.
var Owner = guid(0x6c657468, 0x6500, 0x4f53, 0x9b1d2e0a7c44f1d8)

// Variable is one of the four Secure Boot variables.
type Variable string

// The variables.
const (
	PK  Variable = "PK"
	KEK Variable = "KEK"
	DB  Variable = "db"
	DBX Variable = "dbx"
)

func (v Variable) vendor() (GUID, error) {
	switch v {
	case PK, KEK:
		return globalVariable, nil
	case DB, DBX:
		return imageSecurity, nil
	}
	return GUID{}, fmt.Errorf("secure boot: no variable %q", string(v))
}

// Attributes (UEFI 2.10, 8.2.1).
const (
	nonVolatile   = 0x01
	bootService   = 0x02
	runtime       = 0x04
	authenticated = 0x20
	keyAttributes = nonVolatile | bootService | runtime | authenticated
)

// Certificate returns a self-signed certificate for a key, named so that people
// recognise it in a firmware's setup screen. Its serial number is made of the key, its dates say
// nothing, so an RSA key has one certificate of each name.
func Certificate(name string, key crypto.Signer) (*x509.Certificate, error) {
	id, err := dsse.ID(key.Public())
	if err != nil {
		return nil, fmt.Errorf("secure boot certificate: %w", err)
	}
	id[0] &= 0x7f // positive
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(id[:16]),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280, 4.1.2.5: no date
		IsCA:         true, BasicConstraintsValid: true,                // older firmware wants it of PK and KEK
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("secure boot certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

const listHeader = 16 + 3*4

// Entry is one EFI_SIGNATURE_DATA: who put it there, and a certificate in DER or a
// SHA-256 (Authenticode) of an image.
type Entry struct {
	Owner       GUID
	Certificate []byte // or
	Hash        []byte // 32 bytes
}

// Certificates returns entries of ours for certificates.
func Certificates(certificates ...*x509.Certificate) (entries []Entry) {
	for _, c := range certificates {
		entries = append(entries, Entry{Owner: Owner, Certificate: c.Raw})
	}
	return entries
}

// Bytes returns EFI_SIGNATURE_DATA, which firmware measures into PCR 7 when it has
// let an image start.
func (e Entry) Bytes() []byte {
	return append(append(bytes.Clone(e.Owner[:]), e.Certificate...), e.Hash...)
}

// Lists returns EFI_SIGNATURE_LISTs (UEFI 2.10, 32.4.1), one for each entry.
func Lists(entries []Entry) []byte {
	var b []byte
	for _, e := range entries {
		kind, data := certX509, e.Bytes()
		if e.Hash != nil {
			kind = certSHA256
		}
		b = append(b, kind[:]...)
		b = binary.LittleEndian.AppendUint32(b, uint32(listHeader+len(data)))
		b = binary.LittleEndian.AppendUint32(b, 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
		b = append(b, data...)
	}
	return b
}

var errLists = fault.New(fault.Invalid, "not signature lists of certificates and SHA-256 digests")

// ParseLists reads EFI_SIGNATURE_LISTs, several entries in one list too. Kinds of entries
// other than certificates and SHA-256 are refused.
func ParseLists(b []byte) ([]Entry, error) {
	var entries []Entry
	le := binary.LittleEndian
	for len(b) > 0 {
		if len(b) < listHeader {
			return nil, errLists
		}
		kind, size, header, each := GUID(b[:16]), uint64(le.Uint32(b[16:])), uint64(le.Uint32(b[20:])), uint64(le.Uint32(b[24:]))
		if size > uint64(len(b)) || size < listHeader || header != 0 || each <= 16 || (size-listHeader)%each != 0 || kind == certSHA256 && each != 16+32 {
			return nil, errLists
		}
		for list := b[listHeader:size]; len(list) > 0; list = list[each:] {
			e := Entry{Owner: GUID(list[:16])}
			switch data := list[16:each]; kind {
			case certX509:
				e.Certificate = data
			case certSHA256:
				e.Hash = data
			default:
				return nil, errLists
			}
			entries = append(entries, e)
		}
		b = b[size:]
	}
	return entries, nil
}

// efiTime returns EFI_TIME (UEFI 2.10, 8.3) in UTC as updates want it: no
// nanoseconds, time zone or daylight saving (8.2.2).
func efiTime(t time.Time) []byte {
	t = t.UTC()
	b := binary.LittleEndian.AppendUint16(nil, uint16(t.Year()))
	b = append(b, byte(t.Month()), byte(t.Day()), byte(t.Hour()), byte(t.Minute()), byte(t.Second()))
	return append(b, make([]byte, 16-len(b))...)
}

func utf16le(s string) (b []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// signedBytes are what the signature of an update covers (UEFI 2.10, 8.2.2).
func signedBytes(v Variable, vendor GUID, at time.Time, lists []byte) []byte {
	b := append(utf16le(string(v)), vendor[:]...)
	b = binary.LittleEndian.AppendUint32(b, keyAttributes)
	b = append(b, efiTime(at)...)
	return append(b, lists...)
}

const (
	winCertRevision = 0x0200
	winCertUEFI     = 0x0ef1 // WIN_CERT_TYPE_EFI_GUID
	winCertHeader   = 8 + 16
)

// Update returns a time-based authenticated write of a variable:
// EFI_VARIABLE_AUTHENTICATION_2 and the lists. PK signs PK and KEK, KEK signs db and
// dbx. Firmware refuses a time that is not after that of the last update.
func Update(v Variable, entries []Entry, at time.Time, by cms.Signer) ([]byte, error) {
	vendor, err := v.vendor()
	if err != nil {
		return nil, err
	}
	if year := at.UTC().Year(); year < 1998 || year > 9999 {
		return nil, errors.New("secure boot: the time of an update is out of EFI_TIME's bounds")
	}
	lists := Lists(entries)
	signature, err := cms.SignDetached(signedBytes(v, vendor, at, lists), by)
	if err != nil {
		return nil, err
	}
	b := efiTime(at)
	b = binary.LittleEndian.AppendUint32(b, uint32(winCertHeader+len(signature)))
	b = binary.LittleEndian.AppendUint16(b, winCertRevision)
	b = binary.LittleEndian.AppendUint16(b, winCertUEFI)
	b = append(b, certPKCS7[:]...)
	b = append(b, signature...)
	return append(b, lists...), nil
}

// ErrUpdate says that bytes are not an update of a variable.
var ErrUpdate = fault.New(fault.Invalid, "not an authenticated update of a Secure Boot variable")

// ParseUpdate verifies an update as firmware does, against the certificates of the
// variable that must sign it, and returns its time and entries.
func ParseUpdate(v Variable, update []byte, trusted []*x509.Certificate) (time.Time, []Entry, error) {
	var at time.Time
	vendor, err := v.vendor()
	if err != nil {
		return at, nil, err
	}
	le := binary.LittleEndian
	if len(update) < 16+winCertHeader {
		return at, nil, ErrUpdate
	}
	size := uint64(le.Uint32(update[16:]))
	if size < winCertHeader || size > uint64(len(update)-16) || le.Uint16(update[20:]) != winCertRevision ||
		le.Uint16(update[22:]) != winCertUEFI || GUID(update[24:40]) != certPKCS7 {
		return at, nil, ErrUpdate
	}
	at = time.Date(int(le.Uint16(update)), time.Month(update[2]), int(update[3]), int(update[4]), int(update[5]), int(update[6]), 0, time.UTC)
	if !bytes.Equal(efiTime(at), update[:16]) {
		return at, nil, ErrUpdate
	}
	lists := update[16+size:]
	s, err := cms.Parse(update[16+winCertHeader : 16+size])
	if err != nil {
		return at, nil, err
	}
	if _, err := s.Verify(signedBytes(v, vendor, at, lists), trusted); err != nil {
		return at, nil, err
	}
	entries, err := ParseLists(lists)
	return at, entries, err
}
