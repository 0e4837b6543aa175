package convert

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"time"

	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/indexrepo"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Options say what to convert and how.
type Options struct {
	Source image.Reference
	// Found is the source, if it was looked up already; nil: it is looked up.
	Found   *image.Found
	Backend libos.Backend
	Runtime libos.LoadOptions
	Launch  launch.Options
	Enclave libos.EnclaveOptions
	// Overlay is the user's own configuration of the library OS, see libos.Backend.CheckOverlay; empty: there is none.
	Overlay string
	// Encrypt says how the files are encrypted that Launch.Encrypt names; nil if it names none.
	Encrypt *Encryption
	// AgentFile is the program that gets secrets; empty: the backend's.
	AgentFile string
	// Date is what the SIGSTRUCT says of the day; nil: that of the source image's creation.
	Date *sgx.Date
	// Target is where the result will go, if that is known: what does not depend on the signature is sent
	// while the enclave is measured.
	Target *image.Reference
	// StoreOptions say how images are fetched, and the output stored.
	StoreOptions
	// Jobs is how many layers are read at a time; 0: as many as there are processors.
	Jobs int
	// Cache keeps what is known of layers between runs; nil: nothing is kept.
	Cache cache.Store
	// Shared is where others keep what they know of layers; nil: nobody is asked or told.
	Shared *indexrepo.Repo
	// TrustTOC takes what is in a layer from the table of contents in eStargz and zstd:chunked.
	TrustTOC bool
	// Inflate says what inflates gzip.
	Inflate inflate.Inflater
	// Limits bound what the image may hold.
	Limits rootfs.Limits
	// Observer is told how the conversion gets on; nil: nobody.
	Observer Observer
}

// check reports what is wrong with the options, as a launch.OptionError.
func (o Options) check() error {
	if err := o.Launch.Check(); err != nil {
		return err
	}
	if err := o.Enclave.Check(); err != nil {
		return err
	}
	if o.Launch.Secrets != nil && o.Enclave.Attestation != "dcap" {
		return &launch.OptionError{
			Option: "attestation", Value: o.Enclave.Attestation, Why: "the agent that gets secrets needs dcap",
		}
	}
	runtime, ok, err := o.Backend.Image(o.Runtime)
	if err == nil && ok && o.Target != nil && o.Target.Same(runtime) {
		err = fmt.Errorf("%w: %s", ErrRuntime, o.Target)
	}
	if err == nil && o.Target != nil {
		err = o.Check(o.Source, *o.Target)
	}
	return err
}

// agent packs what gets secrets; nil if nothing does.
func (o Options) agent() (*libos.Agent, error) {
	if o.Launch.Secrets == nil {
		return nil, nil
	}
	program, err := o.agentProgram()
	if err != nil {
		return nil, err
	}
	return libos.NewAgent(program)
}

func (o Options) agentProgram() ([]byte, error) {
	if o.AgentFile == "" {
		return o.Backend.Agent()
	}
	program, err := libos.ReadAgent(o.AgentFile)
	if err != nil {
		return nil, fmt.Errorf("the agent: %w", err)
	}
	return program, nil
}

// ErrRuntime says that a result would replace the image that has the runtime.
var ErrRuntime = errors.New("the result would replace the runtime")

// begin checks the options, and fills in what may be left out.
func (o *Options) begin() error {
	if o.Observer == nil {
		o.Observer = nobody{}
	}
	return o.check()
}

func (o Options) jobs() int {
	if o.Jobs > 0 {
		return o.Jobs
	}
	return runtime.GOMAXPROCS(0)
}

// Observer is told how a conversion gets on. Its methods are called from several goroutines.
type Observer interface {
	// Stage begins a step, named for people.
	Stage(name string)
	// Layer returns a reader that counts what is read of a layer; size is -1 if it is not known.
	Layer(digest string, size int64, r io.ReadCloser) io.ReadCloser
}

type nobody struct{}

func (nobody) Stage(string)                                           {}
func (nobody) Layer(_ string, _ int64, r io.ReadCloser) io.ReadCloser { return r }

// Result describes a conversion for programs. The names of SGX's values are those of Gramine's tool to view SIGSTRUCTs.
type Result struct {
	Source       string          `json:"source"`
	Output       Output          `json:"output"`
	Runtime      Runtime         `json:"runtime"`
	MREnclave    sgx.Measurement `json:"mr_enclave"`
	MRSigner     sgx.Measurement `json:"mr_signer"`
	ISVProdID    uint16          `json:"isv_prod_id"`
	ISVSVN       uint16          `json:"isv_svn"`
	DebugEnclave bool            `json:"debug_enclave"`
	EnclaveSize  uint64          `json:"enclave_size"`
	MaxThreads   int             `json:"max_threads"`
	EDMM         bool            `json:"edmm"`
	TrustedFiles int             `json:"trusted_files"`
	// Encrypted are the image's files that are encrypted; nil if there are none.
	Encrypted *Encrypted `json:"encrypted,omitempty"`
	// Trust is the policy by which they were chosen, and LeftOut how many files of the image it leaves out.
	Trust      string `json:"trust"`
	LeftOut    int    `json:"left_out"`
	Profile    string `json:"profile"`
	ProfileWhy string `json:"profile_reason"`
	SizeWhy    string `json:"size_reason"`
	// StartSeconds is how long the runtime is expected to read the list of files at each start.
	StartSeconds float64            `json:"start_seconds"`
	ManifestSize int                `json:"manifest_bytes"`
	Layers       LayerCounts        `json:"layers"`
	Findings     []finding.Finding  `json:"findings"`
	Timings      map[string]float64 `json:"timings"` // seconds by step
	// Target is where the image went, as it was asked for.
	Target string `json:"target"`
	// HostArgs says that the host chooses the arguments.
	HostArgs bool `json:"insecure_args"`
	// Referrers were copied to the target's repository. They speak of the source, not of the result.
	Referrers []registry.Carried `json:"referrers,omitempty"`
}

// Encrypted is what there is of encrypted files.
type Encrypted struct {
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"` // of ciphertext
	Key   string `json:"key"`   // its name in the manifest
	KeyID string `json:"key_id"`
}

// Output is where the converted image is.
type Output struct {
	// Ref names the image by its digest; in an archive or daemon, by its ID.
	Ref        string `json:"ref"`
	Digest     string `json:"digest"`
	AddedBytes int    `json:"added_bytes"` // compressed, of the runtime's and the enclave's layer
	// Attached are the digests of the statements and reference values that are attached to it.
	Attached []string `json:"attached,omitempty"`
}

// Runtime is what runs the program.
type Runtime struct {
	Kind    string `json:"kind"`
	Version string `json:"version"`
	Digest  string `json:"digest"` // of its layer
	Source  string `json:"source"`
}

// stopwatch notes how long steps took.
type stopwatch struct {
	last  time.Time
	steps map[string]float64
}

func startWatch() *stopwatch { return &stopwatch{time.Now(), map[string]float64{}} }

// all returns the steps and their sum.
func (w *stopwatch) all() map[string]float64 {
	all := maps.Clone(w.steps)
	for _, seconds := range w.steps {
		all["total"] += seconds
	}
	return all
}

func (w *stopwatch) lap(step string) {
	now := time.Now()
	w.steps[step] += now.Sub(w.last).Seconds()
	w.last = now
}
