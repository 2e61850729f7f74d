// Package vm is one machine as hardware would be, in QEMU: UEFI firmware with
// Secure Boot on (OVMF), a TPM 2.0 (swtpm), a medium, disks, network interfaces, a
// serial console. It is for trying images: the firmware refuses what hardware would
// refuse, and measures what hardware would measure.
//
// Beside what hardware has, whoever runs the machine sees all of it without asking
// what runs inside, so a release's image is tested as it is:
//
//   - [Machine.Console], what the machine writes to its serial port.
//   - [Machine.PCRs] and [Machine.Measured], the registers of the TPM and every
//     measurement since power-on: a proxy sits between QEMU and swtpm.
//   - [Machine.Memory], all of the guest's memory, while it runs, after a reset, and
//     after it was switched off or its QEMU has died.
//   - [Machine.Pause], [Machine.Reset], [Machine.Press] and the like, by QMP.
//
// A machine ends with its context or [Machine.Close], and its processes with the
// process that started them, however that ends. It leaves nothing: variables
// and memory are memfds, sockets have no names, interfaces are descriptors of the
// caller's. Only swtpm's state is a directory, with its 6 KB.
//
//	vm.go        what a machine is made of, its command line
//	machine.go   its life: start, events, end
//	tpm.go       the proxy before swtpm
//	command.go   the commands that are read there (TPM 2.0 Library, part 3)
//	monitor.go   QMP
//	console.go   the serial console, and waiting for words on it
//	memory.go    the guest's memory
//	process.go   children that do not outlive us
//	needs.go     the programs and firmware of Debian that this takes
package vm

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"lethe/fault"
)

// Slot is how a machine sees its medium.
type Slot string

// The slots.
const (
	CD   Slot = "cd"   // in a SATA drive
	USB  Slot = "usb"  // a stick on USB 3
	Disk Slot = "disk" // virtio
)

// Options say what a machine is made of. The zero value is a machine with 1 CPU,
// 1 GiB, a TPM, and nothing to start from.
type Options struct {
	Medium    string    // path of an image to start from; never written to, whatever the guest does
	Slot      Slot      // default CD
	CPUs      int       // default 1
	Memory    int       // MiB, default 1024; at least 128
	Variables []byte    // variable store of OVMF (package secureboot); default the empty one, with Secure Boot off
	NoTPM     bool      // leave the TPM out
	Disks     []string  // paths of raw disks that the guest may write to
	NICs      []NIC     // network interfaces, in the order in which the guest finds them
	Output    io.Writer // gets what the console shows, as it comes; not needed to read it later
	Once      bool      // hold the machine when the guest reboots, as when it switches off
	Needs     Needs     // default [Debian]
	Accel     Accel     // default [Accelerator]'s answer
}

// NIC is a network interface (virtio).
type NIC struct {
	MAC net.HardwareAddr // default 52:54:00:00:00:NN
	// Tap is the tap that the interface is plugged into, from [Tap]. The caller
	// closes it once the machine has started. Without one the interface is in a network
	// of its own that QEMU makes up, with DHCP, and no way out but Forward.
	Tap *os.File
	// Forward says which TCP addresses of the host lead to which port of the guest.
	Forward map[string]int
}

// Accel is how the guest's instructions are run.
type Accel string

// The accelerators: translated, on one thread for each CPU, or by the processor.
const (
	TCG Accel = "tcg"
	KVM Accel = "kvm"
)

// Bounds.
const (
	minMemory = 128
	maxMemory = 16384
	maxCPUs   = 16
)

// check sets defaults and returns what is wrong with o.
func (o *Options) check() error {
	if o.Slot == "" {
		o.Slot = CD
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.Memory == 0 {
		o.Memory = 1024
	}
	if o.Needs == (Needs{}) {
		o.Needs = Debian()
	}
	if o.Output == nil {
		o.Output = io.Discard
	}
	switch {
	case o.Slot != CD && o.Slot != USB && o.Slot != Disk:
		return fault.New(fault.Invalid, fmt.Sprintf("a machine cannot have its medium as %q", o.Slot)).WithHint("cd, usb or disk")
	case o.CPUs < 1 || o.CPUs > maxCPUs:
		return fault.New(fault.Invalid, fmt.Sprintf("a machine cannot have %d CPUs", o.CPUs)).WithHint(fmt.Sprintf("1 to %d", maxCPUs))
	case o.Memory < minMemory || o.Memory > maxMemory:
		return fault.New(fault.Invalid, fmt.Sprintf("a machine cannot have %d MiB of memory", o.Memory)).WithHint(fmt.Sprintf("%d to %d", minMemory, maxMemory))
	}
	for _, path := range append([]string{o.Medium}, o.Disks...) {
		if path == "" {
			continue
		}
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return fault.Wrap(fault.NotFound, "there is no file "+path, err)
		} else if err != nil {
			return fault.Wrap(fault.Denied, path+" cannot be read", err)
		}
		_ = f.Close() // only read
	}
	return o.Needs.check(!o.NoTPM)
}

// descriptors are the files of a machine's QEMU, which come after the standard ones.
type descriptors struct{ files []*os.File }

// add returns the number that f has in the child.
func (d *descriptors) add(f *os.File) string {
	d.files = append(d.files, f)
	return strconv.Itoa(2 + len(d.files))
}

// path returns a path by which the child opens f.
func (d *descriptors) path(f *os.File) string { return "/proc/self/fd/" + d.add(f) }

// parts are what [Options.arguments] connects.
type parts struct {
	memory, variables         *os.File
	console, monitor, control *os.File // sockets
}

// quote doubles the commas in an option's value (qemu(1)).
func quote(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// arguments returns QEMU's command line.
func (o *Options) arguments(p parts, d *descriptors) []string {
	cpu := "max" // with the instructions of today's servers
	if o.Accel == KVM {
		cpu = "host"
	}
	accel := string(o.Accel)
	if o.Accel == TCG {
		accel += ",thread=multi"
	}
	args := []string{
		"-machine", "q35,smm=on,vmport=off,memory-backend=ram", "-accel", accel, "-cpu", cpu, "-smp", strconv.Itoa(o.CPUs),
		"-m", strconv.Itoa(o.Memory),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,share=on,mem-path=%s", o.Memory, d.path(p.memory)),
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		// Variables are written in system management mode only, and never by the guest.
		"-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + quote(o.Needs.Code),
		"-drive", "if=pflash,format=raw,unit=1,file=" + d.path(p.variables),
		// Only the medium is tried.
		"-boot", "strict=on,menu=off,reboot-timeout=-1",
		"-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n", "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n",
		"-chardev", "socket,id=console,fd=" + d.add(p.console), "-serial", "chardev:console",
		"-chardev", "socket,id=monitor,fd=" + d.add(p.monitor), "-mon", "chardev=monitor,mode=control",
		// The machine stays as it is when the guest is done with it.
		"-action", "shutdown=pause,panic=pause,reboot=" + map[bool]string{true: "shutdown", false: "reset"}[o.Once],
		"-S",
	}
	if p.control != nil {
		args = append(args, "-chardev", "socket,id=tpm,fd="+d.add(p.control), "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0")
	}
	if o.Medium != "" {
		drive := "if=none,id=medium,format=raw,file=" + quote(o.Medium)
		switch o.Slot {
		case CD:
			args = append(args, "-drive", drive+",readonly=on", "-device", "ide-cd,bus=ide.0,drive=medium,bootindex=0")
		case USB:
			args = append(args, "-drive", drive+",readonly=on", "-device", "qemu-xhci,id=usb", "-device", "usb-storage,bus=usb.0,drive=medium,bootindex=0")
		case Disk:
			args = append(args, "-drive", drive+",readonly=on", "-device", "virtio-blk-pci,drive=medium,bootindex=0")
		}
	}
	for n, path := range o.Disks {
		args = append(args, "-drive", fmt.Sprintf("if=none,id=disk%d,format=raw,file=%s", n, quote(path)), "-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d", n))
	}
	for n, nic := range o.NICs {
		args = append(args, nic.arguments(n, d)...)
	}
	return args
}

func (nic NIC) arguments(n int, d *descriptors) []string {
	mac := nic.MAC
	if mac == nil {
		mac = net.HardwareAddr{0x52, 0x54, 0, 0, 0, byte(n + 1)}
	}
	netdev := fmt.Sprintf("user,id=net%d,restrict=on", n)
	if nic.Tap != nil {
		netdev = fmt.Sprintf("tap,id=net%d,fd=%s", n, d.add(nic.Tap))
	}
	for host, port := range nic.Forward {
		netdev += fmt.Sprintf(",hostfwd=tcp:%s-:%d", host, port)
	}
	return []string{"-netdev", netdev, "-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=%s,romfile=", n, mac)}
}
