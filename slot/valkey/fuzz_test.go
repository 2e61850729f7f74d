package valkey_test

import (
	"net"
	"strings"
	"testing"

	"lethe/slot/valkey"
)

// FuzzReplication: whatever a server says of its replicas, none that it names is
// overlooked and nothing is made up.
func FuzzReplication(f *testing.F) {
	for _, seed := range []string{
		"# Replication\r\nrole:master\r\nconnected_slaves:1\r\nslave0:ip=127.0.0.1,port=6380,state=online,offset=14,lag=1\r\nmaster_replid:ab\r\n",
		"role:slave\r\nslave_repl_offset:0\r\nslave_read_only:1\r\n", "slave0", "slave:ip=a", "slave0:ip=2001:db8::1,port=1", "",
		"role:master\nslave12:port=,ip=", "slave1:ip=a,port=1\nslave2:ip=b,port=2\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		_, replicas := valkey.ParseReplication(text)
		if n := strings.Count(text, "slave"); len(replicas) > n {
			t.Fatalf("%d replicas of %d", len(replicas), n)
		}
		for _, r := range replicas {
			if !strings.Contains(r, ":") {
				t.Fatalf("%q is no address", r)
			}
		}
		role, replicas := valkey.ParseReplication("role:master\r\n" + strings.ReplaceAll(text, "role", "") + "\r\nslave7:ip=192.0.2.7,port=7\r\n")
		if role != "master" || len(replicas) == 0 || replicas[len(replicas)-1] != net.JoinHostPort("192.0.2.7", "7") {
			t.Fatalf("got %q, %q", role, replicas)
		}
	})
}
