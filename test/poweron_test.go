package test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/image/imagetest"
	"lethe/image/lock"
	"lethe/image/vm"
	"lethe/lab"
)

// BenchmarkPowerOn switches a server on and waits until a customer's packets come out of it: the
// image, which verifies itself, closes the machine and waits until it is told its secrets; and
// plain Debian with the same packages, which has its key on its disk, on a machine like that one.
func BenchmarkPowerOn(b *testing.B) {
	keys, _, iso := keysOf(b, "vm-lab")
	plain, dials := plainDebian(b)
	blank, err := os.ReadFile(vm.Debian().Variables)
	if err != nil {
		b.Fatal(err)
	}
	var ours, theirs []time.Duration
	for b.Loop() {
		ours = append(ours, powerOn(b, vm.Options{Medium: iso, Slot: vm.Disk, Variables: keys.Variables}, false, func(l *lab.Lab) {
			newCustomer(b, l, 0).connect("--protocol", "openvpn", "--transport", "udp")
		}))
		theirs = append(theirs, powerOn(b, vm.Options{Disks: []string{plain}, Variables: blank}, true, func(l *lab.Lab) {
			runOpenVPN(b, l, l.Customer(0), dials(l.Server(0).Addresses[1].V4)+"connect-retry 1 1\nserver-poll-timeout 2\n")
		}))
	}
	b.ReportMetric(median(ours).Seconds(), "lethe-s")
	b.ReportMetric(median(theirs).Seconds(), "plain-s")
	b.ReportMetric(0, "ns/op")
}

// powerOn returns how long it takes from a server's power-on until the web site sees the server's
// address when a customer calls. connect makes the customer connect.
func powerOn(b *testing.B, o vm.Options, bare bool, connect func(*lab.Lab)) time.Duration {
	b.Helper()
	var on time.Time
	o.CPUs, o.Memory = 2, 1024
	l := newLabWithin(patient(b), b, func(l *lab.Options) {
		l.Locations, l.Bare = lab.Places()[:1], bare
		l.Guests = map[string]vm.Options{l.Locations[0].Code: o}
		l.Step = func(name string) func(error) {
			return func(error) {
				if name == lab.GuestStep {
					on = time.Now()
				}
			}
		}
	})
	leave := closeOnInterrupt(b, l)
	connect(l)
	want := l.Server(0).Addresses[1].V4
	for ctx := patient(b); ; {
		page, err := l.Customer(0).Run(ctx, "curl", "-s", "-m", "1", site)
		seen, _, _ := strings.Cut(strings.TrimPrefix(page, "address: "), "\n")
		if a, bad := netip.ParseAddr(seen); err == nil && bad == nil && a == want {
			break
		}
		if ctx.Err() != nil {
			b.Fatalf("the site sees %q, want %s: %s", seen, want, l.Server(0).Guest().Console().Last())
		}
	}
	took := time.Since(on)
	leave()
	if err := l.Close(); err != nil { // the next machine has the processors for itself
		b.Error(err)
	}
	return took
}

// plainDebian makes a disk with what an administrator would install: Debian by mmdebstrap(1) from the
// archive that this machine's apt is set up for, the packages that the image's plan asks for,
// OpenVPN with a configuration and a key, NAT, and systemd-boot. It returns the
// configuration of its customer too.
func plainDebian(b *testing.B) (disk string, customer func(netip.Addr) string) {
	b.Helper()
	text, err := os.ReadFile(filepath.Join(imagetest.Tree(b), lock.FileName))
	if err != nil {
		b.Fatal(err)
	}
	locked, err := lock.Parse(text)
	if err != nil {
		b.Fatal(err)
	}
	mirrors := lock.ReadApt(os.DirFS("/etc/apt"))
	if mirrors[lock.Main] == "" {
		b.Fatal("apt is set up for no archive of Debian's")
	}
	packages := []string{"dbus", "initramfs-tools", "systemd-sysv"}
	for _, p := range locked.Packages {
		if p.Why != "" && slices.Contains(p.Sets, lock.VM) {
			packages = append(packages, p.Name)
		}
	}
	dir := b.TempDir()
	root, efi := filepath.Join(dir, "root"), filepath.Join(dir, "efi")
	run := func(stdin, name string, args ...string) {
		b.Helper()
		c := exec.CommandContext(patient(b), name, args...)
		c.Stdin = strings.NewReader(stdin)
		if out, err := c.CombinedOutput(); err != nil {
			b.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	run(fmt.Sprintf("deb %[1]s trixie main\ndeb %[1]s trixie-backports main\n", mirrors[lock.Main]),
		"mmdebstrap", "--mode=root", "--variant=minbase", "--aptopt=Default-Release \"trixie-backports\"", "--include="+strings.Join(packages, ","), "trixie", root, "-")
	server, customer := bareConfigs(b)
	for path, text := range map[string]string{
		"etc/openvpn/server/server.conf":     server,
		"etc/systemd/network/uplink.network": "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n",
		"etc/sysctl.d/forward.conf":          "net.ipv4.ip_forward=1\n",
		"etc/nftables.conf":                  fmt.Sprintf(masquerade, "e*"),
		"etc/fstab":                          "/dev/vda2 / ext4 defaults 0 1\n",
	} {
		at := filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	run("", "systemctl", "--root="+root, "enable", "systemd-networkd", "nftables", "openvpn-server@server")
	return assemble(b, dir, root, efi, run), customer
}

// assemble makes a disk from a tree as firmware wants it: a partition for EFI with a boot loader and
// the tree's kernel, and one with the tree.
func assemble(b *testing.B, dir, root, efi string, run func(stdin, name string, args ...string)) string {
	b.Helper()
	const first, boot, size = 1, 256, 2048 // MiB
	disk, tree := filepath.Join(dir, "disk"), filepath.Join(dir, "tree")
	only := func(pattern string) string {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(found) != 1 {
			b.Fatalf("%s: %q, %v", pattern, found, err)
		}
		return found[0]
	}
	entry := filepath.Join(dir, "entry")
	if err := os.WriteFile(entry, []byte("title plain\nlinux /vmlinuz\ninitrd /initrd\noptions root=/dev/vda2 rw quiet console=ttyS0\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	run("", "mkfs.vfat", "-C", "-F", "32", efi, fmt.Sprint(boot*1024))
	run("", "mmd", "-i", efi, "::EFI", "::EFI/BOOT", "::loader", "::loader/entries")
	for to, from := range map[string]string{
		"::EFI/BOOT/BOOTX64.EFI": "/usr/lib/systemd/boot/efi/systemd-bootx64.efi", "::vmlinuz": only("boot/vmlinuz-*"), "::initrd": only("boot/initrd.img-*"), "::loader/entries/plain.conf": entry,
	} {
		run("", "mcopy", "-i", efi, from, to)
	}
	run("", "mkfs.ext4", "-q", "-d", root, tree, fmt.Sprintf("%dM", size))
	run("", "truncate", "-s", fmt.Sprintf("%dM", first+boot+size+1), disk)
	run("", "sgdisk", "-n", fmt.Sprintf("1:%dM:+%dM", first, boot), "-t", "1:ef00", "-n", fmt.Sprintf("2:%dM:+%dM", first+boot, size), disk)
	run("", "dd", "if="+efi, "of="+disk, "bs=1M", fmt.Sprintf("seek=%d", first), "conv=notrunc,sparse")
	run("", "dd", "if="+tree, "of="+disk, "bs=1M", fmt.Sprintf("seek=%d", first+boot), "conv=notrunc,sparse")
	return disk
}
