package main

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/sgx"
)

const convertLong = `Convert an image for linux/amd64 and store the result.

IMAGE, and the target of --to, is a name in a registry, oci:DIR[:TAG], docker-archive:FILE
or docker-daemon:NAME. Without --to the result goes where the image is, its tag with a
suffix; or below --repo.

On success standard output is one line: the name of the result by its digest. Everything
else goes to standard error. Every flag can be set by a variable: --isv-svn by
CCONVERT_ISV_SVN.`

const convertExamples = `  # From registry to registry
  cconvert convert redis:7 --to registry.example/confidential/redis:7

  # In a pipeline: key from a file, facts to a file
  cconvert convert registry.example/app:1.4 --key enclave-key.pem --output-json result.json

  # With a runtime that is installed on this machine, into a directory
  cconvert convert app:1.4 --to oci:out:1.4 --runtime gramine=dir:/usr`

func newConvert() *cobra.Command {
	var (
		registry                   registryFlags
		layers                     layerFlags
		library                    runtimeFlags
		start                      launchFlags
		key                        keyFlags
		to, suffix, repo, jsonFile string
		platform                   string
		evidence                   evidenceFlags
		names                      nameFiles
		gate                       gate
		unsigned, rollback         bool
	)
	cmd := &cobra.Command{
		Use:     "convert IMAGE",
		Short:   "Convert an image and store the result",
		Long:    convertLong,
		Example: convertExamples,
		Args:    exactArgs("IMAGE"),
	}
	f := cmd.Flags()
	f.StringVar(&to, "to", "", "where the result goes")
	f.StringVar(&suffix, "suffix", "-confidential", "what is added to the tag where --to is not given")
	f.StringVar(&repo, "repo", "", "repository below which results go where --to is not given, with the tag as it is")
	f.StringVar(&jsonFile, "output-json", "", "file that gets a description of the result")
	f.StringVar(&names.refs, "image-refs", "", "file that gets the name of the result by its digest")
	f.StringVar(&names.digest, "digest-file", "", "file that gets the digest of the result")
	f.StringVar(&platform, "platform", "linux/amd64", "platform to convert: SGX knows this one only")
	f.BoolVar(&gate.strict, "strict", false, "fail on warnings, before anything is stored")
	f.StringSliceVar(&gate.ignore, "ignore", nil, "codes of findings to go on in spite of (repeatable)")
	f.BoolVar(&unsigned, "unsigned", false, "store the image without a signature, for \"cconvert sign\" to add")
	addRollback(f, &rollback)
	key.add(f, "the signing key (default: enclave-key.pem in the configuration directory)")
	library.add(f)
	start.add(f)
	layers.add(f)
	evidence.add(f)
	registry.add(f)

	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if platform != "linux/amd64" {
			return usagef("--platform %s: SGX exists on linux/amd64 only", platform)
		}
		source, err := image.ParseReference(args[0], registry.insecure)
		if err != nil {
			return err
		}
		target, err := targetOf(source, to, suffix, repo, cmd.Flags().Changed("suffix"), registry.insecure)
		if err != nil {
			return err
		}
		if err := checkTarget(source, target); err != nil {
			return err
		}
		if err := gate.check(); err != nil {
			return err
		}
		o, err := conversion(source, registry, layers, library, start)
		if err != nil {
			return err
		}
		for flag, file := range map[string]string{"output-json": jsonFile, "image-refs": names.refs, "digest-file": names.digest} {
			if dir := filepath.Dir(file); file != "" && !isDir(dir) {
				return usagef("--%s %s: %s is not a directory", flag, file, dir)
			}
		}
		var signer sgx.Signer // nil: nobody signs
		if !unsigned {
			if signer, err = key.openOrMake(cmd.Context()); err != nil {
				return err
			}
			defer signer.Close()
		}
		if o.Evidence, err = evidence.choose(cmd.Flags().Changed("attest")); err != nil {
			return err
		}
		progress := newProgress(cmd.ErrOrStderr())
		defer progress.finish()
		o.Observer = progress
		o.Target, o.AllowRollback = &target, rollback
		o.Accept = func(findings []launch.Finding) error {
			err := gate.pass(findings)
			if err != nil {
				progress.finish()
				reportFindings(cmd.ErrOrStderr(), findings)
			}
			return err
		}
		r, err := run(cmd.Context(), o, signer)
		progress.finish()
		if err != nil {
			return err
		}
		report(cmd.ErrOrStderr(), r)
		if jsonFile != "" {
			b, err := json.MarshalIndent(r, "", "  ")
			if err != nil {
				return err
			}
			if err := writeFile(jsonFile, append(b, '\n')); err != nil {
				return fmt.Errorf("the image is stored as %s, but describing it failed: %w", r.Output.Ref, err)
			}
		}
		if err := names.write(r); err != nil {
			return fmt.Errorf("the image is stored as %s, but naming it failed: %w", r.Output.Ref, err)
		}
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), r.Output.Ref); err != nil {
			return fmt.Errorf("the image is stored as %s, but that could not be printed: %w", r.Output.Ref, err)
		}
		return nil
	}
	return cmd
}

// nameFiles are files that get the name of a result, for what comes next in a pipeline.
type nameFiles struct{ refs, digest string }

func (n nameFiles) write(r *convert.Result) error {
	for file, text := range map[string]string{n.refs: r.Output.Ref, n.digest: r.Output.Digest} {
		if file == "" {
			continue
		}
		if err := writeFile(file, []byte(text+"\n")); err != nil {
			return err
		}
	}
	return nil
}

// writeFile replaces a file as a whole, or writes into what is none, such as /dev/stdout.
func writeFile(file string, b []byte) error {
	if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
		return os.WriteFile(file, b, 0o644)
	}
	return renameio.WriteFile(file, b, 0o644)
}

func isDir(p string) bool {
	info, err := os.Stat(p)
	return err == nil && info.IsDir()
}

// gate decides which findings stop a conversion: errors and, if it is strict, warnings, but for those that
// are ignored.
type gate struct {
	strict bool
	ignore []string
}

func (g gate) check() error {
	for _, code := range g.ignore {
		if !launch.KnownCode(code) {
			return usagef("--ignore %s: no finding has this code; docs/findings.md lists them", code)
		}
	}
	return nil
}

func (g gate) pass(findings []launch.Finding) error {
	var codes []string
	for _, f := range findings {
		grave := f.Severity == launch.Error || g.strict && f.Severity == launch.Warning
		if grave && !slices.Contains(g.ignore, f.Code) && !slices.Contains(codes, f.Code) {
			codes = append(codes, f.Code)
		}
	}
	if len(codes) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", errFindings, strings.Join(codes, ", "))
}

// errFindings says that a conversion stopped because of what was found.
var errFindings = errors.New("nothing was stored because of what was found")

// run converts and signs; without a signer, it leaves the signature out.
func run(ctx context.Context, o convert.Options, signer sgx.Signer) (*convert.Result, error) {
	p, err := convert.Prepare(ctx, o)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	var public *rsa.PublicKey
	var signature []byte
	if signer != nil {
		if public, signature, err = convert.Sign(ctx, p, signer); err != nil {
			return nil, err
		}
	}
	return convert.Finish(ctx, p, public, signature, *o.Target)
}

func targetOf(source image.Reference, to, suffix, repo string, suffixGiven, insecure bool) (image.Reference, error) {
	if to != "" {
		return image.ParseReference(to, insecure)
	}
	if repo != "" && !suffixGiven {
		suffix = ""
	}
	return source.Target(suffix, repo, insecure)
}

// checkTarget refuses targets that cannot be what was meant.
func checkTarget(source, target image.Reference) error {
	if target.Same(source) {
		return usagef("the result would replace the source, %s: say where it goes with --to, --repo or --suffix", source)
	}
	if _, ok := target.Name.(name.Digest); ok || target.Digest != "" {
		return usagef("--to %s: a target is named by a tag, its digest is what comes out", target)
	}
	return nil
}
