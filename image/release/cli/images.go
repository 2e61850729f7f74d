package cli

import (
	"fmt"
	"io"
	"os"

	"lethe/fault"
	"lethe/image/compare"
)

// isImage reports whether a file begins as images do: with a partition table behind its first
// block. Statements and manifests are text.
func isImage(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false // whoever reads it next says so
	}
	defer f.Close()
	const mark = "EFI PART"
	b := make([]byte, len(mark))
	_, err = f.ReadAt(b, 512)
	return err == nil && string(b) == mark
}

// compareImages shows in what two images differ.
func compareImages(out io.Writer, a, b string, asJSON bool) error {
	var images [2]compare.Image
	for i, path := range []string{a, b} {
		f, size, err := open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		images[i] = compare.Image{Size: size, Reader: f}
	}
	r, err := compare.Images(images[0], images[1])
	if err != nil {
		return fault.Wrap(fault.Internal, "the images cannot be read", err)
	}
	if asJSON {
		if err := printJSON(out, r); err != nil {
			return err
		}
	}
	if r.Same {
		if !asJSON {
			fmt.Fprintln(out, "they are the same, bit for bit")
		}
		return nil
	}
	if !asJSON {
		fmt.Fprintf(out, "first difference: byte %d, %s\n", r.Offset, r.Region)
		for _, d := range r.Differences {
			fmt.Fprintln(out, d)
		}
		if r.More > 0 {
			fmt.Fprintf(out, "and %d more\n", r.More)
		}
	}
	return fault.New(fault.Untrusted, fmt.Sprintf("the images differ in %d places", len(r.Differences)+r.More)).
		WithHint("compare the builders' statements: unequal inputs explain unequal images")
}
