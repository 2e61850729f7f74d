package deb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Paragraph is one paragraph of a control file (deb822(5)). Field names are in
// lower case; values have no white space around them, and their further lines
// follow after newlines, without the one character that marks them.
type Paragraph map[string]string

// Get returns the field of that name, in any case, or nothing.
func (p Paragraph) Get(name string) string { return p[strings.ToLower(name)] }

// maxLine is far above the longest line that Debian's indexes hold (some
// Provides fields have 100 kB).
const maxLine = 4 << 20

// Paragraphs calls each with every paragraph of r. It stops at the first
// error, which names the line. A field that stands twice in a paragraph is
// refused: two readers could take different ones.
func Paragraphs(r io.Reader, each func(Paragraph) error) error {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(make([]byte, 0, 64<<10), maxLine)
	p, last := Paragraph{}, ""
	var further []string
	number := 0
	settle := func() {
		if len(further) > 0 {
			p[last] += "\n" + strings.Join(further, "\n")
		}
		further = further[:0]
	}
	flush := func() error {
		settle()
		if len(p) == 0 {
			return nil
		}
		done := p
		p, last = Paragraph{}, ""
		return each(done)
	}
	for scanner.Scan() {
		number++
		line := strings.TrimRight(scanner.Text(), " \t\r")
		switch {
		case line == "":
			if err := flush(); err != nil {
				return fmt.Errorf("paragraph before line %d: %w", number, err)
			}
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if last == "" {
				return fmt.Errorf("line %d continues nothing", number)
			}
			further = append(further, line[1:])
		default:
			settle()
			name, value, ok := strings.Cut(line, ":")
			if !ok || !fieldName(name) {
				return fmt.Errorf("line %d is not a field", number)
			}
			last = strings.ToLower(name)
			if _, twice := p[last]; twice {
				return fmt.Errorf("line %d: field %s stands twice", number, last)
			}
			p[last] = strings.TrimSpace(value)
		}
	}
	if err := scanner.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("line %d is longer than %d bytes", number+1, maxLine)
	} else if err != nil {
		return err
	}
	if err := flush(); err != nil {
		return fmt.Errorf("last paragraph: %w", err)
	}
	return nil
}

func fieldName(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && s[0] != '-'
}

// single returns the only paragraph of r.
func single(r io.Reader) (only Paragraph, err error) {
	err = Paragraphs(r, func(p Paragraph) error {
		if only != nil {
			return errors.New("a second paragraph")
		}
		only = p
		return nil
	})
	if err == nil && only == nil {
		err = errors.New("no paragraph")
	}
	return only, err
}
