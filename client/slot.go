package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"os"
	"regexp"
	"time"

	api "lethe/api/client"
	"lethe/fault"
	"lethe/private"
)

// A licence has a limit of connected devices, which the service counts by slots (see package slot).
// The app takes one before it connects and hands it to the helper, which says through the tunnel
// every half minute that it is still in use and gives it back before the tunnel ends. A
// slot is no login: with its token nothing can be done but this.
//
// Counting never costs anybody a connection that is not over the limit: when the service cannot be
// reached, connecting goes on with the slot of last time (a heartbeat makes it live again where there
// is room) or without one, and no answer to a heartbeat ends a tunnel.

// Slot is a connection slot, and where to keep it.
type Slot struct {
	Token private.Value[string]
	API   string // https address of the service
	CA    string // PEM certificates to trust instead of the system's; may be empty
}

// SlotState is what the service last said to a heartbeat.
type SlotState string

// The states of a slot.
const (
	SlotKept    SlotState = "kept"       // this device counts as one of the licence's
	SlotOver    SlotState = "over-limit" // other devices have all places of the licence; this one stays connected
	SlotEnded   SlotState = "ended"      // the licence or the account has ended, or the slot is not known
	SlotUnheard SlotState = "unheard"    // the service does not answer
)

func slotState(err error) SlotState {
	switch {
	case err == nil:
		return SlotKept
	case fault.Of(err) == fault.TooMany:
		return SlotOver
	case refusesSlot(err):
		return SlotEnded
	}
	return SlotUnheard
}

// refusesSlot reports whether err is the service's decision, and no failure of it or of the way to it.
func refusesSlot(err error) bool {
	switch fault.Of(err) {
	case fault.TooMany, fault.Unauthenticated, fault.Denied, fault.Expired:
		return true
	}
	return false
}

// wireSlot is a Slot in the helper protocol.
type wireSlot struct {
	Token string `json:"token"`
	API   string `json:"api"`
	CA    string `json:"ca,omitempty"`
}

func (s *Slot) wire() *wireSlot {
	if s == nil {
		return nil
	}
	return &wireSlot{s.Token.Reveal(), s.API, s.CA}
}

var slotForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// check takes a slot apart as [wireTarget.check] does a target.
func (w *wireSlot) check() (*Slot, error) {
	if w == nil {
		return nil, nil
	}
	if !slotForm.MatchString(w.Token) || len(w.API) > 300 {
		return nil, errors.New("slot: no token or no address")
	}
	s := &Slot{Token: private.Of(w.Token), API: w.API}
	if w.CA != "" {
		var err error
		if s.CA, err = cleanCA(w.CA); err != nil {
			return nil, err
		}
	}
	c, err := s.service()
	if err != nil {
		return nil, err
	}
	c.Close()
	return s, nil
}

// slotPatience is how long the service may take to answer a heartbeat.
const slotPatience = 10 * time.Second

func (s *Slot) service() (*api.Client, error) {
	c := api.Config{URL: s.API, Timeout: slotPatience}
	if s.CA != "" {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(s.CA))
		c.TLS = &tls.Config{RootCAs: roots}
	}
	return api.New(c)
}

// slotFile holds the token of the last slot, so that a machine that died takes its own place again.
const slotFile = "slot.json"

type storedSlot struct {
	Token string `json:"token"`
}

// slot takes a slot of the licence. When the service was not reached a moment ago (asked is false), or
// cannot give one, it returns that of last time, or nil when there is none.
func (a *app) slot(ctx context.Context, asked bool) (*Slot, error) {
	k, err := a.keep()
	if err != nil {
		return nil, err
	}
	var last storedSlot
	if _, err := k.read(slotFile, &last); err != nil || !slotForm.MatchString(last.Token) {
		last.Token = "" // damaged: it is replaced
	}
	s, err := a.settings()
	if err != nil {
		return nil, err
	}
	slot := &Slot{Token: private.Of(last.Token), API: s.API}
	if s.CA != "" {
		pem, err := os.ReadFile(s.CA)
		if err != nil {
			return nil, &coded{fault.Wrap(fault.Invalid, "no certificate can be read from the file of --ca", err), ExitUsage}
		}
		slot.CA = string(pem)
	}
	if asked {
		ctx, cancel := context.WithTimeout(ctx, freshness)
		defer cancel()
		fresh, err := a.takeSlot(ctx, slot.Token)
		switch {
		case err == nil:
			slot.Token = fresh
			if err := k.write(slotFile, storedSlot{fresh.Reveal()}); err != nil {
				a.noteLine(ProblemOf(err).Text)
			}
			return slot, nil
		case fault.Of(err) == fault.TooMany:
			return nil, &coded{asFault(err), ExitLimit}
		case refusesSlot(err):
			return nil, expired(err)
		}
	}
	if last.Token == "" {
		return nil, nil
	}
	return slot, nil
}

func (a *app) takeSlot(ctx context.Context, old private.Value[string]) (private.Value[string], error) {
	c, _, token, err := a.session()
	if err != nil {
		return old, err
	}
	defer c.Close()
	return c.TakeSlot(ctx, token, old)
}

// giveBack returns a slot that the helper has not taken over. The service not answering is no
// failure: the slot ends by itself.
func (s *Slot) giveBack(ctx context.Context) {
	if s == nil {
		return
	}
	c, err := s.service()
	if err != nil {
		return
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, goodbye)
	defer cancel()
	_ = c.ReleaseSlot(ctx, s.Token)
}

func asFault(err error) *fault.Error {
	var e *fault.Error
	errors.As(err, &e)
	return e
}

// goodbye is how long giving a slot back may delay a disconnect.
const goodbye = time.Second

// holder keeps a slot while a tunnel is up.
type holder struct {
	slot    *Slot
	service *api.Client
	cancel  func()
	ended   chan struct{}
}

// hold starts keeping a slot until ctx ends; nil when there is none.
func (h *Helper) hold(ctx context.Context, s *Slot) *holder {
	if s == nil {
		return nil
	}
	service, err := s.service()
	if err != nil {
		return nil // checked when it came; without heartbeats it ends by itself
	}
	ctx, cancel := context.WithCancel(ctx)
	o := &holder{s, service, cancel, make(chan struct{})}
	go func() {
		defer close(o.ended)
		h.beats(ctx, o)
	}()
	return o
}

// beats sends the heartbeats. Only while there is a tunnel: there is no other way out, and the
// service shall see a VPN server's address and not the customer's.
func (h *Helper) beats(ctx context.Context, o *holder) {
	for {
		now, changed := h.present()
		if now.State != Connected {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			continue
		}
		err := o.service.Beat(ctx, o.slot.Token)
		o.service.Close() // no connection stays: it would outlive the tunnel, and there are many customers
		if ctx.Err() != nil {
			return
		}
		state := slotState(err)
		if now, _ := h.present(); now.Slot != state {
			h.note(func(s *Status) { s.Slot = state })
		}
		if !h.nextBeat(ctx, state) {
			return
		}
	}
}

// nextBeat waits until the next heartbeat is due: about the interval, with a sixth of it more or less by
// chance, a third of that when nothing was heard; at once when a tunnel is lost, for what
// follows is another one. It reports whether ctx lives on.
func (h *Helper) nextBeat(ctx context.Context, state SlotState) bool {
	wait := h.cfg.Beat - h.cfg.Beat/6 + rand.N(h.cfg.Beat/3+1)
	if state == SlotUnheard {
		wait /= 3
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		now, changed := h.present()
		if now.State != Connected {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-changed:
		}
	}
}

// release stops keeping the slot and, with a tunnel, gives it back.
func (o *holder) release(ctx context.Context, tunnel bool) {
	if o == nil {
		return
	}
	o.cancel()
	<-o.ended // a heartbeat behind the end would make the slot again
	if tunnel {
		o.slot.giveBack(ctx)
	}
}
