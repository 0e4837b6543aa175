package verify

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
)

// Checks that Attested adds, beside those of package quote, whose names begin with quotePrefix.
const (
	CheckQuoteImage = "quote-image"
	CheckQuoteData  = "quote-data"
	CheckEndpoint   = "endpoint"
	quotePrefix     = "quote-"
)

// Running is what shows which enclave runs: a quote, and what came of verifying it.
type Running struct {
	// Endpoint is the server that showed the quote in its certificate; empty: the quote is from elsewhere.
	Endpoint string
	// EndpointErr says why the server's certificate does not show in which enclave its key is.
	EndpointErr error
	Quote       *quote.Quote
	// Result is nil, and Err says why, if the quote is not authentic.
	Result *quote.Result
	Err    error
	// Simulated says that the quote is by the platform that everybody knows: it shows nothing, and is compared with
	// images that have no enclave alone.
	Simulated bool
	// Policy is which platforms are accepted, and what report data is expected. Which enclave it must be is the image's
	// to say.
	Policy quote.Policy
	// BySigner accepts enclaves of the image's signer and product in its security version or a higher one.
	BySigner bool
}

// Quoted is a quote that was compared with an image.
type Quoted struct {
	Endpoint string `json:"endpoint,omitempty"`
	// Simulated says that anybody can make such a quote.
	Simulated bool `json:"simulated,omitempty"`
	quote.Description
}

// Attested adds to the report whether what runs is this image. The image's own checks stay as they are.
func (r *Report) Attested(a Running) {
	v := &verification{report: r, c: r.Converted}
	if a.Simulated {
		v.about = "SIMULATED, which anybody can make: "
	}
	defer func() { r.Trusted = r.Trusted && len(r.Unmet()) == 0 }()
	if a.Endpoint != "" {
		detail := v.about +
			fmt.Sprintf("%s has the key of its certificate, and the evidence in that names the key", a.Endpoint)
		if a.EndpointErr == nil && a.Policy.Data == nil {
			a.EndpointErr = errors.New("nobody said what the quote must have as report data")
		}
		if a.EndpointErr != nil {
			v.add(CheckEndpoint, detail, []string{a.EndpointErr.Error()})
			return
		}
		v.add(CheckEndpoint, detail, nil)
	}
	r.Quote = &Quoted{a.Endpoint, a.Simulated, a.Quote.Describe(a.Result)}
	if !v.authentic(a) {
		v.skip(CheckQuoteImage, v.about+"a quote that is not accepted is not compared with the image")
		return
	}
	how := "MRENCLAVE"
	if a.BySigner {
		how = "its signer and product, in its security version or a higher one"
	}
	detail := fmt.Sprintf("the quote is of this image's enclave: %s, and the signed attributes", how)
	if r := a.Quote.Report; r.ConfigID != [64]byte{} || r.ConfigSVN != 0 {
		detail += "; CONFIGID and CONFIGSVN, which the host has chosen, are compared with nothing"
	}
	problems := v.otherEnclave(a)
	v.add(CheckQuoteImage, v.about+detail, problems)
	if len(problems) == 0 && !v.measures(a.Quote.Report.MREnclave) {
		v.waive("by")
	}
	switch {
	case a.Endpoint != "":
	case a.Policy.Data == nil:
		v.skip(CheckQuoteData,
			v.about+"no report data is expected: the quote can be of any time since the enclave was made")
	default:
		v.add(CheckQuoteData, v.about+"the report data is the expected one", nil)
	}
}

// authentic adds the checks of the quote up to the first that fails, and reports whether there was none.
func (v *verification) authentic(a Running) bool {
	err := a.Err
	if err == nil {
		policy := a.Policy
		policy.AnyEnclave = true // which one it is, is compared afterwards
		err = a.Result.Check(policy)
	}
	var failed *quote.Error
	if err != nil && (!errors.As(err, &failed) || !slices.Contains(quote.Checks, failed.Check)) {
		v.add(quotePrefix+quote.CheckFormat, v.about+"the quote can be verified", []string{err.Error()})
		return false
	}
	for _, name := range quote.Checks {
		detail := v.about + quote.Describe(name)
		if name == quote.CheckStatus && a.Result != nil {
			detail += fmt.Sprintf(": %s, of %s, by Intel's evaluation %d", a.Result.Status,
				a.Result.TCBDate.Format(time.DateOnly), a.Result.Evaluation)
			if len(a.Result.Advisories) > 0 {
				detail += ", with " + strings.Join(a.Result.Advisories, ", ")
			}
		}
		if a.Simulated {
			detail = strings.ReplaceAll(detail, "Intel", "the simulation")
		}
		if failed != nil && failed.Check == name {
			v.add(quotePrefix+name, detail, []string{failed.Err.Error()})
			return false
		}
		if name == quote.CheckStatus && !slices.Contains(quote.Accepted, a.Result.Status) {
			v.waive("accept-tcb")
		}
		v.add(quotePrefix+name, detail, nil)
	}
	return true
}

// measures reports whether an MRENCLAVE is that of an enclave of the image.
func (v *verification) measures(m sgx.Measurement) bool {
	return v.c.MREnclave == m || slices.ContainsFunc(v.report.Enclaves, func(e inspect.EnclaveFile) bool {
		return e.MREnclave == m
	})
}

// otherEnclave says why a quote is of no enclave of the image; nil if it is of one.
func (v *verification) otherEnclave(a Running) []string {
	enclaves := v.report.Enclaves
	if a.Simulated && len(enclaves) > 0 {
		return []string{"the quote is a simulated one, and the image has enclaves"}
	}
	if len(enclaves) == 0 {
		c := v.c
		if c.Simulated() && !a.Simulated {
			return []string{"the image is of the simulated runtime: no CPU reports its enclave"}
		}
		if a.Simulated && !c.Simulated() {
			return []string{"the quote is a simulated one, and the image has an enclave"}
		}
		if c.SigStruct == nil {
			return []string{"the image has no valid SIGSTRUCT, so that no CPU starts its enclave"}
		}
		enclaves = []inspect.EnclaveFile{{
			Structure: c.SigStruct,
			Enclave: attest.Enclave{
				MREnclave: c.MREnclave, MRSigner: c.MRSigner, ISVProdID: c.ISVProdID, ISVSVN: c.ISVSVN,
			},
		}}
	}
	var all []string
	for _, e := range enclaves {
		problems := differs(&a.Quote.Report, e, a.BySigner)
		if len(problems) == 0 {
			return nil
		}
		for _, p := range problems {
			if e.Path != "" {
				p = e.Path + ": " + p
			}
			all = append(all, p)
		}
	}
	return all
}

// differs says in what a report is not one of an enclave.
func differs(got *quote.Report, e inspect.EnclaveFile, bySigner bool) (problems []string) {
	if !bySigner && got.MREnclave != e.MREnclave {
		problems = append(problems, fmt.Sprintf("MRENCLAVE is %s, the image's is %s", got.MREnclave, e.MREnclave))
	}
	if got.MRSigner != e.MRSigner {
		problems = append(problems, fmt.Sprintf("MRSIGNER is %s, the image's is %s", got.MRSigner, e.MRSigner))
	}
	if got.ISVProdID != e.ISVProdID {
		problems = append(problems, fmt.Sprintf("the product is %d, the image's is %d", got.ISVProdID, e.ISVProdID))
	}
	if got.ISVSVN < e.ISVSVN || !bySigner && got.ISVSVN != e.ISVSVN {
		problems = append(problems, fmt.Sprintf("the SVN is %d, the image's is %d", got.ISVSVN, e.ISVSVN))
	}
	s := e.Structure
	if s == nil {
		return append(problems, "the image's enclave has no SIGSTRUCT that says which attributes it may have")
	}
	if got.FamilyID != s.FamilyID || got.ExtProdID != s.ExtProdID {
		problems = append(problems, fmt.Sprintf("family and extended product are %x and %x, the image's are %x and %x",
			got.FamilyID, got.ExtProdID, s.FamilyID, s.ExtProdID))
	}
	if err := s.CheckEnclave(s.MREnclave, got.Compared(), got.MiscSelect); err != nil {
		problems = append(problems, err.Error())
	}
	return problems
}
