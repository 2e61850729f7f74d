package vici_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"lethe/private"
	"lethe/vici"
)

// example is the message that the protocol's definition encodes byte by byte.
var example = []byte("\x03\x04key1\x00\x06value1\x01\x08section1\x01\x0bsub-section\x03\x04key2\x00\x06value2\x02" +
	"\x04\x05list1\x05\x00\x05item1\x05\x00\x05item2\x06\x02")

func build() *vici.Message {
	return new(vici.Message).Set("key1", "value1").SetSection("section1",
		new(vici.Message).SetSection("sub-section", new(vici.Message).Set("key2", "value2")).SetList("list1", "item1", "item2"))
}

func TestExample(t *testing.T) {
	got, err := build().Append(nil)
	if err != nil || !bytes.Equal(got, example) {
		t.Errorf("got %q, %v, want %q", got, err, example)
	}
	m, err := vici.Parse(example)
	if err != nil {
		t.Fatal(err)
	}
	s := m.Section("section1")
	if m.Get("key1") != "value1" || s.Section("sub-section").Get("key2") != "value2" || fmt.Sprint(s.List("list1")) != "[item1 item2]" {
		t.Errorf("the example was not understood")
	}
	if m.Get("key2") != "" || m.List("key1") != nil || m.Section("key1") != nil || m.Section("x").Section("y").Get("z") != "" {
		t.Error("something out of nothing")
	}
	for name := range m.Section("nothing").Sections() {
		t.Errorf("section %q in none", name)
	}
	two := new(vici.Message).SetSection("a", nil).Set("b", "").SetSection("c", nil)
	for name := range two.Sections() {
		if name != "a" {
			t.Errorf("section %q after the break", name)
		}
		break
	}
}

// TestKeep shows that what was not asked for is not there.
func TestKeep(t *testing.T) {
	m, err := vici.Parse(example, "key2")
	if err != nil {
		t.Fatal(err)
	}
	s := m.Section("section1")
	if m.Get("key1") != "" || s.List("list1") != nil || s.Section("sub-section").Get("key2") != "value2" {
		t.Error("want key2 and nothing else")
	}
}

func TestPrintsNothing(t *testing.T) {
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%q", "%x"} {
		if got := fmt.Sprintf(verb, build()); got != private.Redacted {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}

func TestMalformed(t *testing.T) {
	for name, in := range map[string]string{
		"name cut":             "\x03\x05abc",
		"value cut":            "\x03\x01a\x00\x05abc",
		"value length cut":     "\x03\x01a\x00",
		"no name":              "\x03",
		"open section":         "\x01\x01a",
		"open list":            "\x04\x01a\x05\x00\x01x",
		"end without a start":  "\x02",
		"item without a list":  "\x05\x00\x01x",
		"end without a list":   "\x06",
		"section in a list":    "\x04\x01a\x01\x01b\x02\x06",
		"item cut":             "\x04\x01a\x05\x00\x09x",
		"unknown element":      "\x07\x01a",
		"zero":                 "\x00",
		"list in a list":       "\x04\x01a\x04\x01b\x06\x06",
		"error in a section":   "\x01\x01a\x03\x01b\x02",
		"nested without bound": strings.Repeat("\x01\x00", vici.MaxDepth+1) + strings.Repeat("\x02", vici.MaxDepth+1),
	} {
		if _, err := vici.Parse([]byte(in)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	deep := strings.Repeat("\x01\x00", vici.MaxDepth) + strings.Repeat("\x02", vici.MaxDepth)
	if _, err := vici.Parse([]byte(deep)); err != nil {
		t.Errorf("%d sections deep: %v", vici.MaxDepth, err)
	}
}

func TestTooLong(t *testing.T) {
	long := strings.Repeat("x", 1<<16)
	for name, m := range map[string]*vici.Message{
		"name":    new(vici.Message).Set(long[:256], ""),
		"value":   new(vici.Message).Set("a", long),
		"item":    new(vici.Message).SetList("a", long),
		"section": new(vici.Message).SetSection("a", new(vici.Message).Set("b", long)),
	} {
		if _, err := m.Append(nil); !errors.Is(err, vici.ErrTooLong) {
			t.Errorf("%s: %v", name, err)
		}
	}
	full := new(vici.Message).Set(long[:255], long[:65535]).SetList("", long[:65535])
	b, err := full.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := vici.Parse(b); err != nil || m.Get(long[:255]) != long[:65535] || m.List("")[0] != long[:65535] {
		t.Errorf("the longest values do not come back: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(example)
	f.Add([]byte("\x04\x00\x06\x01\x00\x02\x03\x00\x00\x00"))
	f.Add([]byte("\x03\x02up\x00\x03yes\x01\x05lethe\x03\x08uniqueid\x00\x017\x04\x0bremote-vips\x05\x00\x0a10.64.3.19\x05\x00\x16fd6c:6574:6865::313\x06\x02"))
	f.Add([]byte("\x01\x01a\x01\x01b\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := vici.Parse(b)
		if _, short := vici.Parse(b, "up", "remote-vips"); (err == nil) != (short == nil) {
			t.Errorf("%q is understood in part only: %v, %v", b, err, short)
		}
		if err != nil {
			return
		}
		if back, err := m.Append(nil); err != nil || !bytes.Equal(back, b) {
			t.Errorf("%q becomes %q, %v", b, back, err)
		}
	})
}
