package firewall

import (
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ParseAnswers reads a datagram as the kernel would send it and returns how many
// elements it tells of.
func ParseAnswers(b []byte) (int, error) {
	list, err := counts(parse(b))
	return len(list), err
}

// MarkOrder returns the name of the order in which rules of the connection marks' chain, each given by
// the names of its expressions, make numbers of bytes.
func MarkOrder(chain string, rules ...[]string) string {
	var all []message
	for _, names := range rules {
		all = append(all, message{body: attributes(func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_RULE_CHAIN, chain)
			nest(ae, unix.NFTA_RULE_EXPRESSIONS, func(ae *netlink.AttributeEncoder) {
				for _, n := range names {
					nest(ae, unix.NFTA_LIST_ELEM, func(ae *netlink.AttributeEncoder) { ae.String(unix.NFTA_EXPR_NAME, n) })
				}
			})
		})})
	}
	return fmt.Sprint(markOrder(all))
}

// ApplySysctlsAt is ApplySysctls on a tree other than /proc/sys/net.
var ApplySysctlsAt = applySysctls
