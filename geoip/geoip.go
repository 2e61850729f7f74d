// Package geoip tells country and internet provider of an address from a local
// file, so that nobody has to be asked.
//
// [DB] reads a MaxMind DB file (maxmind.github.io/MaxMind-DB), which a server
// gets with its signed bundle. [Build] makes one from the free database of the
// IPFire Location project, which Debian ships as libloc-database (CC BY-SA 4.0;
// the attribution is written into the file), plus networks that the operator
// knows better. Files of MaxMind (GeoLite2 City with ASN, Enterprise, ISP) and
// IPinfo (lite) are read as well.
package geoip

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/oschwald/maxminddb-golang/v2"

	"lethe/usage"
)

// Unknown is the country of an address that the file does not know; ISO 3166-1
// leaves the code to its users.
const Unknown = "ZZ"

// DB is an open database. It is safe for concurrent use.
type DB struct{ reader *maxminddb.Reader }

// Open reads a database from b, which must stay as it is while the DB is used.
// It checks the head of the file only; see [DB.Verify].
func Open(b []byte) (*DB, error) {
	r, err := maxminddb.OpenBytes(b)
	if err != nil {
		return nil, fmt.Errorf("geoip: not a MaxMind DB file: %w", err)
	}
	if r.Metadata.IPVersion != 6 {
		return nil, fmt.Errorf("geoip: a file for IPv%d, want one for IPv6 and IPv4", r.Metadata.IPVersion)
	}
	return &DB{r}, nil
}

// Verify reads the whole search tree and all data and returns what is damaged, or
// nil. It takes about half a second for the world, so it is for whoever publishes
// a file; a look-up in a damaged file finds nothing or the wrong record, no more.
func (db *DB) Verify() error {
	if err := db.reader.Verify(); err != nil {
		return fmt.Errorf("geoip: damaged file: %w", err)
	}
	return nil
}

// The fields in which the known kinds of file keep a country and a provider,
// the most exact first.
var (
	countryPaths = [...][]any{{"country", "iso_code"}, {"registered_country", "iso_code"}, {"country_code"}, {"country"}}
	ispPaths     = [...][]any{{"isp"}, {"autonomous_system_organization"}, {"as_name"}, {"traits", "autonomous_system_organization"}}
)

// Lookup returns the ISO 3166-1 code of the country of a and the name of its
// provider: Unknown and "" when the file does not say. The name is valid UTF-8
// of at most usage.MaxISP bytes.
func (db *DB) Lookup(a netip.Addr) (country, isp string) {
	found := db.reader.Lookup(a.Unmap().WithZone(""))
	country = first(found, countryPaths[:])
	if !code(country) {
		country = Unknown
	}
	return country, cut(first(found, ispPaths[:]))
}

// code reports whether s has the form of an ISO 3166-1 alpha-2 code.
func code(s string) bool {
	return len(s) == 2 && s[0] >= 'A' && s[0] <= 'Z' && s[1] >= 'A' && s[1] <= 'Z'
}

// first returns the first of several fields that is there and is text. A
// damaged entry is like one that is missing: a wrong file must not keep
// customers out.
func first(r maxminddb.Result, paths [][]any) string {
	for _, p := range paths {
		var s string
		if r.DecodePath(&s, p...) == nil && s != "" {
			return s
		}
	}
	return ""
}

// cut shortens a name to usage.MaxISP bytes without splitting a character and
// removes what is not text.
func cut(s string) string {
	s = strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s), "")
	if len(s) <= usage.MaxISP {
		return s
	}
	end := usage.MaxISP
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}
