package eventlog

import (
	"fmt"
	"strconv"
	"unicode/utf16"

	"lethe/image/pcr"
)

// Type is the kind of an event (TCG PFP 1.05, 10.4.1). As text it is the
// specification's name, or 0x and eight hexadecimal digits.
type Type uint32

// The types that logs of PCs hold.
const (
	PostCode          Type = 0x01
	NoAction          Type = 0x03
	Separator         Type = 0x04
	Action            Type = 0x05
	Tag               Type = 0x06
	SCRTMContents     Type = 0x07
	SCRTMVersion      Type = 0x08
	CPUMicrocode      Type = 0x09
	ConfigFlags       Type = 0x0a
	TableOfDevices    Type = 0x0b
	CompactHash       Type = 0x0c
	IPL               Type = 0x0d
	NonhostCode       Type = 0x0f
	NonhostConfig     Type = 0x10
	NonhostInfo       Type = 0x11
	OmitBootDevices   Type = 0x12
	PostCode2         Type = 0x13
	VariableDriver    Type = 0x80000001
	VariableBoot      Type = 0x80000002
	BootApplication   Type = 0x80000003
	BootDriver        Type = 0x80000004
	RuntimeDriver     Type = 0x80000005
	GPT               Type = 0x80000006
	EFIAction         Type = 0x80000007
	FirmwareBlob      Type = 0x80000008
	HandoffTables     Type = 0x80000009
	FirmwareBlob2     Type = 0x8000000a
	HandoffTables2    Type = 0x8000000b
	VariableBoot2     Type = 0x8000000c
	GPT2              Type = 0x8000000d
	HCRTM             Type = 0x80000010
	VariableAuthority Type = 0x800000e0
	SPDMFirmwareBlob  Type = 0x800000e1
	SPDMConfig        Type = 0x800000e2
)

var typeNames = map[Type]string{
	PostCode: "EV_POST_CODE", NoAction: "EV_NO_ACTION", Separator: "EV_SEPARATOR", Action: "EV_ACTION", Tag: "EV_EVENT_TAG",
	SCRTMContents: "EV_S_CRTM_CONTENTS", SCRTMVersion: "EV_S_CRTM_VERSION", CPUMicrocode: "EV_CPU_MICROCODE",
	ConfigFlags: "EV_PLATFORM_CONFIG_FLAGS", TableOfDevices: "EV_TABLE_OF_DEVICES", CompactHash: "EV_COMPACT_HASH", IPL: "EV_IPL",
	NonhostCode: "EV_NONHOST_CODE", NonhostConfig: "EV_NONHOST_CONFIG", NonhostInfo: "EV_NONHOST_INFO",
	OmitBootDevices: "EV_OMIT_BOOT_DEVICE_EVENTS", PostCode2: "EV_POST_CODE2",
	VariableDriver: "EV_EFI_VARIABLE_DRIVER_CONFIG", VariableBoot: "EV_EFI_VARIABLE_BOOT", BootApplication: "EV_EFI_BOOT_SERVICES_APPLICATION",
	BootDriver: "EV_EFI_BOOT_SERVICES_DRIVER", RuntimeDriver: "EV_EFI_RUNTIME_SERVICES_DRIVER", GPT: "EV_EFI_GPT_EVENT",
	EFIAction: "EV_EFI_ACTION", FirmwareBlob: "EV_EFI_PLATFORM_FIRMWARE_BLOB", HandoffTables: "EV_EFI_HANDOFF_TABLES",
	FirmwareBlob2: "EV_EFI_PLATFORM_FIRMWARE_BLOB2", HandoffTables2: "EV_EFI_HANDOFF_TABLES2", VariableBoot2: "EV_EFI_VARIABLE_BOOT2",
	GPT2: "EV_EFI_GPT_EVENT2", HCRTM: "EV_EFI_HCRTM_EVENT", VariableAuthority: "EV_EFI_VARIABLE_AUTHORITY",
	SPDMFirmwareBlob: "EV_EFI_SPDM_FIRMWARE_BLOB", SPDMConfig: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}

// Types returns every type that has a name.
func Types() []Type {
	var all []Type
	for t := range typeNames {
		all = append(all, t)
	}
	return all
}

// String returns the type's name.
func (t Type) String() string {
	if name, ok := typeNames[t]; ok {
		return name
	}
	return fmt.Sprintf("0x%08x", uint32(t))
}

// MarshalText implements [encoding.TextMarshaler].
func (t Type) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. It takes what String gives, and nothing else.
func (t *Type) UnmarshalText(text []byte) error {
	for known, name := range typeNames {
		if name == string(text) {
			*t = known
			return nil
		}
	}
	n, err := strconv.ParseUint(string(text), 0, 32)
	if err != nil || Type(n).String() != string(text) {
		return fmt.Errorf("event type %.40q: want a name such as EV_SEPARATOR, or 0x and eight digits", text)
	}
	*t = Type(n)
	return nil
}

// Variable is UEFI_VARIABLE_DATA (PFP 1.05, 10.4.2.6).
type Variable struct {
	Vendor pcr.GUID
	Name   string
	Data   []byte
}

// ParseVariable reads the data of an event that tells of an EFI variable.
func ParseVariable(data []byte) (v Variable, err error) {
	r := &reader{rest: data}
	copy(v.Vendor[:], r.bytes(len(v.Vendor)))
	units, size := r.uint64(), r.uint64()
	if r.bad || units > uint64(len(r.rest))/2 || size != uint64(len(r.rest))-2*units {
		return v, fmt.Errorf("%w: not a variable", ErrMalformed)
	}
	name := make([]uint16, units)
	for i := range name {
		name[i] = r.uint16()
	}
	v.Name, v.Data = string(utf16.Decode(name)), r.rest
	return v, nil
}

// ParseTag reads TCG_PCClientTaggedEvent (PFP 1.05, 10.4.2.1), which the kernel's EFI stub
// writes: its number and its data.
func ParseTag(data []byte) (id uint32, content []byte, err error) {
	r := &reader{rest: data}
	id = r.uint32()
	content = r.sized()
	if r.bad || len(r.rest) != 0 {
		return 0, nil, fmt.Errorf("%w: not a tagged event", ErrMalformed)
	}
	return id, content, nil
}
