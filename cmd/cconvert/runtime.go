package main

import (
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/libos"
)

func newRuntime() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "runtime",
		Short: "Look at the library operating system that goes into images, or pin it",
		Args:  exactArgs(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRuntimeLock(), newRuntimeInspect())
	return cmd
}

func newRuntimeLock() *cobra.Command {
	var access registryFlags
	var library runtimeFlags
	var kept cacheFlags
	cmd := &cobra.Command{
		Use:   "lock",
		Short: "Pin the runtime, so that measurements stay the same",
		Long: `Find the runtime and write its digest to cconvert.lock. A conversion that finds this file
keeps to it. The MRENCLAVE covers the runtime: with another build of it, every image's
measurement is another one.`,
		Example: `  cconvert runtime lock`,
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			file := library.lock
			library.lock = "" // what is pinned now does not count
			backend, o, err := library.choose(access, kept)
			if err != nil {
				return err
			}
			if backend.Kind() == "sim" {
				return usagef("the simulated runtime is part of cconvert: there is nothing to pin")
			}
			b, err := backend.Load(cmd.Context(), o)
			if err != nil {
				return err
			}
			if err := libos.WriteLock(file, b); err != nil {
				return err
			}
			logrus.Infof("%s keeps to %s", file, b.Source)
			fmt.Fprintln(cmd.OutOrStdout(), pinned(b))
			return nil
		},
	}
	access.add(cmd.Flags())
	library.add(cmd.Flags())
	kept.add(cmd.Flags())
	return cmd
}

func pinned(b *libos.Bundle) string {
	if b.SourceDigest != "" {
		return b.SourceDigest
	}
	return b.Layer.Digest
}

// runtimeFacts is what "runtime inspect" tells.
type runtimeFacts struct {
	Kind         string   `json:"kind"`
	Version      string   `json:"version"`
	Layout       int      `json:"layout"`
	GLIBC        string   `json:"glibc"`
	Musl         bool     `json:"musl"`
	Source       string   `json:"source"`
	SourceDigest string   `json:"source_digest"`
	LayerDigest  string   `json:"layer_digest"`
	LayerBytes   int      `json:"layer_bytes"` // compressed
	Files        []string `json:"files"`
}

func newRuntimeInspect() *cobra.Command {
	var access registryFlags
	var library runtimeFlags
	var kept cacheFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "inspect",
		Short:   "Show what the runtime adds to an image",
		Example: `  cconvert runtime inspect --runtime gramine=dir:/usr`,
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			backend, o, err := library.choose(access, kept)
			if err != nil {
				return err
			}
			b, err := backend.Load(cmd.Context(), o)
			if err != nil {
				return err
			}
			paths := slices.Sorted(maps.Keys(b.Files))
			if asJSON {
				return printJSON(cmd, runtimeFacts{
					b.Kind, b.Version, b.Layout, b.GLIBC, b.Musl, b.Source, b.SourceDigest, b.Layer.Digest,
					b.Layer.Size, paths,
				})
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, l := range [][2]string{
				{"runtime", b.Kind + " " + b.Version}, {"source", b.Source}, {"source digest", b.SourceDigest},
				{"layer", b.Layer.Digest}, {"compressed", humanize.Bytes(uint64(b.Layer.Size))},
				{"glibc", b.GLIBC}, {"musl", fmt.Sprint(b.Musl)},
			} {
				fmt.Fprintf(t, "%s\t%s\n", l[0], l[1])
			}
			for _, p := range paths {
				fmt.Fprintf(t, "%s\t%s\n", humanize.Bytes(uint64(b.Files[p].Size)), p)
			}
			return t.Flush()
		},
	}
	access.add(cmd.Flags())
	library.add(cmd.Flags())
	kept.add(cmd.Flags())
	addJSON(cmd.Flags(), &asJSON, "print JSON")
	return cmd
}
