package lock

// Plan is what is wanted, from which a lock is made.
type Plan struct {
	Architecture string
	Toolchain    string // Go's name of it
	Suites       []SuiteSpec
	Backported   []string // source packages that may come from a suite of backports
	Sets         []Set
}

// SuiteSpec is a suite to take packages from. Of a package in several suites
// the newest version is taken, so security and other updates win.
type SuiteSpec struct {
	Name      string // codename
	Archive   string
	Backports bool // only for Plan.Backported
}

// Set is what one part of the build needs.
type Set struct {
	Name          string
	Want, Without []Entry
}

// Entry is a package with the reason why it is wanted, or left out.
type Entry struct{ Name, Why string }

// The archives of a [Plan].
const (
	Main     = "debian"
	Security = "debian-security"
)

// The sets of [Wanted].
const (
	VM       = "vm"       // the image for virtual machines
	Hardware = "hardware" // the image for real servers
	Tools    = "tools"    // what runs in the build
)

// Wanted is the plan of Lethe's image. What enters the image's root is decided
// file by file later; here are whole packages.
func Wanted() Plan {
	return Plan{
		Architecture: "amd64",
		Toolchain:    "go1.26.8",
		Suites: []SuiteSpec{
			{Name: "trixie", Archive: Main},
			{Name: "trixie-updates", Archive: Main},
			{Name: "trixie-security", Archive: Security},
			{Name: "trixie-backports", Archive: Main, Backports: true},
		},
		// linux-signed-amd64 holds the images signed by Debian, linux the rest of the kernel.
		Backported: []string{"linux", "linux-signed-amd64", "openvpn"},
		Sets: []Set{
			{Name: VM, Want: append(server(), Entry{"linux-image-cloud-amd64", "the kernel for virtual machines, with the module ovpn"}), Without: unused()},
			{Name: Hardware, Want: append(server(),
				Entry{"linux-image-amd64", "the kernel with drivers for servers, with the module ovpn"},
				Entry{"firmware-linux-free", "free firmware that drivers load"}), Without: unused()},
			{Name: Tools, Want: tools(), Without: []Entry{}},
		},
	}
}

// server is what every VPN server runs.
func server() []Entry {
	return []Entry{
		{"base-files", "the directories and names every system has"},
		{"charon-systemd", "IKEv2"},
		{"dbus-broker", "systemd's parts talk over it"},
		{"kmod", "loads kernel modules at boot"},
		{"libcharon-extra-plugins", "charon asks for logins by RADIUS"},
		{"libstrongswan-standard-plugins", "strongSwan's use of OpenSSL"},
		{"netbase", "names of protocols and services"},
		{"nftables", "firewall and byte counters"},
		{"openvpn", "OpenVPN with data channel offload"},
		{"systemd", "starts, confines and restarts the services"},
		{"tzdata", "UTC, which is all that programs may ask for"},
		{"udev", "finds devices and loads their drivers"},
		{"unbound", "the resolver"},
	}
}

// unused is what packages of the image depend on for their installation, or
// for uses that a read-only image does not have. It is neither fetched nor locked.
func unused() []Entry {
	const install = "runs when a package is installed; nothing is installed in the image"
	return []Entry{
		{"adduser", install},
		{"awk", "no interpreters in the image"},
		{"debconf", install},
		{"init-system-helpers", install},
		{"libpython3.13-stdlib", "unbound is linked with Python; without its library of modules it is dead code"},
		{"linux-base", install},
		{"initramfs-tools", "the image has an initramfs of its own"},
	}
}

// tools is what the build runs, in a tree made of these packages.
func tools() []Entry {
	return []Entry{
		{"mawk", "base-files wants one awk, and this is the smallest"},
		{"coreutils", "sets up the tree of tools itself"},
		{"dosfstools", "makes the EFI partition's file system"},
		{"erofs-utils", "makes the root file system"},
		{"kmod", "works out which modules need which"},
		{"mtools", "writes into the EFI partition without mounting it"},
		{"squashfs-tools", "makes the root file system, the alternative to EROFS"},
		{"systemd-boot-efi", "the stub that a unified kernel image begins with"},
		{"xorriso", "makes the ISO"},
		{"zstd", "packs the initramfs"},
	}
}
