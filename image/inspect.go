package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"lethe/fault"
	"lethe/image/inspect"
	"lethe/image/medium"
	"lethe/image/scan"
)

// maxBeside bounds what stands beside an image: its list of files, its bill of materials.
const maxBeside = 64 << 20

func (p *program) inspectCommand() *cobra.Command {
	var d inspect.Detail
	var secrets bool
	c := &cobra.Command{Use: "inspect ISO", Short: "Say what is inside an image", Args: cobra.ExactArgs(1),
		Long: "Say what is inside an image: programs, units with their sandboxes, listeners, users, kernel modules, sizes. It is read from\n" +
			"the image itself, of which nothing is started or mounted. From which package a file comes stands in the list that\n" +
			"the builder leaves beside it (NAME.files and NAME.sbom.json); it counts for a file when path and digest agree.\n" +
			"Whether an image is the one that was released is for `lethe-image verify` to say.",
		RunE: func(c *cobra.Command, args []string) error { return p.inspect(c, args[0], d, secrets) }}
	c.Flags().BoolVar(&d.Files, "files", false, "list every file")
	c.Flags().BoolVar(&d.Packages, "packages", false, "list every package")
	c.Flags().BoolVar(&secrets, "secrets", false, "look for secrets, and fail when there is one")
	return c
}

func (p *program) inspect(c *cobra.Command, path string, d inspect.Detail, secrets bool) error {
	p.started = true
	m, closed, err := openImage(path)
	if err != nil {
		return err
	}
	defer closed()
	var l inspect.Listing
	stem := strings.TrimSuffix(path, ".iso")
	for ending, read := range map[string]func([]byte) error{".files": l.ReadFiles, ".sbom.json": l.ReadBill} {
		b, err := beside(stem + ending)
		if err == nil && b != nil {
			err = read(b)
		}
		if err != nil {
			return fault.Wrap(fault.Invalid, stem+ending+" cannot be read", err).WithHint("move it away, or take the one that belongs to the image")
		}
	}
	r, err := inspect.Look(m, l)
	if err != nil {
		return fault.Wrap(fault.Invalid, path+" cannot be read: "+err.Error(), err)
	}
	if secrets {
		if r.Secrets, err = scan.Medium(c.Context(), m, scan.Options{}); err != nil {
			return fault.Wrap(fault.Invalid, path+" cannot be searched: "+err.Error(), err)
		}
	}
	if p.json {
		if !d.Files {
			r.Files = nil
		}
		err = p.print(r, "")
	} else if err = r.Text(p.stdout, d); err != nil {
		err = fault.Wrap(fault.Unavailable, "the answer cannot be written", err)
	}
	if err == nil && len(r.Secrets) > 0 {
		err = fault.New(fault.Untrusted, fmt.Sprintf("the image holds %d secrets, or what looks like them", len(r.Secrets))).
			WithHint("what is harmless goes into the list of package image/scan, with a reason")
	}
	return err
}

// openImage opens a file or a device.
func openImage(path string) (*medium.Medium, func() error, error) {
	f, err := os.Open(path)
	if err != nil {
		kind, text := fault.Denied, path+" cannot be opened"
		if errors.Is(err, fs.ErrNotExist) {
			kind, text = fault.NotFound, "there is no file "+path
		}
		return nil, nil, fault.Wrap(kind, text, err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	var m *medium.Medium
	if err == nil {
		m, err = medium.Open(f, size)
	}
	if err != nil {
		return nil, nil, errors.Join(fault.Wrap(fault.Invalid, path+" is no image of a Lethe server: "+err.Error(), err), f.Close())
	}
	return m, f.Close, nil
}

// beside reads a small file, nil when there is none.
func beside(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBeside+1))
	if err == nil && len(b) > maxBeside {
		err = errors.New("it is too large")
	}
	return b, err
}
