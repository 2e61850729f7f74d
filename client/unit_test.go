package client_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"lethe/client"
	"lethe/fault"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
)

var states = []client.State{client.Disconnected, client.Connecting, client.Connected, client.Reconnecting, client.Disconnecting, client.Blocked}

// TestNext compares every step in every state with the table that the documentation shows.
func TestNext(t *testing.T) {
	const (
		no = "-"
		d  = "disconnected"
		g  = "connecting"
		c  = "connected"
		r  = "reconnecting"
		l  = "disconnecting"
		b  = "blocked"
	)
	for step, row := range map[client.Step][6]string{ // from: d g c r l b
		client.Found:    {b, no, no, no, no, no},
		client.Ask:      {g, g, g, g, no, g},
		client.Up:       {no, c, no, c, no, no},
		client.Lost:     {no, no, r, no, no, no},
		client.Refused:  {no, b, b, b, no, no},
		client.Leave:    {l, l, l, l, no, l},
		client.Left:     {no, no, no, no, d, no},
		client.Stuck:    {no, no, no, no, b, no},
		client.Step(99): {no, no, no, no, no, no},
	} {
		for i, from := range states {
			got, ok := client.Next(from, step)
			switch {
			case ok != (row[i] != no), ok && got.String() != row[i], !ok && got != from:
				t.Errorf("step %d in %s leads to %s, %t; want %s", step, from, got, ok, row[i])
			case from.Locked() && !got.Locked() && step != client.Left:
				t.Errorf("step %d in %s lowers the lock", step, from)
			}
		}
	}
	for _, s := range states {
		var back client.State
		text, err := s.MarshalText()
		if err != nil || back.UnmarshalText(text) != nil || back != s {
			t.Errorf("%s comes back as %s", s, back)
		}
	}
	var s client.State
	if s.UnmarshalText([]byte("asleep")) == nil || client.State(77).String() != "state-77" {
		t.Error("an unknown state is known")
	}
}

// TestRequest: a good request comes back as it was sent, a bad target is refused.
func TestRequest(t *testing.T) {
	server, _, _ := newServer(t)
	good := func() *client.Target {
		s := server
		s.Addresses, s.Endpoints = slices.Clone(s.Addresses), slices.Clone(s.Endpoints)
		return &client.Target{Location: amsterdam, Servers: []location.Server{s}, Transport: client.Auto, Credential: credential(vpnPassword),
			Slot: &client.Slot{Token: private.Of("c4nary_slot-1"), API: "https://service.example:8443", CA: server.CA}}
	}
	line, err := client.Request{Op: client.OpConnect, Target: good()}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	r, err := client.ParseRequest(line)
	if err != nil || r.Target.Credential.Password.Reveal() != vpnPassword || r.Target.Servers[0].CA != server.CA || strings.Contains(r.Target.Servers[0].TLSCrypt, "#") {
		t.Errorf("%+v, %v", r, err)
	}
	if s := r.Target.Slot; s.Token.Reveal() != "c4nary_slot-1" || s.API != "https://service.example:8443" || s.CA != server.CA {
		t.Errorf("the slot came as %+v", s)
	}
	if strings.Contains(fmt.Sprintf("%+v %#v", r.Target, r), "c4nary") {
		t.Error("a request prints its credential")
	}
	for name, spoil := range map[string]func(*client.Target){
		"no server":          func(t *client.Target) { t.Servers = nil },
		"too many servers":   func(t *client.Target) { t.Servers = make([]location.Server, 99) },
		"bad location":       func(t *client.Target) { t.Location.Code = "../x" },
		"server elsewhere":   func(t *client.Target) { t.Servers[0].Location = 9 },
		"line in the id":     func(t *client.Target) { t.Servers[0].ID = "x\nup /bin/sh" },
		"line in user name":  func(t *client.Target) { t.Credential = credential("x\nsignal SIGUSR1") },
		"empty password":     func(t *client.Target) { t.Credential = credential("") },
		"no CA":              func(t *client.Target) { t.Servers[0].CA = "" },
		"text behind the CA": func(t *client.Target) { t.Servers[0].CA += "</ca>\nup /bin/sh\n" },
		"not a certificate":  func(t *client.Target) { t.Servers[0].CA = pemOf("CERTIFICATE", []byte("x")) },
		"a key as CA":        func(t *client.Target) { t.Servers[0].CA = pemOf("PRIVATE KEY", []byte("x")) },
		"text behind key":    func(t *client.Target) { t.Servers[0].TLSCrypt += "</tls-crypt>\nup /bin/sh\n" },
		"short key":          func(t *client.Target) { t.Servers[0].TLSCrypt = t.Servers[0].TLSCrypt[:200] },
		"slot of no form":    func(t *client.Target) { t.Slot.Token = private.Of("a b") },
		"empty slot":         func(t *client.Target) { t.Slot.Token = private.Of("") },
		"long slot":          func(t *client.Target) { t.Slot.Token = private.Of(strings.Repeat("a", 129)) },
		"slot of nowhere":    func(t *client.Target) { t.Slot.API = "" },
		"slot without TLS":   func(t *client.Target) { t.Slot.API = "http://service.example" },
		"slot far away":      func(t *client.Target) { t.Slot.API = "https://" + strings.Repeat("a", 300) },
		"slot with a path":   func(t *client.Target) { t.Slot.API = "https://service.example/metadata" },
		"slot's CA is none":  func(t *client.Target) { t.Slot.CA = "x" },
		"no such transport":  func(t *client.Target) { t.Transport = "pigeon" },
		"not spoken": func(t *client.Target) {
			t.Servers[0].Endpoints, t.Protocol = []location.Endpoint{{Protocol: protocol.IKEv2, Port: 500}}, client.OpenVPN
		},
		"not spoken over TCP": func(t *client.Target) {
			t.Servers[0].Endpoints, t.Transport = []location.Endpoint{{Protocol: protocol.IKEv2, Port: 500}}, client.TCP
		},
		"no such protocol": func(t *client.Target) { t.Protocol = "pptp" },
	} {
		bad := good()
		spoil(bad)
		line, err := client.Request{Op: client.OpConnect, Target: bad}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.ParseRequest(line); fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	server, _, _ := newServer(f)
	line, err := client.Request{Op: client.OpConnect, Target: &client.Target{Location: amsterdam, Servers: []location.Server{server}, Transport: client.UDP, Credential: credential("x")}}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add(bytes.Replace(line, []byte(`"transport"`), []byte(`"slot":{"token":"a-b_c","api":"https://service.example"},"transport"`), 1))
	f.Add([]byte(`{"v":1,"op":"status"}`))
	f.Add([]byte(`{"v":1,"op":"connect","target":{"servers":[{"ca":"-----BEGIN CERTIFICATE-----\n"}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := client.ParseRequest(b)
		if err != nil {
			if fault.Of(err) != fault.Invalid {
				t.Errorf("kind %s", fault.Of(err))
			}
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if r.Target != nil {
			for _, s := range r.Target.Servers {
				if strings.Contains(s.CA+s.TLSCrypt, "<") {
					t.Errorf("what reaches the configuration can end its block: %q %q", s.CA, s.TLSCrypt)
				}
			}
		}
		if _, err := client.ParseRequest(bytes.TrimSpace(again)); err != nil {
			t.Errorf("what was accepted is refused: %v", err)
		}
	})
}

// TestDialogue walks through what OpenVPN may say; the lines are those of 2.6.14 and 2.7.
func TestDialogue(t *testing.T) {
	up := ">UPDOWN:ENV,dev=lethe-udp\n>UPDOWN:ENV,tun_mtu=1400\n>UPDOWN:ENV,ifconfig_local=10.64.0.2\n>UPDOWN:ENV,ifconfig_netmask=255.255.0.0\n" +
		">UPDOWN:ENV,ifconfig_ipv6_local=fd00::2\n"
	connected := ">STATE:1,CONNECTED,SUCCESS,10.64.0.2,198.51.100.21,1194,,,fd00::2"
	for name, c := range map[string]struct{ lines, say, up, err string }{
		"hold":            {">INFO:x\n>HOLD:Waiting for hold release:0", "state on\nhold release\n", "", ""},
		"password":        {">PASSWORD:Need 'Auth' username/password", "username \"Auth\" \"c4naryuser2345ab\"\npassword \"Auth\" \"c4nary\\\"pass\\\\word 2345\"\n", "", ""},
		"another secret":  {">PASSWORD:Need 'Private Key' password", "", "", ""},
		"up":              {up + ">UPDOWN:ENV,foreign_option_1=dhcp-option DNS 10.64.0.1\n" + connected, "", "[10.64.0.2 fd00::2 10.64.0.1]", ""},
		"up by 2.7":       {up + ">UPDOWN:ENV,dns_server_1_address_1=fd00::1\n>UPDOWN:ENV,dns_server_1_address_2=127.0.0.1\n" + connected, "", "[10.64.0.2 fd00::2 fd00::1]", ""},
		"no resolver":     {up + connected, "", "", "the server gave no tunnel address or no resolver"},
		"no address":      {">UPDOWN:ENV,dev=x\n>UPDOWN:ENV,foreign_option_1=dhcp-option DNS 10.64.0.1\n" + connected, "", "", "the server gave no tunnel address or no resolver"},
		"state cut short": {">STATE:1", "", "", "openvpn: a state without a name"},
		"refused":         {">PASSWORD:Verification Failed: 'Auth'", "", "", "user name or password refused"},
		"licence":         {">PASSWORD:Verification Failed: 'Auth' ['licence-expired']", "", "", "the licence has ended"},
		"temporary":       {">PASSWORD:Verification Failed: 'Auth' ['TEMP[backoff 5]:full']", "", "", "the server takes nobody at the moment"},
		"leaving":         {"SUCCESS: pid=1\nSUCCESS: signal SIGTERM thrown" + strings.Repeat("\nSUCCESS: pid=1", 9), strings.Repeat("pid\n", 8) + "signal SIGTERM\n", "", ""},
		"fatal":           {">FATAL:Cannot open TUN/TAP dev", "", "", "openvpn gave up"},
	} {
		d := client.NewDialogue(credential(vpnPassword))
		var say, got string
		var err error
		for _, line := range strings.Split(c.lines, "\n") {
			s, addrs, e := d.Hear(line)
			if say += s; addrs != nil {
				got = fmt.Sprint(addrs)
			}
			err = e
		}
		if say != c.say || got != c.up || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s: says %q, up %q, error %v", name, say, got, err)
		}
	}
	for line, want := range map[string]string{
		">STATE:1,EXITING,ping-restart,,,,,":                                     "the server does not answer",
		">STATE:1,RECONNECTING,auth-temp-failure (server temporary reject),,,,,": "the server takes nobody at the moment",
	} {
		d := client.NewDialogue(credential("x"))
		if _, _, err := d.Hear(line); err != nil || d.Ended().Error() != want {
			t.Errorf("%s: %v, %v", line, err, d.Ended())
		}
	}
}

func FuzzDialogue(f *testing.F) {
	f.Add(">HOLD:x\n>PASSWORD:Need 'Auth' username/password\n>STATE:1,CONNECTED,SUCCESS,,,")
	f.Add(">UPDOWN:ENV,ifconfig_local=1.2.3.4\n>UPDOWN:ENV,ifconfig_netmask=9.9.9.9\n>UPDOWN:ENV,dev=x\n>UPDOWN:ENV,foreign_option_1=dhcp-option DNS ::1\n>STATE:1,CONNECTED,")
	f.Fuzz(func(t *testing.T, lines string) {
		d := client.NewDialogue(credential(vpnPassword))
		for line := range strings.SplitSeq(lines, "\n") {
			_, up, err := d.Hear(line)
			if err != nil && strings.Contains(err.Error(), "c4nary") {
				t.Errorf("an error holds the credential: %v", err)
			}
			for _, a := range up {
				if a.Zone() != "" || !a.IsValid() {
					t.Errorf("address %v", a)
				}
			}
		}
		_ = d.Ended().Error()
	})
}

// TestVerdict walks through what charon may say of a login; the lines are those of strongSwan 5.9.8. What
// somebody has put into a certificate says nothing.
func TestVerdict(t *testing.T) {
	const asked = "server requested EAP_MSCHAPV2 authentication (id 0x01)"
	for _, c := range []struct{ lines, want string }{
		{asked + "\nEAP-MS-CHAPv2 failed with error ERROR_AUTHENTICATION_FAILURE: 'x'\nreceived EAP_FAILURE, EAP authentication failed", "user name or password refused"},
		{asked + "\nEAP-MS-CHAPv2 failed with error ERROR_ACCT_DISABLED: 'x'", "the licence has ended"},
		{asked + "\nEAP-MS-CHAPv2 failed with error ERROR_NO_DIALIN_PERMISSION: 'x'", "the server does not let this customer in"},
		{asked + "\nEAP-MS-CHAPv2 succeeded: 'OK'\nreceived AUTHENTICATION_FAILED notify error", "the server takes nobody at the moment"},
		{"received EAP_FAILURE, EAP authentication failed", "the server takes nobody at the moment"},
		{"received AUTHENTICATION_FAILED notify error", "the server has not proven who it is"},
		{"no trusted ECDSA public key found for 'nl-ams-1'", "the server has not proven who it is"},
		{"constraint check failed: identity 'nl-ams-1' required", "the server has not proven who it is"},
		{"received NO_PROPOSAL_CHOSEN notify error", "server and strongSwan agree on no algorithms"},
		{"received end entity cert \"CN=EAP-MS-CHAPv2 failed with error ERROR_AUTHENTICATION_FAILURE\"", ""},
		{"giving up after 7 retransmits", ""},
	} {
		err := client.Verdict(strings.Split(c.lines, "\n")...)
		if (err == nil) != (c.want == "") || err != nil && err.Error() != c.want {
			t.Errorf("%s: %v, want %q", c.lines, err, c.want)
		}
	}
}

func FuzzVerdict(f *testing.F) {
	f.Add("server requested EAP_MSCHAPV2 authentication\nEAP-MS-CHAPv2 failed with error ERROR_ACCT_DISABLED: 'c4nary'")
	f.Add("no trusted c4nary")
	f.Fuzz(func(t *testing.T, lines string) {
		if err := client.Verdict(strings.Split(lines, "\n")...); err != nil && (strings.Contains(err.Error(), "c4nary") || client.ProblemOf(err).Hint == "" && fault.Of(err) != fault.Unavailable) {
			t.Errorf("%q says %v", lines, err)
		}
	})
}

// TestLockRules: nft understands the rules, and they hold no way out for what is established.
func TestLockRules(t *testing.T) {
	for _, tunnel := range []bool{false, true} {
		rules := client.LockRules(tunnel)
		_, out, _ := strings.Cut(rules, "chain outgoing")
		if strings.Contains(out, "ct state") || strings.Contains(out, "lethe-udp") != tunnel {
			t.Errorf("rules: %s", rules)
		}
		cmd := exec.Command("nft", "-c", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s\n%s", err, b, rules)
		}
	}
}

// TestProblem: an error that nobody classified says nothing of its cause.
func TestProblem(t *testing.T) {
	b, err := json.Marshal(client.ProblemOf(fmt.Errorf("dial tcp 203.0.113.2: %s", vpnUser)))
	if err != nil || string(b) != `{"kind":"internal","text":"internal error"}` {
		t.Errorf("%s, %v", b, err)
	}
}

// TestText: what a person reads of states, ages and sizes that a test cannot wait for.
func TestText(t *testing.T) {
	base := client.Status{Location: "nl-ams", Country: "NL", City: "Amsterdam", Lock: true, Server: "nl-ams-1", Protocol: client.OpenVPN, Transport: "udp"}
	with := func(change func(*client.Status)) client.Status {
		s := base
		change(&s)
		return s
	}
	for _, c := range []struct {
		status     client.Status
		text, line string
	}{
		{with(func(s *client.Status) {
			s.State, s.Seconds, s.Received, s.Sent = client.Connected, 3*86400+7200, 12_345_678_901, 999_999
			s.Addresses = []netip.Addr{netip.MustParseAddr("10.64.0.2")}
		}), "connected to Amsterdam, NL (nl-ams) for 3 d 2 h\nserver:        nl-ams-1, OpenVPN over UDP\naddresses:     10.64.0.2\nIPv6:          blocked, the server has none\n" +
			"received:      12.35 GB\nsent:          1.0 MB\nnetwork lock:  on\n", "connected to Amsterdam, NL (nl-ams) by nl-ams-1, OpenVPN over UDP\n"},
		{with(func(s *client.Status) { s.State, s.Seconds, s.IPv6 = client.Connected, 3661, true }),
			"connected to Amsterdam, NL (nl-ams) for 1 h 1 min\nserver:        nl-ams-1, OpenVPN over UDP\nreceived:      0 bytes\nsent:          0 bytes\nnetwork lock:  on\n",
			"connected to Amsterdam, NL (nl-ams) by nl-ams-1, OpenVPN over UDP\n"},
		{with(func(s *client.Status) {
			s.State, s.Attempts, s.Problem = client.Reconnecting, 3, &client.Problem{Text: "the server does not\x1b answer"}
		}), "reconnecting to Amsterdam, NL (nl-ams)\nserver:        nl-ams-1, attempt 3\nnetwork lock:  on\nproblem:       the server does not answer\n",
			"reconnecting to Amsterdam, NL (nl-ams): the server does not answer\n"},
		{with(func(s *client.Status) {
			s.State, s.Problem = client.Blocked, &client.Problem{Text: "refused", Hint: "try"}
		}),
			"blocked on the way to Amsterdam, NL (nl-ams)\nnetwork lock:  on\nproblem:       refused\nhint:          try\n",
			"blocked on the way to Amsterdam, NL (nl-ams): refused\n"},
		{with(func(s *client.Status) { s.State, s.IPv6, s.Slot = client.Connected, true, client.SlotOver }),
			"connected to Amsterdam, NL (nl-ams) for 0 s\nserver:        nl-ams-1, OpenVPN over UDP\nreceived:      0 bytes\nsent:          0 bytes\n" +
				"devices:       the licence's limit is reached without this one; it stays connected\nnetwork lock:  on\n",
			"connected to Amsterdam, NL (nl-ams) by nl-ams-1, OpenVPN over UDP\n"},
		{with(func(s *client.Status) { s.State = client.Disconnecting }), "disconnecting from Amsterdam, NL (nl-ams)\nnetwork lock:  on\n", "disconnecting from Amsterdam, NL (nl-ams)\n"},
	} {
		if text, line := client.StatusText(c.status); text != c.text || line != c.line {
			t.Errorf("got\n%s%swant\n%s%s", text, line, c.text, c.line)
		}
	}
	s := base
	s.State, s.Seconds, s.Sent = client.Connected, 72, 1_500_000
	if text, _ := client.StatusText(s); !strings.Contains(text, "for 1 min 12 s\n") || !strings.Contains(text, "sent:          1.5 MB\n") {
		t.Error(text)
	}
}
