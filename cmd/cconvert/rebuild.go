package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/verify"
)

func newRebuild() *cobra.Command {
	var (
		access  registryFlags
		library runtimeFlags
		source  string
		agent   string
		asJSON  bool
		key     filesKeyFlag
	)
	cmd := &cobra.Command{
		Use:   "rebuild IMAGE",
		Short: "Repeat a conversion, and say whether the same image comes out",
		Long: `Convert an image's source again by the recipe in the image, and say whether the same digest
comes out. No key is needed: the signature is the image's, and it fits only if the measurement
is the same. Nothing is stored. The source is found by --source or by what is attached to the
image. The runtime is the image's own layer; --runtime takes it from somewhere else, which shows
that it is that runtime. What was taken from the image is told. The exit code is 4 if something
else comes out.`,
		Example: `  cconvert rebuild registry.example/redis:7-confidential --source registry.example/redis:7`,
		Args:    exactArgs("IMAGE"),
	}
	f := cmd.Flags()
	f.StringVar(&source, "source", "", "the image that it was made from")
	addJSON(f, &asJSON, "print JSON")
	key.add(f, "the key to the image's encrypted files: without it their ciphertexts are taken from the image")
	f.StringVar(&agent, "agent", "", "the agent's program, for an image that gets secrets (default: the one of this "+
		"version, or the image's own)")
	library.add(f)
	access.add(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		img, err := access.open(cmd, args[0])
		if err != nil {
			return err
		}
		defer img.Close()
		if source == "" {
			if source, err = statedSource(cmd, img); err != nil {
				return err
			}
		}
		o := verify.RebuildOptions{Read: access.reading()}
		if o.Source, err = image.ParseReference(source, access.insecure); err != nil {
			return err
		}
		_, load, err := library.choose(access, cacheFlags{off: true})
		if err != nil {
			return err
		}
		if f := cmd.Flags(); f.Changed("runtime") || f.Changed("runtime-libs") || f.Changed("lock") {
			o.Runtime = &load
		}
		if agent != "" {
			if o.Agent, err = libos.ReadAgent(agent); err != nil {
				return &usageError{fmt.Errorf("--agent: %w", err)}
			}
		}
		var closeKey func()
		if o.FilesKey, closeKey, err = key.reader(cmd.Context()); err != nil {
			return err
		}
		defer closeKey()
		// Nothing that was kept, here or by others, is believed.
		o.Convert = convert.Options{
			StoreOptions: convert.StoreOptions{Image: access.options()}, Jobs: access.jobs, Inflate: o.Read.Inflate,
			Limits: access.limits,
		}
		progress := newProgress(cmd.ErrOrStderr())
		defer progress.finish()
		o.Convert.Observer = progress
		r, err := verify.Rebuild(cmd.Context(), img, o)
		progress.finish()
		if err != nil {
			return err
		}
		switch {
		case asJSON:
			err = printJSON(cmd, r)
		case r.Same && r.Recompressed:
			fmt.Fprintln(cmd.OutOrStdout(), "the same: the image "+r.Digest+", its layers compressed otherwise")
		case r.Same:
			fmt.Fprintln(cmd.OutOrStdout(), "the same: "+r.Digest)
		default:
			fmt.Fprintln(cmd.OutOrStdout(), "not the same: "+r.Digest+" is the image's")
			for _, why := range r.Why {
				fmt.Fprintln(cmd.OutOrStdout(), "  "+printable(why))
			}
		}
		if len(r.Taken) > 0 && !asJSON {
			fmt.Fprintln(cmd.OutOrStdout(), "taken from the image itself:")
			for _, what := range r.Taken {
				fmt.Fprintln(cmd.OutOrStdout(), "  "+printable(what))
			}
		}
		if err == nil && !r.Same {
			err = fmt.Errorf("%s: %w", img.Ref, errDifferent)
		}
		return err
	}
	return cmd
}

// statedSource is the name of the source in a statement that is attached to the image. It need not be true: another
// source would have another digest than the recipe says. But whoever can write to the registry has no say in where this
// machine looks, so that it must be in the same registry.
func statedSource(cmd *cobra.Command, img *image.Image) (string, error) {
	artifacts, err := registry.Referrers(cmd.Context(), img, attest.InTotoMediaType)
	if err != nil {
		return "", err
	}
	for _, f := range attest.Read(cmd.Context(), artifacts, nil) {
		var identity attest.Identity
		if f.Statement != nil && f.Statement.PredicateType == attest.IdentityType &&
			json.Unmarshal(f.Statement.Predicate, &identity) == nil && identity.Source.Name != "" {
			ref, err := image.ParseReference(identity.Source.Name, false)
			if err != nil || ref.Transport != image.Registry || img.Ref.Name == nil ||
				ref.Name.Context().RegistryStr() != img.Ref.Name.Context().RegistryStr() {
				return "", usagef("an unsigned statement says that %s was made from %q, which is not in the same "+
					"registry: if that is so, say --source", img.Ref, identity.Source.Name)
			}
			return identity.Source.Name, nil
		}
	}
	return "", usagef("nothing attached to %s names its source: say where it is with --source", img.Ref)
}
