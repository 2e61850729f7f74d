// Package version says which Lethe a program is.
package version

import (
	"fmt"
	"runtime/debug"
)

// Number is the version of this source tree (semver.org). Apps report it when
// they are activated.
const Number = "0.1.0"

// Lab says whether the program was built for the lab, with floors that are
// too low for real use (see package spec). A release is never a lab build.
const Lab = lab

// Commit returns the commit that the program was built from, hexadecimal, or nothing when
// the build did not record one.
func Commit() string { return commit(debug.ReadBuildInfo()) }

func commit(info *debug.BuildInfo, ok bool) string {
	if ok {
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				return setting.Value
			}
		}
	}
	return ""
}

// String returns the version as a person wants to read it: the number, the
// commit when the build recorded one, and whether it is a lab build.
func String() string { return describe(debug.ReadBuildInfo()) }

func describe(info *debug.BuildInfo, ok bool) string {
	s := Number
	if ok {
		if c := commit(info, ok); len(c) >= 12 {
			s += "+" + c[:12]
		}
		s = fmt.Sprintf("%s (%s)", s, info.GoVersion)
	}
	if Lab {
		s += " LAB BUILD, not for real use"
	}
	return s
}
