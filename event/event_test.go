package event_test

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"strings"
	"testing"

	"lethe/event"
	"lethe/fault"
)

// TestVocabularyIsClosed walks the fields of every event and fails on any that
// could carry text, bytes, an address or a time.
func TestVocabularyIsClosed(t *testing.T) {
	allowed := map[string]bool{"event.Part": true, "fault.Kind": true, "int": true, "uint64": true, "bool": true}
	names := map[string]bool{}
	for _, e := range event.Vocabulary() {
		if names[event.Name(e)] {
			t.Errorf("two events are named %q", event.Name(e))
		}
		names[event.Name(e)] = true
		typ := reflect.TypeOf(e)
		for i := range typ.NumField() {
			if f := typ.Field(i); !allowed[f.Type.String()] {
				t.Errorf("%s.%s has type %s", typ, f.Name, f.Type)
			}
		}
		if line := event.Format(e); !strings.HasPrefix(line, event.Name(e)) || strings.Contains(line, "\n") {
			t.Errorf("%s prints %q", typ, line)
		}
	}
}

// TestVocabularyIsComplete fails when a type implements Event but is missing
// from Vocabulary, where the other tests would not see it.
func TestVocabularyIsComplete(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "vocabulary.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, e := range event.Vocabulary() {
		listed[reflect.TypeOf(e).Name()] = true
	}
	found := 0
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Name.Name != "name" || f.Recv == nil {
			continue
		}
		found++
		if id, ok := f.Recv.List[0].Type.(*ast.Ident); !ok || !listed[id.Name] {
			t.Errorf("%v implements Event but is not in Vocabulary", f.Recv.List[0].Type)
		}
	}
	if found != len(listed) {
		t.Errorf("%d events implemented, %d listed", found, len(listed))
	}
}

func TestLog(t *testing.T) {
	var out bytes.Buffer
	l := event.New(&out)
	l.Log(event.Trouble{Part: event.Publisher, Kind: fault.Full})
	l.Log(event.Restarted{Part: event.OpenVPN, Index: 1, Count: 7})
	l.Log(event.Lapsed{})
	want := "trouble part=publisher kind=full\nrestarted part=openvpn index=1 count=7\nbundle.lapsed\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	var none *event.Logger
	none.Log(event.Lapsed{})
	none.Stray().Print("dropped")
	event.New(brokenWriter{}).Log(event.Lapsed{})
}

func TestStrayIsDropped(t *testing.T) {
	var out bytes.Buffer
	l := event.New(&out)
	l.Stray().Printf("http: TLS handshake error from %s", "203.0.113.7:4711")
	if out.Len() != 0 || l.Strays() != 1 {
		t.Errorf("a library's line was written: %q, counted %d", out.String(), l.Strays())
	}
}

func TestKey(t *testing.T) {
	if got := event.Key("FieldName"); got != "field_name" {
		t.Errorf("got %q", got)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken") }
