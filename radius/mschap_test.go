package radius_test

import (
	"encoding/hex"
	"fmt"
	"testing"

	"lethe/authdb"
	"lethe/radius"
)

func unhex[T [8]byte | [16]byte | [20]byte | [24]byte](tb testing.TB, text string) (out T) {
	tb.Helper()
	b, err := hex.DecodeString(text)
	must(tb, err)
	switch p := any(&out).(type) {
	case *[8]byte:
		*p = [8]byte(b)
	case *[16]byte:
		*p = [16]byte(b)
	case *[20]byte:
		*p = [20]byte(b)
	case *[24]byte:
		*p = [24]byte(b)
	}
	return out
}

// TestVectors compares with the examples of RFC 2759, section 9.2, and RFC 3079, section 3.5.3,
// which continues the first.
func TestVectors(t *testing.T) {
	ours := unhex[[16]byte](t, "5B5D7C7D7B3F2F3E3C2C602132262628")
	theirs := unhex[[16]byte](t, "21402324255E262A28295F2B3A337C7E")
	response := unhex[[24]byte](t, "82309ECD8D708B5EA08FAA3981CD83544233114A3D85D6DF")
	hash := [16]byte(authdb.NTHash([]byte("clientPass")))
	if want := unhex[[16]byte](t, "44EBBA8D5312B8D611474411F56989AE"); hash != want {
		t.Fatalf("NT hash %x", hash)
	}
	for _, name := range []string{"User", `DOMAIN\User`} {
		v := radius.Compute(ours, theirs, response, name, hash)
		if v.Challenge != unhex[[8]byte](t, "D02E4386BCE91226") || !v.Proved {
			t.Errorf("%s: challenge %x, proved %t", name, v.Challenge, v.Proved)
		}
		if got := fmt.Sprintf("S=%X", v.Answer); got != "S=407A5589115FD0D6209F510FE9C04566932CDA56" {
			t.Errorf("%s: authenticator response %s", name, got)
		}
		if v.Send != unhex[[16]byte](t, "8B7CDC149B993A1BA118CB153F56DCCB") {
			t.Errorf("%s: send key %x", name, v.Send)
		}
	}
	response[23] ^= 1
	if radius.Compute(ours, theirs, response, "User", hash).Proved {
		t.Error("a changed response is a proof")
	}
	if radius.Compute(ours, theirs, [24]byte{}, "User", [16]byte{}).Proved {
		t.Error("a response of zeros proves a hash of zeros")
	}
}
