package protocol_test

import (
	"encoding/json"
	"testing"

	"lethe/protocol"
)

func TestNames(t *testing.T) {
	for _, p := range protocol.All() {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var back protocol.ID
		if err := json.Unmarshal(b, &back); err != nil || back != p {
			t.Errorf("%v comes back as %v, %v", p, back, err)
		}
	}
	if _, err := protocol.Parse("pptp"); err == nil {
		t.Error("an unknown protocol parses")
	}
	if got := protocol.ID(99).String(); got != "protocol-99" {
		t.Errorf("an unknown id prints %q", got)
	}
}
