package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// defaultKey is where the signing key lies if nobody says otherwise.
func defaultKey() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", usagef("no place for a signing key: set HOME, or name the key with --key")
	}
	return filepath.Join(dir, "cconvert", "enclave-key.pem"), nil
}

// loadKey reads the signing key. On a terminal a missing default key is made; elsewhere that would give
// every run an identity of its own.
func loadKey(file string) (sgx.Signer, error) {
	usual, err := defaultKey()
	if file == "" {
		if err != nil {
			return nil, err
		}
		file = usual
	}
	key, err := readKey(file)
	if !errors.Is(err, fs.ErrNotExist) || file != usual {
		return key, err
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) || !term.IsTerminal(int(os.Stderr.Fd())) {
		return nil, usagef("there is no signing key at %s: a key that is made anew in every run would be a new identity in every run. Make one with \"cconvert keygen --out FILE\", keep it safe, and name it with --key", file)
	}
	if err := sgx.CreateKeyFile(file); err != nil {
		return nil, err
	}
	logrus.Warnf("made a signing key, %s: it is your enclaves' identity (MRSIGNER), so keep it safe", file)
	return readKey(file)
}

func readKey(file string) (*sgx.Key, error) {
	key, exposed, err := sgx.ReadKeyFile(file)
	if exposed {
		logrus.Warnf("the signing key %s can be read by others: chmod 600 %s", file, file)
	}
	return key, err
}

func newKeygen() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a key that signs enclaves",
		Long: `Make a key that signs enclaves: RSA-3072 with public exponent 3, the only kind that SGX
accepts. Prints the MRSIGNER, the hash of its public half, by which others recognise what
you signed. The key is your enclaves' identity: whoever has it can sign in your name.`,
		Example: `  cconvert keygen --out enclave-key.pem`,
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				var err error
				if out, err = defaultKey(); err != nil {
					return err
				}
			}
			if err := sgx.CreateKeyFile(out); err != nil {
				return err
			}
			key, err := readKey(out)
			if err != nil {
				return err
			}
			public, err := key.Public(context.Background())
			if err != nil {
				return err
			}
			logrus.Infof("the key is in %s, its MRSIGNER is:", out)
			fmt.Fprintln(cmd.OutOrStdout(), sgx.MRSigner(public))
			return nil
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write (default: enclave-key.pem in the configuration directory); it must not exist")
	return cmd
}
