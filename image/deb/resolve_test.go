package deb_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"lethe/image/deb"
)

// universe reads lines "suite name version | field: value | …".
func universe(t *testing.T, lines string) *deb.Universe {
	t.Helper()
	u := &deb.Universe{}
	for line := range strings.SplitSeq(strings.TrimSpace(lines), "\n") {
		parts := strings.Split(line, "~|")
		head := strings.Fields(parts[0])
		text := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nFilename: pool/%s\nSize: 1\nSHA256: %s\n", head[1], head[2], head[1], digestA)
		for _, field := range parts[1:] {
			text += strings.TrimSpace(field) + "\n"
		}
		if err := deb.ReadPackages(strings.NewReader(text), head[0], "amd64", func(p *deb.Package) error {
			u.Add(p)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

func TestResolve(t *testing.T) {
	const archive = `
		base app 1 ~| Depends: lib (>= 2), tool | other, virt ~| Pre-Depends: libc6
		base lib 1
		security lib 2.1
		base libc6 2
		base tool 1 ~| Depends: app, lib
		base other 1
		base virtual-one 1 ~| Provides: virt, versioned (= 3), crowd
		base multi-a 1 ~| Provides: multi
		base multi-b 1 ~| Provides: multi
		base needs-multi 1 ~| Depends: multi
		base needs-new 1 ~| Depends: lib (>= 9) | nothing
		base needs-nothing 1 ~| Depends: nothing
		base needs-versioned 1 ~| Depends: versioned (>= 2)
		base needs-newer 1 ~| Depends: versioned (>= 4)
		base needs-unversioned 1 ~| Depends: virt (>= 1)
		base enemy 1 ~| Conflicts: lib (<< 3)
		base breaker 1 ~| Breaks: crowd ~| Provides: crowd
		base peaceful 1 ~| Conflicts: lib (<< 2), nothing, peaceful-virt ~| Provides: peaceful-virt ~| Depends: lib
		base same 1
		other same 1`
	tests := []struct {
		name          string
		want, without []string
		got           string // names in order, or the error
		choices       int
	}{
		{"closure", []string{"app"}, nil, "app lib libc6 tool virtual-one", 1},
		{"chosen already", []string{"app", "other", "app"}, nil, "app lib libc6 other virtual-one", 0},
		{"without", []string{"app"}, []string{"libc6", "virt", "unheard"}, "app lib tool", 1},
		{"several providers", []string{"needs-multi"}, nil, "needs-multi needs multi: several packages provide it, and one must be wanted by name: multi-a, multi-b", 0},
		{"named provider", []string{"needs-multi", "multi-b"}, nil, "multi-b needs-multi", 0},
		{"too old", []string{"needs-new"}, nil, "needs-new 1 (base) needs lib (>= 9) | nothing: lib is 2.1 in security", 0},
		{"nowhere", []string{"needs-nothing"}, nil, "needs-nothing 1 (base) needs nothing: there is no such package", 0},
		{"versioned Provides", []string{"needs-versioned"}, nil, "needs-versioned virtual-one", 0},
		{"versioned Provides too old", []string{"needs-newer"}, nil, "needs-newer 1 (base) needs versioned (>= 4): there is no such package", 0},
		{"unversioned Provides", []string{"needs-unversioned"}, nil, "needs-unversioned 1 (base) needs virt (>= 1): there is no such package", 0},
		{"unknown", []string{"unheard"}, nil, "no package unheard in the archive", 0},
		{"conflict", []string{"enemy", "peaceful"}, nil, "enemy 1 conflicts with lib (<< 3); lib 2.1 is needed by peaceful, enemy by the list of wanted packages", 0},
		{"conflict with a virtual package", []string{"breaker", "virtual-one"}, nil, "breaker 1 conflicts with crowd; virtual-one 1 is needed by the list of wanted packages, breaker by the list of wanted packages", 0},
		{"no conflict", []string{"peaceful"}, nil, "lib peaceful", 0},
	}
	u := universe(t, archive)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := u.Resolve(deb.Query{Want: tt.want, Without: tt.without})
			var p *deb.Problem
			if errors.As(err, &p) {
				if err.Error() != tt.got || p.Package == "" {
					t.Errorf("error %q, want %q", err, tt.got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, p := range c.Packages {
				names = append(names, p.Name)
			}
			if got := strings.Join(names, " "); got != tt.got || len(c.Choices) != tt.choices {
				t.Errorf("%s with choices %v, want %s", got, c.Choices, tt.got)
			}
			if slices.Contains(tt.without, "unheard") != slices.Contains(c.Unused, "unheard") {
				t.Errorf("unused: %v", c.Unused)
			}
		})
	}
	c, err := u.Resolve(deb.Query{Want: []string{"app", "same"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Reason["lib"] != "app" || c.Reason["app"] != "" || c.Choices[0] != (deb.Choice{By: "app", Clause: "tool | other", Taken: "tool"}) {
		t.Errorf("%+v", c)
	}
	for _, p := range c.Packages {
		if p.Name == "same" && p.Suite != "base" || p.Name == "lib" && p.Suite != "security" {
			t.Errorf("%s is from %s", p.Name, p.Suite)
		}
	}
	u.Add(&deb.Package{Name: "app", Version: "2", Suite: "newer"})
	if c, err = u.Resolve(deb.Query{Want: []string{"app"}}); err != nil || len(c.Packages) != 1 {
		t.Error(c, err)
	}
}
