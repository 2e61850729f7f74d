package pe

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Offsets for [Append] (PE Format, "Optional Header").
const (
	sectionAlignment = 32
	fileAlignment    = 36
	sizeOfImage      = 56
	initializedData  = 0x40000040 // IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ
)

// Append returns an unsigned image with further sections of read-only data, in this order
// in memory and in the file: how a unified kernel image is made of a stub (UAPI
// Group, "Unified Kernel Image"). The stub's headers must have room for 40 bytes
// a section. Zeros fill the file up to its alignment.
func Append(stub []byte, sections ...Section) ([]byte, error) {
	i, err := Parse(stub)
	if err != nil {
		return nil, err
	}
	if i.table.Length != 0 {
		return nil, errors.New("pe: sections cannot be appended to an image with a certificate table")
	}
	le := binary.LittleEndian
	optional := i.checkSum - checkSum
	coff := optional - coffSize
	count := int(le.Uint16(stub[coff+6:]))
	table := optional + int(le.Uint16(stub[coff+20:]))
	headers, memory := int(le.Uint32(stub[optional+headersSize:])), int(le.Uint32(stub[optional+sectionAlignment:]))
	file := int(le.Uint32(stub[optional+fileAlignment:]))
	end := int(le.Uint32(stub[optional+sizeOfImage:]))
	switch {
	case memory < 1 || file < 1 || memory&(memory-1) != 0 || file&(file-1) != 0 || memory > 1<<20 || file > memory || len(stub)%file != 0:
		return nil, fmt.Errorf("%w: alignment", ErrFormat)
	case table+(count+len(sections))*sectionSize > headers || count+len(sections) > maxSections:
		return nil, fmt.Errorf("pe: the headers have no room for %d sections more", len(sections))
	}
	for n := range count { // SizeOfImage should be there already
		h := stub[table+n*sectionSize:]
		end = max(end, int(le.Uint32(h[12:]))+int(le.Uint32(h[8:])))
	}
	out := append([]byte(nil), stub...)
	for n, s := range sections {
		if s.Name == "" || len(s.Name) > 8 || len(s.Data) == 0 || len(out)+len(s.Data) > maxFileSize {
			return nil, fmt.Errorf("pe: section %q of %d bytes cannot be appended", s.Name, len(s.Data))
		}
		end = (end + memory - 1) &^ (memory - 1)
		h := out[table+(count+n)*sectionSize:][:sectionSize]
		clear(h)
		copy(h, s.Name)
		raw := (len(s.Data) + file - 1) &^ (file - 1)
		le.PutUint32(h[8:], uint32(len(s.Data)))
		le.PutUint32(h[12:], uint32(end))
		le.PutUint32(h[16:], uint32(raw))
		le.PutUint32(h[20:], uint32(len(out)))
		le.PutUint32(h[36:], initializedData)
		end += len(s.Data)
		out = append(out, s.Data...)
		out = append(out, make([]byte, raw-len(s.Data))...)
	}
	le.PutUint16(out[coff+6:], uint16(count+len(sections)))
	le.PutUint32(out[optional+sizeOfImage:], uint32((end+memory-1)&^(memory-1)))
	_, err = Parse(out)
	return out, err
}
