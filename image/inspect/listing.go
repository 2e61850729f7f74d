package inspect

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"lethe/image/scan"
)

// Listing is what the builder says about files: from which package they come.
type Listing struct {
	Versions map[string]string // of packages, by name

	from map[string]string // by layer, path and digest
}

func key(layer, path, digest string) string { return layer + "\x00" + path + "\x00" + digest }

// of returns where a file comes from.
func (l Listing) of(layer string, f File) string {
	if from := l.from[key(layer, f.Path, f.SHA256)]; from != "" {
		return from
	}
	return unknown
}

// maxFiles bounds a listing.
const maxFiles = 1 << 17

// ReadFiles reads the builder's list of files: a line each, with mode, owner, size, digest, package and path;
// a line "# initramfs" goes before those of the initramfs.
func (l *Listing) ReadFiles(b []byte) error {
	layer := scan.Root
	l.from = map[string]string{}
	n := 0
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if n++; n > maxFiles {
			return fmt.Errorf("more than %d lines", maxFiles)
		}
		if name, ok := strings.CutPrefix(line, "# "); ok {
			layer = name
			continue
		}
		fields := strings.SplitN(line, " ", 4)
		if len(fields) != 4 {
			return fmt.Errorf("line %d: want mode, owner, size, content, package and path", n)
		}
		digest, rest, _ := strings.Cut(fields[3], " ")
		if strings.HasPrefix(fields[3], `"`) { // a link's target
			target, err := strconv.QuotedPrefix(fields[3])
			if err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
			digest, rest = "", strings.TrimPrefix(fields[3][len(target):], " ")
		}
		from, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return fmt.Errorf("line %d: no package", n)
		}
		path, err := strconv.Unquote(strings.TrimPrefix(rest[len(from):], " "))
		if err != nil {
			return fmt.Errorf("line %d: no path", n)
		}
		from, _ = strconv.Unquote(from) // QuotedPrefix has found it well-formed
		l.from[key(layer, path, digest)] = from
	}
	return nil
}

// ReadBill reads the versions of packages from a bill of materials (CycloneDX 1.6, JSON).
func (l *Listing) ReadBill(b []byte) error {
	var bill struct {
		Components []struct {
			Name    string `json:"name"`
			Version string `json:"version"`
			Scope   string `json:"scope"`
		} `json:"components"`
	}
	if err := json.Unmarshal(b, &bill); err != nil {
		return err
	}
	l.Versions = map[string]string{}
	for _, c := range bill.Components {
		if c.Scope != "excluded" {
			l.Versions[c.Name] = c.Version
		}
	}
	return nil
}
