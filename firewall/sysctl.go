package firewall

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// settings are the kernel's network settings of a VPN server
// (Documentation/networking/ip-sysctl.rst, nf_conntrack-sysctl.rst), below
// /proc/sys/net. "all" and "default" cover interfaces that exist and that will.
var settings = []struct{ name, value string }{
	// It is a router.
	{"ipv4/ip_forward", "1"},
	{"ipv6/conf/all/forwarding", "1"},
	{"ipv6/conf/default/forwarding", "1"},
	// Its own connections leave from the range that no listener is in.
	{"ipv4/ip_local_port_range", fmt.Sprintf("%d\t%d", FirstExitPort, LastExitPort)},
	// The kernel keeps no times, no amounts and no measurements of peers.
	{"netfilter/nf_conntrack_acct", "0"},
	{"netfilter/nf_conntrack_timestamp", "0"},
	{"netfilter/nf_conntrack_log_invalid", "0"},
	{"ipv4/tcp_no_metrics_save", "1"},
	// No customer's outer address stays in conntrack for longer than a dead peer is
	// waited for (OpenVPN pings every ten seconds).
	{"netfilter/nf_conntrack_udp_timeout", "30"},
	{"netfilter/nf_conntrack_udp_timeout_stream", "60"},
	// Nor after the end of a TCP connection, which the kernel tries to tell a vanished
	// peer for some seconds, not minutes.
	{"netfilter/nf_conntrack_tcp_timeout_fin_wait", "60"},
	{"netfilter/nf_conntrack_tcp_timeout_time_wait", "30"},
	{"ipv4/tcp_orphan_retries", "3"},
	// Nobody outside tells it where to send, and it writes no addresses to the log.
	{"ipv4/conf/all/rp_filter", "1"},
	{"ipv4/conf/default/rp_filter", "1"},
	{"ipv4/conf/all/log_martians", "0"},
	{"ipv4/conf/default/log_martians", "0"},
	{"ipv4/conf/all/accept_redirects", "0"},
	{"ipv4/conf/default/accept_redirects", "0"},
	{"ipv4/conf/all/secure_redirects", "0"},
	{"ipv4/conf/default/secure_redirects", "0"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/default/send_redirects", "0"},
	{"ipv4/conf/all/accept_source_route", "0"},
	{"ipv4/conf/default/accept_source_route", "0"},
	{"ipv6/conf/all/accept_redirects", "0"},
	{"ipv6/conf/default/accept_redirects", "0"},
	{"ipv6/conf/all/accept_source_route", "0"},
	{"ipv6/conf/default/accept_source_route", "0"},
	{"ipv4/icmp_echo_ignore_broadcasts", "1"},
	{"ipv4/icmp_ignore_bogus_error_responses", "1"},
}

// perInterface are settings that "all" does not override.
var perInterface = []struct{ name, value string }{
	{"rp_filter", "1"}, {"log_martians", "0"}, {"accept_redirects", "0"}, {"send_redirects", "0"}, {"secure_redirects", "0"},
}

// ApplySysctls sets the kernel's network settings of the calling thread's network
// namespace and reads each back; the first that does not take is the error.
func ApplySysctls() error { return applySysctls("/proc/sys/net") }

func applySysctls(root string) error {
	for _, s := range settings {
		if err := set(filepath.Join(root, s.name), s.value); err != nil {
			return err
		}
	}
	for _, s := range perInterface {
		// A missing directory gives no names; the loop above has noticed it.
		paths, _ := filepath.Glob(filepath.Join(root, "ipv4/conf/*", s.name))
		for _, path := range paths {
			if err := set(path, s.value); err != nil {
				return err
			}
		}
	}
	return nil
}

func set(path, value string) error {
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("network setting: %w", err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("network setting: %w", err)
	}
	if g := strings.TrimSpace(string(got)); g != value {
		return fmt.Errorf("network setting %s: got %q, want %q", path, g, value)
	}
	return nil
}
