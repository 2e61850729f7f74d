// Package location describes where customers can connect: locations (what a
// customer picks and what a usage row names) and the servers of each.
//
// One [Directory] is kept by the control plane's store, served to apps and
// published to servers, so all three speak of the same places.
package location

import (
	"fmt"
	"net/netip"
	"regexp"

	"lethe/protocol"
)

// ID is a location's number. It is stored in usage rows and never reused.
type ID uint16

// Location is a group of servers that a customer picks as one.
type Location struct {
	ID      ID     `json:"id" doc:"Stable number of the location" example:"1"`
	Code    string `json:"code" doc:"Short name to type: country and city" example:"nl-ams" pattern:"^[a-z]{2}-[a-z0-9]{2,12}$"`
	Country string `json:"country" doc:"ISO 3166-1 alpha-2 code" example:"NL" pattern:"^[A-Z]{2}$"`
	City    string `json:"city" doc:"Name of the city in English" example:"Amsterdam" maxLength:"64"`
}

// Endpoint is one port on which a server speaks one protocol.
type Endpoint struct {
	Protocol protocol.ID `json:"protocol" doc:"VPN protocol and transport" enum:"openvpn-udp,openvpn-tcp,ikev2"`
	Port     uint16      `json:"port" doc:"Port on every address of the server" minimum:"1"`
}

// Server is one VPN server as customers and the server itself know it.
type Server struct {
	ID        string       `json:"id" doc:"Name of the server; the common name of its certificates" example:"nl-ams-1" pattern:"^[a-z0-9][a-z0-9-]{1,62}$"`
	Location  ID           `json:"location" doc:"Location it belongs to"`
	Addresses []netip.Addr `json:"addresses" doc:"Addresses to connect to" nullable:"false" minItems:"1" maxItems:"16"`
	Endpoints []Endpoint   `json:"endpoints" doc:"Protocols and ports" nullable:"false" minItems:"1" maxItems:"8"`
	CA        string       `json:"ca" doc:"PEM certificate that signs the server's VPN certificate" maxLength:"16384"`
	TLSCrypt  string       `json:"tls_crypt" doc:"OpenVPN static key V1 that wraps the control channel" maxLength:"4096"`
	Enabled   bool         `json:"enabled" doc:"False while the server takes no new customers"`
}

// Directory is every location and server.
type Directory struct {
	Locations []Location `json:"locations" doc:"Every location" nullable:"false"`
	Servers   []Server   `json:"servers" doc:"Every server" nullable:"false"`
}

var (
	codeForm    = regexp.MustCompile(`^[a-z]{2}-[a-z0-9]{2,12}$`)
	countryForm = regexp.MustCompile(`^[A-Z]{2}$`)
	serverForm  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,62}$`)
)

// Validate returns what is wrong with l, or nil.
func (l Location) Validate() error {
	switch {
	case l.ID == 0:
		return fmt.Errorf("location %q: the id must not be 0", l.Code)
	case !codeForm.MatchString(l.Code):
		return fmt.Errorf("location code %q: want country and city, for instance nl-ams", l.Code)
	case !countryForm.MatchString(l.Country):
		return fmt.Errorf("location %s: country %q: want two capital letters", l.Code, l.Country)
	case l.City == "" || len(l.City) > 64:
		return fmt.Errorf("location %s: want a city of 1 to 64 bytes", l.Code)
	}
	return nil
}

// Validate returns what is wrong with s, or nil.
func (s Server) Validate() error {
	if !serverForm.MatchString(s.ID) {
		return fmt.Errorf("server id %q: want 2 to 63 small letters, digits and hyphens", s.ID)
	}
	if len(s.Addresses) == 0 || len(s.Endpoints) == 0 {
		return fmt.Errorf("server %s: want at least one address and one endpoint", s.ID)
	}
	for _, a := range s.Addresses {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("server %s: an address is not a unicast address", s.ID)
		}
	}
	for _, e := range s.Endpoints {
		if e.Port == 0 {
			return fmt.Errorf("server %s: %s has port 0", s.ID, e.Protocol)
		}
		if e.Protocol == protocol.IKEv2 && e.Port != 500 { // RFC 7296, section 2; systems' own clients know no other
			return fmt.Errorf("server %s: %s has port %d, want 500", s.ID, e.Protocol, e.Port)
		}
	}
	return nil
}

// Validate returns the first thing that is wrong with d, or nil: every entry
// must be valid, ids and codes unique, every server in a known location.
func (d Directory) Validate() error {
	ids, codes, servers := map[ID]bool{}, map[string]bool{}, map[string]bool{}
	for _, l := range d.Locations {
		if err := l.Validate(); err != nil {
			return err
		}
		if ids[l.ID] || codes[l.Code] {
			return fmt.Errorf("location %s stands twice", l.Code)
		}
		ids[l.ID], codes[l.Code] = true, true
	}
	for _, s := range d.Servers {
		if err := s.Validate(); err != nil {
			return err
		}
		if servers[s.ID] {
			return fmt.Errorf("server %s stands twice", s.ID)
		}
		if !ids[s.Location] {
			return fmt.Errorf("server %s: no location %d", s.ID, s.Location)
		}
		servers[s.ID] = true
	}
	return nil
}

// Server returns the server of that id.
func (d Directory) Server(id string) (Server, bool) {
	for _, s := range d.Servers {
		if s.ID == id {
			return s, true
		}
	}
	return Server{}, false
}

// Location returns the location of that code.
func (d Directory) Location(code string) (Location, bool) {
	for _, l := range d.Locations {
		if l.Code == code {
			return l, true
		}
	}
	return Location{}, false
}
