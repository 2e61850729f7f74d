package compare

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"lethe/image/medium"
)

// content compares two files that differ.
func (c *comparer) content(where []string, a, b []byte) error {
	if medium.Packed(a) && medium.Packed(b) {
		x, errA := medium.Unpack(a, 1<<30)
		y, errB := medium.Unpack(b, 1<<30)
		if errA == nil && errB == nil && !bytes.Equal(x, y) {
			return c.content(append(slices.Clone(where), "unpacked"), x, y)
		}
	}
	if isText(a) && isText(b) {
		c.add(Difference{Where: where, What: "content", Hunk: hunk(a, b), Offset: int64(differs(a, b))})
		return nil
	}
	// Programs of Go say how they were built, which explains all the rest.
	if x, y := built(a), built(b); x != y && x != "" && y != "" {
		c.add(Difference{Where: where, What: "how it was built", Hunk: hunk([]byte(x), []byte(y))})
		return nil
	}
	if s := elfSection(a, b); s.name != "" {
		where = append(slices.Clone(where), "section "+s.name)
		if s.inA && s.inB {
			a, b = s.a, s.b
		} else {
			c.value(where, "section", there(s.inA), there(s.inB))
			return nil
		}
	}
	return c.bytes(where, section(a), section(b), 0)
}

func isText(b []byte) bool { return bytes.IndexByte(b, 0) < 0 && utf8.Valid(b) }

func built(b []byte) string {
	info, err := buildinfo.Read(bytes.NewReader(b))
	if err != nil {
		return ""
	}
	return info.String()
}

// twoSections is a section of two programs.
type twoSections struct {
	name     string
	a, b     []byte
	inA, inB bool
}

// elfSection returns the first section in which two programs differ, one without a name when there is none.
func elfSection(a, b []byte) twoSections {
	fa, errA := elf.NewFile(bytes.NewReader(a))
	fb, errB := elf.NewFile(bytes.NewReader(b))
	if errA != nil || errB != nil {
		return twoSections{}
	}
	for _, s := range fa.Sections {
		if s.Type == elf.SHT_NOBITS || s.Type == elf.SHT_NULL {
			continue
		}
		t := fb.Section(s.Name)
		if t == nil {
			return twoSections{name: s.Name, inA: true}
		}
		x, errA := s.Data()
		y, errB := t.Data()
		if errA == nil && errB == nil && !bytes.Equal(x, y) {
			return twoSections{s.Name, x, y, true, true}
		}
	}
	for _, t := range fb.Sections {
		if fa.Section(t.Name) == nil {
			return twoSections{name: t.Name, inB: true}
		}
	}
	return twoSections{}
}

// Bounds of a hunk.
const (
	context  = 3   // lines before and behind
	maxHunk  = 12  // lines that differ
	maxWidth = 200 // bytes of a line
)

// hunk shows the first lines in which two texts differ, like diff(1): common lines begin
// with a blank, those of a with "-", those of b with "+".
func hunk(a, b []byte) []string {
	x, y := split(a), split(b)
	start := 0
	for start < min(len(x), len(y)) && x[start] == y[start] {
		start++
	}
	// The nearest two lines that are equal again, counted in lines that are passed over.
	endX, endY := len(x), len(y)
search:
	for n := 0; n <= 2*maxHunk; n++ {
		for i := 0; i <= n; i++ {
			if p, q := start+i, start+n-i; p < len(x) && q < len(y) && x[p] == y[q] && (p+1 == len(x) && q+1 == len(y) || p+1 < len(x) && q+1 < len(y) && x[p+1] == y[q+1]) {
				endX, endY = p, q
				break search
			}
		}
	}
	// Of a long line only what is around the difference is shown.
	skip := 0
	if start < min(len(x), len(y)) {
		skip = max(0, differs([]byte(x[start]), []byte(y[start]))-maxWidth/4)
	}
	out := []string{fmt.Sprintf("@@ line %d @@", start+1)}
	add := func(sign string, skip int, lines []string) {
		for i, l := range lines {
			if i == maxHunk {
				out = append(out, sign+"…")
				return
			}
			if len(l) > maxWidth && skip > 0 && i == 0 {
				l = "…" + strings.ToValidUTF8(l[min(skip, len(l)):], "")
			}
			if len(l) > maxWidth {
				l = strings.ToValidUTF8(l[:maxWidth], "") + "…"
			}
			out = append(out, sign+l)
		}
	}
	add(" ", 0, x[max(0, start-context):start])
	add("-", skip, x[start:endX])
	add("+", skip, y[start:endY])
	add(" ", 0, x[endX:min(len(x), endX+context)])
	return out
}

// split returns a text's lines. A last line without its end is another one than the same with it.
func split(b []byte) []string {
	lines := strings.SplitAfter(string(b), "\n")
	if last := len(lines) - 1; lines[last] == "" {
		lines = lines[:last]
	} else {
		lines[last] += "\\ no newline at the end\n"
	}
	for i, l := range lines {
		lines[i] = strings.TrimSuffix(l, "\n")
	}
	return lines
}
