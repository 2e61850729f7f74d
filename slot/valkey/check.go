package valkey

import (
	"context"
	"errors"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"

	"lethe/fault"
)

// refusal says why a server may not keep slots.
func refusal(text, hint string) error {
	return fault.New(fault.Invalid, "slots: "+text).WithHint(hint)
}

// asker is a connection as far as the check needs it.
type asker interface {
	ConfigGet(ctx context.Context, pattern string) *redis.MapStringStringCmd
	Info(ctx context.Context, section ...string) *redis.StringCmd
}

// wanted are the settings that a server must have, and what to do about it.
var wanted = []struct{ name, value, text, hint string }{
	{"save", "", "the Valkey server saves to a disk, which would be history", `set in its configuration: save ""`},
	{"appendonly", "no", "the Valkey server writes an append-only file, which would be history", "set in its configuration: appendonly no"},
	{"slowlog-log-slower-than", "-1", "the Valkey server keeps a log of slow commands with their times, which would be history",
		"set in its configuration: slowlog-log-slower-than -1"},
}

// settings checks what every server must have, primary or replica.
func settings(ctx context.Context, s asker) error {
	for _, w := range wanted {
		got, err := setting(ctx, s, w.name)
		switch {
		case err != nil:
			return err
		case got != w.value:
			return refusal(w.text, w.hint)
		}
	}
	return nil
}

// setting returns one setting. A server that has none of that name, or does
// not tell, is refused.
func setting(ctx context.Context, s asker, name string) (string, error) {
	all, err := s.ConfigGet(ctx, name).Result()
	value, there := all[name]
	var refused redis.Error
	switch {
	case errors.As(err, &refused) || err == nil && !there:
		return "", refusal("the Valkey server does not say whether it keeps what it is told",
			"allow our user there CONFIG GET and INFO (ACL: +config|get +info)")
	case err != nil:
		return "", err
	}
	return value, nil
}

// replication returns the role of a server and the addresses of its replicas.
func replication(ctx context.Context, s asker) (role string, replicas []string, err error) {
	text, err := s.Info(ctx, "replication").Result()
	if err != nil {
		return "", nil, err
	}
	role, replicas = parseReplication(text)
	return role, replicas, nil
}

// parseReplication reads the answer to INFO replication: "name:value" lines,
// among them role and, for each replica, slaveN:ip=…,port=…,…
func parseReplication(text string) (role string, replicas []string) {
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if name == "role" {
			role = value
		}
		number, isReplica := strings.CutPrefix(name, "slave")
		if !ok || !isReplica || strings.Trim(number, "0123456789") != "" || number == "" {
			continue
		}
		fields := map[string]string{}
		for field := range strings.SplitSeq(value, ",") {
			k, v, _ := strings.Cut(field, "=")
			fields[k] = v
		}
		replicas = append(replicas, net.JoinHostPort(fields["ip"], fields["port"]))
	}
	return role, replicas
}

// checkPrimary checks the server at the other end of a new connection, and its
// replicas as far as they can be asked; one that cannot is refused.
func checkPrimary(ctx context.Context, conn *redis.Conn, o *redis.Options) error {
	if err := settings(ctx, conn); err != nil {
		return err
	}
	role, replicas, err := replication(ctx, conn)
	switch {
	case err != nil:
		return err
	case role != "master":
		return refusal("the Valkey server is a replica", "give the address of its primary")
	case len(replicas) == 0:
		return nil
	}
	// Without this a copy for a replica goes through a file on the primary.
	if diskless, err := setting(ctx, conn, "repl-diskless-sync"); err != nil {
		return err
	} else if diskless != "yes" {
		return refusal("the Valkey server copies to its replicas through a file", "set in its configuration: repl-diskless-sync yes")
	}
	for _, address := range replicas {
		if err := checkReplica(ctx, address, o); err != nil {
			return err
		}
	}
	return nil
}

func checkReplica(ctx context.Context, address string, o *redis.Options) error {
	client := redis.NewClient(&redis.Options{
		Addr: address, Username: o.Username, Password: o.Password, TLSConfig: o.TLSConfig, PoolSize: 1, MaxRetries: -1, DialerRetries: 1,
		ContextTimeoutEnabled: true, DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout,
		DisableIdentity: true, MaintNotificationsConfig: o.MaintNotificationsConfig,
	})
	defer client.Close()
	err := settings(ctx, client)
	var load string
	if err == nil {
		load, err = setting(ctx, client, "repl-diskless-load")
	}
	var more []string
	if err == nil {
		_, more, err = replication(ctx, client)
	}
	var f *fault.Error
	switch {
	case errors.As(err, &f):
		return refusal("a replica of "+strings.TrimPrefix(f.Text, "slots: "), f.Hint)
	case err != nil:
		return refusal("a replica of the Valkey server cannot be asked whether it keeps what it is told",
			"run it without replicas, or let us reach them with the same user and password")
	case load == "disabled":
		return refusal("a replica of the Valkey server takes its copy through a file", "set in its configuration: repl-diskless-load swapdb")
	case len(more) > 0:
		return refusal("a replica of the Valkey server has replicas of its own", "run it without")
	}
	return nil
}
