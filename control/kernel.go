package control

import (
	"net"
	"net/netip"
	"os"
	"strings"

	"lethe/fault"
)

// noMetrics is the setting that keeps the kernel from measuring peers
// (Documentation/networking/ip-sysctl.rst in Linux).
const noMetrics = "/proc/sys/net/ipv4/tcp_no_metrics_save"

// forgetful refuses to listen where the kernel would keep customers' addresses: as
// it comes, Linux remembers every TCP peer, long after the connection
// (ip-tcp_metrics(8)). Peers on the same machine are no customers.
func forgetful(setting string, listen ...string) error {
	for _, l := range listen {
		host, _, _ := net.SplitHostPort(l)
		if a, err := netip.ParseAddr(host); err == nil && a.IsLoopback() || host == "localhost" {
			continue
		}
		b, err := os.ReadFile(setting)
		if err != nil {
			return fault.Wrap(fault.Internal, "cannot tell whether the kernel keeps customers' addresses", err)
		}
		if strings.TrimSpace(string(b)) != "1" {
			return fault.New(fault.Unavailable, "this machine's kernel keeps the addresses of customers (tcp_metrics)").
				WithHint("sysctl -w net.ipv4.tcp_no_metrics_save=1, and install systemd/lethe-control.sysctl")
		}
	}
	return nil
}
