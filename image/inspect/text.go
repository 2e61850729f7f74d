package inspect

import (
	"cmp"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
)

// Detail says what a person wants to read beside the overview.
type Detail struct {
	Files    bool // every file
	Packages bool // every package, and what is linked into our programs
}

// Text writes a report for people. It returns the writer's error.
func (r *Report) Text(w io.Writer, d Detail) error {
	p := &printer{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	p.overview(r)
	p.executables(r)
	p.units(r)
	p.line("modules\t%d in the initramfs, %s\t%s", len(r.Modules.Initramfs), size(r.Modules.InitramfsSize), wrap(r.Modules.Initramfs))
	p.line("\t%d in the root, %s\t%s", len(r.Modules.Root), size(r.Modules.RootSize), wrap(r.Modules.Root))
	for i, u := range r.Users {
		p.line("%s\t%s %s\t%s", first(i, "users"), u.ID, u.Name, u.Shell)
	}
	p.sizes(r)
	if d.Packages {
		for i, x := range r.Packages {
			p.line("%s\t%s %s\t%s in %d files", first(i, "packages"), x.Name, x.Version, size(x.Size), x.Files)
		}
		for i, m := range sortedKeys(r.GoModules) {
			p.line("%s\t%s\t%s", first(i, "Go modules"), m, r.GoModules[m])
		}
	}
	for i, f := range r.Secrets {
		p.line("%s\t%s", first(i, "SECRETS"), f)
	}
	p.flush()
	if d.Files {
		for _, f := range r.Files {
			p.line("%s %d:%d\t%d\t%s\t%s:%s", f.Mode, f.UID, f.GID, f.Size, f.Package, f.Layer, f.Path)
		}
	}
	p.flush()
	return p.err
}

// printer remembers the first error.
type printer struct {
	w   *tabwriter.Writer
	err error
}

func (p *printer) line(format string, a ...any) {
	if _, err := fmt.Fprintf(p.w, format+"\n", a...); p.err == nil {
		p.err = err
	}
}

func (p *printer) flush() {
	if err := p.w.Flush(); p.err == nil {
		p.err = err
	}
}

func first(i int, title string) string {
	if i == 0 {
		return title
	}
	return ""
}

func (p *printer) overview(r *Report) {
	p.line("image\t%s\t%s", cmp.Or(r.Name, r.Flavour+" "+r.Version), size(r.Size))
	if r.Commit != "" {
		p.line("commit\t%s", r.Commit)
	}
	p.line("kernel\t%s", r.Kernel)
	p.line("command line\t%s", strings.Join(r.Cmdline, " "))
	signed := "not signed"
	if r.Signed {
		signed = "signed for Secure Boot"
	}
	p.line("boot image\t%s\t%s", signed, join(r.Sections))
	right := func(yes bool) string {
		if yes {
			return "which it has"
		}
		return "WHICH IT HAS NOT: it would not start"
	}
	p.line("root\t%s of %s, %d files\t%s", size(r.Root.Size), size(r.Root.Unpacked), r.Root.Files, r.Root.Packing)
	p.line("\tsha256 %s\t%s", r.Root.SHA256, right(r.Root.Right))
	p.line("medium\tsha256 %s of all but the boot image\t%s", r.Rest.SHA256, right(r.Rest.Right))
	p.line("packages\t%d, and %d Go modules\t", len(r.Packages), len(r.GoModules))
}

func (p *printer) executables(r *Report) {
	p.line("executables\t%d\t", len(r.Executables))
	for _, e := range r.Executables {
		p.line("\t%s\t%s, %s, %s", e.Path, e.Kind, e.Package, size(e.Size))
	}
	p.line("set-user-id\t%d %s\t", len(r.SetUID), strings.Join(r.SetUID, " "))
	p.line("interpreters\t%d %s\t", len(r.Interpreter), strings.Join(r.Interpreter, " "))
	for i, l := range r.Listeners {
		p.line("%s\t%s %s\t%s: %s", first(i, "listeners"), l.Program, l.Address, l.When, l.Why)
	}
}

func (p *printer) units(r *Report) {
	n := 0
	for _, u := range r.Units {
		if path.Ext(u.Name) != ".service" {
			continue
		}
		held := fmt.Sprintf("%d of %d settings of the sandbox", len(sandbox)-len(u.Missing), len(sandbox))
		if len(u.Missing) > 0 && len(u.Missing) < len(sandbox) {
			held += "; without " + strings.Join(u.Missing, " ")
		}
		p.line("%s\t%s as %s\t%s", first(n, "services"), u.Name, cmp.Or(u.User, "root"), held)
		n++
	}
}

func (p *printer) sizes(r *Report) {
	bySize := func(a, b Size) int { return cmp.Or(cmp.Compare(b.Size, a.Size), strings.Compare(a.Name, b.Name)) }
	packages := make([]Size, 0, len(r.Packages))
	for _, x := range r.Packages {
		packages = append(packages, Size{x.Name, x.Size, x.Files})
	}
	for n, all := range [][]Size{slices.Clone(r.Directories), packages} {
		title := []string{"directories", "largest"}[n]
		slices.SortFunc(all, bySize)
		if len(all) > top {
			all = all[:top]
		}
		for i, s := range all {
			p.line("%s\t%s\t%s in %d files", first(i, title), s.Name, size(s.Size), s.Files)
		}
	}
}

// top is how many of the largest are shown.
const top = 15

func size(n int64) string {
	if n < 1e5 {
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}

func join(all []Size) string {
	var parts []string
	for _, s := range all {
		parts = append(parts, s.Name+" "+size(s.Size))
	}
	return strings.Join(parts, ", ")
}

// wrap shortens a long list.
func wrap(names []string) string {
	if len(names) > 2*top {
		return strings.Join(names[:2*top], " ") + " …"
	}
	return strings.Join(names, " ")
}

func sortedKeys(m map[string]string) []string {
	all := make([]string, 0, len(m))
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}
