package ikev2

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"

	"lethe/device"
)

// libipsecDevice is the TUN device of kernel-libipsec. Charon makes it when it starts, names it so, and it
// goes when charon does.
const libipsecDevice = "ipsec0"

// TunnelMTU is what fits into ESP in UDP over IPv6 over Ethernet, and kernel-libipsec's own.
const TunnelMTU = 1400

// interfaceID is the XFRM interface identifier of a daemon; 0 would mean none.
func interfaceID(daemon uint8) uint32 { return uint32(daemon) + 1 }

// What a customer's machine has instead, where other IPsec may be at work.
const (
	clientInterfaceID = 0x6c657468
	clientDevice      = "lethe-ike"
)

// Offload reports whether the kernel does ESP with AES-GCM and has XFRM interfaces. It asks by making
// both and taking them away again.
func Offload() bool {
	probe := &netlink.Xfrmi{LinkAttrs: netlink.LinkAttrs{Name: "lethe-probe"}, Ifid: 1<<32 - 1}
	if netlink.LinkAdd(probe) != nil {
		return false
	}
	state := &netlink.XfrmState{
		Src: net.IPv6loopback, Dst: net.IPv6loopback, Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL, Spi: 1<<32 - 2,
		Aead: &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: make([]byte, 36), ICVLen: 128}, Ifid: 1<<32 - 1,
	}
	err := netlink.XfrmStateAdd(state)
	if err == nil {
		err = netlink.XfrmStateDel(state)
	}
	return errors.Join(err, netlink.LinkDel(probe)) == nil
}

// prepare makes the directory of the control socket. The agent owns it and the process's group may use it,
// so nobody else reaches the socket inside, whatever its own mode.
func prepare(dir string, gid uint32) error {
	err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700), os.Chown(dir, -1, int(gid)), os.Chmod(dir, 0o730))
	if err != nil {
		return fmt.Errorf("ikev2: directory of charon: %w", err)
	}
	return nil
}

// makeDevice makes the XFRM interface and removes what a charon that was killed left in the kernel: its SAs
// and policies are nobody's. Making the interface again changes nothing.
func makeDevice(in Instance) error {
	return makeInterface(in.Device, interfaceID(in.Daemon), errors.Join(netlink.XfrmStateFlush(0), netlink.XfrmPolicyFlush()))
}

// makeInterface makes an XFRM interface, unless there is one of that name; err is from before.
func makeInterface(name string, id uint32, err error) error {
	if _, absent := netlink.LinkByName(name); absent != nil {
		err = errors.Join(err, netlink.LinkAdd(&netlink.Xfrmi{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: TunnelMTU}, Ifid: id}))
	}
	if err != nil {
		return fmt.Errorf("ikev2: XFRM interface %s: %w", name, err)
	}
	return nil
}

// ClientDevice returns the name of the device that a customer's packets will go into. Without offload it is
// that of the TUN device which the next charon to start here will make: the first that is free.
func ClientDevice(offload bool) string {
	if offload {
		return clientDevice
	}
	for n := 0; ; n++ {
		name := fmt.Sprintf("ipsec%d", n)
		if _, err := netlink.LinkByName(name); err != nil {
			return name
		}
	}
}

// OpenClientDevice makes the XFRM interface of a customer's machine; CloseClientDevice removes it, and with it
// the SAs and policies that a charon which was killed left there. What is not of that interface is left alone.
func OpenClientDevice() error {
	return makeInterface(clientDevice, clientInterfaceID, sweep(clientInterfaceID))
}

// CloseClientDevice undoes [OpenClientDevice].
func CloseClientDevice() error {
	return errors.Join(sweep(clientInterfaceID), device.Remove(clientDevice))
}

// sweep removes the SAs and policies of an XFRM interface.
func sweep(id int) error {
	states, err := netlink.XfrmStateList(netlink.FAMILY_ALL)
	for _, s := range states {
		if s.Ifid == id {
			err = errors.Join(err, netlink.XfrmStateDel(&s))
		}
	}
	policies, e := netlink.XfrmPolicyList(netlink.FAMILY_ALL)
	for _, p := range policies {
		if p.Ifid == id {
			e = errors.Join(e, netlink.XfrmPolicyDel(&p))
		}
	}
	return errors.Join(err, e)
}
