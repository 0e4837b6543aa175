package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/verify"
)

func newReference() *cobra.Command {
	var registry registryFlags
	var format string
	cmd := &cobra.Command{
		Use:   "reference IMAGE",
		Short: "Print the values that a relying party compares a quote with",
		Long: `Print the values that a relying party compares a quote with: MRENCLAVE, MRSIGNER, product, SVN
and attributes. Formats are json and toml (in the names of gramine-sgx-sigstruct-view), corim
(a Concise Reference Integrity Manifest in CBOR), maa (an attestation policy of Microsoft Azure
Attestation) and rego (a policy for the Open Policy Agent). Only the layers that the conversion
added are fetched; verify the image before you rely on it.`,
		Example: `  cconvert reference registry.example/redis:7-confidential
  cconvert reference registry.example/redis:7-confidential --format maa`,
		Args: exactArgs("IMAGE"),
	}
	registry.add(cmd.Flags())
	cmd.Flags().StringVar(&format, "format", attest.FormatJSON, "json, toml, corim, maa or rego")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(attest.Formats, format) {
			return usagef("--format %s: there is %s", format, strings.Join(attest.Formats, ", "))
		}
		img, err := registry.open(cmd, args[0])
		if err != nil {
			return err
		}
		defer img.Close()
		c, err := verify.Read(cmd.Context(), img, registry.reading())
		if err != nil {
			return fmt.Errorf("%s: %w", img.Ref, err)
		}
		if c.SignatureError != "" {
			return fmt.Errorf("%w: %s", errRefused, c.SignatureError)
		}
		b, err := attest.NewEnclave(c.SigStruct).Reference(format, img.Digest)
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(b)
		return err
	}
	return cmd
}
