package lock

import (
	"bytes"
	"io/fs"
	"net/url"
	"slices"
	"strings"

	"lethe/image/deb"
)

// ReadApt returns the archives' roots that the machine's apt is set up for
// (sources.list(5), both formats). dir is /etc/apt. The release that it is set up
// for does not matter: an archive has all of them. Archives of others, entries that
// are switched off, and addresses other than HTTP and HTTPS are passed over, and so
// is a file that cannot be read, as apt's own methods may be of any kind.
func ReadApt(dir fs.FS) map[string]string {
	mirrors := map[string]string{}
	names, _ := fs.Glob(dir, "sources.list.d/*")
	slices.Sort(names)
	for _, name := range append([]string{"sources.list"}, names...) {
		b, err := fs.ReadFile(dir, name)
		if err != nil {
			continue
		}
		switch {
		case strings.HasSuffix(name, ".sources"):
			_ = deb.Paragraphs(bytes.NewReader(b), func(p deb.Paragraph) error {
				if p.Get("Enabled") != "no" && slices.Contains(strings.Fields(p.Get("Types")), "deb") {
					for _, uri := range strings.Fields(p.Get("URIs")) {
						note(mirrors, uri, strings.Fields(p.Get("Suites")))
					}
				}
				return nil
			})
		case strings.HasSuffix(name, ".list"):
			for line := range strings.Lines(string(b)) {
				oneLine(mirrors, line)
			}
		}
	}
	return mirrors
}

// oneLine reads "deb [options] uri suite components…".
func oneLine(mirrors map[string]string, line string) {
	line, _, _ = strings.Cut(line, "#")
	kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	rest = strings.TrimSpace(rest)
	if strings.HasPrefix(rest, "[") {
		_, rest, _ = strings.Cut(rest, "]")
	}
	if f := strings.Fields(rest); kind == "deb" && len(f) >= 3 {
		note(mirrors, f[0], f[1:2])
	}
}

// note takes an archive that looks like Debian's: its root is called debian or
// debian-security, or it has a suite that is named like security updates.
func note(mirrors map[string]string, uri string, suites []string) {
	u, err := url.Parse(strings.TrimRight(uri, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return
	}
	name := u.Path[strings.LastIndexByte(u.Path, '/')+1:]
	if name == Main && slices.ContainsFunc(suites, func(s string) bool { return strings.HasSuffix(s, "-security") || strings.HasSuffix(s, "/updates") }) {
		name = Security
	}
	if (name == Main || name == Security) && mirrors[name] == "" {
		mirrors[name] = u.String()
	}
}
