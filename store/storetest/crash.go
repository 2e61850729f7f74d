package storetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"lethe/account"
	"lethe/day"
	"lethe/fault"
	"lethe/usage"
)

// The environment variable that makes a test program the writer of [crash].
const writerDir = "LETHE_STORETEST_WRITER"

// Main runs the tests, or the writer that the crash test starts. Call it from
// TestMain.
func Main(m *testing.M, open Open) {
	dir := os.Getenv(writerDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	fmt.Fprintln(os.Stderr, writer(dir, open, os.Stdout))
	os.Exit(1)
}

// writer adds numbered accounts and usage batches for ever and says so after
// each that was acknowledged. It returns only with an error.
func writer(dir string, open Open, out io.Writer) error {
	s, err := open(dir, false)
	if err != nil {
		return err
	}
	ctx := context.Background()
	for n := 1; ; n++ {
		err := errors.Join(
			s.AddAccount(ctx, Record("w"+strconv.Itoa(n))),
			s.AcceptUsage(ctx, "w", batch(row(7, 7, 1, 2))),
			s.EditAccount(ctx, "id-hot", func(r *account.Record) error { r.Licence.PaidUntil++; return nil }),
		)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, n); err != nil {
			return err
		}
	}
}

// crash kills a writing process several times and checks that what it
// acknowledged is there, that at most the unacknowledged rest is there too, and
// that the store works on.
func crash(t *testing.T, b *bench) {
	ctx := t.Context()
	hot := Record("hot")
	hot.Licence.PaidUntil = 0
	must(t, b.AddAccount(ctx, hot))
	must(t, b.Close())
	total := 0
	for round := range 4 {
		acknowledged := killed(t, b.dir, 5+7*round)
		b.Store = b.again(t, false)
		r, err := b.Account(ctx, "id-hot")
		must(t, err)
		rows, err := b.UsageOf(ctx, usage.UserHash{7}, 7, 7)
		must(t, err)
		if len(rows) != 1 || rows[0].Out != 2*rows[0].In {
			t.Fatalf("usage rows %+v: half a batch", rows)
		}
		for what, got := range map[string]int{"edits": int(r.Licence.PaidUntil), "batches": int(rows[0].In)} {
			if got < total+acknowledged || got > total+acknowledged+1+round {
				t.Errorf("%d %s, want %d or little more", got, what, total+acknowledged)
			}
		}
		for n := 1; n <= acknowledged; n++ {
			_, err := b.Account(ctx, account.ID("id-w"+strconv.Itoa(n)))
			must(t, err)
			must(t, b.DeleteAccount(ctx, account.ID("id-w"+strconv.Itoa(n))))
		}
		if err := b.DeleteAccount(ctx, account.ID("id-w"+strconv.Itoa(acknowledged+1))); err != nil && fault.Of(err) != fault.NotFound {
			t.Error(err)
		}
		total += acknowledged
		must(t, b.Close())
	}
	b.Store = b.again(t, false)
}

// killed starts a writer, kills it after it acknowledged some rounds, and
// returns how many it had acknowledged when it died.
func killed(t *testing.T, dir string, rounds int) (acknowledged int) {
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = append(os.Environ(), writerDir+"="+dir)
	var complaint strings.Builder
	c.Stderr = &complaint
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		acknowledged, err = strconv.Atoi(lines.Text())
		must(t, err)
		if acknowledged == rounds {
			must(t, c.Process.Kill())
		}
	}
	if err := c.Wait(); err == nil || acknowledged < rounds {
		t.Fatalf("the writer ended by itself after %d: %v %s", acknowledged, err, complaint.String())
	}
	return acknowledged
}

// concurrency runs writers and readers on two handles at once and checks the
// sums.
func concurrency(t *testing.T, b *bench) {
	const workers, rounds = 6, 12
	ctx := t.Context()
	other := b.again(t, false)
	hot := Record("hot")
	hot.Licence.PaidUntil = 0
	must(t, b.AddAccount(ctx, hot))
	var group sync.WaitGroup
	for w := range workers {
		s := b.Store
		if w%2 == 1 {
			s = other
		}
		group.Go(func() {
			for n := range rounds {
				name := fmt.Sprintf("w%d-%d", w, n)
				err := errors.Join(
					s.EditAccount(ctx, hot.ID, func(r *account.Record) error { r.Licence.PaidUntil++; return nil }),
					s.AcceptUsage(ctx, "server"+strconv.Itoa(w), batch(row(7, 7, 1, 2), row(byte(10+w), day.Day(n), 1, 1))),
					s.AddAccount(ctx, Record(name)),
					s.EachAccount(ctx, func(account.Record) error { return nil }),
				)
				if _, err2 := s.NextVersion(ctx, 0); errors.Join(err, err2) != nil {
					t.Error(err, err2)
				}
			}
		})
	}
	group.Wait()
	r, err := other.Account(ctx, hot.ID)
	must(t, err)
	if r.Licence.PaidUntil != workers*rounds {
		t.Errorf("%d edits, want %d", r.Licence.PaidUntil, workers*rounds)
	}
	wantUsage(t, b, 7, row(7, 7, workers*rounds, 2*workers*rounds))
	if v, err := b.NextVersion(ctx, 0); err != nil || v != workers*rounds+1 {
		t.Errorf("version %d, %v; want %d", v, err, workers*rounds+1)
	}
	if got, _ := pending(t, b, 1000); len(got) != workers*rounds+1 {
		t.Errorf("%d changes, want %d", len(got), workers*rounds+1)
	}
}
