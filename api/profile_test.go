package api_test

import (
	"bytes"
	"encoding/json"
	"mime"
	"slices"
	"strings"
	"testing"

	"lethe/api"
	"lethe/location"
	"lethe/private"
	"lethe/profile"
	"lethe/protocol"
)

func (s *service) profile(t *testing.T, code, format string) reply {
	t.Helper()
	return s.do(t, "GET", "/v1/locations/"+code+"/profiles/"+format, "", "Authorization", "Bearer good")
}

// TestProfiles: every format is served as package profile renders it, of one of the location's servers,
// with its media type and a name, and nobody keeps a copy on the way.
func TestProfiles(t *testing.T) {
	s := newService(t)
	want := map[string]map[string]bool{}
	for _, f := range profile.Formats() {
		want[f.Name] = map[string]bool{}
		for _, server := range directory(2).Servers {
			p, err := f.Render(profile.Request{Server: server, Username: private.Of("vpn-user-0")})
			if err != nil {
				t.Fatal(err)
			}
			want[f.Name][p.Name+"\n"+string(p.Text)] = true
		}
		seen := map[string]bool{}
		for range 64 { // two servers: one of them is missed with a probability of 2^-63
			r := s.profile(t, "nl-ams", f.Name)
			kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Disposition"))
			if r.StatusCode != 200 || r.Header.Get("Content-Type") != f.MediaType || kind != "attachment" || err != nil || r.Header.Get("Cache-Control") != "no-store" {
				t.Fatalf("%s: status %d, %v, %v", f.Name, r.StatusCode, r.Header, err)
			}
			if !want[f.Name][params["filename"]+"\n"+string(r.body)] {
				t.Fatalf("%s: another file %q:\n%s", f.Name, params["filename"], r.body)
			}
			if bytes.Contains(r.body, []byte("vpn-password")) {
				t.Fatalf("%s holds the password", f.Name)
			}
			seen[params["filename"]] = true
			checkHeaders(t, r)
		}
		if len(seen) != 2 {
			t.Errorf("%s: only of %v", f.Name, seen)
		}
	}
	if got := s.log.String(); got != "" {
		t.Errorf("logged %q", got)
	}
}

func TestProfilesThatAreNotThere(t *testing.T) {
	s := newService(t)
	d := directory(2)
	d.Locations = append(d.Locations, location.Location{ID: 2, Code: "us-nyc", Country: "US", City: "New York"})
	d.Servers[0].Endpoints = []location.Endpoint{{Protocol: protocol.OpenVPNUDP, Port: 1194}}
	d.Servers[1].Enabled = false
	s.places.set(d, nil)
	for _, c := range []struct{ code, format, hint string }{
		{"nl-xyz", "ovpn", "GET /v1/directory"},
		{"nl-ams", "sswan", "formats there: ovpn"},
		{"nl-ams", "ovpn-tcp", "formats there: ovpn"},
		{"us-nyc", "ovpn", "another location"},
	} {
		r := s.profile(t, c.code, c.format)
		if p := r.problem(t, 404, "not-found"); !strings.Contains(p.Hint, c.hint) || bytes.Contains(r.body, []byte("xyz")) {
			t.Errorf("%s %s: %s", c.code, c.format, r.body)
		}
	}
	for _, path := range [][2]string{{"nl-ams", "pigeon"}, {"NL", "ovpn"}, {"nl-ams%0a", "ovpn"}, {"nl-ams", "OVPN"}} {
		r := s.profile(t, path[0], path[1])
		r.problem(t, 422, "invalid")
		if bytes.Contains(r.body, []byte(path[1]+`"`)) && path[1] == "pigeon" {
			t.Errorf("the answer repeats the request: %s", r.body)
		}
	}
	for _, path := range []string{"/v1/locations/nl-ams/profiles/", "/v1/locations/nl-ams/profiles", "/v1/locations/nl-ams/profiles/ovpn/x", "/v1/locations//profiles/ovpn"} {
		s.do(t, "GET", path, "", "Authorization", "Bearer good").problem(t, 404, "not-found")
	}
	d = directory(1)
	d.Servers[0].CA = "no certificate"
	s.places.set(d, nil)
	s.profile(t, "nl-ams", "ovpn").problem(t, 500, "internal")
	if got := s.log.String(); got != "trouble part=app-api kind=internal\n" {
		t.Errorf("logged %q", got)
	}
}

// TestProfileFormatsAreTheTables compares the document with the table of formats.
func TestProfileFormatsAreTheTables(t *testing.T) {
	var doc openapi
	if err := json.Unmarshal(api.Documents()["openapi.json"], &doc); err != nil {
		t.Fatal(err)
	}
	op := doc.Paths["/v1/locations/{code}/profiles/{format}"]["get"]
	var formats []string
	for _, p := range op.Parameters {
		if p["name"] == "format" {
			for _, v := range p["schema"].(map[string]any)["enum"].([]any) {
				formats = append(formats, v.(string))
			}
		}
	}
	if !slices.Equal(formats, profile.Names()) {
		t.Errorf("the document has %v, the table %v", formats, profile.Names())
	}
	for _, f := range profile.Formats() {
		if _, ok := op.Responses["200"].Content[f.MediaType]; !ok {
			t.Errorf("no answer of type %s", f.MediaType)
		}
	}
}
