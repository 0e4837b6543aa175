package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/convert"
)

// version is set by the build.
var version string

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and the format epoch",
		Long: `Print the version and the format epoch. Two versions with the same epoch convert the same
input to the same output.`,
		Example: "  cconvert version",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := version
			if info, ok := debug.ReadBuildInfo(); v == "" && ok {
				v = info.Main.Version
			}
			fmt.Fprintf(cmd.OutOrStdout(), "cconvert %s, format epoch %d, %s\n", v, convert.FormatEpoch, runtime.Version())
			return nil
		},
	}
}
