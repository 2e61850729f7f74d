//go:build !cgo

package token

import (
	"crypto"
	"crypto/x509"
	"io"

	"lethe/fault"
)

// Token is an open token; without cgo there is none.
type Token struct{}

// Key is a private key in a token; without cgo there is none.
type Key struct{}

var errBuild = fault.New(fault.Unavailable, "this program was built without PKCS #11").WithHint("build it with CGO_ENABLED=1 and a C compiler")

// Open refuses.
func Open(string, string, PIN) (*Token, error) { return nil, errBuild }

// Close does nothing.
func (*Token) Close() {}

// Key refuses.
func (*Token) Key(string) (*Key, error) { return nil, errBuild }

// Certificate refuses.
func (*Token) Certificate(string) (*x509.Certificate, error) { return nil, errBuild }

// Public returns nil.
func (*Key) Public() crypto.PublicKey { return nil }

// Sign refuses.
func (*Key) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, errBuild }
