package client_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"unicode"

	"lethe/account"
	"lethe/api/client"
	"lethe/fault"
	"lethe/private"
)

// FuzzAnswer lets a service answer anything: what comes out is a sound result
// or a fault whose text can be shown on a terminal.
func FuzzAnswer(f *testing.F) {
	f.Add(uint16(200), "application/json", `{"token":"t","username":"u","password":"p","plan":"x","devices":1,"paid_until":"2030-01-01"}`)
	f.Add(uint16(200), "application/json", `{"locations":[{"id":1,"code":"nl-ams","country":"NL","city":"A"}],"servers":[{"id":"ab","location":1,"addresses":["::1"],"endpoints":[{"protocol":"ikev2","port":1}]}]}`)
	f.Add(uint16(403), "application/problem+json", `{"kind":"denied","detail":"\u001b[31m","hint":"\u202e","fields":[{"name":"a","message":"b"}]}`)
	f.Add(uint16(304), "text/plain; charset", "\xff")
	type reply struct {
		status     int
		kind, body string
	}
	var next atomic.Pointer[reply]
	c := dialTo(f, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		a := next.Load()
		answer(a.status, a.kind, a.body)(w, nil)
	}))
	f.Fuzz(func(t *testing.T, status uint16, kind, body string) {
		next.Store(&reply{200 + int(status)%400, strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return -1
			}
			return r
		}, kind), body})
		check(t, c)
	})
}

func check(t *testing.T, c *client.Client) {
	t.Helper()
	ctx, token := t.Context(), private.Of("t")
	login, errLogin := c.Login(ctx, "a", token, account.App{})
	_, errLicence := c.Licence(ctx, token)
	d, _, _, errDirectory := c.Directory(ctx, token, "")
	if errLogin == nil && login.Reveal() == "" {
		t.Error("no token and no error")
	}
	if errDirectory == nil && d.Validate() != nil {
		t.Errorf("an invalid directory: %+v", d)
	}
	for _, err := range []error{errLogin, errLicence, errDirectory} {
		f, ok := err.(*fault.Error)
		if err == nil {
			continue
		}
		if !ok || f.Text == "" || strings.ContainsFunc(f.Text+f.Hint, func(r rune) bool { return !unicode.IsGraphic(r) }) {
			t.Errorf("the error is %q", err)
		}
	}
}
