// Package activator is lethe-activator: it decides which servers are told secrets.
//
// It runs on a machine of its own, dials servers and is dialled by nobody. A server that
// waits proves by its TPM what it is (package attest); the activator compares
// that with its inventory and with the releases that two operators admitted, writes down its
// decision, and grants what package secret lists, encrypted to that server and moment.
//
// All that it knows is one file, an append-only record of decisions in which each line
// names the hash of the line before ([Record]); replaying it, with every signature checked
// again, gives the [State]. Nothing in it is about a customer. Each server that is activated is shown
// the signed head of the record and keeps it in memory: an activator whose record was
// put back meets heads of its own that it does not know, and stops.
//
// Keys are files beside it: two authorities, OpenVPN's tls-crypt key, what the control plane hands out
// for servers, and the key that signs heads.
//
// doc/activation.md has the protocol, the threat model and the commands.
package activator

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"lethe/fault"
	"lethe/private"
)

// Config is activator.json in the data directory. Paths may be relative to it.
type Config struct {
	// Version of this format, 1.
	Version int `json:"version"`
	// ControlURL is where servers call the node API: https, with the name that its certificate is for.
	ControlURL string `json:"control_url"`
	// Control is the addresses that servers dial for it, 1 to 8: they ask no DNS.
	Control []netip.Addr `json:"control_addresses"`
	// ControlCA is a file with the certificates that sign the node API's certificate. Default: control-ca.pem.
	ControlCA string `json:"control_ca,omitempty"`
	// Life is how long servers' certificates live, at most 192h. Default: 48h. Servers are
	// attested again at half of it.
	Life Duration `json:"life,omitempty"`
	// Waiting is how often servers without secrets are asked, and Active how often others, to notice that
	// they have been started again. Default: 2s and 30s.
	Waiting Duration `json:"waiting,omitempty"`
	Active  Duration `json:"active,omitempty"`
	// Phases are the boot phases that the releases' PCR 11 holds (systemd-pcrphase(8)). Default: none, as in our image.
	Phases []string `json:"phases,omitempty"`
	// EKRoots is a file with certificates of TPMs' makers. With it every TPM must have a certificate by one of them.
	EKRoots string `json:"ek_roots,omitempty"`
	// Witness is a file on another medium that the head of the record is written to, and compared with.
	Witness string `json:"witness,omitempty"`
}

// Duration is a time.Duration with the text form of time.ParseDuration.
type Duration time.Duration

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// Files of the data directory, beside the store's.
const (
	configFile    = "activator.json"
	keysDir       = "keys"
	recordKeyFile = "keys/record.pem"
	vpnCAFile     = "keys/vpn-ca.pem"
	apiCAFile     = "keys/api-ca.pem"
	tlsCryptFile  = "keys/tls-crypt.key"
	nodeFile      = "keys/node.json"
	controlCAFile = "control-ca.pem"
)

// LoadConfig reads the configuration of a data directory. Unknown keys and impossible
// values are errors.
func LoadConfig(dir string) (Config, error) {
	c := Config{ControlCA: controlCAFile, Life: Duration(DefaultLife), Waiting: Duration(2 * time.Second), Active: Duration(30 * time.Second)}
	b, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return c, storeFault(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, fault.New(fault.Invalid, configFile+": "+err.Error())
	}
	u, err := url.Parse(c.ControlURL)
	switch {
	case c.Version != 1:
		return c, fault.New(fault.Invalid, configFile+": version must be 1")
	case err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "":
		return c, fault.New(fault.Invalid, configFile+": control_url must be https://name:port")
	case len(c.Control) < 1 || len(c.Control) > 8:
		return c, fault.New(fault.Invalid, configFile+": control_addresses must be 1 to 8 addresses")
	case c.Life < Duration(time.Minute) || c.Life > Duration(MaxLife):
		return c, fault.New(fault.Invalid, fmt.Sprintf("%s: life must be 1m to %v", configFile, MaxLife))
	case c.Waiting <= 0 || c.Active <= 0:
		return c, fault.New(fault.Invalid, configFile+": waiting and active must be times")
	}
	for _, p := range []*string{&c.ControlCA, &c.EKRoots, &c.Witness} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return c, nil
}

// fromControl is what `lethe-control keys node` prints.
type fromControl struct {
	Salt      []byte `json:"salt"`
	Seal      []byte `json:"seal"`
	TrustRoot []byte `json:"trust_root"`
}

func parseFromControl(b []byte) (f fromControl, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if d.Decode(&f) != nil || len(f.Salt) != 32 || len(f.Seal) != 32 || len(f.TrustRoot) == 0 {
		return f, fault.New(fault.Invalid, "the servers' keys are not what `lethe-control keys node` prints")
	}
	return f, nil
}

// Setup is what a new activator is made from.
type Setup struct {
	Operators  []string              // public keys in PEM, of different people
	Trust      []byte                // whom releases come from; see release.ParsePolicy
	ControlURL string                // see Config
	Control    []netip.Addr          // see Config
	ControlCA  []byte                // PEM
	Node       private.Value[[]byte] // what `lethe-control keys node` prints
}

// Init makes a data directory. It never overwrites: the directory must not be there, or be empty.
func Init(dir string, s Setup, now time.Time) (err error) {
	if _, err := parseFromControl(s.Node.Reveal()); err != nil {
		return err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(s.ControlCA) {
		return fault.New(fault.Invalid, "there is no certificate in the control plane's authority")
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fault.New(fault.Conflict, dir+" is not empty")
	}
	if err := os.MkdirAll(filepath.Join(dir, keysDir), 0o700); err != nil {
		return fault.Wrap(fault.Unavailable, "the data directory cannot be made", err)
	}
	defer func() {
		if err != nil { // half an activator is none
			for _, name := range []string{recordFile, headFile, lockFile, configFile, controlCAFile, keysDir} {
				_ = os.RemoveAll(filepath.Join(dir, name)) // the first error is the one that counts
			}
		}
	}()
	if err := os.Chmod(dir, 0o700); err != nil {
		return storeFault(err)
	}
	config, err := json.MarshalIndent(Config{Version: 1, ControlURL: s.ControlURL, Control: s.Control}, "", "  ")
	if err != nil {
		return err
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	files := map[string][]byte{configFile: append(config, '\n'), controlCAFile: s.ControlCA, nodeFile: s.Node.Reveal(), tlsCryptFile: newTLSCrypt(),
		recordKeyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), recordFile: nil}
	for name, title := range map[string]string{vpnCAFile: "Lethe VPN servers", apiCAFile: "Lethe node API clients"} {
		a, err := newAuthority(title, now)
		if err != nil {
			return err
		}
		if files[name], err = a.encode(); err != nil {
			return err
		}
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return storeFault(err) // a full disk, for instance
		}
	}
	if _, err := LoadConfig(dir); err != nil {
		return err
	}
	store, err := open(dir, key, "")
	if err != nil {
		return err
	}
	return store.Append(now, func(*State) (*Record, error) {
		return &Record{Kind: Began, Begin: &Beginning{Operators: s.Operators, Trust: s.Trust, Key: public}}, nil
	})
}

// Activator is an open data directory.
type Activator struct {
	Store *Store

	cfg       Config
	dir       string
	vpn, api  *authority
	tlsCrypt  private.Value[string]
	node      private.Value[fromControl]
	controlCA string
	roots     *x509.CertPool
}

// Open opens a data directory and reads its whole record.
func Open(dir string) (*Activator, error) {
	info, err := os.Stat(filepath.Join(dir, keysDir))
	if err != nil {
		return nil, storeFault(err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.Denied, "others may read the keys in "+filepath.Join(dir, keysDir)).WithHint("chmod -R go= " + dir)
	}
	a := &Activator{dir: dir}
	if a.cfg, err = LoadConfig(dir); err != nil {
		return nil, err
	}
	read := func(name string) []byte {
		b, e := os.ReadFile(name)
		if e != nil && err == nil {
			err = fault.Wrap(fault.Unavailable, name+" cannot be read", e)
		}
		return b
	}
	vpn, api, key := read(filepath.Join(dir, vpnCAFile)), read(filepath.Join(dir, apiCAFile)), read(filepath.Join(dir, recordKeyFile))
	tlsCrypt, node, ca := read(filepath.Join(dir, tlsCryptFile)), read(filepath.Join(dir, nodeFile)), read(a.cfg.ControlCA)
	if a.cfg.EKRoots != "" {
		a.roots = x509.NewCertPool()
		if !a.roots.AppendCertsFromPEM(read(a.cfg.EKRoots)) && err == nil {
			err = fault.New(fault.Invalid, "ek_roots holds no certificate")
		}
	}
	if err != nil {
		return nil, err
	}
	var err1, err2, err3 error
	a.vpn, err1 = parseAuthority(vpn)
	a.api, err2 = parseAuthority(api)
	f, err3 := parseFromControl(node)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	a.tlsCrypt, a.node, a.controlCA = private.Of(string(tlsCrypt)), private.Of(f), string(ca)
	block, _ := pem.Decode(key)
	if block == nil {
		return nil, fault.New(fault.Invalid, recordKeyFile+" holds no key")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	signer, ok := k.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, fault.New(fault.Invalid, recordKeyFile+" holds no key")
	}
	if a.Store, err = open(dir, signer, a.cfg.Witness); err != nil {
		return nil, err
	}
	return a, nil
}

// Verify reads the record in a directory without any key, every signature and rule checked,
// and returns its length and head.
func Verify(dir string) (number uint64, head string, err error) {
	if _, err := os.Stat(filepath.Join(dir, recordFile)); errors.Is(err, fs.ErrNotExist) {
		return 0, "", storeFault(err)
	}
	s, err := open(dir, nil, "")
	if err != nil {
		return 0, "", err
	}
	return s.state.number, s.state.hash.String(), nil
}
