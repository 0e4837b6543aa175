package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// maxConfig is how many bytes of a configuration file are read.
const maxConfig = 1 << 20

// fromConfigFile sets every flag of a command that was not given from the user's file of flags, by their names. The
// names are those of any command that makes conversions: one file is for all of them.
func fromConfigFile(cmd *cobra.Command) error {
	dir, err := os.UserConfigDir()
	if err != nil {
		return nil //nolint:nilerr // nobody is at home, as in a container
	}
	file := filepath.Join(dir, "cconvert", "config.yaml")
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.Size() > maxConfig {
		return usagef("%s: it has more than %d bytes", file, maxConfig)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return &usageError{err}
	}
	var values yaml.MapSlice
	if err := yaml.UnmarshalWithOptions(text, &values, yaml.Strict()); err != nil {
		return usagef("%s: %w", file, err)
	}
	for _, item := range values {
		name := fmt.Sprint(item.Key)
		if !knownFlag(cmd.Root(), name) {
			return usagef("%s: there is no flag --%s", file, name)
		}
		f := cmd.Flags().Lookup(name)
		if f == nil || f.Changed {
			continue
		}
		if err := setAll(cmd.Flags(), name, item.Value); err != nil {
			return usagef("%s: %s: %w", file, name, err)
		}
	}
	return nil
}

// knownFlag reports whether a command that makes conversions has a flag of a name that may be in a file.
func knownFlag(root *cobra.Command, name string) bool {
	if name == "help" || name == "version" {
		return false
	}
	for _, c := range append(root.Commands(), root) {
		if converts(c) && (c.Flags().Lookup(name) != nil || c.InheritedFlags().Lookup(name) != nil) {
			return true
		}
	}
	return false
}

// setAll sets a flag to a value, or to each of a list.
func setAll(flags *pflag.FlagSet, name string, value any) error {
	switch value := value.(type) {
	case []any:
		if _, ok := flags.Lookup(name).Value.(pflag.SliceValue); !ok {
			return errors.New("one value is expected, not a list")
		}
		for _, v := range value {
			if err := setAll(flags, name, v); err != nil {
				return err
			}
		}
		return nil
	case string, bool, uint64, int64, float64:
		return flags.Set(name, fmt.Sprint(value))
	}
	return errors.New("a text, a number, true, false or a list is expected")
}
