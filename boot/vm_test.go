package boot_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"testing"

	"lethe/boot/boottest"
	"lethe/image/layout"
	"lethe/image/tree"
)

// storage are the drivers that the tests' machines have.
var storage = []string{"virtio_blk", "virtio_scsi", "sd_mod", "sr_mod", "ahci", "ata_piix"}

// running are the modules of the running system, and network its drivers.
var (
	running = []string{"tun", "nf_tables", "nf_conntrack", "nf_conntrack_netlink", "xfrm_user", "esp4"}
	network = []string{"virtio_net"}
)

// stays is a module that cannot be unloaded: it has no function for it.
const stays = "vrf"

const cmdline = "init_on_alloc=1 init_on_free=1 net.ifnames=0 panic=10 nohibernate"

// world is an initramfs and the root that it wants.
type world struct {
	kernel    *boottest.Kernel
	initramfs []byte
	root      []byte
}

// made makes a world whose first process after lethe-init does what wish says. without names a file that the root lacks.
func made(t *testing.T, kernel *boottest.Kernel, programs compiled, wish, without string, drivers ...string) world {
	t.Helper()
	var root tree.Tree
	for _, dir := range []string{"dev", "proc", "sys", "run", "etc"} {
		check(t, root.Dir(dir, 0o755, 0, 0, "test"))
	}
	check(t, root.File("etc/machine-id", 0o444, "test", nil))
	check(t, root.File("etc/wish", 0o444, "test", []byte(wish)))
	check(t, root.File(layout.Manager, 0o755, "test", programs.manager))
	check(t, root.File("usr/bin/lethe-seal", 0o755, "test", programs.seal))
	check(t, root.File(layout.RootModules+"/"+layout.Cmdline, 0o444, "test", []byte(boottest.Console+" "+cmdline+"\n")))
	kernel.Modules(t, &root, layout.RootModules, running, network...)
	root.Remove(without)
	return startedWith(t, kernel, programs, boottest.Squashfs(t, &root), drivers...)
}

// startedWith makes an initramfs for a root.
func startedWith(t *testing.T, kernel *boottest.Kernel, programs compiled, root []byte, drivers ...string) world {
	t.Helper()
	var initramfs tree.Tree
	load := []string{"loop", "squashfs", "overlay"}
	if drivers[0] == stays {
		load = append(load, stays)
	}
	want := layout.RootDigest{SHA256: sha256.Sum256(root), Size: int64(len(root))}
	check(t, initramfs.File(layout.Init, 0o755, "test", programs.init))
	check(t, initramfs.File(layout.Root, 0o644, "test", []byte(want.String())))
	check(t, initramfs.File(layout.Medium, 0o644, "test", []byte(boottest.Medium(boottest.Disk(layout.RootType, root)).String())))
	kernel.Modules(t, &initramfs, layout.InitramfsModules, load, drivers...)
	return world{kernel, boottest.Initramfs(t, &initramfs), root}
}

func (w world) machine(disks []string, content ...[]byte) boottest.Machine {
	return boottest.Machine{Initramfs: w.initramfs, Memory: 256, Cmdline: cmdline, Disks: disks, Content: content}
}

type compiled struct{ init, manager, seal []byte }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// has wants lines on a console, in any order.
func has(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !regexp.MustCompile("(?m)" + line).MatchString(text) {
			t.Errorf("the console does not say %q", line)
		}
	}
}

// TestBoot boots machines with disks of every kind, and reads on the console how each went.
func TestBoot(t *testing.T) {
	kernel := boottest.VM(t)
	p := compiled{boottest.Program(t, "lethe/boot/boottest/init"), boottest.Program(t, "lethe/boot/boottest/manager"),
		boottest.Program(t, "lethe/boot/boottest/seal")}
	w := made(t, kernel, p, "", "none", storage...)
	good := boottest.Disk(layout.RootType, w.root)
	damaged := bytes.Clone(good)
	damaged[2048*512+len(w.root)/2] ^= 1
	other := boottest.Disk(layout.RootType, append([]byte("another root"), make([]byte, len(w.root))...))
	short := boottest.Disk(layout.RootType, w.root[:len(w.root)-4096])
	truncated := good[:len(good)/2]
	foreign := boottest.Disk([16]byte{1}, w.root)
	pattern := bytes.Repeat([]byte("a customer's disk "), 1<<16)
	gate := make(chan struct{}, 2) // machines at once

	ends := func(name string, w world, m boottest.Machine, lines ...string) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gate <- struct{}{}
			defer func() { <-gate }()
			text, took := m.Run(t, w.kernel)
			t.Log(name, took)
			has(t, text, lines...)
			if t.Failed() {
				t.Log(text)
			}
		})
	}
	started := []string{`^lethe: root verified after`, `^manager: pid 1 argv \["systemd"\] env \["PATH=/usr/bin" "LANG=C.UTF-8"\]$`,
		`^manager: block loop0 size \d+ ro 1 backing /memfd:lethe-root \(deleted\)$`,
		`^manager: write to the root: <nil>$`, `^manager: run what was written: .*permission denied$`, `^manager: program for the end: <nil>$`,
		`^manager: /etc/machine-id: [0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}$`, `^manager: end$`}

	t.Run("others first", func(t *testing.T) {
		t.Parallel()
		gate <- struct{}{}
		defer func() { <-gate }()
		m := w.machine([]string{"virtio", "scsi", "nvme", "sata", "scsi-cd", "cd"}, damaged, other, pattern, short, truncated, good)
		r := m.Start(t, kernel)
		text := r.Wait(t)
		has(t, text, append(started, `^lethe: root found on sr`)...)
		if n := strings.Count(text, "manager: block "); n != 1 {
			t.Errorf("%d block devices are left", n)
		}
		if n := strings.Count(text, "manager: /proc/modules"); n != 3 {
			t.Errorf("%d modules are left", n)
		}
		for i, path := range r.Disks {
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, m.Content[i]) {
				t.Errorf("the disk on %s is not what it was: %v", m.Disks[i], err)
			}
		}
		if t.Failed() {
			t.Log(text)
		}
	})
	ends("NVMe", w, w.machine([]string{"nvme"}, good), append(started, `^lethe: root found on nvme0n1`)...)
	ends("no medium", w, w.machine([]string{"virtio", "sata", "scsi-cd"}, foreign, pattern, truncated),
		`^lethe: stop E20: no root partition on any of 3 devices$`, `^lethe: this machine goes off$`, `reboot: Power down`)
	ends("wrong roots", w, w.machine([]string{"scsi", "virtio", "cd"}, damaged, other, short),
		`^lethe: stop E21: 3 root partitions found, none with the digest`, `reboot: Power down`)
	noise := make([]byte, 1<<20)
	_, _ = rand.Read(noise)
	bad := startedWith(t, kernel, p, noise, "virtio_blk")
	ends("no file system", bad, bad.machine([]string{"virtio"}, boottest.Disk(layout.RootType, noise)), `^lethe: stop E30: mount squashfs`, `reboot: Power down`)
	stuck := startedWith(t, kernel, p, w.root, stays, "virtio_blk")
	ends("a driver stays", stuck, stuck.machine([]string{"virtio"}, good), `^lethe: stop E40: still there: module vrf$`, `reboot: Power down`)
	headless := made(t, kernel, p, "", layout.Manager, "virtio_blk")
	ends("no systemd", headless, headless.machine([]string{"virtio"}, boottest.Disk(layout.RootType, headless.root)), `^lethe: stop E51: /usr/lib/systemd/systemd: no such file`, `reboot: Power down`)

	// The kernel for hardware knows USB.
	usb := made(t, boottest.Hardware(t), p, "", "none", "xhci_pci", "usb_storage", "uas", "sd_mod", "nvme")
	disk := boottest.Disk(layout.RootType, usb.root)
	ends("USB", usb, usb.machine([]string{"nvme", "usb"}, pattern, disk), append(started, `^lethe: root found on sda`)...)

	sealed := made(t, kernel, p, "seal", "none", "virtio_blk")
	m := sealed.machine([]string{"virtio"}, boottest.Disk(layout.RootType, sealed.root))
	m.Extra = []string{"-nic", "user,model=virtio-net-pci,restrict=on"}
	ends("sealed", sealed, m, `^manager: lethe-seal \[\]: exit status 1`,
		`^manager: lethe-seal \[\]: secure boot: want "on", got`, `^manager: lethe-seal \[\]: \d+ checks, 1 failed$`,
		`^manager: load a module: operation not permitted$`, `^manager: open module loading: .*invalid argument$`,
		`^manager: disable lockdown: .*operation not permitted$`, `^manager: dumps: 0, signal: (quit|aborted)$`, `^manager: memory as a program: permission denied`)

	// The first run is reset in its middle, the second one ends in order.
	t.Run("residue", func(t *testing.T) {
		t.Parallel()
		gate <- struct{}{}
		defer func() { <-gate }()
		w := made(t, kernel, p, "plant wait reboot", "none", "virtio_blk")
		m := w.machine([]string{"virtio"}, boottest.Disk(layout.RootType, w.root))
		m.Keep = true
		r := m.Start(t, kernel)
		monitor := r.Monitor(t)
		first := r.Said(t, "manager: planted", 1)
		before := residue(t, first, monitor.Memory(m.Memory))
		monitor.Do("system_reset", nil)
		r.Said(t, "manager: pid 1", 2)
		after := residue(t, first, monitor.Memory(m.Memory))
		t.Logf("memory held the mark %d times before a hard reset, and %d times when the next boot reached user space", before, after)
		if before < 1<<20 || after != 0 {
			t.Error(r.Text())
		}
		second := r.Said(t, "manager: planted", 2)
		second = second[strings.LastIndex(second, "manager: planted"):]
		if before := residue(t, second, monitor.Memory(m.Memory)); before < 1<<20 {
			t.Errorf("memory holds the mark only %d times", before)
		}
		monitor.Do("set-action", map[string]any{"reboot": "shutdown", "shutdown": "pause"})
		r.Go(t)
		defer func() {
			if t.Failed() {
				t.Log(r.Text())
			}
		}()
		monitor.Until("STOP")
		after = residue(t, second, monitor.Memory(m.Memory))
		t.Logf("after an orderly reboot, before the firmware runs again, memory holds it %d times", after)
		if after != 0 || !strings.Contains(r.Text(), "lethe: memory given back") {
			t.Error(r.Text())
		}
	})
}

// residue counts the first mark that the console names in a machine's memory.
func residue(t *testing.T, text string, memory []byte) int {
	t.Helper()
	found := regexp.MustCompile(`planted ([0-9a-f]{32})`).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("nothing was planted: %s", text)
	}
	mark, err := hex.DecodeString(found[1])
	check(t, err)
	return bytes.Count(memory, mark)
}
