package main

import (
	"context"
	"fmt"
	"os"

	"github.com/google/renameio/v2"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/sdk"
)

// measured is the JSON form of a measurement, in the names of gramine-sgx-sigstruct-view.
type measured struct {
	MREnclave    sgx.Measurement  `json:"mr_enclave"`
	MRSigner     *sgx.Measurement `json:"mr_signer,omitempty"`
	ISVProdID    uint16           `json:"isv_prod_id"`
	ISVSVN       uint16           `json:"isv_svn"`
	DebugEnclave bool             `json:"debug_enclave"`
	Date         string           `json:"date"`
	Flags        string           `json:"attribute_flags"`
	XFRM         string           `json:"attribute_xfrms"`
	XFRMMask     string           `json:"attribute_xfrm_mask"`
	MiscSelect   string           `json:"misc_select"`
	EnclaveSize  uint64           `json:"enclave_size"`
	MaxThreads   int              `json:"max_threads"`
	EDMM         bool             `json:"edmm"`
}

func newMeasure() *cobra.Command {
	var enclave, manifestFile, date, sig, sdkFile string
	var key keyFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "measure --enclave PAL --manifest FILE | --sdk-enclave FILE",
		Short: "Compute the MRENCLAVE of a Gramine manifest, and sign it, or that of an SDK's enclave",
		Long: `Compute the MRENCLAVE, the hash of the enclave that Gramine's loader builds from its enclave
image (libpal.so) and a final manifest, bit for bit as Gramine's own signing tool does. With
--key and --sig, also write the SIGSTRUCT, the signature that the CPU checks.

With --sdk-enclave, compute that of an enclave which was signed with Intel's SGX SDK, and say
whether it is what its SIGSTRUCT says: the exit code is 4 if not.`,
		Example: `  cconvert measure --enclave libpal.so --manifest app.manifest.sgx
  cconvert measure --enclave libpal.so --manifest app.manifest.sgx --key key.pem --json
  cconvert measure --sdk-enclave enclave.signed.so`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if sdkFile != "" {
				if enclave != "" || manifestFile != "" || sig != "" {
					return usagef("--sdk-enclave goes by itself: its file holds all there is")
				}
				return measureSDK(cmd, sdkFile, asJSON)
			}
			if enclave == "" || manifestFile == "" {
				return usagef("--enclave and --manifest are needed: see --help")
			}
			if sig != "" && key.name == "" {
				return usagef("--sig needs --key")
			}
			pal, err := os.ReadFile(enclave)
			if err != nil {
				return &usageError{err}
			}
			text, err := os.ReadFile(manifestFile)
			if err != nil {
				return &usageError{err}
			}
			day, err := parseDate(date)
			if err != nil {
				return err
			}
			if day == nil {
				day = &sgx.Date{}
			}
			e, err := gramine.NewEnclave(pal, text)
			if err != nil {
				return err
			}
			m, err := sgx.Measure(cmd.Context(), e.Layout)
			if err != nil {
				return err
			}
			s := e.SigStruct(m, *day)
			out := measured{
				MREnclave: m, ISVProdID: s.ISVProdID, ISVSVN: s.ISVSVN, DebugEnclave: s.Debug(), Date: s.Date.String(),
				Flags: fmt.Sprintf("%#x", s.Attributes.Flags), XFRM: fmt.Sprintf("%#x", s.Attributes.XFRM),
				XFRMMask: fmt.Sprintf("%#x", s.AttributesMask.XFRM), MiscSelect: fmt.Sprintf("%#x", s.MiscSelect),
				EnclaveSize: e.SGX.EnclaveSize, MaxThreads: e.SGX.MaxThreads, EDMM: e.SGX.EDMM,
			}
			if key.name != "" {
				if err := sign(cmd.Context(), &key, s); err != nil {
					return err
				}
				signerID := s.MRSigner()
				out.MRSigner = &signerID
			}
			if sig != "" {
				if err := renameio.WriteFile(sig, s.Bytes(), 0o644); err != nil {
					return err
				}
			}
			if !asJSON {
				fmt.Fprintln(cmd.OutOrStdout(), m)
				return nil
			}
			return printJSON(cmd, out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&sdkFile, "sdk-enclave", "", "a signed enclave of Intel's SGX SDK")
	f.StringVar(&enclave, "enclave", "", "enclave image (libpal.so)")
	f.StringVar(&manifestFile, "manifest", "", "final manifest (*.manifest.sgx)")
	key.add(f, "the signing key")
	f.StringVar(&date, "date", "", "date in the SIGSTRUCT, YYYY-MM-DD (default 0000-00-00)")
	f.StringVar(&sig, "sig", "", "file that gets the SIGSTRUCT")
	addJSON(f, &asJSON, "print JSON")
	return cmd
}

// sign completes a SIGSTRUCT.
func sign(ctx context.Context, key *keyFlags, s *sgx.SigStruct) error {
	k, err := key.open(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	signature, err := k.Sign(ctx, s.ToBeSigned())
	if err != nil {
		return err
	}
	public, err := k.Public(ctx)
	if err != nil {
		return err
	}
	if whose, ok := sgx.TestKey(public); ok && !s.Debug() {
		logrus.Warnf("the private half of this key is published by %s: everybody can sign enclaves in its name", whose)
	}
	return s.Attach(public, signature)
}

// measureSDK measures an enclave of Intel's SDK, and compares it with its SIGSTRUCT.
func measureSDK(cmd *cobra.Command, file string, asJSON bool) error {
	info, err := os.Stat(file)
	if err == nil && info.Size() > sdk.MaxFile {
		err = fmt.Errorf("%s has more than %d bytes", file, sdk.MaxFile)
	}
	if err != nil {
		return &usageError{err}
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return &usageError{err}
	}
	f, err := inspect.SDKEnclave(cmd.Context(), file, content)
	if err != nil {
		return err
	}
	if f == nil {
		return usagef("%s is %w", file, sdk.ErrNone)
	}
	if asJSON {
		err = printJSON(cmd, f)
	} else if f.Problem() == "" {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), f.MREnclave)
	}
	if err == nil && f.Problem() != "" {
		err = fmt.Errorf("%s: %w: %s", file, errRefused, f.Problem())
	}
	return err
}
