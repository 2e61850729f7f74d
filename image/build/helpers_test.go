package build_test

import (
	"crypto/sha256"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"lethe/image/store"
)

func sum(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }

func unzstd(t testing.TB, s string) string {
	t.Helper()
	r := must(zstd.NewReader(strings.NewReader(s)))(t)
	defer r.Close()
	return string(must(io.ReadAll(r))(t))
}

func newStore(t testing.TB) *store.Store {
	t.Helper()
	s := must(store.Open(t.TempDir()))(t)
	t.Cleanup(func() { s.Close() })
	return s
}
