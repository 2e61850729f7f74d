package activation

import (
	"bufio"
	"bytes"
	"os"
	"regexp"
	"strings"

	"lethe/version"
)

// Release names what a server runs. It is what the program says of itself: proof is
// evidence of the machine, and comes with the activator.
type Release struct {
	Version string `json:"version"`           // number of the source tree, "0.1.0"
	Commit  string `json:"commit,omitempty"`  // of the source, hexadecimal, when the build recorded it
	Flavour string `json:"flavour,omitempty"` // of the image: "vm", "hardware"; "vm-lab", "hardware-lab"; none outside
	Lab     bool   `json:"lab,omitempty"`     // the program was built for the lab; no release is
}

var (
	commitForm  = regexp.MustCompile(`^[0-9a-f]{12,64}$`)
	flavourForm = regexp.MustCompile(`^[a-z]{2,16}(-lab)?$`)
)

// releaseOf returns what the program and an os-release(5) file say. The file counts
// when it is the image's own (ID=lethe): BUILD_ID is the commit, VARIANT_ID the flavour.
func releaseOf(path string) Release {
	r := Release{Version: version.Number, Commit: version.Commit(), Lab: version.Lab}
	b, err := os.ReadFile(path)
	if err != nil {
		return r
	}
	fields := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), "=")
		fields[key] = strings.Trim(value, `"'`)
	}
	if fields["ID"] != "lethe" {
		return r
	}
	if commitForm.MatchString(fields["BUILD_ID"]) {
		r.Commit = fields["BUILD_ID"]
	}
	if flavourForm.MatchString(fields["VARIANT_ID"]) {
		r.Flavour = fields["VARIANT_ID"]
	}
	return r
}
