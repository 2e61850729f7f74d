package uplink

import "net/netip"

// Parse reads an address as the kernel would tell it.
func Parse(b []byte) (a netip.Addr, ours, ok bool) {
	e, ok := parse(b)
	return e.addr, e.ours, ok
}
