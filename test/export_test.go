package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/lab"
	"lethe/profile"
)

// plainClient is Debian's OpenVPN on a machine without the app's help.
type plainClient struct {
	*lab.Cmd
	t   testing.TB
	log string
}

// startPlain starts OpenVPN with an exported profile and a file of user name and password,
// as a person without the app would, and nothing else that matters.
func startPlain(t testing.TB, m *lab.Machine, profile, login string) *plainClient {
	t.Helper()
	p := &plainClient{m.Command(deadline(t), "openvpn", "--config", profile, "--auth-user-pass", login), t, filepath.Join(t.TempDir(), "log")}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.Stdout, p.Stderr = log, log
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
	})
	return p
}

// says waits until the client has said text.
func (p *plainClient) says(text string) {
	p.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(p.log)
		if err == nil && strings.Contains(string(b), text) {
			return
		}
		if err != nil || time.Now().After(end) {
			p.t.Fatalf("OpenVPN did not say %q: %v\n%s", text, err, b)
		}
	}
}

// TestExport takes exported profiles to a machine without a login, a directory or the app's
// helper at work, and connects there with OpenVPN alone.
func TestExport(t *testing.T) {
	l := newLab(t, func(o *lab.Options) { o.Customers = 2 })
	c, other := newCustomer(t, l, 0), l.Customer(1)
	c.must("", "connect", "nl-ams") // afterwards the server knows the credential
	c.must("", "disconnect")
	var credential struct{ Username, Password string }
	if err := json.Unmarshal([]byte(c.must("", "credentials", "show", "--json")), &credential); err != nil {
		t.Fatal(err)
	}
	login := other.Data("login")
	carry := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	see := func(family string) string {
		page, err := other.Run(deadline(t), "curl", "-sS", "-m", "20", family, lab.SiteURL)
		if err != nil {
			t.Error(err)
		}
		address, _, _ := strings.Cut(strings.TrimPrefix(page, "address: "), "\n")
		return address
	}
	own := map[string]string{"-4": see("-4"), "-6": see("-6")}
	for _, transport := range []string{"udp", "tcp"} {
		profile := other.Data(transport + ".ovpn")
		text := c.must("", "config", "export", "nl-ams", "--transport", transport)
		if strings.Contains(text, credential.Username) || strings.Contains(text, credential.Password) {
			t.Errorf("%s: the profile holds the credential", transport)
		}
		carry(profile, text)

		carry(login, credential.Username+"\nnot the password\n")
		wrong := startPlain(t, other, profile, login)
		wrong.says("AUTH_FAILED")
		_ = wrong.Wait() // it ends, with an exit code that says nothing
		if got := see("-4"); got != own["-4"] {
			t.Errorf("%s: without a tunnel the site sees %s, want %s", transport, got, own["-4"])
		}

		carry(login, credential.Username+"\n"+credential.Password+"\n")
		p := startPlain(t, other, profile, login)
		p.says("Initialization Sequence Completed")
		exit := l.Server(0).Addresses
		for _, family := range []string{"-4", "-6"} {
			got := see(family)
			found := false
			for _, d := range exit {
				found = found || d.V4.String() == got || d.V6.String() == got
			}
			if !found || got == own[family] {
				t.Errorf("%s: the site sees %s over IPv%s, want an address of the server", transport, got, family[1:])
			}
		}
		if _, err := other.Run(deadline(t), "curl", "-sS", "-m", "30", "-o", "/dev/null", lab.SiteURL+"bytes/3000000"); err != nil {
			t.Error(err)
		}
		if err := p.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = p.Wait() // by the signal
		if got := see("-4"); got != own["-4"] {
			t.Errorf("%s: after the end the site sees %s, want %s", transport, got, own["-4"])
		}
	}
	sameProfiles(t, c)
	rows := usage(t, l, c.email, func(rows []usageRow) bool {
		moved := map[string]uint64{}
		for _, r := range rows {
			moved[r.Protocol] += r.In
		}
		return moved["openvpn-udp"] >= 3 && moved["openvpn-tcp"] >= 3
	})
	for _, r := range rows {
		if r.In > 4 || r.Location != "nl-ams" {
			t.Errorf("row %+v, want about 3 MB in nl-ams", r)
		}
	}
}

// sameProfiles compares every profile that the app writes with what the API answers to somebody without
// the app.
func sameProfiles(t *testing.T, c *customer) {
	t.Helper()
	var login struct{ Token string }
	text, err := os.ReadFile(filepath.Join(c.Dir, "home", ".local", "state", "lethe", "token.json"))
	if err == nil {
		err = json.Unmarshal(text, &login)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range profile.Names() {
		ask := c.Command(deadline(t), "curl", "-sS", "--fail-with-body", "-m", "20", "--cacert", "/etc/lethe/ca.pem", "-H", "@-", lab.AppURL+"/v1/locations/nl-ams/profiles/"+format)
		ask.Stdin = strings.NewReader("Authorization: Bearer " + login.Token + "\n")
		got, err := ask.Output()
		if want := c.must("", "config", "export", "nl-ams", "--format", format); err != nil || len(got) == 0 || strings.TrimSpace(string(got)) != strings.TrimSpace(want) {
			t.Errorf("%s: %v, the API answers\n%s\nthe app writes\n%s", format, err, got, want)
		}
	}
}
