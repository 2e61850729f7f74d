package house_test

// leaves may be imported by everybody: they know nothing of the rest.
var leaves = []string{"private", "fault", "event", "day", "protocol", "version", "notify", "memfd"}

// edges says what else each package may import. Adapters (api, firewall,
// openvpn, radius, resolver, store/sqlite) never import each other; node, control,
// client and lab put things together.
var edges = map[string][]string{
	"private": {}, "fault": {}, "event": {}, "day": {}, "protocol": {}, "version": {}, "notify": {}, "memfd": {},
	"internal/house": {}, "internal/testkit": {}, "internal/command": {},
	"canary":     {},
	"inventory":  {},
	"spec":       {},
	"location":   {},
	"daemon":     {},
	"ratelimit":  {},
	"secret":     {},
	"authdb":     {},
	"usage":      {"location"},
	"ledger":     {"location", "usage"},
	"session":    {"ledger", "location", "usage"},
	"account":    {},
	"activation": {"attest", "attest/device", "secret"},
	"uplink":     {},
	// slot counts connected devices. Its stores know neither accounts nor each
	// other; slottest is the contract that both are tested against.
	"slot":          {"account"},
	"slot/memory":   {"slot"},
	"slot/valkey":   {"slot"},
	"slot/slottest": {"slot"},
	"bundle":        {"authdb", "dsse"},
	"geoip":         {"usage"},
	// publish knows the domain, not how the store keeps it.
	"publish": {"authdb", "bundle", "geoip", "location", "spec"},
	"store":   {"account", "location", "publish", "usage"},
	// storetest is the contract that every store is tested against.
	"store/storetest": {"account", "location", "publish", "store", "usage"},
	"store/sqlite":    {"account", "location", "publish", "store", "usage"},
	"api":             {"account", "location", "profile", "usage"},
	// the app's side of the API shares its types only.
	"api/client": {"account", "location"},
	"firewall":   {"session"},
	"resolver":   {"daemon"},
	"device":     {"session"},
	// profile renders what systems' own clients read; it is pure, so that the
	// app and the control plane give the same bytes.
	"profile": {"location"},
	"openvpn": {"daemon", "device", "location", "profile", "session", "spec"},
	"vici":    {},
	"ikev2":   {"daemon", "device", "location", "profile", "session", "spec", "vici"},
	"radius":  {"session"},
	"node": {"internal/command", "authdb", "bundle", "firewall", "geoip", "ikev2", "ledger", "location", "openvpn", "radius", "resolver", "secret",
		"session", "spec", "usage", "activation", "image/layout", "uplink"},
	"control": {"internal/command", "account", "api", "authdb", "bundle", "geoip", "location", "publish", "ratelimit", "slot",
		"slot/memory", "slot/valkey", "store", "store/sqlite", "usage"},
	// the app renders the same client configuration that systems' own clients get, and drives OpenVPN and charon.
	"client":  {"internal/command", "account", "api/client", "daemon", "ikev2", "location", "openvpn", "profile", "vici"},
	"lab/pki": {},
	"lab":     {"internal/command", "lab/pki", "client", "control", "location", "secret", "bundle", "spec", "geoip", "image/layout", "activation", "image/trial", "image/vm"},
	// the image's inputs: reading, keeping and pinning them; image is the command.
	"image/deb":   {},
	"image/store": {},
	"image/lock":  {"image/deb", "image/store"},
	"image":       {"internal/command", "image/deb", "image/lock", "image/release/cli", "image/store", "image/build", "image/inspect", "image/medium", "image/scan", "image/trial", "image/vm"},
	// image/tree is files before any file system is made of them; image/layout is what
	// the builder and the programs in the image agree on.
	"image/tree":   {},
	"image/layout": {},
	// archivetest is an archive, signed and served, for tests.
	"image/archivetest": {"image/lock"},
	// image/cms is the signature form that firmware takes, image/pe puts it into boot images.
	"image/cms": {},
	"image/pe":  {"image/cms"},
	// dsse is the form of signed statements: bundles' and releases'.
	"dsse":      {},
	"image/pcr": {"image/pe"},
	// image/secureboot writes firmware variables, image/pcr what booting with them measures.
	"image/secureboot": {"dsse", "image/cms"},
	// image/release/cli is the commands around it, for lethe-image.
	"image/release/cli": {"image/cms", "image/pcr", "image/release", "image/secureboot", "image/token", "image/compare"},
	// image/token is the only package that needs cgo; programs take its keys as crypto.Signer.
	"image/token": {},
	// attest judges evidence and is pure; its server's side has the TPM, and nothing of the activator's.
	"attest":            {"attest/eventlog", "dsse", "image/pcr", "image/release"},
	"attest/eventlog":   {"image/pcr"},
	"attest/device":     {"attest", "attest/eventlog"},
	"attest/attesttest": {"attest", "attest/eventlog", "dsse", "image/pcr", "image/release"},
	// activator keeps inventory, releases and keys; it meets neither accounts nor customers.
	"activator": {"internal/command", "attest", "attest/eventlog", "dsse", "image/layout", "image/release", "secret"},
	// image/release signs and verifies what builders made; it makes no image.
	"image/release": {"dsse", "image/cms", "image/pe"},
	// image/gpt is for whoever looks at the medium: the first process of the image, and inspect.
	"image/gpt": {},
	// boot is the first process of the image; it and seal load modules by boot/kmod.
	"boot":      {"boot/kmod", "image/gpt", "image/layout", "image/pe"},
	"boot/kmod": {"image/layout"},
	// image/root decides what is in the image.
	"image/root": {"image/deb", "image/layout", "image/tree", "systemd"},
	"seal":       {"boot/kmod", "image/layout"},
	// boottest boots virtual machines for the tests of boot and seal.
	"boot/boottest":         {"boot/kmod", "image", "image/layout", "image/lock", "image/store", "image/tree"},
	"boot/boottest/init":    {"boot", "boot/boottest"},
	"boot/boottest/seal":    {"boot/boottest", "seal"},
	"boot/boottest/manager": {},
	// readers of what is on the medium, for inspect and compare: nothing of it is mounted.
	"image/squashfs": {"image/tree"},
	"image/fat":      {"image/tree"},
	"image/iso9660":  {"image/tree"},
	// image/medium opens them all; image/scan looks for secrets, image/inspect says what is there, image/compare what differs.
	"image/medium":            {"image/fat", "image/gpt", "image/iso9660", "image/layout", "image/pe", "image/squashfs", "image/tree"},
	"image/medium/mediumtest": {"image/gpt", "image/layout", "image/medium", "image/tree"},
	"image/scan":              {"image/layout", "image/medium", "image/tree"},
	"image/inspect":           {"image/layout", "image/medium", "image/scan", "image/tree"},
	"image/compare":           {"image/medium", "image/tree", "image/gpt"},
	// image/sandbox runs the tools that make an image; image/build puts the image together.
	"image/sandbox":   {},
	"image/build":     {"image/deb", "image/gpt", "image/layout", "image/lock", "image/medium", "image/pcr", "image/pe", "image/release", "image/root", "image/sandbox", "image/scan", "image/store", "image/tree"},
	"image/imagetest": {},
	// systemd is units, for the image and for whoever installs by hand.
	"systemd": {},
	// image/vm is a machine, image/trial signs what it shall boot for one try.
	"image/vm":    {},
	"image/trial": {"image/cms", "image/pcr", "image/release", "image/secureboot"},
}

// harness names the packages that exist for trying and testing: they hold no
// customer's data and never run on a provider's machine.
var harness = map[string]bool{"test": true, "lab": true, "lab/pki": true, "internal/testkit": true, "store/storetest": true, "slot/slottest": true,
	"image/archivetest":       true,
	"boot/boottest":           true,
	"boot/boottest/init":      true,
	"boot/boottest/seal":      true,
	"boot/boottest/manager":   true,
	"image/medium/mediumtest": true,
	"image/imagetest":         true,
	"attest/attesttest":       true}

// logger names packages that may import log for libraries that insist on a
// *log.Logger; package event makes one that drops.
var logger = map[string]bool{"api": true}

// reveals counts the calls of private.Value.Reveal by package.
var reveals = map[string]int{
	"account":      6,
	"activator":    4,
	"api":          4,
	"api/client":   4,
	"bundle":       2,
	"client":       13,
	"control":      9,
	"ikev2":        6,
	"node":         5,
	"openvpn":      10,
	"profile":      1,
	"publish":      6,
	"radius":       1,
	"ratelimit":    1,
	"secret":       7,
	"session":      4,
	"slot":         3,
	"slot/valkey":  1,
	"store":        2,
	"store/sqlite": 6,
	"usage":        1,
}
