package secureboot

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"
	"unicode/utf16"

	"lethe/fault"
)

// The store of OVMF (edk2, MdePkg/Include/Pi/PiFirmwareVolume.h and
// MdeModulePkg/Include/Guid/VariableFormat.h): a firmware volume whose header
// is followed by a VARIABLE_STORE_HEADER, then variables, each at a multiple of 4
// bytes, then 0xff.
var (
	nvData      = guid(0xfff12b8d, 0x7696, 0x4c8b, 0xa9852747075b4f50)
	authStore   = guid(0xaaf32c78, 0x947b, 0x439a, 0xa1802e144ec37792)
	errStore    = fault.New(fault.Invalid, "not a variable store of OVMF").WithHint("want OVMF_VARS_4M.fd or a copy of it")
	errNotEmpty = fault.New(fault.Conflict, "the variable store has Secure Boot keys already").WithHint("begin with a fresh copy of OVMF_VARS_4M.fd")
	errFull     = fault.New(fault.Full, "the variable store has no space for the keys")
)

const (
	volumeSignature = 40 // offset of "_FVH"
	volumeHeader    = 48 // offset of the header's length
	storeHeader     = 28
	storeFormatted  = 0x5a
	storeHealthy    = 0xfe
	variableHeader  = 60
	variableStart   = 0x55aa
	variableAdded   = 0x3f
)

// Stored is one live variable of a store.
type Stored struct {
	Name       string
	Vendor     GUID
	Attributes uint32
	Time       []byte // EFI_TIME of the last update, 16 bytes
	Data       []byte
}

// ReadStore returns the live variables of an OVMF variable store.
func ReadStore(b []byte) ([]Stored, error) {
	found, _, _, err := readStore(b)
	return found, err
}

// readStore also returns where free space begins and ends.
func readStore(b []byte) (found []Stored, free, end int, err error) {
	le := binary.LittleEndian
	if len(b) < 64 || GUID(b[16:32]) != nvData || string(b[volumeSignature:volumeSignature+4]) != "_FVH" {
		return nil, 0, 0, errStore
	}
	at := int(le.Uint16(b[volumeHeader:]))
	if at < 56 || at > len(b)-storeHeader || GUID(b[at:at+16]) != authStore || b[at+20] != storeFormatted || b[at+21] != storeHealthy {
		return nil, 0, 0, errStore
	}
	size := int(le.Uint32(b[at+16:]))
	if size < storeHeader || size > len(b)-at {
		return nil, 0, 0, errStore
	}
	end = at + size
	at += storeHeader
	for end-at >= variableHeader && le.Uint16(b[at:]) == variableStart {
		h := b[at : at+variableHeader]
		nameSize, dataSize := int(le.Uint32(h[36:])), int(le.Uint32(h[40:]))
		if nameSize < 2 || nameSize%2 != 0 || nameSize > end-at-variableHeader || dataSize > end-at-variableHeader-nameSize {
			return nil, 0, 0, errStore
		}
		name := b[at+variableHeader:][:nameSize]
		data := b[at+variableHeader+nameSize:][:dataSize]
		if h[2] == variableAdded {
			found = append(found, Stored{text(name), GUID(h[44:60]), le.Uint32(h[4:]), h[16:32], data})
		}
		at = min(end, (at+variableHeader+nameSize+dataSize+3)&^3)
	}
	if len(bytes.Trim(b[at:end], "\xff")) != 0 {
		return nil, 0, 0, errStore
	}
	return found, at, end, nil
}

// text returns a NUL-terminated UTF-16 name.
func text(b []byte) string {
	var units []uint16
	for ; len(b) > 2; b = b[2:] {
		units = append(units, binary.LittleEndian.Uint16(b))
	}
	return string(utf16.Decode(units))
}

// Keys are the entries of the Secure Boot variables.
type Keys struct{ PK, KEK, DB, DBX []Entry }

// Enrol returns a copy of an OVMF variable store without keys, with these keys enrolled at a
// time and Secure Boot switched on.
func Enrol(store []byte, k Keys, at time.Time) ([]byte, error) {
	present, free, end, err := readStore(store)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(present, func(s Stored) bool { return s.Name == string(PK) && s.Vendor == globalVariable }) {
		return nil, errNotEmpty
	}
	if len(k.PK) != 1 || len(k.KEK) == 0 || len(k.DB) == 0 {
		return nil, fault.New(fault.Invalid, "Secure Boot wants one PK, a KEK and a db entry")
	}
	var none = make([]byte, 16)
	variables := []Stored{
		{"SecureBootEnable", bootEnable, nonVolatile | bootService, none, []byte{1}},
		{"CustomMode", customMode, nonVolatile | bootService, none, []byte{0}},
		{string(PK), globalVariable, keyAttributes, efiTime(at), Lists(k.PK)},
		{string(KEK), globalVariable, keyAttributes, efiTime(at), Lists(k.KEK)},
		{string(DB), imageSecurity, keyAttributes, efiTime(at), Lists(k.DB)},
	}
	if len(k.DBX) > 0 {
		variables = append(variables, Stored{string(DBX), imageSecurity, keyAttributes, efiTime(at), Lists(k.DBX)})
	}
	out := bytes.Clone(store)
	for _, v := range variables {
		b := v.bytes()
		if len(b) > end-free {
			return nil, errFull
		}
		copy(out[free:], b)
		free += len(b)
	}
	return out, nil
}

// bytes returns the variable with its header (AUTHENTICATED_VARIABLE_HEADER), padded.
func (s Stored) bytes() []byte {
	name := append(utf16le(s.Name), 0, 0)
	b := binary.LittleEndian.AppendUint16(nil, variableStart)
	b = append(b, variableAdded, 0)
	b = binary.LittleEndian.AppendUint32(b, s.Attributes)
	b = binary.LittleEndian.AppendUint64(b, 0) // monotonic count: not used with times
	b = append(b, s.Time...)
	b = binary.LittleEndian.AppendUint32(b, 0) // public key index: not used with times
	b = binary.LittleEndian.AppendUint32(b, uint32(len(name)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s.Data)))
	b = append(b, s.Vendor[:]...)
	b = append(b, name...)
	b = append(b, s.Data...)
	return append(b, bytes.Repeat([]byte{0xff}, -len(b)&3)...)
}
