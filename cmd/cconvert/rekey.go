package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/verify"
)

func newRekey() *cobra.Command {
	var flags signFlags
	var key keyFlags
	var files filesKeyFlag
	cmd := &cobra.Command{
		Use:   "rekey IMAGE",
		Short: "Encrypt the files of a converted image with another key",
		Long: `Encrypt the files of a converted image that are encrypted with another key, and sign the result. The
image that it was made from is not needed. The result is the same as from converting that image
with the new key; its MRENCLAVE is another one, as the list of ciphertexts is measured.

Before that, the image is checked as "cconvert sign" does, and each file is decrypted. The old image
and whoever has its key can still read the files as they were.`,
		Example: `  cconvert rekey registry.example/app:1.4-confidential --encrypt-key app-files.key \
    --new-key app-files-2.key --key production.pem --lock cconvert.lock`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if files.name == "" {
				return usagef("--new-key is needed: cconvert keygen --files FILE makes one")
			}
			if err := checkReplace(flags.another, key); err != nil {
				return err
			}
			k, err := key.open(cmd.Context())
			if err != nil {
				return err
			}
			defer k.Close()
			next, err := files.open(cmd.Context())
			if err != nil {
				return err
			}
			defer next.Close()
			open := func(
				ctx context.Context, img, source *image.Image, e verify.Expectations, o inspect.Options,
			) (*verify.Report, *convert.Prepared, error) {
				return verify.Rekey(ctx, img, source, e, next.For, o)
			}
			return flags.run(cmd, args[0], open, signWith(cmd, k))
		},
	}
	cmd.Flags().StringVar(&files.name, "new-key", "",
		"the new key to encrypted files: a file, env:VARIABLE or exec:COMMAND")
	key.add(cmd.Flags(), "the signing key (default: enclave-key.pem in the configuration directory)")
	flags.add(cmd.Flags())
	return cmd
}
