package client_test

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/client"
)

// goodbyes counts the exit notifications that the UDP server has heard. It is what OpenVPN 2.6 writes
// on them, by the control channel or the data channel.
func (r *rig) goodbyes() int {
	b, err := os.ReadFile(filepath.Join(r.dir, "vpn-udp.log"))
	if err != nil {
		r.t.Fatal(err)
	}
	return bytes.Count(b, []byte("SIGTERM[soft,delayed-exit]")) + bytes.Count(b, []byte("SIGTERM[soft,remote-exit]"))
}

// TestGoodbye: disconnecting does not wait for OpenVPN's idle second, and the server hears
// of it each time, with an idle tunnel and with a full one.
func TestGoodbye(t *testing.T) {
	r := newRig(t)
	r.startHelper()
	const rounds = 5
	var slowest time.Duration
	for i := range rounds {
		r.connect(client.UDP, vpnPassword, client.Connected)
		stop := func() {}
		if i > 0 {
			stop = r.flood()
		}
		start := time.Now()
		r.call(client.Request{Op: client.OpDisconnect})
		slowest = max(slowest, time.Since(start))
		stop()
	}
	t.Logf("slowest disconnect: %s", slowest)
	if slowest > 900*time.Millisecond {
		t.Errorf("a disconnect took %s", slowest)
	}
	r.eventually(15*time.Second, "the server has heard of every end", func() bool { return r.goodbyes() == rounds })

	// The control: a client that dies says nothing.
	r.connect(client.UDP, vpnPassword, client.Connected)
	r.killHelper()
	r.eventually(45*time.Second, "the server gives the silent client up", func() bool {
		b, _ := os.ReadFile(filepath.Join(r.dir, "vpn-udp.log"))
		return bytes.Contains(b, []byte("SIGUSR1[soft,ping-restart]"))
	})
	if n := r.goodbyes(); n != rounds {
		t.Errorf("%d ends were heard, want %d", n, rounds)
	}
	r.startHelper()
	r.call(client.Request{Op: client.OpDisconnect})
}

// flood sends as much as the tunnel takes until the returned function is called.
func (r *rig) flood() (stop func()) {
	var conn net.Conn
	r.in(r.client, func() {
		var err error
		if conn, err = net.Dial("udp", net.JoinHostPort(webV4, "9")); err != nil {
			r.t.Error(err)
		}
	})
	if conn == nil {
		return func() {}
	}
	done, sent := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		packet := []byte(strings.Repeat("x", 1200))
		for n := 0; ; n++ {
			if _, err := conn.Write(packet); err != nil && strings.Contains(err.Error(), "use of closed") {
				return
			}
			if n == 2000 {
				close(sent)
			}
		}
	}()
	<-sent
	return func() {
		conn.Close()
		<-done
	}
}
