package node_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lethe/node"
)

func TestLoadConfig(t *testing.T) {
	absent, err := node.LoadConfig(filepath.Join(t.TempDir(), "none.json"))
	if err != nil || absent.Version != 1 || absent.Uplinks[0] != "eth0" {
		t.Errorf("an absent file gives %+v, %v", absent, err)
	}
	path := filepath.Join(t.TempDir(), "node.json")
	for in, want := range map[string]string{
		`{"version":1,"uplinks":["wan0"],"processes":2,"floor_version":7,"floor_time":"2026-11-23T00:00:00Z"}`: "",
		`{`:                       "configuration node.json",
		`{"log":"on"}`:            "unknown field",
		`{"version":2}`:           "version is 2",
		`{"uplinks":[]}`:          "at least one uplink",
		`{"openvpn_user":0}`:      "three users",
		`{"ikev2_user":64101}`:    "three users",
		`{"processes":-1}`:        "processes is -1",
		`{"resolver_user":64100}`: "three users",
	} {
		if err := os.WriteFile(path, []byte(in), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := node.LoadConfig(path)
		if want == "" {
			if err != nil || c.Uplinks[0] != "wan0" || c.FloorVersion != 7 || c.FloorTime.IsZero() {
				t.Errorf("%s: %+v, %v", in, c, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", in, err, want)
		}
	}
	// A defaulted configuration can be written down and read back.
	b, err := json.Marshal(absent)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := node.LoadConfig(path); err != nil {
		t.Error(err)
	}
	if _, err := node.LoadConfig(t.TempDir()); err == nil {
		t.Error("a directory was read as a configuration")
	}
}

func TestCommands(t *testing.T) {
	none := func(string) string { return "" }
	for _, c := range []struct {
		args  []string
		stdin string
		want  string // of the output or the error
		fails bool
	}{
		{[]string{"version"}, "", "lethe-node 0.", false},
		{[]string{"--help"}, "", "Serve until told to stop", false},
		{[]string{"run"}, "", "no runtime directory", true},
		{[]string{"run", "--config", "/proc/self/mem"}, "", "configuration", true},
		{[]string{"handover"}, "", "unknown command", true},
		{[]string{"fly"}, "", "unknown command", true},
		{[]string{"help", "fly"}, "", `no command "fly"`, true},
	} {
		var out bytes.Buffer
		root := node.Command(strings.NewReader(c.stdin), &out, &out, none)
		root.SetArgs(c.args)
		err := root.ExecuteContext(context.Background())
		if (err != nil) != c.fails {
			t.Errorf("%v: %v", c.args, err)
		}
		got := out.String()
		if err != nil {
			got += err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%v: got %q, want %q", c.args, got, c.want)
		}
	}
}
