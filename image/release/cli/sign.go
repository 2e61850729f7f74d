package cli

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"lethe/fault"
	"lethe/image/cms"
	"lethe/image/pcr"
	"lethe/image/release"
	"lethe/image/secureboot"
	"lethe/image/token"
)

// holder is a token and the way to its PIN.
type holder struct {
	module, label string
	pin           int // file descriptor; -1: terminal
}

func (h *holder) flags(c *cobra.Command) {
	c.Flags().StringVar(&h.module, "module", "/usr/lib/x86_64-linux-gnu/libykcs11.so", "the token's PKCS #11 module")
	c.Flags().StringVar(&h.label, "token", "", "the token's label, if there are several")
	c.Flags().IntVar(&h.pin, "pin-fd", -1, "read the PIN from this file descriptor, one line for each question, instead of the terminal")
}

func (h *holder) open(ctx context.Context, prompt io.Writer) (*token.Token, error) {
	if h.pin < 0 {
		return token.Open(h.module, h.label, token.Terminal(ctx, os.Stdin, prompt))
	}
	return token.Open(h.module, h.label, token.Descriptor(os.NewFile(uintptr(h.pin), "PIN")))
}

type signing struct {
	trusted
	holder
	in, out, keys       string
	bootKey, releaseKey string
	bootCertificate     string
	floor               uint64
	days                int
}

func signCommand() *cobra.Command {
	var s signing
	c := &cobra.Command{
		Use: "sign", Short: "sign images and their manifest with keys in a token", Args: cobra.NoArgs,
		Long: "Refuses unless enough builders agree on every digest and the images are those, before it asks for a PIN.\n" +
			"The signed images and the manifest release.json are written into a directory of their own.",
		RunE: func(c *cobra.Command, _ []string) error { return s.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr()) },
	}
	s.trusted.flags(c)
	s.holder.flags(c)
	f := c.Flags()
	f.StringVar(&s.in, "images", ".", "directory of the images that were built")
	f.StringVar(&s.out, "out", "", "directory to write into")
	f.StringVar(&s.keys, "keys", "", "directory with PK.esl, KEK.esl and db.esl, as \"keys\" writes it: PCR 7 is foretold from them")
	f.StringVar(&s.bootKey, "boot-key", "boot", "label of the Secure Boot key in the token, or id:02 (a YubiKey's slot 9c)")
	f.StringVar(&s.bootCertificate, "boot-certificate", "boot", "label or id of its certificate in the token")
	f.StringVar(&s.releaseKey, "release-key", "release", "label or id of the release key in the token, for instance id:01 (slot 9a)")
	f.Uint64Var(&s.floor, "floor", 0, "lowest version that whoever takes up this release still accepts")
	f.IntVar(&s.days, "days", 60, "days until the release expires")
	_ = c.MarkFlagRequired("out") // it exists
	return c
}

func (s *signing) run(ctx context.Context, out, prompt io.Writer) error {
	p, statements, err := s.read()
	if err != nil {
		return err
	}
	agreed, builders, err := p.Agree(statements)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d builders agree on release %d of commit %s\n", len(builders), agreed.Predicate.Definition.External.Version, agreed.Predicate.Definition.External.Commit)
	t, err := s.open(ctx, prompt)
	if err != nil {
		return err
	}
	defer t.Close()
	boot, err := s.boot(t, p.Boot)
	if err != nil {
		return err
	}
	key, err := t.Key(s.releaseKey)
	if err != nil {
		return err
	}
	a := release.Addition{Floor: s.floor, Issued: p.Now, Expires: p.Now.AddDate(0, 0, s.days), Boot: map[string]release.Signed{}, PCRs: map[string][]release.PCR{}}
	pcrs, err := s.pcrs(boot.Certificate)
	if err != nil {
		return err
	}
	for _, sub := range agreed.Subject {
		signed, err := s.image(sub, boot)
		if err != nil {
			return err
		}
		a.Boot[sub.Annotations.Flavour], a.PCRs[sub.Annotations.Flavour] = signed, pcrs
		fmt.Fprintf(out, "%s: signed\n", sub.Name)
	}
	manifest, err := p.SignManifest(statements, a, crypto.Signer(key))
	if err != nil {
		return err
	}
	return writeBytes(filepath.Join(s.out, "release.json"), manifest)
}

// boot returns the Secure Boot key. Its certificate must be one that verifiers trust.
func (s *signing) boot(t *token.Token, trusted []*x509.Certificate) (cms.Signer, error) {
	certificate, err := t.Certificate(s.bootCertificate)
	if err != nil {
		return cms.Signer{}, err
	}
	if !slices.ContainsFunc(trusted, certificate.Equal) {
		return cms.Signer{}, fault.New(fault.Denied, "the token's boot certificate is not in the trust file")
	}
	key, err := t.Key(s.bootKey)
	return cms.Signer{Key: key, Certificate: certificate}, err
}

// pcrs foretells PCR 7, when the keys that machines have are known.
func (s *signing) pcrs(boot *x509.Certificate) ([]release.PCR, error) {
	if s.keys == "" {
		return nil, nil
	}
	var lists [3][]byte
	for i, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB} {
		b, err := read(filepath.Join(s.keys, string(v)+".esl"))
		if err != nil {
			return nil, err
		}
		lists[i] = b
	}
	entries, err := secureboot.ParseLists(lists[2])
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if string(e.Certificate) == string(boot.Raw) {
			v := pcr.Keys(pcr.Variables{PK: lists[0], KEK: lists[1], DB: lists[2]}, e.Bytes())
			return []release.PCR{{Index: 7, SHA256: release.Digest(v)}}, nil
		}
	}
	return nil, fault.New(fault.Denied, "the token's boot certificate is not in db.esl: machines would not boot these images")
}

// image signs one ISO into the output directory.
func (s *signing) image(sub release.Subject, boot cms.Signer) (signed release.Signed, err error) {
	f, size, err := open(filepath.Join(s.in, filepath.Base(sub.Name)))
	if err != nil {
		return signed, err
	}
	defer f.Close()
	if signed, err = release.SignBoot(sub, f, size, boot); err != nil {
		return signed, err
	}
	return signed, write(filepath.Join(s.out, filepath.Base(sub.Name)), func(to *os.File) error {
		if _, err := io.Copy(to, io.NewSectionReader(f, 0, size)); err != nil {
			return err
		}
		_, err := to.WriteAt(signed.Table, signed.Region.Offset)
		return err
	})
}

func keysCommand() *cobra.Command {
	var h holder
	var out, store, into string
	labels := map[secureboot.Variable]*string{secureboot.PK: new(string), secureboot.KEK: new(string), secureboot.DB: new(string)}
	c := &cobra.Command{
		Use: "keys", Short: "write the files by which machines learn the provider's Secure Boot keys", Args: cobra.NoArgs,
		Long: "Takes the certificates PK, KEK and db from a token and writes them as .der, .esl and .auth, which firmware's setup\n" +
			"screens and tools take, and with --enrol a variable store for virtual machines.",
		RunE: func(c *cobra.Command, _ []string) error {
			t, err := h.open(c.Context(), c.ErrOrStderr())
			if err != nil {
				return err
			}
			defer t.Close()
			k := secureboot.Keys{}
			// Who signs the update of which.
			by := map[secureboot.Variable]secureboot.Variable{secureboot.PK: secureboot.PK, secureboot.KEK: secureboot.PK, secureboot.DB: secureboot.KEK}
			now := time.Now()
			for v, entries := range map[secureboot.Variable]*[]secureboot.Entry{secureboot.PK: &k.PK, secureboot.KEK: &k.KEK, secureboot.DB: &k.DB} {
				certificate, err := t.Certificate(*labels[v])
				if err != nil {
					return err
				}
				*entries = secureboot.Certificates(certificate)
				signer, err := signerOf(t, *labels[by[v]])
				if err != nil {
					return err
				}
				update, err := secureboot.Update(v, *entries, now, signer)
				if err != nil {
					return err
				}
				for ending, b := range map[string][]byte{".der": certificate.Raw, ".esl": secureboot.Lists(*entries), ".auth": update} {
					if err := writeBytes(filepath.Join(out, string(v)+ending), b); err != nil {
						return err
					}
				}
			}
			if store == "" {
				return nil
			}
			b, err := read(store)
			if err != nil {
				return err
			}
			if b, err = secureboot.Enrol(b, k, now); err != nil {
				return err
			}
			return writeBytes(into, b)
		},
	}
	h.flags(c)
	f := c.Flags()
	f.StringVar(&out, "out", ".", "directory to write into")
	f.StringVar(&store, "enrol", "", "an OVMF variable store without keys, such as OVMF_VARS_4M.fd")
	f.StringVar(&into, "store", "vars.fd", "where the store with the keys goes")
	f.StringVar(labels[secureboot.PK], "pk", "PK", "label or id of PK's key and certificate in the token")
	f.StringVar(labels[secureboot.KEK], "kek", "KEK", "label or id of KEK's")
	f.StringVar(labels[secureboot.DB], "db", "boot", "label or id of db's, which signs boot images")
	return c
}

func signerOf(t *token.Token, label string) (cms.Signer, error) {
	certificate, err := t.Certificate(label)
	if err != nil {
		return cms.Signer{}, err
	}
	key, err := t.Key(label)
	return cms.Signer{Key: key, Certificate: certificate}, err
}
