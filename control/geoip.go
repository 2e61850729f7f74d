package control

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"lethe/fault"
	"lethe/geoip"
	"lethe/internal/command"
)

func (p *program) geoipCommand() *cobra.Command {
	var from, extra, out string
	build := &cobra.Command{Use: "build", Short: "Make a GeoIP file from the IPFire Location database", Args: cobra.NoArgs,
		Long: "Make a GeoIP file from the IPFire Location database (Debian's package libloc-database, CC BY-SA 4.0).\n" +
			"Extra networks, one \"prefix,country,asn,name\" a line, win over it.",
		RunE: func(*cobra.Command, []string) error {
			p.started = true
			n, err := buildGeoIP(from, extra, out)
			if err != nil {
				return err
			}
			return p.print(struct {
				Networks int    `json:"networks"`
				File     string `json:"file"`
			}{n, out}, func(w io.Writer) { fmt.Fprintf(w, "%d networks in %s\n", n, out) })
		}}
	build.Flags().StringVar(&from, "from", "/usr/share/libloc-location/location.db", "source database")
	build.Flags().StringVar(&extra, "extra", "", "CSV file with extra networks")
	build.Flags().StringVarP(&out, "output", "o", "geoip.mmdb", "file to write")
	return command.Group("geoip", "Prepare the file that tells countries and providers of addresses", build)
}

// buildGeoIP writes beside the target and renames, so that a publisher never
// sees half a file.
func buildGeoIP(from, extra, out string) (n int, err error) {
	source, err := os.ReadFile(from)
	if err != nil {
		return 0, fault.Wrap(fault.NotFound, "the source database cannot be read", err).WithHint("apt-get install libloc-database, or name one with --from")
	}
	var networks []geoip.Network
	if extra != "" {
		f, err := os.Open(extra)
		if err != nil {
			return 0, fault.Wrap(fault.NotFound, "the file with extra networks cannot be read", err)
		}
		networks, err = geoip.ParseExtra(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return 0, fault.New(fault.Invalid, err.Error())
		}
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".geoip-*")
	if err != nil {
		return 0, fault.Wrap(fault.Unavailable, "the file cannot be written", err)
	}
	defer os.Remove(f.Name())
	n, err = geoip.Build(f, source, networks)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return 0, fault.Wrap(fault.Invalid, "the GeoIP file could not be made", err)
	}
	if err := os.Rename(f.Name(), out); err != nil {
		return 0, fault.Wrap(fault.Unavailable, "the file cannot be written", err)
	}
	return n, nil
}
