package secureboot

import "time"

// SignedBytes lets tests compare what is signed with what efitools sign.
func SignedBytes(v Variable, at time.Time, lists []byte) []byte {
	vendor, _ := v.vendor()
	return signedBytes(v, vendor, at, lists)
}
