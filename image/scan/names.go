package scan

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"path"
	"strings"

	"lethe/image/tree"
)

// named are files that hold secrets or traces of a machine whatever is in them: by their path, or
// by their name alone when the pattern has no slash (path.Match). Empty files are nothing.
var named = []struct{ pattern, what string }{
	{"etc/ssh/ssh_host_*_key", "host key of SSH"}, {"etc/dropbear/dropbear_*_host_key", "host key of SSH"}, {"id_rsa", "private key of SSH"}, {"id_dsa", "private key of SSH"},
	{"id_ecdsa", "private key of SSH"}, {"id_ed25519", "private key of SSH"}, {"authorized_keys", "who may log in"}, {"known_hosts", "trace of a person"},
	{"etc/ssl/private/*", "private key"}, {"etc/ipsec.d/private/*", "private key"}, {"etc/swanctl/private/*", "private key"}, {"etc/swanctl/rsa/*", "private key"},
	{"etc/swanctl/ecdsa/*", "private key"}, {"etc/swanctl/pkcs8/*", "private key"}, {"etc/swanctl/pkcs12/*", "private key"}, {"etc/ipsec.secrets", "secrets of IPsec"},
	{"etc/openvpn/*.key", "private key"}, {"etc/openvpn/*/*.key", "private key"}, {"etc/wireguard/*", "private key"}, {"etc/ppp/*-secrets", "secrets of PPP"},
	{"etc/unbound/*.key", "private key"}, {"*.p12", "PKCS #12"}, {"*.pfx", "PKCS #12"}, {"*.jks", "key store"}, {"*.kdbx", "password store"}, {"*.keytab", "keys of Kerberos"},
	{".env", "environment"}, {".env.*", "environment"}, {".netrc", "passwords"}, {".pgpass", "passwords"}, {".my.cnf", "passwords"}, {".git-credentials", "passwords"}, {".htpasswd", "passwords"},
	{".npmrc", "tokens"}, {".pypirc", "tokens"}, {".*_history", "trace of a person"}, {"secring.gpg", "private keys of OpenPGP"}, {"etc/machine-id", "identity of a machine"},
	{"var/lib/dbus/machine-id", "identity of a machine"}, {"etc/hostid", "identity of a machine"}, {"var/lib/systemd/random-seed", "random seed"}, {"var/lib/urandom/random-seed", "random seed"},
	{"random-seed", "random seed"}, {"var/lib/systemd/credential.secret", "secret of systemd"}, {"etc/credstore/*", "credential"}, {"etc/credstore.encrypted/*", "credential"},
	{"*.cred", "credential"}, {"var/lib/dhcp/*", "lease of an address"}, {"var/lib/dhcpcd/*", "lease of an address"}, {"etc/dhcpcd.duid", "identifier of a DHCP client"},
	{"var/lib/NetworkManager/*", "trace of a network"}, {"var/lib/systemd/network/*", "lease of an address"}, {"etc/NetworkManager/system-connections/*", "secrets of networks"},
	{"etc/wpa_supplicant/*.conf", "secrets of networks"}, {"etc/iscsi/initiatorname.iscsi", "identity of a machine"}, {"etc/nvme/host*", "identity of a machine"},
	{"var/lib/tpm2-tss/*", "data of a TPM"}, {"var/lib/systemd/tpm2-*", "data of a TPM"}, {"*.tpm", "data of a TPM"}, {"*.ctx", "data of a TPM"}, {"tpm2-*.priv", "data of a TPM"}, {"var/log/*", "log"},
	{"var/lib/systemd/coredump/*", "memory of a process"}, {"var/crash/*", "memory of a process"}, {"root/.*", "trace of a person"}, {"*.swp", "trace of a person"},
}

// name looks at a file's name, and at the few files whose content follows from it.
func (s *scanner) name(f file, e *tree.Entry) {
	if !e.Mode.IsRegular() || e.Size == 0 {
		return
	}
	for _, n := range named {
		subject := e.Path
		if !strings.Contains(n.pattern, "/") {
			subject = path.Base(e.Path)
		}
		if ok, _ := path.Match(n.pattern, subject); ok {
			s.namedFile(f, e, n.what)
			return
		}
	}
	switch e.Path {
	case "etc/shadow", "etc/gshadow", "etc/passwd", "etc/group", "etc/shadow-", "etc/gshadow-", "etc/passwd-", "etc/group-":
		s.passwords(f, e)
	}
}

func (s *scanner) namedFile(f file, e *tree.Entry, what string) {
	b, err := e.Read()
	if err != nil { // the search of its content says so
		return
	}
	// machine-id(5): this word, or nothing, in an image.
	if string(bytes.TrimSpace(b)) == "uninitialized" {
		return
	}
	s.add(Finding{Layer: f.layer, Path: e.Path, Rule: "name", What: what, Digest: sha256.Sum256(b)})
}

// passwords takes second fields that are a password's hash, or none at all where none is asked for (shadow(5)).
func (s *scanner) passwords(f file, e *tree.Entry) {
	b, err := e.Read()
	if err != nil {
		return
	}
	at := int64(0)
	for n, line := range bytes.Split(b, []byte("\n")) {
		fields := bytes.Split(line, []byte(":"))
		if len(fields) > 1 {
			switch field := string(fields[1]); {
			case field == "" && !strings.Contains(e.Path, "group"):
				s.add(Finding{Layer: f.layer, Path: e.Path, Offset: at, Line: n + 1, Rule: "password", What: "nobody is asked for a password", Digest: sha256.Sum256(line)})
			case field != "" && field != "x" && strings.Trim(field, "*!") != "" && !strings.HasPrefix(field, "$"): // those with a dollar are another rule's
				s.add(Finding{Layer: f.layer, Path: e.Path, Offset: at, Line: n + 1, Rule: "password", What: fmt.Sprintf("a password's hash of %d characters", len(field)), Digest: sha256.Sum256(line)})
			}
		}
		at += int64(len(line)) + 1
	}
}
