package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"lethe/fault"
	"lethe/image/sandbox"
)

// programs are those of ours in the image, by directory below cmd.
var programs = []string{"lethe-init", "lethe-node", "lethe-seal"}

// goEnv is all that the go command is told. Every setting that it could take from
// elsewhere is either here or has the toolchain's default: there is no other
// environment in the sandbox, GOENV is off, and HOME is empty.
var goEnv = []string{
	"GOROOT=" + goRoot, "GOPATH=/work/go", "GOCACHE=/work/gocache", "GOTMPDIR=/work/tmp", "GOENV=off", "GOTOOLCHAIN=local", "GOTELEMETRY=off",
	"GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "CGO_ENABLED=0", "GOWORK=off", "GO111MODULE=on",
	// go.sum decides about modules; the checksum database was asked when it was made.
	"GOPROXY=file:///work/proxy", "GOSUMDB=off", "GOFLAGS=-mod=readonly -modcacherw", "GOVCS=*:off",
}

// compile compiles our programs from the source in work/src, static and without
// anything of this machine in them. It returns them by name. A second call for other tags
// takes what is the same from the first one's cache; no cache outlives the build.
func compile(ctx context.Context, t sandbox.Tree, work, tags string, l *log) (map[string][]byte, error) {
	out := map[string][]byte{}
	args := []string{goRoot + "/bin/go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", "/work/bin/"}
	if tags != "" {
		args = append(args, "-tags="+tags)
	}
	for _, name := range programs {
		if _, err := os.Stat(filepath.Join(work, "src", "cmd", name)); errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.Invalid, "the source has no program "+name).WithHint("build a commit that has cmd/" + name)
		}
		args = append(args, "./cmd/"+name)
	}
	for _, dir := range []string{"bin", "go", "gocache", "tmp"} {
		if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
			return nil, err
		}
	}
	l.add(append(slices.Clone(goEnv), args...))
	if err := t.Run(ctx, sandbox.Command{Args: args, Env: goEnv, Dir: "/work/src", Binds: []sandbox.Bind{{Outside: work, Inside: "/work"}}}); err != nil {
		return nil, fmt.Errorf("compile: %w", err)
	}
	for _, name := range programs {
		b, err := os.ReadFile(filepath.Join(work, "bin", name))
		if err != nil {
			return nil, err
		}
		out[name] = b
	}
	return out, nil
}
