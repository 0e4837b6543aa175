package libos

import (
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
)

// EnclaveOptions are the user's decisions about the enclave, beside its size and threads. The zero value decides
// nothing.
type EnclaveOptions struct {
	EDMM  bool // the heap is added while the enclave runs
	Debug bool // a debugger can read the enclave
	// ISVProdID and ISVSVN are in the signature (SDM 3D, SIGSTRUCT).
	ISVProdID, ISVSVN uint16
	Attestation       string // "none" or "dcap"
	LogLevel          string // of the library OS
}

// Check reports what is wrong with the options, as a launch.OptionError.
func (o EnclaveOptions) Check() error {
	for _, c := range []struct {
		option, value string
		known         []string
	}{
		{"attestation", o.Attestation, []string{"none", "dcap"}},
		{"runtime-log-level", o.LogLevel, []string{"none", "error", "warning", "debug", "trace", "all"}},
	} {
		if err := launch.OneOf(c.option, c.value, c.known...); err != nil {
			return err
		}
	}
	return nil
}

// Findings are what users should know of these options.
func (o EnclaveOptions) Findings() []finding.Finding {
	if !o.Debug {
		return nil
	}
	return []finding.Finding{finding.New(finding.Debug, finding.Warning, "",
		"the enclave can be read with a debugger: it keeps no secrets")}
}
