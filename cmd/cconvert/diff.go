package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/inspect"
)

func newDiff() *cobra.Command {
	var access registryFlags
	var asJSON, layers bool
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Say why the measurements of two confidential images differ",
		Long: `Say why the measurements of two confidential images differ: source, runtime, options, enclave,
settings of the manifest, files that were added, removed or changed, and who signed. The exit
code is 4 if they differ. Nothing is verified: see "cconvert verify".`,
		Example: `  cconvert diff registry.example/app:1.4-confidential registry.example/app:1.4-confidential`,
		Args:    exactArgs("A", "B"),
	}
	access.add(cmd.Flags())
	addJSON(cmd.Flags(), &asJSON, "print JSON")
	cmd.Flags().BoolVar(&layers, "layers", false, "read all layers, to say from which of them the files are")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		read := inspect.Read
		if layers {
			read = inspect.ReadLayers
		}
		var both [2]*inspect.Converted
		g, ctx := errgroup.WithContext(cmd.Context())
		for i, name := range args {
			g.Go(func() error {
				ref, err := image.ParseReference(name, access.insecure)
				if err != nil {
					return err
				}
				img, err := store.Open(ctx, ref, access.options())
				if err != nil {
					return err
				}
				defer img.Close()
				if both[i], err = read(ctx, img, access.reading()); err != nil {
					return fmt.Errorf("%s: %w", ref, err)
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		differences, err := inspect.Compare(both[0], both[1])
		if err != nil {
			return err
		}
		if asJSON {
			if differences == nil {
				differences = []inspect.Difference{}
			}
			err = printJSON(cmd, differences)
		} else {
			for _, d := range differences {
				fmt.Fprintln(cmd.OutOrStdout(), printable(d.String()))
			}
		}
		if err == nil && len(differences) > 0 {
			err = fmt.Errorf("%w: %d differences", errDifferent, len(differences))
		}
		return err
	}
	return cmd
}
