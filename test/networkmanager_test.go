package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/lab"
)

// desktop is a customer's machine whose network NetworkManager has in hand, as on many Linux desktops: a
// D-Bus of its own, NetworkManager, and its strongSwan plug-in, which starts charon-nm.
type desktop struct {
	*lab.Machine
	t   testing.TB
	dir string
}

// bus lets everybody say everything: the machine's only user is root.
const bus = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_type="method_call"/> <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/> <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/> <allow receive_type="method_return"/> <allow receive_type="error"/> <allow receive_type="signal"/>
  </policy>
</busconfig>
`

// newDesktop starts them. NetworkManager keeps its hands off all but the uplink, whose addresses it is
// given as a connection, and sees a /sys without udev, as in any container. ESP is in user space.
func newDesktop(t testing.TB, m *lab.Machine) *desktop {
	t.Helper()
	d := &desktop{Machine: m, t: t, dir: m.Data("nm")}
	a, router := m.Addresses[0], lab.CustomersRouter
	for name, text := range map[string]string{
		"bus.conf": bus,
		"nm.conf": "[main]\nplugins=keyfile\ndns=none\nrc-manager=unmanaged\nauth-polkit=false\nno-auto-default=*\n" +
			"[keyfile]\npath=" + d.dir + "/connections\n[connectivity]\nenabled=false\n",
		"strongswan.conf": "charon-nm {\n  load = random nonce x509 pubkey pkcs1 pkcs8 pem openssl kdf kernel-libipsec kernel-netlink socket-default eap-identity eap-mschapv2\n" +
			"  plugins {\n    kernel-netlink {\n      fwmark = !0x42\n    }\n    socket-default {\n      fwmark = 0x42\n    }\n    kernel-libipsec {\n      allow_peer_ts = yes\n    }\n  }\n" +
			"  filelog {\n    " + d.dir + "/log {\n      default = 1\n      flush_line = yes\n    }\n  }\n}\n",
		"connections/uplink": fmt.Sprintf("[connection]\nid=uplink\nuuid=8c7e7c1e-7b1c-4d5e-9a57-1f2e3d4c5b6a\ntype=ethernet\ninterface-name=%s\n\n"+
			"[ipv4]\nmethod=manual\naddress1=%s/24,%s\n\n[ipv6]\nmethod=manual\naddress1=%s/64,%s\n", lab.Uplink, a.V4, router.V4, a.V6, router.V6),
	} {
		path := filepath.Join(d.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(m.Path("/run/dbus"), 0o755); err != nil {
		t.Fatal(err)
	}
	d.start("dbus-daemon", "--config-file="+d.dir+"/bus.conf", "--nofork", "--nopidfile")
	until(t, 10*time.Second, func() string { return "no D-Bus" }, func() bool {
		_, err := os.Stat(m.Path("/run/dbus/system_bus_socket"))
		return err == nil
	})
	d.start("unshare", "-m", "sh", "-c", "mount -t sysfs -o ro sysfs /sys && exec env STRONGSWAN_CONF=$1/strongswan.conf "+
		"NetworkManager --no-daemon --config=$1/nm.conf --config-dir=/run/none --system-config-dir=/run/none", "sh", d.dir)
	until(t, 20*time.Second, func() string { return "NetworkManager does not take the uplink: " + d.last("connection", "show") }, func() bool {
		_, err := d.nmcli("connection", "up", "uplink")
		return err == nil
	})
	return d
}

// start starts a program that runs until the lab is taken down.
func (d *desktop) start(name string, args ...string) {
	d.t.Helper()
	c := d.Command(deadline(d.t), name, args...)
	if err := c.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
}

func (d *desktop) nmcli(args ...string) (string, error) {
	return d.Run(deadline(d.t), "nmcli", append([]string{"--wait", "20"}, args...)...)
}

// last is nmcli for error messages.
func (d *desktop) last(args ...string) string {
	out, err := d.nmcli(args...)
	log, _ := os.ReadFile(filepath.Join(d.dir, "log"))
	return fmt.Sprint(out, err, "\n", string(log))
}

// load has NetworkManager read an exported profile, with a password as it saves one that a person asks it
// to keep.
func (d *desktop) load(profile, password string) {
	d.t.Helper()
	text, err := os.ReadFile(profile)
	path := filepath.Join(d.dir, "connections", "vpn.nmconnection")
	if err == nil {
		saved := strings.NewReplacer("password-flags=2\n", "password-flags=0\n", "\n[ipv4]\n", "\n[vpn-secrets]\npassword="+password+"\n\n[ipv4]\n").Replace(string(text))
		err = os.WriteFile(path, []byte(saved), 0o600)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	if out, err := d.nmcli("connection", "load", path); err != nil {
		d.t.Fatalf("nmcli connection load: %v %s", err, out)
	}
}

// byNetworkManager connects from a desktop by an exported profile: NetworkManager understands every
// setting, refuses a wrong password, and has the tunnel carry both families, from whatever source port it
// takes.
func byNetworkManager(t *testing.T, l *lab.Lab, m *lab.Machine, c *customer, username, password string) {
	t.Helper()
	d := newDesktop(t, m)
	profile := m.Data("lethe.nmconnection")
	c.must("", "config", "export", "nl-ams", "--format", "networkmanager", "-o", profile)
	d.load(profile, "not the password")
	got, err := d.nmcli("-g", "connection.id,connection.type,connection.autoconnect,vpn.service-type,vpn.data,ipv4.method,ipv6.method", "connection", "show", "Lethe "+amsterdam)
	server := l.Server(0)
	want := "Lethe " + amsterdam + "\nvpn\nno\norg.freedesktop.NetworkManager.strongswan\n" +
		"address = " + server.Addresses[0].V4.String() + ", certificate = " + filepath.Join(filepath.Dir(profile), amsterdam+".pem") +
		", encap = yes, esp = aes256gcm16-x25519;aes256gcm16-ecp384, ike = aes256gcm16-prfsha384-x25519;aes256gcm16-prfsha384-ecp384, ipcomp = no, method = eap" +
		", password-flags = 0, proposal = yes, remote-identity = " + amsterdam + ", user = " + username + ", virtual = yes\nauto\nauto\n"
	if got = strings.ReplaceAll(got, `\:`, ":"); err != nil || got != want {
		t.Errorf("NetworkManager shows %v\n%swant\n%s", err, got, want)
	}
	see := func(family string) string { // the address that the site sees, or why there is none
		page, err := m.Run(deadline(t), "curl", "-sS", "-m", "20", family, lab.SiteURL)
		if err != nil {
			return err.Error()
		}
		address, _, _ := strings.Cut(strings.TrimPrefix(page, "address: "), "\n")
		return address
	}
	own := m.Addresses[0].V4.String()
	if _, err := d.nmcli("connection", "up", "Lethe "+amsterdam); err == nil {
		t.Error("a wrong password")
	}
	if got := see("-4"); got != own {
		t.Errorf("without a tunnel the site sees %s", got)
	}
	d.load(profile, password)
	if _, err := d.nmcli("connection", "up", "Lethe "+amsterdam); err != nil {
		t.Fatal(d.last("connection", "show", "--active"))
	}
	for _, family := range []string{"-4", "-6"} {
		found := false
		got := see(family)
		for _, a := range server.Addresses {
			found = found || got == a.V4.String() || got == a.V6.String()
		}
		if !found {
			t.Errorf("the site sees %s over IPv%s, want an address of the server: %s", got, family[1:], d.last("connection", "show", "--active"))
		}
	}
	if out, err := d.nmcli("-g", "IP4.DNS,IP6.DNS", "connection", "show", "Lethe "+amsterdam); err != nil || strings.ReplaceAll(out, `\:`, ":") != "10.63.255.53\nfd6c:6574:6865:ffff::53\n" {
		t.Errorf("resolvers: %v %s", err, out)
	}
	if out, err := d.nmcli("connection", "down", "Lethe "+amsterdam); err != nil {
		t.Errorf("down: %v %s", err, out)
	}
	// charon-nm removes its routes after nmcli has returned.
	got = ""
	until(t, 10*time.Second, func() string { return "after the end the site sees " + got }, func() bool {
		got = see("-4")
		return got == own
	})
}
