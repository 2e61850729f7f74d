package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lethe/activation"
	"lethe/image/trial"
	"lethe/image/vm"
)

// A server may be a virtual machine that boots an image, as it would in a datacentre. Its namespace
// then is the cable: a bridge between the uplink and the guest's network card, without an
// address. The guest gets its own addresses as from a provider, by DHCP and router
// advertisements (dnsmasq, on the router), and takes those that customers dial from the
// bundle. All that an image for the lab knows of it is its DNS root (image/root/lab).

const (
	guestBridge = "cable"
	guestTap    = "guest"
)

// guestMAC returns the hardware address of server i's guest.
func guestMAC(i int) []byte { return []byte{0x52, 0x54, 0x00, 0x62, 0x00, byte(i + 1)} }

// guestAddr returns the addresses that the provider's network gives server i's guest: the exit
// of serverAddr, and what the guest makes of its hardware address (RFC 4291, appendix A).
func guestAddr(i int) Dual {
	_, exit := serverAddr(i)
	a, m := services.router.V6.As16(), guestMAC(i)
	copy(a[8:], []byte{m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
	return Dual{exit.V4, netip.AddrFrom16(a)}
}

// cable returns the commands that make m's namespace a bridge.
func cable() string {
	return fmt.Sprintf("link add %[1]s type bridge mcast_snooping 0\nlink set %[2]s master %[1]s addrgenmode none up\nlink set %[1]s addrgenmode none up\n", guestBridge, Uplink)
}

// provider writes the configuration of dnsmasq(8) for guests and returns its unit.
func (l *Lab) provider() (Unit, error) {
	m := l.Internet()
	var conf strings.Builder
	fmt.Fprintf(&conf, `port=0
interface=%[1]s
bind-interfaces
user=root
no-hosts
no-resolv
no-ping
dhcp-authoritative
leasefile-ro
dhcp-range=%[2]s,static,255.255.255.0
dhcp-range=%[3]s,ra-only,64
enable-ra
ra-param=%[1]s,4,1800
`, services.bridge, services.router.V4.Prev(), services.router.V6.Prev())
	for i, p := range l.opts.Locations {
		if _, ok := l.opts.Guests[p.Code]; ok {
			mac := guestMAC(i)
			fmt.Fprintf(&conf, "dhcp-host=%02x:%02x:%02x:%02x:%02x:%02x,%s\n", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], guestAddr(i).V4)
		}
	}
	path := m.Data("dnsmasq.conf")
	return Unit{Name: "dnsmasq", Machine: m, Args: []string{"dnsmasq", "--keep-in-foreground", "--log-facility=-", "--pid-file", "--conf-file=" + path}},
		os.WriteFile(path, []byte(conf.String()), 0o644)
}

// GuestStep is the name of the step after which virtual machines are on.
const GuestStep = "virtual machines: signed, plugged in, switched on"

// guests plugs the virtual machines in and switches them on.
func (l *Lab) guests(ctx context.Context) error {
	u, err := l.provider()
	if err == nil {
		err = l.Start(ctx, u)
	}
	for i, p := range l.opts.Locations {
		if o, ok := l.opts.Guests[p.Code]; ok && err == nil {
			err = l.powerOn(ctx, i, o)
		}
	}
	return err
}

// sign gives a machine without variables a copy of its image that is signed with keys of
// its own.
func (l *Lab) sign(m *Machine, o *vm.Options) error {
	image, err := trial.Open(o.Medium)
	if err != nil {
		return err
	}
	blank, err := os.ReadFile(vm.Debian().Variables)
	if err != nil {
		return fmt.Errorf("firmware for virtual machines: %w", err)
	}
	keys, err := trial.NewKeys(blank)
	if err != nil {
		return err
	}
	o.Medium, o.Variables = filepath.Join(l.opts.Dir, m.Name+".iso"), keys.Variables
	return keys.Sign(image, o.Medium)
}

// powerOn starts the machine of server i. It lives until the lab is closed.
func (l *Lab) powerOn(ctx context.Context, i int, o vm.Options) error {
	m := l.Server(i)
	if o.Variables == nil {
		if err := l.sign(m, &o); err != nil {
			return err
		}
	}
	var tap *os.File
	err := m.Inside(func() (err error) {
		tap, err = vm.Tap(guestTap)
		return err
	})
	if err != nil {
		return err
	}
	defer tap.Close()
	if err := ip(ctx, fmt.Sprintf("link set %s master %s addrgenmode none up\n", guestTap, guestBridge), "-n", m.Namespace, "-batch", "-"); err != nil {
		return err
	}
	console, err := os.OpenFile(filepath.Join(l.opts.Dir, "log", m.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	o.NICs, o.Output = []vm.NIC{{MAC: guestMAC(i), Tap: tap}}, console
	guest, err := vm.Start(context.WithoutCancel(ctx), o)
	if err != nil {
		return errors.Join(err, console.Close())
	}
	l.closers = append(l.closers, guest.Close, console.Close)
	m.guest = guest
	return nil
}

// Guest returns the virtual machine of a server, or nil when it is none. Commands on such a
// server run beside the cable, not in the guest.
func (m *Machine) Guest() *vm.Machine { return m.guest }

// guestPatience is how long a guest may take to start, and to take customers once it
// was told its secrets: instructions are translated where the processor does not run them.
const guestPatience = 8 * time.Minute

// State asks a server's activation port for its state. It answers at the address of the machine's own.
func (l *Lab) State(ctx context.Context, m *Machine) (s activation.State, err error) {
	port := l.ActivationPort(m.own())
	defer port.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+m.Name+"/v1/state", nil)
	if err != nil {
		return s, err
	}
	resp, err := port.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return s, fmt.Errorf("server %s: %s", m.Name, resp.Status)
	}
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// own is the address of m that is there before the directory gives it others.
func (m *Machine) own() netip.Addr {
	if m.guest != nil {
		return m.Addresses[1].V4
	}
	return m.Addresses[0].V4
}

// AwaitGuest waits until a server that is a virtual machine asks for its secrets, as after
// each boot. It fails when the machine has ended.
func (l *Lab) AwaitGuest(ctx context.Context, m *Machine) error {
	var ended error
	err := await(ctx, guestPatience, "VPN server "+m.Name+" does not say that it awaits activation", func(ctx context.Context) bool {
		if end := m.guest.Ended(); end != "" {
			ended = fmt.Errorf("VPN server %s has %s: %s", m.Name, end, m.guest.Console().Last())
			return true
		}
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		s, err := l.State(attempt, m)
		return err == nil && s.Phase == activation.Awaiting
	})
	if err != nil {
		err = fmt.Errorf("%w; its console says: %s", err, m.guest.Console().Last())
	}
	return errors.Join(err, ended)
}
