package account

import (
	"regexp"
	"strings"

	"lethe/fault"
	"lethe/private"
)

// The local part is a dot-atom (RFC 5322, section 3.2.3), the domain two or
// more host-name labels (RFC 1123, section 2.1) of which the last is not a
// number.
var (
	localForm  = regexp.MustCompile("^[a-z0-9!#$%&'*+/=?^_`{|}~-]+(\\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*$")
	domainForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

// NormalizeEmail returns the form of an e-mail address that accounts are found
// by: without surrounding white space and in small letters. It fails with
// fault.Invalid for what cannot be an address: quoted local parts, address
// literals, comments and characters beyond ASCII are refused, as are more than
// 64 bytes before and 254 altogether (RFC 5321, section 4.5.3.1). The error
// does not repeat the address.
//
// Small letters for the local part too: RFC 5321 lets a mail system tell
// letters' case apart, none in use does, and customers do not.
func NormalizeEmail(email string) (private.Value[string], error) {
	s := strings.Trim(email, " \t\r\n")
	if len(s) > 254 {
		return private.Value[string]{}, invalidEmail("it has more than 254 characters")
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return private.Value[string]{}, invalidEmail("it has a character that is not printable ASCII; write an international domain in its xn-- form")
		}
	}
	local, domain, found := strings.Cut(strings.ToLower(s), "@")
	if !found || len(local) > 64 || !localForm.MatchString(local) || !domainForm.MatchString(domain) {
		return private.Value[string]{}, invalidEmail("an address looks like name@example.org")
	}
	return private.Of(local + "@" + domain), nil
}

func invalidEmail(hint string) error {
	return fault.New(fault.Invalid, "this is not an e-mail address").WithHint(hint)
}
