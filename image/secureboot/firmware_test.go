package secureboot_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"lethe/internal/testkit"

	"lethe/image/pe"
	"lethe/image/secureboot"
)

// starting and refused are what the serial console says.
var (
	starting = []byte("Boot in ")      // systemd-boot's countdown
	refused  = []byte("Access Denied") // OVMF's boot manager
)

// boot starts OVMF with Secure Boot and a variable store, on a disk with one boot
// image, and returns which of the two it says first.
func boot(t *testing.T, store, image []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.MkdirAll(path("disk/EFI/BOOT"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"vars.fd": store, "disk/EFI/BOOT/BOOTX64.EFI": image} {
		if err := os.WriteFile(path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Half a minute is usual on a busy machine; whoever waits longer has met a defect.
	ctx, stop := context.WithTimeout(t.Context(), 4*time.Minute)
	defer stop()
	c := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35,smm=on", "-accel", "tcg,thread=multi", "-m", "512",
		"-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
		"-drive", "if=pflash,format=raw,unit=1,file="+path("vars.fd"),
		"-drive", "format=raw,if=none,id=disk,file=fat:rw:"+path("disk"), "-device", "virtio-blk-pci,drive=disk")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stop(); _ = c.Wait() }() // killed
	var said []byte
	buffer := make([]byte, 4096)
	for {
		n, err := out.Read(buffer)
		said = append(said, buffer[:n]...)
		for _, word := range [][]byte{starting, refused} {
			if bytes.Contains(said, word) {
				return word
			}
		}
		if err != nil {
			t.Fatalf("the machine ended: %v\n%q", err, said)
		}
	}
}

// TestFirmware: real firmware takes our store and our signatures in reserved space,
// and starts nothing else.
func TestFirmware(t *testing.T) {
	k := all(t)
	store := testkit.Must[[]byte](t)(secureboot.Enrol(testkit.Must[[]byte](t)(os.ReadFile(blank)), k, at))
	reserved := testkit.Must[[]byte](t)(pe.Reserve(testkit.Must[[]byte](t)(os.ReadFile("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")), 4096))
	signed := testkit.Must[[]byte](t)(pe.Sign(reserved, signer(t, 1, "db")))
	flipped := bytes.Clone(signed)
	flipped[len(flipped)/2] ^= 1
	for _, c := range []struct {
		name  string
		image []byte
		want  []byte
	}{
		{"signed", signed, starting},
		{"not signed", reserved, refused},
		{"signed by another key", testkit.Must[[]byte](t)(pe.Sign(reserved, signer(t, 0, "KEK"))), refused},
		{"one bit flipped", flipped, refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := boot(t, store, c.image); !bytes.Equal(got, c.want) {
				t.Errorf("the firmware says %q, want %q", got, c.want)
			}
		})
	}
}
