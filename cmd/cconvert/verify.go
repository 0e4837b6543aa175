package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

const verifyLong = `Check a confidential image against itself, and against what you expect of it. Nothing that the
image says is believed: every layer is read, every file hashed, the MRENCLAVE is computed from
the enclave's loader and the manifest, the signature is checked as the CPU does, and the
conversion is repeated from the recipe to see that the list of files, the arguments and the
image's configuration are what it gives.

An image can be consistent and still come from anybody. So say who must have signed
(--mrsigner, --signer-key), what must run (--mrenclave), or who must have stated it
(--attest-verify-key); without any of these the answer is "not trusted", unless --any-signer.
The loader is not measured, so say which runtime you expect (--runtime-digest, --lock,
--known-runtimes), unless a statement by that key names it, or accept --any-runtime.

With --start, the image's own loader is run, and nothing else of the image: in namespaces of its
own, without network, up to the point where the CPU would check the signature. Every page that
it adds is hashed, so it shows, without SGX, that the enclave starts on a machine that has it.

Of encrypted files, everybody can check that the ciphertexts are those that were signed, and that no
layer has one of them in plain text. With --encrypt-key they are decrypted, and with --source
compared with those of the image that it was made from.

With --quote or --endpoint, it is also checked that what runs is this image: the quote is
verified up to Intel's root, its platform must be current, and it must be of the image's enclave.
--endpoint asks a server for its certificate, which must have a quote about its key (RA-TLS).

Images of Gramine Shielded Containers (GSC) can be verified too. The exit code is 4 if a check
failed, and each failed check is named.`

const verifyExamples = `  # Is it signed by this key, and is everything in it what was signed?
  cconvert verify registry.example/redis:7-confidential --signer-key enclave-key.pem --any-runtime

  # And is the original image unchanged underneath?
  cconvert verify registry.example/redis:7-confidential \
    --signer-key enclave-key.pem --source registry.example/redis:7 --any-runtime

  # And is it this image that answers there?
  cconvert verify registry.example/redis:7-confidential \
    --signer-key enclave-key.pem --any-runtime --endpoint app.example:8443

  # For a policy that is kept in a file
  cconvert verify registry.example/redis:7-confidential --policy policy.toml

  # Only whether it is consistent
  cconvert verify --any-signer --any-runtime oci:out:1.4`

// expectFlags are about which images are trusted.
type expectFlags struct {
	policy                string
	mrEnclave, mrSigner   []string
	runtime, agent        []string
	secretsFrom           []string
	anySecrets            bool
	signerKey, attestKey  string
	minSVN, prodID        int
	allowDebug, anySigner bool
	allowSimulated        bool
	anyRuntime            bool
	runtimes, lock        string
	layout                string
	allowChanges          bool
}

// addAccepted adds the flags about who vouches for the runtime, and about what is accepted.
func (e *expectFlags) addAccepted(f *pflag.FlagSet, anyRuntime string) {
	f.StringSliceVar(&e.runtime, "runtime-digest", nil,
		"expected digest of the runtime's layer (repeatable: one of them)")
	f.StringSliceVar(&e.agent, "agent-digest", nil, "expected SHA-256 of the agent that gets secrets, if it is not "+
		"the one of this version (repeatable: one of them)")
	f.StringSliceVar(&e.secretsFrom, "secrets-from", nil, "pin (sha256/…) of a server from which the image may get "+
		"secrets, or HOST@sha256:… with the digest of an authority's certificate (repeatable: each is one of them)")
	f.BoolVar(&e.anySecrets, "any-secrets", false, "accept secrets from whatever server")
	f.StringVar(&e.lock, "lock", "", "lock file whose runtime is an expected one")
	f.StringVar(&e.runtimes, "known-runtimes", "",
		"TOML file of runtimes, of which one is expected; see docs/verification.md")
	f.BoolVar(&e.anyRuntime, "any-runtime", false, anyRuntime)
	f.BoolVar(&e.allowChanges, "allow-changes", false,
		"accept that options of the conversion change what the source would run")
	f.BoolVar(&e.allowDebug, "allow-debug", false, "accept enclaves that a debugger can read")
	f.BoolVar(&e.allowSimulated, "allow-simulated", false,
		"accept images of the simulated runtime, which have no enclave")
}

func (e *expectFlags) addNumbers(f *pflag.FlagSet) {
	f.IntVar(&e.minSVN, "min-svn", -1, "lowest security version number")
	f.IntVar(&e.prodID, "prod-id", -1, "expected product number")
}

func (e *expectFlags) add(f *pflag.FlagSet) {
	f.StringVar(&e.policy, "policy", "", "TOML file with expectations; flags add to it")
	f.StringSliceVar(&e.mrEnclave, "mrenclave", nil, "expected MRENCLAVE (repeatable: one of them)")
	f.StringSliceVar(&e.mrSigner, "mrsigner", nil, "expected MRSIGNER (repeatable: one of them)")
	f.StringVar(&e.signerKey, "signer-key", "", "file with the key, public or private, that must have signed")
	e.addNumbers(f)
	f.StringVar(&e.layout, "layout", "", "kind of image: cconvert (the default), gsc, for images of Gramine Shielded "+
		"Containers, or sdk, for those with enclaves of their own, of which it is not verified what starts them")
	e.addAccepted(f, "accept any loader: it is not measured, and runs outside the enclave")
	f.StringVar(&e.attestKey, "attest-verify-key", "",
		"file with the public key by which a statement of the enclave's identity must be signed")
	f.BoolVar(&e.anySigner, "any-signer", false, "accept an image that is consistent, whoever signed it")
}

// measurements reads what a flag lists.
func measurements(flag string, texts []string) (list []sgx.Measurement, err error) {
	for _, s := range texts {
		var m sgx.Measurement
		if err := m.UnmarshalText([]byte(s)); err != nil {
			return nil, usagef("--%s: %w", flag, err)
		}
		list = append(list, m)
	}
	return list, nil
}

// number reads a number of 16 bits from a flag; -1: the flag was not set.
func number(flag string, n int) (*uint16, error) {
	if n > 0xffff || n < -1 {
		return nil, usagef("--%s %d: it is between 0 and 65535", flag, n)
	}
	if n == -1 {
		return nil, nil
	}
	v := uint16(n)
	return &v, nil
}

// expectations puts the policy and the flags together.
func (e *expectFlags) expectations() (x verify.Expectations, err error) {
	if e.policy != "" {
		if x, err = verify.ReadPolicy(e.policy); err != nil {
			return x, &usageError{err}
		}
	}
	for _, l := range []struct {
		flag string
		from []string
		to   *[]sgx.Measurement
	}{{"mrenclave", e.mrEnclave, &x.MREnclave}, {"mrsigner", e.mrSigner, &x.MRSigner}} {
		list, err := measurements(l.flag, l.from)
		if err != nil {
			return x, err
		}
		*l.to = append(*l.to, list...)
	}
	for _, n := range []struct {
		flag string
		from int
		to   **uint16
	}{{"min-svn", e.minSVN, &x.MinSVN}, {"prod-id", e.prodID, &x.ProdID}} {
		v, err := number(n.flag, n.from)
		if err != nil {
			return x, err
		}
		if v != nil {
			if old := *n.to; n.flag == "min-svn" && old != nil {
				*v = max(*v, *old)
			} else if old != nil && *old != *v {
				return x, usagef("--%s %d: the policy expects %d", n.flag, *v, *old)
			}
			*n.to = v
		}
	}
	x.RuntimeDigest, x.AgentDigest = append(x.RuntimeDigest, e.runtime...), append(x.AgentDigest, e.agent...)
	x.SecretsFrom, x.AnySecrets = append(x.SecretsFrom, e.secretsFrom...), x.AnySecrets || e.anySecrets
	x.AnyRuntime, x.AllowChanges = x.AnyRuntime || e.anyRuntime, x.AllowChanges || e.allowChanges
	if e.lock != "" {
		l, err := libos.ReadLock(e.lock)
		if err == nil && l == nil {
			err = fmt.Errorf("%s is not there", e.lock)
		}
		if err != nil {
			return x, &usageError{fmt.Errorf("--lock: %w", err)}
		}
		x.RuntimeDigest = append(x.RuntimeDigest, l.Runtime.Layer)
	}
	for _, file := range []string{x.Runtimes, e.runtimes} {
		if file == "" {
			continue
		}
		known, err := verify.ReadRuntimes(file)
		if err != nil {
			return x, &usageError{fmt.Errorf("--known-runtimes: %w", err)}
		}
		x.Known = append(x.Known, known...)
	}
	x.AllowSimulated = x.AllowSimulated || e.allowSimulated
	x.AllowDebug, x.AnySigner = x.AllowDebug || e.allowDebug, x.AnySigner || e.anySigner
	for _, f := range []struct {
		flag string
		from string
		to   *string
	}{{"signer-key", e.signerKey, &x.SignerKey}, {"attest-verify-key", e.attestKey, &x.AttestKey},
		{"layout", e.layout, &x.Layout}} {
		switch {
		case f.from == "":
		case *f.to != "" && *f.to != f.from:
			return x, usagef("--%s %s: the policy expects %s", f.flag, f.from, *f.to)
		default:
			*f.to = f.from
		}
	}
	if x.SignerKey != "" {
		key, err := readPublicKey("signer-key", x.SignerKey)
		if err != nil {
			return x, err
		}
		m := sgx.MRSigner(key)
		if len(x.MRSigner) > 0 && !slices.Contains(x.MRSigner, m) {
			return x, usagef("--signer-key %s: its MRSIGNER is %s, and other ones are expected too", x.SignerKey, m)
		}
		x.MRSigner = []sgx.Measurement{m}
	}
	if x.AttestKey != "" {
		text, err := os.ReadFile(x.AttestKey)
		if err == nil {
			x.Attested, err = attest.ParsePublicKey(text)
		}
		if err != nil {
			return x, &usageError{fmt.Errorf("--attest-verify-key %s: %w", x.AttestKey, err)}
		}
	}
	return x, nil
}

func newVerify() *cobra.Command {
	var (
		access registryFlags
		expect expectFlags
		source string
		start  bool
		asJSON bool
		key    filesKeyFlag
		runs   runningFlags
	)
	cmd := &cobra.Command{
		Use:     "verify IMAGE",
		Short:   "Check everything that a confidential image says of itself",
		Long:    verifyLong,
		Example: verifyExamples,
		Args:    exactArgs("IMAGE"),
	}
	f := cmd.Flags()
	f.StringVar(&source, "source", "", "the image that it was made from: its layers must be unchanged underneath")
	addJSON(f, &asJSON, "print JSON")
	f.BoolVar(&start, "start", false, "run the image's own loader, up to the point where the CPU would start the "+
		"enclave (Linux 5.14 on x86-64; needs no SGX)")
	key.add(f, "the key to the image's encrypted files: without it their contents are not checked")
	expect.add(f)
	runs.add(f)
	access.add(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		x, err := expect.expectations()
		if err != nil {
			return err
		}
		running, err := runs.running(cmd.Context(), cmd.Flags(), x.AllowDebug, x.AllowSimulated)
		if err != nil {
			return err
		}
		var closeKey func()
		if x.FilesKey, closeKey, err = key.reader(cmd.Context()); err != nil {
			return err
		}
		defer closeKey()
		img, err := access.open(cmd, args[0])
		if err != nil {
			return err
		}
		defer img.Close()
		r, err := access.verify(cmd, img, source, x)
		if err != nil {
			return err
		}
		if start {
			if err := r.Start(cmd.Context(), img); err != nil {
				return fmt.Errorf("%s: %w", img.Ref, err)
			}
		}
		if running != nil {
			r.Attested(*running)
		}
		if asJSON {
			err = printJSON(cmd, r)
		} else {
			printReport(cmd.OutOrStdout(), r)
		}
		if err == nil && !r.Trusted {
			err = fmt.Errorf("%s is %w: %s", img.Ref, errRefused, strings.Join(r.Unmet(), ", "))
		}
		return err
	}
	return cmd
}

// verify checks an image, with what is attached to it, and with its source if that is named.
func (r *registryFlags) verify(
	cmd *cobra.Command, img *image.Image, source string, x verify.Expectations,
) (*verify.Report, error) {
	var from *image.Image
	if source != "" {
		var err error
		if from, err = r.open(cmd, source); err != nil {
			return nil, err
		}
		defer from.Close()
	}
	artifacts, err := registry.Referrers(cmd.Context(), img, attest.Kinds...)
	if err != nil {
		return nil, err
	}
	evidence := attest.Read(cmd.Context(), artifacts, x.Attested)
	progress := newProgress(cmd.ErrOrStderr())
	defer progress.finish()
	o := r.reading()
	o.Observe = progress.Layer
	report, err := verify.Verify(cmd.Context(), img, from, x, evidence, o)
	if errors.Is(err, inspect.ErrNotConverted) {
		report, err = verify.OwnEnclaves(cmd.Context(), img, from, x, o)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", img.Ref, err)
	}
	return report, nil
}

// printReport shows each check on a line, and what is wrong below it.
func printReport(w io.Writer, r *verify.Report) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "image\t%s\n", printable(r.Image))
	fmt.Fprintf(t, "digest\t%s\n", r.Digest)
	if r.Recipe != nil {
		fmt.Fprintf(t, "runtime\t%s %.12s\n", printable(r.Recipe.Runtime.Kind), printable(r.Recipe.Runtime.Version))
	}
	for _, e := range r.Enclaves {
		fmt.Fprintf(t, "enclave\t%s\n", printable(e.Path))
		fmt.Fprintf(t, "  MRENCLAVE\t%s\n  MRSIGNER\t%s\n  product\t%d, security version %d\n", e.MREnclave, e.MRSigner,
			e.ISVProdID, e.ISVSVN)
	}
	if len(r.Enclaves) == 0 {
		fmt.Fprintf(t, "MRENCLAVE\t%s\nMRSIGNER\t%s\nproduct\t%d, security version %d\n", r.MREnclave, r.MRSigner,
			r.ISVProdID, r.ISVSVN)
	}
	t.Flush()
	fmt.Fprintln(w)
	printChecks(w, r)
	if slices.ContainsFunc(r.Checks, func(c verify.Check) bool {
		return c.Name == verify.CheckContents && c.Status == verify.Skipped
	}) {
		fmt.Fprintln(w, "\nWhat is in the encrypted files was NOT CHECKED, and what follows does not speak of it.")
	}
	switch {
	case r.Trusted:
		fmt.Fprintf(w, "\n%s\n", printable(verdict(r)))
	case r.Consistent:
		fmt.Fprintln(w,
			"\nconsistent, not trusted: nothing in it contradicts anything else, but it is not what was expected")
	default:
		fmt.Fprintln(w, "\nNOT what it says that it is")
	}
}

// verdict says of an image that is what was expected what was expected of it.
func verdict(r *verify.Report) string {
	text := "trusted: it is what was expected"
	if len(r.Waived) > 0 {
		text = "accepted: it is what was expected. Accepted unchecked: --" + strings.Join(r.Waived, ", --")
	}
	if len(r.Weaknesses) > 0 {
		text += ". Weakened by its own settings: " + strings.Join(r.Weaknesses, ", ")
	}
	return text
}

func printChecks(w io.Writer, r *verify.Report) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range r.Checks {
		if c.Status == verify.Failed && len(c.Problems) > 0 {
			c.Detail = "NOT so: " + c.Detail // which is what was to be shown
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Status, c.Name, printable(c.Detail))
		for _, p := range c.Problems {
			fmt.Fprintf(t, "\t\t  %s\n", printable(p))
		}
	}
	t.Flush()
}
