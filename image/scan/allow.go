package scan

import "strings"

// Allowed is something that looks like a secret and is none.
type Allowed struct {
	Path   string // of the file, or how it begins when it ends with *
	Rule   string
	SHA256 string // of what stands there; "" is any, for files whose whole purpose it is
	Reason string
}

func (a Allowed) matches(f Finding) bool {
	prefix, open := strings.CutSuffix(a.Path, "*")
	return a.Rule == f.Rule && (a.Path == f.Path || open && strings.HasPrefix(f.Path, prefix)) && (a.SHA256 == "" || a.SHA256 == f.Digest.String())
}

// Known is what is harmless in our images, each with its reason.
func Known() []Allowed {
	return []Allowed{
		{"lethe/root", "random", "", "the digest of the root file system, which the initramfs is there to hold (package layout)"},
		{"lethe/medium", "random", "", "the digest of the medium, which the initramfs is there to hold (package layout)"},
		{"lethe/aliases", "random", "", "identifiers of devices, from the kernel's modules"},
		{"usr/lib/lethe/aliases", "random", "", "identifiers of devices, from the kernel's modules"},
		{"usr/lib/os-release", "random", "", "the commit that the image was built from"},
		{".osrel", "random", "", "the commit that the image was built from"},
		{"usr/lib/systemd/catalog/*", "random", "", "identifiers of messages, the same in every systemd"},
		{"usr/lib/pcrlock.d/*", "random", "", "digests of what firmware measures everywhere"},
	}
}
