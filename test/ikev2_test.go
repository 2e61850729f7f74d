package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/lab"
)

// strongClient is strongSwan on a customer's machine, which knows nothing of the app.
type strongClient struct {
	m   *lab.Machine
	t   testing.TB
	dir string // configuration, and the control socket
	at  string // what its server is called
}

// newStrongClient starts charon with what a Linux machine needs to be a customer, and more
// settings.
func newStrongClient(t testing.TB, m *lab.Machine, server string, more ...string) *strongClient {
	t.Helper()
	c := &strongClient{m, t, m.Data("strong"), server}
	// ESP in user space, as everywhere where the kernel has none; its own packets
	// carry a mark, so that they do not go into the tunnel.
	conf := fmt.Sprintf(`charon-systemd {
  load = random nonce pem openssl kdf ml kernel-libipsec kernel-netlink socket-default vici eap-identity eap-mschapv2
  journal {
    default = -1
  }
  filelog {
    %[1]s/log {
      default = 1
      ike = 2
      flush_line = yes
    }
  }
  plugins {
    vici {
      socket = unix://%[1]s/vici
    }
    kernel-netlink {
      fwmark = !0x42
    }
    socket-default {
      fwmark = 0x42
    }
    kernel-libipsec {
      allow_peer_ts = yes
    }
  }%[2]s
}
`, c.dir, strings.Join(more, ""))
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	charon := m.Command(context.Background(), "/usr/sbin/charon-systemd")
	charon.Env = append(charon.Env, "STRONGSWAN_CONF="+filepath.Join(c.dir, "conf"))
	if err := charon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = charon.Process.Kill()
		_ = charon.Wait()
	})
	until(t, 10*time.Second, func() string { return "charon does not answer: " + c.log() }, func() bool {
		_, err := os.Stat(filepath.Join(c.dir, "vici"))
		return err == nil
	})
	return c
}

func (c *strongClient) log() string {
	b, _ := os.ReadFile(filepath.Join(c.dir, "log"))
	return string(b)
}

// swanctl runs swanctl(8) on the customer's machine.
func (c *strongClient) swanctl(args ...string) (string, error) {
	return c.m.Run(deadline(c.t), "env", append([]string{"SWANCTL_DIR=" + c.dir, "swanctl"}, append(args, "--uri", "unix://"+c.dir+"/vici")...)...)
}

// load gives charon an exported profile, whose CA stands beside it, and a password.
func (c *strongClient) load(profile, username, secret string) {
	c.t.Helper()
	text, err := os.ReadFile(profile)
	if err == nil {
		text = append(text, fmt.Sprintf("secrets {\n  eap-lethe {\n    id = %s\n    secret = %q\n  }\n}\n", username, secret)...)
		err = os.WriteFile(filepath.Join(c.dir, "swanctl.conf"), text, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	ca := filepath.Join(c.dir, "x509ca")
	if err := os.MkdirAll(ca, 0o700); err != nil {
		c.t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(filepath.Dir(profile), c.at+".pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(ca, c.at+".pem"), pem, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	for _, what := range []string{"--load-creds", "--load-conns"} {
		args := []string{what, "--file", filepath.Join(c.dir, "swanctl.conf")}
		if what == "--load-creds" {
			args = append(args, "--clear", "--noprompt")
		}
		if out, err := c.swanctl(args...); err != nil {
			c.t.Fatalf("swanctl %s: %v %s", what, err, out)
		}
	}
}

// connect brings the tunnel up and says why it cannot.
func (c *strongClient) connect() error {
	out, err := c.swanctl("--initiate", "--child", c.at, "--timeout", "10")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// told checks where else the server says that it is (MOBIKE, RFC 4555, section 3.6): at its public
// addresses, and at none of its inside.
func (c *strongClient) told(public []lab.Dual) {
	c.t.Helper()
	var known, told []string
	for _, d := range public {
		known = append(known, d.V4.String(), d.V6.String())
	}
	for _, m := range regexp.MustCompile(`got additional MOBIKE peer address: (\S+)`).FindAllStringSubmatch(c.log(), -1) {
		if told = append(told, m[1]); !slices.Contains(known, m[1]) {
			c.t.Errorf("the server tells its customers %s", m[1])
		}
	}
	if !slices.Contains(told, known[1]) {
		c.t.Errorf("the server tells its customers %q and not %s, which they may need elsewhere", told, known[1])
	}
}

func (c *strongClient) leave() {
	c.t.Helper()
	if out, err := c.swanctl("--terminate", "--ike", c.at, "--timeout", "5"); err != nil {
		c.t.Errorf("terminate: %v %s", err, out)
	}
}

// TestIKEv2 takes an exported profile to a machine without the app and connects there with strongSwan
// alone: a wrong password is refused, the tunnel carries both families and DNS, the agent may die, and one
// row says how much was moved.
func TestIKEv2(t *testing.T) {
	l := newLab(t, func(o *lab.Options) { o.Customers = 3 })
	gentle(t, l, 3)
	c, other := newCustomer(t, l, 0), l.Customer(1)
	c.connect("nl-ams", "--protocol", "openvpn") // afterwards the server knows the credential
	c.must("", "disconnect")
	var credential struct{ Username, Password string }
	if err := json.Unmarshal([]byte(c.must("", "credentials", "show", "--json")), &credential); err != nil {
		t.Fatal(err)
	}
	profile := other.Data("lethe.conf")
	c.must("", "config", "export", "nl-ams", "--format", "swanctl", "-o", profile)
	see := func(family string) string {
		page, err := other.Run(deadline(t), "curl", "-sS", "-m", "20", family, lab.SiteURL)
		if err != nil {
			t.Error(err)
		}
		address, _, _ := strings.Cut(strings.TrimPrefix(page, "address: "), "\n")
		return address
	}
	own := see("-4")
	s := newStrongClient(t, other, amsterdam)
	s.load(profile, credential.Username, "not the password")
	if err := s.connect(); err == nil || !strings.Contains(s.log(), "EAP_FAILURE") && !strings.Contains(s.log(), "EAP-MS-CHAPv2 failed") {
		t.Errorf("a wrong password: %v\n%s", err, s.log())
	}
	if got := see("-4"); got != own {
		t.Errorf("without a tunnel the site sees %s, want %s", got, own)
	}
	s.load(profile, credential.Username, credential.Password)
	if err := s.connect(); err != nil {
		t.Fatalf("%v\n%s", err, s.log())
	}
	exit := l.Server(0).Addresses
	in := func(family string) {
		t.Helper()
		got := see(family)
		if got != exit[0].V4.String() && got != exit[0].V6.String() && got != exit[1].V4.String() && got != exit[1].V6.String() {
			t.Errorf("the site sees %s over IPv%s, want an address of the server\n%s", got, family[1:], s.log())
		}
	}
	in("-4")
	in("-6")
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return other.Dial(ctx, network, "10.63.255.53:53")
	}}
	if found, err := r.LookupNetIP(deadline(t), "ip4", "www.river.example"); err != nil || len(found) != 1 {
		t.Errorf("the server's resolver: %v, %v", found, err)
	}
	get := func(megabytes int) {
		t.Helper()
		if _, err := other.Run(deadline(t), "curl", "-sS", "-m", "60", "-o", "/dev/null", fmt.Sprintf("%sbytes/%d", lab.SiteURL, megabytes*1_000_000)); err != nil {
			t.Error(err)
		}
	}
	s.told(exit)
	byNetworkManager(t, l, l.Customer(2), c, credential.Username, credential.Password)
	get(3)
	crash(t, l, amsterdam)
	get(3)
	s.leave()
	if got := see("-4"); got != own {
		t.Errorf("after the end the site sees %s, want %s", got, own)
	}
	rows := usage(t, l, c.email, func(rows []usageRow) bool {
		for _, r := range rows {
			if r.Protocol == "ikev2" && r.ISP == lab.ISPs()[1].Name {
				return true
			}
		}
		return false
	})
	for _, r := range rows {
		if r.Protocol == "ikev2" && r.ISP == lab.ISPs()[1].Name && (r.In < 6 || r.In > 7 || r.Location != "nl-ams") {
			t.Errorf("row %+v, want 6 MB in nl-ams", r)
		}
	}
}
