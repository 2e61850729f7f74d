package account

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"lethe/day"
	"lethe/fault"
	"lethe/private"
)

// TokenDays is how long a [Token] is valid: through the 30th day after the
// login.
const TokenDays = 30

// Limiter says whether one more attempt for a subject (an e-mail address) may
// be made now. It must not keep the subject. Package ratelimit has one.
type Limiter interface {
	AllowSubject(purpose string, subject private.Value[string]) bool
}

// Config is what a [Service] needs.
type Config struct {
	Store   Store
	Tokens  TokenStore
	Limiter Limiter
	// Hashes is how many password hashes may be computed at once, each with
	// 19 MiB; 0 means one per processor.
	Hashes int
	// SignUpStep is the time of which every sign-up takes a whole multiple, so
	// that its length does not tell whether the address was known (a known
	// address saves a write to the disk); 0 means 250 ms.
	SignUpStep time.Duration
	// Today returns the date; nil means [day.Today].
	Today func() day.Day
}

// Service signs customers up, logs them in and answers for what they have. It
// is safe for concurrent use.
//
// What an outsider can learn of who has an account: from SignUp's outcome and
// duration nothing, from a failed Login's text and amount of work nothing. Not
// avoidable without mail that confirms an address: whoever signs up with a
// stranger's address and then cannot log in with the password just chosen
// knows that there was an account before. The login limit applies to
// addresses, known or not; a stranger who keeps failing on purpose can so keep
// a customer from logging in, though never from using the VPN.
type Service struct {
	c     Config
	hash  hasher
	dummy private.Value[string] // hash of a random password, for unknown addresses
}

// New returns a service. It computes one password hash.
func New(c Config) *Service {
	if c.Hashes == 0 {
		c.Hashes = runtime.GOMAXPROCS(0)
	}
	if c.SignUpStep == 0 {
		c.SignUpStep = 250 * time.Millisecond
	}
	if c.Today == nil {
		c.Today = day.Today
	}
	s := &Service{c: c, hash: hasher{make(chan struct{}, c.Hashes)}}
	s.dummy, _ = s.hash.hash(context.Background(), private.Of(rand.Text())) // fails only when ctx ends
	return s
}

// SignUp makes an account without a licence and with a fresh VPN credential. It
// fails with fault.Invalid for what is no e-mail address or too weak a
// password, and with fault.TooMany. When there is an account with that address
// already it does nothing and says nothing: see [Service].
func (s *Service) SignUp(ctx context.Context, email string, password private.Value[string]) error {
	start := time.Now()
	_, err := s.Create(ctx, email, password)
	if err != nil && fault.Of(err) != fault.Conflict {
		return err
	}
	rest := time.NewTimer(s.c.SignUpStep - time.Since(start)%s.c.SignUpStep)
	defer rest.Stop()
	select {
	case <-rest.C:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.Unavailable, "the sign-up was interrupted", ctx.Err()).WithHint("try to log in")
	}
}

// Create is [Service.SignUp] for the operator: it returns the id, and fails
// with fault.Conflict when there is an account with that address.
func (s *Service) Create(ctx context.Context, email string, password private.Value[string]) (ID, error) {
	address, err := NormalizeEmail(email)
	if err != nil {
		return "", err
	}
	if err := checkPassword(password); err != nil {
		return "", err
	}
	if !s.c.Limiter.AllowSubject("sign-up", address) {
		return "", tooMany()
	}
	hash, err := s.hash.hash(ctx, password)
	if err != nil {
		return "", err
	}
	r := Record{ID: ID(strings.ToLower(rand.Text())), Email: address, Password: hash, Credential: newCredential()}
	return r.ID, s.c.Store.AddAccount(ctx, r)
}

// newCredential returns a random VPN user name and password. [rand.Text] is 26
// characters of base32, 130 bits.
func newCredential() Credential {
	return Credential{
		Username: private.Of(strings.ToLower(rand.Text()[:16])),
		Password: private.Of(strings.ToLower(rand.Text())),
	}
}

// Login checks e-mail address and password, records the app as the one
// activated last and returns a fresh token. It fails with
// fault.Unauthenticated for an unknown address as for a wrong password, with
// fault.Denied for a disabled account whose password was right, with
// fault.Invalid for an impossible app and with fault.TooMany.
func (s *Service) Login(ctx context.Context, email string, password private.Value[string], app App) (Token, error) {
	if err := app.Validate(); err != nil {
		return Token{}, err
	}
	// What is no address, or no possible password, is answered as an unknown
	// one is.
	address, invalid := NormalizeEmail(email)
	if !s.c.Limiter.AllowSubject("login", address) {
		return Token{}, tooMany()
	}
	r, err := s.c.Store.FindAccount(ctx, address)
	unknown := invalid != nil || fault.Of(err) == fault.NotFound || len(password.Reveal()) > MaxPassword
	switch {
	case unknown:
		r, password = Record{Password: s.dummy}, private.Value[string]{}
	case err != nil:
		return Token{}, err
	}
	right, err := s.hash.verify(ctx, r.Password, password)
	switch {
	case err != nil:
		return Token{}, err
	case unknown || !right:
		return Token{}, fault.New(fault.Unauthenticated, "wrong e-mail address or password").
			WithHint("an address that signed up twice keeps its first password")
	case r.Disabled:
		return Token{}, fault.New(fault.Denied, "this account is disabled").WithHint("ask the provider's support")
	}
	var random [32]byte
	_, _ = rand.Read(random[:]) // crypto/rand.Read never fails
	token := private.Of(base64.RawURLEncoding.EncodeToString(random[:]))
	today := s.c.Today()
	if err := s.c.Tokens.AddToken(ctx, r.ID, HashToken(token), today, today.Add(TokenDays), app); err != nil {
		return Token{}, err
	}
	return token, nil
}

func tooMany() error {
	return fault.New(fault.TooMany, "too many attempts").WithHint("wait a minute and try again")
}

// Logout ends a token. Ending an unknown one does nothing.
func (s *Service) Logout(ctx context.Context, t Token) error {
	return s.c.Tokens.DeleteToken(ctx, HashToken(t))
}

// Authenticate returns whose token it is, or fault.Unauthenticated. Tokens are
// found by their SHA-256, so the time of the look-up tells nothing of use.
func (s *Service) Authenticate(ctx context.Context, t Token) (ID, error) {
	id, err := s.c.Tokens.TokenOwner(ctx, HashToken(t), s.c.Today())
	if fault.Of(err) == fault.NotFound {
		return "", fault.New(fault.Unauthenticated, "you are not logged in").WithHint("log in again")
	}
	return id, err
}

// Licence returns the licence of an account.
func (s *Service) Licence(ctx context.Context, id ID) (Licence, error) {
	r, err := s.c.Store.Account(ctx, id)
	return r.Licence, err
}

// Credential returns the VPN credential of an account, whatever its licence
// says: the VPN server decides about that.
func (s *Service) Credential(ctx context.Context, id ID) (Credential, error) {
	r, err := s.c.Store.Account(ctx, id)
	return r.Credential, err
}

// ReplaceCredential gives an account a new VPN credential and returns it. The
// old one ends when the servers have the next bundle, and with it every way to
// tell which usage rows belong to the account.
func (s *Service) ReplaceCredential(ctx context.Context, id ID) (Credential, error) {
	c := newCredential()
	if err := s.c.Store.EditAccount(ctx, id, func(r *Record) error { r.Credential = c; return nil }); err != nil {
		return Credential{}, err
	}
	return c, nil
}

// Find returns the account with that e-mail address, or fault.NotFound.
func (s *Service) Find(ctx context.Context, email string) (Record, error) {
	address, err := NormalizeEmail(email)
	if err != nil {
		return Record{}, err
	}
	return s.c.Store.FindAccount(ctx, address)
}

// Each calls yield for every account in the order of e-mail addresses.
func (s *Service) Each(ctx context.Context, yield func(Record) error) error {
	return s.c.Store.EachAccount(ctx, yield)
}

var planForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// CreateLicence gives an account its first licence, or a new one in place of
// one that has ended or was disabled. It fails with fault.Conflict while one is
// active and with fault.Invalid for a plan that is not 1 to 32 small letters,
// digits and hyphens, devices not from 1 to 255 or a date in the past.
func (s *Service) CreateLicence(ctx context.Context, id ID, plan string, devices int, until day.Day) error {
	switch {
	case !planForm.MatchString(plan):
		return fault.New(fault.Invalid, "the plan's name is not possible").WithHint("want 1 to 32 small letters, digits and hyphens")
	case devices < 1 || devices > 255:
		return fault.New(fault.Invalid, "the number of devices is out of range").WithHint("want 1 to 255")
	case until < s.c.Today():
		return fault.New(fault.Invalid, "the licence would end in the past")
	}
	return s.c.Store.EditAccount(ctx, id, func(r *Record) error {
		if r.Licence.Active(s.c.Today()) {
			return fault.New(fault.Conflict, "the account has an active licence").WithHint("extend it, or disable it first")
		}
		r.Licence = Licence{Plan: plan, Devices: devices, PaidUntil: until}
		return nil
	})
}

// Extend moves the last day of a licence and returns the licence. Zero plan or
// devices keep what they are. It fails with fault.NotFound when there never
// was a licence, with fault.Conflict when until is before the present last day
// (to end a licence early, disable it) and with fault.Denied when it is
// disabled.
func (s *Service) Extend(ctx context.Context, id ID, plan string, devices int, until day.Day) (l Licence, err error) {
	if plan != "" && !planForm.MatchString(plan) || devices < 0 || devices > 255 {
		return Licence{}, fault.New(fault.Invalid, "plan or devices are not possible")
	}
	err = s.c.Store.EditAccount(ctx, id, func(r *Record) error {
		switch {
		case r.Licence.Plan == "":
			return fault.New(fault.NotFound, "the account has no licence").WithHint("create one")
		case r.Licence.Disabled:
			return fault.New(fault.Denied, "the licence is disabled").WithHint("create a new one")
		case until < r.Licence.PaidUntil:
			return fault.New(fault.Conflict, "the licence already lasts longer").WithHint("to end it early, disable it")
		}
		r.Licence.PaidUntil = until
		if plan != "" {
			r.Licence.Plan = plan
		}
		if devices != 0 {
			r.Licence.Devices = devices
		}
		l = r.Licence
		return nil
	})
	return l, err
}

// DisableLicence ends a licence early. It fails with fault.NotFound when there
// never was one.
func (s *Service) DisableLicence(ctx context.Context, id ID) error {
	return s.c.Store.EditAccount(ctx, id, func(r *Record) error {
		if r.Licence.Plan == "" {
			return fault.New(fault.NotFound, "the account has no licence")
		}
		r.Licence.Disabled = true
		return nil
	})
}

// SetDisabled disables or enables an account. Disabling ends its tokens and,
// with the next bundle, its VPN logins.
func (s *Service) SetDisabled(ctx context.Context, id ID, disabled bool) error {
	err := s.c.Store.EditAccount(ctx, id, func(r *Record) error { r.Disabled = disabled; return nil })
	if err != nil || !disabled {
		return err
	}
	return s.c.Tokens.DeleteTokens(ctx, id)
}

// SetPassword replaces the password of an account and ends its tokens.
func (s *Service) SetPassword(ctx context.Context, id ID, password private.Value[string]) error {
	if err := checkPassword(password); err != nil {
		return err
	}
	hash, err := s.hash.hash(ctx, password)
	if err != nil {
		return err
	}
	if err := s.c.Store.EditAccount(ctx, id, func(r *Record) error { r.Password = hash; return nil }); err != nil {
		return err
	}
	return s.c.Tokens.DeleteTokens(ctx, id)
}

// Delete removes an account and all that is known of it. Its usage rows stay
// until their retention ends, but nothing is left that could tell whose they
// are.
func (s *Service) Delete(ctx context.Context, id ID) error { return s.c.Store.DeleteAccount(ctx, id) }

var (
	versionForm = regexp.MustCompile(`^[0-9]{1,5}\.[0-9]{1,5}\.[0-9]{1,5}$`)
	systems     = []string{"linux", "macos", "windows", "android", "ios", "router", "other"}
)

// Validate returns fault.Invalid when a is not an app that the inventory
// allows to be stored.
func (a App) Validate() error {
	if !slices.Contains(systems, a.OS) || !versionForm.MatchString(a.Version) {
		return fault.New(fault.Invalid, "the app's system or version is not possible").
			WithHint("want one of " + strings.Join(systems, ", ") + " and a version like 0.1.0")
	}
	return nil
}
