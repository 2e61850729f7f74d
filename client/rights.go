package client

import (
	"context"
	"errors"
	"time"

	"lethe/account"
	"lethe/day"
	"lethe/fault"
	"lethe/private"
)

// rights are what the service has granted: the VPN credential and the licence.
type rights struct {
	credential account.Credential
	licence    account.Licence
	since      time.Time // when this machine first heard of both as they are
	fresh      bool      // the service has just said so; it is no copy
}

// storedRights is the form of rights in the state directory.
type storedRights struct {
	Username string          `json:"username"`
	Password string          `json:"password"`
	Licence  account.Licence `json:"licence"`
	Since    time.Time       `json:"since"`
}

// spread is how long a change of accounts takes at most until every server has it.
const spread = time.Minute

// unheard returns how much longer servers may not have heard of r. A clock that was set back does
// not make it longer.
func (r rights) unheard() time.Duration {
	return min(max(time.Until(r.since.Add(spread)), 0), spread)
}

// rights returns what the service has granted: what it says, or the copy when it cannot be reached
// or (offline) must not be asked.
func (a *app) rights(ctx context.Context, offline bool) (rights, error) {
	k, err := a.keep()
	if err != nil {
		return rights{}, err
	}
	have, found, err := k.rights()
	if err != nil || offline && found {
		return have, err
	}
	c, _, token, err := a.session()
	if err != nil {
		return have, err
	}
	defer c.Close()
	now := rights{fresh: true}
	now.credential, err = c.Credential(ctx, token)
	if err == nil {
		now.licence, err = c.Licence(ctx, token)
	}
	switch {
	case err != nil && fault.Of(err) == fault.Unavailable && found:
		return have, nil
	case err != nil:
		return have, expired(err)
	}
	return k.putRights(now)
}

// unlicensed returns why a licence lets nobody connect today, or nil if it does.
func unlicensed(l account.Licence) error {
	switch {
	case l.Active(day.Today()):
		return nil
	case l.Plan == "":
		return fault.New(fault.Expired, "this account has no licence yet").WithHint("get one from the provider; `lethe account` shows it")
	case l.Disabled:
		return fault.New(fault.Expired, "the provider has ended this account's licence").WithHint("ask the provider; `lethe account` shows it")
	}
	return fault.New(fault.Expired, "the licence has ended").WithHint("its last day was " + l.PaidUntil.String() + "; extend it to connect")
}

// rights returns the copy of the rights, if there is one.
func (k keep) rights() (r rights, found bool, err error) {
	var s storedRights
	found, err = k.read(credentialFile, &s)
	return rights{
		credential: account.Credential{Username: private.Of(s.Username), Password: private.Of(s.Password)},
		licence:    s.Licence, since: s.Since,
	}, found, err
}

// putRights keeps what the service has just said. It is new from now on when it differs from the
// copy or there is none that can be read.
func (k keep) putRights(r rights) (rights, error) {
	var have storedRights
	found, err := k.read(credentialFile, &have)
	now := storedRights{r.credential.Username.Reveal(), r.credential.Password.Reveal(), r.licence, have.Since}
	if err != nil || !found || have != now {
		now.Since = time.Now().UTC()
	}
	r.since = now.Since
	return r, k.write(credentialFile, now)
}

// again is how long the app waits before it asks a server once more that has refused.
const again = 2 * time.Second

// refused reports whether err is the refusal of a credential or a licence by a server.
func refused(err error) bool {
	k := fault.Of(err)
	return err != nil && (k == fault.Unauthenticated || k == fault.Expired)
}

// insist waits for the tunnel as [app.await] does and, when a server refuses what it may not have
// heard of yet, asks again until r is old enough for every server to know it. The lock stays up.
func (a *app) insist(ctx context.Context, socket string, target *Target, r rights, timeout time.Duration) (Status, error) {
	done := a.progress("connecting")
	status, err := a.await(ctx, socket, target.Location, timeout)
	done()
	if !refused(err) || r.unheard() == 0 {
		return status, err
	}
	a.noteLine("servers learn of new accounts, licences and credentials within a minute; trying again")
	defer a.progress("waiting for the servers to learn of it")()
	for refused(err) && r.unheard() > 0 {
		if err := a.lull(ctx, socket, err); err != nil {
			return status, err
		}
		if status, err = Call(ctx, socket, Request{Op: OpConnect, Target: target}); err != nil {
			return status, helperErr(err)
		}
		status, err = a.await(ctx, socket, target.Location, timeout)
	}
	return status, err
}

// lull waits before the next try. It fails when ctx ends or somebody else has connected or
// disconnected meanwhile, who is then left alone.
func (a *app) lull(ctx context.Context, socket string, refusal error) error {
	pause, cancel := context.WithTimeout(ctx, again)
	defer cancel()
	err := Watch(pause, socket, Request{Op: OpWatch}, func(s Status) bool { return s.State == Blocked })
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &coded{fault.Wrap(fault.Unavailable, "still refused when the time was over: "+ProblemOf(refusal).Text, refusal).
			WithHint("servers learn of new accounts, licences and credentials within a minute: `lethe connect` tries again, `lethe disconnect` gives the internet back"), ExitTimeout}
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return nil
	case err != nil:
		return helperErr(err)
	}
	return fault.New(fault.Conflict, "somebody else has connected or disconnected meanwhile").WithHint("see `lethe status`")
}
