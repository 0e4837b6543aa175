// Package keyserver is the owner's server, which releases secrets to enclaves that prove with a quote what they are.
package keyserver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
)

// PolicyVersion is that of the files.
const PolicyVersion = 1

// Policy says to which enclave, on which platforms, which secrets are released. What no policy names is refused.
type Policy struct {
	Version int `toml:"version"`
	// Image is the one that was verified when the policy was written. It is for people.
	Image    string   `toml:"image,omitempty"`
	Enclave  Enclave  `toml:"enclave"`
	Platform Platform `toml:"platform,omitempty"`
	// Secrets are what is released, by the slot, or by SecretProv.
	Secrets map[string]Grant `toml:"secrets"`

	name  string // of the file
	slots map[release.Slot]Grant
	// secretProv is the name of the secret that is granted to SecretProv; empty: none is.
	secretProv string
	date       time.Time
}

// Enclave is which enclave it is: this one by MREnclave, or those of a signer and product from an SVN on.
type Enclave struct {
	// By is attest.ByEnclave, with MREnclave, or attest.BySigner, without it.
	By        string           `toml:"by"`
	MREnclave *sgx.Measurement `toml:"mr_enclave,omitempty"`
	MRSigner  sgx.Measurement  `toml:"mr_signer"`
	ISVProdID uint16           `toml:"isv_prod_id"`
	MinISVSVN uint16           `toml:"min_isv_svn"`
	// Flags, XFRM and MiscSelect are what the image's SIGSTRUCT wants where the masks have ones.
	Flags      Masked `toml:"flags"`
	XFRM       Masked `toml:"xfrm"`
	MiscSelect Masked `toml:"misc_select"`
	// Debug releases to enclaves that a debugger can read, and Simulated to what has no enclave at all: for tests.
	Debug     bool `toml:"debug,omitempty"`
	Simulated bool `toml:"simulated,omitempty"`
}

// Masked is a value where a mask has ones, as VALUE/MASK in hexadecimal.
type Masked struct{ Value, Mask uint64 }

// MarshalText is of encoding.TextMarshaler.
func (m Masked) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%#x/%#x", m.Value, m.Mask), nil
}

// UnmarshalText is of encoding.TextUnmarshaler.
func (m *Masked) UnmarshalText(b []byte) error {
	value, mask, _ := strings.Cut(string(b), "/")
	for _, part := range []struct {
		text string
		to   *uint64
	}{{value, &m.Value}, {mask, &m.Mask}} {
		digits, ok := strings.CutPrefix(part.text, "0x")
		n, err := strconv.ParseUint(digits, 16, 64)
		if err != nil || !ok {
			return fmt.Errorf("%q is not VALUE/MASK in hexadecimal", b)
		}
		*part.to = n
	}
	return nil
}

func (m Masked) allows(v uint64) bool { return (v^m.Value)&m.Mask == 0 }

// Platform is on which platforms.
type Platform struct {
	// AcceptTCB are statuses that are accepted beside those of quote.Accepted, if the level is of MinTCBDate
	// (YYYY-MM-DD) or later.
	AcceptTCB  []quote.Status `toml:"accept_tcb,omitempty"`
	MinTCBDate string         `toml:"min_tcb_date,omitempty"`
	// MinEvaluation is the lowest number of Intel's evaluations.
	MinEvaluation int `toml:"min_tcb_evaluation,omitempty"`
}

// Grant is what is put into a slot.
type Grant struct {
	// Secret is a name in the store; for all but tls.
	Secret string `toml:"secret,omitempty"`
	// Names are those of the certificate; for tls. What the enclave would like to be called does not count.
	Names []string `toml:"names,omitempty"`
}

// ErrPolicy says that a file is no policy.
var ErrPolicy = errors.New("not a policy of released secrets")

// Bounds of policies.
const (
	maxPolicy   = 1 << 20
	maxPolicies = 10_000
	extension   = ".toml"
)

// secretName is the name of a secret in a store. Those that begin with _ are the server's own.
var secretName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// dnsName is the name of a server in a certificate.
var dnsName = regexp.MustCompile(`^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ParsePolicy reads a policy.
func ParsePolicy(text []byte) (*Policy, error) {
	if len(text) > maxPolicy {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrPolicy, maxPolicy)
	}
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	var p Policy
	if err := d.Decode(&p); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) && len(strict.Errors) > 0 {
			return nil, fmt.Errorf("%w: the key %s is not known", ErrPolicy, strings.Join(strict.Errors[0].Key(), "."))
		}
		return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	return &p, nil
}

// check refuses policies that would release to whom nobody meant.
func (p *Policy) check() error {
	if p.Version != PolicyVersion {
		return fmt.Errorf("its version is %d, not %d", p.Version, PolicyVersion)
	}
	if p.Enclave.MRSigner == (sgx.Measurement{}) {
		return errors.New("it names no signer")
	}
	switch e := &p.Enclave; {
	case !slices.Contains(attest.Ways, e.By):
		return fmt.Errorf("by: there is %s", strings.Join(attest.Ways, ", "))
	case (e.By == attest.ByEnclave) != (e.MREnclave != nil):
		return fmt.Errorf("mr_enclave belongs to by = %q", attest.ByEnclave)
	case e.MREnclave != nil && *e.MREnclave == (sgx.Measurement{}):
		return errors.New("its MRENCLAVE is zero")
	case e.Flags.Mask == 0 || e.XFRM.Mask == 0:
		return errors.New("flags and xfrm are missing, or their masks let everything pass")
	}
	if slices.Contains(p.Platform.AcceptTCB, quote.Revoked) {
		return errors.New("revoked platforms are never accepted")
	}
	if d := p.Platform.MinTCBDate; d != "" {
		var err error
		if p.date, err = time.Parse(time.DateOnly, d); err != nil {
			return fmt.Errorf("min_tcb_date: %w", err)
		}
	}
	p.slots, p.secretProv = map[release.Slot]Grant{}, ""
	var list []release.Slot
	for text, g := range p.Secrets {
		if text == SecretProv {
			if !secretName.MatchString(g.Secret) || len(g.Names) > 0 {
				return fmt.Errorf("%s: it wants the name of a secret", text)
			}
			p.secretProv = g.Secret
			continue
		}
		s, err := release.ParseSlot(text)
		if err == nil {
			err = g.check(s)
		}
		if err != nil {
			return err
		}
		p.slots[s], list = g, append(list, s)
	}
	if len(list) == 0 && p.secretProv == "" {
		return errors.New("it releases nothing")
	}
	return release.CheckSlots(list)
}

func (g Grant) check(s release.Slot) error {
	switch {
	case s.Kind == release.KindEnv && process.Steers(s.Name):
		return fmt.Errorf("%s: such a variable decides which code runs: no secret is put there", s)
	case s.Kind != release.KindTLS && (!secretName.MatchString(g.Secret) || len(g.Names) > 0):
		return fmt.Errorf("%s: it wants the name of a secret, of letters, digits, -, . and _", s)
	case s.Kind == release.KindTLS && (g.Secret != "" || len(g.Names) == 0):
		return fmt.Errorf("%s: it wants names for the certificate", s)
	}
	for _, n := range g.Names {
		if !dnsName.MatchString(n) || len(n) > 253 {
			return fmt.Errorf("%s: %q is not a name for a certificate", s, n)
		}
	}
	return nil
}

// Text is the policy's file.
func (p *Policy) Text() ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	var b bytes.Buffer
	err := toml.NewEncoder(&b).Encode(p)
	return b.Bytes(), err
}

// ReadPolicies reads those of a directory, in the order of their names.
func ReadPolicies(dir string) (list []*Policy, err error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if filepath.Ext(f.Name()) != extension || strings.HasPrefix(f.Name(), ".") {
			continue
		}
		if len(list) == maxPolicies {
			return nil, fmt.Errorf("%s: there are more than %d policies", dir, maxPolicies)
		}
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		p, err := ParsePolicy(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(dir, f.Name()), err)
		}
		p.name = strings.TrimSuffix(f.Name(), extension)
		list = append(list, p)
	}
	return list, nil
}

// mismatch says why a policy is not about an enclave; empty: it is.
func (p *Policy) mismatch(r *quote.Report, simulated bool) string {
	e, attributes := &p.Enclave, r.Compared()
	switch {
	case simulated && !e.Simulated:
		return "the quote is a simulated one"
	case e.Simulated && !simulated:
		return "the policy is about simulated enclaves"
	case e.MREnclave != nil && *e.MREnclave != r.MREnclave:
		return "another MRENCLAVE"
	case e.MRSigner != r.MRSigner:
		return "another MRSIGNER"
	case e.ISVProdID != r.ISVProdID:
		return "another product"
	case r.ISVSVN < e.MinISVSVN:
		return fmt.Sprintf("the SVN is %d, the lowest that is accepted is %d", r.ISVSVN, e.MinISVSVN)
	case r.Debug() && !e.Debug:
		return "a debugger can read it"
	case !e.Flags.allows(attributes.Flags), !e.XFRM.allows(attributes.XFRM), !e.MiscSelect.allows(uint64(r.MiscSelect)):
		return "attributes that the image's SIGSTRUCT does not allow"
	}
	return ""
}

// platform is which platforms the policy accepts.
func (p *Policy) platform() quote.Policy {
	return quote.Policy{
		Status: p.Platform.AcceptTCB, MinTCBDate: p.date, AllowDebug: p.Enclave.Debug, AnyEnclave: true,
	}
}

// Lacks names what is wanted and not granted.
func (p *Policy) Lacks(want []release.Slot) (list []string) {
	for _, s := range want {
		if _, ok := p.slots[s]; !ok {
			list = append(list, s.String())
		}
	}
	return list
}
