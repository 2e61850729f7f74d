package day_test

import (
	"encoding/json"
	"testing"
	"time"

	"lethe/day"
)

func TestRoundTrip(t *testing.T) {
	for _, s := range []string{"1970-01-01", "2000-02-29", "2026-11-23", "2149-06-06"} {
		d, err := day.Parse(s)
		if err != nil || d.String() != s {
			t.Errorf("%s becomes %v, %v", s, d, err)
		}
		b, err := json.Marshal(d)
		if err != nil || string(b) != `"`+s+`"` {
			t.Errorf("JSON of %s is %s, %v", s, b, err)
		}
		var back day.Day
		if err := json.Unmarshal(b, &back); err != nil || back != d {
			t.Errorf("JSON of %s comes back as %v, %v", s, back, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{"", "today", "2026-02-30", "2026-1-1", "1969-12-31", "2149-06-07", "2026-11-23T10:00:00Z"} {
		if d, err := day.Parse(s); err == nil {
			t.Errorf("%q parses as %v", s, d)
		}
	}
}

func TestOf(t *testing.T) {
	east := time.FixedZone("east", 14*3600)
	for _, c := range []struct {
		t    time.Time
		want string
	}{
		{time.Date(2026, 11, 23, 23, 59, 59, 999, time.UTC), "2026-11-23"},
		{time.Date(2026, 11, 24, 13, 59, 0, 0, east), "2026-11-23"},
		{time.Unix(-1, 0), "1970-01-01"},
		{time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC), "2149-06-06"},
	} {
		if got := day.Of(c.t).String(); got != c.want {
			t.Errorf("day of %v is %s, want %s", c.t, got, c.want)
		}
	}
	if today := day.Today(); today != day.Of(time.Now()) {
		t.Skip("midnight passed between two calls")
	}
}

func TestAdd(t *testing.T) {
	d, _ := day.Parse("2026-12-31")
	if got := d.Add(1).String(); got != "2027-01-01" {
		t.Errorf("got %s", got)
	}
	if d.Add(-1<<20) != 0 || d.Add(1<<20) != 0xffff {
		t.Error("Add does not saturate")
	}
}
