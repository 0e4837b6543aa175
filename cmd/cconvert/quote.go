package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/sgx/quote"
)

func newQuote() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "quote",
		Short: "Look at quotes, by which a CPU says what runs in an enclave, and verify them",
		Long: `Look at quotes, by which an SGX CPU tells a stranger what runs in an enclave, and verify them: DCAP
quotes of versions 3 and 4, as a file with the bytes, or with their hexadecimal form.`,
		Args: exactArgs("COMMAND"),
	}
	cmd.AddCommand(newQuoteInspect(), newQuoteVerify(), newQuoteCollateral())
	return cmd
}

// quoteFacts describes a quote for programs.
type quoteFacts struct {
	Version uint16 `json:"version"`
	quote.Description
	Debug      bool   `json:"debug_enclave"`
	Attributes string `json:"attributes"`
	CPUSVN     string `json:"cpu_svn"`
	// Of a verified quote.
	Checks  []quoteCheck `json:"checks,omitempty"`
	Trusted bool         `json:"trusted"`
}

type quoteCheck struct {
	Name    string `json:"name"`
	Status  string `json:"status"`
	Problem string `json:"problem,omitempty"`
}

// factsOf describes a quote; the result is nil if it is not known to be authentic.
func factsOf(q *quote.Quote, r *quote.Result) quoteFacts {
	report := &q.Report
	return quoteFacts{
		Version: q.Version, Description: q.Describe(r), Debug: report.Debug(),
		CPUSVN:     hex.EncodeToString(report.CPUSVN[:]),
		Attributes: fmt.Sprintf("flags %#x, XFRM %#x", report.Attributes.Flags, report.Attributes.XFRM),
	}
}

const maxQuoteFile = 1 << 20

// readQuote reads a quote from a file.
func readQuote(name string) (*quote.Quote, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxQuoteFile+1))
	if err != nil {
		return nil, err
	}
	text := strings.TrimPrefix(strings.Join(strings.Fields(string(b)), ""), "0x")
	if plain, err := hex.DecodeString(text); err == nil && len(plain) > 0 {
		b = plain
	}
	q, err := quote.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s is %w: %w", name, errRefused, err)
	}
	return q, nil
}

func newQuoteInspect() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "inspect FILE",
		Short:   "Show what a quote says. Nothing is verified",
		Example: `  cconvert quote inspect app.quote`,
		Args:    exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := readQuote(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, factsOf(q, nil))
			}
			printQuote(cmd.OutOrStdout(), factsOf(q, nil))
			fmt.Fprintln(cmd.OutOrStdout(), "\nNothing of it was verified: anybody can have written it.")
			return nil
		},
	}
	addJSON(cmd.Flags(), &asJSON, "print JSON")
	return cmd
}

func printQuote(w io.Writer, f quoteFacts) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, l := range [][2]string{
		{"version", fmt.Sprint(f.Version)}, {"MRENCLAVE", f.MREnclave.String()}, {"MRSIGNER", f.MRSigner.String()},
		{"product", fmt.Sprintf("%d, security version %d%s", f.ISVProdID, f.ISVSVN,
			when(f.Debug, ", DEBUG: keeps no secrets"))},
		{"attributes", f.Attributes}, {"report data", f.ReportData}, {"CPU SVN", f.CPUSVN},
	} {
		fmt.Fprintf(t, "%s\t%s\n", l[0], l[1])
	}
	t.Flush()
}

// quotePolicyFlags are about which quotes are trusted.
type quotePolicyFlags struct {
	platformFlags
	mrEnclave, mrSigner    []string
	reportData             string
	prodID, minSVN         int
	allowDebug, anyEnclave bool
}

func (p *quotePolicyFlags) policy() (policy quote.Policy, err error) {
	if policy, err = p.platformFlags.policy(); err != nil {
		return policy, err
	}
	policy.AllowDebug, policy.AnyEnclave = p.allowDebug, p.anyEnclave
	if policy.MREnclave, err = measurements("mrenclave", p.mrEnclave); err != nil {
		return policy, err
	}
	if policy.MRSigner, err = measurements("mrsigner", p.mrSigner); err != nil {
		return policy, err
	}
	if policy.ProdID, err = number("prod-id", p.prodID); err != nil {
		return policy, err
	}
	if policy.MinSVN, err = number("min-svn", p.minSVN); err != nil {
		return policy, err
	}
	policy.Data, err = reportData(p.reportData)
	return policy, err
}

// reportData reads the flag of this name; nil: it was not set.
func reportData(text string) (*[64]byte, error) {
	if text == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 64 {
		return nil, usagef("--report-data: 64 bytes in hexadecimal expected")
	}
	data := [64]byte(b)
	return &data, nil
}

func newQuoteVerify() *cobra.Command {
	var p quotePolicyFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check that a quote is authentic, its platform current, and of which enclave it is",
		Long: `Check that a quote is authentic: its signatures up to Intel's root, what Intel says of the
platform and its quoting enclave, and that no certificate is revoked. Then compare the enclave
with what is expected. What Intel publishes (the collateral) is fetched from its service, or from
a cache of that at another address, and kept until it expires. Or it is in a file, one JSON
object as dcap-qvl writes it, or in a directory with tcb_info.json, tcb_info_issuer_chain.pem,
qe_identity.json, pck_crl.der, root_ca_crl.der and qe_identity_issuer_chain.pem, as Intel's
service answers.

Platforms that are UpToDate or SWHardeningNeeded are accepted, others by --accept-tcb. The exit
code is 4 if a check failed, which is named, or if nobody said which enclave is expected.`,
		Example: `  cconvert quote verify app.quote --collateral collateral.json --any-enclave \
    --at 2025-07-19T10:00:00Z --accept-tcb ConfigurationAndSWHardeningNeeded`,
		Args: exactArgs("FILE"),
	}
	f := cmd.Flags()
	p.add(f)
	f.StringSliceVar(&p.mrEnclave, "mrenclave", nil, "expected MRENCLAVE (repeatable: one of them)")
	f.StringSliceVar(&p.mrSigner, "mrsigner", nil, "expected MRSIGNER (repeatable: one of them)")
	f.IntVar(&p.prodID, "prod-id", -1, "expected product number")
	f.IntVar(&p.minSVN, "min-svn", -1, "lowest security version number")
	f.StringVar(&p.reportData, "report-data", "", "expected report data, 64 bytes in hexadecimal")
	f.BoolVar(&p.allowDebug, "allow-debug", false, "accept enclaves that a debugger can read")
	f.BoolVar(&p.anyEnclave, "any-enclave", false, "accept whatever enclave it is of")
	addJSON(f, &asJSON, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		policy, err := p.policy()
		if err != nil {
			return err
		}
		q, r, _, err := p.verifyFile(cmd.Context(), args[0])
		var unproven *quote.Error
		if q == nil || err != nil && !errors.As(err, &unproven) {
			return err
		}
		facts, err := checkQuote(q, r, err, policy)
		if asJSON {
			if err := printJSON(cmd, facts); err != nil {
				return err
			}
		} else {
			printVerifiedQuote(cmd.OutOrStdout(), facts)
		}
		return err
	}
	return cmd
}

// checkQuote lists the checks up to the first that fails.
func checkQuote(q *quote.Quote, r *quote.Result, err error, policy quote.Policy) (quoteFacts, error) {
	facts := factsOf(q, r)
	if err == nil {
		err = r.Check(policy)
	}
	var wrong *quote.Error
	for _, name := range quote.Checks {
		if errors.As(err, &wrong) && wrong.Check == name {
			facts.Checks = append(facts.Checks, quoteCheck{name, "failed", wrong.Err.Error()})
			return facts, fmt.Errorf("the quote is %w: %s", errRefused, name)
		}
		facts.Checks = append(facts.Checks, quoteCheck{Name: name, Status: "ok"})
	}
	facts.Trusted = err == nil
	return facts, err
}

func printVerifiedQuote(w io.Writer, f quoteFacts) {
	printQuote(w, f)
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range f.Checks {
		fmt.Fprintf(t, "%s\t%s\t%s%s\n", c.Status, c.Name, quote.Describe(c.Name),
			printable(when(c.Problem != "", ": ")+c.Problem))
	}
	t.Flush()
	if f.Status != "" {
		fmt.Fprintf(w, "\nThe platform, of the kind %s, is %s, of %s, by Intel's evaluation %d%s. What Intel says "+
			"expires at %s.\n", f.FMSPC, f.Status, f.TCBDate, f.Evaluation,
			when(len(f.Advisories) > 0, ", with "+strings.Join(f.Advisories, ", ")), f.Expires)
	}
	if f.Trusted {
		fmt.Fprintln(w, "\ntrusted: it is authentic, and of an enclave that was expected, or accepted whatever it is")
	}
}

func newQuoteCollateral() *cobra.Command {
	var p platformFlags
	cmd := &cobra.Command{
		Use:   "collateral FILE",
		Short: "Fetch what Intel publishes of the platform of a quote, to verify it elsewhere or later",
		Long: `Fetch what Intel publishes of the platform of a quote, and print it as one JSON object, which
--collateral reads: to verify the quote without a network, or after it expires, with --at. The
quote is verified as by "cconvert quote verify --any-enclave"; whether the platform is current
does not matter.`,
		Example: `  cconvert quote collateral app.quote --at 2025-07-19T10:00:00Z \
    --collateral https://pccs.example/sgx/certification/v4`,
		Args: exactArgs("FILE"),
	}
	p.addCollateral(cmd.Flags())
	p.addTime(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q, _, c, err := p.verifyFile(cmd.Context(), args[0])
		var unproven *quote.Error
		if q != nil && errors.As(err, &unproven) {
			return fmt.Errorf("the quote is %w: %w", errRefused, err)
		}
		if err != nil {
			return err
		}
		text, err := c.Document()
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(append(text, '\n'))
		return err
	}
	return cmd
}
