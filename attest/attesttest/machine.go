package attesttest

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"unicode/utf16"

	"lethe/attest"
	"lethe/attest/eventlog"
	"lethe/image/pcr"
)

// Event is an event as a log holds it.
type Event = eventlog.Event

// Machine is what one boot measures.
type Machine struct {
	Events []Event
	Phases []string
}

// Hash returns the digest of data.
func Hash(data []byte) [sha256.Size]byte { return sha256.Sum256(data) }

// Hashed returns an event whose digest is that of its data.
func Hashed(index int, t eventlog.Type, data []byte) Event {
	return Event{Index: index, Type: t, Digest: Hash(data), Data: data}
}

// Blob returns an event that measures something that is not in the log.
func Blob(index int, t eventlog.Type, blob string) Event {
	return Event{Index: index, Type: t, Digest: Hash([]byte(blob)), Data: []byte("at 0x800000: " + blob)}
}

// VariableData returns UEFI_VARIABLE_DATA.
func VariableData(vendor pcr.GUID, name string, data []byte) []byte {
	units := utf16.Encode([]rune(name))
	b := append([]byte(nil), vendor[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(units)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	for _, u := range units {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, data...)
}

// BootVariable returns an event of a boot variable: its digest is that of its content.
func BootVariable(name, content string) Event {
	return Event{Index: 1, Type: eventlog.VariableBoot, Digest: Hash([]byte(content)), Data: VariableData(pcr.Global, name, []byte(content))}
}

func tagged(id uint32, description, content string) Event {
	b := binary.LittleEndian.AppendUint32(nil, id)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(description)))
	return Event{Index: 9, Type: eventlog.Tag, Digest: Hash([]byte(content)), Data: append(b, description...)}
}

// Keys are the Secure Boot variables of the test's machines.
var Keys = pcr.Variables{PK: []byte("the platform key"), KEK: []byte("the key exchange key"), DB: []byte("the owner and the boot certificate")}

// Authority is the entry of db that lets images start.
var Authority = []byte("the boot certificate")

// Image is what a release boots.
type Image struct{ Name, Kernel, Initrd, Cmdline string }

// TheImage is what the test's release boots.
func TheImage(name string) Image {
	return Image{name, name + " kernel", name + " initrd", name + " ro"}
}

// Authenticode returns the digests of the unified image and of the kernel in it.
func (i Image) Authenticode() [][sha256.Size]byte {
	return [][sha256.Size]byte{Hash([]byte(i.Name + i.Kernel + i.Initrd + i.Cmdline)), Hash([]byte(i.Kernel))}
}

// sections returns what the stub measures, name and content in turn.
func (i Image) sections() [][]byte {
	return [][]byte{[]byte(".linux\x00"), []byte(i.Kernel), []byte(".cmdline\x00"), []byte(i.Cmdline), []byte(".initrd\x00"), []byte(i.Initrd)}
}

// PCR11 returns what register 11 holds after the stub and the phases.
func (i Image) PCR11(phases ...string) (v pcr.Value) {
	for _, s := range i.sections() {
		v = v.Extend(s)
	}
	for _, p := range phases {
		v = v.Extend([]byte(p))
	}
	return v
}

var separator = make([]byte, 4)

// Boot returns what a machine measures that starts an image, as EDK II does.
func Boot(i Image) *Machine {
	m := &Machine{Phases: slices.Clone(pcr.Phases)}
	add := func(all ...Event) { m.Events = append(m.Events, all...) }
	add(Hashed(0, eventlog.SCRTMVersion, []byte{0, 0}), Blob(0, eventlog.FirmwareBlob, "PEI"), Blob(0, eventlog.FirmwareBlob, "DXE"))
	variable := func(vendor pcr.GUID, name string, data []byte) {
		add(Hashed(7, eventlog.VariableDriver, VariableData(vendor, name, data)))
	}
	variable(pcr.Global, "SecureBoot", []byte{1})
	variable(pcr.Global, "PK", Keys.PK)
	variable(pcr.Global, "KEK", Keys.KEK)
	variable(pcr.Security, "db", Keys.DB)
	variable(pcr.Security, "dbx", Keys.DBX)
	add(Hashed(7, eventlog.Separator, separator))
	add(Blob(1, eventlog.HandoffTables, "SMBIOS of serial 7"), BootVariable("BootOrder", "0000"), BootVariable("Boot0000", "disk"))
	add(Blob(2, eventlog.BootDriver, "network adapter"))
	add(Hashed(4, eventlog.EFIAction, []byte("Calling EFI Application from Boot Option")))
	for index := range 7 {
		add(Hashed(index, eventlog.Separator, separator))
	}
	add(Blob(5, eventlog.GPT, "partitions"))
	add(Hashed(7, eventlog.VariableAuthority, VariableData(pcr.Security, "db", Authority)))
	images := i.Authenticode()
	add(Event{Index: 4, Type: eventlog.BootApplication, Digest: images[0], Data: []byte("BOOTX64.EFI")})
	for _, s := range i.sections() {
		add(Hashed(11, eventlog.IPL, s))
	}
	add(Event{Index: 4, Type: eventlog.BootApplication, Digest: images[1], Data: []byte("kernel")})
	add(tagged(0x8f3b22ec, "Linux initrd", i.Initrd), tagged(0x8f3b22ed, "LOADED_IMAGE::LoadOptions", i.Cmdline))
	add(Hashed(5, eventlog.EFIAction, []byte("Exit Boot Services Invocation")), Hashed(5, eventlog.EFIAction, []byte("Exit Boot Services Returned with Success")))
	return m
}

// Clone returns a machine that can be changed.
func (m *Machine) Clone() *Machine {
	return &Machine{Events: slices.Clone(m.Events), Phases: slices.Clone(m.Phases)}
}

// Find returns the first event of a register and type.
func (m *Machine) Find(index int, t eventlog.Type) int {
	return slices.IndexFunc(m.Events, func(e Event) bool { return e.Index == index && e.Type == t })
}

// Header returns the log's first event. Algorithms are pairs of number and size.
func Header(algorithms ...uint16) []byte {
	le := binary.LittleEndian
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = le.AppendUint32(spec, uint32(len(algorithms)/2))
	for _, a := range algorithms {
		spec = le.AppendUint16(spec, a)
	}
	spec = append(spec, 0)
	b := le.AppendUint32(make([]byte, 4), uint32(eventlog.NoAction))
	b = append(b, make([]byte, sha1.Size)...)
	return append(le.AppendUint32(b, uint32(len(spec))), spec...)
}

// Record returns an event's bytes, with digests in the SHA-1 and SHA-256 banks.
func Record(e Event) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(e.Index))
	b = le.AppendUint32(b, uint32(e.Type))
	b = le.AppendUint32(b, 2)
	b = le.AppendUint16(b, 0x0004)
	old := sha1.Sum(e.Digest[:]) // of something else: nobody reads it
	if e.Type == eventlog.NoAction {
		old = [sha1.Size]byte{}
	}
	b = append(b, old[:]...)
	b = le.AppendUint16(b, 0x000b)
	b = append(b, e.Digest[:]...)
	b = le.AppendUint32(b, uint32(len(e.Data)))
	return append(b, e.Data...)
}

// Log returns the log's bytes.
func (m *Machine) Log() []byte {
	b := Header(0x0004, sha1.Size, 0x000b, sha256.Size)
	for _, e := range m.Events {
		b = append(b, Record(e)...)
	}
	return b
}

// Registers returns what a TPM's PCR 0 to 15 hold in the end.
func (m *Machine) Registers() (values [attest.PCRs]pcr.Value) {
	for _, e := range m.Events {
		if e.Type != eventlog.NoAction && e.Index < attest.PCRs {
			values[e.Index] = values[e.Index].ExtendDigest(e.Digest)
		}
	}
	for _, p := range m.Phases {
		values[11] = values[11].Extend([]byte(p))
	}
	return values
}
