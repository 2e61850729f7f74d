package deb

import (
	"fmt"
	"strings"
)

// Relation is a package name with a condition on its version, for instance
// "libc6 (>= 2.38)" (deb-control(5), Depends).
type Relation struct {
	Name    string
	Op      string // "<<", "<=", "=", ">=", ">>", or nothing for any version
	Version Version
}

// String returns r as it stands in a control file.
func (r Relation) String() string {
	if r.Op == "" {
		return r.Name
	}
	return fmt.Sprintf("%s (%s %s)", r.Name, r.Op, r.Version)
}

// Met says whether version v fulfils the condition of r.
func (r Relation) Met(v Version) bool {
	c := v.Compare(r.Version)
	switch r.Op {
	case "":
		return true
	case "<<":
		return c < 0
	case "<=":
		return c <= 0
	case "=":
		return c == 0
	case ">=":
		return c >= 0
	}
	return c > 0
}

// Clause is a list of alternatives of which one is enough.
type Clause []Relation

// String returns c as it stands in a control file.
func (c Clause) String() string {
	all := make([]string, len(c))
	for i, r := range c {
		all[i] = r.String()
	}
	return strings.Join(all, " | ")
}

// ParseRelations reads a field of relations: clauses separated by commas,
// alternatives by bars. The qualifier :any and the one of the architecture are
// dropped, since one architecture is all there is; another architecture's
// stays in the name, which no package has. Architecture lists and build profiles
// are refused (binary packages have none).
func ParseRelations(s, architecture string) ([]Clause, error) {
	var clauses []Clause
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		var clause Clause
		for alternative := range strings.SplitSeq(part, "|") {
			r, err := parseRelation(strings.TrimSpace(alternative), architecture)
			if err != nil {
				return nil, err
			}
			clause = append(clause, r)
		}
		clauses = append(clauses, clause)
	}
	return clauses, nil
}

func parseRelation(s, architecture string) (r Relation, err error) {
	bad := fmt.Errorf("relation %.80q", s)
	name, condition, has := strings.Cut(s, "(")
	name = strings.TrimSpace(name)
	if base, qualifier, ok := strings.Cut(name, ":"); ok {
		if !PackageName(qualifier) {
			return r, bad
		}
		name = base
		if qualifier != "any" && qualifier != architecture {
			r.Name = ":" + qualifier
		}
	}
	if !PackageName(name) {
		return r, bad
	}
	r.Name = name + r.Name
	if !has {
		return r, nil
	}
	condition, closed := strings.CutSuffix(condition, ")")
	condition = strings.TrimSpace(condition)
	version := strings.TrimLeft(condition, "<=>")
	r.Op, r.Version = condition[:len(condition)-len(version)], Version(strings.TrimSpace(version))
	switch r.Op {
	case "<<", "<=", "=", ">=", ">>":
	default:
		return r, bad
	}
	if err := r.Version.Check(); err != nil || !closed {
		return r, bad
	}
	return r, nil
}

// PackageName says whether s can be the name of a package (Debian Policy 5.6.7;
// upper case is let through, as dpkg does).
func PackageName(s string) bool {
	for i := range len(s) {
		if c := s[i]; !letter(c) && !digit(c) && (i == 0 || !strings.ContainsRune("+-._", rune(c))) {
			return false
		}
	}
	return len(s) >= 2 && len(s) <= 200
}
