package deb

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Universe is the set of packages to choose from: one candidate for each name,
// the newest that was offered. Of two equal versions the first one stays, so
// the order of [Universe.Add] is part of the input.
type Universe struct {
	candidates map[string]*Package
	providers  map[string][]*Package // by provided name; made by Resolve
}

// Add offers p.
func (u *Universe) Add(p *Package) {
	if u.candidates == nil {
		u.candidates = map[string]*Package{}
	}
	u.providers = nil
	if old := u.candidates[p.Name]; old == nil || p.Version.Compare(old.Version) > 0 {
		u.candidates[p.Name] = p
	}
}

// Query is what to resolve.
type Query struct {
	Want []string // names of packages
	// Without holds packages, real or virtual, that are taken to be there: a
	// dependency on one of them counts as met and pulls in nothing.
	Without []string
}

// Choice is a dependency that several packages would have met.
type Choice struct {
	By     string // the package that has the dependency
	Clause string
	Taken  string // the package that was taken
}

// Closure is the answer to a [Query].
type Closure struct {
	Packages []*Package        // sorted by name
	Reason   map[string]string // by name: the package that first needed it; nothing for a wanted one
	Choices  []Choice          // sorted by package and clause
	Unused   []string          // names of Query.Without that changed nothing, sorted
}

// Problem is why there is no closure.
type Problem struct {
	Package string // the package that cannot be had, or has a dependency that cannot be met
	Text    string // one line: why, with what would have been needed
}

// Error returns the text.
func (p *Problem) Error() string { return p.Text }

func problem(name, format string, args ...any) error {
	return &Problem{Package: name, Text: fmt.Sprintf(format, args...)}
}

// Resolve returns the packages of q and all that they depend on (Depends and
// Pre-Depends; Recommends are left out). For each dependency, in the order of
// discovery: what is chosen already is enough; otherwise the first alternative
// that a real package meets; otherwise the only package that provides one. When
// several provide it, none is guessed: the error names them and one must be
// wanted. Conflicts and Breaks between chosen packages are errors. All errors
// are of type *[Problem].
func (u *Universe) Resolve(q Query) (*Closure, error) {
	u.index()
	s := &search{u: u, chosen: map[string]*Package{}, reason: map[string]string{}, without: map[string]bool{}}
	for _, name := range q.Without {
		s.without[name] = false
	}
	want := slices.Compact(slices.Sorted(slices.Values(q.Want)))
	for _, name := range want {
		p := u.candidates[name]
		if p == nil {
			return nil, problem(name, "no package %s in the archive", name)
		}
		s.take(p, "")
	}
	for i := 0; i < len(s.queue); i++ {
		for _, clause := range s.queue[i].Depends {
			if err := s.meet(s.queue[i], clause); err != nil {
				return nil, err
			}
		}
	}
	c := &Closure{Packages: s.queue, Reason: s.reason, Choices: s.choices}
	slices.SortFunc(c.Packages, func(a, b *Package) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(c.Choices, func(a, b Choice) int { return cmp.Or(cmp.Compare(a.By, b.By), cmp.Compare(a.Clause, b.Clause)) })
	for _, name := range slices.Sorted(maps.Keys(s.without)) {
		if !s.without[name] {
			c.Unused = append(c.Unused, name)
		}
	}
	return c, s.conflicts(c.Packages)
}

func (u *Universe) index() {
	if u.providers != nil {
		return
	}
	u.providers = map[string][]*Package{}
	for _, name := range slices.Sorted(maps.Keys(u.candidates)) {
		for _, c := range u.candidates[name].Provides {
			u.providers[c[0].Name] = append(u.providers[c[0].Name], u.candidates[name])
		}
	}
}

// search is one run of Resolve.
type search struct {
	u       *Universe
	chosen  map[string]*Package
	queue   []*Package
	reason  map[string]string
	without map[string]bool // whether it was of use
	choices []Choice
}

func (s *search) take(p *Package, by string) {
	if s.chosen[p.Name] == nil {
		s.chosen[p.Name] = p
		s.reason[p.Name] = by
		s.queue = append(s.queue, p)
	}
}

// provides says whether p is, or declares to be, what r asks for. A versioned
// relation is met by a versioned Provides only (Debian Policy 7.5).
func provides(p *Package, r Relation) bool {
	if p.Name == r.Name {
		return r.Met(p.Version)
	}
	for _, c := range p.Provides {
		if c[0].Name == r.Name && (r.Op == "" || c[0].Op == "=" && r.Met(c[0].Version)) {
			return true
		}
	}
	return false
}

func (s *search) meet(by *Package, clause Clause) error {
	var options []*Package // every package that would do
	for _, r := range clause {
		if _, ok := s.without[r.Name]; ok {
			s.without[r.Name] = true
			return nil
		}
		for _, p := range append([]*Package{s.u.candidates[r.Name]}, s.u.providers[r.Name]...) {
			if p == nil || !provides(p, r) || slices.Contains(options, p) {
				continue
			}
			if s.chosen[p.Name] != nil {
				return nil
			}
			options = append(options, p)
		}
	}
	if len(options) == 0 {
		return problem(by.Name, "%s %s (%s) needs %s: %s", by.Name, by.Version, by.Suite, clause, s.offers(clause))
	}
	take := options[0]
	if len(options) > 1 {
		real := slices.ContainsFunc(clause, func(r Relation) bool { return r.Name == take.Name })
		if !real {
			names := make([]string, len(options))
			for i, p := range options {
				names[i] = p.Name
			}
			return problem(by.Name, "%s needs %s: several packages provide it, and one must be wanted by name: %s", by.Name, clause, strings.Join(names, ", "))
		}
		s.choices = append(s.choices, Choice{By: by.Name, Clause: clause.String(), Taken: take.Name})
	}
	s.take(take, by.Name)
	return nil
}

// offers says what there is instead of what clause asks for.
func (s *search) offers(clause Clause) string {
	var there []string
	for _, r := range clause {
		if p := s.u.candidates[r.Name]; p != nil {
			there = append(there, fmt.Sprintf("%s is %s in %s", p.Name, p.Version, p.Suite))
		}
	}
	if len(there) == 0 {
		return "there is no such package"
	}
	return strings.Join(there, ", ")
}

func (s *search) conflicts(all []*Package) error {
	for _, p := range all {
		for _, clause := range p.Conflicts {
			for _, r := range clause {
				for _, other := range append([]*Package{s.chosen[r.Name]}, s.u.providers[r.Name]...) {
					if other != nil && other.Name != p.Name && s.chosen[other.Name] == other && provides(other, r) {
						return problem(p.Name, "%s %s conflicts with %s; %s %s is needed by %s, %s by %s", p.Name, p.Version, r,
							other.Name, other.Version, s.why(other.Name), p.Name, s.why(p.Name))
					}
				}
			}
		}
	}
	return nil
}

// why names who needs a package.
func (s *search) why(name string) string {
	return cmp.Or(s.reason[name], "the list of wanted packages")
}
