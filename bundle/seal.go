package bundle

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"io"

	"lethe/private"
)

// SealKey is the key of sealed files, one of a server's secrets.
type SealKey = private.Value[[32]byte]

const (
	chunkSize = 64 << 10 // plain bytes in every chunk but the last, which has 1 to chunkSize
	tagSize   = 16
	sealInfo  = "lethe bundle file v1"
)

// SealedSize returns the size of a sealed file of plain bytes.
func SealedSize(plain int64) int64 {
	return plain + (plain+chunkSize-1)/chunkSize*tagSize
}

// stream is the AEAD of one file and the number of its next chunk.
//
// The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015) as in
// the file format of age: AES-256-GCM over chunks of 64 KiB, the nonce an
// 11-byte big-endian counter and a byte that is 1 for the last chunk. The key
// is HKDF-SHA-256 (RFC 5869) of the seal key with the SHA-256 of the content as
// salt: each content has its own key, so the counter can start at 0, equal
// content seals to equal bytes, and nobody without the seal key can tell from
// them what the content is.
type stream struct {
	aead  cipher.AEAD
	nonce [12]byte
}

func newStream(key SealKey, content Digest) stream {
	k := key.Reveal()
	// A 32-byte key from HKDF fits AES, and AES fits GCM: neither call can fail.
	derived, _ := hkdf.Key(sha256.New, k[:], content[:], sealInfo, 32)
	block, _ := aes.NewCipher(derived)
	aead, _ := cipher.NewGCM(block)
	return stream{aead: aead}
}

// next returns the nonce of the next chunk.
func (s *stream) next(last bool) []byte {
	nonce := s.nonce
	if last {
		nonce[11] = 1
	}
	for i := 10; i >= 0; i-- {
		s.nonce[i]++
		if s.nonce[i] != 0 {
			break
		}
	}
	return nonce[:]
}

type sealer struct {
	stream
	dst io.Writer
	buf []byte
}

// Seal returns a writer that writes the sealed form of what is written to it.
// content must be the SHA-256 of all that will be written; [Open] refuses the
// result otherwise only through the digest that its caller checks. Close writes
// the last chunk and does not close dst. Nothing written, nothing sealed: an
// empty file has no sealed form.
func Seal(key SealKey, content Digest, dst io.Writer) io.WriteCloser {
	return &sealer{newStream(key, content), dst, make([]byte, 0, chunkSize+tagSize)}
}

func (s *sealer) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if len(s.buf) == chunkSize {
			if err := s.flush(false); err != nil {
				return n, err
			}
		}
		k := min(chunkSize-len(s.buf), len(p))
		s.buf = append(s.buf, p[:k]...)
		p, n = p[k:], n+k
	}
	return n, nil
}

func (s *sealer) flush(last bool) error {
	_, err := s.dst.Write(s.aead.Seal(s.buf[:0], s.next(last), s.buf, nil))
	s.buf = s.buf[:0]
	return err
}

// Close implements [io.Closer].
func (s *sealer) Close() error {
	if len(s.buf) == 0 {
		return errors.New("seal: nothing to seal")
	}
	return s.flush(true)
}

type opener struct {
	stream
	src   *bufio.Reader
	buf   []byte
	plain []byte // opened, not yet read
	err   error
}

// Open returns a reader of the content of a sealed file. Every byte it returns
// is authentic and in its place; a file that is cut, extended, reordered or
// damaged anywhere ends in an error with the reason [BadSeal]. Errors of src
// are returned as they are.
func Open(key SealKey, content Digest, src io.Reader) io.Reader {
	return &opener{stream: newStream(key, content), src: bufio.NewReaderSize(src, chunkSize+tagSize), buf: make([]byte, chunkSize+tagSize)}
}

// Read implements [io.Reader].
func (o *opener) Read(p []byte) (int, error) {
	if len(o.plain) == 0 && o.err == nil {
		o.plain, o.err = o.chunk()
	}
	n := copy(p, o.plain)
	o.plain = o.plain[n:]
	if n == 0 && len(p) > 0 {
		return 0, o.err
	}
	return n, nil
}

// chunk opens the next chunk; with the last one it returns io.EOF.
func (o *opener) chunk() ([]byte, error) {
	n, err := io.ReadFull(o.src, o.buf)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, err
	}
	_, err = o.src.Peek(1)
	if err != nil && err != io.EOF {
		return nil, err
	}
	last := err == io.EOF
	plain, openErr := o.aead.Open(o.buf[:0], o.next(last), o.buf[:n], nil)
	if openErr != nil || len(plain) == 0 {
		return nil, refuse(BadSeal, openErr)
	}
	return plain, err
}
