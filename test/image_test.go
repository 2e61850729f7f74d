package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lethe/activation"
	"lethe/canary"
	"lethe/image/imagetest"
	once "lethe/image/trial"
	"lethe/image/vm"
	"lethe/lab"
)

// bootPatience is how long an image may take to boot and to be ready. A minute is usual where
// instructions are translated, on a machine that has nothing else to do.
const bootPatience = 12 * time.Minute

func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), bootPatience)
	t.Cleanup(cancel)
	return ctx
}

// keysOf signs an image for one try.
func keysOf(t testing.TB, flavour string) (*once.Keys, *once.Image, string) {
	t.Helper()
	image, err := once.Open(imagetest.ISO(t, flavour))
	if err != nil {
		t.Fatal(err)
	}
	blank, err := os.ReadFile(vm.Debian().Variables)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := once.NewKeys(blank)
	if err != nil {
		t.Fatal(err)
	}
	signed := filepath.Join(t.TempDir(), "signed.iso")
	if err := keys.Sign(image, signed); err != nil {
		t.Fatal(err)
	}
	return keys, image, signed
}

// measured wants the registers that depend on the image and the keys to be what was foretold.
func measured(t testing.TB, m *vm.Machine, keys *once.Keys, image *once.Image) {
	t.Helper()
	values, err := m.PCRs()
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range keys.PCRs(image) {
		if want != values[n] {
			t.Errorf("PCR %d is %x, foretold %x", n, values[n], want)
		}
	}
}

// patternDisk makes a disk without a byte that is zero.
func patternDisk(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, bytes.Repeat([]byte("Styx Acheron Kokytos Phlegethon "), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func digestOf(t testing.TB, path string) (d [sha256.Size]byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// residue is what is found of a run in a machine's memory: how many marks, and how often.
func residue(t testing.TB, m *vm.Machine, set *canary.Set) (marks map[string]int) {
	t.Helper()
	marks = map[string]int{}
	err := m.Memory().Each(func(offset int64, b []byte) error {
		for _, h := range set.Find(fmt.Sprintf("memory@%#x", offset), b) {
			if !h.Weak {
				marks[h.Mark] += h.Count
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return marks
}

// TestImage boots the image under Secure Boot, as a server of the lab, and is its customer from
// another machine; then it looks for what is left.
func TestImage(t *testing.T) {
	keys, image, iso := keysOf(t, "vm-lab")
	disks := []string{patternDisk(t, "a"), patternDisk(t, "b")}
	before := [][sha256.Size]byte{digestOf(t, iso), digestOf(t, disks[0]), digestOf(t, disks[1])}
	untouched := func(when string) {
		t.Helper()
		for i, path := range append([]string{iso}, disks...) {
			if digestOf(t, path) != before[i] {
				t.Errorf("%s: disk %d has changed", when, i)
			}
		}
	}
	var on time.Time // when the server is switched on
	l := newLabWithin(patient(t), t, func(o *lab.Options) {
		o.Locations = lab.Places()[:1]
		o.Guests = map[string]vm.Options{o.Locations[0].Code: {Medium: iso, Slot: vm.Disk, CPUs: 2, Memory: 1024, Variables: keys.Variables, Disks: disks}}
		o.Step = func(name string) func(error) {
			began := time.Now()
			return func(error) {
				if on.IsZero() && name == lab.GuestStep {
					on = time.Now()
				}
				t.Logf("%s: %.1f s", name, time.Since(began).Seconds())
			}
		}
	})
	gentle(t, l, 1)
	server := l.Server(0)
	guest := server.Guest()
	c := newCustomer(t, l, 0)
	c.connect("nl-ams", "--protocol", "openvpn", "--transport", "udp")
	if _, err := c.Run(deadline(t), "ping", "-c", "1", "-W", "20", lab.SiteAddr.V4.String()); err != nil {
		t.Error(err)
	}
	t.Logf("power-on to the first packet through a tunnel: %.1f s", time.Since(on).Seconds())
	measured(t, guest, keys, image)
	state, err := l.State(deadline(t), server)
	want := activation.Drivers{OpenVPN: "ovpn-dco", IKEv2: "xfrm"}
	if err != nil || state.Phase != activation.Active || state.Drivers == nil || *state.Drivers != want {
		t.Errorf("the server's state is %+v, %v, want drivers %+v", state, err, want)
	}

	// Both protocols carry both families, and each leaves its record.
	transfer := func(protocol string, megabytes int) {
		t.Helper()
		for _, family := range []string{"-4", "-6"} {
			page, err := c.Run(deadline(t), "curl", "-sS", "-m", "60", family, lab.SiteURL)
			exit := server.Addresses[1].V4.String()
			if family == "-6" {
				exit = server.Addresses[1].V6.String()
			}
			if want := "address: " + exit + "\nhost: www.river.example\n"; err != nil || page != want {
				t.Errorf("%s, curl %s: %q, %v, want %q", protocol, family, page, err, want)
			}
		}
		if _, err := c.Run(deadline(t), "curl", "-sS", "-m", "120", "-o", "/dev/null", fmt.Sprintf("%sbytes/%d000000", lab.SiteURL, megabytes)); err != nil {
			t.Error(err)
		}
	}
	transfer("openvpn", 10)
	c.must("", "disconnect")
	c.connect("nl-ams", "--protocol", "ikev2")
	transfer("ikev2", 5)
	var credential struct{ Username, Password string }
	if err := json.Unmarshal([]byte(c.must("", "credentials", "show", "--json")), &credential); err != nil {
		t.Fatal(err)
	}
	told := server.Told()
	salt, seal := told.Salt.Reveal(), told.Seal.Reveal()
	marks, err := canary.NewSet(
		canary.Text("user name", credential.Username), canary.Text("password", credential.Password),
		canary.Text("VPN key", told.VPNKey.Reveal()), canary.Text("API key", told.APIKey.Reveal()), canary.Text("tls-crypt key", told.TLSCrypt.Reveal()),
		canary.Bytes("salt", salt[:]), canary.Bytes("seal", seal[:]))
	if err != nil {
		t.Fatal(err)
	}
	found := residue(t, guest, marks)
	t.Logf("in the memory of the server that serves: %v", found)
	if len(found) < 3 {
		t.Error("the search finds too little in the memory of a server that serves: it proves nothing")
	}
	c.must("", "disconnect")
	rows := usage(t, l, c.email, func(rows []usageRow) bool { return len(rows) == 2 })
	for i, want := range []usageRow{{Protocol: "openvpn-udp", In: 10}, {Protocol: "ikev2", In: 5}} {
		got := rows[i]
		if got.Protocol != want.Protocol || got.Location != "nl-ams" || got.Country != "DE" || got.ISP != "Elbe Telekom" || got.In < want.In || got.In > want.In+2 {
			t.Errorf("row %d is %+v, want %s with %d MB in", i, got, want.Protocol, want.In)
		}
	}
	untouched("after load")

	// An orderly reboot leaves nothing of the run.
	resets := guest.Resets()
	if err := guest.Press(deadline(t), "ctrl", "alt", "delete"); err != nil {
		t.Fatal(err)
	}
	rebooted(t, guest, resets)
	if err := guest.Pause(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if found := residue(t, guest, marks); len(found) > 0 {
		t.Errorf("after an orderly reboot memory holds %v", found)
	}
	if err := guest.Continue(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := l.AwaitGuest(patient(t), server); err != nil {
		t.Fatal(err)
	}
	measured(t, guest, keys, image)
	if found := residue(t, guest, marks); len(found) > 0 {
		t.Errorf("in the next run memory holds %v", found)
	}
	untouched("after a reboot")

	// A hard reset leaves what nobody could clear; the next boot clears it.
	if err := l.Activate(deadline(t), server); err != nil {
		t.Fatal(err)
	}
	if err := l.AwaitServers(patient(t)); err != nil {
		t.Fatal(err)
	}
	told = server.Told()
	if marks, err = canary.NewSet(canary.Text("VPN key", told.VPNKey.Reveal()), canary.Text("API key", told.APIKey.Reveal()),
		canary.Text("tls-crypt key", told.TLSCrypt.Reveal()), canary.Bytes("salt", salt[:]), canary.Bytes("seal", seal[:])); err != nil {
		t.Fatal(err)
	}
	t.Logf("before a hard reset memory holds %v", residue(t, guest, marks))
	if err := guest.Reset(deadline(t)); err != nil {
		t.Fatal(err)
	}
	t.Logf("right after it %v", residue(t, guest, marks))
	if err := l.AwaitGuest(patient(t), server); err != nil {
		t.Fatal(err)
	}
	t.Logf("once the next run awaits activation %v", residue(t, guest, marks))
	untouched("after a hard reset")
	if err := guest.Close(); err != nil {
		t.Error(err)
	}
	untouched("after power-off")
}

// rebooted waits until a machine has been reset once more.
func rebooted(t testing.TB, m *vm.Machine, before int) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx := patient(t); m.Resets() == before; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the machine does not reboot: %s", m.Console().Last())
		}
	}
}
