package launch

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/reach"
)

// Keep lists the files whose content Build reads, as patterns for rootfs.Scan.
func (o Options) Keep() []string {
	if o.Profile == nil || profile.Find(o.Profile.Name) == o.Profile {
		return keep()
	}
	return slices.Concat(keep(), o.Profile.Kept())
}

// keep is what is read whatever the options.
var keep = sync.OnceValue(func() []string {
	// callers append to it
	return slices.Clip(slices.Concat(process.Accounts, reach.Keep, profile.Keep(), []string{tmpfilesDir + "/*.conf"}))
})

// Build works out how an image starts, from its configuration as stored and its files.
func (contents *Contents) Build(ctx context.Context, config []byte, o Options) (*Spec, error) {
	tree := contents.Tree
	var c v1.ConfigFile
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	p, err := process.New(tree, c.Config, o.Args, o.HostArgs, o.Env)
	if err != nil {
		return nil, err
	}
	s := &Spec{Process: *p, Threads: o.Threads, Memory: o.Memory}
	for _, p := range o.AllowedFiles {
		// The host is asked for the path without links, through the mounts that stand for them.
		_, real, _ := tree.Resolve(p)
		if real == "" {
			real = path.Clean(p)
		}
		s.Allowed = append(s.Allowed, real)
	}
	if err := s.program(tree); err != nil {
		return nil, err
	}
	f := &files{
		spec: s, tree: tree, writable: map[string]Mount{}, policy: cmp.Or(o.Trust, TrustAuto),
		allowed: map[string]bool{},
	}
	for _, p := range s.Allowed {
		f.allowed[p] = true
	}
	if err := f.follow(ctx, contents, o); err != nil {
		return nil, err
	}
	s.LibC.Find(tree, f.set, f.policy == TrustAll)
	s.LibC.Choice = cmp.Or(o.LibC, libc.Auto)
	s.size(f.set, o)
	if err := f.secrets(o); err != nil {
		return nil, err
	}
	if err := f.encrypt(c.Config, o); err != nil {
		return nil, err
	}
	if err := f.chooseWritable(c.Config.Volumes, o); err != nil {
		return nil, err
	}
	if err := f.chooseTrusted(o.List); err != nil {
		return nil, err
	}
	s.weaknesses(c.Config)
	return s, f.notice(ctx, c.Config, o)
}

// weaknesses reports what the user decided against the defaults, and what differs from a container.
func (s *Spec) weaknesses(c v1.Config) {
	if s.HostArgs {
		s.Find(finding.HostArguments, finding.Warning, "", "the host chooses the program's arguments")
	} else {
		s.Find(finding.ArgumentsFixed, finding.Info, "",
			"the arguments are measured: what follows the image's name in \"docker "+
				"run\", or args in a pod, has no effect")
	}
	for _, p := range s.Allowed {
		s.Find(finding.AllowedFile, finding.Warning, p, "the host can read and change this file")
	}
	if sig := c.StopSignal; sig != "" && sig != "SIGTERM" && sig != "15" && sig != "TERM" {
		s.Find(finding.StopSignal, finding.Warning, "",
			fmt.Sprintf("the image stops on %s, which does not reach an enclave: it is sent SIGTERM instead", sig))
	}
	for _, name := range []string{"LD_PRELOAD", "LD_AUDIT"} {
		if v, ok := s.Getenv(name); ok && v != "" {
			s.Find(finding.LoaderEnv, finding.Warning, "", fmt.Sprintf(
				"%s=%s is set inside the enclave only: outside, it would be loaded into the runtime's loader", name, v))
		}
	}
}
