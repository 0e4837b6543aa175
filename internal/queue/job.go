// Package queue keeps jobs of conversions, and what became of them, so that they outlive the processes which work on
// them.
package queue

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Job is one image to be converted. It holds no secrets.
type Job struct {
	Source string `json:"source"`
	Target string `json:"target"`
	// Insecure lets the registries be spoken to over HTTP.
	Insecure bool           `json:"insecure,omitempty"`
	Runtime  Runtime        `json:"runtime"`
	Options  recipe.Options `json:"options"`
	Overlay  string         `json:"overlay,omitempty"`
	Gate     convert.Gate   `json:"gate,omitzero"`
	// Unsigned stores the image without a signature.
	Unsigned      bool `json:"unsigned,omitempty"`
	NoEvidence    bool `json:"no_evidence,omitempty"`
	NeedsEvidence bool `json:"needs_evidence,omitempty"` // fails where the registry refuses it
	AllowRollback bool `json:"allow_rollback,omitempty"`
	ReplaceSigner bool `json:"replace_signer,omitempty"`
	TrustTOC      bool `json:"trust_toc,omitempty"`
	CopyReferrers bool `json:"copy_referrers,omitempty"`
	// StrictNames follows no redirect of a manifest to another repository, whatever host it is on.
	StrictNames bool `json:"strict_names,omitempty"`
	// Found says that the source was found in a repository or registry: one that is converted already is left out.
	Found bool `json:"found,omitempty"`
	// ResultsOnly lets the target be replaced only if it is a result of a conversion: the same batch converts it.
	ResultsOnly bool `json:"results_only,omitempty"`
	// Force converts again what is there already.
	Force bool `json:"force,omitempty"`
	// Problem says why there is nothing to convert; empty: there is. The job fails by it, or is skipped if it was
	// found.
	Problem string `json:"problem,omitempty"`
	// Passing says that the problem may pass: reading the plan again may find something.
	Passing bool `json:"passing,omitempty"`
	// Limits of registries, by their name.
	Limits map[string]plan.Limits `json:"limits,omitempty"`
}

// Runtime says which library OS is wanted. Paths are those of the worker's machine.
type Runtime struct {
	Kind   string `json:"kind"`
	Source string `json:"source,omitempty"`
	Libs   string `json:"libs,omitempty"`
	Digest string `json:"digest,omitempty"` // of the source, where it is an image
	Layer  string `json:"layer,omitempty"`  // that must come out
}

// ImageOf returns the image that has a runtime; false if it is not in one, or not known.
func ImageOf(r Runtime, insecure bool, backends []libos.Backend) (ref image.Reference, ok bool, err error) {
	i := slices.IndexFunc(backends, func(b libos.Backend) bool { return b.Kind() == r.Kind })
	if i < 0 {
		return ref, false, nil
	}
	return backends[i].Image(libos.LoadOptions{Source: r.Source, Insecure: insecure})
}

// NewJob describes a conversion by its options.
func NewJob(o convert.Options, insecure bool) Job {
	r := o.Runtime
	if ref, ok, err := o.Backend.Image(r); err == nil && ok && r.Source == "" {
		r.Source = ref.String() // its registry is one of the job's, though it goes without saying
	}
	return Job{
		Source: o.Source.String(), Target: o.Target.String(), Insecure: insecure,
		Runtime: Runtime{o.Backend.Kind(), r.Source, r.Libs, r.Digest, r.Layer},
		Options: o.Recorded(), Overlay: o.Overlay, AllowRollback: o.AllowRollback, ReplaceSigner: o.ReplaceSigner,
		TrustTOC: o.TrustTOC, CopyReferrers: o.CopyReferrers, Gate: o.Gate,
		NoEvidence: o.Evidence == nil, NeedsEvidence: o.Evidence != nil && o.Evidence.Required,
	}
}

// ID names the job by all that it says: the same job has the same.
func (j Job) ID() string {
	b, err := json.Marshal(j)
	if err != nil {
		panic(err) // strings, numbers and lists
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// ErrNoEvidence says that a job wants statements to be attached, and that the worker attaches none.
var ErrNoEvidence = errors.New("the job wants statements to be attached, and this worker attaches none " +
	"(--attest=false)")

// Conversion are those of the conversion, over what is the worker's own.
func (j Job) Conversion(own convert.Options, backends []libos.Backend) (o convert.Options, err error) {
	o = own
	if o.Source, err = image.ParseReference(j.Source, j.Insecure); err != nil {
		return o, err
	}
	target, err := image.ParseReference(j.Target, j.Insecure)
	if err != nil {
		return o, err
	}
	o.Target = &target
	i := slices.IndexFunc(backends, func(b libos.Backend) bool { return b.Kind() == j.Runtime.Kind })
	if i < 0 {
		return o, fmt.Errorf("this worker knows no runtime %q", j.Runtime.Kind)
	}
	o.Backend = backends[i]
	o.Runtime.Source, o.Runtime.Libs, o.Runtime.Digest, o.Runtime.Layer = j.Runtime.Source, j.Runtime.Libs,
		j.Runtime.Digest, j.Runtime.Layer
	o.Runtime.Insecure, o.Runtime.Image, o.Runtime.Cache = j.Insecure, o.Image, o.Cache
	if o.Launch, o.Enclave, err = j.Options.Decisions(); err != nil {
		return o, err
	}
	if j.Options.Date != "" {
		date, err := sgx.ParseDate(j.Options.Date)
		if err != nil {
			return o, err
		}
		o.Date = &date
	}
	if o.Overlay = j.Overlay; j.Overlay != "" {
		if err := o.Backend.CheckOverlay("the job's manifest", j.Overlay); err != nil {
			return o, err
		}
	}
	o.AllowRollback, o.ReplaceSigner, o.TrustTOC, o.Gate = j.AllowRollback, j.ReplaceSigner, j.TrustTOC, j.Gate
	o.CopyReferrers = j.CopyReferrers
	switch {
	case j.NoEvidence:
		o.Evidence = nil
	case o.Evidence == nil && j.NeedsEvidence:
		return o, ErrNoEvidence
	case o.Evidence != nil:
		e := *o.Evidence
		e.Required = e.Required || j.NeedsEvidence
		o.Evidence = &e
	}
	return o, nil
}

// Status is how far a job is.
type Status string

// States of a job. The last four are final.
const (
	Queued    Status = "queued"
	Running   Status = "running"
	Retrying  Status = "retrying" // failed for a reason that may pass, and waits
	Converted Status = "converted"
	Unchanged Status = "unchanged" // the target has it already
	Skipped   Status = "skipped"   // the source is a result itself
	Failed    Status = "failed"
)

// Final reports whether nothing more will be done.
func (s Status) Final() bool { return s == Converted || s == Unchanged || s == Skipped || s == Failed }

// Record is what is known of a job.
type Record struct {
	Batch string `json:"batch"`
	ID    string `json:"id"`
	Job   Job    `json:"job"`
	// Request counts how often the job was asked for again, after it was done.
	Request int    `json:"request,omitempty"`
	Status  Status `json:"status"`
	// Error is why it failed, or will be tried again; Transient says that trying again later may help.
	Error     string `json:"error,omitempty"`
	Transient bool   `json:"transient,omitempty"`
	Attempts  int    `json:"attempts"`
	// Begun counts the attempts that were begun: more than were made, where workers died.
	Begun int `json:"begun"`
	// BegunAlone counts those that were begun with nothing else beside them, since the last that was made.
	BegunAlone int `json:"begun_alone,omitempty"`
	// Moving says that an attempt may have moved the tag, whatever became of it.
	Moving bool `json:"moving,omitempty"`
	Sent   bool `json:"-"` // this process may have moved it
	// Identity is that of the conversion, as on the output.
	Identity  string          `json:"identity,omitempty"`
	Ref       string          `json:"ref,omitempty"` // the output by its digest
	Digest    string          `json:"digest,omitempty"`
	MREnclave sgx.Measurement `json:"mr_enclave,omitzero"`
	MRSigner  sgx.Measurement `json:"mr_signer,omitzero"`
	Findings  int             `json:"findings,omitempty"`
	// Warnings are the codes of the findings that are warnings.
	Warnings []string  `json:"warnings,omitempty"`
	Worker   string    `json:"worker,omitempty"`
	Seconds  float64   `json:"seconds,omitempty"` // of the last attempt
	Updated  time.Time `json:"updated"`
}

// repeat makes the record one of a job that is asked for again. Nothing is left in it of what came out before, but that
// an attempt may be about to move the tag.
func (r *Record) repeat() {
	*r = Record{
		Batch: r.Batch, ID: r.ID, Job: r.Job, Request: r.Request + 1, Status: Queued, Updated: time.Now().UTC(),
		Moving: r.Moving,
	}
}

// Key is that of the record in the queue.
func (r *Record) Key() string { return r.Batch + "." + r.ID }
