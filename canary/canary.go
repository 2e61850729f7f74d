// Package canary looks for marks: values that were put into a service on purpose,
// such as a user name, an address or a block of payload, and that must not come
// out of it anywhere.
//
// A [Mark] knows the many forms in which its value may lie about: as text in any
// case, in UTF-16, hexadecimal, base64, escaped, reversed, as DNS labels, as the
// bytes of an address in either order, as a digest (encode.go). A [Set] finds all
// forms of all marks in one pass over a stream (set.go), also inside gzip members
// (search.go). A [Hit] says where and in which form, never the value.
//
// Bytes that mean nothing hold short forms by chance: the four bytes of an IPv4
// address stand once in 4 GiB of random data, and the 64 MiB that one Argon2 has
// filled are random data. Hits of such forms are [Hit.Weak], and [Hit.Noise] where
// the bytes around them have no pattern. [Confirmed] wants two marks in one form on
// one surface before it believes them, and far more amid noise; a leak gives that as
// soon as two customers were there. [Set.Chance] says how many chance hits to expect.
package canary

import (
	"errors"
	"fmt"
	"net/netip"
)

// Mark is a value to look for. Printing it shows its name alone.
type Mark struct {
	name  string
	forms []form
}

// form is one way in which a value is written.
type form struct {
	encoding string
	bytes    []byte
	fold     bool // the case of ASCII letters does not matter
}

// Name returns the mark's name.
func (m Mark) Name() string { return m.name }

// Format implements [fmt.Formatter], so that no verb reaches the value.
func (m Mark) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(m.name)) }

// Text returns the mark of a text, for instance a user name, a password or an
// e-mail address.
func Text(name, value string) Mark {
	return of(name, len(value), textForms("", value))
}

// Domain returns the mark of a DNS name. Its first label counts as well: the rest
// of the name may be anybody's.
func Domain(name, value string) Mark {
	return of(name, len(value), domainForms(value))
}

// Address returns the mark of an IPv4 or IPv6 address.
func Address(name string, a netip.Addr) Mark {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return of(name, minForm, forms4(a))
	}
	return of(name, minForm, forms6(a))
}

// Network returns the mark of a network of 24 (IPv4) or 64 (IPv6) bits.
func Network(name string, p netip.Prefix) Mark {
	return of(name, minForm, networkForms(p.Masked()))
}

// Bytes returns the mark of a block of bytes, for instance payload.
func Bytes(name string, value []byte) Mark {
	return of(name, len(value), byteForms("", value))
}

// Number returns the mark of a number, for instance a sum of bytes.
func Number(name string, n uint64) Mark {
	return of(name, minForm, numberForms(n))
}

// of makes a mark of a value of that many bytes; one that is too short has no form.
func of(name string, size int, all []form) Mark {
	if size < minForm {
		return Mark{name: name}
	}
	return Mark{name, distinct(all)}
}

// Hit is one place where a mark was found.
type Hit struct {
	Surface  string // what was searched, as the caller calls it; "!gzip@N" is added inside a member at N
	Offset   int64  // of the first occurrence
	Mark     string // name of the mark
	Encoding string
	Count    int  // occurrences in this form
	Weak     bool // the form is so short that chance may have made it
	Noise    bool // every occurrence stands amid bytes as in random data
}

// String describes h.
func (h Hit) String() string {
	s := fmt.Sprintf("%s: %s as %s at %d", h.Surface, h.Mark, h.Encoding, h.Offset)
	if h.Count > 1 {
		s += fmt.Sprintf(", %d times", h.Count)
	}
	return s
}

// Confirmed returns the hits that are no chance: of the weak ones those that share
// their form and surface with another mark. Those amid noise count only where there
// are noiseMarks: a structure that holds an address, a packet or a table has
// neighbours with a pattern.
func Confirmed(hits []Hit) []Hit {
	type key struct{ surface, encoding string }
	type marks map[string]bool
	clear, noisy := map[key]marks{}, map[key]marks{}
	for _, h := range hits {
		k, in := key{h.Surface, h.Encoding}, clear
		if h.Noise {
			in = noisy
		}
		if in[k] == nil {
			in[k] = marks{}
		}
		in[k][h.Mark] = true
	}
	var sure []Hit
	for _, h := range hits {
		k := key{h.Surface, h.Encoding}
		if !h.Weak || !h.Noise && len(clear[k]) > 1 || len(noisy[k]) >= noiseMarks {
			sure = append(sure, h)
		}
	}
	return sure
}

// noiseMarks different marks in one form amid noise are no chance: where one is
// expected, eight come once in 100,000 searches.
const noiseMarks = 8

// Form sizes in bytes.
const (
	minForm  = 4    // shorter ones are everywhere
	maxForm  = 4096 // longer ones would not fit twice into the overlap of two reads
	weakForm = 6    // shorter ones are weak
)

func (m Mark) check() error {
	if m.name == "" || len(m.forms) == 0 {
		return errors.New("canary: a mark without a name or a value of at least four bytes")
	}
	for _, f := range m.forms {
		if len(f.bytes) > maxForm {
			return fmt.Errorf("canary: mark %s: its form %s has %d bytes, want at most %d", m.name, f.encoding, len(f.bytes), maxForm)
		}
	}
	return nil
}
