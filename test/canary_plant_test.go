package test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"lethe/lab"
	"lethe/lab/pki"
)

// stockServer runs `openvpn --verb 3` with a log and a status file on the router
// and returns the directory of its files, with the profile of a client.
func (h *hunt) stockServer(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	ca, err := pki.NewAuthority("stock CA")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue("stock", x509.ExtKeyUsageServerAuth, []string{"stock"})
	if err != nil {
		t.Fatal(err)
	}
	address := lab.DNSAddr.V4
	server := fmt.Sprintf(`port 1199
proto udp
local %s
dev tun
topology subnet
server 10.199.0.0 255.255.255.0
dh none
verify-client-cert none
username-as-common-name
script-security 2
auth-user-pass-verify /bin/true via-file
tmp-dir %[2]s
keepalive 1 6
verb 3
log %[2]s/log
status %[2]s/status 1
<ca>
%[3]s</ca>
<cert>
%[4]s</cert>
<key>
%[5]s</key>
`, address, dir, ca.PEM, pair.Certificate, pair.Key)
	client := fmt.Sprintf("client\ndev tun\nproto udp\nnobind\nremote %s 1199\nremote-cert-tls server\n<ca>\n%s</ca>\n", address, ca.PEM)
	for name, text := range map[string]string{"server.conf": server, "client.ovpn": client} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.run(t, h.l.Internet(), nil, "openvpn", "--config", filepath.Join(dir, "server.conf"))
	return dir
}

// run runs a program on a machine until the test ends.
func (h *hunt) run(t *testing.T, m *lab.Machine, env []string, name string, args ...string) {
	t.Helper()
	c := m.Command(context.Background(), name, args...)
	c.Env = append(c.Env, env...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill() // it may have ended
		_ = c.Wait()
	})
}

// plant puts a mark into one place of each kind and returns where what must be
// found.
func (h *hunt) plant(t *testing.T) map[string]string {
	t.Helper()
	g, control, server := h.guests[0], h.l.Control(), h.l.Server(1)
	write := func(path string, b []byte) {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.Write(b)
			f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	must := func(m *lab.Machine, name string, args ...string) {
		if _, err := m.Run(deadline(t), name, args...); err != nil {
			t.Fatal(err)
		}
	}
	write(server.Path("/run/lethe-node/plant"), []byte("peer "+g.v4.String()))
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	fmt.Fprintf(z, "user %s", g.username)
	z.Close()
	write(control.Path("/var/lib/lethe-control/old.gz"), packed.Bytes())
	write(h.l.LogPath(server.Name), []byte("trouble "+g.password+"\n"))
	shared, err := os.CreateTemp("/var/tmp", "plant")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(shared.Name()) })
	fmt.Fprint(shared, g.name)
	shared.Close()

	h.run(t, server, []string{"CUSTOMER=" + g.email}, "sh", "-c", "sleep 100; : "+g.username)
	// Its input is the mark, so that neither arguments nor environment have it.
	deleted := control.Command(context.Background(), "sh", "-c", `exec 3>"$HOME/gone"; cat >&3; rm "$HOME/gone"; exec sleep 100 <&3`)
	deleted.Stdin = bytes.NewReader(g.payload)
	if err := deleted.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = deleted.Process.Kill(); _ = deleted.Wait() })

	must(server, "nft", fmt.Sprintf("table inet plant { set s { type ipv4_addr; elements = { %s }; }; }", g.v4))
	must(server, "ip", "route", "add", g.dest4.String()+"/32", "dev", "lo")
	must(server, "ip", "neigh", "add", g.v6.String(), "dev", "eth0", "lladdr", "02:00:00:00:00:01")
	write("/dev/kmsg", []byte("<7>lethe test: "+g.unknown+"\n"))
	c, err := control.Dial(deadline(t), "udp", netip.AddrPortFrom(server.Addresses[0].V4, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("user " + g.username)); err != nil {
		t.Fatal(err)
	}
	h.operate("", "location", "add", "xx-mrk", "SE", g.login)
	return map[string]string{
		"file:" + server.Name + "/run/lethe-node/plant":    "c0 address v4",
		"file:control/var/lib/lethe-control/old.gz!gzip@0": "c0 user name",
		"log:" + server.Name + ".log":                      "c0 password",
		`file:control:/var/tmp/plant\d+`:                   "c0 dns name",
		"argv:" + server.Name + "/sh":                      "c0 user name",
		"environ:" + server.Name + "/sh":                   "c0 e-mail",
		"fd:control/sleep/.*gone":                          "c0 payload",
		"kernel:" + server.Name + "/nft":                   "c0 address v4",
		"kernel:" + server.Name + "/routes4":               "c0 destination v4",
		"kernel:" + server.Name + "/net/fib_trie":          "c0 destination v4",
		"kernel:" + server.Name + "/neighbours":            "c0 address v6",
		"kernel:log":                                       "c0 unknown user",
		"packet:control-node":                              "c0 user name",
		`store:location\.city`:                             "c0 login password",
		"bundle:directory.json":                            "c0 login password",
	}
}
