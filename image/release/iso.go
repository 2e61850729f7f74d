package release

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"lethe/image/cms"
	"lethe/image/pe"
)

// Signed is what signing a boot image adds to an ISO.
type Signed struct {
	SHA256 Digest // of the whole ISO as signed
	Region Region // the signatures' region and its digest
	Table  []byte // what stands there
}

// scan reads an ISO once. want gives the digest of each region; the first that
// differs is a refusal. It returns the digest of the file as it is with the bytes
// of the signatures replaced by table (nil: as they are) and of the agreed form.
func scan(i Image, iso io.ReaderAt, want func(Region) Digest, table []byte) (whole, stripped Digest, err error) {
	a, b := sha256.New(), sha256.New()
	buffer := make([]byte, 1<<20)
	for _, r := range i.Regions {
		one := sha256.New()
		for done := int64(0); done < r.Length; {
			part := buffer[:min(int64(len(buffer)), r.Length-done)]
			if _, err := iso.ReadAt(part, r.Offset+done); err != nil && !errors.Is(err, io.EOF) {
				return whole, stripped, fmt.Errorf("read image: %w", err)
			} else if err != nil && r.Offset+done+int64(len(part)) != i.Size {
				return whole, stripped, refuse(WrongSize, err, i.Flavour)
			}
			one.Write(part)
			if r.Signature && table != nil {
				copy(part, table[done:])
			}
			a.Write(part)
			if r.Signature {
				clear(part)
			}
			b.Write(part)
			done += int64(len(part))
		}
		if Digest(one.Sum(nil)) != want(r) {
			return whole, stripped, refuse(Damaged, nil, fmt.Sprintf("%s: region %s, bytes %d to %d", i.Flavour, r.Name, r.Offset, r.Offset+r.Length-1))
		}
	}
	return Digest(a.Sum(nil)), Digest(b.Sum(nil)), nil
}

// Describe fills in the digests of an ISO's regions, and returns its agreed
// digest: for a builder, whose description has names, offsets and lengths. The
// regions of signatures must be empty, and where the boot image keeps its space.
func Describe(i Image, iso io.ReaderAt) (Image, Digest, error) {
	if err := i.Validate(); err != nil {
		return i, Digest{}, err
	}
	i.Regions = append([]Region(nil), i.Regions...)
	for n := range i.Regions {
		h := sha256.New()
		r := &i.Regions[n]
		if _, err := io.Copy(h, io.NewSectionReader(iso, r.Offset, r.Length)); err != nil {
			return i, Digest{}, fmt.Errorf("read image: %w", err)
		}
		r.SHA256 = Digest(h.Sum(nil))
	}
	boot, err := bootImage(i, iso)
	if err != nil {
		return i, Digest{}, err
	}
	if _, err := pe.Verify(boot, nil); !errors.Is(err, pe.ErrUnsigned) {
		return i, Digest{}, refuse(BadBootImage, err, "it is signed already")
	}
	whole, _, err := scan(i, iso, func(r Region) Digest { return r.SHA256 }, nil)
	return i, whole, err
}

// bootImage reads the boot image and checks that its table is the signatures' region.
func bootImage(i Image, iso io.ReaderAt) ([]byte, error) {
	b := make([]byte, i.BootLength)
	if _, err := io.ReadFull(io.NewSectionReader(iso, i.BootOffset, i.BootLength), b); err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	image, err := pe.Parse(b)
	if err != nil {
		return nil, refuse(BadBootImage, err, "")
	}
	t, r := image.Table(), i.signature()
	if i.BootOffset+int64(t.Offset) != r.Offset || int64(t.Length) != r.Length {
		return nil, refuse(BadBootImage, nil, "its space for signatures is elsewhere")
	}
	return b, nil
}

// SignBoot signs the boot image of an agreed ISO. The caller writes [Signed.Table]
// to the offset of [Signed.Region] in a copy; nothing else changes. An ISO that is
// not bit for bit the agreed one is refused, and nothing is signed.
func SignBoot(s Subject, iso io.ReaderAt, size int64, signers ...cms.Signer) (Signed, error) {
	i := s.Annotations
	if size != i.Size {
		return Signed{}, refuse(WrongSize, nil, i.Flavour)
	}
	whole, _, err := scan(i, iso, func(r Region) Digest { return r.SHA256 }, nil)
	if err != nil {
		return Signed{}, err
	}
	if whole != *s.Digest.SHA256 {
		return Signed{}, refuse(Damaged, nil, i.Flavour)
	}
	boot, err := bootImage(i, iso)
	if err != nil {
		return Signed{}, err
	}
	signed, err := pe.Sign(boot, signers...)
	if err != nil {
		return Signed{}, err
	}
	region := i.signature()
	table := signed[region.Offset-i.BootOffset:]
	region.SHA256 = sha256.Sum256(table)
	whole, _, err = scan(i, iso, func(r Region) Digest { return r.SHA256 }, table)
	return Signed{SHA256: whole, Region: region, Table: table}, err
}

// Find returns the manifest's image of a flavour.
func (m Manifest) Find(flavour string) (Released, error) {
	for _, r := range m.Images {
		if r.Image.Flavour == flavour {
			return r, nil
		}
	}
	return Released{}, refuse(NoImage, nil, flavour)
}

// VerifyISO verifies every bit of a released ISO, and the signature that firmware will
// look at. m must come from [Policy.Verify].
func (p Policy) VerifyISO(m Manifest, flavour string, iso io.ReaderAt, size int64) error {
	r, err := m.Find(flavour)
	if err != nil {
		return err
	}
	if size != r.Image.Size {
		return refuse(WrongSize, nil, fmt.Sprintf("%d bytes, want %d", size, r.Image.Size))
	}
	// The boot image first: it says more than that bytes differ.
	boot, err := bootImage(r.Image, iso)
	if err != nil {
		return err
	}
	switch _, err := pe.Verify(boot, p.Boot); {
	case errors.Is(err, pe.ErrUnsigned):
		return refuse(NotSigned, err, flavour)
	case errors.Is(err, cms.ErrSigner):
		return refuse(WrongSigner, err, flavour)
	case err != nil:
		return refuse(Damaged, err, flavour+": boot image")
	}
	want := func(g Region) Digest {
		if g.Signature {
			return r.Signatures[0].SHA256
		}
		return g.SHA256
	}
	whole, stripped, err := scan(r.Image, iso, want, nil)
	if err != nil {
		return err
	}
	if whole != r.Signed || stripped != r.SHA256 {
		return refuse(Damaged, nil, flavour+": the whole")
	}
	return nil
}
