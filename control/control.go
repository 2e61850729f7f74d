// Package control is the control plane: what the provider runs on one machine
// beside its servers.
//
// A data directory holds all of it: the store (lethe.sqlite), the keys (keys)
// and the signed roots (roots). [Init] makes one, [Open] opens it, for the
// service and for operator commands alike: both may have it open at once.
// [Run] is the program lethe-control; its commands are in the files account.go,
// place.go, usage.go, slots.go and keycommands.go, what they share in
// command.go.
//
// What an operator can find out about a customer stops where the store does:
// which licence, which app, and on which day how many megabytes through which
// location from which country and provider. There is no command that could say
// more, and no flag that would make it be kept.
package control

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"lethe/account"
	"lethe/api"
	"lethe/day"
	"lethe/event"
	"lethe/fault"
	"lethe/ratelimit"
	"lethe/store/sqlite"
)

// Control is an open data directory.
type Control struct {
	Keys
	Store    *sqlite.Store
	Accounts *account.Service
	Limiter  *ratelimit.Limiter // for addresses, shared with the APIs

	dir string
}

// limits are attempts a minute for one address or e-mail address. A purpose
// that is not here allows none. Heartbeats of all customers of a VPN server
// come from its address, two a minute from each.
func limits() map[string]int {
	return map[string]int{api.PurposeLogin: 10, api.PurposeSignUp: 10, api.PurposeApp: 600, api.PurposeBeat: 60000}
}

const storeFile = "lethe.sqlite"

// Init makes a data directory. It fails with fault.Conflict when there is
// anything at dir but an empty directory, and changes nothing then.
func Init(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(fault.Unavailable, "the data directory cannot be made", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fault.Wrap(fault.Unavailable, "the data directory cannot be read", err)
	}
	if len(entries) > 0 {
		return fault.New(fault.Conflict, "the data directory is not empty").WithHint("init makes a new one; it never overwrites")
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fault.Wrap(fault.Unavailable, "the data directory cannot be made private", err)
	}
	if err := makeKeys(dir, time.Now()); err != nil {
		return err
	}
	keys, err := loadKeys(dir)
	if err != nil {
		return err
	}
	s, err := sqlite.Open(ctx, filepath.Join(dir, storeFile), sqlite.Options{Key: keys.Data, Create: true})
	if err != nil {
		return err
	}
	return s.Close()
}

// Open opens a data directory. It fails with fault.NotFound when there is
// none, with fault.Denied when other users may read a part of it, and with
// fault.Internal when a part is missing or damaged. The caller closes it.
func Open(ctx context.Context, dir string) (*Control, error) {
	info, err := os.Stat(filepath.Join(dir, "keys"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "there is no data directory").WithHint("lethe-control init makes one")
	}
	if err != nil || info.Mode().Perm()&0o077 != 0 {
		return nil, fault.Wrap(fault.Denied, "the directory of the keys cannot be read, or other users may read it", err)
	}
	keys, err := loadKeys(dir)
	if err != nil {
		return nil, err
	}
	s, err := sqlite.Open(ctx, filepath.Join(dir, storeFile), sqlite.Options{Key: keys.Data})
	if err != nil {
		return nil, err
	}
	limiter := ratelimit.New(limits())
	accounts := account.New(account.Config{Store: s, Tokens: s, Limiter: limiter})
	return &Control{Keys: keys, Store: s, Accounts: accounts, Limiter: limiter, dir: dir}, nil
}

// Close closes the store and forgets what the limiter counted.
func (c *Control) Close() error {
	c.Limiter.Close()
	return c.Store.Close()
}

// UsageDays is how long usage rows are kept unless the operator says
// otherwise.
const UsageDays = 90

// Purge removes usage rows that are older than days days and returns how many.
func (c *Control) Purge(ctx context.Context, days int) (int64, error) {
	return c.Store.PurgeUsage(ctx, day.Today().Add(-days))
}

// Retain purges at once and then every day until ctx ends. A purge that fails
// is logged and tried again an hour later.
func (c *Control) Retain(ctx context.Context, days int, log *event.Logger) {
	for {
		wait := 24 * time.Hour
		if _, err := c.Purge(ctx, days); err != nil && ctx.Err() == nil {
			log.Log(event.Trouble{Part: event.Store, Kind: fault.Of(err)})
			wait = time.Hour
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}
