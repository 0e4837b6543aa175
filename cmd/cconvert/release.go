package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/internal/health"
	"github.com/cconvert/cconvert/internal/keyserver"
	"github.com/cconvert/cconvert/internal/nocore"
	"github.com/cconvert/cconvert/internal/secret"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
)

func newRelease() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "release",
		Short: "Release secrets to enclaves that prove what they are",
		Long: `Release secrets to enclaves that prove with a quote what they are: keep secrets, say which image may
have which, serve them, and look at what was decided.`,
		Args: exactArgs("COMMAND"),
	}
	cmd.AddCommand(newReleaseSecret(), newReleaseAllow(), newReleaseServe(), newReleaseLog(), newReleaseAuthority(),
		newReleasePin())
	return cmd
}

// storeFlags name the store of secrets.
type storeFlags struct{ place, key, transit string }

func (s *storeFlags) add(f *pflag.FlagSet) {
	f.StringVar(&s.place, "store", "secrets", "directory of the secrets, each encrypted, or vault:MOUNT/PATH of a KV "+
		"engine, version 2, in HashiCorp Vault")
	f.StringVar(&s.key, "store-key", "store.key", "the key to it, as \"cconvert keygen --store\" makes it, or Vault's "+
		"token: a file, env:VARIABLE or exec:COMMAND")
	f.StringVar(&s.transit, "store-transit", "", "MOUNT/KEY of Vault's transit engine that encrypts what is kept in "+
		"Vault (default: none)")
}

func (s *storeFlags) open(ctx context.Context) (store keyserver.Store, err error) {
	exposed := func(file string) { logrus.Warnf("others than its owner can read %s", file) }
	switch {
	case strings.HasPrefix(s.place, keyserver.VaultPlace):
		store, err = keyserver.OpenVault(ctx, s.place, s.transit, s.key, exposed)
	case s.transit != "":
		return nil, usagef("--store-transit is for --store vault:MOUNT/PATH")
	default:
		store, err = keyserver.OpenDirectory(ctx, s.place, s.key, exposed)
	}
	switch {
	case errors.Is(err, keyserver.ErrVaultPlace):
		return nil, &usageError{fmt.Errorf("--store: %w", err)}
	case errors.Is(err, secret.ErrName), errors.Is(err, keyserver.ErrStoreKey),
		errors.Is(err, keyserver.ErrVaultToken):
		return nil, &usageError{fmt.Errorf("--store-key: %w", err)}
	}
	return store, err
}

func newReleaseSecret() *cobra.Command {
	var store storeFlags
	var from string
	cmd := &cobra.Command{
		Use:   "secret NAME",
		Short: "Keep a secret, encrypted, in the place of what was there",
		Long: `Keep a secret, encrypted, under a name, in the place of what was there: the bytes of a file, or
those that are written to standard input, without a line end behind them.`,
		Example: `  cconvert release secret db-password < secret
  cconvert release secret app-key --from wrap-key`,
		Args: exactArgs("NAME"),
	}
	store.add(cmd.Flags())
	cmd.Flags().StringVar(&from, "from", "", "file with the secret, all of whose bytes count (default: standard input)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := store.open(cmd.Context())
		if err != nil {
			return err
		}
		in := cmd.InOrStdin()
		if from != "" {
			f, err := os.Open(from)
			if err != nil {
				return err
			}
			defer f.Close()
			in = f
		}
		value, err := io.ReadAll(io.LimitReader(in, keyserver.MaxSecret+1))
		defer clear(value)
		if err != nil {
			return err
		}
		text := value
		if from == "" {
			text = bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r"))
		}
		if len(text) == 0 {
			return usagef("the secret is empty")
		}
		if strings.HasPrefix(args[0], "_") {
			return usagef("%q: names that begin with _ are the server's own", args[0])
		}
		return s.Put(cmd.Context(), args[0], text)
	}
	return cmd
}

func newReleaseAuthority() *cobra.Command {
	return printingOf(&cobra.Command{
		Use:   "authority",
		Short: "Print the certificate by which the server's certificates for enclaves are signed",
		Long: `Print the certificate of the authority by which the server signs certificates for enclaves, in
PEM, for clients that are to trust them. It is made the first time. Whoever trusts it trusts the
server's policies; "cconvert verify --endpoint" checks the quote in the certificate instead.`,
		Example: `  cconvert release authority`,
	}, func(ctx context.Context, s keyserver.Store) (string, error) {
		text, err := keyserver.Authority(ctx, s, time.Now())
		return string(text), err
	})
}

func newReleasePin() *cobra.Command {
	return printingOf(&cobra.Command{
		Use:   "pin",
		Short: "Print the pin by which enclaves recognise the server",
		Long: `Print the pin by which enclaves recognise the server: the SHA-256 of its public key. The key is
made the first time. A server with --tls-cert has that key's pin, which it prints when it starts.`,
		Example: `  cconvert release pin`,
	}, func(ctx context.Context, s keyserver.Store) (string, error) {
		pin, err := keyserver.Pin(ctx, s, time.Now())
		return pin.String() + "\n", err
	})
}

// printingOf is a command that prints something of a store.
func printingOf(cmd *cobra.Command, of func(context.Context, keyserver.Store) (string, error)) *cobra.Command {
	var store storeFlags
	store.add(cmd.Flags())
	cmd.Args = exactArgs()
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := store.open(cmd.Context())
		if err != nil {
			return err
		}
		text, err := of(cmd.Context(), s)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), text)
		return err
	}
	return cmd
}

const releaseAllowLong = `Verify an image, as "cconvert verify" does, and write the policy by which its enclave gets
secrets. The image must be what is expected of it: nothing is allowed to one that is not. Each
secret is granted as PLACE=NAME: the place in the enclave (env:VARIABLE, file:PATH, key:NAME),
and the name of the secret in the store; tls:DIRECTORY=HOST+HOST… grants a certificate for a key
that the enclave makes, and secret-prov=NAME the one secret that clients of Gramine's library
secret_prov get. All that an image wants which was converted with --secrets must be granted. With
--encrypt-key, the key to its encrypted files is kept in the store and granted as well.

By default the policy is about this enclave only; --by signer allows later ones of its signer and
product as well. Platforms are accepted as by "cconvert quote verify".`

func newReleaseAllow() *cobra.Command {
	var (
		access registryFlags
		expect expectFlags
		on     platformFlags
		store  storeFlags
		files  filesKeyFlag
		grants []string
		by     string
		out    string
		source string
	)
	cmd := &cobra.Command{
		Use:   "allow IMAGE",
		Short: "Write a policy that releases secrets to the enclave of a verified image",
		Long:  releaseAllowLong,
		Example: `  cconvert release allow registry.example/redis:7-confidential --signer-key enclave-key.pem \
    --any-runtime --secret env:DB_PASSWORD=db-password --out policies/redis.toml`,
		Args: exactArgs("IMAGE"),
	}
	f := cmd.Flags()
	f.StringArrayVar(&grants, "secret", nil, "what is released: PLACE=NAME, or tls:DIRECTORY=HOST (repeatable)")
	f.StringVar(&by, "by", attest.ByEnclave, "to whom: enclave (this one only) or signer (later ones as well)")
	f.StringVar(&out, "out", "", "file to write, whose name ends in .toml; what is there is replaced")
	f.StringVar(&source, "source", "", "the image that it was made from: its layers must be unchanged underneath")
	files.add(f, "the key to the image's encrypted files: what this image gets of it is put into the store, and "+
		"granted")
	store.add(f)
	on.addAccepted(f)
	expect.add(f)
	access.add(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if filepath.Ext(out) != ".toml" {
			return usagef("--out: a file whose name ends in .toml expected")
		}
		if !slices.Contains(attest.Ways, by) {
			return usagef("--by %s: there is %s", by, strings.Join(attest.Ways, ", "))
		}
		x, err := expect.expectations()
		if err != nil {
			return err
		}
		if _, err := on.policy(); err != nil {
			return err
		}
		var closeKey func()
		if x.FilesKey, closeKey, err = files.reader(cmd.Context()); err != nil {
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
		printReport(cmd.OutOrStdout(), r)
		if !r.Trusted {
			return fmt.Errorf("%s is %w: %s", img.Ref, errRefused, strings.Join(r.Unmet(), ", "))
		}
		if r.SigStruct == nil || r.Layout == inspect.LayoutSDK {
			return fmt.Errorf("%s: %w: it has no enclave of its own that is started with it", img.Ref, errRefused)
		}
		keyName, key := "", []byte(nil)
		if x.FilesKey != nil {
			wrap, err := x.FilesKey(r.Recipe.Source)
			if err != nil {
				return err
			}
			keyName, key = "files-"+wrap.ID(), wrap[:]
			grants = append(grants, release.KindKey+":"+r.Encrypted.Key+"="+keyName)
		}
		p, err := keyserver.NewPolicy(img.Ref.String()+"@"+img.Digest, r.SigStruct, by == attest.BySigner,
			r.Simulated(), on.platform(), grants)
		if err != nil {
			return &usageError{err}
		}
		if r.Agent != nil {
			if lacks := p.Lacks(r.Agent.Want); len(lacks) > 0 {
				return usagef("the image wants %s, too, and gets no secret at all unless each is granted: by "+
					"--secret, or of encrypted files by --encrypt-key", strings.Join(lacks, ", "))
			}
		}
		text, err := p.Text()
		if err != nil {
			return err
		}
		if key != nil {
			s, err := store.open(cmd.Context())
			if err != nil {
				return err
			}
			if err := s.Put(cmd.Context(), keyName, key); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return err
		}
		return os.WriteFile(out, text, 0o644)
	}
	return cmd
}

const releaseServeLong = `Serve secrets to enclaves that prove with a quote what they are: the
owner's side, on a machine that the owner trusts. Who gets what is in the policies, which "cconvert
release allow" writes and SIGHUP has read again; everything else is refused, without a reason to the
client. Every decision is in the log, each line with the digest of the one before.

Without --tls-cert, the server makes a key and certificate the first time, and keeps them in the
store. The pin that is printed is how enclaves recognise it.`

// serverMemory is from where on the server collects garbage more often, in bytes: it needs less.
const serverMemory = 32 << 20

func newReleaseServe() *cobra.Command {
	var (
		store                                                   storeFlags
		on                                                      platformFlags
		listen, secretProv, status, policies, log, cert, tlsKey string

		allowSimulated bool
	)
	cmd := &cobra.Command{
		Use:     "serve",
		Short:   "Serve secrets to enclaves",
		Long:    releaseServeLong,
		Example: `  cconvert release serve --listen 127.0.0.1:8443 --policies policies --log release.log`,
		Args:    exactArgs(),
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", ":8443", "address to listen on")
	f.StringVar(&secretProv, "secret-prov-listen", "", "address for clients of Gramine's library secret_prov, which "+
		"get what is granted to secret-prov (default: none)")
	f.StringVar(&status, "status-listen", "127.0.0.1:8444", "address for /healthz, /readyz and /metrics, over HTTP; "+
		"empty: none")
	f.StringVar(&policies, "policies", "policies", "directory of policies, files that end in .toml; it is made if "+
		"it is missing")
	f.StringVar(&log, "log", "release.log", "file of the decisions; it is only added to")
	f.StringVar(&cert, "tls-cert", "", "file with the server's certificate (default: its own)")
	f.StringVar(&tlsKey, "tls-key", "", "file with the key of --tls-cert")
	f.BoolVar(&allowSimulated, "allow-simulated", false, "release to simulated enclaves, where a policy says so: "+
		"anybody can be one. For tests")
	store.add(f)
	on.addCollateral(f)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if (cert == "") != (tlsKey == "") {
			return usagef("--tls-cert and --tls-key belong together")
		}
		nocore.Set()
		debug.SetMemoryLimit(min(debug.SetMemoryLimit(-1), serverMemory))
		s, err := store.open(cmd.Context())
		if err != nil {
			return err
		}
		if err := os.MkdirAll(policies, 0o755); err != nil {
			return fmt.Errorf("--policies: %w", err)
		}
		decisions, err := keyserver.OpenLog(log)
		if err != nil {
			return fmt.Errorf("--log: %w", err)
		}
		defer decisions.Close()
		o := keyserver.Options{
			Store: s, Log: decisions, AllowSimulated: allowSimulated,
			Policies: func() ([]*keyserver.Policy, error) { return keyserver.ReadPolicies(policies) },
			Verify: func(ctx context.Context, q *quote.Quote, o quote.Options) (*quote.Result, error) {
				r, _, err := on.verify(ctx, q, o)
				return r, err
			},
		}
		if cert != "" {
			pair, err := tls.LoadX509KeyPair(cert, tlsKey)
			if err != nil {
				return &usageError{fmt.Errorf("--tls-cert: %w", err)}
			}
			o.Certificate = &pair
		}
		server, err := keyserver.New(cmd.Context(), o)
		if err != nil {
			return err
		}
		pin, err := server.Pin()
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", listen)
		if err != nil {
			return err
		}
		if status != "" {
			about, err := net.Listen("tcp", status)
			if err != nil {
				return fmt.Errorf("--status-listen: %w", err)
			}
			defer about.Close()
			go health.Serve(about, server.Status())
		}
		again := make(chan os.Signal, 1)
		signal.Notify(again, syscall.SIGHUP)
		defer signal.Stop(again)
		go func() {
			for range again {
				if err := server.Reload(); err != nil {
					logrus.Errorf("the policies stay as they were: %v", err)
				} else {
					logrus.Info("the policies were read again")
				}
			}
		}()
		if allowSimulated {
			logrus.Warn("simulated enclaves get what their policies say: anybody can be one")
		}
		serving, ctx := errgroup.WithContext(cmd.Context())
		if secretProv != "" {
			l, err := net.Listen("tcp", secretProv)
			if err != nil {
				return fmt.Errorf("--secret-prov-listen: %w", err)
			}
			serving.Go(func() error { return server.ServeSecretProv(ctx, l) })
			logrus.Infof("listening on %s for clients of secret_prov", l.Addr())
		}
		serving.Go(func() error { return server.Serve(ctx, l) })
		logrus.Infof("listening on %s, pin=%s", l.Addr(), pin)
		return serving.Wait()
	}
	return cmd
}

func newReleaseLog() *cobra.Command {
	var check, asJSON bool
	var expect string
	cmd := &cobra.Command{
		Use:   "log FILE",
		Short: "Show what the server decided, and check that nothing of it was changed",
		Long: `Show what the server decided. Each line has the digest of the one before. Whoever can write the
file can make all of it anew: note the last digest elsewhere, which --check prints, and name it
later with --expect: then nothing up to that line was changed, taken out or put in.`,
		Example: `  cconvert release log release.log
  cconvert release log release.log --check`,
		Args: exactArgs("FILE"),
	}
	cmd.Flags().BoolVar(&check, "check", false, "print nothing but how many decisions there are, and the last digest")
	addJSON(cmd.Flags(), &asJSON, "print JSON, a line each")
	cmd.Flags().StringVar(&expect, "expect", "", "digest of a line that must be there, as it was noted elsewhere")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		show := func(d *keyserver.Decision) { printDecision(w, d) }
		var printErr error
		switch {
		case check:
			show = func(*keyserver.Decision) {}
		case asJSON:
			show = func(d *keyserver.Decision) { printErr = cmp.Or(printErr, printJSONLine(cmd, d)) }
		}
		found := 0
		n, last, err := keyserver.CheckLog(f, func(d *keyserver.Decision, digest string) {
			if digest == expect {
				found = d.Number
			}
			show(d)
		})
		w.Flush()
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w: %w", args[0], errRefused, err)
		case printErr != nil:
			return printErr
		case expect != "" && found == 0:
			return fmt.Errorf("%s: %w: %w: no line has the digest %s", args[0], errRefused, keyserver.ErrLog, expect)
		case check && found > 0:
			fmt.Fprintf(cmd.OutOrStdout(), "%d decisions in one chain, of which the first %d are as they were; the "+
				"last is %s\n", n, found, last)
		case check:
			fmt.Fprintf(cmd.OutOrStdout(), "%d decisions in one chain; the last is %s\n", n, last)
		}
		return nil
	}
	return cmd
}

func printDecision(w io.Writer, d *keyserver.Decision) {
	enclave := "-"
	if d.MREnclave != nil {
		enclave = fmt.Sprintf("%.12s", d.MREnclave)
	}
	what, why := "released", d.Policy+": "+strings.Join(d.Want, ", ")
	if !d.Released {
		what, why = "refused", d.Reason
	}
	fmt.Fprintf(w, "%d\t%s\t%s\t%s%s\t%s\t%s\n", d.Number, d.Time.Format(time.RFC3339), printable(d.Address), enclave,
		when(d.Simulated, " simulated"), what, printable(why))
}
