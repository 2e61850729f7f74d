package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"lethe/client"
)

// Email and password of the customer of the tour.
const (
	TourEmail    = "ada@river.example"
	TourPassword = "a river in the underworld"
)

// Tour tells the story of one customer on a running lab and writes what is
// typed and what is answered to out: sign up, be licensed by the operator, log in,
// connect by OpenVPN, fetch the web site through the tunnel, be refused with a second
// device over the licence's limit, disconnect, the same by IKEv2, and the usage rows,
// one for each protocol, that are all the provider keeps. It fails when the site
// sees another address than a server's, the second device is let in, or a row does
// not come.
func Tour(ctx context.Context, info *Info, out io.Writer) error {
	t := tour{out, info.Machine(customerName(0)), info.Machine("control")}
	before, err := t.visit(ctx)
	if err != nil {
		return err
	}
	place := info.Machines[2] // the first server
	code, _ := strings.CutSuffix(place.Name, "-1")
	until := time.Now().AddDate(0, 1, 0).UTC().Format(time.DateOnly)
	for _, s := range []struct {
		on    *Machine
		stdin string
		args  []string
	}{
		{t.customer, TourPassword + "\n", []string{"lethe", "signup", TourEmail}},
		{t.control, "", []string{"lethe-control", "licence", "create", TourEmail, "--plan", "standard", "--devices", "1", "--until", until, "--dir", controlData}},
		{t.customer, TourPassword + "\n", []string{"lethe", "login", TourEmail}},
		{t.customer, "", []string{"lethe", "locations"}},
	} {
		if err := t.enter(ctx, s.on, s.stdin, s.args...); err != nil {
			return err
		}
	}
	// Connecting waits until the server knows the customer.
	if err := t.connected(ctx, place, before, "openvpn", 5, func() error { return t.limit(ctx, code) }); err != nil {
		return err
	}
	if err := t.connected(ctx, place, before, "ikev2", 3, func() error { return nil }); err != nil {
		return err
	}
	return t.usage(ctx, 2)
}

// connected connects by a protocol to a server's location, moves some megabytes, calls
// meanwhile and disconnects. The address that the site sees must be the server's, and not before.
func (t *tour) connected(ctx context.Context, place *Machine, before, protocol string, megabytes int, meanwhile func() error) error {
	code, _ := strings.CutSuffix(place.Name, "-1")
	if err := t.enter(ctx, t.customer, "", "lethe", "connect", code, "--protocol", protocol); err != nil {
		return err
	}
	inside, err := t.visit(ctx)
	if err != nil {
		return err
	}
	if inside == before || !place.has(inside) {
		return fmt.Errorf("the web site sees %s, want an address of %s", inside, place.Name)
	}
	for _, args := range [][]string{
		{"curl", "-sS", "-o", "/dev/null", "-w", `%{size_download} bytes\n`, fmt.Sprintf("%sbytes/%d000000", SiteURL, megabytes)},
		{"lethe", "status"},
	} {
		if err := t.enter(ctx, t.customer, "", args...); err != nil {
			return err
		}
	}
	if err := meanwhile(); err != nil {
		return err
	}
	return t.enter(ctx, t.customer, "", "lethe", "disconnect")
}

// limit shows what a second device of the same customer is told while the first
// one is connected. An app with a login of its own stands in for it.
func (t *tour) limit(ctx context.Context, code string) error {
	second := func(stdin string, args ...string) error {
		fmt.Fprintf(t.out, "\n%s, a second device$ lethe %s\n", t.customer.Name, strings.Join(args, " "))
		script := []string{"-c", `XDG_STATE_HOME="$HOME/second-device" exec lethe "$@"`, "sh"}
		c := t.customer.Command(ctx, "sh", append(script, args...)...)
		c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), t.out, t.out
		return c.Run()
	}
	if err := second(TourPassword+"\n", "login", TourEmail); err != nil {
		return fmt.Errorf("the second device logs in: %w", err)
	}
	var refused *exec.ExitError
	if err := second("", "connect", code); !errors.As(err, &refused) || refused.ExitCode() != client.ExitLimit {
		return fmt.Errorf("a second device of a licence for one: %v, want exit status %d", err, client.ExitLimit)
	}
	return t.enter(ctx, t.control, "", "lethe-control", "slots", "show", TourEmail, "--dir", controlData)
}

// has reports whether address is one of m's.
func (m *Machine) has(address string) bool {
	for _, d := range m.Addresses {
		if d.V4.String() == address || d.V6.String() == address {
			return true
		}
	}
	return false
}

type tour struct {
	out               io.Writer
	customer, control *Machine
}

// enter runs a command as a person on m would, and shows both.
func (t *tour) enter(ctx context.Context, m *Machine, stdin string, args ...string) error {
	fmt.Fprintf(t.out, "\n%s$ %s\n", m.Name, strings.Join(args, " "))
	c := m.Command(ctx, args[0], args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), t.out, t.out
	if err := c.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args[:2], " "), err)
	}
	return nil
}

// say is enter that returns the output.
func (t *tour) say(ctx context.Context, m *Machine, args ...string) (string, error) {
	fmt.Fprintf(t.out, "\n%s$ %s\n", m.Name, strings.Join(args, " "))
	got, err := m.Run(ctx, args[0], args[1:]...)
	_, _ = io.WriteString(t.out, got) // whoever watches may be gone
	return got, err
}

// visit fetches the web site and returns the address that it saw.
func (t *tour) visit(ctx context.Context) (string, error) {
	got, err := t.say(ctx, t.customer, "curl", "-sS", "-m", "10", SiteURL)
	if err != nil {
		return "", err
	}
	address, _, _ := strings.Cut(strings.TrimPrefix(got, "address: "), "\n")
	return address, nil
}

// usagePatience is how long the tour waits for the rows: several of the lab's
// delivery intervals.
const usagePatience = 30 * time.Second

// usage waits for the usage rows and shows them.
func (t *tour) usage(ctx context.Context, rows int) error {
	fmt.Fprintln(t.out, "\nwaiting for the server to deliver the usage records, at moments of its own clock …")
	var failed error
	err := await(ctx, usagePatience, "not every usage row came", func(ctx context.Context) bool {
		var answer struct {
			Rows []json.RawMessage `json:"rows"`
		}
		got, err := t.control.Operate(ctx, "usage", "show", TourEmail, "--json")
		failed = errors.Join(err, json.Unmarshal([]byte(got), &answer))
		return failed != nil || len(answer.Rows) >= rows
	})
	if err = errors.Join(failed, err); err != nil {
		return err
	}
	return t.enter(ctx, t.control, "", "lethe-control", "usage", "show", TourEmail, "--dir", controlData)
}
