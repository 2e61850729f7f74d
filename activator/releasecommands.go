package activator

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lethe/dsse"
	"lethe/fault"
	"lethe/image/release"
	"lethe/internal/command"
)

// Each calls do with every record from the first on.
func (s *Store) Each(do func(*Record)) error {
	return s.locked(unix.LOCK_SH, func() error {
		f, err := os.Open(filepath.Join(s.dir, recordFile))
		if err != nil {
			return storeFault(err)
		}
		defer f.Close()
		lines := bufio.NewScanner(io.LimitReader(f, s.size))
		lines.Buffer(nil, maxLine+1)
		for lines.Scan() {
			r, err := dsse.Decode[Record](lines.Bytes())
			if err != nil { // it was read before
				return storeFault(err)
			}
			do(&r)
		}
		if err := lines.Err(); err != nil {
			return storeFault(err)
		}
		return nil
	})
}

func parseVersion(text string) (uint64, error) {
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil || v == 0 {
		return 0, fault.New(fault.Invalid, "a version is a whole number from 1 on")
	}
	return v, nil
}

// propose writes a change that nobody has signed yet.
func (p *program) propose(a *Activator, c Change, out string) error {
	if err := a.Store.View(func(s *State) error { c.Activator = s.id; return nil }); err != nil {
		return err
	}
	b, err := release.SealEnvelope(ChangeType, c.encode())
	if err != nil {
		return err
	}
	if err := p.write(out, append(b, '\n'), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(p.stderr, "hint: two operators sign it, one after the other: lethe-activator sign --key KEY --out SIGNED %s\n", out)
	return nil
}

// readChange reads a change's envelope.
func (p *program) readChange(path string) ([]byte, error) {
	b, err := p.read(path)
	return bytes.TrimSuffix(b, []byte("\n")), err
}

func (p *program) releaseCommand() *cobra.Command {
	var out, change, manifest string
	var statements []string
	propose := p.action("propose MANIFEST", "Write the change that operators sign to admit a release", 1, func(_ context.Context, a *Activator, args []string) error {
		b, err := p.read(args[0])
		if err != nil {
			return err
		}
		m, err := release.ReadManifest(b)
		if err != nil {
			return err
		}
		digest := dsse.Digest(lineHash(b))
		return p.propose(a, Change{Action: AdmitRelease, Version: m.Version, Manifest: &digest}, out)
	})
	propose.Flags().StringVar(&out, "out", "-", "file to write, - for standard output")

	admit := p.action("admit", "Let servers run a release", 0, func(_ context.Context, a *Activator, _ []string) error {
		envelope, err := p.readChange(change)
		if err != nil {
			return err
		}
		r := &Record{Kind: Admitted, Change: envelope, Release: &ReleaseFiles{Statements: [][]byte{}}}
		if r.Release.Manifest, err = p.read(manifest); err != nil {
			return err
		}
		for _, path := range statements {
			b, err := p.read(path)
			if err != nil {
				return err
			}
			r.Release.Statements = append(r.Release.Statements, b)
		}
		m, err := release.ReadManifest(r.Release.Manifest)
		if err != nil {
			return err
		}
		r.Version = m.Version
		return p.decide(a, r, fmt.Sprintf("release %d is admitted; it expires %s", m.Version, m.Expires.Format(time.DateOnly)))
	})
	admit.Flags().StringVar(&change, "change", "", "change with two operators' signatures")
	admit.Flags().StringVar(&manifest, "manifest", "", "the release's manifest")
	admit.Flags().StringArrayVar(&statements, "statement", nil, "a builder's statement (repeat)")
	require(admit, "change", "manifest", "statement")

	revoke := p.action("revoke VERSION", "Never activate a release again", 1, func(_ context.Context, a *Activator, args []string) error {
		v, err := parseVersion(args[0])
		if err != nil {
			return err
		}
		return p.decide(a, &Record{Kind: ReleaseRevoked, Version: v}, fmt.Sprintf("release %d is revoked; servers that run it keep what they have until their certificates end", v))
	})
	return command.Group("release", "Which images are activated", propose, admit, revoke, p.releaseListCommand())
}

// listedRelease is what release list prints.
type listedRelease struct {
	Version  uint64       `json:"version"`
	Commit   string       `json:"commit"`
	Flavours []string     `json:"flavours"`
	Expires  time.Time    `json:"expires"`
	Admitted time.Time    `json:"admitted"`
	By       []dsse.KeyID `json:"by"`
	Manifest dsse.Digest  `json:"manifest"`
	State    string       `json:"state"`
}

func (p *program) releaseListCommand() *cobra.Command {
	return p.action("list", "List admitted releases", 0, func(_ context.Context, a *Activator, _ []string) error {
		all := []listedRelease{}
		err := a.Store.View(func(s *State) error {
			for _, version := range slices.Sorted(maps.Keys(s.releases)) {
				r := s.releases[version]
				l := listedRelease{Version: version, Commit: r.Manifest.Commit, Expires: r.Manifest.Expires, Admitted: r.Admitted, By: r.By, Manifest: r.Digest, State: "admitted"}
				for _, i := range r.Manifest.Images {
					l.Flavours = append(l.Flavours, i.Image.Flavour)
				}
				switch {
				case r.Revoked:
					l.State = "revoked"
				case !r.Manifest.Expires.After(time.Now()):
					l.State = "expired"
				case version < s.floor:
					l.State = "below the floor"
				}
				all = append(all, l)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return p.print(all, func(w io.Writer) {
			fmt.Fprintln(w, "VERSION\tSTATE\tEXPIRES\tFLAVOURS\tCOMMIT")
			for _, r := range all {
				fmt.Fprintf(w, "%d\t%s\t%s\t%v\t%s\n", r.Version, r.State, r.Expires.Format(time.DateOnly), r.Flavours, r.Commit)
			}
		})
	})
}

func (p *program) floorCommand() *cobra.Command {
	var out, change string
	propose := p.action("propose VERSION", "Write the change that operators sign to raise the floor", 1, func(_ context.Context, a *Activator, args []string) error {
		v, err := parseVersion(args[0])
		if err != nil {
			return err
		}
		return p.propose(a, Change{Action: RaiseFloor, Version: v}, out)
	})
	propose.Flags().StringVar(&out, "out", "-", "file to write, - for standard output")
	raise := p.action("raise VERSION", "Activate no version below this one any more", 1, func(_ context.Context, a *Activator, args []string) error {
		v, err := parseVersion(args[0])
		if err != nil {
			return err
		}
		envelope, err := p.readChange(change)
		if err != nil {
			return err
		}
		return p.decide(a, &Record{Kind: FloorRaised, Version: v, Change: envelope}, fmt.Sprintf("the floor is %d", v))
	})
	raise.Flags().StringVar(&change, "change", "", "change with two operators' signatures")
	return command.Group("floor", "The lowest version that is activated", propose, require(raise, "change"))
}

func (p *program) signCommand() *cobra.Command {
	var key, out string
	c := p.plain("sign CHANGE", "Sign a change with an operator's key", 1, func(_ context.Context, args []string) error {
		envelope, err := p.readChange(args[0])
		if err != nil {
			return err
		}
		payload, _, err := release.OpenEnvelope(envelope, ChangeType, nil)
		if err != nil {
			return err
		}
		change, err := dsse.Decode[Change](payload)
		if err != nil {
			return fault.Wrap(fault.Untrusted, "the change cannot be read", err)
		}
		signer, err := p.readKey(key)
		if err != nil {
			return err
		}
		signed, err := release.Countersign(envelope, ChangeType, signer)
		if err != nil {
			return err
		}
		if err := p.write(out, append(signed, '\n'), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(p.stderr, "signed: %s, version %d", change.Action, change.Version)
		if change.Manifest != nil {
			fmt.Fprintf(p.stderr, ", manifest %s", change.Manifest)
		}
		fmt.Fprintf(p.stderr, ", by activator %s\n", change.Activator)
		return nil
	})
	c.Long = "sign adds an operator's signature to a change. It needs no data directory: sign on a machine of your own, and\n" +
		"compare what it says that you sign with what you mean to sign."
	c.Flags().StringVar(&key, "key", "", "file with the private key (PKCS #8 in PEM), - for standard input")
	c.Flags().StringVar(&out, "out", "-", "file to write, - for standard output")
	return require(c, "key")
}

func (p *program) logCommand() *cobra.Command {
	verify := p.plain("verify", "Check every line and signature of the record", 0, func(_ context.Context, _ []string) error {
		number, head, err := Verify(p.dir)
		if err != nil {
			return err
		}
		return p.print(map[string]any{"records": number, "head": head}, func(w io.Writer) {
			fmt.Fprintf(w, "%d records follow each other, and every signature is right; head %s\n", number, head)
		})
	})
	verify.Long = "verify reads the record without any key and checks that each line follows the one before, that every decision\n" +
		"was allowed, the operators' and the releases' signatures, and the signed heads. Compare the head with one that\n" +
		"you have kept elsewhere."
	show := p.plain("show", "Write every record as a line of JSON", 0, func(_ context.Context, _ []string) error {
		s, err := open(p.dir, nil, "")
		if err != nil {
			return err
		}
		p.json = true
		var failed error
		err = s.Each(func(r *Record) {
			if failed == nil {
				failed = p.print(r, nil)
			}
		})
		return errors.Join(err, failed)
	})
	return command.Group("log", "The record of all decisions", verify, show)
}
