package control_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/account"
	"lethe/bundle"
	"lethe/control"
	"lethe/day"
	"lethe/event"
	"lethe/fault"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
	"lethe/usage"
)

// shell runs commands on one data directory.
type shell struct {
	t   *testing.T
	dir string
}

func newShell(t *testing.T) shell {
	t.Helper()
	s := shell{t, filepath.Join(t.TempDir(), "data")}
	s.ok("", "init")
	return s
}

func (s shell) run(stdin string, args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	var out, complaints bytes.Buffer
	code = control.Run(s.t.Context(), append([]string{"--dir", s.dir}, args...), strings.NewReader(stdin), &out, &complaints)
	return out.String(), complaints.String(), code
}

// ok runs a command that must succeed.
func (s shell) ok(stdin string, args ...string) string {
	s.t.Helper()
	stdout, stderr, code := s.run(stdin, args...)
	if code != 0 {
		s.t.Fatalf("%q: exit %d\n%s", args, code, stderr)
	}
	return stdout
}

// json runs a command with --json and reads its answer strictly into v.
func (s shell) json(v any, stdin string, args ...string) {
	s.t.Helper()
	d := json.NewDecoder(strings.NewReader(s.ok(stdin, append(args, "--json")...)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil || d.More() {
		s.t.Fatalf("%q: %v", args, err)
	}
}

type accountJSON struct {
	ID, Email string
	Disabled  bool
	Licence   struct {
		Plan      string
		Devices   int
		PaidUntil string `json:"paid_until"`
		Disabled  bool
	}
	App *struct{ OS, Version string }
}

const (
	ca  = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	tls = "-----BEGIN OpenVPN Static key V1-----\n00\n-----END OpenVPN Static key V1-----\n"
)

func (s shell) file(name, content string) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func TestAccountsAndLicences(t *testing.T) {
	s := newShell(t)
	var a accountJSON
	s.json(&a, "correct horse\n", "account", "create", "Ann@example.org")
	if a.Email != "ann@example.org" || len(a.ID) != 26 || a.Licence.PaidUntil != "1970-01-01" || a.App != nil {
		t.Errorf("made %+v", a)
	}
	s.ok("ben@example.org\ncorrect horse", "account", "create", "-")
	var list struct{ Accounts []accountJSON }
	s.json(&list, "", "account", "list")
	if len(list.Accounts) != 2 || list.Accounts[0].ID != a.ID {
		t.Errorf("listed %+v", list)
	}
	s.json(&a, "", "licence", "create", "ann@example.org", "--until", "2099-01-31")
	if a.Licence.Plan != "standard" || a.Licence.Devices != 5 || a.Licence.PaidUntil != "2099-01-31" {
		t.Errorf("licence %+v", a.Licence)
	}
	s.json(&a, "ann@example.org", "licence", "extend", "-", "--until", "2099-02-28", "--devices", "9")
	if a.Licence.Plan != "standard" || a.Licence.Devices != 9 || a.Licence.PaidUntil != "2099-02-28" {
		t.Errorf("licence %+v", a.Licence)
	}
	if out := s.ok("", "account", "list"); !strings.Contains(out, "standard  9        2099-02-28  no\n") ||
		!strings.Contains(out, "none      0        never       no\n") {
		t.Errorf("list:\n%s", out)
	}
	s.json(&a, "", "licence", "disable", "ann@example.org")
	if !a.Licence.Disabled {
		t.Error("the licence is not disabled")
	}
	s.json(&a, "", "account", "disable", "ann@example.org")
	if !a.Disabled {
		t.Error("the account is not disabled")
	}
	s.json(&a, "", "account", "enable", "ann@example.org")
	s.ok("battery staple\n", "account", "password", "ann@example.org")

	c := openControl(t, s.dir)
	app := account.App{OS: "linux", Version: "0.1.0"}
	if _, err := c.Accounts.Login(t.Context(), "ann@example.org", private.Of("battery staple"), app); err != nil {
		t.Error(err)
	}
	if out := s.ok("", "account", "show", "ann@example.org"); !strings.Contains(out, "app               linux 0.1.0\n") {
		t.Errorf("shown:\n%s", out)
	}
	var gone struct{ Removed string }
	s.json(&gone, "", "account", "delete", "ann@example.org")
	if gone.Removed != a.ID {
		t.Errorf("removed %q, want %q", gone.Removed, a.ID)
	}
}

func TestPlaces(t *testing.T) {
	s := newShell(t)
	var l location.Location
	s.json(&l, "", "location", "add", "nl-ams", "NL", "Amsterdam")
	if l != (location.Location{ID: 1, Code: "nl-ams", Country: "NL", City: "Amsterdam"}) {
		t.Errorf("added %+v", l)
	}
	s.ok("", "location", "add", "us-nyc", "US", "New York")
	add := []string{
		"server", "add", "nl-ams-1", "--location", "nl-ams", "--address", "198.51.100.1,2001:db8::1",
		"--ca", s.file("ca", ca), "--tls-crypt", s.file("tls", tls),
	}
	var v location.Server
	s.json(&v, "", append(add, "--endpoint", "openvpn-udp:1194")...)
	if v.ID != "nl-ams-1" || v.Location != 1 || len(v.Addresses) != 2 || len(v.Endpoints) != 1 || v.CA != ca || v.TLSCrypt != tls || !v.Enabled {
		t.Errorf("added %+v", v)
	}
	add[2] = "nl-ams-2"
	s.ok("", append(add, "--disabled")...)
	want := "ID        LOCATION  ADDRESSES                 ENDPOINTS                        ENABLED\n" +
		"nl-ams-1  nl-ams    198.51.100.1,2001:db8::1  openvpn-udp:1194                 yes\n" +
		"nl-ams-2  nl-ams    198.51.100.1,2001:db8::1  openvpn-udp:1194,openvpn-tcp:443  no\n"
	if out := s.ok("", "server", "list"); strings.Join(strings.Fields(out), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("servers:\n%s", out)
	}
	s.ok("", "server", "enable", "nl-ams-2")
	s.ok("", "server", "disable", "nl-ams-1")
	var d location.Directory
	s.json(&d, "", "server", "list")
	if len(d.Servers) != 2 || d.Servers[0].Enabled || !d.Servers[1].Enabled {
		t.Errorf("servers %+v", d.Servers)
	}
	_, stderr, code := s.run("", "location", "remove", "nl-ams")
	if code != 4 || !strings.Contains(stderr, "hint: remove its servers first") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	s.ok("", "server", "remove", "nl-ams-1")
	s.ok("", "server", "remove", "nl-ams-2")
	s.ok("", "location", "remove", "nl-ams")
	if out := s.ok("", "location", "list"); out != "ID  CODE    COUNTRY  CITY\n2   us-nyc  US       New York\n" {
		t.Errorf("locations:\n%s", out)
	}
	s.json(&d, "", "location", "list")
}

func TestUsage(t *testing.T) {
	s := newShell(t)
	s.ok("correct horse", "account", "create", "ann@example.org")
	s.ok("", "location", "add", "nl-ams", "NL", "Amsterdam")
	if out := s.ok("", "usage", "show", "ann@example.org"); out != "no usage is known\n" {
		t.Errorf("got %q", out)
	}
	c := openControl(t, s.dir)
	r, err := c.Accounts.Find(t.Context(), "ann@example.org")
	if err != nil {
		t.Fatal(err)
	}
	record := func(user string, date day.Day, l location.ID, isp string) usage.Record {
		return usage.Record{Key: usage.Key{
			Date: date, User: usage.Hash(c.Salt, []byte(user)), Country: "DE", ISP: isp, Location: l, Protocol: protocol.OpenVPNUDP,
		}, In: 800, Out: 23}
	}
	name, today := r.Credential.Username.Reveal(), day.Today()
	err = c.Store.AcceptUsage(t.Context(), "nl-ams-1", usage.Batch{ID: usage.NewBatchID(), Records: []usage.Record{
		record(name, today, 1, "Lahn Net"), record(name, today.Add(-1), 7, ""), record("other", today, 1, "Lahn Net"),
		record(name, today.Add(-91), 1, "Lahn Net"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	var removed struct{ Removed int }
	if s.json(&removed, "", "usage", "purge"); removed.Removed != 1 {
		t.Errorf("purged %d rows, want 1", removed.Removed)
	}
	want := fmt.Sprintf("DATE        LOCATION    COUNTRY  ISP       PROTOCOL     MB IN  MB OUT\n"+
		"%s  location-7  DE       -         openvpn-udp  800    23\n"+
		"%s  nl-ams      DE       Lahn Net  openvpn-udp  800    23\n"+
		"total                                           1600   46\n", today.Add(-1), today)
	squeeze := func(table string) string { return strings.Join(strings.Fields(table), " ") }
	if out := s.ok("", "usage", "show", "ann@example.org"); squeeze(out) != squeeze(want) {
		t.Errorf("got\n%swant\n%s", out, want)
	}
	type row struct {
		Date, Location, Country, ISP, Protocol string
		In                                     int `json:"mb_in"`
		Out                                    int `json:"mb_out"`
	}
	var view struct {
		Email string
		Rows  []row
		In    int `json:"mb_in"`
		Out   int `json:"mb_out"`
	}
	s.json(&view, "ann@example.org", "usage", "show", "-", "--day", today.String())
	if len(view.Rows) != 1 || view.Rows[0] != (row{today.String(), "nl-ams", "DE", "Lahn Net", "openvpn-udp", 800, 23}) || view.In != 800 || view.Out != 23 {
		t.Errorf("got %+v", view)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var log bytes.Buffer
	c.Retain(ctx, 0, event.New(&log)) // today stays, yesterday goes
	if s.json(&view, "", "usage", "show", "ann@example.org"); len(view.Rows) != 1 || log.Len() != 0 {
		t.Errorf("after the retention %+v, log %q", view.Rows, log.String())
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if c.Retain(ctx, 0, event.New(&log)); log.String() != "trouble part=store kind=internal\n" {
		t.Errorf("log %q", log.String())
	}
}

// TestBesideTheService shows that commands work while the service has the
// directory open, and that its publisher hears of what they do.
func TestBesideTheService(t *testing.T) {
	s := newShell(t)
	c := openControl(t, s.dir)
	s.ok("correct horse", "account", "create", "ann@example.org")
	select {
	case <-c.Store.Notify():
	case <-time.After(5 * time.Second):
		t.Error("the publisher was not told")
	}
	if changes, err := c.Store.Changes(t.Context(), 10); err != nil || len(changes) != 1 {
		t.Errorf("%d changes, %v", len(changes), err)
	}
	if !c.Limiter.AllowSubject("login", private.Of("x")) {
		t.Error("the limiter allows no login")
	}
}

func TestKeys(t *testing.T) {
	s := newShell(t)
	var k struct {
		Salt, Seal []byte
		TrustRoot  []byte `json:"trust_root"`
	}
	s.json(&k, "", "keys", "node")
	c := openControl(t, s.dir)
	if [32]byte(k.Salt) != c.Salt.Reveal() || [32]byte(k.Seal) != c.Seal.Reveal() || bytes.Equal(k.Salt, k.Seal) {
		t.Error("other keys than the control plane's")
	}
	trust, err := bundle.NewTrust(k.TrustRoot, bundle.Floor{}, time.Now)
	if err != nil {
		t.Fatalf("a server would refuse the root: %v, %v", trust, err)
	}
	root, err := bundle.Inspect[bundle.Root](c.Roots[0])
	if err != nil || root.Roles[bundle.ConfigRole].Keys[0] != c.Config.Key().ID || root.Roles[bundle.FreshRole].Keys[0] != c.Fresh.Key().ID {
		t.Errorf("the root names other keys: %v", err)
	}
	// The service works without the root key.
	if err := os.Remove(filepath.Join(s.dir, "keys/root.pem")); err != nil {
		t.Fatal(err)
	}
	if out := s.ok("", "check"); out != "the store is sound\n" {
		t.Errorf("got %q", out)
	}
}

func TestErrors(t *testing.T) {
	s := newShell(t)
	s.ok("correct horse", "account", "create", "ann@example.org")
	s.ok("", "location", "add", "nl-ams", "NL", "Amsterdam")
	goodCA, goodTLS := s.file("ca", ca), s.file("tls", tls)
	server := func(id, l, address, endpoint, ca, tls string) string {
		return strings.Join([]string{"server add", id, "--location", l, "--address", address, "--endpoint", endpoint, "--ca", ca, "--tls-crypt", tls}, " ")
	}
	s.ok("", strings.Fields(server("nl-ams-1", "nl-ams", "192.0.2.1", "ikev2:500", goodCA, goodTLS))...)
	for _, c := range []struct {
		args, stdin string
		code        int
		want        string
	}{
		{"bogus", "", 2, `no command "bogus"`},
		{"help bogus", "", 2, "no command \"bogus\"\nhint: see `lethe-control --help`"},
		{"acount", "", 2, "did you mean `lethe-control account`?"},
		{"account", "", 2, "needs a subcommand"},
		{"account bogus", "", 2, `no command "bogus"`},
		{"account creat", "", 2, "did you mean `lethe-control account create`?"},
		{"location add nl NL", "", 2, "an argument is missing\nhint: usage: lethe-control location add CODE COUNTRY CITY"},
		{"location add nl NL New York", "", 2, "too many arguments\nhint: usage: lethe-control location add CODE COUNTRY CITY"},
		{"account list all", "", 2, "too many arguments"},
		{"server add x", "", 2, "--address, --ca, --location, --tls-crypt must be given\nhint: see `lethe-control server add --help`"},
		{"account list --bogus", "", 2, "unknown flag: --bogus\nhint: see `lethe-control account list --help`"},
		{"account show", "", 2, "an argument is missing\nhint: usage: lethe-control account show EMAIL"},
		{"account show --bogus ann@example.org", "", 2, "unknown flag"},
		{"account show nobody@example.org", "", 3, "there is no such account"},
		{"account show nobody", "", 2, "not an e-mail address"},
		{"account show -", "", 2, "no e-mail address on standard input"},
		{"account create -", "", 2, "no e-mail address on standard input"},
		{"account create eve@example.org", "", 2, "no password on standard input"},
		{"account create eve@example.org", "short\n", 2, "too short"},
		{"account create ann@example.org", "correct horse\n", 4, "there is an account"},
		{"account password ann@example.org", "", 2, "no password"},
		{"account disable nobody@example.org", "", 3, "no such account"},
		{"account delete nobody@example.org", "", 3, "no such account"},
		{"licence create ann@example.org", "", 2, "--until must be given"},
		{"licence create ann@example.org --until tomorrow", "", 2, "want the form 2026-11-23"},
		{"licence create ann@example.org --until 2020-01-01", "", 2, "in the past"},
		{"licence extend ann@example.org --until 2099-01-01", "", 3, "no licence"},
		{"location add NL NL Amsterdam", "", 2, "want country and city"},
		{"location add nl-ams NL Amsterdam", "", 4, "there is a location nl-ams"},
		{"location remove xx-xx", "", 3, `there is no location "xx-xx"`},
		{"server remove xx-1", "", 3, "there is no such server"},
		{"server enable xx-1", "", 3, "there is no such server"},
		{server("nl-ams-1", "nl-ams", "192.0.2.1", "ikev2:500", goodCA, goodTLS), "", 4, "exists already"},
		{server("nl-ams-2", "xx-xx", "192.0.2.1", "ikev2:500", goodCA, goodTLS), "", 3, "no location"},
		{server("nl-ams-2", "nl-ams", "192.0.2", "ikev2:500", goodCA, goodTLS), "", 2, "not an IP address"},
		{server("nl-ams-2", "nl-ams", "192.0.2.1", "ikev2", goodCA, goodTLS), "", 2, "endpoint"},
		{server("nl-ams-2", "nl-ams", "192.0.2.1", "pptp:1", goodCA, goodTLS), "", 2, "endpoint"},
		{server("nl-ams-2", "nl-ams", "192.0.2.1", "ikev2:0", goodCA, goodTLS), "", 2, "endpoint"},
		{server("nl-ams-2", "nl-ams", "192.0.2.1", "ikev2:501", goodCA, goodTLS), "", 2, "want 500"},
		{server("nl-ams-2", "nl-ams", "192.0.2.1", "ikev2:500", "/nowhere", goodTLS), "", 2, "cannot be read"},
		{server("nl-ams-2", "nl-ams", "192.0.2.1", "ikev2:500", "/dev/zero", goodTLS), "", 2, "more than 16384 bytes"},
		{server("nl-ams-2", "nl-ams", "192.0.2.1", "ikev2:500", goodTLS, goodTLS), "", 2, "not a PEM certificate"},
		{server("nl-ams-2", "nl-ams", "192.0.2.1", "ikev2:500", s.file("k", ca+"PRIVATE KEY"), goodTLS), "", 2, "not a PEM certificate"},
		{server("nl-ams-2", "nl-ams", "192.0.2.1", "ikev2:500", goodCA, goodCA), "", 2, "not an OpenVPN static key"},
		{server("..", "nl-ams", "192.0.2.1", "ikev2:500", goodCA, goodTLS), "", 2, "server id"},
		{"usage show nobody@example.org", "", 3, "no such account"},
		{"usage show -", "", 2, "no e-mail address"},
		{"usage purge --older-than -1", "", 2, "negative"},
		{"init", "", 4, "not empty"},
	} {
		stdout, stderr, code := s.run(c.stdin, strings.Fields(c.args)...)
		if code != c.code || !strings.HasPrefix(stderr, "error: ") || !strings.Contains(stderr, c.want) || stdout != "" {
			t.Errorf("%s: exit %d, want %d %q\n%s%s", c.args, code, c.code, c.want, stdout, stderr)
		}
	}
	// An ended context, a closed standard output.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range []string{
		"account list", "account create eve@example.org", "account delete ann@example.org", "location list", "location remove nl-ams",
		"server list", "usage show ann@example.org", "usage purge", "check",
	} {
		code := control.Run(ctx, append(strings.Fields(args), "--dir", s.dir), strings.NewReader("correct horse"), io.Discard, io.Discard)
		if code != 6 {
			t.Errorf("%s with an ended context: exit %d, want 6", args, code)
		}
	}
	if code := control.Run(t.Context(), []string{"account", "list", "--dir", s.dir}, strings.NewReader(""), broken{}, io.Discard); code != 6 {
		t.Errorf("with a closed standard output: exit %d, want 6", code)
	}
}

// TestBrokenStore takes tables away: every command that needs one fails and says
// no more than that.
func TestBrokenStore(t *testing.T) {
	for table, commands := range map[string][]string{
		"server": {
			"location list", "location remove nl-ams", "server list", "server add x-1 --location nl-ams --address 192.0.2.1 --ca x --tls-crypt x",
			"usage show ann@example.org",
		},
		"usage":   {"usage show ann@example.org", "usage purge"},
		"token":   {"account password ann@example.org", "account disable ann@example.org"},
		"change":  {"account create eve@example.org", "account delete ann@example.org"},
		"account": {"account list", "account show ann@example.org", "account enable ann@example.org"},
	} {
		s := newShell(t)
		s.ok("correct horse", "account", "create", "ann@example.org")
		db, err := sql.Open("sqlite", filepath.Join(s.dir, "lethe.sqlite"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = db.Exec("PRAGMA foreign_keys = 0; DROP TABLE " + table)
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		for _, c := range commands {
			if _, stderr, code := s.run("correct horse", strings.Fields(c)...); code != 1 || stderr != "error: the store does not work\n" {
				t.Errorf("%s without table %s: exit %d, %s", c, table, code, stderr)
			}
		}
	}
	// A store whose pages are damaged behind the first ones.
	s := newShell(t)
	path := filepath.Join(s.dir, "lethe.sqlite")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(content[5*4096:], bytes.Repeat([]byte{0xa5}, 200))
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := s.run("", "check"); code != 1 || !strings.Contains(stderr, "error: the store's file is damaged\nhint: ") {
		t.Errorf("check of a damaged store: exit %d, %s", code, stderr)
	}
}

// broken is a writer that takes nothing.
type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

func TestSpoiledDirectories(t *testing.T) {
	in := func(parts ...string) string { return filepath.Join(parts...) }
	for _, c := range []struct {
		name  string
		want  string
		kind  fault.Kind
		spoil func(dir string) error
	}{
		{"no directory", "no data directory", fault.NotFound, os.RemoveAll},
		{"open to others", "other users may read", fault.Denied, func(d string) error { return os.Chmod(in(d, "keys"), 0o755) }},
		{"a key open to others", "may read the file salt.key", fault.Denied, func(d string) error { return os.Chmod(in(d, "keys/salt.key"), 0o644) }},
		{"no key", "seal.key cannot be read", fault.Internal, func(d string) error { return os.Remove(in(d, "keys/seal.key")) }},
		{"a directory for a key", "seal.key cannot be read", fault.Internal, func(d string) error {
			return errors.Join(os.Remove(in(d, "keys/seal.key")), os.Mkdir(in(d, "keys/seal.key"), 0o700))
		}},
		{"junk for a key", "data.key is no key file", fault.Internal, func(d string) error {
			return os.WriteFile(in(d, "keys/data.key"), []byte("# lethe: x\nzz"), 0o600)
		}},
		{"a key without its line", "data.key is no key file", fault.Internal, func(d string) error {
			return os.WriteFile(in(d, "keys/data.key"), []byte("\n"+strings.Repeat("00", 32)), 0o600)
		}},
		{"another data key", "does not fit", fault.Internal, func(d string) error {
			return os.WriteFile(in(d, "keys/data.key"), []byte("# lethe: x\n"+strings.Repeat("00", 32)), 0o600)
		}},
		{"no signing key", "config.pem cannot be read", fault.Internal, func(d string) error { return os.Remove(in(d, "keys/config.pem")) }},
		{"junk for a signing key", "fresh.pem holds no signing key", fault.Internal, func(d string) error {
			return os.WriteFile(in(d, "keys/fresh.pem"), []byte("junk"), 0o600)
		}},
		{"no root", "roots cannot be read", fault.Internal, func(d string) error { return os.Remove(in(d, "roots/1.json")) }},
		{"no store", "there is no store", fault.NotFound, func(d string) error { return os.Remove(in(d, "lethe.sqlite")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newShell(t)
			if err := c.spoil(s.dir); err != nil {
				t.Fatal(err)
			}
			got, err := control.Open(t.Context(), s.dir)
			if err == nil || fault.Of(err) != c.kind || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v (%v), want %v %q", got, err, fault.Of(err), c.kind, c.want)
			}
		})
	}
}

func TestInit(t *testing.T) {
	dir := t.TempDir() // empty: it may be used
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := control.Init(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := control.Init(t.Context(), dir); fault.Of(err) != fault.Conflict {
		t.Errorf("got %v, want conflict", err)
	}
	if err := control.Init(t.Context(), filepath.Join(dir, "lethe.sqlite")); fault.Of(err) != fault.Unavailable {
		t.Errorf("got %v, want unavailable", err)
	}
	if err := control.Init(t.Context(), "/proc/x"); fault.Of(err) != fault.Unavailable {
		t.Errorf("got %v, want unavailable", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := control.Init(ctx, filepath.Join(dir, "other")); fault.Of(err) != fault.Unavailable {
		t.Errorf("got %v, want unavailable", err)
	}
}

// terminal returns both ends of a pseudo terminal (pts(4)).
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals: %v", err)
	}
	t.Cleanup(func() { _ = ours.Close() })
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = theirs.Close() })
	return ours, theirs
}

func TestTerminal(t *testing.T) {
	s := newShell(t)
	for _, c := range []struct {
		typed, want string
		code        int
	}{
		{"correct horse\ncorrect horse\n", "Once more: ", 0},
		{"correct horse\ncorrect hose\n", "the two passwords differ", 2},
		{"\x04", "no password on standard input", 2},
		{"correct horse\n\x04", "no password on standard input", 2},
		{"correct", "interrupted", 6},
	} {
		ours, theirs := terminal(t)
		if _, err := ours.WriteString(c.typed); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		var stdout, stderr bytes.Buffer
		code := control.Run(ctx, []string{"account", "create", "ann@example.org", "--dir", s.dir}, theirs, &stdout, &stderr)
		cancel()
		if code != c.code || !strings.Contains(stderr.String(), c.want) || !strings.HasPrefix(stderr.String(), "Password: ") {
			t.Errorf("typed %q: exit %d, %s", c.typed, code, stderr.String())
		}
		if mode, err := unix.IoctlGetTermios(int(theirs.Fd()), unix.TCGETS); err != nil || mode.Lflag&unix.ECHO == 0 {
			t.Errorf("typed %q: the terminal is left without echo, %v", c.typed, err)
		}
	}
	_, theirs := terminal(t)
	var stderr bytes.Buffer
	code := control.Run(t.Context(), []string{"keys", "node", "--dir", s.dir}, strings.NewReader(""), theirs, &stderr)
	if code != 5 || !strings.Contains(stderr.String(), "output is a terminal") {
		t.Errorf("keys on a terminal: exit %d, %s", code, stderr.String())
	}
}

// TestHelp runs --help and completion for every command.
func TestHelp(t *testing.T) {
	s := newShell(t)
	if out := s.ok("", "--help"); !strings.Contains(out, "Exit codes: 0 done") {
		t.Errorf("help:\n%s", out)
	}
	if out := s.ok("", "completion", "bash"); !strings.Contains(out, "lethe-control") {
		t.Error("no completion")
	}
	if out := s.ok("", "licence", "extend", "--help"); !strings.Contains(out, "--until DATE") {
		t.Errorf("help:\n%s", out)
	}
}

func openControl(t *testing.T, dir string) *control.Control {
	t.Helper()
	c, err := control.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
