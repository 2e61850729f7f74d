package scan

import "strings"

// Machine returns what an image must not say of the machine that made it. Names that are words, such
// as "builder" or "debian", are left out: they stand in programs by themselves. home and the
// directories are absolute paths; one of a single part, such as /root, is left out as well.
func Machine(host, user, home string, dirs ...string) []Needle {
	var all []Needle
	telling := func(s string) bool { return len(s) >= 6 && strings.ContainsAny(s, "0123456789-._") }
	if telling(host) {
		all = append(all, Needle{"host name of the builder", host})
	}
	if telling(user) {
		all = append(all, Needle{"user name of the builder", user})
	}
	for i, dir := range append([]string{home}, dirs...) {
		if dir = strings.TrimRight(dir, "/"); strings.Count(dir, "/") > 1 {
			all = append(all, Needle{[]string{"home directory of the builder", "directory of the build"}[min(i, 1)], dir})
		}
	}
	return all
}
