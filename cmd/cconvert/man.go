//go:build man

package main

import (
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Manual pages are written by "make release" alone: what writes them is no part of the program.
func init() { extra = append(extra, newMan) }

func newMan() *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "Write the manual pages", Args: exactArgs("DIR"), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.DisableAutoGenTag = true
			none := time.Unix(0, 0).UTC() // the same pages each day
			return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "cconvert", Date: &none}, args[0])
		},
	}
}
