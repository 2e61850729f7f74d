package systemd_test

import (
	"regexp"
	"strings"
	"testing"

	"lethe/systemd"
)

// TestNode looks for the users that the agent's unit names.
func TestNode(t *testing.T) {
	unit, image, users := systemd.Node()
	named := regexp.MustCompile(`(?m)^(?:User|SupplementaryGroups)=(.+)$`).FindAllStringSubmatch(string(unit), -1)
	if len(named) != 2 {
		t.Errorf("the unit names users %q", named)
	}
	for _, m := range named {
		for name := range strings.FieldsSeq(m[1]) {
			if !strings.Contains(string(users), "\nu "+name+" ") {
				t.Errorf("no user %s", name)
			}
		}
	}
	if !strings.Contains(string(image), "\nRequires=lethe-seal.service\n") {
		t.Error("in the image the agent starts without a closed kernel")
	}
}
