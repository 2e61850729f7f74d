package client_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/account"
	"lethe/api"
	"lethe/client"
	"lethe/day"
	"lethe/fault"
	"lethe/internal/testkit"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
	"lethe/slot"
	"lethe/slot/memory"
)

// service is the real app API over accounts in memory.
type service struct {
	mu        sync.Mutex
	accounts  map[string]string // e-mail to password
	tokens    map[string]bool
	plan      string
	paid      day.Day
	ended     bool // by the operator
	password  string
	devices   int
	directory location.Directory
	trouble   error // what every call fails with

	slots *slot.Service
	store *memory.Store

	url, ca string
	stop    func()
}

func (s *service) SignUp(_ context.Context, email string, password private.Value[string]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.accounts[email]; ok {
		return fault.New(fault.Conflict, "there is an account with this address").WithHint("log in")
	}
	s.accounts[email] = password.Reveal()
	return s.trouble
}

func (s *service) Login(_ context.Context, email string, password private.Value[string], app account.App) (account.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if app.OS != "linux" || app.Version != client.Version {
		return account.Token{}, fault.New(fault.Invalid, "what app is this?")
	}
	if p, ok := s.accounts[email]; !ok || p != password.Reveal() {
		return account.Token{}, fault.New(fault.Unauthenticated, "wrong e-mail address or password")
	}
	token := strings.Repeat("t", 43)
	s.tokens[token] = true
	return private.Of(token), s.trouble
}

func (s *service) Logout(_ context.Context, t account.Token) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, t.Reveal())
	return s.trouble
}

func (s *service) Authenticate(_ context.Context, t account.Token) (account.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.tokens[t.Reveal()] {
		return "", fault.New(fault.Unauthenticated, "unknown token")
	}
	return "ada", s.trouble
}

func (s *service) Licence(context.Context, account.ID) (account.Licence, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return account.Licence{Plan: s.plan, Devices: s.devices, PaidUntil: s.paid, Disabled: s.ended}, nil
}

// Account is what slots ask.
func (s *service) Account(ctx context.Context, id account.ID) (account.Record, error) {
	l, err := s.Licence(ctx, id)
	return account.Record{ID: id, Licence: l}, err
}

func (s *service) Credential(context.Context, account.ID) (account.Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return account.Credential{Username: private.Of(vpnUser), Password: private.Of(s.password)}, nil
}

func (s *service) ReplaceCredential(ctx context.Context, id account.ID) (account.Credential, error) {
	s.mu.Lock()
	s.password = "new"
	s.mu.Unlock()
	return s.Credential(ctx, id)
}

func (s *service) Directory(context.Context) (location.Directory, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.directory, nil
}

func (s *service) Allow(string, netip.Addr) bool { return true }

func (s *service) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// newService starts the API on loopback, or where a listener listens.
func newService(t *testing.T, server location.Server, at ...net.Listener) *service {
	t.Helper()
	other := server
	other.ID, other.Location, other.Addresses = "us-nyc-1", 2, []netip.Addr{netip.MustParseAddr("198.51.100.22")}
	other.Endpoints = []location.Endpoint{{Protocol: protocol.OpenVPNUDP, Port: 1194}}
	shut := other
	shut.ID, shut.Location, shut.Enabled = "de-ber-1", 3, false
	s := &service{
		devices: 3, accounts: map[string]string{}, tokens: map[string]bool{}, plan: "standard", paid: day.Today().Add(30), password: vpnPassword,
		directory: location.Directory{
			Locations: []location.Location{
				{ID: 2, Code: "us-nyc", Country: "US", City: "New York"}, amsterdam, {ID: 3, Code: "de-ber", Country: "DE", City: "Berlin"},
			},
			Servers: []location.Server{server, other, shut},
		},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(webV4)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	s.ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(s.ca, []byte(pemOf("CERTIFICATE", der)), 0o600); err != nil {
		t.Fatal(err)
	}
	at = append(at, nil)
	l := at[0]
	if l == nil {
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	s.url = "https://" + l.Addr().String()
	s.store = memory.New(slot.Lease)
	t.Cleanup(func() { s.store.Close() })
	slots := slot.New(slot.Config{Store: s.store, Accounts: s})
	s.slots = slots
	h := api.Server(api.NewApp(api.AppDeps{Accounts: s, Slots: slots, Directory: s, Limiter: s}, nil), api.AppTLS(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}), nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.ServeTLS(l, "", "")
	}()
	s.stop = func() {
		h.Close()
		<-done
	}
	t.Cleanup(s.stop)
	return s
}

// person is a customer at a terminal.
type person struct {
	t   *testing.T
	env map[string]string
}

func newPerson(t *testing.T, s *service) *person {
	p := &person{t, map[string]string{"XDG_STATE_HOME": t.TempDir(), "LETHE_SOCKET": "/nonexistent"}}
	if s != nil {
		p.env["LETHE_API"], p.env["LETHE_CA"] = s.url, s.ca
	}
	return p
}

// types runs a command line and returns what a person sees.
func (p *person) types(stdin string, args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = client.Run(p.t.Context(), args, strings.NewReader(stdin), &o, &e, func(k string) string { return p.env[k] })
	return code, o.String(), e.String()
}

// expect runs a command line and compares the exit code and everything that is printed; want is a
// pattern in which only .* is special.
func (p *person) expect(code int, want, stdin string, args ...string) {
	p.t.Helper()
	got, out, errs := p.types(stdin, args...)
	pattern := "(?s)^" + strings.ReplaceAll(regexp.QuoteMeta(want), `\.\*`, ".*") + "$"
	if got != code || !regexp.MustCompile(pattern).MatchString(out+errs) {
		p.t.Errorf("lethe %s: exit code %d, want %d; printed\n%s%swant\n%s", strings.Join(args, " "), got, code, out, errs, want)
	}
}

const accountPassword = "a long enough one"

// TestAccountCommands is a customer's first day, in text and JSON.
func TestAccountCommands(t *testing.T) {
	server, _, _ := newServer(t)
	s := newService(t, server)
	p := newPerson(t, s)
	p.expect(3, "error: not logged in\nhint: lethe login EMAIL\n", "", "account")
	p.expect(3, `{"schema":"lethe.error/1","error":{"kind":"unauthenticated","text":"not logged in","hint":"lethe login EMAIL"}}`+"\n", "", "account", "--json")
	p.expect(2, "error: no password was given\nhint: .*\n", "", "signup", "ada@example.org")
	p.expect(0, "the account is made; next: lethe login ada@example.org\n", accountPassword+"\n", "signup", "ada@example.org")
	p.expect(0, `{"schema":"lethe.signup/1"}`+"\n", accountPassword, "signup", "bob@example.org", "--json")
	p.expect(4, "error: there is an account with this address\nhint: log in\n", accountPassword+"\n", "signup", "ada@example.org")
	p.expect(4, "error: wrong e-mail address or password\n", "wrong password\n", "login", "ada@example.org")
	p.expect(0, "logged in; next: lethe connect\n", accountPassword+"\r\n", "login", "ada@example.org")
	p.expect(0, `{"schema":"lethe.login/1"}`+"\n", accountPassword, "login", "ada@example.org", "--json")
	for _, name := range []string{"token.json", "credential.json", "directory.json"} {
		fi, err := os.Stat(filepath.Join(p.env["XDG_STATE_HOME"], "lethe", name))
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	paid := s.paid.String()
	p.expect(0, "plan:       standard\ndevices:    3\npaid until: "+paid+"\n", "", "account")
	p.expect(0, `{"schema":"lethe.account/1","licence":{"plan":"standard","devices":3,"paid_until":"`+paid+`","disabled":false},"active":true}`+"\n", "", "account", "--json")
	s.set(func() { s.paid = day.Today().Add(-1) })
	p.expect(0, "plan:       standard\ndevices:    3\npaid until: .*\nthe licence has ended\n", "", "account")

	s.set(func() { s.plan, s.paid = "", 0 })
	p.expect(0, "this account has no licence yet\n", "", "account")
	p.expect(0, "logged in; next: lethe connect\nnote: this account has no licence yet\n", accountPassword, "login", "ada@example.org")
	s.set(func() { s.plan, s.paid, s.ended = "standard", day.Today()+1, true })
	p.expect(0, `{"schema":"lethe.account/1","licence":{"plan":"standard","devices":3,"paid_until":".*","disabled":true},"active":false}`+"\n", "", "account", "--json")
	p.expect(0, ".*the provider has ended this account's licence\n", "", "account")
	s.set(func() { s.ended = false })

	list := "de-ber           DE  Berlin                   0 servers\nnl-ams           NL  Amsterdam                1 server\nus-nyc           US  New York                 1 server\n"
	p.expect(0, list, "", "locations")
	p.expect(0, `{"schema":"lethe.locations/1","stale":false,"locations":[`+
		`{"code":"de-ber","country":"DE","city":"Berlin","servers":0,"protocols":[]},`+
		`{"code":"nl-ams","country":"NL","city":"Amsterdam","servers":1,"protocols":["openvpn-tcp","openvpn-udp"]},`+
		`{"code":"us-nyc","country":"US","city":"New York","servers":1,"protocols":["openvpn-udp"]}]}`+"\n", "", "locations", "--json")
	p.expect(0, "user name: "+vpnUser+"\npassword:  "+vpnPassword+"\n", "", "credentials", "show")
	p.expect(0, `{"schema":"lethe.credentials/1","username":"`+vpnUser+`","password":"new"}`+"\n", "", "credentials", "replace", "--json")
	p.expect(0, "user name: "+vpnUser+"\npassword:  new\nnote: servers learn of them within a minute; until then they take the old ones\n", "", "credentials", "replace")
	p.expect(7, "error: the helper is not running\nhint: .*\n", "", "connect")
	p.expect(7, "error: the helper is not running\nhint: .*\n", "", "status")

	// Offline: the copies do.
	s.stop()
	p.expect(0, list+"note: this is the last copy: the service cannot be reached\n", "", "locations")
	p.expect(0, `{"schema":"lethe.locations/1","stale":true,.*`, "", "locations", "--json")
	p.expect(0, "user name: "+vpnUser+"\npassword:  new\n", "", "credentials", "show")
	p.expect(5, "error: .*", "", "account")
	p.expect(5, "error: logged out here, but the service could not be told\nhint: .*\n", "", "logout")
	p.expect(3, "error: not logged in\nhint: lethe login EMAIL\n", "", "credentials", "replace")
	p.expect(3, "error: not logged in\nhint: lethe login EMAIL\n", "", "credentials", "show")
	p.expect(3, "error: not logged in\nhint: lethe login EMAIL\n", "", "logout")
}

// TestLoginEnds: a token that the service no longer knows means "not logged in".
func TestLoginEnds(t *testing.T) {
	server, _, _ := newServer(t)
	s := newService(t, server)
	p := newPerson(t, s)
	s.accounts["ada@example.org"] = accountPassword
	p.expect(0, "logged in; next: lethe connect\n", accountPassword, "login", "ada@example.org")
	s.set(func() { clear(s.tokens) })
	for _, c := range [][]string{{"account"}, {"locations"}, {"credentials", "show"}, {"credentials", "replace"}, {"config", "export"}} {
		p.expect(3, "error: the login has ended\nhint: lethe login EMAIL\n", "", c...)
	}
	p.expect(4, "error: wrong e-mail address or password\n", "x", "login", "ada@example.org")
	p.expect(0, "logged out\n", "", "logout")
	s.set(func() { s.directory = location.Directory{} })
	p.expect(0, "logged in; next: lethe connect\n", accountPassword, "login", "ada@example.org")
	p.expect(0, "logged out\n", "", "logout")
}

// TestConfigExport: the file is for OpenVPN, holds nothing of the customer's, and is the customer's
// only.
func TestConfigExport(t *testing.T) {
	server, _, _ := newServer(t)
	s := newService(t, server)
	p := newPerson(t, s)
	s.accounts["ada@example.org"] = accountPassword
	p.expect(0, "logged in; next: lethe connect\n", accountPassword, "login", "ada@example.org")
	p.expect(0, "client\n.*proto udp\n.*remote "+vpnV4+" 1194\n.*<ca>\n.*note: the client will ask for the user name and password that `lethe credentials show` prints\n", "", "config", "export", "nl")
	p.expect(0, "client\n.*proto tcp-client\n.*remote "+vpnV4+" 443\n.*", "", "config", "export", "AMSTERDAM", "--transport", "tcp")
	file := filepath.Join(t.TempDir(), "x.ovpn")
	p.expect(0, `{"schema":"lethe.config/1","location":"us-nyc","server":"us-nyc-1","format":"ovpn","transport":"udp","file":"`+file+`"}`+"\n", "", "config", "export", "us-nyc", "-o", file, "--json")
	b, err := os.ReadFile(file)
	fi, _ := os.Stat(file)
	if err != nil || fi.Mode().Perm() != 0o600 || !strings.Contains(string(b), "auth-user-pass\n") || strings.Contains(string(b), "c4nary") {
		t.Errorf("%v %v\n%s", err, fi, b)
	}
	p.expect(1, "error: the file cannot be written\nhint: .*\n", "", "config", "export", "nl-ams", "-o", "/nonexistent/x")
	p.expect(2, "error: no server of us-nyc can be used by a profile of the format ovpn-tcp\nhint: there: ovpn\n", "", "config", "export", "us-nyc", "--transport", "tcp")
	p.expect(0, "client\n.*proto udp\n.*", "", "config", "export", "us-nyc", "--transport", "auto")
	p.expect(0, "client\n.*proto tcp-client\n.*", "", "config", "export", "nl", "--format", "ovpn-tcp")
	p.expect(2, "error: no transport pigeon\nhint: auto, udp or tcp\n", "", "config", "export", "--transport", "pigeon")
	p.expect(2, "error: no location \"nl-amd\"\nhint: did you mean nl-ams? `lethe locations` shows all\n", "", "config", "export", "nl-amd")
	p.expect(2, "error: no location \"[31mred\"\nhint: see `lethe locations`\n", "", "config", "export", "\x1b[31mr\xffed")
	p.expect(2, "error: no location \"new yok\"\nhint: did you mean us-nyc? `lethe locations` shows all\n", "", "config", "export", "new", "yok")
	p.expect(2, "error: no location \"dam\"\nhint: did you mean nl-ams? `lethe locations` shows all\n", "", "config", "export", "dam")
	p.expect(0, "client\n.*remote 198.51.100.22 1194\n.*", "", "config", "export", "new", "york")
	p.expect(2, "error: no location \"zzzzzzzz\"\nhint: see `lethe locations`\n", "", "config", "export", "zzzzzzzz")
	p.expect(5, "error: no server of de-ber takes customers at the moment\nhint: .*\n", "", "config", "export", "berlin")
	s.set(func() {
		s.directory.Servers = slices.Clone(s.directory.Servers)
		s.directory.Servers[0].CA = "not a certificate"
	})
	p.expect(5, "error: no profile can be made of the service's description of the server\n", "", "config", "export", "nl-ams")
}

// TestConfigExportIKEv2: every format of IKEv2 names the server and holds no password; two need a
// file, and get the CA beside it.
func TestConfigExportIKEv2(t *testing.T) {
	server, _, _ := newServer(t)
	server.Endpoints = append(server.Endpoints, location.Endpoint{Protocol: protocol.IKEv2, Port: 500})
	s := newService(t, server)
	p := newPerson(t, s)
	s.accounts["ada@example.org"] = accountPassword
	p.expect(0, "logged in; next: lethe connect\n", accountPassword, "login", "ada@example.org")
	dir := t.TempDir()
	for format, want := range map[string]string{
		"mobileconfig": "<key>RemoteAddress</key>\n<string>" + vpnV4, "sswan": `"addr":"` + vpnV4 + `"`, "windows": "-ServerAddress '" + vpnV4 + "'",
		"networkmanager": "certificate=" + dir + "/nl-ams-1.pem\n", "swanctl": "cacerts = nl-ams-1.pem\n",
	} {
		file := filepath.Join(dir, format)
		p.expect(0, "note: the client .*", "", "config", "export", "nl", "--format", format, "-o", file)
		b, err := os.ReadFile(file)
		if err != nil || !strings.Contains(strings.ReplaceAll(string(b), `"nl-ams-1.pem"`, "nl-ams-1.pem"), want) || strings.Contains(string(b), vpnPassword) {
			t.Errorf("%s: %v, want %q\n%s", format, err, want, b)
		}
	}
	if ca, err := os.ReadFile(filepath.Join(dir, "nl-ams-1.pem")); err != nil || string(ca) != server.CA {
		t.Errorf("the CA beside: %v\n%s", err, ca)
	}
	p.expect(0, `.*"remote":{.*}`+"\n.*", "", "config", "export", "nl", "--format", "sswan")
	p.expect(0, "# First write .*#: -----BEGIN CERTIFICATE-----\n.*eap_id = "+vpnUser+"\n.*note: the client needs the password .*", "", "config", "export", "nl", "--format", "swanctl")
	p.expect(2, "error: the format swanctl names the CA's file, and takes no blanks .*\nhint: .*\n", "", "config", "export", "nl", "--format", "swanctl", "-o", dir+"/a b/c")
	p.expect(2, "error: no format pigeon\nhint: ovpn, ovpn-tcp, mobileconfig, sswan, windows, networkmanager, swanctl\n", "", "config", "export", "--format", "pigeon")
	p.expect(2, "error: no server of us-nyc can be used by a profile of the format sswan\nhint: there: ovpn\n", "", "config", "export", "us-nyc", "--format", "sswan")
	s.set(func() {
		s.directory.Servers = slices.Clone(s.directory.Servers)
		s.directory.Servers[0].Addresses = nil
	})
	p.expect(5, "error: the service sent a directory that makes no sense\n", "", "config", "export", "nl-ams", "--format", "sswan")
}

// TestUsage: what makes no sense is said, with exit code 2.
func TestUsage(t *testing.T) {
	p := newPerson(t, nil)
	p.expect(2, "error: no command \"nonsense\"\nhint: see `lethe --help`\n", "", "nonsense")
	p.expect(2, "error: no command \"statsu\"\nhint: did you mean `lethe status`?\n", "", "statsu")
	p.expect(2, "error: no command \"exprt\"\nhint: did you mean `lethe config export`?\n", "", "config", "exprt")
	p.expect(2, "error: no command \"nonsense\"\nhint: see `lethe --help`\n", "", "help", "nonsense")
	p.expect(2, "error: too many arguments\nhint: usage: lethe status [flags]\n", "", "status", "now")
	p.expect(2, "error: unknown flag: --nonsense\nhint: see `lethe status --help`\n", "", "status", "--nonsense")
	p.expect(2, "error: an argument is missing\nhint: usage: lethe signup EMAIL [flags]\n", "", "signup")
	p.expect(2, "error: no service is set\nhint: .*\n", "x", "login", "ada@example.org")
	p.expect(2, "error: no service is set\nhint: .*\n", "x", "signup", "ada@example.org")
	p.expect(2, "error: the service's address must be .*\n", "x", "login", "a@b", "--api", "http://x")
	p.expect(2, "error: no certificate can be read from the file of --ca\n", "x", "login", "a@b", "--api", "https://x", "--ca", "/dev/null")
	p.expect(2, "error: invalid argument \"soon\" for \"--timeout\" flag: time: invalid duration \"soon\"\nhint: see `lethe connect --help`\n", "", "connect", "--timeout", "soon")
	p.expect(2, "error: --timeout must be more than nothing\nhint: .*\n", "", "connect", "--timeout", "0s")
	p.expect(0, "The app of.*", "")
	p.expect(0, "Use the system's own.*", "", "config")
	p.expect(0, "The VPN user name and password.*", "", "credentials")
	p.expect(0, "lethe "+client.Version+"\n", "", "version")
	p.expect(0, `{"schema":"lethe.version/1","version":"`+client.Version+`","go":"go.*","os":"linux","arch":".*"}`+"\n", "", "version", "--json")
	for _, shell := range []string{"bash", "zsh", "fish"} {
		p.expect(0, ".*lethe.*", "", "completion", shell)
	}

	file := filepath.Join(t.TempDir(), "app.json")
	p.env["LETHE_CONFIG"] = file
	for _, command := range [][]string{{"status"}, {"connect"}, {"disconnect"}, {"signup", "a@b"}} {
		p.expect(2, "error: the settings cannot be read\nhint: .*\n", "x", command...)
	}
	if err := os.WriteFile(file, []byte(`{"api":"https://127.0.0.1:1","password":"x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	p.expect(2, "error: the settings cannot be read\nhint: .*\n", "", "status")
	if err := os.WriteFile(file, []byte(`{"api":"https://127.0.0.1:1","socket":"/nonexistent"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	delete(p.env, "LETHE_SOCKET")
	p.expect(7, "error: the helper is not running\nhint: .*\n", "", "disconnect")
	p.expect(5, "error: .*", "x", "login", "ada@example.org")
	p.env["XDG_STATE_HOME"] = ""
	p.expect(2, "error: no place for the app's files\nhint: .*\n", "x", "login", "ada@example.org")
	p.expect(2, "error: no place for the app's files\nhint: .*\n", "", "account")
	p.expect(2, "error: no place for the app's files\nhint: .*\n", "", "locations")
	p.expect(2, "error: no place for the app's files\nhint: .*\n", "", "credentials", "show")
	p.env["HOME"] = t.TempDir()
	p.expect(3, "error: not logged in\nhint: .*\n", "", "account")
}

// TestDamagedState: files that cannot be read or written are named, nothing is guessed.
func TestDamagedState(t *testing.T) {
	server, _, _ := newServer(t)
	s := newService(t, server)
	p := newPerson(t, s)
	s.accounts["ada@example.org"] = accountPassword
	dir := filepath.Join(p.env["XDG_STATE_HOME"], "lethe")
	p.expect(0, "logged in; next: lethe connect\n", accountPassword, "login", "ada@example.org")
	for name, commands := range map[string][][]string{
		"token.json": {{"account"}, {"logout"}}, "credential.json": {{"credentials", "show"}},
		"directory.json": {{"locations"}, {"config", "export"}}, "last.json": {{"config", "export"}},
	} {
		path := filepath.Join(dir, name)
		was, _ := os.ReadFile(path)
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, c := range commands {
			p.expect(1, "error: the app's file "+name+" cannot be read\nhint: delete .*\n", "", c...)
		}
		if was == nil {
			os.Remove(path)
		} else if err := os.WriteFile(path, was, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, out, _ := p.types("", "__complete", "connect", "")
	if !strings.Contains(out, "nl-ams\tAmsterdam, NL\n") || strings.Contains(out, "de-ber\tBerlin, DE\nde") {
		t.Errorf("completion offers %q", out)
	}
	if err := os.WriteFile(filepath.Join(dir, "directory.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, out, _ := p.types("", "__complete", "connect", ""); strings.Contains(out, "nl-ams") {
		t.Errorf("completion offers %q", out)
	}
	p.expect(0, "logged in; next: lethe connect\nnote: the list of locations is not there yet: the app's file directory.json cannot be read\n", accountPassword, "login", "ada@example.org")

	p.env["XDG_STATE_HOME"] = "/dev/null"
	p.expect(1, "error: the app's file token.json cannot be .*\nhint: .*\n", accountPassword, "login", "ada@example.org")
	p.env["XDG_STATE_HOME"] = t.TempDir()
	dir = filepath.Join(p.env["XDG_STATE_HOME"], "lethe")
	p.expect(0, "logged in.*", accountPassword, "login", "ada@example.org")
	os.Remove(filepath.Join(dir, "credential.json"))
	if err := os.MkdirAll(filepath.Join(dir, "credential.json", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.expect(0, "logged in.*note: the VPN credential is not there yet: .*\n", accountPassword, "login", "ada@example.org")
	p.expect(1, "error: the app's file credential.json cannot be written\nhint: .*\n", "", "credentials", "replace")
	p.expect(1, "error: the app's file credential.json cannot be removed\nhint: .*\n", "", "logout")
}

// TestTerminal: a password is read without echo, a new one twice.
func TestTerminal(t *testing.T) {
	server, _, _ := newServer(t)
	s := newService(t, server)
	p := newPerson(t, s)
	for _, c := range []struct {
		command, first, second string
		code                   int
	}{
		{"signup", accountPassword, "another", 2}, {"signup", accountPassword, accountPassword, 0}, {"login", accountPassword, "", 0},
	} {
		master, slave := openPTY(t)
		var screen testkit.Log
		go func() {
			b := make([]byte, 256)
			for {
				n, err := master.Read(b)
				if err != nil {
					return
				}
				_, _ = screen.Write(b[:n])
			}
		}()
		done := make(chan int)
		go func() {
			done <- client.Run(t.Context(), []string{c.command, "ada@example.org"}, slave, slave, slave, func(k string) string { return p.env[k] })
		}()
		for i, word := range []string{c.first, c.second} {
			prompt := []string{"Password: ", "The same again: "}[i]
			for deadline := time.Now().Add(5 * time.Second); word != "" && !strings.Contains(screen.String(), prompt); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("no prompt %q on %q", prompt, screen.String())
				}
			}
			time.Sleep(20 * time.Millisecond) // the prompt stands before echo is off
			if word != "" {
				_, _ = master.WriteString(word + "\n")
			}
		}
		if code := <-done; code != c.code {
			t.Errorf("%s: exit code %d, want %d: %s", c.command, code, c.code, screen.String())
		}
		if strings.Contains(screen.String(), accountPassword) {
			t.Errorf("the password is on the screen: %q", screen.String())
		}
		slave.Close()
		master.Close()
	}
}

// openPTY returns both ends of a pseudo terminal (pts(4)).
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo terminals here")
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}
