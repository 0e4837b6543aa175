package quote

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Status is how current a platform is (Intel, "PCK Certificate Chain and Certificate Revocation List Profile" and the
// TCB info of its provisioning service).
type Status string

// Statuses.
const (
	UpToDate                     Status = "UpToDate"
	SWHardeningNeeded            Status = "SWHardeningNeeded"
	ConfigurationNeeded          Status = "ConfigurationNeeded"
	ConfigurationAndSWHardening  Status = "ConfigurationAndSWHardeningNeeded"
	OutOfDate                    Status = "OutOfDate"
	OutOfDateConfigurationNeeded Status = "OutOfDateConfigurationNeeded"
	Revoked                      Status = "Revoked"
)

// Statuses are all that there are.
var Statuses = []Status{
	UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardening, OutOfDate,
	OutOfDateConfigurationNeeded, Revoked,
}

// Accepted are the statuses that are accepted if nothing else is said. Every current server with hyper-threading is
// SWHardeningNeeded.
var Accepted = []Status{UpToDate, SWHardeningNeeded}

// UnmarshalText refuses statuses that are not known: what they mean is not, either.
func (s *Status) UnmarshalText(b []byte) error {
	if !slices.Contains(Statuses, Status(b)) {
		return fmt.Errorf("there is no status %q", b)
	}
	*s = Status(b)
	return nil
}

// converge is what the platform's status is with a quoting enclave of another one (Intel, QuoteVerificationLibrary,
// "convergeTcbStatus").
func converge(platform, qe Status) Status {
	switch {
	case platform == Revoked || qe == Revoked:
		return Revoked
	case qe == UpToDate:
		return platform
	}
	switch platform {
	case UpToDate, SWHardeningNeeded:
		return OutOfDate
	case ConfigurationNeeded, ConfigurationAndSWHardening:
		return OutOfDateConfigurationNeeded
	}
	return platform
}

// Policy is which platforms and enclaves are accepted.
type Policy struct {
	// Status are the accepted ones beside Accepted. Revoked platforms are never accepted.
	Status []Status
	// MinTCBDate is the oldest date of a platform's level that is accepted with these statuses; zero: any.
	MinTCBDate time.Time
	// AllowDebug accepts enclaves that a debugger can read.
	AllowDebug bool
	// Data is what the report must have, all 64 bytes; nil: anything.
	Data *[64]byte
	// MREnclave and MRSigner are values of which one must be there; empty: any.
	MREnclave, MRSigner []sgx.Measurement
	// AnyEnclave goes without an expectation of which enclave it is: anybody can have an authentic quote of his own.
	AnyEnclave bool
	// ProdID is the product, and MinSVN the lowest security version; nil: any.
	ProdID, MinSVN *uint16
}

// Checks are those of Quote.Verify and Result.Check, in their order.
var Checks = []string{
	CheckChain, CheckQEReport, CheckKey, CheckSignature, CheckTCBInfo, CheckQEIdentity, CheckCRL, CheckPlatform,
	CheckQE, CheckStatus, CheckEnclave,
}

// Describe says what a check compares.
func Describe(check string) string { return descriptions[check] }

var descriptions = map[string]string{
	CheckChain:      "the certificates of the platform's key lead to Intel's root, and are valid at that time",
	CheckQEReport:   "that key signs the report of the quoting enclave",
	CheckKey:        "that report names the key that signs the quote",
	CheckSignature:  "this key signs the report of the enclave",
	CheckTCBInfo:    "what Intel says of platforms of this kind is signed by Intel, and current",
	CheckQEIdentity: "so is what Intel says of its quoting enclave",
	CheckCRL:        "none of the certificates is revoked, by lists that are current",
	CheckPlatform:   "Intel lists the versions of the platform",
	CheckQE:         "the quoting enclave is Intel's, in a version that Intel lists",
	CheckStatus:     "the platform is in a state that is accepted",
	CheckEnclave:    "the enclave is initialised, not for debugging, and as it was expected",
}

// Check reports, as an Error, a platform or enclave that the policy does not accept.
func (r *Result) Check(p Policy) error {
	switch {
	case r.Status == Revoked:
		return failed(CheckStatus, "the platform is revoked")
	case slices.Contains(Accepted, r.Status):
	case !slices.Contains(p.Status, r.Status):
		return failed(CheckStatus, "the platform is %s, of %s%s", r.Status, r.TCBDate.Format(time.DateOnly),
			advisories(r.Advisories))
	case r.TCBDate.Before(p.MinTCBDate):
		return failed(CheckStatus, "the platform is %s, of %s", r.Status, r.TCBDate.Format(time.DateOnly))
	}
	report := r.Quote.Report
	flags := report.Attributes.Flags
	switch {
	case flags&sgx.FlagInit == 0 || flags&sgx.FlagMode64 == 0:
		return failed(CheckEnclave, "its attributes are %#x: no enclave that runs has these", flags)
	case report.Debug() && !p.AllowDebug:
		return failed(CheckEnclave, "a debugger can read it")
	case flags&flagProvisionKey != 0, flags&flagEInitToken != 0:
		return failed(CheckEnclave, "its attributes are %#x: it has keys for provisioning or launching enclaves", flags)
	case len(p.MREnclave) > 0 && !slices.Contains(p.MREnclave, report.MREnclave):
		return failed(CheckEnclave, "its MRENCLAVE is %s, which is not an expected one", report.MREnclave)
	case len(p.MRSigner) > 0 && !slices.Contains(p.MRSigner, report.MRSigner):
		return failed(CheckEnclave, "its MRSIGNER is %s, which is not an expected one", report.MRSigner)
	case p.ProdID != nil && *p.ProdID != report.ISVProdID:
		return failed(CheckEnclave, "it is the product %d, expected is %d", report.ISVProdID, *p.ProdID)
	case p.MinSVN != nil && *p.MinSVN > report.ISVSVN:
		return failed(CheckEnclave, "its SVN is %d, the lowest that is accepted is %d", report.ISVSVN, *p.MinSVN)
	case p.Data != nil && *p.Data != report.Data:
		return failed(CheckEnclave, "its report data is %x, expected is %x", report.Data, *p.Data)
	case len(p.MREnclave)+len(p.MRSigner) == 0 && !p.AnyEnclave:
		return failed(CheckEnclave, "authentic, not trusted: it can be of anybody's enclave. Expect --mrenclave or "+
			"--mrsigner, or accept --any-enclave")
	}
	return nil
}

func advisories(ids []string) string {
	if len(ids) == 0 {
		return ""
	}
	return ": " + strings.Join(ids, ", ")
}

var errNoLevel = errors.New("the platform is older than all levels that Intel lists")
