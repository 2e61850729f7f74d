package vm

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Commands, response codes and algorithms (TPM 2.0 Library, part 2: 6.5.2, 6.6.3, 6.3).
const (
	tagNoSessions = 0x8001
	tagSessions   = 0x8002
	ccStartup     = 0x144
	ccPCRRead     = 0x17e
	ccPCRExtend   = 0x182
	algSHA1       = 0x0004
	algSHA256     = 0x000b
	algSHA384     = 0x000c
	algSHA512     = 0x000d

	headerSize = 10
	// maxCommand bounds commands and responses; swtpm's own bound is 4096.
	maxCommand = 8192
	// PCRs is how many registers a bank has (TCG PC Client Platform TPM Profile, 4.6).
	PCRs = 24
)

var digestSizes = map[uint16]int{algSHA1: 20, algSHA256: 32, algSHA384: 48, algSHA512: 64}

var errShort = errors.New("tpm: a message ends early")

// reader reads big-endian numbers and bytes; after the first failure everything is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err == nil && (n < 0 || n > len(r.b)) {
		r.err = errShort
	}
	if r.err != nil {
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) number(size int) (n uint32) {
	for _, b := range r.take(size) {
		n = n<<8 | uint32(b)
	}
	return n
}

// header reads tag, size and code, of a command or a response.
func header(b []byte) (tag uint16, code uint32, rest []byte, err error) {
	r := reader{b: b}
	tag = uint16(r.number(2))
	size := r.number(4)
	code = r.number(4)
	if r.err == nil && int(size) != len(b) {
		r.err = fmt.Errorf("tpm: a message of %d bytes says that it has %d", len(b), size)
	}
	return tag, code, r.b, r.err
}

// extended returns what a command TPM2_PCR_Extend puts into which register of the SHA-256 bank
// (part 3, 22.2). ok is false for other commands, and for those that the TPM will refuse.
func extended(command []byte) (m Measurement, ok bool) {
	tag, code, rest, err := header(command)
	if err != nil || tag != tagSessions || code != ccPCRExtend {
		return m, false
	}
	r := reader{b: rest}
	m.PCR = int(r.number(4))
	r.take(int(r.number(4))) // authorisation
	for range r.number(4) {
		algorithm := uint16(r.number(2))
		size, known := digestSizes[algorithm]
		digest := r.take(size)
		if r.err != nil || !known {
			return m, false
		}
		if algorithm == algSHA256 {
			m.SHA256, ok = [sha256.Size]byte(digest), true
		}
	}
	return m, ok
}

// pcrRead returns a command TPM2_PCR_Read (part 3, 22.4) for 8 registers of the SHA-256
// bank, which is as many as one command can read.
func pcrRead(from int) []byte {
	selection := make([]byte, PCRs/8)
	selection[from/8] = 0xff
	b := binary.BigEndian.AppendUint16(nil, tagNoSessions)
	b = binary.BigEndian.AppendUint32(b, headerSize+4+2+1+PCRs/8)
	b = binary.BigEndian.AppendUint32(b, ccPCRRead)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint16(b, algSHA256)
	return append(append(b, PCRs/8), selection...)
}

// pcrValues reads the response to [pcrRead].
func pcrValues(response []byte) (values [8][sha256.Size]byte, err error) {
	_, code, rest, err := header(response)
	if err == nil && code != 0 {
		err = fmt.Errorf("tpm: response code %#x", code)
	}
	if err != nil {
		return values, err
	}
	r := reader{b: rest}
	r.number(4) // how often registers have changed
	for range r.number(4) {
		r.number(2)
		r.take(int(r.number(1)))
	}
	if n := r.number(4); r.err == nil && n != 8 {
		return values, fmt.Errorf("tpm: %d registers in a response, want 8", n)
	}
	for i := range values {
		if digest := r.take(int(r.number(2))); len(digest) == sha256.Size {
			values[i] = [sha256.Size]byte(digest)
		} else if r.err == nil {
			r.err = fmt.Errorf("tpm: a register of %d bytes, want %d", len(digest), sha256.Size)
		}
	}
	return values, r.err
}
