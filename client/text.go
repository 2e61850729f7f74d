package client

import (
	"fmt"
	"strings"
	"time"
)

// statusHead is the first line of a status for people: the state and the place.
func statusHead(s Status) string {
	place := printable(s.Location)
	if s.City != "" {
		place = fmt.Sprintf("%s, %s (%s)", printable(s.City), printable(s.Country), place)
	}
	switch {
	case place == "":
		return s.State.String()
	case s.State == Blocked:
		return "blocked on the way to " + place
	case s.State == Disconnecting:
		return "disconnecting from " + place
	}
	return s.State.String() + " to " + place
}

// carriage is how packets travel.
func carriage(s Status) string {
	name := printable(string(s.Protocol))
	for _, k := range kinds {
		if k.protocol == s.Protocol {
			name = k.name
		}
	}
	return name + " over " + strings.ToUpper(printable(string(s.Transport)))
}

// statusText is a status for people. full tells age and traffic of the tunnel too.
func statusText(s Status, full bool) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-14s %s\n", name+":", fmt.Sprintf(format, args...))
	}
	up := s.State == Connected
	b.WriteString(statusHead(s))
	if up && full {
		b.WriteString(" for " + age(s.Seconds))
	}
	b.WriteString("\n")
	switch {
	case up:
		line("server", "%s, %s", printable(s.Server), carriage(s))
		all := make([]string, len(s.Addresses))
		for i, a := range s.Addresses {
			all[i] = a.String()
		}
		if len(all) > 0 {
			line("addresses", "%s", strings.Join(all, ", "))
		}
		if !s.IPv6 {
			line("IPv6", "blocked, the server has none")
		}
	case s.Attempts > 1:
		line("server", "%s, attempt %d", printable(s.Server), s.Attempts)
	}
	if up && full {
		line("received", "%s", size(s.Received))
		line("sent", "%s", size(s.Sent))
	}
	if up && full && s.Slot == SlotOver {
		line("devices", "the licence's limit is reached without this one; it stays connected")
	}
	if s.Lock {
		line("network lock", "on")
	} else {
		line("network lock", "off")
	}
	if s.Problem != nil {
		line("problem", "%s", printableLine(s.Problem.Text))
		if s.Problem.Hint != "" {
			line("hint", "%s", printableLine(s.Problem.Hint))
		}
	}
	return b.String()
}

// statusLine is a status in one line.
func statusLine(s Status) string {
	text := statusHead(s)
	if s.State == Connected {
		text += fmt.Sprintf(" by %s, %s", printable(s.Server), carriage(s))
	}
	if s.Problem != nil {
		text += ": " + printableLine(s.Problem.Text)
	}
	return text + "\n"
}

// age is a duration in its two largest units.
func age(seconds int64) string {
	d := time.Duration(seconds) * time.Second
	h, m, s := int(d.Hours()), int(d.Minutes())%60, int(seconds%60)
	switch {
	case h >= 24:
		return fmt.Sprintf("%d d %d h", h/24, h%24)
	case h > 0:
		return fmt.Sprintf("%d h %d min", h, m)
	case m > 0:
		return fmt.Sprintf("%d min %d s", m, s)
	}
	return fmt.Sprintf("%d s", s)
}

// size is a number of bytes in the unit that suits it.
func size(n uint64) string {
	switch {
	case n < 1e3:
		return fmt.Sprintf("%d bytes", n)
	case n < 999_950: // what rounds to less than a thousand
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	case n < 999_950_000:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.2f GB", float64(n)/1e9)
}

// count is a number of things.
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}
