package radius_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"database/sql"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"lethe/authdb"
	"lethe/day"
	"lethe/ledger"
	"lethe/location"
	"lethe/radius"
	"lethe/session"
)

// crowd is how many credentials the servers of the benchmark know; waiting is how many customers
// log in at once over each of the sockets.
const (
	crowd   = 10000
	sockets = 2
	waiting = 32
)

func name(i int) string     { return fmt.Sprintf("customer-%05d", i) }
func password(i int) string { return fmt.Sprintf("correct horse %05d", i) }

// ntHash is the hash of a password as FreeRADIUS wants it.
func ntHash(i int) string {
	hash := authdb.NTHash([]byte(password(i)))
	return "0x" + hex.EncodeToString(hash[:])
}

// serveMain is the server of the benchmark in a process of its own: all of a VPN server's work at
// a login but the kernel's counters. A session ends as soon as it was admitted, so that the pool of
// addresses lasts.
func serveMain() int {
	head := authdb.Head{HashKey: authdb.HashKey{1}}
	rows := make([]authdb.Row, crowd)
	for i := range rows {
		rows[i] = authdb.Row{Key: head.HashKey.Key([]byte(name(i))), Secret: authdb.NTHash([]byte(password(i))), PaidUntil: day.Today()}
	}
	var file bytes.Buffer
	err := authdb.Build(&file, head, rows)
	check(err)
	segment, err := authdb.Open(file.Bytes())
	check(err)
	db, err := authdb.NewDB(segment)
	check(err)
	users := &authdb.Live{}
	users.Swap(db)
	f, err := ledger.Create(1024)
	check(err)
	books, err := ledger.Open(f)
	check(err)
	registry := session.New(session.Config{
		Ledger: books, Counters: idle{}, Trouble: func() {}, Location: func() location.ID { return 1 },
		Check: func(l session.Login) error {
			return users.Prove([]byte(l.Username.Reveal()), func(s *authdb.Secret) bool { return l.Proof((*[16]byte)(s)) }, day.Today()).Err()
		},
		Locate: func(netip.Addr) (string, string) { return "NL", "LAB FIBRE" },
	})
	s, err := radius.New(config(brief{registry}))
	check(err)
	conn, err := radius.Listen(0)
	check(err)
	fmt.Println(conn.LocalAddr().(*net.UDPAddr).Port)
	check(s.Serve(context.Background(), conn))
	return 0
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// idle counts nothing.
type idle struct{}

func (idle) Add(_, _ netip.Addr) error                        { return nil }
func (idle) Read(_, _ netip.Addr) (in, out uint64, err error) { return 0, 0, nil }
func (idle) Remove(_, _ netip.Addr) error                     { return nil }

// brief ends sessions at once.
type brief struct{ *session.Registry }

func (b brief) Admit(ref session.Ref, l session.Login) (session.Grant, error) {
	g, err := b.Registry.Admit(ref, l)
	b.End(ref)
	return g, err
}

// A contender is a server process on one core.
type contender struct {
	cmd  *exec.Cmd
	addr *net.UDPAddr
}

// onOneCore starts a command on the first core.
func onOneCore(tb testing.TB, env []string, stdout *os.File, args ...string) *exec.Cmd {
	tb.Helper()
	cmd := exec.Command("taskset", append([]string{"-c", "0"}, args...)...)
	cmd.Env, cmd.Stdout = append(os.Environ(), env...), stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(tb, cmd.Start())
	tb.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// ours starts the server of this package.
func ours(tb testing.TB) contender {
	tb.Helper()
	r, w, err := os.Pipe()
	must(tb, err)
	defer r.Close()
	cmd := onOneCore(tb, []string{nested + "=serve", "GOMAXPROCS=1"}, w, self())
	must(tb, w.Close())
	line, err := bufio.NewReader(r).ReadString('\n')
	must(tb, err)
	port, err := strconv.Atoi(strings.TrimSpace(line))
	must(tb, err)
	return contender{cmd, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}}
}

// freeRADIUS starts the peer with what configure puts into a directory.
func freeRADIUS(tb testing.TB, port int, configure func(testing.TB, string, []byte)) contender {
	tb.Helper()
	dir := tb.TempDir()
	var users bytes.Buffer
	for i := range crowd {
		fmt.Fprintf(&users, "%s NT-Password := %s\n", name(i), ntHash(i))
	}
	configure(tb, dir, users.Bytes())
	c := contender{onOneCore(tb, nil, nil, "/usr/sbin/freeradius", "-f", "-l", "/dev/null", "-d", dir, "-n", "radiusd"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}}
	n, err := dial(c.addr)
	must(tb, err)
	defer n.conn.Close()
	p := newPeer(n, 1, name(0), password(0))
	n.anywhere, p.patience = true, 100*time.Millisecond
	for range 60 {
		if _, err = p.login(); err == nil {
			return c
		}
		time.Sleep(50 * time.Millisecond)
	}
	out, _ := exec.Command("/usr/sbin/freeradius", "-CX", "-d", dir, "-n", "radiusd").CombinedOutput()
	tb.Fatalf("freeradius lets nobody in: %v\n%s", err, out[max(0, len(out)-2000):])
	return c
}

// asShipped is Debian's configuration with the users, the secret and the preferred method put in.
func asShipped(tb testing.TB, dir string, users []byte) {
	tb.Helper()
	must(tb, exec.Command("cp", "-rL", "--no-preserve=ownership", "/etc/freeradius/3.0/.", dir).Run())
	edit(tb, dir+"/radiusd.conf", "raddbdir = /etc/freeradius/3.0", "raddbdir = "+dir, "logdir = /var/log/freeradius", "logdir = "+dir,
		"run_dir = ${localstatedir}/run/${name}", "run_dir = "+dir, "\tuser = freerad", "", "\tgroup = freerad", "")
	edit(tb, dir+"/clients.conf", "secret = testing123", "secret = "+secret)
	edit(tb, dir+"/mods-enabled/eap", "default_eap_type = md5", "default_eap_type = mschapv2")
	must(tb, os.WriteFile(filepath.Join(dir, "mods-config/files/authorize"), users, 0o600))
}

// fromDatabase is the same with the users in SQLite, found by one indexed query, because a file of users is only
// read at the start. Nothing is written.
func fromDatabase(tb testing.TB, dir string, _ []byte) {
	tb.Helper()
	asShipped(tb, dir, nil)
	edit(tb, dir+"/sites-enabled/default", "-sql", "sql")
	for range 3 {
		edit(tb, dir+"/sites-enabled/default", "\t-sql", "")
	}
	// Ports of its own; the inner tunnel has one too.
	for i := range 4 {
		edit(tb, dir+"/sites-enabled/default", "\tport = 0\n", fmt.Sprintf("\tport = %d\n", databasePort+i%2))
	}
	must(tb, os.Remove(dir+"/sites-enabled/inner-tunnel"))
	module, err := os.ReadFile(dir + "/mods-available/sql")
	must(tb, err)
	must(tb, os.WriteFile(dir+"/mods-enabled/sql", module, 0o600))
	edit(tb, dir+"/mods-enabled/sql", `driver = "rlm_sql_null"`, `driver = "rlm_sql_sqlite"`, "/tmp/freeradius.db", dir+"/users.db",
		"\tdelete_stale_sessions = yes", "\tread_groups = no\n\tread_profiles = no")
	db, err := sql.Open("sqlite", dir+"/users.db")
	must(tb, err)
	defer db.Close()
	schema, err := os.ReadFile(dir + "/mods-config/sql/main/sqlite/schema.sql")
	must(tb, err)
	_, err = db.Exec(string(schema))
	must(tb, err)
	tx, err := db.Begin()
	must(tb, err)
	for i := range crowd {
		_, err := tx.Exec("INSERT INTO radcheck (username, attribute, op, value) VALUES ($1, 'NT-Password', ':=', $2)", name(i), ntHash(i))
		must(tb, err)
	}
	must(tb, tx.Commit())
}

// edit replaces the first of each pair by the second, once.
func edit(tb testing.TB, path string, pairs ...string) {
	tb.Helper()
	text, err := os.ReadFile(path)
	must(tb, err)
	for i := 0; i < len(pairs); i += 2 {
		if !bytes.Contains(text, []byte(pairs[i])) {
			tb.Fatalf("%s has no %q", path, pairs[i])
		}
		text = bytes.Replace(text, []byte(pairs[i]), []byte(pairs[i+1]), 1)
	}
	must(tb, os.WriteFile(path, text, 0o600))
}

// Ports of the peers.
const (
	shippedPort  = 1812
	prunedPort   = 11812
	databasePort = 21812
)

// pruned is what EAP-MSCHAPv2 needs and nothing else, with room for every login.
func pruned(tb testing.TB, dir string, users []byte) {
	tb.Helper()
	must(tb, os.WriteFile(filepath.Join(dir, "users"), users, 0o600))
	must(tb, os.WriteFile(filepath.Join(dir, "radiusd.conf"), fmt.Appendf(nil, prunedConf, dir, secret, prunedPort), 0o600))
}

const prunedConf = `prefix = /usr
libdir = /usr/lib/freeradius
raddbdir = %[1]s
confdir = %[1]s
run_dir = %[1]s
logdir = /dev
pidfile = %[1]s/pid
max_request_time = 30
cleanup_delay = 5
max_requests = 262144
hostname_lookups = no
log {
	destination = files
	file = /dev/null
	auth = no
}
security {
	max_attributes = 200
	reject_delay = 0
	status_server = no
}
proxy_requests = no
thread pool {
	start_servers = 1
	max_servers = 4
	min_spare_servers = 1
	max_spare_servers = 4
	max_requests_per_server = 0
	max_queue_size = 65536
}
client localhost {
	ipaddr = 127.0.0.1
	secret = %[2]s
	require_message_authenticator = yes
}
modules {
	eap {
		default_eap_type = mschapv2
		timer_expire = 60
		ignore_unknown_eap_types = no
		max_sessions = 262144
		mschapv2 {
		}
	}
	mschap {
		use_mppe = yes
	}
	files {
		filename = ${confdir}/users
	}
}
server default {
	listen {
		type = auth
		ipaddr = 127.0.0.1
		port = %[3]d
	}
	authorize {
		eap {
			ok = return
		}
		files
	}
	authenticate {
		Auth-Type MS-CHAP {
			mschap
		}
		eap
	}
}
`

// work returns the processor time of the process, in the kernel and in threads that have ended
// too: its clock of clock_getcpuclockid(3).
func (c contender) work(tb testing.TB) time.Duration {
	tb.Helper()
	var now unix.Timespec
	must(tb, unix.ClockGettime(int32(^c.cmd.Process.Pid<<3|2), &now))
	return time.Duration(now.Nano())
}

// rush has n customers log in, some of them at once.
func (c contender) rush(tb testing.TB, n int) {
	tb.Helper()
	var wg sync.WaitGroup
	for w := range sockets {
		conn, err := net.DialUDP("udp4", nil, c.addr)
		must(tb, err)
		wg.Go(func() {
			defer conn.Close()
			if err := crowded(conn, w*n/sockets, (w+1)*n/sockets); err != nil {
				tb.Error(err)
			}
		})
	}
	wg.Wait()
}

// crowded has the customers from first to last log in over one socket, waiting of them at once. It
// takes care to cost little: the servers are to be measured, not the customers.
func crowded(conn *net.UDPConn, first, last int) error {
	packets := ipv4.NewPacketConn(conn)
	n := &nas{secret: []byte(secret), mac: hmac.New(md5.New, []byte(secret))}
	var all [waiting]*peer // by identifier
	var in, out [waiting]ipv4.Message
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, 1024)}
	}
	queue := out[:0]
	send := func(p *peer, eap, state []byte) {
		n.id = byte(p.port%waiting) - 1 // each has its identifier
		p.last = n.packet(accessRequest, p.attributes(eap, state)...)
		queue = append(queue, ipv4.Message{Buffers: [][]byte{p.last}})
	}
	next := first
	begin := func(id int) {
		all[id] = nil
		if next < last {
			p := newPeer(n, uint32(next/waiting*waiting+id), name(next%crowd), password(next%crowd))
			all[id] = p
			next++
			send(p, eapResponse(0, 1, []byte(p.name)...), nil)
		}
	}
	for id := range waiting {
		begin(id)
	}
	for done := first; done < last; {
		for len(queue) > 0 {
			k, err := packets.WriteBatch(queue, 0)
			if err != nil {
				return err
			}
			queue = queue[k:]
		}
		queue = out[:0]
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		k, err := packets.ReadBatch(in[:], 0)
		if err != nil {
			return err
		}
		for _, m := range in[:k] {
			b := m.Buffers[0][:m.N]
			p := all[b[1]%waiting]
			a, err := dissect(b)
			if err != nil || p == nil || b[1] != p.last[1] {
				return fmt.Errorf("stray answer of %d bytes: %w", len(b), err)
			}
			switch {
			case a.code == accessAccept && p.want != "":
				done++
				begin(int(b[1] % waiting))
			case a.code == accessChallenge && p.want == "":
				eap, err := p.respond(a.eap)
				if err != nil {
					return err
				}
				send(p, eap, a.state)
			case p.convinced(a):
				send(p, eapResponse(a.eap[1], 26, 3), a.state)
			default:
				return errRefused
			}
		}
	}
	return nil
}

// BenchmarkEAPMSCHAPv2 measures logins per second of one core beside FreeRADIUS. Both servers have
// the first core, in turns, and face the same customers. logins/core-s is by the processor time
// that the server took, which customers and others on the machine disturb least; logins/s is by the clock.
// The figures are medians of the rounds.
func BenchmarkEAPMSCHAPv2(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root for a network namespace and FreeRADIUS's configuration")
	}
	contenders := []contender{
		ours(b), freeRADIUS(b, databasePort, fromDatabase), freeRADIUS(b, shippedPort, asShipped), freeRADIUS(b, prunedPort, pruned),
	}
	names, rounds := []string{"lethe", "freeradius-database", "freeradius-shipped", "freeradius-pruned"}, []int{20000, 2000, 4000, 4000}
	var byWork, byClock [4][]float64
	for b.Loop() {
		for i, c := range contenders {
			work, begun := c.work(b), time.Now()
			c.rush(b, rounds[i])
			byClock[i] = append(byClock[i], float64(rounds[i])/time.Since(begun).Seconds())
			byWork[i] = append(byWork[i], float64(rounds[i])/(c.work(b)-work).Seconds())
		}
	}
	for i, n := range names {
		slices.Sort(byWork[i])
		slices.Sort(byClock[i])
		b.ReportMetric(byWork[i][len(byWork[i])/2], n+"-logins/core-s")
		b.ReportMetric(byClock[i][len(byClock[i])/2], n+"-logins/s")
	}
	b.ReportMetric(0, "ns/op")
}
