package profile

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// windows returns a PowerShell script for Windows 10 and 11 (PowerShell 5.1 or later). It trusts the
// server's CA for this machine, which needs an administrator; so the connection is for all of the
// machine's users, and not for the one who happens to be the administrator. By itself Windows proposes no
// Diffie-Hellman group but MODP-1024, which the server refuses, and sends no IPv6 into the tunnel: the
// cmdlet takes no default route, and all that is routed on the internet is in 2000::/3 (RFC 4291,
// section 2.4).
func windows(t target) ([]byte, error) {
	script := fmt.Sprintf(`#Requires -RunAsAdministrator
$ErrorActionPreference = 'Stop'
$ca = [Security.Cryptography.X509Certificates.X509Certificate2]::new([Convert]::FromBase64String(%[1]s))
$store = [Security.Cryptography.X509Certificates.X509Store]::new('Root', 'LocalMachine')
$store.Open('ReadWrite')
$store.Add($ca)
$store.Close()
Remove-VpnConnection -Name %[2]s -AllUserConnection -Force -ErrorAction SilentlyContinue
Add-VpnConnection -Name %[2]s -AllUserConnection -ServerAddress %[3]s -TunnelType Ikev2 -AuthenticationMethod Eap -EncryptionLevel Maximum -RememberCredential
Set-VpnConnectionIPsecConfiguration -ConnectionName %[2]s -AllUserConnection -Force -EncryptionMethod GCMAES256 -IntegrityCheckMethod SHA384 -DHGroup ECP384 -CipherTransformConstants GCMAES256 -AuthenticationTransformConstants GCMAES256 -PfsGroup ECP384
Add-VpnConnectionRoute -ConnectionName %[2]s -AllUserConnection -DestinationPrefix '2000::/3'
`, quote(base64.StdEncoding.EncodeToString(t.ca)), quote(t.name()), quote(t.addrs[0].String()))
	return []byte(strings.ReplaceAll(script, "\n", "\r\n")), nil
}

// quote returns a text as a PowerShell literal (about_Quoting_Rules). PowerShell takes four typographic
// quotation marks for the plain one.
func quote(s string) string {
	return "'" + strings.NewReplacer("'", "''", "‘", "‘‘", "’", "’’", "‚", "‚‚", "‛", "‛‛").Replace(s) + "'"
}
