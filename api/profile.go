package api

import (
	"context"
	"math/rand/v2"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"lethe/fault"
	"lethe/location"
	"lethe/profile"
)

type profileInput struct {
	Code   string `path:"code" doc:"Code of the location" example:"nl-ams" pattern:"^[a-z]{2}-[a-z0-9]{2,12}$"`
	Format string `path:"format" doc:"Kind of file" example:"mobileconfig" enum:"ovpn,ovpn-tcp,mobileconfig,sswan,windows,networkmanager,swanctl"`
}

type profileOutput struct {
	ContentType string `header:"Content-Type" hidden:"true"`
	Disposition string `header:"Content-Disposition" doc:"Name of the file to save it as (RFC 6266)"`
	Body        []byte
}

// profileOperation describes the operation; its answers are files.
func profileOperation(security string) huma.Operation {
	op := operation(security, "profile", "GET", "/v1/locations/{code}/profiles/{format}", 200,
		"Get a file by which the system's own VPN client connects; it holds no password", fault.NotFound, fault.Expired, fault.Invalid)
	op.Description = describeFormats()
	file := &huma.Response{Description: "The file", Content: map[string]*huma.MediaType{}}
	for _, f := range profile.Formats() {
		file.Content[f.MediaType] = &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString}}
	}
	op.Responses = map[string]*huma.Response{"200": file}
	return op
}

func describeFormats() string {
	var all []string
	for _, f := range profile.Formats() {
		text := f.Name + ": " + f.For
		if f.Named {
			text += ", with the VPN user name in it"
		}
		all = append(all, text)
	}
	return "Formats are " + strings.Join(all, "; ") + "."
}

// profile answers with the file of a server of the location, chosen at random as the app does, so that
// customers share the load.
func (a *appAPI) profile(ctx context.Context, in *profileInput) (*profileOutput, error) {
	id, err := a.customer(ctx)
	if err != nil {
		return nil, err
	}
	f, ok := profile.Find(in.Format)
	if !ok {
		return nil, fault.New(fault.NotFound, "there is no such format").WithHint("formats: " + strings.Join(profile.Names(), ", "))
	}
	d, err := a.Directory.Directory(ctx)
	if err != nil {
		return nil, err
	}
	server, err := serverFor(f, d, in.Code)
	if err != nil {
		return nil, err
	}
	r := profile.Request{Server: server}
	if f.Named {
		c, err := a.Accounts.Credential(ctx, id)
		if err != nil {
			return nil, err
		}
		r.Username = c.Username
	}
	file, err := f.Render(r)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "a server of the directory has no profile", err)
	}
	return &profileOutput{f.MediaType, `attachment; filename="` + file.Name + `"`, file.Text}, nil
}

// serverFor returns a server of the location that f fits.
func serverFor(f profile.Format, d location.Directory, code string) (location.Server, error) {
	l, ok := d.Location(code)
	if !ok {
		return location.Server{}, fault.New(fault.NotFound, "there is no such location").WithHint("GET /v1/directory lists them")
	}
	var here, fit []location.Server
	for _, s := range d.Servers {
		if s.Location == l.ID {
			here = append(here, s)
			if f.Fits(s) {
				fit = append(fit, s)
			}
		}
	}
	if len(fit) > 0 {
		return fit[rand.IntN(len(fit))], nil
	}
	err := fault.New(fault.NotFound, "no server of the location takes customers by this format")
	if others := profile.Fitting(here); len(others) > 0 {
		return location.Server{}, err.WithHint("formats there: " + strings.Join(others, ", "))
	}
	return location.Server{}, err.WithHint("choose another location")
}
