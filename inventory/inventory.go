// Package inventory is the list of all facts that may exist in Lethe: what they
// are, what for, where they stand and how long.
//
// The list is inventory.json, a file for machines and people alike. Tests walk
// the store's schema, the APIs, the bundle and the usage batch, the log
// vocabulary and the files of the running programs, and fail on any column,
// field, event or file that no fact declares. The privacy policy shown to
// customers is generated from the same list, so it cannot promise what the
// programs do not keep.
package inventory

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
)

//go:embed inventory.json
var source []byte

// Fact is one thing that is known, somewhere, for some time.
type Fact struct {
	ID        string   `json:"id"`        // stable name, for instance "account.email"
	What      string   `json:"what"`      // one sentence for a customer
	Personal  bool     `json:"personal"`  // it is about a person
	Purpose   string   `json:"purpose"`   // why it is needed
	Retention string   `json:"retention"` // how long it exists
	Places    []string `json:"places"`    // where it stands; see [Inventory.Find]
}

// Never is something that must not exist outside the memory of a live
// session.
type Never struct {
	What string `json:"what"`
	How  string `json:"how"` // what makes sure of it
}

// Inventory is the whole list.
type Inventory struct {
	Version int     `json:"version"`
	Facts   []Fact  `json:"facts"`
	Never   []Never `json:"never"`
}

// Load returns the inventory of this program.
func Load() (*Inventory, error) { return Parse(source) }

// Parse reads and checks an inventory: no unknown keys, every field filled,
// ids and places unique.
func Parse(b []byte) (*Inventory, error) {
	var inv Inventory
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&inv); err != nil {
		return nil, fmt.Errorf("inventory: %w", err)
	}
	ids, places := map[string]bool{}, map[string]string{}
	for _, f := range inv.Facts {
		if f.ID == "" || f.What == "" || f.Purpose == "" || f.Retention == "" || len(f.Places) == 0 {
			return nil, fmt.Errorf("inventory: fact %q is incomplete", f.ID)
		}
		if ids[f.ID] {
			return nil, fmt.Errorf("inventory: fact %q stands twice", f.ID)
		}
		ids[f.ID] = true
		for _, p := range f.Places {
			if kind, name, ok := strings.Cut(p, ":"); !ok || !slices.Contains(Kinds(), kind) || name == "" {
				return nil, fmt.Errorf("inventory: fact %q: place %q is not kind:name", f.ID, p)
			}
			if other, ok := places[p]; ok {
				return nil, fmt.Errorf("inventory: place %q belongs to %q and %q", p, other, f.ID)
			}
			places[p] = f.ID
		}
	}
	return &inv, nil
}

// Kinds returns the kinds of places: a column of the store (table.column), a
// field of an API (schema.field), a field of the published bundle
// (file.field), a field of a log event (event.field), a file or memory that a
// program writes (program/path), and a kernel object of a server.
func Kinds() []string {
	return []string{"column", "wire", "bundle", "event", "file", "memory", "kernel"}
}

// Find returns the fact that declares a place, for instance
// "column:account.email". A declared place may hold * as in path.Match.
func (inv *Inventory) Find(place string) (Fact, bool) {
	for _, f := range inv.Facts {
		for _, p := range f.Places {
			if ok, err := path.Match(p, place); err == nil && ok {
				return f, true
			}
		}
	}
	return Fact{}, false
}

// Policy returns the privacy policy in Markdown: what exists about a customer,
// why, how long, and what does not exist.
func (inv *Inventory) Policy() string {
	var b strings.Builder
	b.WriteString("# Privacy policy\n\nThis page is generated from the data inventory that the programs are tested against.\n\n" +
		"## What we know of you\n\n| what | why | how long |\n|---|---|---|\n")
	for _, f := range inv.Facts {
		if f.Personal {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", f.What, f.Purpose, f.Retention)
		}
	}
	b.WriteString("\n## What does not exist\n\n")
	for _, n := range inv.Never {
		fmt.Fprintf(&b, "- %s %s\n", n.What, n.How)
	}
	b.WriteString("\n## What else our machines keep\n\nNone of this is about a person.\n\n| what | why | how long |\n|---|---|---|\n")
	for _, f := range inv.Facts {
		if !f.Personal {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", f.What, f.Purpose, f.Retention)
		}
	}
	return b.String()
}
