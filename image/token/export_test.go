//go:build cgo

package token

// What tests cannot get out of SoftHSM.
var (
	Classify = classify
	Locked   = locked
	ECKey    = ecKey
	RSAKey   = rsaKey
	ECDSADER = ecdsaDER
)
