package inventory_test

import (
	"database/sql"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"lethe/api"
	"lethe/authdb"
	"lethe/bundle"
	"lethe/event"
	"lethe/inventory"
	"lethe/private"
	"lethe/spec"
	"lethe/store/sqlite"
	"lethe/usage"
)

func load(t *testing.T) *inventory.Inventory {
	t.Helper()
	inv, err := inventory.Load()
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

func declared(t *testing.T, inv *inventory.Inventory, place string) {
	t.Helper()
	if _, ok := inv.Find(place); !ok {
		t.Errorf("%s is in the code but no fact of the inventory declares it", place)
	}
}

// fields returns the JSON names of a struct's fields, embedded ones included.
func fields(typ reflect.Type) []string {
	var names []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		if f.Anonymous {
			names = append(names, fields(f.Type)...)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// TestBundleIsDeclared walks what the control plane publishes.
func TestBundleIsDeclared(t *testing.T) {
	inv := load(t)
	for prefix, v := range map[string]any{
		"bundle:root.": bundle.Root{}, "bundle:manifest.": bundle.Manifest{}, "bundle:freshness.": bundle.Freshness{},
		"bundle:file.": bundle.File{}, "bundle:delegation.": bundle.Delegation{}, "bundle:key.": bundle.Key{},
		"bundle:envelope.": bundle.Envelope{}, "bundle:signature.": bundle.Signature{}, "bundle:node.json.": spec.Node{},
		"wire:Record.": usage.Record{}, "wire:Batch.": usage.Batch{},
	} {
		names := fields(reflect.TypeOf(v))
		if len(names) == 0 {
			t.Errorf("%T has no fields", v)
		}
		for _, n := range names {
			declared(t, inv, prefix+n)
		}
	}
	for _, name := range []string{bundle.GeoIPFile, bundle.DirectoryFile} {
		declared(t, inv, "bundle:"+name)
	}
	row := reflect.TypeOf(authdb.Row{})
	want := map[string]string{
		"Key": "bundle:authdb.key", "Secret": "bundle:authdb.secret", "PaidUntil": "bundle:authdb.paid_until",
		"Disabled": "bundle:authdb.flags", "Deleted": "bundle:authdb.flags",
	}
	for i := range row.NumField() {
		if f := row.Field(i); f.IsExported() {
			declared(t, inv, want[f.Name])
		}
	}
}

func TestEventsAreDeclared(t *testing.T) {
	inv := load(t)
	for _, e := range event.Vocabulary() {
		declared(t, inv, "event:"+event.Name(e))
	}
}

func TestFindIsExact(t *testing.T) {
	inv := load(t)
	for _, place := range []string{"column:account.created_at", "wire:Record.address", "file:lethe-node/log", "column:usage.server", "event/x"} {
		if f, ok := inv.Find(place); ok {
			t.Errorf("%s is declared by %s", place, f.ID)
		}
	}
}

// TestPolicy compares the committed privacy policy with the inventory. Set
// UPDATE=1 to write it.
func TestPolicy(t *testing.T) {
	const path = "../doc/privacy.md"
	want := load(t).Policy()
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the inventory gives; run UPDATE=1 go test ./inventory", path)
	}
}

func TestParseRefuses(t *testing.T) {
	fact := `{"id":"a","what":"w","purpose":"p","retention":"r","places":["column:a.b"]}`
	for in, want := range map[string]string{
		``:                                      "EOF",
		`{"facts":[{"colour":1}]}`:              "unknown field",
		`{"facts":[{"id":"a"}]}`:                "incomplete",
		`{"facts":[` + fact + `,` + fact + `]}`: "stands twice",
		`{"facts":[` + fact + `,` + strings.Replace(fact, `"a"`, `"b"`, 1) + `]}`: "belongs to",
		`{"facts":[` + strings.Replace(fact, "column:a.b", "nowhere", 1) + `]}`:   "not kind:name",
		`{"facts":[` + strings.Replace(fact, "column:a.b", "disk:x", 1) + `]}`:    "not kind:name",
	} {
		if _, err := inventory.Parse([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", in, err, want)
		}
	}
}

// TestColumnsAreDeclared walks the schema of a store.
func TestColumnsAreDeclared(t *testing.T) {
	inv := load(t)
	path := filepath.Join(t.TempDir(), "store")
	s, err := sqlite.Open(t.Context(), path, sqlite.Options{Key: private.Of([32]byte{1}), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query("SELECT m.name, c.name FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table'")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var table, column string
		if err := rows.Scan(&table, &column); err != nil {
			t.Fatal(err)
		}
		declared(t, inv, "column:"+table+"."+column)
	}
	if rows.Err() != nil || n < 20 {
		t.Errorf("%d columns found, %v", n, rows.Err())
	}
}

// TestWireIsDeclared walks the schemas of both APIs.
func TestWireIsDeclared(t *testing.T) {
	inv := load(t)
	for name, document := range api.Documents() {
		var d struct {
			Components struct {
				Schemas map[string]struct {
					Properties map[string]any `json:"properties"`
				} `json:"schemas"`
			} `json:"components"`
		}
		if err := json.Unmarshal(document, &d); err != nil {
			t.Fatal(err)
		}
		if len(d.Components.Schemas) < 3 {
			t.Errorf("%s has %d schemas", name, len(d.Components.Schemas))
		}
		for schema, s := range d.Components.Schemas {
			for property := range s.Properties {
				declared(t, inv, "wire:"+schema+"."+property)
			}
		}
	}
}
