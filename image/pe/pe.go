// Package pe signs boot images for UEFI Secure Boot and reads their signatures:
// Authenticode (Microsoft, "Windows Authenticode Portable Executable Signature
// Format", 2008) of PE32+ files (Microsoft, "PE Format").
//
// Space for the signature is part of the image that builders agree on.
// [Reserve] pads the file to 8 bytes, appends a table of zeros and points the
// certificate directory at it. Firmware finds no signature in it and refuses
// the image. [Sign] changes bytes of that table and no others, and [Strip]
// zeroes it again. So a signed image and the agreed one have equal length,
// differ in one known span, and stripping gives the agreed file back bit for bit, also
// when the file lies inside a FAT file system inside an ISO.
//
// The Authenticode digest leaves out the CheckSum field, the certificate
// directory and the table, and would leave out bytes that lie between sections. Here a
// file with such bytes is refused, and so is one whose table is not its end: what
// the digest does not cover is 12 bytes of header, which firmware ignores or checks,
// and the table. The release manifest's digests cover those as well.
//
// Nothing here looks at certificates' chains or dates (see package cms).
package pe

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"lethe/image/cms"
)

// Offsets in the headers (PE Format, "MS-DOS Stub", "COFF File Header", "Optional Header").
const (
	dosHeader     = 64
	peOffset      = 0x3c
	coffSize      = 24 // with the signature "PE\0\0"
	magicPlus     = 0x20b
	headersSize   = 60
	checkSum      = 64
	directories   = 108 // their number; they follow behind it
	certDirectory = 112 + 4*8
	sectionSize   = 40
	maxSections   = 96 // the loader's limit
)

// WIN_CERTIFICATE (UEFI 2.10, 32.2.4).
const (
	certHeader  = 8
	revision2   = 0x0200
	typePKCS    = 0x0002 // WIN_CERT_TYPE_PKCS_SIGNED_DATA
	align       = 8
	maxCerts    = 16
	MaxReserve  = 1 << 20 // largest table for signatures, bytes
	MinReserve  = 1 << 10 // smallest that holds a signature by a key of 2048 bits
	maxFileSize = 1 << 30
)

// Errors that a caller may test for.
var (
	ErrFormat   = errors.New("pe: not a PE32+ image whose every byte is accounted for")
	ErrUnsigned = errors.New("pe: not signed")
	ErrDigest   = errors.New("pe: the signature is for another image")
	ErrSpace    = errors.New("pe: the signature does not fit into the reserved space")
	ErrReserved = errors.New("pe: the image has no empty space for a signature")
)

// Object identifiers of Authenticode.
var (
	spcIndirectData = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	spcPEImageData  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
	sha256OID       = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
)

// Span is a run of bytes in a file.
type Span struct{ Offset, Length int }

// Image is a PE32+ file whose headers were read and found to account for every byte.
type Image struct {
	data      []byte
	checkSum  int  // offset of the field
	directory int  // offset of the certificate directory entry
	table     Span // certificate table; at the end of the file; empty when there is none
	sections  []Section
}

// Section is a section of an image, as it is in memory once loaded.
type Section struct {
	Name   string // at most 8 bytes
	Offset int    // in the file
	Data   []byte // of the section's virtual size, but not more than the file has; not a copy
}

// Sections returns the sections in the order of their headers.
func (i *Image) Sections() []Section { return i.sections }

// Parse reads the headers. It keeps b, which must not change while the Image is used.
func Parse(b []byte) (*Image, error) {
	bad := func(what string) (*Image, error) { return nil, fmt.Errorf("%w: %s", ErrFormat, what) }
	if len(b) < dosHeader || len(b) > maxFileSize || b[0] != 'M' || b[1] != 'Z' {
		return bad("no DOS header")
	}
	le := binary.LittleEndian
	start := int(le.Uint32(b[peOffset:]))
	if start < dosHeader || start > len(b)-coffSize || string(b[start:start+4]) != "PE\x00\x00" {
		return bad("no PE header")
	}
	sections, optionalSize := int(le.Uint16(b[start+6:])), int(le.Uint16(b[start+20:]))
	optional := start + coffSize
	table := optional + optionalSize
	if optionalSize < certDirectory+8 || table > len(b) || le.Uint16(b[optional:]) != magicPlus || le.Uint32(b[optional+directories:]) < 5 {
		return bad("no PE32+ optional header with a certificate directory")
	}
	headers := int(le.Uint32(b[optional+headersSize:]))
	if sections > maxSections || headers < table+sections*sectionSize || headers > len(b) {
		return bad("the section table does not fit into the headers")
	}
	i := &Image{data: b, checkSum: optional + checkSum, directory: optional + certDirectory, table: Span{Offset: len(b)}}
	if offset, size := int(le.Uint32(b[i.directory:])), int(le.Uint32(b[i.directory+4:])); offset != 0 || size != 0 {
		if offset%align != 0 || size%align != 0 || size < align || offset < headers || offset+size != len(b) {
			return bad("the certificate table is not the end of the file")
		}
		i.table = Span{offset, size}
	}
	var spans []Span
	var names []string
	var virtual []int
	for n := range sections {
		header := b[table+n*sectionSize:]
		span := Span{int(le.Uint32(header[20:])), int(le.Uint32(header[16:]))}
		if span.Length == 0 {
			span.Offset = 0
		}
		spans = append(spans, span)
		names = append(names, string(bytes.TrimRight(header[:8], "\x00")))
		virtual = append(virtual, int(le.Uint32(header[8:])))
	}
	if !contiguous(spans, headers, i.table.Offset) {
		return bad("sections overlap, leave gaps or reach beyond the end")
	}
	for n, s := range spans {
		i.sections = append(i.sections, Section{names[n], s.Offset, b[s.Offset : s.Offset+min(s.Length, virtual[n])]})
	}
	return i, nil
}

// contiguous reports whether sections follow each other from the headers on: bytes
// between sections are in no Authenticode digest. Those without bytes do not matter.
func contiguous(spans []Span, end, limit int) bool {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b Span) int { return cmp.Compare(a.Offset, b.Offset) })
	for _, s := range spans {
		if s.Length == 0 {
			continue
		}
		if s.Offset != end || s.Length > limit-end {
			return false
		}
		end += s.Length
	}
	return true
}

// Table returns where the certificate table is; its length is 0 when there is none.
func (i *Image) Table() Span { return i.table }

// Digest returns the Authenticode SHA-256 digest: what is signed, and what
// firmware measures into PCR 4. A file that is no multiple of 8 bytes has the digest
// that it has once padded with zeros.
func (i *Image) Digest() [sha256.Size]byte {
	h := sha256.New()
	h.Write(i.data[:i.checkSum])
	h.Write(i.data[i.checkSum+4 : i.directory])
	h.Write(i.data[i.directory+8 : i.table.Offset])
	h.Write(make([]byte, -i.table.Offset&(align-1)))
	return [sha256.Size]byte(h.Sum(nil))
}

// Reserve returns an unsigned image with space for signatures of n bytes in all,
// rounded up to 8. A self-signed certificate of 3072 bits and its signature take
// about 2 KiB.
func Reserve(unsigned []byte, n int) ([]byte, error) {
	i, err := Parse(unsigned)
	switch {
	case err != nil:
		return nil, err
	case i.table.Length != 0:
		return nil, errors.New("pe: the image has a certificate table already")
	case n < MinReserve || n > MaxReserve:
		return nil, fmt.Errorf("pe: reserve %d bytes, want %d to %d", n, MinReserve, MaxReserve)
	}
	offset := (len(unsigned) + align - 1) &^ (align - 1)
	size := (n + align - 1) &^ (align - 1)
	out := make([]byte, offset+size)
	copy(out, unsigned)
	clear(out[i.checkSum:][:4]) // no signature covers it; see [Intact]
	binary.LittleEndian.PutUint32(out[i.directory:], uint32(offset))
	binary.LittleEndian.PutUint32(out[i.directory+4:], uint32(size))
	return out, nil
}

// Strip returns the image with an empty certificate table. For an image that
// [Sign] signed this is the reserved image again.
func Strip(signed []byte) ([]byte, error) {
	i, err := Parse(signed)
	if err != nil {
		return nil, err
	}
	out := bytes.Clone(signed)
	clear(out[i.table.Offset:])
	return out, nil
}

// Sign fills the reserved space with one signature for each signer. The last
// entry's length covers the rest of the table, because firmware wants the
// entries to add up to it; the bytes behind the signature stay zero.
func Sign(reserved []byte, signers ...cms.Signer) ([]byte, error) {
	i, err := Parse(reserved)
	if err != nil {
		return nil, err
	}
	if i.table.Length == 0 || len(bytes.Trim(reserved[i.table.Offset:], "\x00")) != 0 {
		return nil, ErrReserved
	}
	if len(signers) == 0 || len(signers) > maxCerts {
		return nil, fmt.Errorf("pe: %d signers, want 1 to %d", len(signers), maxCerts)
	}
	content := cms.Content{Type: spcIndirectData, Value: indirectData(i.Digest())}
	out := bytes.Clone(reserved)
	rest := out[i.table.Offset:]
	for n, s := range signers {
		signature, err := cms.Sign(content, s)
		if err != nil {
			return nil, err
		}
		entry := certHeader + len(signature)
		size := (entry + align - 1) &^ (align - 1)
		if size > len(rest) {
			return nil, ErrSpace
		}
		if n == len(signers)-1 {
			entry, size = len(rest), len(rest)
		}
		le := binary.LittleEndian
		le.PutUint32(rest, uint32(entry))
		le.PutUint16(rest[4:], revision2)
		le.PutUint16(rest[6:], typePKCS)
		copy(rest[certHeader:], signature)
		rest = rest[size:]
	}
	return out, nil
}

// Verify returns the trusted certificate that signed the image. One good
// signature is enough, as for firmware; every entry must be well-formed.
func Verify(signed []byte, trusted []*x509.Certificate) (*x509.Certificate, error) {
	i, err := Parse(signed)
	if err != nil {
		return nil, err
	}
	entries, err := i.signatures()
	if err != nil {
		return nil, err
	}
	digest := i.Digest()
	var first error
	for _, e := range entries {
		c, err := verify(e, digest, trusted)
		if err == nil {
			return c, nil
		}
		first = cmp.Or(first, err)
	}
	return nil, first
}

// Intact reports what is wrong with the bytes that a signature does not cover: in an image of a
// builder and [Sign] the field CheckSum is 0, and the certificate table is empty or holds what Sign
// writes, by keys whose certificates are in it. Firmware starts some images in which a bit of
// those is another one. Whom to trust is for [Verify].
func Intact(b []byte) error {
	i, err := Parse(b)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b[i.checkSum:]) != 0 || i.table.Length == 0 {
		return fmt.Errorf("%w: a checksum, or no certificate table", ErrFormat)
	}
	entries, err := i.signatures()
	if errors.Is(err, ErrUnsigned) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		s, err := cms.Own(e)
		if err != nil {
			return err
		}
		if got, ok := readIndirectData(s.Content); !ok || got != i.Digest() || !bytes.Equal(s.Content.Value, indirectData(got)) {
			return ErrDigest
		}
	}
	// signatures has seen zeros behind each entry; the lengths are left.
	rest := b[i.table.Offset:]
	for n, e := range entries {
		size := certHeader + len(e)
		if n == len(entries)-1 {
			size = len(rest)
		}
		if int(binary.LittleEndian.Uint32(rest)) != size {
			return fmt.Errorf("%w: certificate table", ErrFormat)
		}
		rest = rest[min(len(rest), (size+align-1)&^(align-1)):]
	}
	return nil
}

func verify(entry []byte, digest [sha256.Size]byte, trusted []*x509.Certificate) (*x509.Certificate, error) {
	s, err := cms.Parse(entry)
	if err != nil {
		return nil, err
	}
	got, ok := readIndirectData(s.Content)
	if !ok {
		return nil, fmt.Errorf("%w: the signature is not over an image's SHA-256", ErrFormat)
	}
	if got != digest {
		return nil, ErrDigest
	}
	return s.Verify(nil, trusted)
}

// signatures returns the PKCS #7 messages in the table.
func (i *Image) signatures() ([][]byte, error) {
	rest := i.data[i.table.Offset:]
	if len(bytes.Trim(rest, "\x00")) == 0 {
		return nil, ErrUnsigned
	}
	var found [][]byte
	for len(rest) > 0 {
		le := binary.LittleEndian
		size := int(le.Uint32(rest)) // the table is a multiple of 8 bytes, and so is every step
		if size < certHeader || size > len(rest) || le.Uint16(rest[4:]) != revision2 || le.Uint16(rest[6:]) != typePKCS || len(found) == maxCerts {
			return nil, fmt.Errorf("%w: certificate table", ErrFormat)
		}
		next := (size + align - 1) &^ (align - 1)
		message := cryptobyte.String(rest[certHeader:size])
		var element cryptobyte.String
		if !message.ReadASN1Element(&element, der.SEQUENCE) || len(bytes.Trim(message, "\x00")) != 0 || len(bytes.Trim(rest[size:next], "\x00")) != 0 {
			return nil, fmt.Errorf("%w: certificate table", ErrFormat)
		}
		found = append(found, element)
		rest = rest[next:]
	}
	return found, nil
}

// indirectData returns SpcIndirectDataContent for an image. The page hashes and the
// file name that SpcPeImageData has room for are empty: flags are an empty bit string,
// the file is an empty name, in the form that every signer writes ("<<<Obsolete>>>"
// stood there once and is not needed).
func indirectData(digest [sha256.Size]byte) []byte {
	var b cryptobyte.Builder
	context := func(n uint8) der.Tag { return der.Tag(n).ContextSpecific().Constructed() }
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(spcPEImageData)
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1BitString(nil)
				b.AddASN1(context(0), func(b *cryptobyte.Builder) {
					b.AddASN1(context(2), func(b *cryptobyte.Builder) {
						b.AddASN1(der.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {})
					})
				})
			})
		})
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(sha256OID)
				b.AddASN1NULL()
			})
			b.AddASN1OctetString(digest[:])
		})
	})
	return b.BytesOrPanic() // its parts are fixed
}

// readIndirectData returns the digest in SpcIndirectDataContent.
func readIndirectData(c cms.Content) (digest [sha256.Size]byte, ok bool) {
	in := cryptobyte.String(c.Value)
	var outer, kind, info, algorithm, sum, null cryptobyte.String
	var kindOID, oid asn1.ObjectIdentifier
	ok = c.Type.Equal(spcIndirectData) &&
		in.ReadASN1(&outer, der.SEQUENCE) && in.Empty() &&
		outer.ReadASN1(&kind, der.SEQUENCE) && kind.ReadASN1ObjectIdentifier(&kindOID) && kindOID.Equal(spcPEImageData) &&
		outer.ReadASN1(&info, der.SEQUENCE) && outer.Empty() &&
		info.ReadASN1(&algorithm, der.SEQUENCE) && algorithm.ReadASN1ObjectIdentifier(&oid) && oid.Equal(sha256OID) &&
		algorithm.ReadOptionalASN1(&null, nil, der.NULL) && algorithm.Empty() &&
		info.ReadASN1(&sum, der.OCTET_STRING) && info.Empty() && len(sum) == sha256.Size
	if ok {
		copy(digest[:], sum)
	}
	return digest, ok
}
