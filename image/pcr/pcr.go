// Package pcr foretells what a TPM's platform configuration registers (SHA-256
// bank) hold after a boot image has started under known Secure Boot keys.
//
//   - [Boot], PCR 4: the boot manager's action, the separator, and each image that
//     firmware loads: the unified kernel image and, since systemd's stub loads it
//     through the firmware, the kernel inside (TCG PC Client Platform Firmware Profile
//     1.05, 3.3.4.5; systemd issue 36076).
//   - [Keys], PCR 7: the Secure Boot variables and the entry of db that let the image
//     start (the same, 3.3.4.8).
//   - [Unified], PCR 11: every section of the image that the stub measures, name and
//     content (systemd-stub(7)), and the boot phases (systemd-pcrphase(8)).
//
// The rest is the firmware's own (0 to 3, 5, 6) or not used. Everything here is pure: it
// reads no TPM and no log. The order of events is that of EDK II.
package pcr

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"unicode/utf16"

	"lethe/image/pe"
)

// Value is the content of a register: 32 bytes. At power-on it is zero.
type Value [sha256.Size]byte

// Extend returns the register's value after an event whose digest is that of data.
func (v Value) Extend(data []byte) Value { return v.ExtendDigest(sha256.Sum256(data)) }

// ExtendDigest returns the register's value after an event with this digest (TPM
// 2.0 Library, part 1, 17.3).
func (v Value) ExtendDigest(digest [sha256.Size]byte) Value {
	return sha256.Sum256(append(v[:], digest[:]...))
}

// separator ends what firmware measures before it hands over (TCG PFP, 10.4.1).
var separator = make([]byte, 4)

const callingApplication = "Calling EFI Application from Boot Option"

// Boot returns PCR 4 after firmware has loaded these images one after the other,
// each named by its Authenticode digest, on the first boot option that it tried.
func Boot(images ...[sha256.Size]byte) Value {
	v := Value{}.Extend([]byte(callingApplication)).Extend(separator)
	for _, digest := range images {
		v = v.ExtendDigest(digest)
	}
	return v
}

// BootImages returns the digests for [Boot] of a unified kernel image: its own
// and that of the kernel inside.
func BootImages(unified []byte) ([][sha256.Size]byte, error) {
	i, err := pe.Parse(unified)
	if err != nil {
		return nil, err
	}
	images := [][sha256.Size]byte{i.Digest()}
	for _, s := range i.Sections() {
		if s.Name != ".linux" {
			continue
		}
		kernel, err := pe.Parse(s.Data)
		if err != nil {
			return nil, fmt.Errorf("kernel: %w", err)
		}
		images = append(images, kernel.Digest())
	}
	if len(images) != 2 {
		return nil, fmt.Errorf("unified kernel image: %d kernels, want 1", len(images)-1)
	}
	return images, nil
}

// GUID is an EFI_GUID in memory order (UEFI 2.10, appendix A).
type GUID [16]byte

// Vendors of Secure Boot variables (UEFI 2.10, 3.3 and 32.6.1).
var (
	Global   = GUID{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	Security = GUID{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
)

// variable returns UEFI_VARIABLE_DATA (TCG PFP, 10.4.2.6).
func variable(vendor GUID, name string, data []byte) []byte {
	units := utf16.Encode([]rune(name))
	b := append([]byte(nil), vendor[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(units)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	for _, u := range units {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, data...)
}

// Variables are the contents of the Secure Boot variables: signature lists.
// An absent dbx is measured as empty.
type Variables struct{ PK, KEK, DB, DBX []byte }

// Keys returns PCR 7 with Secure Boot on, when one entry of db verified all images:
// authority is its EFI_SIGNATURE_DATA, the owner's GUID and the certificate. The
// same entry is measured once, however many images it verifies.
func Keys(v Variables, authority []byte) Value {
	return Value{}.
		Extend(variable(Global, "SecureBoot", []byte{1})).
		Extend(variable(Global, "PK", v.PK)).
		Extend(variable(Global, "KEK", v.KEK)).
		Extend(variable(Security, "db", v.DB)).
		Extend(variable(Security, "dbx", v.DBX)).
		Extend(separator).
		Extend(variable(Security, "db", authority))
}

// measured lists the sections that the stub measures, in its own order, which is
// not that of the file (systemd 257, src/fundamental/uki.c). .pcrsig is left
// out there: it signs the result.
var measured = []string{".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile", ".dtbauto", ".hwids"}

// Phases that systemd measures when the root file system's own system comes up, without one in the initrd.
var Phases = []string{"sysinit", "ready"}

// Unified returns PCR 11 after the stub of a unified kernel image has run and
// these phases have passed. Images with several profiles are refused: which one was
// booted is not in the file.
func Unified(unified []byte, phases ...string) (Value, error) {
	i, err := pe.Parse(unified)
	if err != nil {
		return Value{}, err
	}
	content := map[string][]byte{}
	for _, s := range i.Sections() {
		if _, twice := content[s.Name]; twice {
			return Value{}, fmt.Errorf("unified kernel image: section %q stands twice", s.Name)
		}
		content[s.Name] = s.Data
	}
	if content[".linux"] == nil {
		return Value{}, fmt.Errorf("unified kernel image: no section .linux")
	}
	var v Value
	for _, name := range measured {
		if data := content[name]; len(data) > 0 {
			v = v.Extend(append([]byte(name), 0)).Extend(data)
		}
	}
	for _, p := range phases {
		v = v.Extend([]byte(p))
	}
	return v, nil
}
