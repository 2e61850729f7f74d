// Package trial signs images with keys that exist for one try only, so that whoever
// has built an image boots it as it will boot when it is released: under Secure Boot, on a
// machine that knows these keys and no others (package image/vm). Nothing that it signs
// starts on any other machine.
package trial

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"lethe/fault"
	"lethe/image/cms"
	"lethe/image/pcr"
	"lethe/image/release"
	"lethe/image/secureboot"
)

// Image is an unsigned image as a build leaves it: an ISO, and a manifest beside it.
type Image struct {
	Path    string // of the ISO
	Subject release.Subject
}

// manifest is what a build writes beside an ISO, as far as it matters here.
type manifest struct {
	SHA256 release.Digest `json:"sha256"`
	Image  release.Image  `json:"image"`
}

// Open reads the manifest of an ISO: the file of the same name with .manifest.json in place of
// .iso.
func Open(iso string) (*Image, error) {
	path := strings.TrimSuffix(iso, ".iso") + ".manifest.json"
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, "the image's manifest "+path+" cannot be read", err).WithHint("keep it beside the ISO: lethe-image build makes both")
	}
	var m manifest
	if err = json.Unmarshal(b, &m); err == nil {
		err = m.Image.Validate()
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, path+" is no image's manifest", err).WithHint("lethe-image build makes it")
	}
	return &Image{iso, release.Subject{Name: iso, Digest: release.DigestSet{SHA256: &m.SHA256}, Annotations: m.Image}}, nil
}

// Keys are the keys of one try.
type Keys struct {
	DB        cms.Signer // signs images
	Enrolled  secureboot.Keys
	Variables []byte // variable store with them
}

// bits is the size of the keys in bits. They live for minutes.
const bits = 2048

// NewKeys makes keys and enrols them into a copy of an empty variable store of OVMF.
func NewKeys(blank []byte) (*Keys, error) {
	var signers [3]cms.Signer
	for i, name := range []string{"PK", "KEK", "db"} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			return nil, err
		}
		signers[i].Key = key
		if signers[i].Certificate, err = secureboot.Certificate("Lethe trial "+name, key); err != nil {
			return nil, err
		}
	}
	entries := func(i int) []secureboot.Entry { return secureboot.Certificates(signers[i].Certificate) }
	k := &Keys{DB: signers[2], Enrolled: secureboot.Keys{PK: entries(0), KEK: entries(1), DB: entries(2)}}
	var err error
	k.Variables, err = secureboot.Enrol(blank, k.Enrolled, time.Now())
	return k, err
}

// Sign writes a signed copy of an image to a new file. Only the space for signatures differs.
// An image that is not bit for bit what its manifest says is refused.
func (k *Keys) Sign(i *Image, to string) (err error) {
	in, err := os.Open(i.Path)
	if err != nil {
		return fault.Wrap(fault.NotFound, i.Path+" cannot be read", err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	signed, err := release.SignBoot(i.Subject, in, info.Size(), k.DB)
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		_, err = io.Copy(out, in)
		if err == nil {
			_, err = out.WriteAt(signed.Table, signed.Region.Offset)
		}
		err = errors.Join(err, out.Close())
	}
	if err != nil {
		return fault.Wrap(fault.Full, "the signed copy cannot be written", err).WithHint(fmt.Sprintf("%d MB are needed beside %s", info.Size()>>20+1, to))
	}
	return nil
}

// PCRs returns what registers 4, 7 and 11 hold once an image that was signed with these
// keys has started.
func (k *Keys) PCRs(i *Image) map[int]release.Digest {
	values := map[int]release.Digest{7: release.Digest(pcr.Keys(pcr.Variables{
		PK: secureboot.Lists(k.Enrolled.PK), KEK: secureboot.Lists(k.Enrolled.KEK), DB: secureboot.Lists(k.Enrolled.DB),
	}, k.Enrolled.DB[0].Bytes()))}
	for _, p := range i.Subject.Annotations.PCRs {
		values[p.Index] = p.SHA256
	}
	return values
}
