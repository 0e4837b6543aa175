package verify

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Expectations say which image is trusted. The zero value trusts none: an image can be consistent, and still
// anyone could have signed it.
type Expectations struct {
	// MREnclave and MRSigner are the values of which one must be there; empty: any.
	MREnclave []sgx.Measurement `toml:"mrenclave"`
	MRSigner  []sgx.Measurement `toml:"mrsigner"`
	// AnySigner goes without an expectation of who signed or what runs.
	AnySigner bool `toml:"any_signer"`
	// SignedBy is the MRSIGNER of the signature that an image has before it is signed again; nil: any, or none.
	SignedBy *sgx.Measurement `toml:"-"`
	// MinSVN is the lowest SVN, ProdID the product; nil: any.
	MinSVN *uint16 `toml:"min_svn"`
	ProdID *uint16 `toml:"prod_id"`
	// AllowDebug allows enclaves that can be read by a debugger.
	AllowDebug bool `toml:"allow_debug"`
	// AllowSimulated allows images of the simulated runtime, which have no enclave.
	AllowSimulated bool `toml:"allow_simulated"`
	// Layout is the kind of image; empty: LayoutOurs. Of others it is not verified what starts the enclave.
	Layout string `toml:"layout"`
	// RuntimeDigest are digests of the runtime's layer, of which one must be there; empty: any.
	RuntimeDigest []string `toml:"runtime_digest"`
	// AgentDigest are SHA-256 digests, in hexadecimal, of agents' programs, of which one must be there if the image
	// gets secrets; empty: the one of this version.
	AgentDigest []string `toml:"agent_digest"`
	// SecretsFrom are the keys and authorities of servers from which the program may get secrets, as
	// release.Server.Identities has them; AnySecrets accepts all.
	SecretsFrom []string `toml:"secrets_from"`
	AnySecrets  bool     `toml:"any_secrets"`
	// AllowChanges accepts that options of the conversion change what the source would run.
	AllowChanges bool `toml:"allow_changes"`
	// AnyRuntime goes without an expectation of the loader, which is not measured.
	AnyRuntime bool `toml:"any_runtime"`
	// Runtimes is a file of known runtimes, see ReadRuntimes.
	Runtimes string `toml:"runtimes"`
	// SignerKey and AttestKey are files: a key whose MRSIGNER is expected, and one by which a statement of the
	// enclave's identity must be signed.
	SignerKey string `toml:"signer_key"`
	AttestKey string `toml:"attest_verify_key"`

	// FilesKey returns the key to encrypted files, for an image that was made from the source of a digest; nil: it is
	// not known. AnyContents accepts to sign what it would be needed for.
	FilesKey    func(source string) (protectedfs.Key, error) `toml:"-"`
	AnyContents bool                                         `toml:"-"`

	// Attested is the key of AttestKey, nil if none.
	Attested *attest.PublicKey `toml:"-"`
	// Known are the runtimes of the file Runtimes, and others that are known.
	Known []KnownRuntime `toml:"-"`
}

// ErrPolicy says that a file is no policy.
var ErrPolicy = errors.New("not a policy")

// ReadPolicy reads expectations from a TOML file. Paths of keys are as the file has them.
func ReadPolicy(file string) (Expectations, error) {
	var e Expectations
	text, err := os.ReadFile(file)
	if err != nil {
		return e, err
	}
	d := toml.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		var strict *toml.StrictMissingError
		var at *toml.DecodeError
		switch {
		case errors.As(err, &strict) && len(strict.Errors) > 0:
			line, _ := strict.Errors[0].Position()
			return e, fmt.Errorf("%s:%d: %w: the key %s is not known", file, line, ErrPolicy,
				strings.Join(strict.Errors[0].Key(), "."))
		case errors.As(err, &at):
			line, _ := at.Position()
			return e, fmt.Errorf("%s:%d: %w: %w", file, line, ErrPolicy, err)
		}
		return e, fmt.Errorf("%s: %w: %w", file, ErrPolicy, err)
	}
	var given map[string]any
	if err := toml.Unmarshal(text, &given); err != nil {
		return e, fmt.Errorf("%s: %w: %w", file, ErrPolicy, err)
	}
	for key, value := range given { // what is expected would not be looked at
		if list, ok := value.([]any); ok && len(list) == 0 || value == "" {
			return e, fmt.Errorf("%s: %w: the key %s has no value", file, ErrPolicy, key)
		}
	}
	return e, nil
}

// identity reports whether something is expected of who signed or what runs.
func (e Expectations) identity() bool {
	return len(e.MREnclave) > 0 || len(e.MRSigner) > 0 || e.Attested != nil
}

// expected compares the image with the expectations.
func (v *verification) expected(e Expectations, compared bool) {
	c := v.c
	v.expectItself(e)
	v.expectKind(e)
	if c.Layout == inspect.LayoutOurs && (!c.Simulated() || len(e.RuntimeDigest)+len(e.Known) > 0) {
		v.vouched(e)
	} else if c.Layout != inspect.LayoutOurs && (len(e.RuntimeDigest) > 0 || len(e.Known) > 0) {
		v.add(CheckRuntimeIs, "the runtime's layer is an expected one", []string{"an image of this kind has none"})
	}
	v.vouchedAgent(e)
	v.expectSecrets(e, compared)
	v.expectPlain(e, compared)
	if e.Attested != nil {
		signed := slices.ContainsFunc(v.sound, func(f attest.Found) bool {
			return f.Verified && f.Statement.PredicateType == attest.IdentityType
		})
		v.compare(CheckAttestedBy, true, "the enclave's identity is stated by the holder of the expected key", signed,
			"no statement of it is signed by this key")
	}
	v.expectIdentity(e)
}

// expectItself compares the enclave of the image with what is expected of it, and that it is one.
func (v *verification) expectItself(e Expectations) {
	c := v.c
	v.expectEnclave(e, inspect.EnclaveFile{
		Structure: c.SigStruct, Enclave: attest.Enclave{
			MREnclave: c.MREnclave, MRSigner: c.MRSigner, ISVProdID: c.ISVProdID, ISVSVN: c.ISVSVN,
			DebugEnclave: c.Debug,
		},
	})
	if v.signing && (e.SignedBy == nil || *e.SignedBy != c.MRSigner) {
		v.numbers(e)
	}
	detail := "there is an enclave"
	if v.c.Simulated() && e.AllowSimulated {
		detail = "there is no enclave, and that was accepted"
		v.waive("allow-simulated")
	}
	v.compare(CheckSimulated, c.Simulated(), detail, e.AllowSimulated,
		"there is none: the runtime is the simulated one, and nothing is confidential. --allow-simulated accepts it")
}

// numbers wants product and security version to be expected that a signer would make his own: whoever has prepared the
// image chose them.
func (v *verification) numbers(e Expectations) {
	if n := v.c.ISVProdID; n != 0 && e.ProdID == nil {
		v.undecided(CheckProduct, fmt.Sprintf("the product number is %d: if it is yours, say --prod-id %d", n, n))
	}
	const what = "the SVN is the one that was said"
	switch n := v.c.ISVSVN; {
	case n != 0 && e.MinSVN == nil:
		v.undecided(CheckSVN, fmt.Sprintf("the SVN is %d, below which nothing replaces it: if it is yours, say "+
			"--min-svn %d", n, n))
	case e.MinSVN != nil && n > *e.MinSVN:
		v.add(CheckSVN, what, []string{fmt.Sprintf("it is %d, not %d: whoever signs it says so, and no lower one "+
			"replaces it. If it is yours, say --min-svn %d", n, *e.MinSVN, n)})
	}
}

// compare adds a check that was asked for.
func (v *verification) compare(name string, asked bool, detail string, ok bool, problem string) {
	switch {
	case !asked:
	case ok:
		v.add(name, detail, nil)
	default:
		v.add(name, detail, []string{problem})
	}
}

// waive notes that something was accepted which was not checked, or is not as it should be, because of a flag.
func (v *verification) waive(flag string) {
	if r := v.report; !slices.Contains(r.Waived, flag) {
		r.Waived = append(r.Waived, flag)
		slices.Sort(r.Waived)
	}
}

// expectEnclave compares an enclave with what is expected of it.
func (v *verification) expectEnclave(e Expectations, f inspect.EnclaveFile) {
	of := ""
	if f.Path != "" {
		of = f.Path + ": "
	}
	v.compare(CheckMREnclave, len(e.MREnclave) > 0, of+"MRENCLAVE is an expected one",
		slices.Contains(e.MREnclave, f.MREnclave),
		fmt.Sprintf("it is %s, expected is %s", f.MREnclave, list(e.MREnclave)))
	v.compare(CheckMRSigner, len(e.MRSigner) > 0, of+"MRSIGNER is an expected one",
		slices.Contains(e.MRSigner, f.MRSigner),
		fmt.Sprintf("it is %s, expected is %s", f.MRSigner, list(e.MRSigner)))
	if f.Structure == nil {
		if e.MinSVN != nil || e.ProdID != nil {
			v.add(CheckSVN, of+"product and SVN are the expected ones", []string{"there is no SIGSTRUCT that has them"})
		}
		v.skip(CheckDebug, of+"there is no SIGSTRUCT that says whether a debugger can read the enclave")
		return
	}
	if e.MinSVN != nil {
		v.compare(CheckSVN, true, fmt.Sprintf("%sthe SVN is %d or higher", of, *e.MinSVN), f.ISVSVN >= *e.MinSVN,
			fmt.Sprintf("it is %d", f.ISVSVN))
	}
	if e.ProdID != nil {
		v.compare(CheckProduct, true, fmt.Sprintf("%sthe product number is %d", of, *e.ProdID),
			f.ISVProdID == *e.ProdID, fmt.Sprintf("it is %d", f.ISVProdID))
	}
	if v.c.Simulated() && !f.MayDebug() {
		v.skip(CheckDebug, "there is no enclave, and whoever owns the machine can read the program")
		return
	}
	debug := of + "the enclave cannot be read by a debugger"
	if f.DebugEnclave && e.AllowDebug {
		debug = of + "it is a debug enclave, which keeps no secrets, and that was accepted"
		v.waive("allow-debug")
	}
	problem := "it is a debug enclave, which keeps no secrets: --allow-debug accepts it"
	if !f.DebugEnclave {
		if f.MayDebug() && e.AllowDebug {
			debug = of + "the host may start it as a debug enclave, which its quotes tell, and that was accepted"
			v.waive("allow-debug")
		}
		problem = "the signature leaves DEBUG to the host (DisableDebug is 0): a debugger can read it then, and its " +
			"quotes tell that. If they are looked at, --allow-debug accepts it"
	}
	v.compare(CheckDebug, true, debug, !f.DebugEnclave && !f.MayDebug() || e.AllowDebug, problem)
}

// expectKind compares the kind of image with the one that is expected.
func (v *verification) expectKind(e Expectations) {
	c, expected := v.c, cmp.Or(e.Layout, inspect.LayoutOurs)
	if c.Layout == expected && expected != inspect.LayoutOurs {
		v.waive("layout")
	}
	v.compare(CheckLayout, c.Layout != inspect.LayoutOurs || c.Layout != expected,
		"the image is of the kind that was expected; what starts its enclave was not verified", c.Layout == expected,
		fmt.Sprintf("it is of the kind %q, expected is %q. Of images of other programs, what starts the enclave and "+
			"what else runs is not verified: --layout %s accepts that", c.Layout, expected, c.Layout))
}

// maxChanges is how many changes are told, which all are.
const maxChanges = 1000

// expectPlain wants what runs to be what the source says. Options can have replaced the program, its arguments, its
// environment and its files, and the recipe that says so is whatever the image holds: whoever expects a source, or
// signs for one, does not expect another program.
func (v *verification) expectPlain(e Expectations, compared bool) {
	const plain = "what runs is what the image that was converted says"
	switch {
	case v.c.Recipe == nil:
	case len(v.changes) == 0:
		v.add(CheckChanges, plain+": no option of the conversion changes it", nil)
	case slices.Contains(e.MREnclave, v.c.MREnclave):
		v.skip(CheckChanges, "options of the conversion change what runs, and this MRENCLAVE is an expected one")
	case e.AllowChanges:
		v.waive("allow-changes")
		v.skip(CheckChanges, "options of the conversion change what runs, and that was accepted")
	case compared:
		v.undecided(CheckChanges, "options of the conversion change what the source would run: expect what it is with "+
			"--mrenclave, or accept --allow-changes")
	default:
		v.skip(CheckChanges, "options of the conversion change what the source would run")
	}
	if len(v.changes) > maxChanges {
		v.add(CheckChanges, plain,
			[]string{fmt.Sprintf("there are %d changes, more than anybody would read", len(v.changes))})
	} else if len(v.changes) > 0 {
		v.report.Checks[len(v.report.Checks)-1].Problems = v.changes
	}
}

// expectIdentity wants something to be expected of who signed or what runs.
func (v *verification) expectIdentity(e Expectations) {
	if e.AnySigner && !e.identity() {
		v.waive("any-signer")
	}
	v.compare(CheckAnyIdentity, !e.AnySigner, "it was said who must have signed, or what must run", e.identity(),
		"consistent, not trusted: anyone could have signed this. Expect --mrsigner, --signer-key, --mrenclave or "+
			"--attest-verify-key, or accept --any-signer")
}

// vouched checks that somebody vouches for the runtime's layer. The loader in it is not measured: it runs outside the
// enclave, where it cannot read what is in it, but sees all that is given to the container.
func (v *verification) vouched(e Expectations) {
	have := v.s.Bundle.Layer.Digest
	known := slices.IndexFunc(e.Known, func(k KnownRuntime) bool { return k.Layer == have })
	stated := slices.ContainsFunc(v.sound, func(f attest.Found) bool {
		var said attest.Identity
		return f.Verified && f.Statement.PredicateType == attest.IdentityType &&
			json.Unmarshal(f.Statement.Predicate, &said) == nil && said.Runtime.Digest == have
	})
	switch {
	case slices.Contains(e.RuntimeDigest, have):
		v.add(CheckRuntimeIs, "the runtime's layer is an expected one", nil)
	case known >= 0:
		v.add(CheckRuntimeIs, "the runtime's layer is known: "+e.Known[known].Name, nil)
	case len(e.Known) > 0:
		v.add(CheckRuntimeIs, "the runtime's layer is a known one",
			[]string{fmt.Sprintf("it is %s, which is not one of the %d known ones", have, len(e.Known))})
	case len(e.RuntimeDigest) > 0:
		v.add(CheckRuntimeIs, "the runtime's layer is an expected one",
			[]string{fmt.Sprintf("it is %s, expected is %s", have, list(e.RuntimeDigest))})
	case stated:
		v.add(CheckRuntimeIs, "the holder of the expected key states this runtime", nil)
	case e.AnyRuntime:
		v.waive("any-runtime")
		v.skip(CheckRuntimeIs, "nobody vouched for the loader, "+have+", which is not measured, and that was accepted")
	case v.signing:
		v.undecided(CheckRuntimeIs,
			"nobody vouched for the runtime, whose code runs in the enclave that is signed: expect "+
				"its layer with --runtime-digest "+have+", or accept --any-runtime")
	default:
		v.undecided(CheckRuntimeIs, "nobody vouched for the loader, which is not measured: expect its layer with "+
			"--runtime-digest "+have+", or accept --any-runtime")
	}
}

func list[T any](values []T) string {
	if len(values) == 1 {
		return fmt.Sprint(values[0])
	}
	return fmt.Sprintf("one of %v", values)
}
