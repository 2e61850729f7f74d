package ikev2_test

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"lethe/internal/testkit"
	"lethe/location"
	"lethe/private"
	"lethe/profile"
	"lethe/protocol"
	"lethe/vici"
)

// TestSwanctl has the exported file loaded by swanctl and connects by it.
func TestSwanctl(t *testing.T) {
	start(t, config(runtimeDir(t)), newLedger(t))
	c := newCustomer(t)
	format, _ := profile.Find("swanctl")
	p, err := format.Render(profile.Request{Username: private.Of("ann"), CA: c.dir + "/x509ca/ca.pem", Server: location.Server{
		ID: serverName, Location: 1, CA: credentials().CA, Enabled: true, Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.99.%d.1", c.n))},
		Endpoints: []location.Endpoint{{Protocol: protocol.IKEv2, Port: 500}},
	}})
	must(t, err)
	text := string(p.Text) + "secrets {\n eap {\n  id = ann\n  secret = \"" + password + "\"\n }\n}\n"
	must(t, os.Mkdir(c.dir+"/x509ca", 0o700))
	must(t, os.WriteFile(c.dir+"/x509ca/ca.pem", p.CA, 0o600))
	must(t, os.WriteFile(c.dir+"/swanctl.conf", []byte(text), 0o600))
	for _, what := range []string{"--load-creds", "--load-conns"} {
		must(t, testkit.Command("env SWANCTL_DIR="+c.dir+" swanctl "+what+" --file "+c.dir+"/swanctl.conf --uri unix://"+c.dir+"/vici"))
	}
	if _, err := c.vici.Call(t.Context(), "initiate", new(vici.Message).Set("child", serverName).Set("timeout", "8000")); err != nil {
		t.Fatalf("%v: %s", err, c.log())
	}
	c.ping(t)
}
