// Package day holds calendar dates: the only time that a Lethe record may
// carry.
package day

import (
	"fmt"
	"time"
)

// Day is a date in UTC, counted in days since 1970-01-01. The zero Day is
// 1970-01-01 and stands for "never" in licences.
type Day uint16

const layout = "2006-01-02"

// Of returns the UTC date of t; it saturates at the ends of the range
// (1970-01-01 and 2149-06-06).
func Of(t time.Time) Day {
	switch n := t.Unix() / 86400; {
	case t.Unix() < 0:
		return 0
	case n > 0xffff:
		return 0xffff
	default:
		return Day(n)
	}
}

// Today returns the current date in UTC.
func Today() Day { return Of(time.Now()) }

// Parse reads a date of the form 2026-11-23 (RFC 3339 full-date).
func Parse(s string) (Day, error) {
	t, err := time.Parse(layout, s)
	if err != nil {
		return 0, fmt.Errorf("date %q: want the form 2026-11-23", s)
	}
	d := Of(t)
	if d.String() != s {
		return 0, fmt.Errorf("date %q: want a date from 1970-01-01 to 2149-06-06", s)
	}
	return d, nil
}

// Time returns the first instant of d in UTC.
func (d Day) Time() time.Time { return time.Unix(int64(d)*86400, 0).UTC() }

// Add returns the date n days after d, saturating at the ends of the range.
func (d Day) Add(n int) Day { return Day(min(max(int(d)+n, 0), 0xffff)) }

// String returns d in the form 2026-11-23.
func (d Day) String() string { return d.Time().Format(layout) }

// MarshalText implements [encoding.TextMarshaler].
func (d Day) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Day) UnmarshalText(text []byte) (err error) {
	*d, err = Parse(string(text))
	return err
}
