package seal

// Setting is a value of the table, for tests.
type Setting struct {
	Path, Value, Why string
	Maybe, First     bool
}

// Settings returns the table.
func Settings() (all []Setting) {
	for _, s := range settings {
		all = append(all, Setting{s.path, s.value, s.why, s.maybe, s.first})
	}
	return all
}

// ParseMounts is parseMounts: how many mounts there are, and which do not fit.
func ParseMounts(text string) (n int, other []string, err error) {
	all, err := parseMounts(text)
	for _, m := range all {
		if !m.fits() {
			other = append(other, m.at)
		}
	}
	return len(all), other, err
}
