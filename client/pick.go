package client

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"lethe/fault"
	"lethe/location"
)

// choose returns the location that a person means by words: its code, its country's code or its
// city, in that order; empty words mean the last one used or else the first that has servers.
func choose(d location.Directory, words, last string) (location.Location, error) {
	if words == "" {
		if l, ok := d.Location(last); ok && len(servers(d, l)) > 0 {
			return l, nil
		}
	}
	fits := []func(location.Location) bool{
		func(l location.Location) bool { return words == "" },
		func(l location.Location) bool { return strings.EqualFold(l.Code, words) },
		func(l location.Location) bool { return strings.EqualFold(l.Country, words) },
		func(l location.Location) bool { return strings.EqualFold(l.City, words) },
	}
	var closed *location.Location
	for _, fit := range fits {
		for _, l := range d.Locations {
			if fit(l) && len(servers(d, l)) > 0 {
				return l, nil
			}
			if fit(l) && closed == nil {
				closed = &l
			}
		}
	}
	if closed != nil {
		return location.Location{}, fault.New(fault.Unavailable, "no server of "+closed.Code+" takes customers at the moment").
			WithHint("choose another one of `lethe locations`")
	}
	e := fault.New(fault.NotFound, fmt.Sprintf("no location %q", printable(words))).WithHint("see `lethe locations`")
	if near := closest(d, words); near != "" {
		e = e.WithHint(fmt.Sprintf("did you mean %s? `lethe locations` shows all", near))
	}
	return location.Location{}, e
}

// servers returns the servers of l that take customers, in random order so that they share the
// load.
func servers(d location.Directory, l location.Location) (all []location.Server) {
	for _, s := range d.Servers {
		if s.Location == l.ID && s.Enabled {
			all = append(all, s)
		}
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// closest returns the code of the location whose code or city looks most like words or has them in
// it, or nothing when none is near.
func closest(d location.Directory, words string) string {
	words = strings.ToLower(words)
	best, code := len(words)/2+1, ""
	for _, l := range d.Locations {
		for _, name := range []string{l.Code, strings.ToLower(l.City)} {
			n := distance(words, name)
			if len(words) > 2 && strings.Contains(name, words) {
				n = 0
			}
			if n < best {
				best, code = n, l.Code
			}
		}
	}
	return code
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := corner
			if a[i] != b[j] {
				change++
			}
			corner = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// byName sorts locations by country, then city.
func byName(all []location.Location) []location.Location {
	return slices.SortedFunc(slices.Values(all), func(a, b location.Location) int {
		return cmp.Or(strings.Compare(a.Country, b.Country), strings.Compare(a.City, b.City), strings.Compare(a.Code, b.Code))
	})
}

// printable returns at most 64 bytes of s without control characters, so that what somebody typed or
// a service sent cannot drive a terminal.
func printable(s string) string { return printableLine(s[:min(len(s), 64)]) }

func printableLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}
