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
	Init = "init"
	Root = "lethe/root"
)

// A directory of kernel modules, one in the initramfs and one in the root, holds
//
//	modules/NAME.ko  uncompressed, with their signatures
//	order            their names, a line each, in an order in which they can be loaded: what a module needs is above it
//	aliases          which module drives which device: lines of modules.alias (depmod.d(5))
//	load             names of those that are loaded whether a device asks for them or not
//
// There is no modprobe: the kernel asks nobody, and what is not in the directory cannot be loaded.
const (
	InitramfsModules = "lethe"
	RootModules      = "usr/lib/lethe"
	Modules          = "modules"
	Order            = "order"
	Aliases          = "aliases"
	Load             = "load"
)

// BootImage is the path of the unified kernel image in the EFI system partition (UEFI 2.10, 3.5.1.1).
const BootImage = "EFI/BOOT/BOOTX64.EFI"

// Sealed is what lethe-seal writes in the running system once it is closed: a JSON report.
const Sealed = "/run/lethe/sealed.json"

// ActivationPort is the TCP port on which a server that has no secrets says so, and
// the only one that it listens on.
const ActivationPort = 7443

// MaxRoot bounds the root file system, in bytes.
const MaxRoot = 512 << 20

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
