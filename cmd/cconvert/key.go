package main

import (
	"crypto/rsa"
	"fmt"
	"os"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/internal/keyserver"
	"github.com/cconvert/cconvert/pkg/protectedfs/filekey"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/signer"
)

func newKeygen() *cobra.Command {
	var (
		out        string
		files      string
		store      string
		encrypt    bool
		passphrase passphraseFlags
	)
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a key that signs enclaves",
		Long: `Make a key that signs enclaves: RSA-3072 with public exponent 3, the only kind that SGX
accepts. Prints the MRSIGNER, the hash of its public half, by which others recognise what
you signed. The key is your enclaves' identity: whoever has it can sign in your name.

With --files, make a key to encrypted files instead: 32 random bytes, from which each image
gets a key of its own. With --store, make one to the secrets that "cconvert release" keeps.`,
		Example: `  cconvert keygen --out enclave-key.pem
  cconvert keygen --out encrypted-key.pem --encrypt
  cconvert keygen --files app-files.key
  cconvert keygen --store store.key`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if files != "" || store != "" {
				if out != "" || encrypt || files != "" && store != "" {
					return usagef("--files and --store make other kinds of keys, without --out and --encrypt")
				}
				if files != "" {
					return filekey.Create(files)
				}
				return keyserver.CreateKey(store)
			}
			var err error
			if out == "" {
				if out, err = defaultKey(); err != nil {
					return err
				}
			}
			var secret []byte
			if encrypt {
				if secret, err = passphrase.read(cmd.Context(), out, true); err != nil {
					return err
				}
				defer clear(secret)
				if len(secret) == 0 {
					return usagef("--encrypt: the passphrase is empty")
				}
			}
			key, err := signer.CreateFile(out, secret)
			if err != nil {
				return err
			}
			defer key.Close()
			public, err := key.Public(cmd.Context())
			if err != nil {
				return err
			}
			logrus.Infof("the key is in %s, its MRSIGNER is:", out)
			fmt.Fprintln(cmd.OutOrStdout(), sgx.MRSigner(public))
			return nil
		},
	}
	cmd.Flags().StringVar(&out, "out", "",
		"file to write (default: enclave-key.pem in the configuration directory); it must not exist")
	cmd.Flags().BoolVar(&encrypt, "encrypt", false, "encrypt the key with a passphrase")
	cmd.Flags().StringVar(&files, "files", "", "make a key to encrypted files, in this file; it must not exist")
	cmd.Flags().StringVar(&store, "store", "", "make the key of a store of secrets, in this file; it must not exist")
	passphrase.add(cmd.Flags())
	return cmd
}

// keyInfo is what "key info" tells.
type keyInfo struct {
	MRSigner sgx.Measurement `json:"mr_signer"`
	Bits     int             `json:"bits"`
	Exponent int             `json:"exponent"`
	// TestKey is the repository that publishes the private half, empty for others.
	TestKey string `json:"test_key,omitempty"`
}

func newKey() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Look at signing keys",
		Long:  "Look at the keys that sign enclaves, wherever they are.",
		Args:  exactArgs("COMMAND"),
	}
	var key keyFlags
	var asJSON bool
	info := &cobra.Command{
		Use:   "info",
		Short: "Show the MRSIGNER of a key",
		Long: `Show the MRSIGNER of a key, by which others recognise what it signs. The key is named as for a
conversion, or is the public half in a PEM file. Nothing is signed.`,
		Example: `  cconvert key info --key enclave-key.pem
  cconvert key info --key "exec:./sign.sh" --json`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			public, err := key.public(cmd)
			if err != nil {
				return err
			}
			k := keyInfo{MRSigner: sgx.MRSigner(public), Bits: public.N.BitLen(), Exponent: public.E}
			k.TestKey, _ = sgx.TestKey(public)
			if asJSON {
				return printJSON(cmd, k)
			}
			if k.TestKey != "" {
				logrus.Warnf("the repository %s publishes the private half of this key: it signs enclaves for "+
					"debugging only", k.TestKey)
			}
			fmt.Fprintln(cmd.OutOrStdout(), k.MRSigner)
			return nil
		},
	}
	key.add(info.Flags(), "the key (default: enclave-key.pem in the configuration directory)")
	addJSON(info.Flags(), &asJSON, "print JSON")
	cmd.AddCommand(info)
	return cmd
}

// public returns the public half of a key, which is enough if it lies in a file.
func (k *keyFlags) public(cmd *cobra.Command) (*rsa.PublicKey, error) {
	if info, err := os.Stat(k.name); err == nil && info.Mode().IsRegular() {
		text, err := readSmall(k.name)
		defer clear(text)
		if err == nil && strings.Contains(string(text), "PUBLIC KEY") {
			return sgx.ParsePublicKey(text)
		}
	}
	s, err := k.open(cmd.Context())
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return s.Public(cmd.Context())
}
