package main

import (
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/pkg/cache"
)

// cacheFlags are about what is kept between runs.
type cacheFlags struct {
	off   bool
	limit string
}

var defaultCacheSize = humanize.IBytes(cache.DefaultLimit)

func (c *cacheFlags) add(f *pflag.FlagSet) {
	f.BoolVar(&c.off, "no-cache", false, "neither use nor keep what is known of layers and runtimes from other runs")
	f.StringVar(&c.limit, "cache-size", defaultCacheSize,
		"how much is kept; what was used last stays")
}

// store returns the user's cache; nil if there is none or none is wanted.
func (c *cacheFlags) store() (cache.Store, error) {
	if c.off {
		return nil, nil
	}
	limit, err := humanize.ParseBytes(c.limit)
	if err != nil || limit > 1<<60 {
		return nil, usagef("--cache-size %s: a size expected, such as 2GiB", c.limit)
	}
	dir, err := cache.DefaultDir()
	if err != nil { // without a home there is nothing to keep it in
		return nil, nil
	}
	return cache.Open(dir, int64(limit)), nil
}

var errNoCache = errors.New("there is no directory for a cache: set XDG_CACHE_HOME")

func userCache() (*cache.Cache, error) {
	dir, err := cache.DefaultDir()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoCache, err)
	}
	return cache.Open(dir, cache.DefaultLimit), nil
}

func newCache() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Look after what is kept between runs",
		Long: `Look after what is kept between runs: what is in each layer, so that a layer is fetched and
read once only, and packed runtimes. It is safe to remove any of it at any time.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCacheList(), newCachePrune(), newCachePath())
	return cmd
}

func newCachePath() *cobra.Command {
	return &cobra.Command{
		Use:     "path",
		Short:   "Print where the cache is",
		Example: `  cconvert cache path`,
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := userCache()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), c.Dir())
			return err
		},
	}
}

func newCacheList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List what is in the cache, the last used first",
		Example: `  cconvert cache ls`,
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := userCache()
			if err != nil {
				return err
			}
			entries, err := c.List()
			if err != nil {
				return err
			}
			if asJSON {
				if entries == nil {
					entries = []cache.Entry{}
				}
				return printJSON(cmd, entries)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			total := int64(0)
			for _, e := range entries {
				total += e.Size
				fmt.Fprintf(t, "%s\t%s\t%s\n", e.Used.Format("2006-01-02 15:04"), humanize.IBytes(uint64(e.Size)),
					e.Key)
			}
			fmt.Fprintf(t, "total\t%s\t%d entries\n", humanize.IBytes(uint64(total)), len(entries))
			return t.Flush()
		},
	}
	addJSON(cmd.Flags(), &asJSON, "print JSON")
	return cmd
}

func newCachePrune() *cobra.Command {
	var keep string
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove what was not used for the longest time",
		Example: `  cconvert cache prune --keep 500MB

  # Everything
  cconvert cache prune --keep 0`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			limit, err := humanize.ParseBytes(keep)
			if err != nil || limit > 1<<60 {
				return usagef("--keep %s: a size expected, such as 500MB", keep)
			}
			c, err := userCache()
			if err != nil {
				return err
			}
			removed, left, err := c.Prune(int64(limit))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d entries removed, %s left\n", len(removed),
				humanize.IBytes(uint64(left)))
			return err
		},
	}
	cmd.Flags().StringVar(&keep, "keep", humanize.IBytes(cache.DefaultLimit), "how much to keep")
	return cmd
}
