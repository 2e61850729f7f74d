package client

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"lethe/account"
	"lethe/fault"
)

// dialogue is the app's side of OpenVPN's management interface (management-notes.txt in OpenVPN's
// source): it releases the hold, answers the question for user name and password, and learns the
// tunnel's addresses. It reads a daemon that speaks with a server, so nothing in a line is trusted.
type dialogue struct {
	credential account.Credential
	env        map[string]string // the few variables of UPDOWN that are of use
	reason     string            // why OpenVPN says it is ending; compared, never shown
	laps       int               // answers since it was told to end
	answered   chan struct{}     // closed when the server has answered; nil then and if nobody wants to know
}

// maxManageLine is the longest line that is read from the management interface.
const maxManageLine = 1 << 14

// leaveLaps is how many questions OpenVPN answers between the order to end and the order to end now.
//
// On the first SIGTERM it sends the server an exit notification and then waits for a whole second,
// which is for nothing: it neither repeats the notification in that second nor looks for an
// answer. The second SIGTERM ends the wait. Its event loop takes one line of this interface and
// writes one packet a turn, so after a few answers the notification is out, however busy the
// tunnel is.
const leaveLaps = 8

// leave goes on with the end of the process at every answer to an order.
func (d *dialogue) leave(answer string) (say string) {
	if d.laps == 0 && answer != " signal SIGTERM thrown" {
		return ""
	}
	switch d.laps++; {
	case d.laps <= leaveLaps:
		return "pid\n"
	case d.laps == leaveLaps+1:
		return "signal SIGTERM\n"
	}
	return ""
}

// hear takes one line. It returns what to answer (empty for nothing), the tunnel when it is up,
// and an error when there will be none.
func (d *dialogue) hear(line string) (say string, up *face, err error) {
	event, rest, _ := strings.Cut(line, ":")
	switch event {
	case ">HOLD":
		return "state on\nhold release\n", nil, nil
	case ">PASSWORD":
		return d.password(rest)
	case ">UPDOWN":
		if name, value, ok := strings.Cut(strings.TrimPrefix(rest, "ENV,"), "="); ok && len(d.env) < 64 && useful(name) {
			d.env[name] = value
		}
	case ">STATE":
		fields := strings.Split(rest, ",")
		if len(fields) < 3 {
			return "", nil, fault.New(fault.Internal, "openvpn: a state without a name")
		}
		switch fields[1] {
		case "AUTH":
			if d.answered != nil {
				close(d.answered)
				d.answered = nil
			}
		case "CONNECTED":
			up, err = d.face()
			return "", up, err
		case "EXITING", "RECONNECTING":
			d.reason = fields[2]
		}
	case "SUCCESS":
		return d.leave(rest), nil, nil
	case ">FATAL":
		return "", nil, fault.New(fault.Internal, "openvpn gave up").
			WithHint("is the app's OpenVPN 2.6 or newer, and is there a /dev/net/tun?")
	}
	return "", nil, nil
}

func (d *dialogue) password(rest string) (say string, up *face, err error) {
	switch {
	case strings.HasPrefix(rest, "Need 'Auth'"):
		return fmt.Sprintf("username \"Auth\" %s\npassword \"Auth\" %s\n",
			quote(d.credential.Username.Reveal()), quote(d.credential.Password.Reveal())), nil, nil
	case !strings.HasPrefix(rest, "Verification Failed: 'Auth'"):
		return "", nil, nil
	case strings.Contains(rest, "licence-expired"):
		return "", nil, errLicence
	case strings.Contains(rest, "['TEMP"):
		return "", nil, errLater
	default:
		return "", nil, errCredential
	}
}

// ended returns what the end of the process means when no line has said it.
func (d *dialogue) ended() error {
	if strings.Contains(d.reason, "auth-temp-failure") {
		return errLater
	}
	return errSilent
}

// quote returns s in the form of OpenVPN's command line parser.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func useful(name string) bool {
	return name == "dev" || name == "tun_mtu" || strings.HasPrefix(name, "ifconfig_") ||
		strings.HasPrefix(name, "foreign_option_") || strings.HasPrefix(name, "dns_server_")
}

// face makes the tunnel's description of the variables heard.
func (d *dialogue) face() (*face, error) {
	f := &face{device: d.env["dev"], mtu: 1500}
	if n, err := strconv.Atoi(d.env["tun_mtu"]); err == nil {
		f.mtu = min(max(n, 1280), 9000)
	}
	if a, err := netip.ParseAddr(d.env["ifconfig_local"]); err == nil && a.Is4() {
		f.v4 = netip.PrefixFrom(a, 32)
		if mask := net.ParseIP(d.env["ifconfig_netmask"]).To4(); mask != nil {
			ones, _ := net.IPMask(mask).Size()
			f.v4 = netip.PrefixFrom(a, ones)
		}
	}
	if a, err := netip.ParseAddr(d.env["ifconfig_ipv6_local"]); err == nil && a.Is6() && a.Zone() == "" && !a.Is4In6() {
		f.v6 = netip.PrefixFrom(a, 128)
	}
	for i := 1; i <= 8; i++ {
		option := strings.Fields(d.env[fmt.Sprintf("foreign_option_%d", i)])
		if len(option) == 3 && (option[1] == "DNS" || option[1] == "DNS6") {
			f.resolver(option[2])
		}
		f.resolver(d.env[fmt.Sprintf("dns_server_1_address_%d", i)]) // as OpenVPN 2.7 says it
	}
	if f.device == "" || !f.usable() {
		return nil, errTunnelNot
	}
	return f, nil
}

// usable reports whether packets and names get through f.
func (f *face) usable() bool { return (f.v4.IsValid() || f.v6.IsValid()) && len(f.dns) > 0 }

// resolver adds a resolver if the tunnel can reach it.
func (f *face) resolver(text string) {
	if a, err := netip.ParseAddr(text); err == nil {
		f.addResolver(a)
	}
}

func (f *face) addResolver(a netip.Addr) {
	if a.Zone() != "" || a.IsLoopback() || a.IsUnspecified() || len(f.dns) >= 3 {
		return
	}
	if a.Is4() && f.v4.IsValid() || a.Is6() && f.v6.IsValid() {
		f.dns = append(f.dns, a)
	}
}
