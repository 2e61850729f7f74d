package profile_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"lethe/location"
	"lethe/profile"
)

// key is what Apple's Device Management documentation says of a key of a payload.
type key struct {
	kind     string // string, integer, data, dictionary, array; there is no boolean among them
	required bool
	values   []any          // empty: any
	min, max float64        // of an integer; both 0: any
	in       map[string]key // of a dictionary, or of each dictionary of an array
	each     *key           // of an array of others
}

var (
	yesNo  = key{kind: "integer", values: []any{0.0, 1.0}}
	text   = key{kind: "string"}
	needed = key{kind: "string", required: true}
)

// association are the keys of IKESecurityAssociationParameters and ChildSecurityAssociationParameters.
var association = map[string]key{
	"EncryptionAlgorithm":           {kind: "string", values: []any{"DES", "3DES", "AES-128", "AES-256", "AES-128-GCM", "AES-256-GCM", "ChaCha20Poly1305"}},
	"IntegrityAlgorithm":            {kind: "string", values: []any{"SHA1-96", "SHA1-160", "SHA2-256", "SHA2-384", "SHA2-512"}},
	"DiffieHellmanGroup":            {kind: "integer", values: []any{1.0, 2.0, 5.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0, 20.0, 21.0, 31.0, 32.0}},
	"PostQuantumKeyExchangeMethods": {kind: "array", each: &key{kind: "integer", values: []any{0.0, 36.0, 37.0}}}, // from 26.0
	"LifeTimeInMinutes":             {kind: "integer", min: 10, max: 1440},
}

// ikev2Keys are those keys of the dictionary IKEv2 that profiles of ours may have.
var ikev2Keys = map[string]key{
	"RemoteAddress": needed, "LocalIdentifier": needed, "RemoteIdentifier": needed,
	"AuthenticationMethod":                      {kind: "string", required: true, values: []any{"None", "SharedSecret", "Certificate"}},
	"ExtendedAuthEnabled":                       yesNo,
	"ServerCertificateCommonName":               text,
	"DeadPeerDetectionRate":                     {kind: "string", values: []any{"None", "Low", "Medium", "High"}},
	"DisableMOBIKE":                             yesNo,
	"DisableRedirect":                           yesNo,
	"EnablePFS":                                 yesNo,
	"EnableCertificateRevocationCheck":          yesNo,
	"UseConfigurationAttributeInternalIPSubnet": yesNo,
	"AllowPostQuantumKeyExchangeFallback":       yesNo, // from 26.0; without it a server without ML-KEM is refused
	"IKESecurityAssociationParameters":          {kind: "dictionary", in: association},
	"ChildSecurityAssociationParameters":        {kind: "dictionary", in: association},
}

// payload returns the keys that every payload has, and more.
func payload(kind string, more map[string]key) map[string]key {
	all := map[string]key{
		"PayloadType": {kind: "string", required: true, values: []any{kind}}, "PayloadVersion": {kind: "integer", required: true, values: []any{1.0}},
		"PayloadIdentifier": needed, "PayloadUUID": needed, "PayloadDisplayName": text, "PayloadDescription": text, "PayloadOrganization": text,
	}
	for name, k := range more {
		all[name] = k
	}
	return all
}

var payloads = map[string]map[string]key{
	"Configuration":           payload("Configuration", map[string]key{"PayloadContent": {kind: "array", required: true}}),
	"com.apple.security.root": payload("com.apple.security.root", map[string]key{"PayloadContent": {kind: "data", required: true}, "PayloadCertificateFileName": text}),
	"com.apple.vpn.managed": payload("com.apple.vpn.managed", map[string]key{
		"UserDefinedName": needed, "VPNType": {kind: "string", required: true, values: []any{"VPN", "L2TP", "IPSec", "IKEv2", "AlwaysOn", "TransparentProxy"}},
		"IKEv2": {kind: "dictionary", required: true, in: ikev2Keys},
	}),
}

// conform compares a dictionary with a schema.
func conform(t *testing.T, where string, got map[string]any, schema map[string]key) {
	t.Helper()
	for name, v := range got {
		k, known := schema[name]
		if !known {
			t.Errorf("%s has the key %s, which none has", where, name)
			continue
		}
		conformValue(t, where+"."+name, v, k)
	}
	for name, k := range schema {
		if _, there := got[name]; k.required && !there {
			t.Errorf("%s lacks the key %s", where, name)
		}
	}
}

func conformValue(t *testing.T, where string, v any, k key) {
	t.Helper()
	kind := ""
	switch v := v.(type) {
	case string:
		kind = "string"
	case float64:
		kind = "integer"
		if k.max > 0 && (v < k.min || v > k.max) {
			t.Errorf("%s is %v, want %v to %v", where, v, k.min, k.max)
		}
	case []any:
		kind = "array"
		for i, e := range v {
			if k.each != nil {
				conformValue(t, fmt.Sprint(where, i), e, *k.each)
			}
		}
	case map[string]any:
		kind = "dictionary"
		if v["base64"] != nil {
			kind = "data"
		} else if k.in != nil {
			conform(t, where, v, k.in)
		}
	default:
		kind = fmt.Sprintf("%T", v)
	}
	if kind != k.kind {
		t.Errorf("%s is of type %s, want %s", where, kind, k.kind)
	}
	if len(k.values) > 0 && !slices.Contains(k.values, v) {
		t.Errorf("%s is %v, which none may be", where, v)
	}
}

// read has a property list read by libplist, which is what tools for Apple's devices use, and by Python's
// reader, and returns what both found.
func read(t *testing.T, xml string) map[string]any {
	t.Helper()
	dir := t.TempDir()
	in, binary := filepath.Join(dir, "in.mobileconfig"), filepath.Join(dir, "out.bplist")
	must(t, os.WriteFile(in, []byte(xml), 0o600))
	if out, err := exec.Command("plistutil", "-i", in, "-o", binary, "-f", "bin").CombinedOutput(); err != nil {
		t.Fatalf("plistutil: %v: %s", err, out)
	}
	out, err := exec.Command("python3", "-c", `
import base64, json, plistlib, sys
a, b = (plistlib.load(open(f, "rb")) for f in sys.argv[1:])
assert a == b, "two readers found different things"
json.dump(a, sys.stdout, default=lambda d: {"base64": base64.b64encode(d).decode()})`, in, binary).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var p map[string]any
	must(t, json.Unmarshal(out, &p))
	return p
}

// TestApple checks every key of the profile against Apple's published schema.
func TestApple(t *testing.T) {
	for _, addresses := range [][]string{{"2001:db8::1", "192.0.2.1"}, {"192.0.2.1"}} {
		p := read(t, render(t, "mobileconfig", profile.Request{Server: server(addresses...)}))
		conform(t, "Configuration", p, payloads["Configuration"])
		identifiers := map[any]bool{p["PayloadUUID"]: true}
		content, _ := p["PayloadContent"].([]any)
		found := map[string]map[string]any{}
		for _, c := range content {
			c := c.(map[string]any)
			kind := c["PayloadType"].(string)
			conform(t, kind, c, payloads[kind])
			found[kind], identifiers[c["PayloadUUID"]] = c, true
		}
		if len(content) != 2 || len(found) != 2 || len(identifiers) != 3 {
			t.Fatalf("%d payloads, %d kinds, %d identifiers", len(content), len(found), len(identifiers))
		}
		for id := range identifiers {
			if !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(id.(string)) {
				t.Errorf("PayloadUUID %s", id)
			}
		}
		if got := found["com.apple.security.root"]["PayloadContent"].(map[string]any)["base64"]; got != base64.StdEncoding.EncodeToString(authority()) {
			t.Error("another CA")
		}
		vpn := found["com.apple.vpn.managed"]
		ike := vpn["IKEv2"].(map[string]any)
		// EAP alone is method None with ExtendedAuthEnabled; no key for a user name or password makes the system ask.
		for name, want := range map[string]any{
			"RemoteAddress": addresses[0], "RemoteIdentifier": serverName, "ServerCertificateCommonName": serverName,
			"AuthenticationMethod": "None", "ExtendedAuthEnabled": 1.0, "EnablePFS": 1.0, "DisableMOBIKE": 0.0, "AllowPostQuantumKeyExchangeFallback": 1.0,
		} {
			if ike[name] != want {
				t.Errorf("%s is %v, want %v", name, ike[name], want)
			}
		}
		for _, name := range []string{"IKESecurityAssociationParameters", "ChildSecurityAssociationParameters"} {
			if got := fmt.Sprint(ike[name]); got != "map[DiffieHellmanGroup:31 EncryptionAlgorithm:AES-256-GCM IntegrityAlgorithm:SHA2-384 LifeTimeInMinutes:1440 PostQuantumKeyExchangeMethods:[36]]" {
				t.Errorf("%s: %s", name, got)
			}
		}
		if vpn["VPNType"] != "IKEv2" || vpn["UserDefinedName"] != "Lethe "+serverName {
			t.Errorf("%v", vpn)
		}
	}
}

// TestAppleReplaces: importing a profile again replaces it, because identifiers and UUIDs are those of the
// server, whatever else has changed.
func TestAppleReplaces(t *testing.T) {
	other := server("192.0.2.1")
	other.ID = "us-nyc-1"
	ids := func(s location.Server) (all []any) {
		p := read(t, render(t, "mobileconfig", profile.Request{Server: s}))
		all = append(all, p["PayloadIdentifier"], p["PayloadUUID"])
		for _, c := range p["PayloadContent"].([]any) {
			all = append(all, c.(map[string]any)["PayloadIdentifier"], c.(map[string]any)["PayloadUUID"])
		}
		return all
	}
	first := ids(server("192.0.2.1"))
	if again := ids(server("192.0.2.99")); !slices.Equal(first, again) {
		t.Errorf("%v, then %v", first, again)
	}
	for _, id := range ids(other) {
		if slices.Contains(first, id) {
			t.Errorf("two servers have %v", id)
		}
	}
}
