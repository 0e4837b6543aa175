package main

import (
	"context"
	"crypto/rsa"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

// maxSmall is more than any form of a signature or a public key has.
const maxSmall = 64 << 10

const signLong = `Sign a converted image again, with another key: for instance, to promote what was tested under
a test signer to production. Only the layer on top is replaced, what the configuration says of
the signer, and what is attached. MRENCLAVE stays as it is.

An image that was converted with --unsigned is signed in the same way, or in three steps where
the key is not on this machine: "sign prepare" writes the bytes to sign, anybody signs them by
RSA PKCS#1 v1.5 with SHA-256, and "sign attach" completes the image. However it is signed, the
digest is the one that signing at conversion gives.

Before anybody signs, the image is checked as "cconvert verify" does: every layer, what lies on top,
the measurement, the list of files, the configuration. What it was made from is compared if
--source names it: without that, what is not measured, such as a health check, can be anything.
The enclave's own code comes from the runtime in the image, and a signature makes it yours: say
which one you expect (--runtime-digest, --lock, --known-runtimes), or accept --any-runtime.
What keeps no secrets is not signed: --allow-debug and --allow-simulated accept it. Say what
else you expect with --mrenclave and --signed-by. Product and security version number, if they are
not zero, are the preparer's choice: say yours with --prod-id and --min-svn, or who has signed them
before with --signed-by.`

// beforeFlags say what is expected of an image before it is signed.
type beforeFlags struct {
	mrEnclave, signedBy, source string
	expect                      expectFlags
	key                         filesKeyFlag
	anyContents                 bool
	access                      registryFlags
}

func (b *beforeFlags) add(f *pflag.FlagSet) {
	f.StringVar(&b.mrEnclave, "mrenclave", "", "the MRENCLAVE that is expected")
	f.StringVar(&b.signedBy, "signed-by", "", "the MRSIGNER of the signature that is expected to be there now")
	f.StringVar(&b.source, "source", "", "the image that it was made from, to be compared with it before it is signed")
	b.key.add(f, "the key to the image's encrypted files, to check their contents before they are signed")
	f.BoolVar(&b.anyContents, "any-contents", false, "sign an image whose encrypted files nobody has looked into")
	b.expect.addNumbers(f)
	b.expect.addAccepted(f, "accept any runtime: its code runs in the enclave, and gets what is sealed to your key")
	b.access.add(f)
}

// opener verifies an image that is to be signed, and returns its enclave.
type opener func(
	ctx context.Context, img, source *image.Image, e verify.Expectations, o inspect.Options,
) (*verify.Report, *convert.Prepared, error)

// open verifies an image, shows what is wrong with it, and returns its enclave if that may be signed.
func (b *beforeFlags) open(
	cmd *cobra.Command, img *image.Image, open opener,
) (*verify.Report, *convert.Prepared, error) {
	x, err := b.expect.expectations()
	if err != nil {
		return nil, nil, err
	}
	var closeKey func()
	if x.FilesKey, closeKey, err = b.key.reader(cmd.Context()); err != nil {
		return nil, nil, err
	}
	defer closeKey()
	x.AnyContents = b.anyContents
	var mrEnclave, signedBy sgx.Measurement
	for _, m := range []struct {
		flag, text string
		to         *sgx.Measurement
	}{{"mrenclave", b.mrEnclave, &mrEnclave}, {"signed-by", b.signedBy, &signedBy}} {
		if m.text == "" {
			continue
		}
		if err := m.to.UnmarshalText([]byte(m.text)); err != nil {
			return nil, nil, usagef("--%s: %w", m.flag, err)
		}
	}
	if b.mrEnclave != "" {
		x.MREnclave = []sgx.Measurement{mrEnclave}
	}
	if b.signedBy != "" {
		x.SignedBy = &signedBy
	}
	var source *image.Image
	if b.source != "" {
		if source, err = b.access.open(cmd, b.source); err != nil {
			return nil, nil, err
		}
		defer source.Close()
	}
	progress := newProgress(cmd.ErrOrStderr())
	defer progress.finish()
	o := b.access.reading()
	o.Observe = progress.Layer
	r, e, err := open(cmd.Context(), img, source, x, o)
	progress.finish()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", img.Ref, err)
	}
	if !r.Trusted {
		tellChecks(cmd.ErrOrStderr(), r.Checks...)
		return nil, nil, fmt.Errorf("%s is %w, and nothing was signed: %s", img.Ref, errRefused,
			strings.Join(r.Unmet(), ", "))
	}
	for _, c := range r.Checks { // what is accepted is seen by whoever signs
		if c.Status == verify.Skipped && len(c.Problems) > 0 {
			tellChecks(cmd.ErrOrStderr(), c)
		}
	}
	if b.signedBy != "" && r.MRSigner != signedBy {
		return nil, nil,
			fmt.Errorf("%s is %w: --signed-by is %s, the image has %s", img.Ref, errRefused, signedBy, r.MRSigner)
	}
	return r, e, nil
}

// signFlags are those of every way to sign an image.
type signFlags struct {
	before   beforeFlags
	evidence evidenceFlags
	to       string
	rollback bool
	another  bool // signer
}

func (s *signFlags) add(f *pflag.FlagSet) {
	f.StringVar(&s.to, "to", "", "where the result goes (default: where the image is)")
	addReplace(f, &s.rollback, &s.another)
	s.before.add(f)
	s.evidence.add(f)
}

func addReplace(f *pflag.FlagSet, rollback, signer *bool) {
	f.BoolVar(rollback, "allow-rollback", false,
		"replace an image even if its security version number (--isv-svn) is higher")
	f.BoolVar(signer, "replace-signer", false, "replace an image even if another key has signed it; needs --key")
}

// checkReplace refuses to have the default key, which is there to try things, take a tag from another one.
func checkReplace(replaceSigner bool, key keyFlags) error {
	if replaceSigner && key.name == "" {
		return usagef("--replace-signer: say by which key, with --key")
	}
	return nil
}

func newSign() *cobra.Command {
	var flags signFlags
	var key keyFlags
	cmd := &cobra.Command{
		Use:   "sign IMAGE",
		Short: "Sign a converted image, again or for the first time",
		Long:  signLong,
		Example: `  # In place
  cconvert sign registry.example/redis:7-confidential --key production.pem --lock cconvert.lock \
    --replace-signer

  # To another repository, if it is this source's
  cconvert sign registry.example/redis:7-confidential --key production.pem --lock cconvert.lock \
    --source registry.example/redis:7 --to registry.example/production/redis:7`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkReplace(flags.another, key); err != nil {
				return err
			}
			k, err := key.open(cmd.Context()) // before anything is started that could inherit a key in a variable
			if err != nil {
				return err
			}
			defer k.Close()
			return flags.run(cmd, args[0], verify.BeforeSigning, signWith(cmd, k))
		},
	}
	key.add(cmd.Flags(), "the signing key (default: enclave-key.pem in the configuration directory)")
	flags.add(cmd.Flags())
	cmd.AddCommand(newSignPrepare(), newSignAttach())
	return cmd
}

// signWith has a key sign.
func signWith(cmd *cobra.Command, key sgx.Signer) func(*convert.Prepared) (*rsa.PublicKey, []byte, error) {
	return func(e *convert.Prepared) (*rsa.PublicKey, []byte, error) { return convert.Sign(cmd.Context(), e, key) }
}

// run signs an image, and stores the result.
func (s *signFlags) run(
	cmd *cobra.Command, of string, open opener, sign func(*convert.Prepared) (*rsa.PublicKey, []byte, error),
) error {
	source, err := image.ParseReference(of, s.before.access.insecure)
	if err != nil {
		return err
	}
	target := source
	if s.to != "" {
		if target, err = image.ParseReference(s.to, s.before.access.insecure); err != nil {
			return err
		}
	}
	if _, ok := target.Name.(name.Digest); ok || target.Digest != "" {
		return usagef("%s: a target is named by a tag, its digest is what comes out: say where it goes with --to",
			target)
	}
	o := convert.StoreOptions{
		Image: s.before.access.options(), AllowRollback: s.rollback, ReplaceSigner: s.another,
	}
	if o.Evidence, err = s.evidence.choose(cmd.Flags().Changed("attest")); err != nil {
		return err
	}
	if err := o.Check(source, target); err != nil {
		return err
	}
	img, err := store.Open(cmd.Context(), source, o.Image)
	if err != nil {
		return err
	}
	defer img.Close()
	if img.Index && s.to == "" {
		return usagef("%s is an index of several images, which one signed image would replace: say where it goes with "+
			"--to", source)
	}
	r, e, err := s.before.open(cmd, img, open)
	if err != nil {
		return err
	}
	if err := tellEnclave(cmd.ErrOrStderr(), r, source.String()+" ("+img.Digest+")"); err != nil {
		return err
	}
	key, signature, err := sign(e)
	if err != nil {
		return err
	}
	result, err := convert.Finish(cmd.Context(), e, key, signature, target, o)
	if err != nil {
		return err
	}
	for _, f := range result.Findings { // of the evidence: others are told when an image is converted
		logrus.Warnf("%s: the image is stored without evidence: %s", f.Path, f.Message)
	}
	if result.MREnclave != r.MREnclave {
		logrus.Infof("MRENCLAVE is another one now: %s", result.MREnclave)
	}
	logrus.Infof("signed, by MRSIGNER %s", result.MRSigner)
	_, err = fmt.Fprintln(cmd.OutOrStdout(), result.Output.Ref)
	return err
}

// printEnclave says what a signature is about.
func printEnclave(w io.Writer, r *verify.Report, of string) error {
	s := r.SigStruct
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	line("image", "%s", of)
	line("made from", "%s", r.Recipe.Source)
	line("runtime", "%s %.12s, layer %s", r.Recipe.Runtime.Kind, r.Recipe.Runtime.Version, r.Recipe.Runtime.Digest)
	line("may read", "%s files, by the policy %q%s", humanize.Comma(int64(r.TrustedFiles)), r.Recipe.Options.Trust,
		when(r.Recipe.Options.Trust == string(launch.TrustList), ": those that whoever converted it has named"))
	line("MRENCLAVE", "%s", s.MREnclave)
	line("product", "%d, security version %d", s.ISVProdID, s.ISVSVN)
	line("date", "%s", s.Date)
	line("attributes", "flags %#x, XFRM %#x; masks %#x, %#x", s.Attributes.Flags, s.Attributes.XFRM,
		s.AttributesMask.Flags, s.AttributesMask.XFRM)
	line("MISCSELECT", "%#x, mask %#x", s.MiscSelect, s.MiscMask)
	if s.Debug() {
		line("debug", "yes: a debugger can read the enclave")
	}
	if len(r.Weaknesses) > 0 {
		line("weakened by", "%s", strings.Join(r.Weaknesses, ", "))
	}
	if r.Simulated() {
		line("simulated", "yes: there is no enclave")
	}
	if key, _ := s.Signature(); key != nil {
		line("MRSIGNER", "%s", s.MRSigner())
	} else {
		line("MRSIGNER", "none: not signed yet")
	}
	return t.Flush()
}

func newSignPrepare() *cobra.Command {
	var before beforeFlags
	var out string
	cmd := &cobra.Command{
		Use:   "prepare IMAGE",
		Short: "Write the bytes that are to be signed",
		Long: `Write the 256 bytes that the signature of an enclave covers, and say what they mean. Sign them by
RSA PKCS#1 v1.5 with SHA-256, wherever the key is, and complete the image with "sign attach".`,
		Example: `  cconvert sign prepare registry.example/redis:7-confidential --lock cconvert.lock -o tbs.bin
  openssl dgst -sha256 -sign enclave-key.pem -out signature.bin tbs.bin`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usagef("-o FILE is needed: see --help")
			}
			img, err := before.access.open(cmd, args[0])
			if err != nil {
				return err
			}
			defer img.Close()
			r, e, err := before.open(cmd, img, verify.BeforeSigning)
			if err != nil {
				return err
			}
			if err := writeFile(out, e.ToBeSigned()); err != nil {
				return err
			}
			return printEnclave(cmd.OutOrStdout(), r, img.Ref.String()+" ("+img.Digest+")")
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "file that gets the bytes")
	before.add(cmd.Flags())
	return cmd
}

func newSignAttach() *cobra.Command {
	var flags signFlags
	var signature, public string
	cmd := &cobra.Command{
		Use:   "attach IMAGE",
		Short: "Complete an image with a signature that was made elsewhere",
		Long: `Complete an image with a signature over what "sign prepare" gave. Nothing is stored unless the
signature is one of these bytes by the key.`,
		Example: `  cconvert sign attach registry.example/redis:7-confidential --lock cconvert.lock \
    --signature signature.bin --public-key public.pem`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if signature == "" || public == "" {
				return usagef("--signature and --public-key are needed: see --help")
			}
			key, err := readPublicKey("public-key", public)
			if err != nil {
				return err
			}
			raw, err := readSmall(signature)
			if err != nil {
				return &usageError{fmt.Errorf("--signature: %w", err)}
			}
			if n := key.Size(); len(raw) != n {
				return usagef("--signature %s: it has %d bytes, a signature by this key has %d, without any encoding",
					signature, len(raw), n)
			}
			signed := func(*convert.Prepared) (*rsa.PublicKey, []byte, error) { return key, raw, nil }
			return flags.run(cmd, args[0], verify.BeforeSigning, signed)
		},
	}
	cmd.Flags().StringVar(&signature, "signature", "", "file with the signature, 384 bytes as RSA gives them")
	cmd.Flags().StringVar(&public, "public-key", "", "PEM file with the public key")
	flags.add(cmd.Flags())
	return cmd
}

// readPublicKey reads the public half of a signing key from the file of a flag.
func readPublicKey(flag, file string) (*rsa.PublicKey, error) {
	text, err := readSmall(file)
	if err != nil {
		return nil, &usageError{fmt.Errorf("--%s: %w", flag, err)}
	}
	key, err := sgx.ParsePublicKey(text)
	if err != nil {
		return nil, &usageError{fmt.Errorf("--%s %s: %w", flag, file, err)}
	}
	return key, nil
}

// readSmall reads a file of a few kilobytes.
func readSmall(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err == nil && len(b) > maxSmall {
		err = fmt.Errorf("%s has more than %d bytes", file, maxSmall)
	}
	return b, err
}
