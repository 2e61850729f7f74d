package root

import (
	"embed"
	"errors"
	"io/fs"

	"lethe/image/tree"
	"lethe/systemd"
)

// units is where units are.
const units = "usr/lib/systemd/system/"

// files are our files below the root.
//
//go:embed all:files
var files embed.FS

// labFiles are those that an image for the lab has more: the DNS root of the lab's internet, which
// has no signatures.
//
//go:embed all:lab
var labFiles embed.FS

// links are symbolic links of ours.
var links = []struct{ path, to, why string }{
	{"bin", "usr/bin", "everything is below /usr"},
	{"sbin", "usr/sbin", "the same"},
	{"lib", "usr/lib", "the same"},
	{"lib64", "usr/lib64", "the same"},
	{"etc/os-release", "../usr/lib/os-release", "os-release(5)"},
	{units + "default.target", "lethe.target", "what systemd starts"},
}

// directories are those that file systems are mounted on, or that programs insist on.
var directories = []struct {
	path string
	mode fs.FileMode
	why  string
}{
	{".", 0o755, "the root"},
	{"dev", 0o755, "devices"},
	{"proc", 0o555, "processes and settings"},
	{"sys", 0o555, "devices and control groups"},
	{"run", 0o755, "what runs"},
	{"tmp", 0o777 | fs.ModeSticky, "private to each service"},
	{"var/tmp", 0o777 | fs.ModeSticky, "the same"},
	{"root", 0o700, "the home that root has none of"},
}

// addFiles adds our files.
func addFiles(t *tree.Tree, osRelease []byte) error {
	all, err := users()
	passwd, group := passwd(all)
	unit, image, _ := systemd.Node()
	for name, text := range map[string][]byte{
		"usr/lib/os-release": osRelease, "etc/passwd": passwd, "etc/group": group,
		units + "lethe-node.service": unit, units + "lethe-node.service.d/image.conf": image,
		"etc/machine-id":  nil, // the initramfs makes one for each boot
		"etc/resolv.conf": nil,
		"etc/fstab":       nil,
	} {
		err = errors.Join(err, t.File(name, 0o644, ours, text))
	}
	return errors.Join(err, addAll(t, files, "files"))
}

// addAll adds the files below a directory at their places below the root.
func addAll(t *tree.Tree, from embed.FS, dir string) error {
	return fs.WalkDir(from, dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := from.ReadFile(p)
		return errors.Join(err, t.File(p[len(dir)+1:], 0o644, ours, b))
	})
}

// addLab adds what an image for the lab has more.
func addLab(t *tree.Tree, lab bool) error {
	if !lab {
		return nil
	}
	return addAll(t, labFiles, "lab")
}

// addSkeleton adds directories and links.
func addSkeleton(t *tree.Tree) (err error) {
	for _, d := range directories {
		err = errors.Join(err, t.Dir(d.path, d.mode, 0, 0, ours))
	}
	for _, l := range links {
		err = errors.Join(err, t.Symlink(l.path, l.to, ours))
	}
	return err
}
