package test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"lethe/day"
	"lethe/lab"
)

// publishedDir is where the control plane publishes.
const publishedDir = "/var/lib/lethe-control/bundles/"

// published returns the path of a published file.
func (w *trial) published(name string) string { return w.Control().Path(publishedDir + name) }

// read returns a file's content.
func (w *trial) read(path string) []byte {
	w.t.Helper()
	b, err := os.ReadFile(path)
	w.check(err)
	return b
}

// put replaces a file as the publisher does, whole or not at all.
func (w *trial) put(path string, content []byte) {
	w.t.Helper()
	w.check(os.WriteFile(path+".tmp", content, 0o644))
	w.check(os.Rename(path+".tmp", path))
}

// version returns the version that the freshness statement names, 0 when a test
// has made it one that names none.
func (w *trial) version() uint64 {
	w.t.Helper()
	var envelope struct{ Payload string }
	var f struct{ Version uint64 }
	if json.Unmarshal(w.read(w.published("freshness.json")), &envelope) != nil {
		return 0
	}
	payload, err := base64.StdEncoding.DecodeString(envelope.Payload)
	if err != nil || json.Unmarshal(payload, &f) != nil {
		return 0
	}
	return f.Version
}

var appliedLine = regexp.MustCompile(`(?m)^bundle\.applied version=(\d+)$`)

// applied returns the version that a server applied last.
func (w *trial) applied(server string) (v uint64) {
	for _, m := range appliedLine.FindAllStringSubmatch(w.log(server), -1) {
		v, _ = strconv.ParseUint(m[1], 10, 64)
	}
	return v
}

// refusedTimes returns how often a server's log says that it refused a bundle that
// does not verify.
func (w *trial) refusedTimes(server string) int {
	return strings.Count(w.log(server), "bundle.refused kind=untrusted\n")
}

// settle waits until every change of the store is published and in use on every
// server, which is at most a minute, and returns how long that took.
func (w *trial) settle() time.Duration {
	w.t.Helper()
	books := w.books()
	defer books.Close()
	return w.until(time.Minute, "the servers do not have the last change", func() bool {
		changes, err := books.Store.Changes(w.ctx, 1)
		if err != nil || len(changes) > 0 {
			return false
		}
		v := w.version()
		return !slices.ContainsFunc(serverNames(), func(s string) bool { return w.applied(s) < v })
	})
}

// enrol makes an account with a licence in the store.
func (w *trial) enrol(email string) (username, secret []byte) {
	w.t.Helper()
	books := w.books()
	defer books.Close()
	id, err := books.Accounts.Create(w.ctx, email, privatePassword())
	w.check(err)
	w.check(books.Accounts.CreateLicence(w.ctx, id, "standard", 5, day.Today().Add(30)))
	r, err := books.Accounts.Find(w.ctx, email)
	w.check(err)
	return reveal(r.Credential)
}

// cable pulls the control plane's cable or plugs it in.
func (w *trial) cable(state string) {
	w.t.Helper()
	_, err := w.Internet().Run(w.ctx, "ip", "link", "set", "m1", state)
	w.check(err)
}

// bundles damages what the control plane publishes.
func (w *trial) bundles() {
	w.changes()
	w.rollback()
	w.damage("a flipped bit in a segment", "flip@river.example", func(_ uint64, added []string) {
		for _, path := range added {
			b := w.read(path)
			b[len(b)/2] ^= 4
			w.put(path, b)
		}
	})
	w.damage("a segment cut short", "cut@river.example", func(_ uint64, added []string) {
		for _, path := range added {
			b := w.read(path)
			w.put(path, b[:len(b)-1])
		}
	})
	w.damage("the manifest before", "swap@river.example", func(old uint64, _ []string) {
		w.put(w.published(fmt.Sprintf("manifest/%d.json", w.version())), w.read(w.published(fmt.Sprintf("manifest/%d.json", old))))
	})
	w.damage("a freshness statement that is none", "none@river.example", func(uint64, []string) {
		w.put(w.published("freshness.json"), []byte("{}"))
	})
}

// changes measures how long a change takes to every server: a new account is let
// in, and a licence that was disabled ends its live sessions.
func (w *trial) changes() {
	began := time.Now()
	username, secret := w.enrol("change@river.example")
	w.settle()
	made := time.Since(began)
	var sessions []*rawClient
	for _, p := range []string{"nl-ams udp", "us-nyc tcp"} {
		r := w.dial(w.Customer(mallory), w.profiles[p], username, secret, 20*time.Second)
		if r.outcome != gotIn {
			w.t.Fatalf("%s: a new customer: %s %q", p, r.outcome, r.reason)
		}
		sessions = append(sessions, r)
	}
	began = time.Now()
	w.operate("", "licence", "disable", "change@river.example")
	w.settle()
	disabled := time.Since(began)
	for _, r := range sessions {
		select {
		case <-r.ended:
		case <-time.After(time.Until(began.Add(time.Minute))):
			w.t.Error("a session lives on after its licence has ended")
		}
	}
	ended := time.Since(began)
	for profile := range w.profiles {
		if r := w.login(w.profiles[profile], username, secret, 20*time.Second); r.outcome != gotRefused || r.reason != "licence-expired" {
			w.t.Errorf("%s: after the licence was disabled: %s %q", profile, r.outcome, r.reason)
		}
	}
	w.t.Logf("a new account is on every server after %v, a disabled licence after %v, its sessions have ended after %v",
		made.Round(time.Millisecond), disabled.Round(time.Millisecond), ended.Round(time.Millisecond))
}

// refusal returns a function that waits until every server has refused a bundle
// since.
func (w *trial) refusal() (notice func(what string)) {
	before := map[string]int{}
	for _, s := range serverNames() {
		before[s] = w.refusedTimes(s)
	}
	return func(what string) {
		w.t.Helper()
		w.until(time.Minute, what+": not refused", func() bool {
			return !slices.ContainsFunc(serverNames(), func(s string) bool { return w.refusedTimes(s) == before[s] })
		})
	}
}

// rollback puts the freshness statement of the bundle before back: servers that
// know the newer one refuse it, and take the next.
func (w *trial) rollback() {
	w.settle()
	old := w.read(w.published("freshness.json"))
	username, secret := w.enrol("early@river.example")
	w.settle()
	newer := w.version()
	notice := w.refusal()
	w.put(w.published("freshness.json"), old)
	notice("an old freshness statement")
	for _, s := range serverNames() {
		if v := w.applied(s); v != newer {
			w.t.Errorf("%s went back to version %d from %d", s, v, newer)
		}
	}
	w.alive(ada)
	if r := w.login(w.profiles["us-nyc udp"], username, secret, 20*time.Second); r.outcome != gotIn {
		w.t.Errorf("somebody whom only the newer bundle knows: %s %q", r.outcome, r.reason)
	}
	w.check(w.Restart(w.ctx, "lethe-control"))
	w.enrol("next@river.example")
	took := w.until(time.Minute, "the bundle after the old statement", func() bool { return w.version() > newer }) + w.settle()
	w.t.Logf("an old freshness statement: refused, and mended %v after a restart", took.Round(time.Millisecond))
}

// damage makes an account while the servers do not see the control plane,
// damages what is published and lets them see it. They must refuse it and go on
// with what they have, until the control plane is restarted.
func (w *trial) damage(what, email string, do func(old uint64, added []string)) {
	w.t.Helper()
	w.settle()
	old := w.version()
	files := func() []string {
		all, err := filepath.Glob(w.published("files/*"))
		w.check(err)
		return all
	}
	had := files()
	notice := w.refusal()
	w.cable("down")
	books := w.books()
	defer books.Close()
	username, secret := w.enrol(email)
	w.until(time.Minute, "the change is not published", func() bool {
		changes, err := books.Store.Changes(w.ctx, 1)
		return err == nil && len(changes) == 0 && w.version() > old
	})
	wanted := w.version()
	added := slices.DeleteFunc(files(), func(f string) bool { return slices.Contains(had, f) })
	if len(added) == 0 {
		w.t.Fatal("nothing was published")
	}
	do(old, added)
	w.cable("up")
	notice(what)
	for _, s := range serverNames() {
		if v := w.applied(s); v != old {
			w.t.Errorf("%s: %s has applied version %d, want %d still", what, s, v, old)
		}
	}
	w.alive(ada)
	w.alive(bob)
	w.knownUser("nl-ams udp")
	if r := w.login(w.profiles["nl-ams udp"], username, secret, 20*time.Second); r.outcome != gotRefused {
		w.t.Errorf("%s: somebody of the refused bundle: %s", what, r.outcome)
	}
	w.check(w.Restart(w.ctx, "lethe-control"))
	took := w.until(time.Minute, what+": not mended by a restart", func() bool {
		return w.version() > wanted || w.version() == wanted && w.applied("nl-ams-1") == wanted
	}) + w.settle()
	if r := w.login(w.profiles["nl-ams udp"], username, secret, 20*time.Second); r.outcome != gotIn {
		w.t.Errorf("%s, after the restart: %s %q", what, r.outcome, r.reason)
	}
	w.t.Logf("%s: refused, and mended %v after a restart", what, took.Round(time.Millisecond))
}

// startControl starts the control plane's service again after it was stopped.
func (w *trial) startControl() {
	w.t.Helper()
	w.check(w.Start(w.ctx, lab.Unit{
		Name: "lethe-control", Machine: w.Control(), Notify: true,
		Args: []string{"lethe-control", "serve", "--dir", "/var/lib/lethe-control", "--config", "/etc/lethe/control.json"},
	}))
}

// megabytes returns the sum of a customer's rows.
func (w *trial) megabytes(i int) (in uint64) {
	w.t.Helper()
	var answer struct {
		In uint64 `json:"mb_in"`
	}
	w.check(json.Unmarshal([]byte(w.operate("", "usage", "show", w.person(i).email, "--json")), &answer))
	return answer.In
}

// use lets a customer connect, fetch megabytes and disconnect.
func (w *trial) use(i int, env []string, megabytes int) {
	w.t.Helper()
	c := w.person(i)
	if said, code := c.try(env, "", "connect", "us-nyc"); code != 0 {
		w.t.Fatalf("connect: exit code %d: %s", code, said)
	}
	w.alive(i)
	if _, err := c.Run(w.ctx, "curl", "-sS", "-m", "30", "-o", "/dev/null", fmt.Sprintf("%sbytes/%d", lab.SiteURL, megabytes*1000000)); err != nil {
		w.t.Error(err)
	}
	c.must("", "disconnect")
}

// outage takes the control plane away: its cable, then its process.
func (w *trial) outage() {
	const text = "error: the service cannot be reached\n"
	c := w.person(dave)
	down := func(how string) {
		w.t.Helper()
		w.alive(ada)
		w.alive(bob)
		w.knownUser("nl-ams tcp")
		began := time.Now()
		said, code := c.try(nil, password+"\n", "login", c.email)
		if code != 5 || !strings.Contains(said, "error: the service ") || !strings.Contains(said, "hint: ") {
			w.t.Errorf("%s: login: exit code %d, %q; want 5 and %q with a hint", how, code, said, text)
		}
		w.t.Logf("%s: login says after %v: %q", how, time.Since(began).Round(time.Millisecond), said)
		if said, code = c.try(nil, "", "account"); code != 5 {
			w.t.Errorf("%s: account: exit code %d, %q", how, code, said)
		}
	}
	w.settle()
	before := w.megabytes(dave)
	w.cable("down")
	down("cable")
	w.use(dave, nil, 3)
	w.cable("up")
	w.check(w.Kill("lethe-control", syscall.SIGKILL))
	w.check(w.Stop(w.ctx, "lethe-control"))
	down("process")
	w.heirs()
	w.use(dave, nil, 4)
	w.t.Logf("dave has %d MB in the books", before)
	w.startControl()

	// The records have waited and come once: not less, and not more after later batches.
	w.until(time.Minute, "the records of the outage", func() bool { return w.megabytes(dave) >= before+7 })
	carols := w.megabytes(carol)
	w.use(carol, nil, 2)
	w.until(time.Minute, "a record after the outage", func() bool { return w.megabytes(carol) >= carols+2 })
	if got := w.megabytes(dave) - before; got < 7 || got > 9 { // 1 MB for each session
		w.t.Errorf("%d MB in the books for 7 MB of an outage", got)
	}
	w.settle()
}

// heirs has the agents of both servers begin anew while there is no control plane, one killed
// and one told to: they let in whom the last ones would have, by the bundle that these have left.
func (w *trial) heirs() {
	username, secret := w.credential(w.person(carol).email)
	restored := func(how, place string, limit time.Duration) {
		w.t.Helper()
		for _, transport := range []string{"tcp", "udp"} {
			profile := place + " " + transport
			took := w.until(limit, profile+": nobody gets in", func() bool {
				return w.login(w.profiles[profile], username, secret, 3*time.Second).outcome == gotIn
			})
			w.t.Logf("%s: an agent that was %s lets customers in after %v without a control plane", profile, how, took.Round(time.Millisecond))
			if r := w.login(w.profiles[profile], username, []byte("wrong password"), 20*time.Second); r.outcome != gotRefused {
				w.t.Errorf("%s: a wrong password: %s", profile, r.outcome)
			}
		}
	}
	w.check(w.Kill("nl-ams-1", syscall.SIGKILL))
	restored("killed", "nl-ams", soon)
	w.alive(ada)
	w.alive(bob)
	w.check(w.Restart(w.ctx, "us-nyc-1"))
	restored("restarted", "us-nyc", 20*time.Second)
}

// fullDisk puts the control plane's data on a disk that is then full.
func (w *trial) fullDisk() {
	c := w.Control()
	shell := func(script string) {
		w.t.Helper()
		_, err := c.Run(w.ctx, "sh", "-ec", script)
		w.check(err)
	}
	w.settle()
	w.check(w.Stop(w.ctx, "lethe-control"))
	// Seen only on the control plane's machine, and gone with it.
	shell(`cd /var/lib; cp -a lethe-control kept; mount -t tmpfs -o mode=700,size=$(($(du -sk kept | cut -f1) + 6000))k disk lethe-control
		cp -a kept/. lethe-control`)
	w.startControl()
	said, code := w.person(carol).try(nil, password+"\n", "signup", "before@river.example") // the control
	if code != 0 {
		w.t.Fatalf("sign-up with space: exit code %d: %s", code, said)
	}
	shell(`dd if=/dev/zero of=/var/lib/lethe-control/filler bs=4k 2>/dev/null || :`)
	kept := []string{"before@river.example"}
	full := 0
	for i := 0; full < 3 && i < 32; i++ {
		email := fmt.Sprintf("full%d@river.example", i)
		said, code := w.person(carol+i%3).try(nil, password+"\n", "signup", email)
		switch {
		case code == 0:
			kept = append(kept, email)
		case code == 1 && said == "error: the service's disk is full\nhint: nothing was changed; try again later\n":
			full++
		default:
			w.t.Errorf("sign-up on a full disk: exit code %d: %s", code, said)
		}
	}
	if full == 0 {
		w.t.Error("the disk does not fill")
	}
	w.call(w.https(w.Customer(mallory)), appAddress, apiCall{"POST", "/v1/accounts", jsonType, `{"email":"last@river.example","password":"` + password + `"}`, 507, "full"})
	w.t.Logf("%d sign-ups were accepted on the full disk, then %d refused", len(kept)-1, full)
	w.alive(ada)
	w.knownUser("nl-ams udp")
	before := w.megabytes(carol)
	w.use(carol, nil, 5)
	// A start on the full disk loses nothing either.
	w.check(w.Kill("lethe-control", syscall.SIGKILL))
	w.until(30*time.Second, "the service on a full disk", w.healthy)
	shell(`rm /var/lib/lethe-control/filler`)
	w.until(30*time.Second, "the service with space again", func() bool {
		_, code := w.person(dave).try(nil, password+"\n", "signup", "after@river.example")
		return code == 0
	})
	for _, email := range append(kept, "after@river.example") {
		w.operate("", "account", "show", email)
	}
	w.until(time.Minute, "the record of a session while the disk was full", func() bool { return w.megabytes(carol) >= before+5 })
	w.check(w.Stop(w.ctx, "lethe-control"))
	shell(`cd /var/lib; find kept -mindepth 1 -delete; cp -a lethe-control/. kept; umount lethe-control
		find lethe-control -mindepth 1 -delete; cp -a kept/. lethe-control; rm -r kept`)
	w.startControl()
	if got := w.megabytes(carol); got != before+5 && got != before+6 {
		w.t.Errorf("%d MB in the books for 5 MB while the disk was full", got-before)
	}
}
