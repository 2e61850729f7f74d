package deb

import (
	"cmp"
	"fmt"
	"strings"
)

// Version is a Debian version, [epoch:]upstream[-revision] (deb-version(7)).
type Version string

// Check says what is wrong with v, or nothing.
func (v Version) Check() error {
	epoch, upstream, revision := v.split()
	if upstream == "" || len(v) > 200 {
		return fmt.Errorf("version %.40q has no upstream part or is too long", string(v))
	}
	for _, r := range epoch {
		if r < '0' || r > '9' {
			return fmt.Errorf("version %.40q: epoch is not a number", string(v))
		}
	}
	for _, r := range upstream + revision {
		if !letter(byte(r)) && !digit(byte(r)) && !strings.ContainsRune(".+~-:", r) || r > 127 {
			return fmt.Errorf("version %.40q: character %q", string(v), r)
		}
	}
	return nil
}

func (v Version) split() (epoch, upstream, revision string) {
	s := string(v)
	if i := strings.IndexByte(s, ':'); i >= 0 {
		epoch, s = s[:i], s[i+1:]
	}
	if i := strings.LastIndexByte(s, '-'); i >= 0 {
		return epoch, s[:i], s[i+1:]
	}
	return epoch, s, ""
}

// Compare returns -1, 0 or 1 as v is older than, equal to or newer than w.
func (v Version) Compare(w Version) int {
	ve, vu, vr := v.split()
	we, wu, wr := w.split()
	return cmp.Or(compareNumber(ve, we), comparePart(vu, wu), comparePart(vr, wr))
}

func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func digit(c byte) bool  { return c >= '0' && c <= '9' }

// weight orders what is not a digit: the tilde before the end, the end before
// letters, letters before the rest.
func weight(s string) int {
	switch {
	case s == "" || digit(s[0]):
		return 0
	case s[0] == '~':
		return -1
	case letter(s[0]):
		return int(s[0])
	}
	return int(s[0]) + 256
}

func comparePart(a, b string) int {
	for a != "" || b != "" {
		for a != "" && !digit(a[0]) || b != "" && !digit(b[0]) {
			if c := cmp.Compare(weight(a), weight(b)); c != 0 {
				return c
			}
			a, b = a[1:], b[1:] // equal weights other than 0 are equal characters
		}
		na, nb := digits(a), digits(b)
		if c := compareNumber(a[:na], b[:nb]); c != 0 {
			return c
		}
		a, b = a[na:], b[nb:]
	}
	return 0
}

func digits(s string) (n int) {
	for n < len(s) && digit(s[n]) {
		n++
	}
	return n
}

// compareNumber compares decimal numbers of any length.
func compareNumber(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}
