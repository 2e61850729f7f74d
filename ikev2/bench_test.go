package ikev2_test

import (
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"lethe/internal/testkit"
	"lethe/session"
	"lethe/vici"
)

// bare starts a strongSwan without Lethe on a machine of its own, with the customer's password in its memory,
// and connects the customer's machine to it: its address is 10.98.N.1, its tunnel's 10.200.0.1.
func bare(tb testing.TB, c *customer) *exec.Cmd {
	tb.Helper()
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	must(tb, holder.Start())
	tb.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	pid := holder.Process.Pid
	on := fmt.Sprintf("nsenter -n -t %d ", pid)
	for _, line := range []string{
		fmt.Sprintf("ip link add bv type veth peer name eth1 netns %d", c.holder.Process.Pid), fmt.Sprintf("ip link set bv netns %d", pid),
		on + fmt.Sprintf("ip addr add 10.98.%d.1/24 dev bv", c.n), on + "ip link set bv up", on + "ip link set lo up",
	} {
		must(tb, testkit.Command(line))
	}
	must(tb, c.run(fmt.Sprintf("ip addr add 10.98.%d.2/24 dev eth1", c.n)))
	must(tb, c.run("ip link set eth1 up"))
	dir := tb.TempDir()
	conf := fmt.Sprintf("charon-systemd {\nload = %s\njournal {\ndefault = -1\n}\nplugins {\nvici {\nsocket = unix://%s/vici\n}\n}\n}\n",
		"random nonce pem openssl kdf ml kernel-libipsec kernel-netlink socket-default vici eap-identity eap-mschapv2", dir)
	must(tb, os.WriteFile(dir+"/conf", []byte(conf), 0o600))
	charon := exec.Command("nsenter", "-n", "-t", strconv.Itoa(pid), "/usr/sbin/charon-systemd", "--bare")
	charon.Env = []string{"STRONGSWAN_CONF=" + dir + "/conf"}
	// A session of its own, like any service: Linux shares processor time out by session (sched(7), autogroup),
	// and in the tests' own this one would have the benchmark's share.
	charon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	must(tb, charon.Start())
	tb.Cleanup(func() { _ = charon.Process.Kill(); _ = charon.Wait() })
	var v *vici.Conn
	var err error
	testkit.Eventually(tb, 10*time.Second, func() bool { v, err = vici.Dial(tb.Context(), dir+"/vici"); return err == nil }, func() string { return fmt.Sprint(err) })
	tb.Cleanup(v.Close)
	must(tb, testkit.Command(on+"ip addr add 10.200.0.1/16 dev ipsec0"))
	must(tb, testkit.Command(on+"ip -6 addr add fd00:200::1/64 dev ipsec0 nodad"))
	key, _ := pem.Decode([]byte(credentials().Key))
	cert, _ := pem.Decode([]byte(credentials().Cert))
	side := new(vici.Message)
	for _, m := range []struct {
		name string
		m    *vici.Message
	}{
		{"load-key", new(vici.Message).Set("type", "any").Set("data", string(pem.EncodeToMemory(key)))},
		{"load-shared", new(vici.Message).Set("id", "e").Set("type", "EAP").Set("data", password).SetList("owners", "user")},
		{"load-pool", new(vici.Message).SetSection("pool", new(vici.Message).Set("addrs", "10.200.1.0/24"))},
		{"load-pool", new(vici.Message).SetSection("pool6", new(vici.Message).Set("addrs", "fd00:200::100/120"))},
		{"load-conn", new(vici.Message).SetSection("bare", new(vici.Message).Set("version", "2").SetList("proposals", modern[0]).SetList("pools", "pool", "pool6").
			Set("send_cert", "always").Set("send_certreq", "no").Set("encap", "yes").
			SetSection("local", new(vici.Message).Set("auth", "pubkey").Set("id", serverName).SetList("certs", string(cert.Bytes))).
			SetSection("remote", side.Set("auth", "eap-mschapv2").Set("eap_id", "%any").Set("id", "%any")).
			SetSection("children", new(vici.Message).SetSection("bare", new(vici.Message).SetList("local_ts", "0.0.0.0/0", "::/0").SetList("esp_proposals", modern[1]))))},
	} {
		if _, err := v.Call(tb.Context(), m.name, m.m); err != nil {
			tb.Fatalf("bare: %s: %v", m.name, err)
		}
	}
	return holder
}

// worlds are ours and the bare one, to the same customer.
func worlds(b *testing.B) (c *customer, addrs [2]string, holders [2]int) {
	start(b, config(runtimeDir(b)), newLedger(b))
	c = newCustomer(b)
	holder := bare(b, c)
	return c, [2]string{fmt.Sprintf("10.99.%d.1", c.n), fmt.Sprintf("10.98.%d.1", c.n)}, [2]int{os.Getpid(), holder.Process.Pid}
}

var worldNames = [2]string{"lethe", "bare"}

// BenchmarkIKESetup measures the time from the order to connect until the tunnel is there, beside bare
// strongSwan with the password in its memory. The two take turns, so that a busy machine does the same to
// each. The figures are medians in milliseconds, and the median of the ratios of the rounds.
func BenchmarkIKESetup(b *testing.B) {
	c, addrs, _ := worlds(b)
	var got [2][]float64
	var ratios []float64
	for b.Loop() {
		for i, addr := range addrs {
			begun := time.Now()
			if err := c.connect(b, "user", password, modern, "remote", addr); err != nil {
				b.Fatalf("%s: %v: %s", worldNames[i], err, c.log())
			}
			got[i] = append(got[i], float64(time.Since(begun).Microseconds())/1000)
			c.leave(b)
		}
		ratios = append(ratios, got[0][len(got[0])-1]/got[1][len(got[1])-1])
	}
	for i, name := range worldNames {
		b.ReportMetric(median(got[i]), name+"-ms")
	}
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(0, "ns/op")
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// BenchmarkIKEThroughput measures one TCP stream to the server through the tunnel, beside bare strongSwan like
// BenchmarkIKESetup.
func BenchmarkIKEThroughput(b *testing.B) {
	c, addrs, holders := worlds(b)
	gates := [2]string{session.SubnetsOf(daemonID).V4.Addr().Next().String(), "10.200.0.1"}
	var got [2][]float64
	var ratios []float64
	for i := range gates {
		sink := within(holders[i], "sink", gates[i])
		must(b, sink.Start())
		b.Cleanup(func() { _ = sink.Process.Kill(); _ = sink.Wait() })
	}
	for b.Loop() {
		for i, addr := range addrs {
			if err := c.connect(b, "user", password, modern, "remote", addr); err != nil {
				b.Fatal(worldNames[i], err, c.log())
			}
			begun := time.Now()
			if out, err := within(c.holder.Process.Pid, "pour", gates[i]).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			got[i] = append(got[i], poured*8/1e6/time.Since(begun).Seconds())
			c.leave(b)
		}
		ratios = append(ratios, got[0][len(got[0])-1]/got[1][len(got[1])-1])
	}
	for i, name := range worldNames {
		b.ReportMetric(median(got[i]), name+"-Mbit/s")
	}
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(0, "ns/op")
}

// poured is how many bytes BenchmarkIKEThroughput sends at a time.
const poured = 32 << 20

// within runs this program as one end of a stream in the network namespace of a process.
func within(pid int, what, addr string) *exec.Cmd {
	self, _ := os.Executable() // an error is one of the command
	cmd := exec.Command("nsenter", "-n", "-t", strconv.Itoa(pid), self)
	cmd.Env = []string{nested + "=" + what, "ADDR=" + net.JoinHostPort(addr, "7777")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// streamMain is one end of a stream: it sends poured bytes and waits for a word that they have come, or takes
// them.
func streamMain(what string) error {
	if what == "sink" {
		l, err := net.Listen("tcp", ":7777")
		for err == nil {
			var c net.Conn
			if c, err = l.Accept(); err == nil {
				if _, err = io.CopyN(io.Discard, c, poured); err == nil {
					_, err = c.Write([]byte{1})
				}
				_ = c.Close()
			}
		}
		return err
	}
	c, err := net.Dial("tcp", os.Getenv("ADDR"))
	if err == nil {
		block := make([]byte, 1<<16)
		for n := 0; n < poured && err == nil; n += len(block) {
			_, err = c.Write(block)
		}
	}
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	return err
}
