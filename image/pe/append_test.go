package pe_test

import (
	"bytes"
	debug "debug/pe"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"lethe/internal/testkit"

	"lethe/image/pe"
)

// stub is small with nothing behind its sections, and alignments.
func stub() []byte {
	b := small()[:headers+0x200+0x100]
	binary.LittleEndian.PutUint32(b[optional+32:], 0x1000)
	binary.LittleEndian.PutUint32(b[optional+36:], 0x100)
	binary.LittleEndian.PutUint32(b[optional+56:], 0x3000)
	binary.LittleEndian.PutUint32(b[sections+8:], 0x100)
	binary.LittleEndian.PutUint32(b[sections+12:], 0x3000) // ends behind SizeOfImage
	return b
}

// TestAppend has what was appended read by Go's own reader of such files.
func TestAppend(t *testing.T) {
	add := []pe.Section{{Name: ".osrel", Data: []byte("ID=x\n")}, {Name: ".linux", Data: bytes.Repeat([]byte("k"), 0x1234)}}
	images := map[string][]byte{"small": stub()}
	for _, path := range real {
		if !strings.HasSuffix(path, ".stub") {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// Some linkers leave symbols behind the sections.
		f, err := debug.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		end := uint32(0)
		for _, s := range f.Sections {
			end = max(end, s.Offset+s.Size)
		}
		clear(b[binary.LittleEndian.Uint32(b[0x3c:])+12:][:8]) // where the symbols are
		images["systemd"] = b[:end]
	}
	for name, b := range images {
		t.Run(name, func(t *testing.T) {
			before := bytes.Clone(b)
			was := testkit.Must[*pe.Image](t)(pe.Parse(b)).Sections()
			out := testkit.Must[[]byte](t)(pe.Append(b, add...))
			if !bytes.Equal(b, before) {
				t.Error("the stub was changed")
			}
			if len(out)%8 != 0 {
				t.Errorf("%d bytes", len(out))
			}
			f, err := debug.NewFile(bytes.NewReader(out))
			if err != nil {
				t.Fatal(err)
			}
			if len(f.Sections) != len(was)+2 {
				t.Fatalf("%d sections", len(f.Sections))
			}
			header := f.OptionalHeader.(*debug.OptionalHeader64)
			end := uint32(0)
			for i, s := range f.Sections {
				if i < len(was) {
					end = max(end, s.VirtualAddress+s.VirtualSize)
					continue
				}
				want := add[i-len(was)]
				data := testkit.Must[[]byte](t)(s.Data())
				if s.Name != want.Name || int(s.VirtualSize) != len(want.Data) || !bytes.Equal(data[:s.VirtualSize], want.Data) || len(bytes.Trim(data[s.VirtualSize:], "\x00")) != 0 {
					t.Errorf("section %d is %+v", i, s.SectionHeader)
				}
				if s.VirtualAddress%header.SectionAlignment != 0 || s.VirtualAddress < end || s.Offset%header.FileAlignment != 0 || s.Size%header.FileAlignment != 0 || s.Characteristics != 0x40000040 {
					t.Errorf("section %d lies at %+v", i, s.SectionHeader)
				}
				end = s.VirtualAddress + s.VirtualSize
			}
			if header.SizeOfImage < end || header.SizeOfImage%header.SectionAlignment != 0 {
				t.Errorf("SizeOfImage %#x", header.SizeOfImage)
			}
			for i, s := range testkit.Must[*pe.Image](t)(pe.Parse(out)).Sections()[len(was):] {
				if s.Name != add[i].Name || !bytes.Equal(s.Data, add[i].Data) || !bytes.HasPrefix(out[s.Offset:], add[i].Data) {
					t.Errorf("read back: %s", s.Name)
				}
			}
			testkit.Must[[]byte](t)(pe.Reserve(out, 4096))
		})
	}
}

func TestAppendRefuses(t *testing.T) {
	good := pe.Section{Name: ".x", Data: []byte{1}}
	le := binary.LittleEndian
	for name, tt := range map[string]struct {
		change func(b []byte) []byte
		add    pe.Section
	}{
		"no image":      {func(b []byte) []byte { return b[:10] }, good},
		"signed":        {func(b []byte) []byte { return testkit.Must[[]byte](t)(pe.Reserve(b, 4096)) }, good},
		"no alignment":  {func(b []byte) []byte { le.PutUint32(b[optional+32:], 0); return b }, good},
		"odd alignment": {func(b []byte) []byte { le.PutUint32(b[optional+36:], 0x180); return b }, good},
		"no room":       {func(b []byte) []byte { le.PutUint32(b[optional+60:], sections+2*40); return b }, good},
		"bytes behind":  {func(b []byte) []byte { return append(b, 1) }, good},
		"no name":       {nil, pe.Section{Data: []byte{1}}},
		"long name":     {nil, pe.Section{Name: ".lengthy1", Data: []byte{1}}},
		"nothing in it": {nil, pe.Section{Name: ".x"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := stub()
			if tt.change != nil {
				b = tt.change(b)
			}
			if _, err := pe.Append(b, tt.add); err == nil {
				t.Error("accepted")
			}
		})
	}
	if _, err := pe.Append(stub(), good); err != nil {
		t.Error(err)
	}
}
