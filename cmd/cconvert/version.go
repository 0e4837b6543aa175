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

// versionFacts say which program this is.
type versionFacts struct {
	Version     string `json:"version"`
	FormatEpoch int    `json:"format_epoch"` // see recipe.FormatEpoch
	Go          string `json:"go"`           // the compiler's version, such as "go1.26.5"
}

func readVersion() versionFacts {
	v := versionFacts{Version: version, FormatEpoch: recipe.FormatEpoch, Go: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); version == "" && ok {
		v.Version = info.Main.Version
	}
	return v
}

func versionText() string {
	v := readVersion()
	return fmt.Sprintf("cconvert %s, format epoch %d, %s", v.Version, v.FormatEpoch, v.Go)
}

func newVersion() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version and the format epoch",
		Long: `Print the version and the format epoch. Two versions with the same epoch convert the same
input to the same output; but for the simulated runtime, which is part of cconvert.`,
		Example: `  cconvert version
  cconvert version --format '{{.version}}'`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return printJSON(cmd, readVersion())
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionText())
			return err
		},
	}
	addJSON(cmd.Flags(), &asJSON, "print JSON")
	return cmd
}
