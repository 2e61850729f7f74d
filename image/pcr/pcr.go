// Package pcr foretells what a TPM's platform configuration registers (SHA-256
// bank) hold after a boot image has started under known Secure Boot keys.
//
//   - [Boot], PCR 4: the boot manager's action, the separator, and each image that
//     firmware loads (TCG PC Client Platform Firmware Profile 1.05, 3.3.4.5). That is the
//     unified kernel image and nothing else: where there is no shim, systemd's stub
//     starts the kernel inside without the firmware's help (257, src/boot/linux.c), and measures
//     it into PCR 11.
//   - [Keys], PCR 7: the Secure Boot variables and the entry of db that let the image
//     start (the same, 3.3.4.8).
//   - [Unified], PCR 11: every section of the image that the stub measures, name and
//     content (systemd-stub(7)), and the boot phases (systemd-pcrphase(8)).
//
// The rest is the firmware's own (0 to 3, 5, 6) or not used. Everything here is pure: it
// reads no TPM and no log. The order of events is that of EDK II. [BootEvents], [KeyEvents]
// and [UnifiedEvents] say what each is, for whoever compares with a TPM's log; package
// image/vm does so with a machine that runs.
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

// Event is one measurement.
type Event struct {
	What   string // for people
	Digest [sha256.Size]byte
}

func event(what string, data []byte) Event { return Event{what, sha256.Sum256(data)} }

// Replay returns what a register that began with zeros holds after events.
func Replay(events []Event) (v Value) {
	for _, e := range events {
		v = v.ExtendDigest(e.Digest)
	}
	return v
}

// BootEvents returns the events of PCR 4 for images that firmware has loaded one
// after the other, each named by its Authenticode digest, on the first boot option that
// it tried.
func BootEvents(images ...[sha256.Size]byte) []Event {
	events := []Event{event("the boot manager tries a boot option", []byte(callingApplication)), event("separator", separator)}
	for _, digest := range images {
		events = append(events, Event{"boot image", digest})
	}
	return events
}

// Boot returns PCR 4 after [BootEvents].
func Boot(images ...[sha256.Size]byte) Value { return Replay(BootEvents(images...)) }

// BootImages returns the digests for [Boot] of a unified kernel image.
func BootImages(unified []byte) ([][sha256.Size]byte, error) {
	i, err := pe.Parse(unified)
	if err != nil {
		return nil, err
	}
	return [][sha256.Size]byte{i.Digest()}, nil
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

// KeyEvents returns the events of PCR 7 with Secure Boot on, when one entry of db verified
// all images: authority is its EFI_SIGNATURE_DATA, the owner's GUID and the certificate. The
// same entry is measured once, however many images it verifies.
func KeyEvents(v Variables, authority []byte) []Event {
	return []Event{
		event("SecureBoot is on", variable(Global, "SecureBoot", []byte{1})),
		event("PK", variable(Global, "PK", v.PK)),
		event("KEK", variable(Global, "KEK", v.KEK)),
		event("db", variable(Security, "db", v.DB)),
		event("dbx", variable(Security, "dbx", v.DBX)),
		event("separator", separator),
		event("entry of db that verified the boot image", variable(Security, "db", authority)),
	}
}

// Keys returns PCR 7 after [KeyEvents].
func Keys(v Variables, authority []byte) Value { return Replay(KeyEvents(v, authority)) }

// measured lists the sections that the stub measures, in its own order, which is
// not that of the file (systemd 257, src/fundamental/uki.c). .pcrsig is left
// out there: it signs the result.
var measured = []string{".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile", ".dtbauto", ".hwids"}

// Phases that systemd measures when the root file system's own system comes up, without one in the initrd.
var Phases = []string{"sysinit", "ready"}

// UnifiedEvents returns the events of PCR 11 when the stub of a unified kernel image has run and
// these phases have passed. Images with several profiles are refused: which one was
// booted is not in the file.
func UnifiedEvents(unified []byte, phases ...string) ([]Event, error) {
	i, err := pe.Parse(unified)
	if err != nil {
		return nil, err
	}
	content := map[string][]byte{}
	for _, s := range i.Sections() {
		if _, twice := content[s.Name]; twice {
			return nil, fmt.Errorf("unified kernel image: section %q stands twice", s.Name)
		}
		content[s.Name] = s.Data
	}
	if content[".linux"] == nil {
		return nil, fmt.Errorf("unified kernel image: no section .linux")
	}
	var events []Event
	for _, name := range measured {
		if data := content[name]; len(data) > 0 {
			events = append(events, event("name of section "+name, append([]byte(name), 0)), event("section "+name, data))
		}
	}
	for _, p := range phases {
		events = append(events, event("phase "+p, []byte(p)))
	}
	return events, nil
}

// Unified returns PCR 11 after [UnifiedEvents].
func Unified(unified []byte, phases ...string) (Value, error) {
	events, err := UnifiedEvents(unified, phases...)
	return Replay(events), err
}
