package account

import (
	"context"
	"crypto/sha256"

	"lethe/day"
	"lethe/private"
)

// Record is everything that the store keeps of one account, its tokens
// excepted.
type Record struct {
	ID         ID
	Email      private.Value[string] // as [NormalizeEmail] returns it; unique
	Password   private.Value[string] // Argon2id hash in PHC form, never the password
	Disabled   bool                  // by the operator: no login, no VPN
	Licence    Licence
	Credential Credential
	App        App // zero before the first login
}

// TokenHash is the SHA-256 of a [Token], all that the store knows of it.
type TokenHash [sha256.Size]byte

// HashToken returns the hash under which a token is stored. A plain hash is
// enough for 256 random bits.
func HashToken(t Token) TokenHash { return sha256.Sum256([]byte(t.Reveal())) }

// Store keeps accounts. Every method is one transaction; what it acknowledged
// survives a crash. Errors are of kind fault.NotFound when there is no such
// account, fault.Full when there is no space, and hold no personal data.
//
// A change of the credential, the licence or either Disabled is marked for the
// publisher in the same transaction.
type Store interface {
	// AddAccount adds a new account, or fails with fault.Conflict when there is
	// one with that e-mail address.
	AddAccount(context.Context, Record) error
	// FindAccount returns the account with a normalised e-mail address.
	FindAccount(ctx context.Context, email private.Value[string]) (Record, error)
	// Account returns the account of that id.
	Account(context.Context, ID) (Record, error)
	// EditAccount lets edit change everything of a record but its id. When edit
	// fails nothing changes, and its error is returned as it is.
	EditAccount(ctx context.Context, id ID, edit func(*Record) error) error
	// DeleteAccount removes an account, its tokens and all it says.
	DeleteAccount(context.Context, ID) error
	// EachAccount calls yield for every account in the order of e-mail
	// addresses until yield fails; that error is returned as it is.
	EachAccount(ctx context.Context, yield func(Record) error) error
}

// TokenStore keeps the hashes of tokens. It makes the promises of [Store].
type TokenStore interface {
	// AddToken adds a token that is valid through a day and sets the account's
	// App in the same transaction. Tokens of any account that expired before
	// today are removed on the way.
	AddToken(ctx context.Context, id ID, hash TokenHash, today, through day.Day, app App) error
	// TokenOwner returns whose token it is, or fault.NotFound when it is
	// unknown, expired before today, or of a disabled account.
	TokenOwner(ctx context.Context, hash TokenHash, today day.Day) (ID, error)
	// DeleteToken removes a token. Removing an unknown one does nothing.
	DeleteToken(context.Context, TokenHash) error
	// DeleteTokens removes every token of an account.
	DeleteTokens(context.Context, ID) error
}
