package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
)

func newReference() *cobra.Command {
	var access registryFlags
	var format, by, enclave string
	var simulated bool
	cmd := &cobra.Command{
		Use:   "reference IMAGE",
		Short: "Print the values that a relying party compares a quote with",
		Long: `Print the values that a relying party compares a quote with: MRENCLAVE, MRSIGNER, product, SVN
and attributes. Formats are json and toml (in the names of gramine-sgx-sigstruct-view), corim (a
Concise Reference Integrity Manifest in CBOR), maa (an attestation policy of Microsoft Azure
Attestation), rego (a policy for the Open Policy Agent), kbs (policies and reference values of
Trustee's Key Broker Service), azure-skr (a release policy of Azure's key vaults) and secret-prov
(the variables of servers with Gramine's library). Only the layers that the conversion added are
fetched; verify the image before you rely on it.`,
		Example: `  cconvert reference registry.example/redis:7-confidential
  cconvert reference registry.example/redis:7-confidential --format maa
  cconvert reference registry.example/redis:7-confidential --format rego --by signer`,
		Args: exactArgs("IMAGE"),
	}
	access.add(cmd.Flags())
	cmd.Flags().StringVar(&enclave, "enclave", "",
		"for an image that was not converted and has several enclaves of its own: the file of one of them")
	cmd.Flags().BoolVar(&simulated, "simulated", false,
		"print the values of an image of the simulated runtime, which no CPU will ever report")
	cmd.Flags().StringVar(&by, "by", attest.ByEnclave, "what all but json and toml go by: enclave (MRENCLAVE: this "+
		"one only) or signer (MRSIGNER, product and SVN: later ones as well)")
	cmd.Flags().StringVar(&format, "format", attest.FormatJSON, strings.Join(attest.Formats, ", "))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(attest.Ways, by) {
			return usagef("--by %s: there is %s", by, strings.Join(attest.Ways, ", "))
		}
		if !slices.Contains(attest.Formats, format) {
			return usagef("--format %s: there is %s", format, strings.Join(attest.Formats, ", "))
		}
		img, err := access.open(cmd, args[0])
		if err != nil {
			return err
		}
		defer img.Close()
		e, err := identityOf(cmd, img, access, enclave, simulated)
		if err != nil {
			return fmt.Errorf("%s: %w", img.Ref, err)
		}
		b, err := e.Reference(format, by, img.Digest)
		if err != nil {
			return fmt.Errorf("%s: %w", img.Ref, err)
		}
		_, err = cmd.OutOrStdout().Write(b)
		return err
	}
	return cmd
}

// identityOf reads the identity of a converted image, or of an enclave that the image has of its own.
func identityOf(
	cmd *cobra.Command, img *image.Image, access registryFlags, file string, simulated bool,
) (e attest.Enclave, err error) {
	c, err := inspect.Read(cmd.Context(), img, access.reading())
	if err == nil {
		if c.Simulated() && !simulated {
			return e, fmt.Errorf("%w: %s. --simulated prints them all the same, for tests", errRefused,
				inspect.SimulatedNotice)
		}
		if c.SignatureError != "" {
			return e, fmt.Errorf("%w: %s", errRefused, c.SignatureError)
		}
		return attest.NewEnclave(c.SigStruct), nil
	}
	if !errors.Is(err, inspect.ErrNotConverted) {
		return e, err
	}
	found, enclaveErr := inspect.Enclaves(cmd.Context(), img, access.reading())
	if enclaveErr != nil {
		return e, enclaveErr
	}
	if file != "" {
		found = slices.DeleteFunc(found, func(f inspect.EnclaveFile) bool { return f.Path != file })
	}
	switch {
	case len(found) == 0:
		return e, err
	case len(found) > 1:
		return e, usagef("there are %d enclaves in the image, as cconvert inspect shows: choose one with --enclave",
			len(found))
	case found[0].Problem() != "":
		return e, fmt.Errorf("%w: %s", errRefused, found[0].Problem())
	}
	return found[0].Enclave, nil
}
