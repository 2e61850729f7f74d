package geoip

import (
	"bytes"
	"encoding/binary"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// Network is an address range with what is known of it.
type Network struct {
	Prefix  netip.Prefix
	Country string // ISO 3166-1 code, or empty
	ASN     uint32 // autonomous system, or 0
	Name    string // of the autonomous system
}

// Build reads a libloc database (version 1) and writes a MaxMind DB file with
// its networks and, over them, the extra ones. The same input gives the same
// bytes. It returns the number of networks of the source.
func Build(w io.Writer, source []byte, extra []Network) (int, error) {
	loc, err := parseLibloc(source)
	if err != nil {
		return 0, err
	}
	tree, err := mmdbwriter.New(mmdbwriter.Options{
		BuildEpoch: loc.created, DatabaseType: "Lethe-Country-ISP", RecordSize: 28, IPVersion: 6, Languages: []string{"en"},
		IncludeReservedNetworks: true, KeyGenerator: byContent{},
		Description: map[string]string{
			"en": "Country and provider of addresses. Derived from the IPFire Location database " +
				"(https://location.ipfire.org), CC BY-SA 4.0; this file is under the same licence.",
		},
	})
	if err != nil {
		return 0, fmt.Errorf("geoip: %w", err)
	}
	n := 0
	insert := func(net Network) error {
		n++
		return tree.Insert(ipNet(net.Prefix), record(net))
	}
	if err := loc.walk(func(net Network) error {
		err := insert(net)
		var aliased *mmdbwriter.AliasedNetworkError
		if errors.As(err, &aliased) {
			// 6to4, Teredo and mapped addresses are aliases of IPv4 in this
			// format; an entry of their own cannot exist.
			n--
			return nil
		}
		return err
	}); err != nil {
		return 0, fmt.Errorf("geoip: %w", err)
	}
	found := n
	for _, e := range extra {
		if err := insert(e); err != nil {
			return 0, fmt.Errorf("geoip: extra network: %w", err)
		}
	}
	if _, err := tree.WriteTo(w); err != nil {
		return 0, fmt.Errorf("geoip: write: %w", err)
	}
	return found, nil
}

// record uses the field names of MaxMind's files, so that other readers
// understand ours.
func record(n Network) mmdbtype.Map {
	m := mmdbtype.Map{}
	if n.Country != "" {
		m["country"] = mmdbtype.Map{"iso_code": mmdbtype.String(n.Country)}
	}
	if n.ASN != 0 {
		m["autonomous_system_number"] = mmdbtype.Uint32(n.ASN)
		if n.Name == "" {
			n.Name = fmt.Sprintf("AS%d", n.ASN)
		}
	}
	if n.Name != "" {
		m["autonomous_system_organization"] = mmdbtype.String(n.Name)
	}
	return m
}

// byContent tells equal records from different ones by the text in them, which
// is several times faster than the library's hash of their encoding.
type byContent struct{}

// Key implements [mmdbwriter.KeyGenerator].
func (byContent) Key(v mmdbtype.DataType) ([]byte, error) {
	m := v.(mmdbtype.Map)
	country, _ := m["country"].(mmdbtype.Map)
	iso, _ := country["iso_code"].(mmdbtype.String)
	asn, _ := m["autonomous_system_number"].(mmdbtype.Uint32)
	name, _ := m["autonomous_system_organization"].(mmdbtype.String)
	key := binary.BigEndian.AppendUint32(nil, uint32(asn))
	return append(append(append(key, iso...), 0), name...), nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	bits := p.Addr().BitLen()
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), bits)}
}

// ParseExtra reads extra networks from CSV lines "prefix,country,asn,name";
// lines that begin with # are comments.
func ParseExtra(r io.Reader) ([]Network, error) {
	c := csv.NewReader(r)
	c.Comment, c.FieldsPerRecord, c.TrimLeadingSpace = '#', 4, true
	rows, err := c.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("extra networks: %w", err)
	}
	var all []Network
	for i, row := range rows {
		prefix, err := netip.ParsePrefix(row[0])
		if err != nil {
			return nil, fmt.Errorf("extra networks: row %d: %q is not a prefix", i+1, row[0])
		}
		asn, err := strconv.ParseUint(strings.TrimPrefix(row[2], "AS"), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("extra networks: row %d: %q is not a number of an autonomous system", i+1, row[2])
		}
		if !code(row[1]) {
			return nil, fmt.Errorf("extra networks: row %d: %q is not a country code of two capital letters", i+1, row[1])
		}
		all = append(all, Network{Prefix: prefix.Masked(), Country: row[1], ASN: uint32(asn), Name: row[3]})
	}
	return all, nil
}

// libloc is a parsed database of libloc (src/libloc/format.h, version 1). All
// numbers are big-endian. After the magic "LOCDBXX" and the version follow the
// time of creation (8 bytes), offsets of three strings, and offset and length
// of five sections: autonomous systems (number, name), networks (country,
// number of the autonomous system, flags), the tree (two children and a
// network, 12 bytes), countries, and the pool of strings.
type libloc struct {
	created  int64
	systems  []byte
	networks []byte
	tree     []byte
	pool     []byte
	names    map[uint32]uint32 // autonomous system to offset in pool
	visits   int               // of nodes, to notice a tree that is none
}

const (
	liblocMagic   = "LOCDBXX\x01"
	systemSize    = 8
	networkSize   = 12
	nodeSize      = 12
	noNetwork     = 0xffffffff
	mappedBits    = 96 // IPv4 stands under ::ffff:0:0/96
	liblocMinimum = 8 + 60
)

func parseLibloc(b []byte) (*libloc, error) {
	if len(b) < liblocMinimum || string(b[:8]) != liblocMagic {
		return nil, errors.New("geoip: not a libloc database of version 1")
	}
	l := &libloc{created: int64(binary.BigEndian.Uint64(b[8:])), names: map[uint32]uint32{}}
	for _, s := range []struct {
		name string
		at   int
		unit int
		to   *[]byte
	}{
		{"autonomous systems", 28, systemSize, &l.systems},
		{"networks", 36, networkSize, &l.networks},
		{"tree", 44, nodeSize, &l.tree},
		{"strings", 60, 1, &l.pool},
	} {
		offset, length := uint64(binary.BigEndian.Uint32(b[s.at:])), uint64(binary.BigEndian.Uint32(b[s.at+4:]))
		if offset+length > uint64(len(b)) || length%uint64(s.unit) != 0 {
			return nil, fmt.Errorf("geoip: libloc database: section of %s reaches beyond the file", s.name)
		}
		*s.to = b[offset : offset+length]
	}
	for at := 0; at < len(l.systems); at += systemSize {
		l.names[binary.BigEndian.Uint32(l.systems[at:])] = binary.BigEndian.Uint32(l.systems[at+4:])
	}
	return l, nil
}

// walk calls yield for every network of the tree, wider ones first.
func (l *libloc) walk(yield func(Network) error) error {
	return l.visit(0, [16]byte{}, 0, yield)
}

func (l *libloc) visit(node uint32, addr [16]byte, depth int, yield func(Network) error) error {
	at := uint64(node) * nodeSize
	if at+nodeSize > uint64(len(l.tree)) {
		return errors.New("libloc database: the tree leaves its section")
	}
	// Nodes that are children of several others would make the walk take for ever.
	if l.visits += nodeSize; l.visits > len(l.tree) {
		return errors.New("libloc database: a node of the tree has two parents")
	}
	zero, one := binary.BigEndian.Uint32(l.tree[at:]), binary.BigEndian.Uint32(l.tree[at+4:])
	if i := binary.BigEndian.Uint32(l.tree[at+8:]); i != noNetwork {
		n, err := l.network(i)
		if err != nil {
			return err
		}
		n.Prefix = netip.PrefixFrom(netip.AddrFrom16(addr), depth)
		if n.Prefix.Addr().Is4In6() && depth >= mappedBits {
			n.Prefix = netip.PrefixFrom(n.Prefix.Addr().Unmap(), depth-mappedBits)
		}
		if err := yield(n); err != nil {
			return err
		}
	}
	if depth == 128 && zero|one != 0 {
		return errors.New("libloc database: the tree is deeper than an address")
	}
	if zero != 0 {
		if err := l.visit(zero, addr, depth+1, yield); err != nil {
			return err
		}
	}
	if one != 0 {
		addr[depth/8] |= 0x80 >> (depth % 8)
		return l.visit(one, addr, depth+1, yield)
	}
	return nil
}

func (l *libloc) network(i uint32) (Network, error) {
	at := uint64(i) * networkSize
	if at+networkSize > uint64(len(l.networks)) {
		return Network{}, errors.New("libloc database: a network outside its section")
	}
	b := l.networks[at : at+networkSize]
	n := Network{ASN: binary.BigEndian.Uint32(b[4:])}
	if b[0] != 0 {
		n.Country = string(b[:2])
	}
	if offset, ok := l.names[n.ASN]; ok && uint64(offset) < uint64(len(l.pool)) {
		name, _, _ := bytes.Cut(l.pool[offset:], []byte{0})
		n.Name = string(name)
	}
	return n, nil
}
