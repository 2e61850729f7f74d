package version

import (
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
)

func TestNumber(t *testing.T) {
	// The pattern that the app API demands of an activation.
	if !regexp.MustCompile(`^[0-9]{1,5}\.[0-9]{1,5}\.[0-9]{1,5}$`).MatchString(Number) {
		t.Errorf("version %q", Number)
	}
	if !strings.HasPrefix(String(), Number) || strings.Contains(String(), "LAB") != Lab {
		t.Errorf("got %q", String())
	}
}

func TestDescribe(t *testing.T) {
	info := &debug.BuildInfo{GoVersion: "go1.26", Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef"}}}
	if got := describe(info, true); !strings.HasPrefix(got, Number+"+0123456789ab (go1.26)") {
		t.Errorf("got %q", got)
	}
	if got := commit(info, true); got != "0123456789abcdef" {
		t.Errorf("got %q", got)
	}
	if got := commit(&debug.BuildInfo{}, true); got != "" || Commit() != commit(debug.ReadBuildInfo()) {
		t.Errorf("got %q", got)
	}
	if got := describe(nil, false); !strings.HasPrefix(got, Number) {
		t.Errorf("got %q", got)
	}
}
