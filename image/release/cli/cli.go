// Package cli holds the commands of lethe-image that make and check releases:
// compare, sign, verify and keys. The program adds them to its own and
// turns their errors into exit codes; see package release for what they do.
//
// Nothing is written over: a file that exists is an error. What is not
// finished is not left behind under its name.
package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"lethe/fault"
	"lethe/image/release"
)

// Commands returns the commands. Their output goes where the program's goes.
func Commands() []*cobra.Command {
	return []*cobra.Command{compareCommand(), signCommand(), verifyCommand(), keysCommand()}
}

// trusted are the flags that every command with a policy has.
type trusted struct {
	policy     string
	statements []string
}

func (t *trusted) flags(c *cobra.Command) {
	c.Flags().StringVar(&t.policy, "trust", "", "file with the keys and thresholds that are believed")
	c.Flags().StringArrayVar(&t.statements, "statement", nil, "a builder's statement (repeat)")
	_ = c.MarkFlagRequired("trust") // it exists
}

// read returns the policy at this moment, and the statements.
func (t *trusted) read() (p release.Policy, statements [][]byte, err error) {
	text, err := read(t.policy)
	if err != nil {
		return p, nil, err
	}
	if p, err = release.ParsePolicy(text); err != nil {
		return p, nil, err
	}
	p.Now = time.Now()
	for _, path := range t.statements {
		b, err := read(path)
		if err != nil {
			return p, nil, err
		}
		statements = append(statements, b)
	}
	return p, statements, nil
}

// read reads a small file.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fileFault(path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, release.MaxFileSize+1)) // one more, so that the reader sees that it is too much
	if err != nil {
		return nil, fileFault(path, err)
	}
	return b, nil
}

func fileFault(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.NotFound, "there is no file "+path, err)
	case errors.Is(err, fs.ErrExist):
		return fault.Wrap(fault.Conflict, path+" exists already", err)
	}
	return fault.Wrap(fault.Internal, path+" cannot be read or written", err)
}

// write makes a file of what fill writes into it.
func write(path string, fill func(f *os.File) error) error {
	if _, err := os.Lstat(path); err == nil {
		return fileFault(path, fs.ErrExist)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".part-*")
	if err != nil {
		return fileFault(path, err)
	}
	defer os.Remove(f.Name()) // fails once it has its name
	err = fill(f)
	if err == nil {
		err = errors.Join(f.Chmod(0o644), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	// A link, unlike a rename, never replaces what somebody else has made meanwhile.
	if err := os.Link(f.Name(), path); err != nil {
		return fileFault(path, err)
	}
	return nil
}

func writeBytes(path string, b []byte) error {
	return write(path, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func compareCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "compare A B", Short: "show in what two images, builders' statements or manifests differ", Args: cobra.ExactArgs(2),
		Long: "Show in what two builders' statements or two manifests differ, or two images: the first byte,\n" +
			"and then every file with the line, section or field that is another one.",
		RunE: func(c *cobra.Command, args []string) error {
			if isImage(args[0]) && isImage(args[1]) {
				return compareImages(c.OutOrStdout(), args[0], args[1], asJSON)
			}
			a, err := read(args[0])
			if err != nil {
				return err
			}
			b, err := read(args[1])
			if err != nil {
				return err
			}
			differences, err := release.Compare(a, b)
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			if asJSON {
				if err := printJSON(out, append([]release.Difference{}, differences...)); err != nil {
					return err
				}
			} else {
				for _, d := range differences {
					fmt.Fprintln(out, d)
				}
			}
			if n := len(differences); n > 0 {
				return fault.New(fault.Untrusted, fmt.Sprintf("they differ in %d places", n)).WithHint("the builders' inputs come first: unequal inputs explain unequal images")
			}
			if !asJSON {
				fmt.Fprintln(out, "they agree")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// checked is what verify found right.
type checked struct {
	Version  uint64         `json:"version"`
	Commit   string         `json:"commit"`
	Floor    uint64         `json:"floor"`
	Expires  time.Time      `json:"expires"`
	Builders int            `json:"builders"`
	Images   []checkedImage `json:"images"`
}

type checkedImage struct {
	File    string         `json:"file"`
	Flavour string         `json:"flavour"`
	Signed  release.Digest `json:"signed_sha256"`
	Agreed  release.Digest `json:"sha256"`
}

func verifyCommand() *cobra.Command {
	var t trusted
	var manifest, flavour string
	var floor uint64
	var asJSON bool
	c := &cobra.Command{
		Use: "verify [ISO...]", Short: "check a release and its images, without network",
		Long: "Checks that enough builders agree, that the release keys signed what they agree on, that the release has\n" +
			"not expired and is not too old, and then every bit of the images. Every refusal names its reason.",
		RunE: func(c *cobra.Command, args []string) error {
			p, statements, err := t.read()
			if err != nil {
				return err
			}
			p.Floor = max(p.Floor, floor)
			b, err := read(manifest)
			if err != nil {
				return err
			}
			m, err := p.Verify(b, statements)
			if err != nil {
				return err
			}
			result := checked{Version: m.Version, Commit: m.Commit, Floor: m.Floor, Expires: m.Expires, Builders: len(m.Builders), Images: []checkedImage{}}
			for _, path := range args {
				i, err := verifyISO(p, m, path, flavour)
				if err != nil {
					return err
				}
				result.Images = append(result.Images, i)
			}
			out := c.OutOrStdout()
			if asJSON {
				return printJSON(out, result)
			}
			fmt.Fprintf(out, "release %d of commit %s: %d builders agree; expires %s\n", result.Version, result.Commit, result.Builders, result.Expires.Format(time.DateOnly))
			for _, i := range result.Images {
				fmt.Fprintf(out, "%s: flavour %s, every bit is right\n", i.File, i.Flavour)
			}
			return nil
		},
	}
	t.flags(c)
	c.Flags().StringVar(&manifest, "manifest", "", "the release's manifest")
	c.Flags().StringVar(&flavour, "flavour", "", "flavour of an ISO that was renamed")
	c.Flags().Uint64Var(&floor, "floor", 0, "refuse versions below this one, beside the trust file's floor")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = c.MarkFlagRequired("manifest") // it exists
	return c
}

func verifyISO(p release.Policy, m release.Manifest, path, flavour string) (checkedImage, error) {
	for _, r := range m.Images {
		if flavour == "" && r.Name == filepath.Base(path) {
			flavour = r.Image.Flavour
		}
	}
	r, err := m.Find(flavour)
	if err != nil {
		return checkedImage{}, err
	}
	f, size, err := open(path)
	if err != nil {
		return checkedImage{}, err
	}
	defer f.Close()
	return checkedImage{path, flavour, r.Signed, r.SHA256}, p.VerifyISO(m, flavour, f, size)
}

// open opens an image and returns its size, also that of a block device.
func open(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fileFault(path, err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		_ = f.Close()
		return nil, 0, fileFault(path, err)
	}
	return f, size, nil
}
