package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lethe/fault"
	"lethe/internal/command"
	"lethe/location"
	"lethe/protocol"
)

func (p *program) locationCommand() *cobra.Command {
	add := p.action("add CODE COUNTRY CITY", "Add a location, for instance: add nl-ams NL Amsterdam", 3,
		func(ctx context.Context, c *Control, args []string) error {
			l := location.Location{Code: args[0], Country: args[1], City: args[2]}
			id, err := c.Store.AddLocation(ctx, l)
			if fault.Of(err) == fault.Conflict {
				return fault.Wrap(fault.Conflict, "there is a location "+l.Code, err)
			}
			if err != nil {
				return err
			}
			l.ID = id
			return p.print(l, func(w io.Writer) { fmt.Fprintf(w, "location %d is %s\n", l.ID, l.Code) })
		})
	list := p.action("list", "List locations", 0, func(ctx context.Context, c *Control, _ []string) error {
		d, err := c.Store.Directory(ctx)
		if err != nil {
			return err
		}
		return p.print(map[string]any{"locations": d.Locations}, func(w io.Writer) {
			fmt.Fprintln(w, "ID\tCODE\tCOUNTRY\tCITY")
			for _, l := range d.Locations {
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", l.ID, l.Code, l.Country, l.City)
			}
		})
	})
	remove := p.action("remove CODE", "Remove a location without servers", 1,
		func(ctx context.Context, c *Control, args []string) error {
			l, err := findLocation(ctx, c, args[0])
			if err != nil {
				return err
			}
			if err := c.Store.RemoveLocation(ctx, l.ID); err != nil {
				if fault.Of(err) == fault.Conflict {
					return fault.Wrap(fault.Conflict, "the location "+l.Code+" has servers", err).WithHint("remove its servers first")
				}
				return err
			}
			return p.removed(l.Code)
		})
	return command.Group("location", "Add, list and remove locations", add, list, remove)
}

// hinted adds a hint to an error of that kind.
func hinted(err error, kind fault.Kind, hint string) error {
	var e *fault.Error
	if errors.As(err, &e) && e.Kind == kind {
		return e.WithHint(hint)
	}
	return err
}

func findLocation(ctx context.Context, c *Control, code string) (location.Location, error) {
	d, err := c.Store.Directory(ctx)
	if err != nil {
		return location.Location{}, err
	}
	if l, ok := d.Location(code); ok {
		return l, nil
	}
	return location.Location{}, fault.New(fault.NotFound, "there is no location "+strconv.Quote(code)).
		WithHint("`lethe-control location list` shows them")
}

// maxFile is the largest certificate or key file in bytes.
const maxFile = 16 << 10

// readText reads a small file.
func readText(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fault.Wrap(fault.Invalid, "the file "+strconv.Quote(path)+" cannot be read", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err = errors.Join(err, f.Close()); err != nil || len(b) > maxFile {
		return "", fault.Wrap(fault.Invalid, fmt.Sprintf("the file %q cannot be read or has more than %d bytes", path, maxFile), err)
	}
	return string(b), nil
}

// parseEndpoint reads "openvpn-udp:1194".
func parseEndpoint(s string) (location.Endpoint, error) {
	name, port, _ := strings.Cut(s, ":")
	id, err := protocol.Parse(name)
	n, err2 := strconv.ParseUint(port, 10, 16)
	if err != nil || err2 != nil || n == 0 {
		return location.Endpoint{}, fault.New(fault.Invalid, "endpoint "+strconv.Quote(s)+" is not possible").
			WithHint("want a protocol and a port, for instance openvpn-udp:1194")
	}
	return location.Endpoint{Protocol: id, Port: uint16(n)}, nil
}

const serverList = "`lethe-control server list` shows them"

// serverFlags are the flags of server add.
type serverFlags struct {
	location, ca, tlsCrypt string
	addresses, endpoints   []string
	disabled               bool
}

// server returns the server that the flags describe.
func (f serverFlags) server(ctx context.Context, c *Control, id string) (v location.Server, err error) {
	l, err := findLocation(ctx, c, f.location)
	if err != nil {
		return v, err
	}
	v = location.Server{ID: id, Location: l.ID, Enabled: !f.disabled}
	for _, a := range f.addresses {
		addr, err := netip.ParseAddr(a)
		if err != nil {
			return v, fault.New(fault.Invalid, strconv.Quote(a)+" is not an IP address")
		}
		v.Addresses = append(v.Addresses, addr)
	}
	for _, e := range f.endpoints {
		endpoint, err := parseEndpoint(e)
		if err != nil {
			return v, err
		}
		v.Endpoints = append(v.Endpoints, endpoint)
	}
	var err1, err2 error
	v.CA, err1 = readText(f.ca)
	v.TLSCrypt, err2 = readText(f.tlsCrypt)
	switch {
	case err1 != nil || err2 != nil:
		return v, errors.Join(err1, err2)
	case !strings.Contains(v.CA, "-----BEGIN CERTIFICATE-----") || strings.Contains(v.CA, "PRIVATE KEY"):
		return v, fault.New(fault.Invalid, "the file for --ca is not a PEM certificate alone")
	case !strings.Contains(v.TLSCrypt, "-----BEGIN OpenVPN Static key V1-----"):
		return v, fault.New(fault.Invalid, "the file for --tls-crypt is not an OpenVPN static key")
	}
	return v, nil
}

func (p *program) serverCommand() *cobra.Command {
	var f serverFlags
	add := p.action("add ID", "Add a server", 1, func(ctx context.Context, c *Control, args []string) error {
		v, err := f.server(ctx, c, args[0])
		if err != nil {
			return err
		}
		if err := c.Store.AddServer(ctx, v); err != nil {
			return err
		}
		return p.print(v, func(w io.Writer) { fmt.Fprintf(w, "server %s is in %s\n", v.ID, f.location) })
	})
	add.Flags().StringVar(&f.location, "location", "", "code of its location (required)")
	add.Flags().StringSliceVar(&f.addresses, "address", nil, "address that customers connect to; may be repeated (required)")
	add.Flags().StringSliceVar(&f.endpoints, "endpoint", []string{"openvpn-udp:1194", "openvpn-tcp:443"}, "protocol:port; may be repeated")
	add.Flags().StringVar(&f.ca, "ca", "", "file with the PEM certificate that signs the server's (required)")
	add.Flags().StringVar(&f.tlsCrypt, "tls-crypt", "", "file with the OpenVPN static key (required)")
	add.Flags().BoolVar(&f.disabled, "disabled", false, "add it without taking customers yet")
	for _, name := range []string{"location", "address", "ca", "tls-crypt"} {
		_ = add.MarkFlagRequired(name) // fails only for a flag that is not there
	}
	list := p.action("list", "List servers", 0, func(ctx context.Context, c *Control, _ []string) error {
		d, err := c.Store.Directory(ctx)
		if err != nil {
			return err
		}
		return p.print(map[string]any{"servers": d.Servers}, func(w io.Writer) { writeServers(w, d) })
	})
	enable := func(use, short string, enabled bool) *cobra.Command {
		return p.action(use, short, 1, func(ctx context.Context, c *Control, args []string) error {
			if err := c.Store.EnableServer(ctx, args[0], enabled); err != nil {
				return hinted(err, fault.NotFound, serverList)
			}
			return p.print(map[string]any{"id": args[0], "enabled": enabled}, func(w io.Writer) {
				fmt.Fprintf(w, "server %s takes customers: %s\n", args[0], yes(enabled))
			})
		})
	}
	remove := p.action("remove ID", "Remove a server", 1, func(ctx context.Context, c *Control, args []string) error {
		if err := c.Store.RemoveServer(ctx, args[0]); err != nil {
			return hinted(err, fault.NotFound, serverList)
		}
		return p.removed(args[0])
	})
	return command.Group("server", "Add, list, enable, disable and remove servers", add, list,
		enable("enable ID", "Let a server take customers", true),
		enable("disable ID", "Let a server take no new customers", false), remove)
}

func writeServers(w io.Writer, d location.Directory) {
	codes := map[location.ID]string{}
	for _, l := range d.Locations {
		codes[l.ID] = l.Code
	}
	fmt.Fprintln(w, "ID\tLOCATION\tADDRESSES\tENDPOINTS\tENABLED")
	for _, s := range d.Servers {
		var addresses, endpoints []string
		for _, a := range s.Addresses {
			addresses = append(addresses, a.String())
		}
		for _, e := range s.Endpoints {
			endpoints = append(endpoints, fmt.Sprintf("%s:%d", e.Protocol, e.Port))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.ID, codes[s.Location], strings.Join(addresses, ","),
			strings.Join(endpoints, ","), yes(s.Enabled))
	}
}
