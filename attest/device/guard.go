package device

import (
	"errors"
	"fmt"
	"time"
)

// Reading is what a TPM says of itself.
type Reading struct {
	Resets, Restarts uint32
	Clock            time.Duration // runs while the TPM has power, whatever the machine does
}

// ErrStopped says that the machine has not run all the time: it was suspended, paused,
// copied or put back to an earlier state. What it holds in memory may exist elsewhere.
var ErrStopped = errors.New("the machine was stopped and went on")

// Guard compares the TPM's clock with the machine's. A virtual machine that is
// paused, saved and resumed, or moved stands still while its TPM's clock goes on, or finds a TPM
// that is another or has gone back. A server that hears [ErrStopped] wipes its secrets
// and stops; it can be activated after a reboot.
type Guard struct {
	last Reading
	at   time.Duration // last, of the machine's own clock
	set  bool
}

const (
	guardSlack = 5 * time.Second
	guardRate  = 5 // a fifth: TPMs' clocks may be 15 % off (TPM 2.0 Library, part 1, 36.2)
)

// Check is called now and then with what the TPM says and the machine's own clock, one that
// stands still with the machine (CLOCK_MONOTONIC). The first call sets the beginning.
func (g *Guard) Check(now Reading, own time.Duration) error {
	if !g.set {
		g.last, g.at, g.set = now, own, true
		return nil
	}
	if now.Resets != g.last.Resets || now.Restarts != g.last.Restarts || now.Clock < g.last.Clock {
		return fmt.Errorf("%w: the TPM says %+v after %+v", ErrStopped, now, g.last)
	}
	tpm, machine := now.Clock-g.last.Clock, own-g.at
	if gap := (tpm - machine).Abs(); gap > guardSlack+machine.Abs()/guardRate {
		return fmt.Errorf("%w: %v by the TPM's clock, %v by its own", ErrStopped, tpm, machine)
	}
	g.last, g.at = now, own
	return nil
}
