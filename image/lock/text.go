package lock

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"lethe/image/deb"
)

// version is the version of the file format. 1: the first.
const version = "1"

const preamble = `# Every input of the image, by digest. Made by lethe-image lock, which verifies
# the archive's signatures; doc/image.md explains it. Never edited by hand.

`

// Text returns the lock as it stands in the tree.
func (l *Lock) Text() []byte {
	w := &writer{}
	w.WriteString(preamble)
	w.stanza("Lock", version, "Architecture", l.Architecture, "Go", l.Toolchain, "Go-Sum", l.GoSum.String())
	for _, s := range l.Suites {
		until := ""
		if !s.ValidUntil.IsZero() {
			until = s.ValidUntil.Format(time.RFC3339)
		}
		w.stanza("Suite", s.Name, "Archive", s.Archive, "Date", s.Date.Format(time.RFC3339), "Valid-Until", until, "Key", s.Key,
			"Release", file(s.Release), "Indexes", files(s.Indexes))
	}
	for _, o := range l.Left {
		w.stanza("Left-Out", o.Name, "Set", o.Set, "Because", o.Why)
	}
	for _, c := range l.Choices {
		w.stanza("Choice", c.Clause, "Set", c.Set, "Of", c.By, "Taken", c.Taken)
	}
	for _, p := range l.Packages {
		w.stanza("Package", p.Name, "Version", string(p.Version), "Architecture", p.Architecture, "Suite", p.Suite, "Sets", strings.Join(p.Sets, " "),
			"Because", p.Why, "Needed-By", p.By, "Built-From", p.Source+" "+string(p.SourceVersion), "File", file(p.File))
	}
	for _, s := range l.Sources {
		w.stanza("Source", s.Name, "Version", string(s.Version), "Suite", s.Suite, "Files", files(s.Files))
	}
	for _, m := range l.Modules {
		w.stanza("Module", m.Path, "Version", m.Version, "Sum", m.Sum, "Mod-Sum", m.ModSum, "Zip", file(m.Zip), "Mod", file(m.Mod))
	}
	return bytes.TrimSuffix(w.Bytes(), []byte("\n"))
}

type writer struct{ bytes.Buffer }

// stanza writes pairs of name and value; those without a value are left out.
func (w *writer) stanza(pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		switch value := pairs[i+1]; {
		case value == "":
		case value[0] == '\n':
			fmt.Fprintf(w, "%s:%s\n", pairs[i], value)
		default:
			fmt.Fprintf(w, "%s: %s\n", pairs[i], value)
		}
	}
	w.WriteByte('\n')
}

// file is digest, size and, unless it goes without saying, path.
func file(f deb.File) string {
	if f == (deb.File{}) {
		return ""
	}
	return strings.TrimSuffix(fmt.Sprintf("%s %d %s", f.SHA256, f.Size, f.Path), " ")
}

func files(all []deb.File) string {
	var b strings.Builder
	for _, f := range all {
		b.WriteString("\n " + file(f))
	}
	return b.String()
}

// reader takes values out of a stanza and keeps the first error.
type reader struct {
	p   deb.Paragraph
	err error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *reader) text(name string) string {
	s := r.p.Get(name)
	if strings.Contains(s, "\n") {
		r.fail(fmt.Errorf("%s has several lines", name))
	}
	return s
}

func (r *reader) digest(name string) deb.Digest {
	d, err := deb.ParseDigest(r.text(name))
	if err != nil {
		r.fail(fmt.Errorf("%s: %w", name, err))
	}
	return d
}

func (r *reader) version(name string) deb.Version {
	v := deb.Version(r.text(name))
	if err := v.Check(); err != nil {
		r.fail(fmt.Errorf("%s: %w", name, err))
	}
	return v
}

func (r *reader) name(name string) string {
	s := r.text(name)
	if !deb.PackageName(s) {
		r.fail(fmt.Errorf("%s is no package's name", name))
	}
	return s
}

func (r *reader) date(name string) time.Time {
	t, err := time.Parse(time.RFC3339, r.text(name))
	if err != nil || t.Location() != time.UTC {
		r.fail(fmt.Errorf("%s is no date in UTC", name))
	}
	return t
}

// file reads what file writes; words is 3 with a path and 2 without.
func (r *reader) file(name, text string, words int) (f deb.File) {
	fields := strings.Fields(text)
	if len(fields) != words {
		r.fail(fmt.Errorf("%s has %d words, want %d", name, len(fields), words))
		return f
	}
	var err error
	if f.SHA256, err = deb.ParseDigest(fields[0]); err != nil {
		r.fail(fmt.Errorf("%s: %w", name, err))
	}
	if f.Size, err = strconv.ParseInt(fields[1], 10, 64); err != nil || f.Size < 0 {
		r.fail(fmt.Errorf("%s: size", name))
	}
	if words == 3 {
		if f.Path = fields[2]; !deb.LocalPath(f.Path) {
			r.fail(fmt.Errorf("%s: path", name))
		}
	}
	return f
}

func (r *reader) files(name string) (all []deb.File) {
	for line := range strings.SplitSeq(strings.TrimPrefix(r.p.Get(name), "\n"), "\n") {
		all = append(all, r.file(name, line, 3))
	}
	return all
}

func (r *reader) has(name string) bool { return r.p.Get(name) != "" }

func parse(from io.Reader) (*Lock, error) {
	l := &Lock{}
	err := deb.Paragraphs(from, func(p deb.Paragraph) error {
		r := &reader{p: p}
		switch {
		case r.has("Lock"):
			if r.text("Lock") != version {
				return fmt.Errorf("format %.10q, this program knows %s", r.text("Lock"), version)
			}
			l.Architecture, l.Toolchain, l.GoSum = r.name("Architecture"), r.text("Go"), r.digest("Go-Sum")
		case r.has("Archive"):
			s := Suite{Name: r.name("Suite"), Archive: r.name("Archive"), Date: r.date("Date"), Key: r.text("Key"),
				Release: r.file("Release", r.text("Release"), 3), Indexes: r.files("Indexes")}
			if r.has("Valid-Until") {
				s.ValidUntil = r.date("Valid-Until")
			}
			l.Suites = append(l.Suites, s)
		case r.has("Left-Out"):
			l.Left = append(l.Left, Left{Set: r.text("Set"), Name: r.name("Left-Out"), Why: r.text("Because")})
		case r.has("Choice"):
			l.Choices = append(l.Choices, Choice{Set: r.text("Set"), By: r.name("Of"), Clause: r.text("Choice"), Taken: r.name("Taken")})
		case r.has("Package"):
			k := Package{Name: r.name("Package"), Version: r.version("Version"), Architecture: r.name("Architecture"), Suite: r.name("Suite"),
				Sets: strings.Fields(r.text("Sets")), Why: r.text("Because"), By: r.text("Needed-By"), File: r.file("File", r.text("File"), 3)}
			source, v, _ := strings.Cut(r.text("Built-From"), " ")
			k.Source, k.SourceVersion = source, deb.Version(v)
			l.Packages = append(l.Packages, k)
		case r.has("Source"):
			l.Sources = append(l.Sources, Source{Name: r.name("Source"), Version: r.version("Version"), Suite: r.name("Suite"), Files: r.files("Files")})
		case r.has("Module"):
			m := Module{Path: r.text("Module"), Version: r.text("Version"), Sum: r.text("Sum"), ModSum: r.text("Mod-Sum")}
			if m.Sum != "" {
				m.Zip = r.file("Zip", r.text("Zip"), 2)
			}
			if m.ModSum != "" {
				m.Mod = r.file("Mod", r.text("Mod"), 2)
			}
			l.Modules = append(l.Modules, m)
		default:
			return errors.New("a stanza of no known kind")
		}
		return r.err
	})
	if err != nil {
		return nil, err
	}
	return l, l.check()
}

// sortAll puts everything but the suites into its order.
func (l *Lock) sortAll() {
	slices.SortFunc(l.Left, compareLeft)
	slices.SortFunc(l.Choices, compareChoice)
	slices.SortFunc(l.Packages, comparePackage)
	slices.SortFunc(l.Sources, compareSource)
	slices.SortFunc(l.Modules, compareModule)
}

func compareLeft(a, b Left) int {
	return cmp.Or(cmp.Compare(a.Set, b.Set), cmp.Compare(a.Name, b.Name))
}
func compareChoice(a, b Choice) int {
	return cmp.Or(cmp.Compare(a.Set, b.Set), cmp.Compare(a.By, b.By), cmp.Compare(a.Clause, b.Clause))
}
func comparePackage(a, b Package) int { return cmp.Compare(a.Name, b.Name) }
func compareSource(a, b Source) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
}
func compareModule(a, b Module) int {
	return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Version, b.Version))
}

// check wants everything in order, once, and belonging together.
func (l *Lock) check() error {
	if l.Architecture == "" || len(l.Suites) == 0 {
		return errors.New("no head, or no suites")
	}
	for what, sorted := range map[string]bool{
		"what is left out": ascending(l.Left, compareLeft), "choices": ascending(l.Choices, compareChoice), "packages": ascending(l.Packages, comparePackage),
		"sources": ascending(l.Sources, compareSource), "modules": ascending(l.Modules, compareModule),
	} {
		if !sorted {
			return fmt.Errorf("%s are not in order, or stand twice", what)
		}
	}
	sources := map[string]bool{}
	for _, s := range l.Sources {
		sources[s.Name+" "+string(s.Version)] = true
		if l.archive(s.Suite) == "" {
			return fmt.Errorf("source package %s is of a suite that is not locked", s.Name)
		}
	}
	for _, p := range l.Packages {
		if l.archive(p.Suite) == "" || len(p.Sets) == 0 || !sources[p.Source+" "+string(p.SourceVersion)] {
			return fmt.Errorf("package %s lacks its set, its suite or its source package", p.Name)
		}
	}
	return nil
}

func ascending[T any](all []T, compare func(a, b T) int) bool {
	for i := 1; i < len(all); i++ {
		if compare(all[i-1], all[i]) >= 0 {
			return false
		}
	}
	return true
}
