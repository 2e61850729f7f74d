// Package account is who may use the service and what the provider knows of
// them: an e-mail address and a password hash, a licence, a random VPN
// credential, and which app was activated last. Nothing here knows when, from
// where or to which place anybody connects.
package account

import (
	"lethe/day"
	"lethe/private"
)

// ID is an account's random name inside the control plane: 26 characters of
// base32 (RFC 4648, small letters), 128 bits. It says nothing about order or
// time.
type ID string

// Token is an app session's bearer token: 256 random bits in base64url. The
// store holds only its SHA-256.
type Token = private.Value[string]

// Licence says what an account has paid for.
type Licence struct {
	Plan      string  `json:"plan" doc:"Name of the plan; empty before the first licence" example:"standard"`
	Devices   int     `json:"devices" doc:"How many devices may be connected at once" minimum:"0" maximum:"255"`
	PaidUntil day.Day `json:"paid_until" doc:"Last day of the licence, UTC; 1970-01-01 when there never was one"`
	Disabled  bool    `json:"disabled" doc:"True when the operator has ended the licence early"`
}

// Active reports whether the licence allows a login on that day.
func (l Licence) Active(today day.Day) bool { return !l.Disabled && l.PaidUntil >= today }

// Credential is a VPN user name and password. Both are random and unrelated
// to the account's e-mail address and password: the user name is 16 characters
// of base32 (80 bits), the password 26 (130 bits).
type Credential struct {
	Username private.Value[string]
	Password private.Value[string]
}

// App is which app a customer activated last.
type App struct {
	OS      string `json:"os" doc:"Operating system of the app" enum:"linux,macos,windows,android,ios,router,other"`
	Version string `json:"version" doc:"Version of the app" pattern:"^[0-9]{1,5}\\.[0-9]{1,5}\\.[0-9]{1,5}$" example:"0.1.0"`
}
