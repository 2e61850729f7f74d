package fault_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"lethe/fault"
)

func TestKindsHaveNamesAndStatuses(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range fault.Kinds() {
		if seen[k.String()] {
			t.Errorf("two kinds are named %q", k)
		}
		seen[k.String()] = true
		if fault.Parse(k.String()) != k {
			t.Errorf("%q parses as %q", k, fault.Parse(k.String()))
		}
		if fault.FromStatus(k.Status()) != k {
			t.Errorf("status %d becomes %q", k.Status(), fault.FromStatus(k.Status()))
		}
		if s := k.Status(); s < 400 || s > 599 {
			t.Errorf("%s has status %d", k, s)
		}
	}
	if fault.FromStatus(418) != fault.Unavailable {
		t.Error("an unknown status has a meaning")
	}
	if fault.Parse("no such kind") != fault.Internal || fault.Kind(200).String() != "internal" || fault.Kind(200).Status() != 500 {
		t.Error("an unknown kind is not internal")
	}
}

func TestOf(t *testing.T) {
	cause := fs.ErrNotExist
	err := fmt.Errorf("open: %w", fault.Wrap(fault.Expired, "the licence has ended", cause).WithHint("extend it"))
	if got := fault.Of(err); got != fault.Expired {
		t.Errorf("kind %v, want expired", got)
	}
	if !errors.Is(err, cause) {
		t.Error("the cause is not reachable")
	}
	if !errors.Is(err, fault.New(fault.Expired, "")) || errors.Is(err, fault.New(fault.Denied, "")) {
		t.Error("matching by kind is wrong")
	}
	if got := err.Error(); got != "open: the licence has ended" {
		t.Errorf("message %q holds more than the public text", got)
	}
	var e *fault.Error
	if !errors.As(err, &e) || e.Hint != "extend it" {
		t.Error("the hint is lost")
	}
	if fault.Of(cause) != fault.Internal || fault.Of(nil) != fault.Internal {
		t.Error("an unclassified error is not internal")
	}
}
