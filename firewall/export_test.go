package firewall

// ParseAnswers reads a datagram as the kernel would send it and returns how many
// elements it tells of.
func ParseAnswers(b []byte) (int, error) {
	list, err := counts(parse(b))
	return len(list), err
}

// ApplySysctlsAt is ApplySysctls on a tree other than /proc/sys/net.
var ApplySysctlsAt = applySysctls
