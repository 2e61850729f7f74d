package ikev2

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"lethe/private"
	"lethe/vici"
)

// identity is how the server shows who it is.
type identity struct {
	name    string   // DNS name
	chain   []string // DER, own certificate first
	keyType string   // "ecdsa" or "rsa", as vici's load-key wants it
	key     private.Value[string]
}

// identify reads a certificate chain and its key. Charon gets both in DER: for a key in PKCS #8 it would need
// one plugin more.
func identify(chain string, key private.Value[string]) (identity, error) {
	var id identity
	var own *x509.Certificate
	for rest := []byte(chain); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return id, errors.New("ikev2: the certificate chain is damaged")
		}
		if own == nil {
			own = cert
		}
		id.chain = append(id.chain, string(block.Bytes))
	}
	if own == nil || len(own.DNSNames) == 0 {
		return id, errors.New("ikev2: want a PEM certificate with a DNS name")
	}
	if !slices.Contains(own.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return id, errors.New("ikev2: want a certificate for server authentication, which customers' systems insist on")
	}
	if id.name = own.DNSNames[0]; !plain(id.name) {
		return id, errors.New("ikev2: the certificate's DNS name has characters that none has")
	}
	block, _ := pem.Decode([]byte(key.Reveal()))
	if block == nil {
		return id, errors.New("ikev2: the key is not in PEM form")
	}
	defer clear(block.Bytes)
	switch k := parseKey(block.Bytes).(type) {
	case *ecdsa.PrivateKey:
		if der, err := x509.MarshalECPrivateKey(k); err == nil && k.PublicKey.Equal(own.PublicKey) {
			id.keyType, id.key = "ecdsa", private.Of(string(der))
			return id, nil
		}
	case *rsa.PrivateKey:
		if k.PublicKey.Equal(own.PublicKey) {
			id.keyType, id.key = "rsa", private.Of(string(x509.MarshalPKCS1PrivateKey(k)))
			return id, nil
		}
	default:
		return id, errors.New("ikev2: want an ECDSA or RSA key")
	}
	return id, errors.New("ikev2: the key is not the certificate's")
}

func parseKey(der []byte) any {
	if k, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return k
	}
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		return k
	}
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return k
	}
	return nil
}

// plain reports whether a text can stand in strongswan.conf as it is.
func plain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/._-", r)
	})
}

// plugins are all that charon loads; one that its build does not have is left out by charon itself. openssl
// alone does all cryptography that OpenSSL knows; pem is how credentials come in, in DER too; ml is ML-KEM (strongSwan 6.0), for builds whose OpenSSL
// does not know it.
const plugins = "random nonce pem openssl kdf ml kernel-netlink socket-default vici eap-identity eap-radius"

// Times of charon, in seconds unless said otherwise.
const (
	halfOpenTimeout = 20 // until an IKE SA that was begun must be up
	ikeLifetime     = 4 * 3600
	// Customers' systems renew a Child SA themselves: strongSwan every hour, Windows every eight, Apple's once
	// a day. The server begins only after that, because Windows behind a NAT refuses a server that does
	// (strongSwan's documentation, "Windows Clients"), and the tunnel would end an hour after its start.
	childLifetime = 26 * 3600
)

// conf collects a strongswan.conf.
type conf struct {
	strings.Builder
	depth int
}

func (c *conf) set(key string, value any) { fmt.Fprintf(c, "%*s%s = %v\n", 2*c.depth, "", key, value) }

func (c *conf) section(name string, fill func()) {
	fmt.Fprintf(c, "%*s%s {\n", 2*c.depth, "", name)
	c.depth++
	fill()
	c.depth--
	fmt.Fprintf(c, "%*s}\n", 2*c.depth, "")
}

// render returns strongswan.conf. It holds the RADIUS secret.
func (s *Server) render() []byte {
	node, load := s.cfg.Node(), plugins
	if !s.in.Offload {
		load = "kernel-libipsec " + load // before kernel-netlink, which would do ESP as well
	}
	var c conf
	c.section(filepath.Base(s.cfg.Binary), func() {
		c.set("load", load)
		// The one logger there is. If there were none, charon would make its own.
		c.section("journal", func() { c.set("default", -1) })
		c.set("interfaces_use", strings.Join(s.cfg.Uplinks, ", "))
		c.set("port", Port)
		c.set("port_nat_t", PortNAT)
		c.set("threads", 32)
		c.set("ikesa_limit", s.cfg.MaxClients)
		c.set("ikesa_table_size", 1024)
		c.set("ikesa_table_segments", 16)
		c.set("cert_cache", "no")
		c.set("half_open_timeout", halfOpenTimeout)
		c.set("close_ike_on_child_failure", "yes")
		// Floods: more than 30 half-open SAs, or 3 from one address, and a cookie must come back
		// (RFC 7296, section 2.6). Many customers may share one address, so that one is not
		// shut out before 100.
		c.set("block_threshold", 100)
		c.set("init_limit_half_open", 2000)
		// Dead peers: asked after three keepalive intervals without a sign, then asked five times
		// within 2.6 more.
		c.set("retransmit_timeout", fmt.Sprintf("%.1f", 0.2*float64(node.KeepaliveSeconds)))
		c.set("retransmit_base", 1.5)
		c.set("retransmit_tries", 4)
		// A server does not roam, has its routes from us and takes no hints.
		c.set("install_routes", "no")
		c.set("install_virtual_ip", "no")
		c.set("process_route", "no")
		c.set("routing_table", 0)
		c.set("follow_redirects", "no")
		c.set("hash_and_url", "no")
		c.set("multiple_authentication", "no")
		c.section("plugins", func() {
			c.section("vici", func() { c.set("socket", "unix://"+s.d.socket()) })
			c.section("kernel-netlink", func() { c.set("roam_events", "no") })
			c.section("eap-radius", func() {
				c.set("accounting", "no") // see the package comment
				c.set("station_id_with_port", "no")
				c.set("nas_identifier", "lethe")
				c.section("servers", func() {
					c.section("lethe", func() {
						c.set("address", s.cfg.RADIUS.Addr())
						c.set("auth_port", s.cfg.RADIUS.Port())
						c.set("secret", string(s.Secret().Reveal()))
						c.set("sockets", 16) // so many customers are asked about at a time
						c.set("retransmit_timeout", 0.5)
						c.set("retransmit_tries", 3)
					})
				})
			})
		})
	})
	return []byte(c.String())
}

// name is the name of the connection, its child and its key in charon.
const name = "lethe"

// Proposals. What customers' systems agree to, strongest first; with ML-KEM as an additional key exchange
// (RFC 9370) where charon has it. Apple's default is AES-256-CBC with SHA-256 and MODP-2048, everybody else
// can do better. Windows does only if it was told to (package profile); what it proposes by itself, MODP-1024, is
// refused.
var (
	hybridIKE    = []string{"aes256gcm16-prfsha384-x25519-ke1_mlkem768", "aes256gcm16-prfsha384-ecp384-ke1_mlkem768"}
	classicalIKE = []string{"aes256gcm16-aes128gcm16-prfsha384-prfsha256-x25519-ecp384-ecp256-modp3072-modp2048",
		"aes256-sha384-sha256-prfsha384-prfsha256-ecp384-ecp256-modp3072-modp2048"}
	hybridESP    = []string{"aes256gcm16-x25519-ke1_mlkem768", "aes256gcm16-ecp384-ke1_mlkem768"}
	classicalESP = []string{"aes256gcm16-aes128gcm16-x25519-ecp384-ecp256-modp3072-modp2048", "aes256gcm16-aes128gcm16",
		"aes256-sha384-sha256-ecp384-ecp256-modp2048", "aes256-sha384-sha256"}
)

// mlkem is the name of ML-KEM-768 in charon's answer to get-algorithms.
const mlkem = "ML_KEM_768"

// hybrid reports whether charon knows ML-KEM-768, from that answer.
func hybrid(algorithms *vici.Message) bool { return algorithms.Section("ke").Get(mlkem) != "" }

// connection returns the message of load-conn.
func (s *Server) connection(hybrid bool) *vici.Message {
	ike, esp := classicalIKE, classicalESP
	if hybrid {
		ike, esp = slices.Concat(hybridIKE, ike), slices.Concat(hybridESP, esp)
	}
	child := new(vici.Message).
		SetList("local_ts", "0.0.0.0/0", "::/0").SetList("remote_ts", "dynamic").
		SetList("esp_proposals", esp...).
		Set("rekey_time", fmt.Sprint(childLifetime)).Set("dpd_action", "clear").Set("close_action", "none")
	if s.in.Offload {
		id := fmt.Sprint(interfaceID(s.in.Daemon))
		child.Set("if_id_in", id).Set("if_id_out", id)
	}
	conn := new(vici.Message).
		Set("version", "2").SetList("local_addrs", "%any").SetList("remote_addrs", "%any").
		SetList("proposals", ike...).SetList("pools", "radius").
		Set("encap", "yes").Set("mobike", "yes").Set("fragmentation", "yes").
		Set("send_cert", "always").Set("send_certreq", "no").Set("unique", "never").
		Set("dpd_delay", fmt.Sprint(3*s.cfg.Node().KeepaliveSeconds)).
		Set("rekey_time", fmt.Sprint(ikeLifetime)).Set("reauth_time", "0").
		SetSection("local", new(vici.Message).Set("auth", "pubkey").Set("id", s.ident.name).SetList("certs", s.ident.chain[0])).
		SetSection("remote", new(vici.Message).Set("auth", "eap-radius").Set("eap_id", "%any").Set("id", "%any")).
		SetSection("children", new(vici.Message).SetSection(name, child))
	return new(vici.Message).SetSection(name, conn)
}
