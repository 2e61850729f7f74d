package ratelimit_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lethe/private"
	"lethe/ratelimit"
)

// bubble runs a test with a clock of its own.
func bubble(t *testing.T, test func(t *testing.T, l *ratelimit.Limiter)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(map[string]int{"login": 10, "sign-up": 2, "much": 1 << 20})
		defer l.Close()
		test(t, l)
	})
}

// allowed returns how many of n attempts are allowed.
func allowed(l *ratelimit.Limiter, purpose, addr string, n int) (yes int) {
	for range n {
		if l.Allow(purpose, netip.MustParseAddr(addr)) {
			yes++
		}
	}
	return yes
}

func TestSubjects(t *testing.T) {
	for _, c := range []struct {
		name, first, second string
		purpose             string
		want                int // of 20 attempts by the second, after 20 by the first
	}{
		{"same IPv4", "192.0.2.1", "192.0.2.1", "login", 0},
		{"mapped IPv4", "192.0.2.1", "::ffff:192.0.2.1", "login", 0},
		{"other IPv4", "192.0.2.1", "192.0.2.2", "login", 10},
		{"same /56", "2001:db8:0:1::1", "2001:db8:0:ff::2", "login", 0},
		{"other /56", "2001:db8:0:1::1", "2001:db8:0:100::1", "login", 10},
		{"with a zone", "fe80::1%a", "fe80::1%b", "login", 0},
		{"other purpose", "192.0.2.1", "192.0.2.1", "sign-up", 2},
		{"unknown purpose", "192.0.2.1", "192.0.2.9", "no such", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, l *ratelimit.Limiter) {
				if got := allowed(l, "login", c.first, 20); got != 10 {
					t.Errorf("the first got %d of 20, want 10", got)
				}
				if got := allowed(l, c.purpose, c.second, 20); got != c.want {
					t.Errorf("the second got %d of 20, want %d", got, c.want)
				}
			})
		})
	}
	bubble(t, func(t *testing.T, l *ratelimit.Limiter) {
		if l.Allow("login", netip.Addr{}) {
			t.Error("allowed nobody")
		}
		n := 0
		for range 20 {
			if l.AllowSubject("login", private.Of("ann@example.org")) {
				n++
			}
		}
		if n != 10 || !l.AllowSubject("login", private.Of("ben@example.org")) {
			t.Errorf("%d attempts for a name, want 10", n)
		}
	})
}

// TestWindow follows a subject that tries all the time: about ten attempts a
// minute come through, and never more than twenty within two minutes.
func TestWindow(t *testing.T) {
	bubble(t, func(t *testing.T, l *ratelimit.Limiter) {
		var when []time.Time
		for range 600 {
			if allowed(l, "login", "192.0.2.1", 1) == 1 {
				when = append(when, time.Now())
			}
			time.Sleep(time.Second)
		}
		if len(when) < 80 || len(when) > 110 {
			t.Errorf("%d attempts in ten minutes, want about 100", len(when))
		}
		for i := range when[:len(when)-15] {
			if d := when[i+15].Sub(when[i]); d < time.Minute {
				t.Errorf("16 attempts within %v", d)
			}
		}
	})
	bubble(t, func(t *testing.T, l *ratelimit.Limiter) {
		allowed(l, "login", "192.0.2.1", 10)
		time.Sleep(59 * time.Second)
		if allowed(l, "login", "192.0.2.1", 1) != 0 {
			t.Error("allowed again within a minute")
		}
		time.Sleep(31 * time.Second)
		if got := allowed(l, "login", "192.0.2.1", 10); got != 5 {
			t.Errorf("allowed %d half a minute into the next window, want 5", got)
		}
		time.Sleep(3 * time.Minute)
		if got := allowed(l, "login", "192.0.2.1", 20); got != 10 {
			t.Errorf("allowed %d after a pause, want 10", got)
		}
	})
}

func TestForgetting(t *testing.T) {
	bubble(t, func(t *testing.T, l *ratelimit.Limiter) {
		if l.Empty() != true {
			t.Fatal("a new limiter holds counts")
		}
		for range 3 { // also after it forgot once
			allowed(l, "login", "192.0.2.1", 5)
			time.Sleep(30 * time.Second)
			if l.Empty() {
				t.Error("counts are gone after half a minute")
			}
			time.Sleep(4 * time.Minute)
			if !l.Empty() {
				t.Error("counts stand after four idle minutes")
			}
		}
		allowed(l, "login", "192.0.2.1", 5)
		l.Close()
		if !l.Empty() || allowed(l, "login", "192.0.2.2", 1) != 0 {
			t.Error("a closed limiter works on")
		}
		time.Sleep(5 * time.Minute)
	})
}

// TestFull counts one subject until its cells are full: it must not wrap to
// zero.
func TestFull(t *testing.T) {
	bubble(t, func(t *testing.T, l *ratelimit.Limiter) {
		if got := allowed(l, "much", "192.0.2.1", 1<<16+100); got != 1<<16-1 {
			t.Errorf("allowed %d, want 65535", got)
		}
	})
}

// TestFlood shows that 50,000 subjects in a minute hardly disturb each other.
func TestFlood(t *testing.T) {
	bubble(t, func(t *testing.T, l *ratelimit.Limiter) {
		for i := range 50000 {
			allowed(l, "login", netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String(), 1)
		}
		refused := 0
		for i := range 1000 {
			if got := allowed(l, "login", netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}).String(), 5); got < 5 {
				refused++
			}
		}
		if refused > 10 {
			t.Errorf("%d of 1000 innocent subjects were refused", refused)
		}
	})
}

func TestConcurrent(t *testing.T) {
	l := ratelimit.New(map[string]int{"login": 10})
	defer l.Close()
	var yes atomic.Int64
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() { yes.Add(int64(allowed(l, "login", "192.0.2.1", 100))) })
	}
	group.Wait()
	if yes.Load() != 10 {
		t.Errorf("%d allowed, want 10", yes.Load())
	}
}

func BenchmarkAllow(b *testing.B) {
	for _, subjects := range []uint32{1, 1 << 20} {
		b.Run(strconv.Itoa(int(subjects))+" subjects", func(b *testing.B) {
			l := ratelimit.New(map[string]int{"login": 10})
			defer l.Close()
			var a [4]byte
			for i := uint32(0); b.Loop(); i++ {
				binary.BigEndian.PutUint32(a[:], i%subjects)
				l.Allow("login", netip.AddrFrom4(a))
			}
			b.ReportMetric(2*4*65536*2, "B-state")
		})
	}
}

func ExampleLimiter() {
	l := ratelimit.New(map[string]int{"sign-up": 2})
	defer l.Close()
	for range 3 {
		fmt.Println(l.Allow("sign-up", netip.MustParseAddr("198.51.100.7")))
	}
	// Output:
	// true
	// true
	// false
}
