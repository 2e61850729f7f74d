package profile_test

import (
	"encoding/base64"
	"regexp"
	"slices"
	"strings"
	"testing"

	"lethe/profile"
)

// set is the value set of a parameter; nil for a switch, which takes no value; empty for any text.
type set []string

var anyText = set{}

// cmdlets is what Microsoft's reference of the module VpnClient says of the cmdlets of the script: their
// parameters, of those the mandatory ones, and the values that each may have. -ErrorAction is common to
// all of them (about_CommonParameters).
var cmdlets = map[string]struct {
	must   []string
	params map[string]set
}{
	"Remove-VpnConnection": {[]string{"Name"}, map[string]set{"Name": anyText, "AllUserConnection": nil, "Force": nil, "ErrorAction": {"SilentlyContinue", "Stop"}}},
	"Add-VpnConnection": {[]string{"Name", "ServerAddress"}, map[string]set{
		"Name": anyText, "ServerAddress": anyText, "AllUserConnection": nil, "RememberCredential": nil, "SplitTunneling": nil, "Force": nil,
		"TunnelType": {"Pptp", "L2tp", "Sstp", "Ikev2", "Automatic"}, "AuthenticationMethod": {"Pap", "Chap", "MSChapv2", "Eap", "MachineCertificate"},
		"EncryptionLevel": {"NoEncryption", "Optional", "Required", "Maximum", "Custom"},
	}},
	"Set-VpnConnectionIPsecConfiguration": {
		[]string{"ConnectionName", "AuthenticationTransformConstants", "CipherTransformConstants", "DHGroup", "EncryptionMethod", "IntegrityCheckMethod", "PfsGroup"},
		map[string]set{
			"ConnectionName": anyText, "AllUserConnection": nil, "Force": nil,
			"AuthenticationTransformConstants": {"MD596", "SHA196", "SHA256128", "GCMAES128", "GCMAES192", "GCMAES256", "None"},
			"CipherTransformConstants":         {"DES", "DES3", "AES128", "AES192", "AES256", "GCMAES128", "GCMAES192", "GCMAES256", "None"},
			"DHGroup":                          {"None", "Group1", "Group2", "Group14", "ECP256", "ECP384", "Group24"},
			"EncryptionMethod":                 {"DES", "DES3", "AES128", "AES192", "AES256", "GCMAES128", "GCMAES256"},
			"IntegrityCheckMethod":             {"MD5", "SHA1", "SHA256", "SHA384"},
			"PfsGroup":                         {"None", "PFS1", "PFS2", "PFS2048", "ECP256", "ECP384", "PFSMM", "PFS24"},
		},
	},
	"Add-VpnConnectionRoute": {[]string{"ConnectionName", "DestinationPrefix"}, map[string]set{"ConnectionName": anyText, "DestinationPrefix": anyText, "AllUserConnection": nil}},
}

// literal is a PowerShell string in single quotes, in which nothing has a meaning but the quotes
// themselves (about_Quoting_Rules); typographic quotes end it too.
const literal = `'(?:[^'‘’‚‛]|['‘’‚‛]{2})*'`

// statement is one line of the script without its line end: only these shapes.
var statement = regexp.MustCompile(`^(?:#Requires -RunAsAdministrator|` +
	`\$ErrorActionPreference = 'Stop'|` +
	`\$ca = \[Security\.Cryptography\.X509Certificates\.X509Certificate2\]::new\(\[Convert\]::FromBase64String\('[A-Za-z0-9+/=]+'\)\)|` +
	`\$store = \[Security\.Cryptography\.X509Certificates\.X509Store\]::new\('Root', 'LocalMachine'\)|` +
	`\$store\.(?:Open\('ReadWrite'\)|Add\(\$ca\)|Close\(\))|` +
	`[A-Z][a-z]+-Vpn[A-Za-z]+(?: -[A-Za-z]+(?: (?:[A-Za-z0-9]+|` + literal + `))?)+)$`)

var parameter = regexp.MustCompile(` -([A-Za-z]+)(?: ([A-Za-z0-9]+|` + literal + `))?`)

// check reads the script as PowerShell would, line by line, and returns its cmdlets with their parameters.
func check(t *testing.T, script string) map[string]map[string]string {
	t.Helper()
	found := map[string]map[string]string{}
	for line := range strings.SplitSeq(strings.TrimSuffix(script, "\r\n"), "\r\n") {
		if !statement.MatchString(line) {
			t.Errorf("no statement: %q", line)
			continue
		}
		name, _, _ := strings.Cut(line, " ")
		cmdlet, ok := cmdlets[name]
		if !ok {
			if strings.Contains(name, "-") {
				t.Errorf("no cmdlet %s", name)
			}
			continue
		}
		got := map[string]string{}
		for _, m := range parameter.FindAllStringSubmatch(line, -1) {
			values, known := cmdlet.params[m[1]]
			switch {
			case !known:
				t.Errorf("%s has no parameter %s", name, m[1])
			case (values == nil) != (m[2] == ""):
				t.Errorf("%s -%s %s", name, m[1], m[2])
			case len(values) > 0 && !slices.Contains(values, m[2]):
				t.Errorf("%s -%s takes no %s", name, m[1], m[2])
			}
			got[m[1]] = strings.Trim(m[2], "'")
		}
		for _, p := range cmdlet.must {
			if _, there := got[p]; !there {
				t.Errorf("%s lacks -%s", name, p)
			}
		}
		found[name] = got
	}
	return found
}

func TestWindows(t *testing.T) {
	script := render(t, "windows", profile.Request{Server: server("192.0.2.1", "2001:db8::1")})
	found := check(t, script)
	for _, name := range []string{"Remove-VpnConnection", "Add-VpnConnection", "Set-VpnConnectionIPsecConfiguration", "Add-VpnConnectionRoute"} {
		p := found[name]
		_, all := p["AllUserConnection"]
		if p["Name"]+p["ConnectionName"] != "Lethe "+serverName || !all {
			t.Errorf("%s: %v", name, p)
		}
	}
	for cmdlet, want := range map[string]map[string]string{
		"Add-VpnConnection": {"ServerAddress": "192.0.2.1", "TunnelType": "Ikev2", "AuthenticationMethod": "Eap", "EncryptionLevel": "Maximum"},
		"Set-VpnConnectionIPsecConfiguration": {"EncryptionMethod": "GCMAES256", "IntegrityCheckMethod": "SHA384", "DHGroup": "ECP384",
			"CipherTransformConstants": "GCMAES256", "AuthenticationTransformConstants": "GCMAES256", "PfsGroup": "ECP384"},
		"Add-VpnConnectionRoute": {"DestinationPrefix": "2000::/3"}, // or IPv6 goes past the tunnel
	} {
		for p, v := range want {
			if found[cmdlet][p] != v {
				t.Errorf("%s -%s is %q, want %q", cmdlet, p, found[cmdlet][p], v)
			}
		}
	}
	if _, split := found["Add-VpnConnection"]["SplitTunneling"]; split {
		t.Error("IPv4 goes past the tunnel")
	}
	if !strings.HasPrefix(script, "#Requires -RunAsAdministrator\r\n") || !strings.Contains(script, base64.StdEncoding.EncodeToString(authority())) ||
		strings.Contains(strings.ReplaceAll(script, "\r\n", ""), "\n") {
		t.Error("administrator, CA or line ends")
	}
}

// TestQuote: whatever a text is, it is one literal, and the literal means the text.
func TestQuote(t *testing.T) {
	for _, s := range []string{"", "a", "it's", "''", "$(x)", "`n", "a\nb", "“", "‘x’", "‚‛", "'; Remove-Item C:\\ #", "’; x; ‘"} {
		got := profile.Quote(s)
		if !regexp.MustCompile(`(?s)^` + literal + `$`).MatchString(got) {
			t.Errorf("%q is no literal", got)
		}
		var meaning strings.Builder
		inner := []rune(got)[1 : len([]rune(got))-1]
		for i := 0; i < len(inner); i++ {
			meaning.WriteRune(inner[i])
			if strings.ContainsRune("'‘’‚‛", inner[i]) {
				i++
			}
		}
		if meaning.String() != s {
			t.Errorf("%q means %q", got, meaning.String())
		}
	}
}
