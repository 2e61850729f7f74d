package vici

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"lethe/private"
)

// Message is a section of a VICI message: keys with values, lists and further sections, in order. The
// message itself is the outermost section. The zero value is an empty message. It is not safe for
// concurrent use.
//
// What charon reports holds customers' names and addresses, so a message prints as a constant.
type Message struct{ elements []element }

// element is a member of a section. Exactly one of value, items and section is meant, as kind says.
type element struct {
	kind    byte
	name    string
	value   string
	items   []string
	section *Message
}

// The types of elements of a message ("Message format" in README.md of the plugin).
const (
	sectionStart = 1
	sectionEnd   = 2
	keyValue     = 3
	listStart    = 4
	listItem     = 5
	listEnd      = 6
)

// maxDepth is how deep sections may be nested in what is read. Charon nests four deep.
const maxDepth = 16

// Errors of the decoder. They say what is wrong, never what was read.
var (
	errTruncated = errors.New("vici: message ends within an element")
	errElement   = errors.New("vici: element where it cannot stand")
	errOpen      = errors.New("vici: message ends within a section or list")
	errDepth     = fmt.Errorf("vici: sections nested more than %d deep", maxDepth)
)

// ErrTooLong says that a name is longer than 255 bytes, a value longer than 65,535 or a message longer
// than 512 KiB.
var ErrTooLong = errors.New("vici: name, value or message too long")

// Format implements [fmt.Formatter] for all verbs.
func (*Message) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, private.Redacted) }

// Set adds a key with a value, which may be any bytes, and returns m.
func (m *Message) Set(key, value string) *Message {
	m.elements = append(m.elements, element{kind: keyValue, name: key, value: value})
	return m
}

// SetList adds a list and returns m.
func (m *Message) SetList(name string, items ...string) *Message {
	m.elements = append(m.elements, element{kind: listStart, name: name, items: items})
	return m
}

// SetSection adds a section and returns m. The section may still be changed.
func (m *Message) SetSection(name string, s *Message) *Message {
	m.elements = append(m.elements, element{kind: sectionStart, name: name, section: s})
	return m
}

// find returns the first element of that kind and name, or an empty one.
func (m *Message) find(kind byte, name string) element {
	if m != nil {
		for _, e := range m.elements {
			if e.kind == kind && e.name == name {
				return e
			}
		}
	}
	return element{}
}

// Get returns the value of a key, "" if there is none. A nil message is empty.
func (m *Message) Get(key string) string { return m.find(keyValue, key).value }

// List returns the items of a list, nil if there is none.
func (m *Message) List(name string) []string { return m.find(listStart, name).items }

// Section returns a section, nil if there is none.
func (m *Message) Section(name string) *Message { return m.find(sectionStart, name).section }

// Sections yields the names and contents of all sections directly in m, in order.
func (m *Message) Sections() iter.Seq2[string, *Message] {
	return func(yield func(string, *Message) bool) {
		if m == nil {
			return
		}
		for _, e := range m.elements {
			if e.kind == sectionStart && !yield(e.name, e.section) {
				return
			}
		}
	}
}

// append encodes m after b.
func (m *Message) append(b []byte) ([]byte, error) {
	if m == nil {
		return b, nil
	}
	var err error
	for _, e := range m.elements {
		if len(e.name) > 0xff || len(e.value) > 0xffff {
			return b, ErrTooLong
		}
		b = append(b, e.kind, byte(len(e.name)))
		b = append(b, e.name...)
		switch e.kind {
		case keyValue:
			b = appendValue(b, e.value)
		case listStart:
			for _, item := range e.items {
				if len(item) > 0xffff {
					return b, ErrTooLong
				}
				b = appendValue(append(b, listItem), item)
			}
			b = append(b, listEnd)
		case sectionStart:
			if b, err = e.section.append(b); err != nil {
				return b, err
			}
			b = append(b, sectionEnd)
		}
	}
	return b, nil
}

func appendValue(b []byte, v string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(v))), v...)
}

// decoder reads a message. Values of keys and lists whose names keep does not hold are skipped and never
// copied; nil keeps everything.
type decoder struct {
	b    []byte
	keep []string
}

// parse reads a whole message.
func parse(b []byte, keep []string) (*Message, error) {
	d := decoder{b, keep}
	return d.section(0)
}

// section reads up to the end of a section, or of the message at depth 0.
func (d *decoder) section(depth int) (*Message, error) {
	if depth > maxDepth {
		return nil, errDepth
	}
	m := &Message{}
	for {
		if len(d.b) == 0 {
			if depth > 0 {
				return nil, errOpen
			}
			return m, nil
		}
		kind := d.b[0]
		d.b = d.b[1:]
		if kind == sectionEnd && depth > 0 {
			return m, nil
		}
		if kind != sectionStart && kind != keyValue && kind != listStart {
			return nil, errElement
		}
		raw, err := d.take(1)
		if err != nil {
			return nil, err
		}
		e := element{kind: kind, name: string(raw)}
		wanted := d.keep == nil || slices.Contains(d.keep, e.name)
		switch kind {
		case sectionStart:
			e.section, err = d.section(depth + 1)
			wanted = true
		case keyValue:
			if raw, err = d.take(2); wanted {
				e.value = string(raw)
			}
		case listStart:
			e.items, err = d.list(wanted)
		}
		if err != nil {
			return nil, err
		}
		if wanted {
			m.elements = append(m.elements, e)
		}
	}
}

// list reads the items of a list up to its end.
func (d *decoder) list(wanted bool) ([]string, error) {
	var items []string
	for {
		if len(d.b) == 0 {
			return nil, errOpen
		}
		kind := d.b[0]
		d.b = d.b[1:]
		switch kind {
		case listEnd:
			return items, nil
		case listItem:
			raw, err := d.take(2)
			if err != nil {
				return nil, err
			}
			if wanted {
				items = append(items, string(raw))
			}
		default:
			return nil, errElement
		}
	}
}

// take returns the bytes whose length stands before them in size bytes. They are still d's.
func (d *decoder) take(size int) ([]byte, error) {
	if len(d.b) < size {
		return nil, errTruncated
	}
	n := int(d.b[0])
	if size == 2 {
		n = n<<8 | int(d.b[1])
	}
	d.b = d.b[size:]
	if len(d.b) < n {
		return nil, errTruncated
	}
	raw := d.b[:n]
	d.b = d.b[n:]
	return raw, nil
}
