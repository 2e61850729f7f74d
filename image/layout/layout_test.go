package layout_test

import (
	"crypto/sha256"
	"strings"
	"testing"

	"lethe/image/layout"
)

func TestRootDigest(t *testing.T) {
	want := layout.RootDigest{SHA256: sha256.Sum256([]byte("root")), Size: 3 * 4096}
	text := want.String()
	if text != "4813494d137e1631bba301d5acab6e7bb7aa74ce1185d456565ef51d737677b2 12288\n" {
		t.Errorf("written as %q", text)
	}
	if got, err := layout.ParseRootDigest(text); err != nil || got != want {
		t.Errorf("got %v, %v", got, err)
	}
	digest := text[:64]
	for name, s := range map[string]string{
		"nothing": "", "no size": digest + "\n", "no newline": digest + " 12288", "two newlines": text + "\n", "too short": digest[:62] + " 12288\n",
		"too long": "00" + text, "upper case": strings.ToUpper(digest) + " 12288\n", "no digits": strings.Repeat("g", 64) + " 12288\n",
		"nothing inside": digest + " 0\n", "negative": digest + " -4096\n", "no whole blocks": digest + " 12289\n", "leading zero": digest + " 012288\n",
		"plus": digest + " +12288\n", "two spaces": digest + "  12288\n", "too large": digest + " 536875008\n", "hexadecimal": digest + " 0x3000\n",
	} {
		if got, err := layout.ParseRootDigest(s); err == nil || got != (layout.RootDigest{}) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	largest := layout.RootDigest{Size: layout.MaxRoot}
	if got, err := layout.ParseRootDigest(largest.String()); err != nil || got != largest {
		t.Errorf("the largest root: %v, %v", got, err)
	}
}

func FuzzRootDigest(f *testing.F) {
	f.Add(layout.RootDigest{Size: 4096}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := layout.ParseRootDigest(s); err == nil && r.String() != s {
			t.Errorf("%q is also %q", s, r)
		}
	})
}

func TestMediumDigest(t *testing.T) {
	good := layout.MediumDigest{SHA256: [32]byte{0xab, 2, 31: 3}, Size: 38_436_864, BootOffset: 98_304, BootLength: 14_000_128}
	if got, err := layout.ParseMediumDigest(good.String()); err != nil || got != good {
		t.Errorf("got %+v, %v", got, err)
	}
	if len(good.String()) != len((layout.MediumDigest{}).String()) {
		t.Error("the length depends on the values")
	}
	for name, text := range map[string]string{
		"empty": "", "no newline": strings.TrimSuffix(good.String(), "\n"), "more": good.String() + "\n", "upper case": strings.ToUpper(good.String()),
		"nothing in it": layout.MediumDigest{}.String(), "boot image beyond the end": layout.MediumDigest{Size: 8192, BootOffset: 8000, BootLength: 193}.String(),
		"negative": layout.MediumDigest{Size: 8192, BootOffset: -1}.String(), "huge": layout.MediumDigest{Size: layout.MaxMedium + 1}.String(),
	} {
		if got, err := layout.ParseMediumDigest(text); err == nil || got != (layout.MediumDigest{}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
