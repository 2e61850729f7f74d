package root

// lib is where Debian has libraries; plugins are charon's.
const (
	lib     = "usr/lib/x86_64-linux-gnu/"
	plugins = "usr/lib/ipsec/plugins/libstrongswan-"
)

// picks is every file that comes from a package. What is not here stays out: shells and
// interpreters, package managers, documentation, what a unit of ours does not start.
//
// Libraries are listed by their soname and a star, which takes the link and the file.
// That each is needed, and that none is missing, is checked (elf.go).
var picks = []pick{
	{"systemd", "the first process; what it becomes to start a service; what it becomes to stop the machine", []string{
		"usr/lib/systemd/systemd", "usr/lib/systemd/systemd-executor", "usr/lib/systemd/systemd-shutdown"}},
	{"systemd", "addresses of the uplinks, by DHCP and router advertisements", []string{"usr/lib/systemd/systemd-networkd"}},
	{"systemd", "targets and services by which systemd stops the machine, and names that units order themselves by", []string{
		units + "shutdown.target", units + "umount.target", units + "final.target",
		units + "reboot.target", units + "systemd-reboot.service",
		units + "poweroff.target", units + "systemd-poweroff.service",
		units + "network-pre.target", units + "network.target"}},
	{"libsystemd-shared", "systemd's own libraries", []string{
		lib + "systemd/libsystemd-core-*.so", lib + "systemd/libsystemd-shared-*.so"}},

	{"openvpn", "OpenVPN", []string{"usr/sbin/openvpn"}},
	{"charon-systemd", "IKEv2", []string{charon}},
	{"strongswan-libcharon", "charon", []string{
		"usr/lib/ipsec/libcharon.so.0*", plugins + "socket-default.so"}},
	{"libstrongswan", "charon", []string{"usr/lib/ipsec/libstrongswan.so.0*",
		plugins + "random.so", plugins + "nonce.so",
		plugins + "pem.so", plugins + "openssl.so",
		plugins + "kernel-netlink.so"}},
	{"strongswan-swanctl", "charon's control socket", []string{
		plugins + "vici.so"}},
	{"libcharon-extra-plugins", "charon asks for logins by RADIUS", []string{"usr/lib/ipsec/libradius.so.0*",
		plugins + "eap-radius.so", plugins + "eap-identity.so"}},
	{"unbound", "the resolver", []string{"usr/sbin/unbound"}},
	{"nftables", "loads the firewall", []string{"usr/sbin/nft"}},
	{"netbase", "nft's names of protocols", []string{"etc/protocols"}},

	{"libc6", "every program that is not ours", []string{"usr/lib64/ld-linux-x86-64.so.2", interpreter,
		lib + "libc.so.6", lib + "libm.so.6"}},
	{"libgcc-s1", "glibc opens it when a thread is cancelled, as charon's are", []string{lib + "libgcc_s.so.1"}},
	{"libssl3t64", "OpenSSL: OpenVPN, charon, unbound", []string{lib + "libssl.so.3*", lib + "libcrypto.so.3*"}},
	{"libcap-ng0", "OpenVPN", []string{lib + "libcap-ng.so.0*"}},
	{"libnl-3-200", "OpenVPN", []string{lib + "libnl-3.so.200*"}},
	{"libnl-genl-3-200", "OpenVPN", []string{lib + "libnl-genl-3.so.200*"}},
	{"liblzo2-2", "OpenVPN", []string{lib + "liblzo2.so.2*"}},
	{"liblz4-1", "OpenVPN", []string{lib + "liblz4.so.1*"}},
	{"libpkcs11-helper1t64", "OpenVPN", []string{lib + "libpkcs11-helper.so.1*"}},
	{"libsystemd0", "OpenVPN, charon, unbound", []string{lib + "libsystemd.so.0*"}},
	{"libevent-2.1-7t64", "unbound", []string{lib + "libevent-2.1.so.7*"}},
	{"libpython3.13", "unbound is linked with it; without Python's modules it can run nothing", []string{lib + "libpython3.13.so.1.0"}},
	{"libhiredis1.1.0", "unbound", []string{lib + "libhiredis.so.1.1.0"}},
	{"libnghttp2-14", "unbound", []string{lib + "libnghttp2.so.14*"}},
	{"libprotobuf-c1", "unbound", []string{lib + "libprotobuf-c.so.1*"}},
	{"libnftables1", "nft", []string{lib + "libnftables.so.1*"}},
	{"libedit2", "nft", []string{lib + "libedit.so.2*"}},
	{"libapparmor1", "systemd", []string{lib + "libapparmor.so.1*"}},
	{"libselinux1", "systemd", []string{lib + "libselinux.so.1"}},
	{"libpam0g", "systemd", []string{lib + "libpam.so.0*"}},
	{"libseccomp2", "systemd: filters of system calls", []string{lib + "libseccomp.so.2*"}},
	{"libmount1", "systemd", []string{lib + "libmount.so.1*"}},
	{"libblkid1", "systemd", []string{lib + "libblkid.so.1*"}},
	{"libacl1", "systemd", []string{lib + "libacl.so.1*"}},
	{"libcap2", "systemd", []string{lib + "libcap.so.2*"}},
	{"libcrypt1", "systemd", []string{lib + "libcrypt.so.1*"}},
	{"libaudit1", "systemd", []string{lib + "libaudit.so.1*"}},
	{"zlib1g", "OpenSSL", []string{lib + "libz.so.1*"}},
	{"libzstd1", "OpenSSL", []string{lib + "libzstd.so.1*"}},
	{"libtinfo6", "libedit", []string{lib + "libtinfo.so.6*"}},
	{"libbsd0", "libedit", []string{lib + "libbsd.so.0*"}},
	{"libmd0", "libbsd", []string{lib + "libmd.so.0*"}},
	{"libxxhash0", "liblz4", []string{lib + "libxxhash.so.0*"}},
	{"libmnl0", "libnftables", []string{lib + "libmnl.so.0*"}},
	{"libnftnl11", "libnftables", []string{lib + "libnftnl.so.11*"}},
	{"libxtables12", "libnftables", []string{lib + "libxtables.so.12*"}},
	{"libjansson4", "libnftables", []string{lib + "libjansson.so.4*"}},
	{"libgmp10", "libnftables", []string{lib + "libgmp.so.10*"}},
	{"libexpat1", "libpython", []string{lib + "libexpat.so.1*"}},
	{"libpcre2-8-0", "libselinux", []string{lib + "libpcre2-8.so.0*"}},
}

// charon opens its plugins by the names in its configuration (package ikev2).
const charon = "usr/sbin/charon-systemd"

// byName are the libraries that programs open by name.
var byName = []opened{
	{lib + "libgcc_s.so.1", charon, "pthread_cancel(3), by which its threads end"},
	{plugins + "socket-default.so", charon, "its ports"},
	{plugins + "random.so", charon, "random numbers"},
	{plugins + "nonce.so", charon, "nonces"},
	{plugins + "pem.so", charon, "credentials come in by it, in DER too"},
	{plugins + "openssl.so", charon, "all cryptography"},
	{plugins + "kernel-netlink.so", charon, "ESP in the kernel"},
	{plugins + "vici.so", charon, "its control socket"},
	{plugins + "eap-radius.so", charon, "logins by RADIUS"},
	{plugins + "eap-identity.so", charon, "user names"},
}
