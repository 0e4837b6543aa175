package convert

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Analysis is what a conversion would make of an image.
type Analysis struct {
	Source     string   `json:"source"`
	Digest     string   `json:"digest"`
	Program    string   `json:"program"`
	Entrypoint string   `json:"entrypoint"`
	Argv       []string `json:"argv"`
	UID        uint32   `json:"uid"`
	GID        uint32   `json:"gid"`
	Profile    string   `json:"profile"`
	ProfileWhy string   `json:"profile_reason"`
	// LibC is the program's C library, and NeedsGLIBC the version that the image needs.
	LibC        string `json:"libc"`
	NeedsGLIBC  string `json:"needs_glibc,omitempty"`
	EnclaveSize uint64 `json:"enclave_size"`
	SizeWhy     string `json:"size_reason"`
	// Pages of 4 KiB that are added at the start of every process.
	Pages    uint64                       `json:"enclave_pages"`
	Threads  int                          `json:"max_threads"`
	Files    int                          `json:"files"` // of the image
	Policy   string                       `json:"trust"` // the one that would be used
	Policies map[launch.Policy]PolicyCost `json:"policies"`
	// OpenBytes are hashed at every start: the program and its libraries.
	OpenBytes int64             `json:"bytes_hashed_at_start"`
	Packages  []string          `json:"packages"`
	Writable  []launch.Mount    `json:"writable"`
	Findings  []finding.Finding `json:"findings"`
	// RuntimeError says why the runtime could not be read: what depends on it is then missing.
	RuntimeError string       `json:"runtime_error,omitempty"`
	Spec         *launch.Spec `json:"-"`
}

// PolicyCost is what a trust policy costs.
type PolicyCost struct {
	Entries      int     `json:"entries"`
	Bytes        int64   `json:"bytes"`
	StartSeconds float64 `json:"start_seconds"`
}

// Analyze looks at an image as Prepare does, without making anything. A runtime that cannot be read is no
// error.
func Analyze(ctx context.Context, o Options) (*Analysis, error) {
	if err := o.begin(); err != nil {
		return nil, err
	}
	in, err := read(ctx, o)
	if err != nil {
		return nil, err
	}
	defer in.source.Close()
	defer in.stop()
	source, tree := in.source, in.contents.Tree
	files := 0
	_ = tree.Walk(func(n *rootfs.Node) error {
		if n.Type == rootfs.Regular {
			files++
		}
		return nil
	})
	if len(o.Launch.Encrypt.Paths) > 0 {
		if o.Launch.Encrypt, _, err = in.toEncrypt(o); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Source, err)
		}
	}
	specs, asked := map[launch.Policy]*launch.Spec{}, cmp.Or(o.Launch.Trust, launch.TrustAuto)
	for _, policy := range []launch.Policy{launch.TrustAll, launch.TrustAuto, asked} {
		if specs[policy] != nil {
			continue
		}
		o.Launch.Trust = policy
		if specs[policy], err = in.contents.Build(ctx, source.Config, o.Launch); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Source, err)
		}
	}
	chosen := specs[asked]
	a := describe(chosen)
	a.Source, a.Digest, a.Files = source.Ref.String(), source.Digest, files
	for policy, s := range specs {
		c := PolicyCost{Entries: len(s.Trusted), StartSeconds: o.Backend.StartSeconds(len(s.Trusted))}
		for _, f := range s.Trusted {
			c.Bytes += f.Size
		}
		a.Policies[policy] = c
	}
	if bundle, err := in.runtime(); err != nil {
		a.RuntimeError = err.Error()
	} else {
		agent, err := in.agent()
		if err != nil {
			return nil, err
		}
		sealed, err := o.Backend.Seal(ctx, libos.Input{
			Agent: agent, Spec: chosen, Enclave: o.Enclave, Bundle: bundle, Overlay: o.Overlay, Tree: tree,
			Contents: contentsOf(source, tree, rootfs.Options{Inflate: o.Inflate, Limits: o.Limits}),
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.Source, err)
		}
		a.Findings, a.EnclaveSize, a.Threads = sealed.Findings, sealed.Settings.EnclaveSize, sealed.Settings.MaxThreads
		a.Pages = a.EnclaveSize / sgx.PageSize
	}
	if err := tree.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Source, err)
	}
	a.Findings = slices.Concat(a.Findings, longList(o.Backend, chosen), in.layers.findings)
	switch {
	case tree.Lookup(libos.RecipePath) != nil:
		a.Findings = append(a.Findings, finding.New(finding.Converted, finding.Error, libos.RecipePath,
			"the image is the output of a conversion"))
	case in.layers.reserved != nil:
		a.Findings = append(a.Findings,
			finding.New(finding.Reserved, finding.Error, libos.Root, in.layers.reserved.Error()))
	}
	return a, nil
}

func describe(s *launch.Spec) *Analysis {
	a := &Analysis{
		Program: s.LibC.Program, Entrypoint: s.Entrypoint, Argv: s.Argv, UID: s.UID, GID: s.GID,
		Profile: s.Profile.Name, ProfileWhy: s.ProfileWhy, LibC: string(s.LibC.Kind), NeedsGLIBC: s.LibC.NeedsGLIBC,
		EnclaveSize: s.Memory, SizeWhy: s.SizeWhy, Pages: s.Memory / sgx.PageSize,
		Threads: s.Threads,
		Policy:  string(s.Policy), Policies: map[launch.Policy]PolicyCost{}, OpenBytes: s.OpenBytes,
		Packages: append([]string{}, s.Packages...),
		Findings: s.Findings, Spec: s, Writable: []launch.Mount{},
	}
	for _, m := range s.Mounts {
		if m.Type != launch.Bind {
			a.Writable = append(a.Writable, m)
		}
	}
	return a
}
