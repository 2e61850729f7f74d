// Package compare says in what two images differ: not only that they do, but which file, and
// which line or section of it. That is where the search for what a build took from its machine begins.
//
// [Images] goes down the layers (package medium) in the order in which they lie on the medium.
// Whatever differs is told as deep as it can be told: a line of text, a section of a
// program, a field of a header, and at least a byte. Times and places that a file system keeps
// beside its files are told as the bytes that they are. A layer that cannot be read in one of the images
// is compared as bytes.
package compare

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"lethe/image/gpt"
	"lethe/image/medium"
	"lethe/image/tree"
)

// Difference is one thing in which two images differ.
type Difference struct {
	Where  []string `json:"where"`            // from the medium inwards: "boot image", ".initrd", "lethe/root"
	What   string   `json:"what"`             // "content", "mode", "size", or a field's name
	A      string   `json:"a,omitempty"`      // what the first has
	B      string   `json:"b,omitempty"`      // what the second has
	Offset int64    `json:"offset,omitempty"` // of the first byte that differs, in the innermost thing
	Hunk   []string `json:"hunk,omitempty"`   // lines of text: both, then " ", "-" (only A) or "+" (only B)
}

// String describes d in one line and those of its hunk.
func (d Difference) String() string {
	s := strings.Join(d.Where, " › ") + ": " + d.What
	if d.Hunk != nil {
		return s + "\n\t" + strings.Join(d.Hunk, "\n\t")
	}
	if d.Offset > 0 {
		s += fmt.Sprintf(" from byte %d on", d.Offset)
	}
	return s + fmt.Sprintf("\n\t- %s\n\t+ %s", cmp.Or(d.A, "(nothing)"), cmp.Or(d.B, "(nothing)"))
}

// Report is how two images differ.
type Report struct {
	Same        bool         `json:"same"`
	Offset      int64        `json:"offset"` // of the medium's first byte that differs
	Region      string       `json:"region"` // that it is in
	Differences []Difference `json:"differences"`
	More        int          `json:"more"` // that are not listed
}

// limit is how many differences are listed: the first ones explain the others.
const limit = 100

// Image is one of two images.
type Image struct {
	Size   int64
	Reader io.ReaderAt
}

// Images compares two images.
func Images(a, b Image) (*Report, error) {
	at, err := first(a.Reader, b.Reader, 0, min(a.Size, b.Size))
	if err != nil {
		return nil, err
	}
	if at < 0 && a.Size == b.Size {
		return &Report{Same: true, Differences: []Difference{}}, nil
	}
	c := &comparer{r: &Report{Offset: at, Differences: []Difference{}}}
	ma, errA := medium.Open(a.Reader, a.Size)
	mb, errB := medium.Open(b.Reader, b.Size)
	if at < 0 {
		c.r.Offset = min(a.Size, b.Size)
	}
	c.r.Region = region(ma, c.r.Offset)
	c.value([]string{"medium"}, "size", a.Size, b.Size)
	c.value([]string{"medium"}, "cannot be read", text(errA), text(errB))
	if err := c.layers(ma, mb); err != nil {
		return nil, err
	}
	if len(c.r.Differences) == 0 {
		err = c.bytes([]string{c.r.Region}, span(a.Reader, at, a.Size), span(b.Reader, at, b.Size), at)
	}
	return c.r, err
}

// Trees says in what two trees differ, file by file; at most a hundred are listed. A builder asks it
// whether a file system holds what it was made of.
func Trees(name string, a, b *tree.Tree) ([]Difference, error) {
	c := &comparer{r: &Report{}}
	err := c.trees([]string{name}, a, b, c.content)
	return c.r.Differences, err
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func span(r io.ReaderAt, from, to int64) *io.SectionReader {
	return io.NewSectionReader(r, from, to-from)
}

// first returns where two readers first differ within a span, -1 when they do not.
func first(a, b io.ReaderAt, from, to int64) (int64, error) {
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := from; at < to; at += int64(len(x)) {
		n := min(int64(len(x)), to-at)
		if _, err := a.ReadAt(x[:n], at); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if _, err := b.ReadAt(y[:n], at); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if i := differs(x[:n], y[:n]); i >= 0 {
			return at + int64(i), nil
		}
	}
	return -1, nil
}

// differs returns where two runs of bytes first differ, -1 when they do not.
func differs(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// comparer gathers differences.
type comparer struct{ r *Report }

func (c *comparer) add(d Difference) {
	d.Where = slices.Clone(d.Where)
	if len(c.r.Differences) == limit {
		c.r.More++
		return
	}
	c.r.Differences = append(c.r.Differences, d)
}

// count is how many differences there are so far.
func (c *comparer) count() int { return len(c.r.Differences) + c.r.More }

// value compares two values of one field.
func (c *comparer) value(where []string, what string, a, b any) {
	if a != b {
		c.add(Difference{Where: where, What: what, A: fmt.Sprint(a), B: fmt.Sprint(b)})
	}
}

// excerpt is how many bytes of a difference are shown.
const excerpt = 16

// bytes compares what has no form that is known. The offset is added to that of the first difference.
func (c *comparer) bytes(where []string, a, b *io.SectionReader, offset int64) error {
	at, err := first(a, b, 0, min(a.Size(), b.Size()))
	if err != nil || at < 0 && a.Size() == b.Size() {
		return err
	}
	if at < 0 {
		at = min(a.Size(), b.Size())
	}
	var shown [2]string
	for i, r := range []*io.SectionReader{a, b} {
		part := make([]byte, min(excerpt, max(0, r.Size()-at)))
		if _, err := r.ReadAt(part, at); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		shown[i] = fmt.Sprintf("% x  %s", part, printable(part))
	}
	c.add(Difference{Where: where, What: "bytes", A: shown[0], B: shown[1], Offset: offset + at})
	return nil
}

func printable(b []byte) string {
	out := bytes.Clone(b)
	for i, c := range out {
		if c < ' ' || c > '~' {
			out[i] = '.'
		}
	}
	return string(out)
}

// region names the part of the medium that a byte is in.
func region(m *medium.Medium, at int64) string {
	switch t := m.Table; {
	case at < gpt.Block:
		return "master boot record"
	case t == nil:
		return "medium"
	case at < 2*gpt.Block:
		return "partition table, header"
	case at >= t.Entries && at < t.Entries+t.Length:
		return "partition table, entries"
	case within(at, m.System):
		return "EFI system partition"
	case within(at, m.Root):
		return "root"
	case at > t.Last:
		return "partition table, the second"
	case at >= 16*2048 && m.Volume != nil && at < min(m.System.Offset, m.Root.Offset):
		return "ISO 9660 volume"
	}
	return "a gap"
}

func within(at int64, p gpt.Partition) bool { return at >= p.Offset && at < p.Offset+p.Size }
