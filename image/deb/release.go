package deb

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Errors of [OpenRelease] that callers tell apart.
var (
	ErrSignature = errors.New("no valid signature by a trusted key")
	ErrExpired   = errors.New("past its Valid-Until date")
	ErrFuture    = errors.New("dated in the future")
)

// MaxRelease bounds a Release file: Debian's is 140 kB.
const MaxRelease = 4 << 20

// Release is a verified Release file: what a suite is made of at one moment.
type Release struct {
	Suite, Codename string
	Date            time.Time
	ValidUntil      time.Time // zero: the archive sets no end, as for stable releases
	ByHash          bool      // indexes can be fetched under the name of their digest
	Key             string    // fingerprint of the key whose signature was checked, in hexadecimal
	files           map[string]File
}

// File returns the index of that path, from the suite's directory.
func (r *Release) File(path string) (File, bool) {
	f, ok := r.files[path]
	return f, ok
}

// ReadKeyring reads OpenPGP public keys, binary or armoured.
func ReadKeyring(b []byte) (openpgp.EntityList, error) {
	read := openpgp.ReadKeyRing
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		read = openpgp.ReadArmoredKeyRing
	}
	keys, err := read(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, errors.New("no keys")
	}
	return keys, nil
}

// OpenRelease verifies an InRelease file with keys and returns its content. now
// is compared with its dates; a clock that is a day slow is put up with.
// Nothing outside the signed text is read. One valid signature of a trusted key
// is enough, as for apt: Debian signs with several while keys change.
func OpenRelease(signed []byte, keys openpgp.KeyRing, now time.Time) (*Release, error) {
	if len(signed) > MaxRelease {
		return nil, fmt.Errorf("%d bytes, at most %d", len(signed), MaxRelease)
	}
	block, rest := clearsign.Decode(signed)
	if block == nil {
		return nil, fmt.Errorf("%w: not a clear-signed file", ErrSignature)
	}
	if len(bytes.TrimSpace(rest)) > 0 || !bytes.HasPrefix(signed, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) {
		return nil, fmt.Errorf("%w: text outside of it", ErrSignature)
	}
	key, err := verify(block.Bytes, block.ArmoredSignature.Body, keys, now)
	if err != nil {
		return nil, err
	}
	r, err := parseRelease(block.Bytes)
	if err != nil {
		return nil, err
	}
	r.Key = key
	switch {
	case r.Date.After(now.Add(24 * time.Hour)):
		return nil, fmt.Errorf("%w: %s", ErrFuture, r.Date.Format(time.RFC3339))
	case !r.ValidUntil.IsZero() && now.After(r.ValidUntil):
		return nil, fmt.Errorf("%w: %s", ErrExpired, r.ValidUntil.Format(time.RFC3339))
	}
	return r, nil
}

// verify looks for one valid signature of text among signatures and returns the
// fingerprint of its key. Each signature is tried by itself: one by a key that
// is unknown here or has expired does not spoil the others.
func verify(text []byte, signatures io.Reader, keys openpgp.KeyRing, now time.Time) (string, error) {
	config := &packet.Config{Time: func() time.Time { return now }}
	cause := errors.New("no signature")
	for r := packet.NewReader(signatures); ; {
		p, err := r.Next()
		if err != nil { // io.EOF, or what is no OpenPGP
			return "", fmt.Errorf("%w: %v", ErrSignature, cause)
		}
		signature, ok := p.(*packet.Signature)
		if !ok {
			continue
		}
		var one bytes.Buffer
		if cause = signature.Serialize(&one); cause != nil {
			continue
		}
		var signer *openpgp.Entity
		if _, signer, cause = openpgp.VerifyDetachedSignature(keys, bytes.NewReader(text), &one, config); cause == nil {
			return fmt.Sprintf("%x", signer.PrimaryKey.Fingerprint), nil
		}
	}
}

// parseRelease reads the fields of a Release file. Only SHA-256 counts.
func parseRelease(text []byte) (*Release, error) {
	p, err := single(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("release: %w", err)
	}
	r := &Release{Suite: p.Get("Suite"), Codename: p.Get("Codename"), ByHash: p.Get("Acquire-By-Hash") == "yes", files: map[string]File{}}
	if r.Date, err = releaseDate(p.Get("Date")); err != nil {
		return nil, fmt.Errorf("release: Date: %w", err)
	}
	if until := p.Get("Valid-Until"); until != "" {
		if r.ValidUntil, err = releaseDate(until); err != nil {
			return nil, fmt.Errorf("release: Valid-Until: %w", err)
		}
	}
	files, err := parseFiles(p.Get("SHA256"))
	if err != nil {
		return nil, fmt.Errorf("release: %w", err)
	}
	for _, f := range files {
		if old, twice := r.files[f.Path]; twice && old != f {
			return nil, fmt.Errorf("release: %s has two digests", f.Path)
		}
		r.files[f.Path] = f
	}
	return r, nil
}

func releaseDate(s string) (time.Time, error) {
	t, err := time.Parse("Mon, _2 Jan 2006 15:04:05 MST", s)
	if err != nil || t.Location() != time.UTC {
		return time.Time{}, fmt.Errorf("date %.40q, want one in UTC", s)
	}
	return t, nil
}

// parseFiles reads lines of digest, size and path, as in the field SHA256 of
// Release and in Checksums-Sha256 of Sources.
func parseFiles(s string) (files []File, err error) {
	for line := range strings.Lines(s) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 3 {
			return nil, fmt.Errorf("line of %d words, want digest, size and path", len(fields))
		}
		f := File{Path: fields[2]}
		if f.SHA256, err = ParseDigest(fields[0]); err != nil {
			return nil, err
		}
		if f.Size, err = parseSize(fields[1]); err != nil {
			return nil, err
		}
		if !LocalPath(f.Path) {
			return nil, fmt.Errorf("path %.80q", f.Path)
		}
		files = append(files, f)
	}
	return files, nil
}

func parseSize(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 16<<30 {
		return 0, fmt.Errorf("size %.40q", s)
	}
	return n, nil
}

// LocalPath says whether p is a clean path that stays below where it starts,
// of printable ASCII without white space.
func LocalPath(p string) bool {
	for i := range len(p) {
		if p[i] <= ' ' || p[i] > '~' || p[i] == '\\' {
			return false
		}
	}
	return p != "" && p != "." && p[0] != '/' && path.Clean(p) == p && p != ".." && !strings.HasPrefix(p, "../")
}
