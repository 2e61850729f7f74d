package root_test

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"lethe/image/imagetest"
	"lethe/image/layout"
	"lethe/image/lock"
	"lethe/image/root"
	"lethe/image/tree"
)

// packages returns the packages of a set, as the lock names them, from a store. dpkg-deb(1) unpacks
// them: under the race detector that is ten times as fast, and the builder's tests do it as the builder does.
func packages(t testing.TB, store, set string) (list []root.Package) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(imagetest.Tree(t), lock.FileName))
	check(t, err)
	l, err := lock.Parse(text)
	check(t, err)
	for _, p := range l.Packages {
		if slices.Contains(p.Sets, set) {
			digest := hex.EncodeToString(p.File.SHA256[:])
			list = append(list, root.Package{Name: p.Name, Version: string(p.Version), Open: func() (io.ReadCloser, error) {
				at := filepath.Join(store, "sha256", digest[:2], digest)
				control, err1 := exec.Command("dpkg-deb", "--ctrl-tarfile", at).Output()
				data, err2 := exec.Command("dpkg-deb", "--fsys-tarfile", at).Output()
				return io.NopCloser(bytes.NewReader(container(control, data))), errors.Join(err1, err2)
			}})
		}
	}
	return list
}

// never are names of what must not be in the image, wherever it lies.
var never = regexp.MustCompile(`^((ba|da|z|k|c|tc|fi)?sh|busybox|login|su|sudo|s?u?login|a?getty|sshd?|scp|passwd-|shadow|gshadow|sudoers|` +
	`python.*|perl.*|lua.*|ruby.*|m?g?awk|apt.*|dpkg.*|rpm.*|gcc.*|ld|as|make|gdb.*|strace|tcpdump|kmod|modprobe|insmod|depmod|kexec.*|` +
	`mount|umount|swapon|ip|tc|ss|bpftool|crash|coredump.*|systemd-coredump|systemctl|journalctl|loginctl|busctl|systemd-run|systemd-run-generator|` +
	`systemd-(journald|udevd|logind|resolved|timesyncd|hostnamed|machined|homed|userdbd|sysctl|tmpfiles|sysusers|modules-load|pcr.*|random-seed|creds|cryptsetup.*|.*-generator)|` +
	`dbus.*|udev.*|unbound-(anchor|control|host|checkconf)|swanctl|charon-cmd|starter|stroke|_updown|update-resolv-conf|.*\.py|.*\.pl|.*\.sh|` +
	`ld\.so\.(cache|preload)|machine\.slice|getty.*|.*-getty.*|(rescue|emergency|swap|sleep|hibernate|suspend|kexec|ctrl-alt-del|debug-shell|initrd).*|locale.*|terminfo|man[0-9]|doc|zoneinfo)$`)

// foreign are modules that nothing in the running server may have: to reach disks, firmware,
// memory, other machines' management, the console's keyboard; or old ways into the kernel.
var foreign = regexp.MustCompile(`^(sd_mod|sr_mod|sg|st|nvme.*|usb.*|uas|ahci|libata|virtio_(blk|scsi|balloon|mem|console)|vsock.*|vmw_.*|.*vsock.*|9p.*|virtiofs|fuse|` +
	`ext[234]|xfs|btrfs|vfat|fat|isofs|nls_.*|efivarfs|efi_pstore|ramoops|pstore.*|qemu_fw_cfg|ipmi.*|netconsole|kvm.*|af_key|af_alg|algif.*|` +
	`.*_diag|sctp|dccp|tipc|rds.*|l2tp.*|ppp.*|bluetooth|snd.*|firewire.*|thunderbolt|hid.*|evdev|nfnetlink_(log|queue|acct)|nft_(log|queue|dup.*|fwd.*|compat)|nf_log.*|xt_.*|ip6?_tables|zram|drbd|nbd)$`)

// TestImage makes both flavours from the packages of the lock and holds them against what is promised.
func TestImage(t *testing.T) {
	store := imagetest.Store(t)
	for _, flavour := range []string{root.VM, root.Hardware} {
		r, err := root.Make(root.Input{Flavour: flavour, Version: "1", Commit: "x", Packages: packages(t, store, flavour), Programs: newWorld(t, flavour).programs})
		check(t, err)
		var size, files, libraries, executables, loose int64
		for e := range r.Root.All() {
			if base := path.Base(e.Path); never.MatchString(base) {
				t.Errorf("%s: %s is in the image, from %s", flavour, e.Path, e.From)
			}
			if !e.Mode.IsRegular() {
				continue
			}
			files, size = files+1, size+e.Size
			if e.Mode&0o111 != 0 {
				executables++
			}
			if strings.Contains(path.Base(e.Path), ".so") {
				libraries++
			}
			if !strings.HasPrefix(e.Path, "usr/") && !strings.HasPrefix(e.Path, "etc/") {
				loose++
			}
			if strings.HasPrefix(e.From, "libpython") && path.Base(e.Path) != "libpython3.13.so.1.0" {
				t.Errorf("%s: more of Python than unbound is linked with: %s", flavour, e.Path)
			}
		}
		early, late := modules(t, r.Initramfs, layout.InitramfsModules), modules(t, r.Root, layout.RootModules)
		for _, m := range late {
			if foreign.MatchString(m) {
				t.Errorf("%s: module %s is in the root", flavour, m)
			}
		}
		t.Logf("%s: %d files of %.1f MB, %d executables, %d libraries; modules: %d to find the medium, %d to run", flavour,
			files, float64(size)/1e6, executables, libraries, len(early), len(late))
		most := map[string]int64{root.VM: 70e6, root.Hardware: 100e6}[flavour]
		if executables != int64(len(root.Programs())) || loose != 0 || size > most || len(late) > 120 || len(early) > 60 {
			t.Errorf("%s: more than expected, or %d files outside /usr and /etc", flavour, loose)
		}
	}
}

// modules returns the modules of a directory, which must be signed ELF files, each after what it needs.
func modules(t *testing.T, tr *tree.Tree, at string) []string {
	t.Helper()
	names := strings.Fields(text(t, tr, at+"/"+layout.Order))
	for i, name := range names {
		ko := text(t, tr, at+"/"+layout.Modules+"/"+name+".ko")
		if !strings.HasSuffix(ko, "~Module signature appended~\n") {
			t.Errorf("%s is not signed", name)
		}
		_, depends, _, _, _, err := root.ParseModinfo([]byte(ko))
		check(t, err)
		for _, d := range depends {
			if !slices.Contains(names[:i], d) {
				t.Errorf("%s needs %s, which is not above it", name, d)
			}
		}
		if f, err := elf.NewFile(strings.NewReader(ko)); err != nil || f.Type != elf.ET_REL {
			t.Errorf("%s is no module: %v", name, err)
		}
	}
	return names
}
