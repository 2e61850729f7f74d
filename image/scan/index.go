package scan

import (
	"bytes"
	"crypto/sha256"
	"unicode/utf16"
)

// form is something that secrets are recognised by.
type form struct {
	rule   string
	anchor string // at least two bytes that stand in it
	fold   bool   // the case of the anchor's letters does not matter
	// look looks closely at the bytes around the anchor at a place. It says what it found
	// without saying it, "" when it is nothing, and from where to where it is.
	look func(l *look, at int) (from, to int, what string)
}

// look is what is looked at.
type look struct {
	file
	kind kind
	b    []byte
}

func (l *look) finding(rule, what string, from, to int) Finding {
	f := Finding{Layer: l.layer, Path: l.path, Packed: l.packed, Offset: l.offset + int64(from), Rule: rule, What: what, Digest: sha256.Sum256(l.b[from:to]), end: l.offset + int64(to)}
	if l.kind == kindText && !l.raw {
		f.Line = 1 + bytes.Count(l.b[:from], []byte("\n"))
	}
	return f
}

// before and behind return the byte beside a span, 0 at the ends.
func (l *look) before(at int) byte {
	if at == 0 {
		return 0
	}
	return l.b[at-1]
}

func (l *look) behind(at int) byte {
	if at >= len(l.b) {
		return 0
	}
	return l.b[at]
}

// kind is what bytes are.
type kind int

const (
	kindBinary kind = iota
	kindText
)

// kindOf takes bytes for text when none of the first is one that texts do not have.
func kindOf(b []byte) kind {
	head := b[:min(len(b), 32<<10)]
	if bytes.ContainsFunc(head, func(r rune) bool { return r < 9 || r > 13 && r < 32 && r != 27 || r == 127 }) {
		return kindBinary
	}
	return kindText
}

// index finds all forms in one pass.
type index struct {
	first [1 << 16]uint16 // by two bytes: which list of forms, 0 for none
	lists [][]*form
}

func newIndex(all []form) *index {
	x := &index{lists: make([][]*form, 1)}
	for i := range all {
		f := &all[i]
		for _, a := range cases(f.anchor[0], f.fold) {
			for _, b := range cases(f.anchor[1], f.fold) {
				k := int(a)<<8 | int(b)
				if x.first[k] == 0 {
					x.first[k] = uint16(len(x.lists))
					x.lists = append(x.lists, nil)
				}
				x.lists[x.first[k]] = append(x.lists[x.first[k]], f)
			}
		}
	}
	return x
}

func cases(c byte, fold bool) []byte {
	if upper := c &^ 0x20; fold && upper >= 'A' && upper <= 'Z' {
		return []byte{upper, upper | 0x20}
	}
	return []byte{c}
}

// each calls found for every place where a form's anchor stands. It shares nothing that is
// written, and the race detector makes it thirty times slower.
//
//go:norace
func (x *index) each(b []byte, found func(f *form, at int)) {
	if len(b) < 2 {
		return
	}
	k := int(b[0])
	for i, c := range b[1:] {
		k = k<<8&0xffff | int(c)
		n := x.first[k]
		if n == 0 {
			continue
		}
		for _, f := range x.lists[n] {
			rest := b[i:]
			if len(rest) < len(f.anchor) {
				continue
			}
			if head := rest[:len(f.anchor)]; string(head) == f.anchor || f.fold && bytes.EqualFold(head, []byte(f.anchor)) {
				found(f, i)
			}
		}
	}
}

// needle returns the forms of a needle: as bytes, and as UTF-16 as FAT writes it.
func needle(n Needle) []form {
	wide := ""
	for _, u := range utf16.Encode([]rune(n.Value)) {
		wide += string([]byte{byte(u), byte(u >> 8)})
	}
	var all []form
	for _, v := range []string{n.Value, wide} {
		all = append(all, form{rule: "builder", anchor: v, look: func(_ *look, at int) (int, int, string) { return at, at + len(v), n.What }})
	}
	return all
}
