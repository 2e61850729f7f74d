package lab_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lethe/fault"
	"lethe/image/vm"
	"lethe/lab"
)

// TestGuest plugs a virtual machine in that has nothing to start: its cable is there, its network
// answers, and nothing is left of it. Package test boots an image.
func TestGuest(t *testing.T) {
	medium := filepath.Join(t.TempDir(), "empty.iso")
	if err := os.WriteFile(medium, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	blank, err := os.ReadFile(vm.Debian().Variables)
	if err != nil {
		t.Fatal(err)
	}
	code := lab.Places()[1].Code
	guest := func(o *lab.Options) {
		o.Guests = map[string]vm.Options{code: {Medium: medium, Variables: blank, NoTPM: true, Memory: 128, Accel: vm.TCG}}
	}
	l := bare(t, guest)
	server := l.Server(1)
	if l.Server(0).Guest() != nil || server.Guest() == nil || server.Told() != nil {
		t.Fatal("the wrong server is a virtual machine")
	}
	if got := server.Addresses[1].V6.String(); got != "2001:db8:2::5054:ff:fe62:2" && got != "2001:db8:2:0:5054:ff:fe62:2" {
		t.Errorf("its own address is %s", got)
	}
	for args, want := range map[string]string{
		"ip -brief address show eth0": "", "ip -brief address show guest": "", "ip -brief link show master cable": "guest",
	} {
		out, err := server.Run(ctx(t), "sh", "-c", args)
		if err != nil || !strings.Contains(out, want) || want == "" && (strings.Contains(out, ".") || strings.Contains(out, "fe80")) {
			t.Errorf("%s: %q, %v", args, out, err)
		}
	}
	running := false
	for _, u := range l.Units() {
		running = running || u.Unit == "dnsmasq" && u.State == lab.Active
	}
	if !running {
		t.Error("nobody gives the machine an address")
	}
	said, err := server.Guest().Console().WaitFor(ctx(t), vm.Nothing, vm.Shell)
	if err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(l.LogPath(server.Name)); err != nil || !strings.Contains(string(b), said) {
		t.Errorf("its console is not among the logs: %v", err)
	}
	if err := server.Guest().Close(); err != nil {
		t.Error(err)
	}
	if err := l.AwaitGuest(ctx(t), server); err == nil || !strings.Contains(err.Error(), "has died") {
		t.Errorf("waiting for a machine that has ended: %v", err)
	}

	for name, c := range map[string]struct {
		change func(*lab.Options)
		want   string
	}{
		"a place that is not there": {func(o *lab.Options) { o.Guests = map[string]vm.Options{"xx-xxx": {}} }, "a location that is not there"},
		"no manifest":               {func(o *lab.Options) { guest(o); g := o.Guests[code]; g.Variables = nil; o.Guests[code] = g }, "empty.manifest.json cannot be read"},
		"no such slot":              {func(o *lab.Options) { guest(o); g := o.Guests[code]; g.Slot = "x"; o.Guests[code] = g }, `its medium as "x"`},
	} {
		o := lab.Options{Prefix: prefix(), Dir: shortDir(t), Bare: true}
		c.change(&o)
		l, err := lab.New(ctx(t), o)
		if err == nil {
			err = errors.Join(fmt.Errorf("it came up"), l.Close())
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v (%v), want %q", name, err, fault.Of(err), c.want)
		}
		noTrace(t, o.Prefix, o.Dir)
	}
}
