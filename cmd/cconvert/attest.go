package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/verify"
)

func newAttest() *cobra.Command {
	var access registryFlags
	evidence := evidenceFlags{attest: true}
	var file string
	cmd := &cobra.Command{
		Use:   "attest IMAGE",
		Short: "Attach evidence to an image that has enclaves of its own",
		Long: `Attach evidence to an image that was not converted, because its program is built for SGX: of Intel's
SDK, Open Enclave or EGo. For each of its enclaves that is a statement of its identity and reference
values, as a conversion attaches them to its result. The image stays as it is.`,
		Example: `  cconvert attest registry.example/enclave:1`,
		Args:    exactArgs("IMAGE"),
	}
	cmd.Flags().StringVar(&file, "enclave", "", "the file of one enclave, where there are several")
	cmd.Flags().StringVar(&evidence.key, "attest-key", "",
		"file with a private key, of ECDSA or Ed25519, that signs the statements")
	access.add(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		by, err := evidence.choose(true)
		if err != nil {
			return err
		}
		img, err := access.open(cmd, args[0])
		if err != nil {
			return err
		}
		defer img.Close()
		report, err := verify.OwnEnclaves(cmd.Context(), img, nil, verify.Expectations{}, access.reading())
		if errors.Is(err, inspect.ErrNotConverted) || errors.Is(err, verify.ErrConverted) {
			return usagef("%s has no signed enclave of its own; what a conversion makes has its evidence from there",
				img.Ref)
		}
		if err != nil {
			return err
		}
		found := report.Enclaves
		for _, f := range found {
			// what was not measured is not stated
			if problem := cmp.Or(f.Problem(), f.MeasurementError); problem != "" {
				return fmt.Errorf("%s: %s: %w: %s", img.Ref, f.Path, errRefused, problem)
			}
		}
		if !report.Consistent {
			return fmt.Errorf("%s: %w: cconvert verify %s says what is wrong with it", img.Ref, errRefused, img.Ref)
		}
		if file != "" {
			found = slices.DeleteFunc(found, func(f inspect.EnclaveFile) bool { return f.Path != file })
		}
		if len(found) == 0 {
			return usagef("%s has no signed enclave %s", img.Ref, file)
		}
		name := ""
		if img.Ref.Transport == image.Registry {
			name = img.Ref.Name.Context().Name()
		}
		var artifacts []image.Artifact
		for _, f := range found {
			a, err := aboutEnclave(cmd, f, attest.NewResource(name, img.Digest), by.Key)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", img.Ref, f.Path, err)
			}
			artifacts = append(artifacts, a...)
		}
		if err := registry.Attach(cmd.Context(), img, artifacts, access.options()); err != nil {
			return err
		}
		logrus.Infof("attached %d statements and reference values of %d enclaves", len(artifacts), len(found))
		_, err = fmt.Fprintln(cmd.OutOrStdout(), name+"@"+img.Digest)
		return err
	}
	return cmd
}

// aboutEnclave states the identity of an enclave in an image, and returns its reference values.
func aboutEnclave(
	cmd *cobra.Command, f inspect.EnclaveFile, subject attest.Resource, key *attest.PrivateKey,
) ([]image.Artifact, error) {
	statement, err := attest.NewStatement(subject, attest.IdentityType, attest.Identity{Enclave: f.Enclave,
		Options: json.RawMessage("{}"), Findings: json.RawMessage("null")})
	if err != nil {
		return nil, err
	}
	said, err := statement.Pack(cmd.Context(), key)
	if err != nil {
		return nil, err
	}
	values, err := f.CoRIM(subject.Name + "@sha256:" + subject.Digest["sha256"] + f.Path)
	if err != nil {
		return nil, err
	}
	return []image.Artifact{said, attest.PackCoRIM(values)}, nil
}
