package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/recipe"
)

// version is set by the build.
var version string

func versionText() string {
	v := version
	if info, ok := debug.ReadBuildInfo(); v == "" && ok {
		v = info.Main.Version
	}
	return fmt.Sprintf("cconvert %s, format epoch %d, %s", v, recipe.FormatEpoch, runtime.Version())
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and the format epoch",
		Long: `Print the version and the format epoch. Two versions with the same epoch convert the same
input to the same output; but for the simulated runtime, which is part of cconvert.`,
		Example: "  cconvert version",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionText())
			return err
		},
	}
}
