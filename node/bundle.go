package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"lethe/authdb"
	"lethe/bundle"
	"lethe/day"
	"lethe/event"
	"lethe/fault"
	"lethe/geoip"
	"lethe/location"
	"lethe/notify"
	"lethe/private"
	"lethe/session"
	"lethe/spec"
)

// policy is what the server holds of the newest bundle: who may log in, where
// addresses are, what is expected of the server. It answers from memory.
type policy struct {
	id    string // this server
	users authdb.Live

	mu       sync.RWMutex
	geo      *geoip.DB
	freeGeo  func()
	segments map[bundle.Digest]*authdb.Segment // of the set in use, by content
	self     location.Server
	spec     spec.Node

	applied bool // the client's set is in use here; of the goroutine that follows
}

// keeper is the service manager.
type keeper struct{}

func (keeper) Store(name string, f *os.File) error { return notify.Store(name, f) }
func (keeper) Remove(name string) error            { return notify.Remove(name) }

// restore puts the set of an earlier instance to use and reports whether there is one:
// while the control plane is away, customers are let in as they were before.
func (p *policy) restore(client *bundle.Client, kept map[string]*os.File, log *event.Logger) bool {
	p.applied = client.Restore(kept, func(set *bundle.Set) error {
		if err := p.apply(set); err != nil {
			return err
		}
		log.Log(event.Applied{Version: set.Version()})
		return nil
	})
	return p.applied
}

// check decides about a login; see session.Config.
func (p *policy) check(l session.Login) error {
	username := []byte(l.Username.Reveal())
	if l.Proof != nil {
		return p.users.Prove(username, func(s *authdb.Secret) bool { return l.Proof((*[16]byte)(s)) }, day.Today()).Err()
	}
	return p.users.Check(username, []byte(l.Password.Reveal()), day.Today()).Err()
}

// allowed decides whether somebody who was let in may stay. While there is no
// valid database nobody is let in, but nobody is thrown out either: a control
// plane that is down must not end tunnels.
func (p *policy) allowed(username private.Value[string]) bool {
	row, found := p.users.Find([]byte(username.Reveal()))
	switch found {
	case authdb.OK:
		return row.Active(day.Today())
	case authdb.Unknown:
		return false
	default:
		return true
	}
}

// locate returns country and ISP, or "ZZ" and nothing before the first bundle.
func (p *policy) locate(a netip.Addr) (country, isp string) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.geo == nil {
		return "ZZ", ""
	}
	return p.geo.Lookup(a)
}

// node returns the specification in use.
func (p *policy) node() spec.Node {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.spec
}

// server returns what the directory says of this server, and whether there is
// a directory yet.
func (p *policy) server() (location.Server, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.self, p.self.ID != ""
}

// location returns where this server stands; 0 before the first bundle.
func (p *policy) location() location.ID {
	self, _ := p.server()
	return self.Location
}

// lapse lets nobody in any more.
func (p *policy) lapse() { p.users.Swap(nil) }

// apply puts a verified set to use, all of it or nothing. What an update did
// not change stays open, so an update costs about the size of the change. The
// set stays the caller's.
func (p *policy) apply(set *bundle.Set) error {
	invalid := func(err error) error {
		return fault.Wrap(fault.Invalid, "a file of the bundle is not what its name says", err)
	}
	file := func(name string) []byte { b, _ := set.File(name); return b }
	var directory location.Directory
	if err := json.Unmarshal(file(bundle.DirectoryFile), &directory); err != nil {
		return invalid(err)
	}
	self, ok := directory.Server(p.id)
	if !ok {
		return invalid(errors.New("this server is not in the directory"))
	}
	node, err := spec.Parse(file(bundle.NodeFile))
	if err != nil {
		return invalid(err)
	}
	db, segments, err := p.openUsers(set)
	if err != nil {
		return invalid(err)
	}
	// Without a GeoIP file records say that the origin is unknown; a damaged
	// one is refused with the rest.
	var geo *geoip.DB
	content, freeGeo, ok := set.Borrow(bundle.GeoIPFile)
	if ok {
		if geo, err = geoip.Open(content); err != nil {
			freeGeo()
			db.Close()
			return invalid(err)
		}
	}
	p.users.Swap(db)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.freeGeo != nil {
		p.freeGeo()
	}
	for digest, s := range p.segments {
		if segments[digest] != s {
			s.Close()
		}
	}
	p.geo, p.freeGeo, p.segments, p.self, p.spec = geo, freeGeo, segments, self, node
	return nil
}

// openUsers puts the segments of a set together and returns them by content.
func (p *policy) openUsers(set *bundle.Set) (*authdb.DB, map[bundle.Digest]*authdb.Segment, error) {
	segments := map[bundle.Digest]*authdb.Segment{}
	var ordered, opened []*authdb.Segment
	var err error
	for _, f := range set.Files() {
		if _, ok := bundle.SegmentSpan(f.Name); !ok {
			continue
		}
		_, digest := f.Content()
		s := p.segments[digest]
		if s == nil {
			content, release, _ := set.Borrow(f.Name)
			if s, err = authdb.Borrow(content, release); err != nil {
				break
			}
			opened = append(opened, s)
		}
		segments[digest] = s
		ordered = append(ordered, s)
	}
	var db *authdb.DB
	if err == nil {
		slices.SortFunc(ordered, func(a, b *authdb.Segment) int { return cmp.Compare(a.Head().From, b.Head().From) })
		db, err = authdb.NewDB(ordered...)
	}
	if err != nil {
		for _, s := range opened {
			s.Close()
		}
		return nil, nil, err
	}
	return db, segments, nil
}

// firstPoll is the poll interval of a server that has no bundle yet.
const firstPoll = time.Second

// follow keeps the policy up to date until ctx ends. Every try is told to
// polls: whether a new set is in use.
func (p *policy) follow(ctx context.Context, client *bundle.Client, log *event.Logger, polls chan<- bool) {
	last, lapsed := fault.Kind(0), false
	good := true
	for {
		changed, err := p.update(ctx, client, log)
		if ctx.Err() != nil {
			return
		}
		if kind := fault.Of(err); err != nil && (good || kind != last) {
			log.Log(event.Refused{Kind: kind})
			last = kind
		}
		good = err == nil
		expired := p.expired(client)
		if expired && !lapsed {
			p.lapse()
			log.Log(event.Lapsed{})
		}
		lapsed = expired
		select {
		case <-ctx.Done():
			return
		case polls <- changed:
		}
		every := time.Duration(p.node().PollSeconds) * time.Second
		if _, ok := p.server(); !ok {
			every = firstPoll // customers wait for this server
		}
		timer := time.NewTimer(every - rand.N(every/4))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// update looks for a new set and puts it to use. A set that verifies but
// cannot be used is refused like one that does not verify.
func (p *policy) update(ctx context.Context, client *bundle.Client, log *event.Logger) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	set, changed, err := client.Update(ctx)
	if changed {
		defer set.Close()
		if err = p.apply(set); err == nil {
			log.Log(event.Applied{Version: set.Version()})
		}
		p.applied = err == nil
	}
	// A set that cannot be used is of no use to the next instance either.
	if p.applied {
		if kept := client.Keep(keeper{}); kept != nil {
			log.Log(event.Trouble{Part: event.Bundle, Kind: fault.Of(kept)})
		}
	}
	return changed && err == nil, err
}

// expired reports whether the newest set has ended.
func (p *policy) expired(client *bundle.Client) bool {
	set := client.Current()
	if set == nil {
		return false
	}
	defer set.Close()
	return set.Expired(time.Now())
}
