package main

import (
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/protectedfs/filekey"
)

// fileKeyFlags name a key to encrypted files, and what it is used for.
type fileKeyFlags struct{ name, image, path string }

func (k *fileKeyFlags) add(f *pflag.FlagSet) {
	f.StringVar(&k.name, "key", "",
		"the key: a file, env:VARIABLE or exec:COMMAND; 16 bytes, or what keygen --files has made")
	f.StringVar(&k.image, "image", "", "digest of the image whose files these are, for a key of keygen --files")
	f.StringVar(&k.path, "path", "",
		"path by which Gramine opens the file: what follows file: in its mount, and the rest")
}

// open reads the key.
func (k *fileKeyFlags) open(cmd *cobra.Command) (key protectedfs.Key, err error) {
	for _, f := range []struct{ name, value string }{{"key", k.name}, {"path", k.path}} {
		if f.value == "" {
			return key, usagef("--%s is needed", f.name)
		}
	}
	s, err := filekey.Open(cmd.Context(), k.name, func(file string) {
		logrus.Warnf("others than its owner can read the key %s", file)
	})
	if err != nil {
		return key, err
	}
	defer s.Close()
	if k.image != "" && !s.Owners() {
		return key, usagef("--image is for a key of keygen --files; this one is used as it is")
	}
	return s.For(k.image)
}

func newFiles() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "files",
		Short: "Encrypt and decrypt single files for Gramine",
		Long: `Encrypt and decrypt single files as Gramine's mounts of type "encrypted" hold them. Such a file
is bound to its path and to a key of 16 bytes.`,
		Args: exactArgs("COMMAND"),
	}
	cmd.AddCommand(newFilesEncrypt(), newFilesDecrypt())
	return cmd
}

func newFilesEncrypt() *cobra.Command {
	var key fileKeyFlags
	var format int
	var random bool
	cmd := &cobra.Command{
		Use:   "encrypt IN OUT",
		Short: "Encrypt a file",
		Long: `Encrypt a file. The same file, path and key are encrypted to the same bytes, which shows that
two files are the same and nothing else; --random has them differ.`,
		Example: `  cconvert files encrypt --key wrap-key --path /srv/app/model.bin model.bin model.bin.encrypted`,
		Args:    exactArgs("IN", "OUT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != int(protectedfs.Version1) && format != int(protectedfs.Version2) {
				return usagef("--format %d: there are 1, for Gramine before 1.9, and 2", format)
			}
			k, err := key.open(cmd)
			if err != nil {
				return err
			}
			return protectedfs.EncryptFile(cmd.Context(), args[0], args[1],
				protectedfs.File{Path: key.path, Version: protectedfs.Version(format), Random: random}, k)
		},
	}
	key.add(cmd.Flags())
	cmd.Flags().IntVar(&format, "format", int(protectedfs.Version2),
		"version of the format: 1 for Gramine before 1.9, or 2")
	cmd.Flags().BoolVar(&random, "random", false, "use new keys within the file every time")
	return cmd
}

func newFilesDecrypt() *cobra.Command {
	var key fileKeyFlags
	cmd := &cobra.Command{
		Use:   "decrypt IN OUT",
		Short: "Decrypt a file",
		Long: `Decrypt a file. It is written only if all of it is authentic: the exit code is 4 if it was
changed, or is for another path or key.`,
		Example: `  cconvert files decrypt --key wrap-key --path /srv/app/model.bin model.bin.encrypted model.bin`,
		Args:    exactArgs("IN", "OUT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := key.open(cmd)
			if err != nil {
				return err
			}
			return protectedfs.DecryptFile(cmd.Context(), args[0], args[1], key.path, k)
		},
	}
	key.add(cmd.Flags())
	return cmd
}
