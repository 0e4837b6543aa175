package main

import (
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/libos/all"
)

// Formats of bills.
const (
	formatSPDX      = "spdx"
	formatCycloneDX = "cyclonedx"
)

func newSBOM() *cobra.Command {
	var access registryFlags
	var format string
	cmd := &cobra.Command{
		Use:   "sbom IMAGE",
		Short: "List what a conversion has put on an image",
		Long: `List what a conversion has put on an image, as SPDX 2.3 or CycloneDX 1.6 in JSON: the files of the
added layers with their digests, the runtime and its C library, and the modules of the agent that
gets secrets. What the source image consists of is not listed. The same list is attached to images
in registries, as statements. Only the layers that the conversion added are fetched; verify the
image before you rely on it.`,
		Example: `  cconvert sbom registry.example/redis:7-confidential
  cconvert sbom registry.example/redis:7-confidential --format cyclonedx`,
		Args: exactArgs("IMAGE"),
	}
	access.add(cmd.Flags())
	cmd.Flags().StringVar(&format, "format", formatSPDX, formatSPDX+" or "+formatCycloneDX)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if format != formatSPDX && format != formatCycloneDX {
			return usagef("--format %s: there is %s and %s", format, formatSPDX, formatCycloneDX)
		}
		img, err := access.open(cmd, args[0])
		if err != nil {
			return err
		}
		defer img.Close()
		bill, err := convert.ReadBill(cmd.Context(), img, all.Backends())
		if err != nil {
			return err
		}
		write := bill.SPDX
		if format == formatCycloneDX {
			write = bill.CycloneDX
		}
		text, err := write()
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(append(text, '\n'))
		return err
	}
	return cmd
}
