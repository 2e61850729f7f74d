package lock

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"golang.org/x/sync/errgroup"

	"lethe/fault"
	"lethe/image/deb"
	"lethe/image/store"
)

// Maker makes locks.
type Maker struct {
	Plan  Plan
	Store *store.Store
	Net   *Network
	Keys  openpgp.EntityList // of the Debian archive
	// SumDB is the verifier key of Go's checksum database; "" is the public one.
	SumDB string
	GoSum []byte // the tree's go.sum
	Now   time.Time
	Say   func(step string) // told what begins; may be nil
}

// Make asks archive and module proxy and returns a new lock. It never takes a
// suite that is older than in old, which may be nil: a mirror that hides updates
// is found out at the latest when the old lock has seen them.
func (m *Maker) Make(ctx context.Context, old *Lock) (*Lock, error) {
	l := &Lock{Architecture: m.Plan.Architecture, Toolchain: m.Plan.Toolchain}
	packages := &deb.Universe{}
	backported := map[string]bool{}
	for _, name := range m.Plan.Backported {
		backported[name] = true
	}
	for _, spec := range m.Plan.Suites {
		m.say("verifying " + spec.Name)
		release, suite, err := m.suite(ctx, spec, old)
		if err != nil {
			return nil, err
		}
		b, err := m.index(ctx, release, suite, "binary-"+l.Architecture+"/Packages")
		if err == nil {
			err = deb.ReadPackages(bytes.NewReader(b), spec.Name, l.Architecture, func(p *deb.Package) error {
				if !spec.Backports || backported[p.Source] {
					packages.Add(p)
				}
				return nil
			})
		}
		if err != nil {
			return nil, badIndex(spec.Name, err)
		}
		l.Suites = append(l.Suites, *suite)
	}
	m.say("resolving")
	if err := m.resolve(l, packages); err != nil {
		return nil, err
	}
	for i := range l.Suites {
		m.say("source packages of " + l.Suites[i].Name)
		if err := m.sources(ctx, l, &l.Suites[i]); err != nil {
			return nil, err
		}
	}
	if err := m.modules(ctx, l, old); err != nil {
		return nil, err
	}
	l.sortAll()
	if err := l.check(); err != nil {
		return nil, fault.Wrap(fault.Untrusted, "the archive's indexes do not fit together: "+err.Error(), err).WithHint(retry)
	}
	return l, nil
}

const retry = "the archive may be changing at this moment: try again in half an hour, or another mirror"

func (m *Maker) say(step string) {
	if m.Say != nil {
		m.Say(step)
	}
}

// suite fetches and verifies the Release file of a suite.
func (m *Maker) suite(ctx context.Context, spec SuiteSpec, old *Lock) (*deb.Release, *Suite, error) {
	path := "dists/" + spec.Name + "/InRelease"
	url, err := m.Net.url(spec.Archive, path)
	if err != nil {
		return nil, nil, err
	}
	signed, err := m.Net.bytes(ctx, url, deb.MaxRelease)
	if err != nil {
		return nil, nil, err
	}
	release, err := deb.OpenRelease(signed, m.Keys, m.Now)
	switch {
	case errors.Is(err, deb.ErrExpired):
		return nil, nil, fault.Wrap(fault.Expired, fmt.Sprintf("the archive's suite %s is %v", spec.Name, err), err).
			WithHint("the mirror no longer follows the archive, or this machine's clock is wrong: try another mirror")
	case errors.Is(err, deb.ErrFuture):
		return nil, nil, fault.Wrap(fault.Untrusted, fmt.Sprintf("the archive's suite %s is %v", spec.Name, err), err).WithHint("set this machine's clock")
	case err != nil:
		return nil, nil, fault.Wrap(fault.Untrusted, fmt.Sprintf("the archive's suite %s: %v", spec.Name, err), err).
			WithHint("the mirror is not what it should be, or the keys are too old: upgrade debian-archive-keyring, or name keys with --keyring")
	}
	if release.Codename != spec.Name {
		return nil, nil, fault.New(fault.Untrusted, fmt.Sprintf("the archive gave the suite %.60q for %s", release.Codename, spec.Name)).WithHint("try another mirror")
	}
	if old != nil {
		for _, s := range old.Suites {
			if s.Name == spec.Name && release.Date.Before(s.Date) {
				return nil, nil, fault.New(fault.Untrusted, fmt.Sprintf("the archive's suite %s is of %s, older than the lock's of %s", spec.Name,
					release.Date.Format(time.DateTime), s.Date.Format(time.DateTime))).WithHint("the mirror lags behind, or hides updates: try another mirror")
			}
		}
	}
	d, err := m.Store.Add(ctx, signed)
	if err != nil {
		return nil, nil, err
	}
	return release, &Suite{Name: spec.Name, Archive: spec.Archive, Date: release.Date, ValidUntil: release.ValidUntil, Key: release.Key,
		Release: deb.File{Path: path, Size: int64(len(signed)), SHA256: d}}, nil
}

// index fetches an index of the component main, notes it in the suite, and
// returns it without its compression.
func (m *Maker) index(ctx context.Context, release *deb.Release, suite *Suite, name string) ([]byte, error) {
	for _, ending := range []string{".xz", ".gz", ""} {
		path := "main/" + name + ending
		f, ok := release.File(path)
		if !ok {
			continue
		}
		f.Path = "dists/" + suite.Name + "/" + path
		if err := m.Net.put(ctx, m.Store, f, nil, m.indexURLs(release, suite, f)...); err != nil {
			return nil, err
		}
		b, err := m.Store.Get(f.SHA256)
		if err != nil {
			return nil, err
		}
		suite.Indexes = append(suite.Indexes, f)
		return unpack(ending, b)
	}
	return nil, fault.New(fault.Untrusted, fmt.Sprintf("the archive's suite %s has no index main/%s", suite.Name, name)).WithHint("try another mirror")
}

// sources looks up the source package of every package of a suite.
func (m *Maker) sources(ctx context.Context, l *Lock, suite *Suite) error {
	wanted := map[string]bool{} // name and version, not yet found
	names := map[string]bool{}
	for _, p := range l.Packages {
		if p.Suite == suite.Name {
			wanted[p.Source+" "+string(p.SourceVersion)], names[p.Source] = true, true
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	signed, err := m.Store.Get(suite.Release.SHA256)
	if err != nil {
		return err
	}
	release, err := deb.OpenRelease(signed, m.Keys, m.Now)
	if err != nil {
		return badIndex(suite.Name, err)
	}
	b, err := m.index(ctx, release, suite, "source/Sources")
	if err == nil {
		err = deb.ReadSources(bytes.NewReader(b), suite.Name, func(name string) bool { return names[name] }, func(s *deb.Source) error {
			if key := s.Name + " " + string(s.Version); wanted[key] {
				delete(wanted, key)
				slices.SortFunc(s.Files, func(a, b deb.File) int { return cmp.Compare(a.Path, b.Path) })
				l.Sources = append(l.Sources, Source(*s))
			}
			return nil
		})
	}
	if err != nil {
		return badIndex(suite.Name, err)
	}
	// Two suites may both use one source package.
	for _, s := range l.Sources {
		delete(wanted, s.Name+" "+string(s.Version))
	}
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		return fault.New(fault.NotFound, fmt.Sprintf("the archive's suite %s has a package built from %s, but not that source package", suite.Name, key)).WithHint(retry)
	}
	return nil
}

func badIndex(suite string, err error) error {
	var e *fault.Error
	if errors.As(err, &e) {
		return err
	}
	return fault.Wrap(fault.Untrusted, fmt.Sprintf("the archive's suite %s has an index that cannot be read: %v", suite, err), err).WithHint("try another mirror")
}

// resolve fills in packages, choices and what is left out, set by set.
func (m *Maker) resolve(l *Lock, u *deb.Universe) error {
	all := map[string]*Package{}
	for _, set := range m.Plan.Sets {
		q := deb.Query{}
		why := map[string]string{}
		for _, e := range set.Want {
			q.Want = append(q.Want, e.Name)
			why[e.Name] = e.Why
		}
		for _, e := range set.Without {
			q.Without = append(q.Without, e.Name)
			l.Left = append(l.Left, Left{Set: set.Name, Name: e.Name, Why: e.Why})
		}
		closure, err := u.Resolve(q)
		if err != nil {
			return fault.Wrap(fault.NotFound, "set "+set.Name+": "+err.Error(), err).WithHint("change what is wanted, image/lock/plan.go, or wait until the archive fits together again")
		}
		if len(closure.Unused) > 0 {
			return fault.New(fault.Invalid, fmt.Sprintf("set %s: nothing depends on %s, which is left out", set.Name, closure.Unused[0])).WithHint("take it out of image/lock/plan.go")
		}
		for _, c := range closure.Choices {
			l.Choices = append(l.Choices, Choice{Set: set.Name, By: c.By, Clause: c.Clause, Taken: c.Taken})
		}
		for _, p := range closure.Packages {
			k := all[p.Name]
			if k == nil {
				k = &Package{Name: p.Name, Version: p.Version, Architecture: p.Architecture, Suite: p.Suite, Why: why[p.Name], By: closure.Reason[p.Name],
					Source: p.Source, SourceVersion: p.SourceVersion, File: p.File}
				all[p.Name] = k
			}
			k.Sets = append(k.Sets, set.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		slices.Sort(all[name].Sets)
		l.Packages = append(l.Packages, *all[name])
	}
	return nil
}

// modules locks the Go toolchain and the modules of go.sum.
func (m *Maker) modules(ctx context.Context, l *Lock, old *Lock) error {
	m.say("Go toolchain and modules")
	wanted, err := parseGoSum(m.GoSum)
	if err != nil {
		return fault.Wrap(fault.Invalid, "go.sum cannot be read: "+err.Error(), err).WithHint("make it anew: go mod tidy")
	}
	toolchain, err := m.toolchain(ctx)
	if err != nil {
		return err
	}
	known := map[string]Module{}
	if old != nil {
		for _, o := range old.Modules {
			known[o.Path+" "+o.Version] = o
		}
	}
	l.GoSum = deb.Digest(digest(m.GoSum))
	l.Modules = append(wanted, toolchain)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i := range l.Modules {
		group.Go(func() error {
			w := &l.Modules[i]
			return m.module(ctx, w, known[w.Path+" "+w.Version])
		})
	}
	return group.Wait()
}
