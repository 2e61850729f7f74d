// Package layout is what the builder of the image and the programs inside it
// agree on: where things lie on the medium and in the initramfs.
//
// The medium is one file that is an ISO 9660 volume (for firmware that starts from a CD) and
// a disk with a GUID partition table (UEFI 2.10, 5.3) at once. Two of its
// partitions count:
//
//	EFI system   FAT with one file, EFI/BOOT/BOOTX64.EFI: the unified kernel image
//	RootType     the root file system, squashfs, from the partition's first byte
//
// The unified kernel image holds kernel, command line and initramfs under one signature.
// In the initramfs:
//
//	init             the first process, static
//	lethe/root       a [RootDigest]: which root file system is the right one
//	lethe/medium     a [MediumDigest]: what the rest of the medium is
//	lethe/           kernel modules that find and read the medium, see [InitramfsModules]
//
// So the signature fixes the root's digest, and nothing on the medium is believed
// before it has been read into memory and has that digest. No file system of the medium is mounted.
package layout

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// RootType is the partition type of the root, a GUID of ours in the order of its bytes on the disk.
var RootType = [16]byte{0x1d, 0x6c, 0x8e, 0x5f, 0x3a, 0x90, 0x7b, 0x4c, 0xa2, 0x54, 0x6c, 0x65, 0x74, 0x68, 0x65, 0x01}

// RootTypeName is RootType as tools write it.
const RootTypeName = "5f8e6c1d-903a-4c7b-a254-6c6574686501"

// Files of the initramfs, from its root.
const (
	Init   = "init"
	Root   = "lethe/root"
	Medium = "lethe/medium"
)

// FrontArchive is the length of the first of the two archives that the initramfs consists of, in bytes. It is
// not packed and holds nothing but [Medium], which is written when the rest of the medium is there; zeros fill it up.
const FrontArchive = 1024

// A directory of kernel modules, one in the initramfs and one in the root, holds
//
//	modules/NAME.ko  uncompressed, with their signatures
//	order            their names, a line each, in an order in which they can be loaded: what a module needs is above it
//	aliases          which module drives which device: lines of modules.alias (depmod.d(5))
//	load             names of those that are loaded whether a device asks for them or not
//	cmdline          the kernel's command line, a line: another one was tampered with
//
// There is no modprobe: the kernel asks nobody, and what is not in the directory cannot be loaded.
const (
	InitramfsModules = "lethe"
	RootModules      = "usr/lib/lethe"
	Modules          = "modules"
	Order            = "order"
	Aliases          = "aliases"
	Load             = "load"
	Cmdline          = "cmdline"
)

// BootImage is the path of the unified kernel image in the EFI system partition (UEFI 2.10, 3.5.1.1).
const BootImage = "EFI/BOOT/BOOTX64.EFI"

// Manager is the first process of the running system, in the root.
const Manager = "usr/lib/systemd/systemd"

// Sealed is what lethe-seal writes in the running system once it is closed: a JSON report.
const Sealed = "/run/lethe/sealed.json"

// ActivationPort is the TCP port on which a server that has no secrets says so, and
// the only one that it listens on.
const ActivationPort = 7443

// MaxRoot and MaxMedium bound the root file system and the whole medium, in bytes.
const (
	MaxRoot   = 512 << 20
	MaxMedium = 1 << 30
)

// RootDigest says which root file system is the right one.
type RootDigest struct {
	SHA256 [sha256.Size]byte
	Size   int64 // bytes, a multiple of 4096
}

// String returns the form that stands in the initramfs: digest, size, newline.
func (r RootDigest) String() string { return fmt.Sprintf("%x %d\n", r.SHA256, r.Size) }

// ParseRootDigest reads what [RootDigest.String] writes, and nothing else.
func ParseRootDigest(s string) (r RootDigest, err error) {
	digest, size, _ := strings.Cut(s, " ")
	b, err := hex.DecodeString(digest)
	if err == nil && len(b) == len(r.SHA256) {
		r.SHA256 = [sha256.Size]byte(b)
		_, err = fmt.Sscanf(size, "%d", &r.Size)
	}
	if err != nil || r.String() != s || r.Size < 4096 || r.Size > MaxRoot || r.Size%4096 != 0 {
		return RootDigest{}, fmt.Errorf("root digest: want 64 hexadecimal digits, a size and a newline")
	}
	return r, nil
}

// MediumDigest fixes every byte of the medium outside the boot image, of which the firmware checks the signature: partition
// tables, the file systems' own structures, the root, and what nobody reads. So there is no bit that can be another one.
type MediumDigest struct {
	SHA256     [sha256.Size]byte // of the bytes before the boot image and of those behind it
	Size       int64             // of the whole, in bytes
	BootOffset int64             // of the boot image
	BootLength int64             // with its space for signatures; 0 when the firmware started from elsewhere
}

// String returns the form that stands in the initramfs. Its length is always the same.
func (m MediumDigest) String() string {
	return fmt.Sprintf("%x %010d %010d %010d\n", m.SHA256, m.Size, m.BootOffset, m.BootLength)
}

// ParseMediumDigest reads what [MediumDigest.String] writes, and nothing else.
func ParseMediumDigest(s string) (m MediumDigest, err error) {
	var digest []byte
	_, err = fmt.Sscanf(s, "%64x %d %d %d\n", &digest, &m.Size, &m.BootOffset, &m.BootLength)
	if err == nil && len(digest) == len(m.SHA256) {
		m.SHA256 = [sha256.Size]byte(digest)
	}
	if err != nil || m.String() != s || m.Size < 4096 || m.Size > MaxMedium || m.BootOffset < 0 || m.BootLength < 0 || m.BootOffset > m.Size-m.BootLength {
		return MediumDigest{}, fmt.Errorf("medium digest: want 64 hexadecimal digits, three sizes and a newline")
	}
	return m, nil
}
