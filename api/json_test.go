package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"lethe/api"
)

// TestPasswordsDoNotLinger looks at a decoded request as a log or a core dump
// would: the password is nowhere in it, and the bytes it came in are wiped.
func TestPasswordsDoNotLinger(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"good", goodSignUp},
		{"bad", `{"email":"a@b.c","password":"long enough","x":`},
		{"of another type", `{"email":1,"password":"long enough"}`},
	} {
		body, data := api.SignUpBody(), []byte(c.text)
		err := api.Decode(data, body)
		if (err == nil) != (c.name == "good") {
			t.Errorf("%s: %v", c.name, err)
		}
		if len(bytes.Trim(data, "\x00")) != 0 {
			t.Errorf("%s: the bytes are still %q", c.name, data)
		}
		text, jsonErr := json.Marshal(body)
		if jsonErr != nil {
			t.Fatal(jsonErr)
		}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			text = fmt.Appendf(text, verb, body)
		}
		if strings.Contains(string(text), "long enough") || strings.Contains(string(text), "6c6f6e6720656e6f756768") || err != nil && strings.Contains(err.Error(), "long") {
			t.Errorf("%s: the password shows in %s, %v", c.name, text, err)
		}
	}
	var first any
	data := []byte(goodSignUp)
	if err := api.Decode(data, &first); err != nil || !json.Valid(data) {
		t.Errorf("the first pass spoils the bytes: %v %q", err, data)
	}
}
