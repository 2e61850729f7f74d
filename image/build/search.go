package build

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"

	"lethe/fault"
	"lethe/image/medium"
	"lethe/image/scan"
)

// needles are what would tell one builder's machine from another's. What cannot be found out is not looked for.
func (j *job) needles() []scan.Needle {
	host, _ := os.Hostname()
	home, _ := os.UserHomeDir()
	name := ""
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	var dirs []string
	for _, dir := range []string{j.Tree, j.dir, j.Store.Dir()} {
		if dir, err := filepath.Abs(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return scan.Machine(host, name, home, dirs...)
}

// search opens the ISO as everybody can and looks for secrets, and for where on this machine it was made.
func (j *job) search(ctx context.Context, f *flavour, iso []byte) error {
	m, err := medium.Open(bytes.NewReader(iso), int64(len(iso)))
	if err != nil {
		return fmt.Errorf("%s: the ISO cannot be read: %w", f.name, err)
	}
	found, err := scan.Medium(ctx, m, scan.Options{Needles: j.needles()})
	if err != nil {
		return fmt.Errorf("%s: the ISO cannot be searched: %w", f.name, err)
	}
	if len(found) == 0 {
		return nil
	}
	text := fmt.Sprintf("%s: the image holds %d secrets, or what looks like them: %v", f.name, len(found), found[0])
	return fault.New(fault.Untrusted, text).WithHint("take it out of the source; what is harmless goes into the list of package image/scan, with a reason")
}
