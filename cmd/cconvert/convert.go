package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/sgx"
)

const convertLong = `Convert images for linux/amd64 and store the results.

IMAGE, and the target of --to, is a name in a registry, oci:DIR[:TAG], oci-archive:FILE[:TAG],
docker-archive:FILE[:NAME] or docker-daemon:NAME; an image without a name is
docker-daemon:sha256:ID, or its place in an archive, docker-archive:FILE:@0. Without --to the
result goes where the image is, its tag with a suffix; or below --repo. Several images are
converted side by side; "-" reads their names from standard input, one a line. For more, see
"cconvert batch".

On success standard output is one line for each image: the name of the result by its digest.
Everything else goes to standard error. Every flag can be set by a variable, --isv-svn by
CCONVERT_ISV_SVN, or by its name in the file $XDG_CONFIG_HOME/cconvert/config.yaml.`

const convertExamples = `  # From registry to registry
  cconvert convert redis:7 --to registry.example/confidential/redis:7

  # In a pipeline: key from a file, facts to a file
  cconvert convert registry.example/app:1.4 --key enclave-key.pem --output-json result.json

  # All that a file lists, below another repository
  cconvert convert - --repo registry.example/confidential < images.txt

  # With a runtime that is installed on this machine, into a directory
  cconvert convert app:1.4 --to oci:out:1.4 --runtime gramine=dir:/usr`

func newConvert() *cobra.Command {
	var (
		access                     registryFlags
		layers                     layerFlags
		library                    runtimeFlags
		start                      launchFlags
		files                      encryptFlags
		key                        keyFlags
		to, suffix, repo, jsonFile string
		platform                   string
		evidence                   evidenceFlags
		names                      nameFiles
		gate                       convert.Gate
		unsigned, rollback, dry    bool
		another                    bool // signer
		referrers                  bool
		work                       workFlags
	)
	cmd := &cobra.Command{
		Use:     "convert IMAGE...",
		Short:   "Convert images and store the results",
		Long:    convertLong,
		Example: convertExamples,
		Args:    atLeastOne("IMAGE"),
	}
	f := cmd.Flags()
	f.StringVar(&to, "to", "", "where the result goes")
	f.StringVar(&suffix, "suffix", "-confidential", "what is added to the tag where --to is not given")
	f.StringVar(&repo, "repo", "", "repository below which results go where --to is not given, with the tag as it is")
	f.StringVar(&jsonFile, "output-json", "", "file that gets a description of the result")
	f.StringVar(&names.refs, "image-refs", "", "file that gets the name of the result by its digest")
	f.StringVar(&names.digest, "digest-file", "", "file that gets the digest of the result")
	f.StringVar(&names.results, "results-dir", "", "directory that gets IMAGE_URL, IMAGE_DIGEST, MRENCLAVE and "+
		"MRSIGNER, a file each without a newline, as Tekton reads them")
	f.StringVar(&platform, "platform", "linux/amd64", "platform to convert: SGX knows this one only")
	f.BoolVar(&dry, "dry-run", false, "store nothing: say what would be stored, or that the target has it already")
	addGate(f, &gate)
	f.BoolVar(&unsigned, "unsigned", false, "store the image without a signature, for \"cconvert sign\" to add")
	addReplace(f, &rollback, &another)
	work.add(f)
	key.add(f, "the signing key (default: enclave-key.pem in the configuration directory)")
	library.add(f)
	start.add(f)
	files.add(f)
	layers.add(f)
	evidence.add(f)
	f.BoolVar(&referrers, "copy-referrers", false,
		"copy signatures, SBOMs and attestations of the source to the target's repository; they speak of the source")
	access.add(f)
	f.Var(&access.srcCreds, "src-creds",
		"user of the source's registry; set the variable CCONVERT_SRC_CREDS rather than "+
			"have others read it in the list of processes")
	f.Var(&access.destCreds, "dest-creds", "user of the target's registry")

	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if platform != "linux/amd64" {
			return usagef("--platform %s: SGX exists on linux/amd64 only", platform)
		}
		images, listed, err := imageList(args, cmd.InOrStdin())
		if err != nil {
			return err
		}
		if len(images) > 1 && dry {
			return usagef("--dry-run is for one image; of several, \"cconvert batch PLAN --dry-run\" says what " +
				"would be done")
		}
		if len(images) > 1 && (to != "" || names.digest != "" || names.results != "") {
			return usagef("--to, --digest-file and --results-dir are for one image: for several there are --repo and " +
				"--suffix, and --image-refs")
		}
		var conversions []convert.Options // of each image, the same but for source and target
		var named []string                // each as it was written
		var problems []queue.Job          // names in a list that are not images
		for _, name := range images {
			source, target, err := endsOf(name, to, suffix, repo, cmd.Flags().Changed("suffix"), access.insecure)
			if err != nil && len(images) == 1 {
				return err
			}
			if err != nil {
				problems = append(problems, queue.Job{Source: name, Problem: err.Error()})
				continue
			}
			for _, c := range conversions {
				if c.Target.Same(target) {
					return usagef("%s and %s would both become %s", c.Source, source, target)
				}
			}
			conversions, named = append(conversions, convert.Options{Source: source, Target: &target}),
				append(named, name)
		}
		if err := checkGate(gate); err != nil {
			return err
		}
		if len(conversions) == 0 {
			return usagef("the list has no name of an image: %s", problems[0].Problem)
		}
		var sources, targets []image.Reference
		for _, c := range conversions {
			sources, targets = append(sources, c.Source), append(targets, *c.Target)
		}
		o, err := conversion(conversions[0].Source, access, layers, library, start, files)
		if err != nil {
			return err
		}
		o.Image.Keychain = access.keychain(sources, targets)
		o.AllowRollback, o.ReplaceSigner, o.CopyReferrers, o.Gate = rollback, another, referrers, gate
		if o.Evidence, err = evidence.choose(cmd.Flags().Changed("attest")); err != nil {
			return err
		}
		for _, c := range conversions {
			if err := o.Check(c.Source, *c.Target); err != nil {
				return err
			}
		}
		if len(images) > 1 && (len(files.paths) > 0 || o.AgentFile != "") {
			return usagef("--encrypt and --agent are for one image")
		}
		secret, err := files.choose(cmd.Context(), &o)
		if err != nil {
			return err
		}
		if secret != nil {
			defer secret.Close()
		}
		for _, f := range []struct{ flag, file string }{
			{"output-json", jsonFile}, {"image-refs", names.refs}, {"digest-file", names.digest},
		} {
			if dir := filepath.Dir(f.file); f.file != "" && !isDir(dir) {
				return usagef("--%s %s: %s is not a directory", f.flag, f.file, dir)
			}
		}
		if names.results != "" && !isDir(names.results) {
			return usagef("--results-dir %s: it is not a directory", names.results)
		}
		// Before somebody is asked for a passphrase, or makes a key. Of several images each has its own answer, and a
		// daemon would have to save the image twice.
		if len(images) == 1 && o.Source.Transport != image.DockerDaemon {
			if o.Found, err = store.Find(cmd.Context(), o.Source, o.Image); err != nil {
				return err
			}
		}
		var signer sgx.Signer // nil: nobody signs
		if !unsigned {
			if err := checkReplace(another, key); err != nil {
				return err
			}
			if signer, err = key.openOrMake(cmd.Context(), o.Backend.Kind() == sim.Backend{}.Kind()); err != nil {
				return err
			}
			defer signer.Close()
		}
		o.Target = conversions[0].Target
		if len(images) > 1 {
			jobs := problems
			for i, c := range conversions {
				each := o
				each.Source, each.Target = c.Source, c.Target
				j := queue.NewJob(each, access.insecure)
				j.Unsigned, j.Found = unsigned, listed[named[i]] // a list can hold results
				j.ResultsOnly = slices.ContainsFunc(conversions, func(other convert.Options) bool {
					return other.Source.Same(*c.Target)
				})
				jobs = append(jobs, j)
			}
			return convertAll(cmd, o, signer, work, jobs, jsonFile, names)
		}
		progress := newProgress(cmd.ErrOrStderr())
		defer progress.finish()
		o.Observer = progress
		if dry {
			return preview(cmd, o, signer, progress)
		}
		r, err := convert.Run(cmd.Context(), o, signer)
		progress.finish()
		if err != nil {
			return toldFindings(cmd, err)
		}
		tell(cmd.ErrOrStderr(), r)
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

// toldFindings tells the findings that have stopped a conversion, if it is they, and returns the error.
func toldFindings(cmd *cobra.Command, err error) error {
	var stopped *convert.FindingsError
	if errors.As(err, &stopped) {
		tellFindings(cmd.ErrOrStderr(), stopped.Findings)
	}
	return err
}

// preview says what a conversion would store: on standard output the name of the result by its digest, and "unchanged"
// if the target has it.
func preview(cmd *cobra.Command, o convert.Options, signer sgx.Signer, progress *progress) error {
	r, unchanged, err := convert.Preview(cmd.Context(), o, signer)
	progress.finish()
	if err != nil {
		return toldFindings(cmd, err)
	}
	tellFindings(cmd.ErrOrStderr(), r.Findings)
	line := r.Output.Ref
	if unchanged {
		line += " unchanged"
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), line)
	return err
}

// nameFiles are files that get the name of a result, for what comes next in a pipeline.
type nameFiles struct{ refs, digest, results string }

func (n nameFiles) write(r *convert.Result) error {
	files := []struct{ name, text string }{{n.refs, r.Output.Ref + "\n"}, {n.digest, r.Output.Digest + "\n"}}
	if n.results != "" {
		for _, f := range []struct{ name, text string }{
			{"IMAGE_URL", r.Target}, {"IMAGE_DIGEST", r.Output.Digest}, {"MRENCLAVE", r.MREnclave.String()},
			{"MRSIGNER", r.MRSigner.String()},
		} {
			f.name = filepath.Join(n.results, f.name)
			files = append(files, f)
		}
	}
	for _, f := range files {
		if f.name == "" {
			continue
		}
		if err := writeFile(f.name, []byte(f.text)); err != nil {
			return err
		}
	}
	return nil
}

// writeFile replaces a file as a whole, or writes into what is not a file, such as /dev/stdout.
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

// addGate adds the flags that decide which findings stop a conversion.
func addGate(f *pflag.FlagSet, g *convert.Gate) {
	f.BoolVar(&g.Strict, "strict", false, "fail on warnings, before anything is stored")
	f.StringSliceVar(&g.Ignore, "ignore", nil, "codes of findings to go on in spite of (repeatable)")
}

func checkGate(g convert.Gate) error {
	for _, code := range g.Ignore {
		if !finding.Known(code) {
			return usagef("--ignore %s: no finding has this code; docs/findings.md lists them", code)
		}
	}
	return nil
}

// endsOf reads the name of an image, and works out where its result goes.
func endsOf(name, to, suffix, repo string, suffixGiven, insecure bool) (source, target image.Reference, err error) {
	if source, err = image.ParseReference(name, insecure); err != nil {
		return source, target, err
	}
	if target, err = targetOf(source, to, suffix, repo, suffixGiven, insecure); err != nil {
		return source, target, err
	}
	return source, target, checkTarget(source, target)
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
		return usagef("the result would replace the source, %s: say where it goes with --to, --repo or --suffix",
			source)
	}
	if _, ok := target.Name.(name.Digest); ok || target.Digest != "" {
		return usagef("--to %s: a target is named by a tag, its digest is what comes out", target)
	}
	return nil
}
