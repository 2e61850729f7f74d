package test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	once "lethe/image/trial"
	"lethe/image/vm"
)

// flips is how many damaged images TestFlips boots; `make campaign` says more.
var flips = flag.Int("flips", 24, "images with a flipped bit that are booted")

// fate is how far a damaged image gets.
type fate string

const (
	byFirmware fate = "refused by the firmware"
	byInit     fate = "refused by lethe-init"
	nothing    fate = "nothing to start is found"
	silent     fate = "nothing happens"
	started    fate = "starts" // the root file system was verified, systemd comes next
)

// What lethe-init says in the end.
const (
	stop     = "lethe: stop"
	verified = "lethe: root verified"
)

// silence is how long a damaged image may do nothing visible. Refusals take seconds.
const silence = 4 * time.Minute

// try boots a medium until its fate is known.
func try(ctx context.Context, iso string, slot vm.Slot, keys *once.Keys) (o fate, err error) {
	limited, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	m, err := vm.Start(ctx, vm.Options{Medium: iso, Slot: slot, Variables: keys.Variables})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	said, err := m.Console().WaitFor(limited, vm.Refused, vm.Nothing, vm.Shell, stop, verified)
	switch {
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return silent, nil
	case err != nil:
		return "", err
	case said == vm.Refused:
		return byFirmware, nil
	case said == stop:
		return byInit, nil
	case said != verified:
		return nothing, nil
	}
	return started, nil
}

// flip turns one bit of a file over.
func flip(path string, at int64, bit int) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	if err == nil {
		b[0] ^= 1 << bit
		_, err = f.WriteAt(b[:], at)
	}
	return errors.Join(err, f.Close())
}

// damage is one bit that is turned over.
type damage struct {
	region string
	at     int64
	bit    int
	slot   vm.Slot
}

func (d damage) String() string {
	return fmt.Sprintf("%-16s byte %9d bit %d, as %s", d.region, d.at, d.bit, d.slot)
}

// damages spreads n flips evenly over all regions of an image, at places that chance chooses.
func damages(image *once.Image, n int, chance *rand.Rand) (all []damage) {
	regions := image.Subject.Annotations.Regions
	for i := range n {
		r := regions[i%len(regions)]
		all = append(all, damage{r.Name, r.Offset + chance.Int64N(r.Length), chance.IntN(8), []vm.Slot{vm.Disk, vm.CD}[i%2]})
	}
	return all
}

// TestFlips boots images that are not signed, signed by somebody else, or damaged by one bit in
// each of their regions: none gets so far that its system starts.
func TestFlips(t *testing.T) {
	keys, image, iso := keysOf(t, "vm")
	foreign, _, foreignISO := keysOf(t, "vm")
	if slices.Equal(foreign.Variables, keys.Variables) {
		t.Fatal("two tries have equal keys")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(*flips+2)*silence)
	defer cancel()
	for name, path := range map[string]string{"not signed": image.Path, "signed by another key": foreignISO} {
		if got, err := try(ctx, path, vm.CD, keys); err != nil || got != byFirmware {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("chance begins with %d", seed)
	work := make(chan damage)
	var mu sync.Mutex
	count := map[fate]int{}
	var workers sync.WaitGroup
	for n := range runtime.NumCPU() { // a machine of one CPU keeps one busy
		mine := filepath.Join(t.TempDir(), fmt.Sprintf("%d.iso", n))
		if err := duplicate(mine, iso); err != nil {
			t.Fatal(err)
		}
		workers.Go(func() {
			for d := range work {
				began := time.Now()
				err := flip(mine, d.at, d.bit)
				var got fate
				if err == nil {
					got, err = try(ctx, mine, d.slot, keys)
				}
				err = errors.Join(err, flip(mine, d.at, d.bit))
				mu.Lock()
				count[got]++
				mu.Unlock()
				t.Logf("%s: %s (%.1f s)", d, got, time.Since(began).Seconds())
				if err != nil || got == started {
					t.Errorf("%s: %s, %v", d, got, err)
				}
			}
		})
	}
	for _, d := range damages(image, *flips, rand.New(rand.NewPCG(seed, 0))) {
		work <- d
	}
	close(work)
	workers.Wait()
	t.Logf("%d flips: %v", *flips, count)
}

func duplicate(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
