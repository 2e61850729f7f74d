package location_test

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"lethe/location"
	"lethe/protocol"
)

func good() location.Directory {
	return location.Directory{
		Locations: []location.Location{{ID: 1, Code: "nl-ams", Country: "NL", City: "Amsterdam"}},
		Servers: []location.Server{{
			ID: "nl-ams-1", Location: 1, Enabled: true,
			Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.21"), netip.MustParseAddr("2001:db8::21")},
			Endpoints: []location.Endpoint{{Protocol: protocol.OpenVPNUDP, Port: 1194}},
		}},
	}
}

func TestValidate(t *testing.T) {
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		want  string
		spoil func(*location.Directory)
	}{
		{"id must not be 0", func(d *location.Directory) { d.Locations[0].ID = 0 }},
		{"location code", func(d *location.Directory) { d.Locations[0].Code = "Amsterdam" }},
		{"country", func(d *location.Directory) { d.Locations[0].Country = "nl" }},
		{"city", func(d *location.Directory) { d.Locations[0].City = "" }},
		{"stands twice", func(d *location.Directory) { d.Locations = append(d.Locations, d.Locations[0]) }},
		{"server id", func(d *location.Directory) { d.Servers[0].ID = "../x" }},
		{"at least one address", func(d *location.Directory) { d.Servers[0].Addresses = nil }},
		{"not a unicast", func(d *location.Directory) { d.Servers[0].Addresses[0] = netip.MustParseAddr("224.0.0.1") }},
		{"port 0", func(d *location.Directory) { d.Servers[0].Endpoints[0].Port = 0 }},
		{"want 500", func(d *location.Directory) {
			d.Servers[0].Endpoints[0] = location.Endpoint{Protocol: protocol.IKEv2, Port: 501}
		}},
		{"stands twice", func(d *location.Directory) { d.Servers = append(d.Servers, d.Servers[0]) }},
		{"no location 9", func(d *location.Directory) { d.Servers[0].Location = 9 }},
	} {
		d := good()
		c.spoil(&d)
		if err := d.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

func TestLookUpAndJSON(t *testing.T) {
	d := good()
	if s, ok := d.Server("nl-ams-1"); !ok || s.Location != 1 {
		t.Error("server not found")
	}
	if l, ok := d.Location("nl-ams"); !ok || l.ID != 1 {
		t.Error("location not found")
	}
	if _, ok := d.Server("x"); ok {
		t.Error("found a server that is not there")
	}
	if _, ok := d.Location("x"); ok {
		t.Error("found a location that is not there")
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var back location.Directory
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, d) {
		t.Errorf("comes back as %+v, %v", back, err)
	}
}
