package spec_test

import (
	"reflect"
	"strings"
	"testing"

	"lethe/spec"
)

func TestParse(t *testing.T) {
	n, err := spec.Parse([]byte(`{"poll_seconds": 7}`))
	if err != nil {
		t.Fatal(err)
	}
	want := spec.Default()
	want.PollSeconds = 7
	if !reflect.DeepEqual(n, want) {
		t.Errorf("got %+v, want %+v", n, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for in, want := range map[string]string{
		``:                              "EOF",
		`[]`:                            "cannot unmarshal",
		`{} {}`:                         "more than one",
		`{"log_user":"x"}`:              "unknown field",
		`{"poll_seconds":0}`:            "poll_seconds is 0",
		`{"usage_seconds":0}`:           "usage_seconds is 0",
		`{"keepalive_seconds":61}`:      "keepalive_seconds is 61",
		`{"renegotiate_seconds":1}`:     "renegotiate_seconds is 1",
		`{"block_tcp":[465]}`:           "must contain 25",
		`{"poll_seconds":"x"}`:          "cannot unmarshal",
		`{"renegotiate_seconds":86401}`: "renegotiate_seconds is 86401",
	} {
		if _, err := spec.Parse([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", in, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"poll_seconds": 7, "block_tcp": [25, 465]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := spec.Parse(b); err == nil && n.Validate() != nil {
			t.Errorf("Parse accepts what Validate refuses: %+v", n)
		}
	})
}
