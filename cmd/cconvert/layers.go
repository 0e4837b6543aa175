package main

import (
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/indexrepo"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
)

// layerFlags are about how layers are read.
type layerFlags struct {
	cache   cacheFlags
	inflate string
	toc     bool

	indexRepo, indexSign, indexVerify string
	insecureIndex                     bool
}

func (l *layerFlags) add(f *pflag.FlagSet) {
	l.cache.add(f)
	l.addShared(f)
	f.BoolVar(&l.toc, "trust-toc", false, "take what is in layers of eStargz and zstd:chunked from their tables of "+
		"contents, without reading the layers; the tables need not say the truth")
	f.StringVar(&l.inflate, "inflate", "auto",
		"what inflates layers: go (this program), igzip, or auto: igzip where it is installed")
}

func (l *layerFlags) addShared(f *pflag.FlagSet) {
	f.StringVar(&l.indexRepo, "index-repo", "",
		"repository where several machines keep what is in layers, so that each layer is read once")
	f.StringVar(&l.indexVerify, "index-verify-key", "",
		"file with the public key by which entries of --index-repo must be signed to be used")
	f.StringVar(&l.indexSign, "index-sign-key", "",
		"file with a private key, of ECDSA or Ed25519: write to --index-repo what was read here")
	f.BoolVar(&l.insecureIndex, "insecure-index", false, "use and write entries of --index-repo without signatures")
}

// shared returns the repository of indexes, nil if none is wanted.
func (l *layerFlags) shared(reg registryFlags) (*indexrepo.Repo, error) {
	if l.indexRepo == "" {
		if l.indexVerify != "" || l.indexSign != "" || l.insecureIndex {
			return nil, usagef("--index-verify-key, --index-sign-key and --insecure-index are about --index-repo, " +
				"which is missing")
		}
		return nil, nil
	}
	if l.indexVerify == "" && l.indexSign == "" && !l.insecureIndex {
		return nil, usagef("--index-repo %s: an entry decides what the enclave trusts, so give --index-verify-key to "+
			"use those that a key has signed, --index-sign-key to write some, or both", l.indexRepo)
	}
	if l.indexVerify != "" && l.insecureIndex {
		return nil, usagef("--index-verify-key and --insecure-index exclude each other")
	}
	r := &indexrepo.Repo{Insecure: l.insecureIndex}
	var err error
	if r.Artifacts, err = registry.NewArtifacts(l.indexRepo, reg.insecure, reg.options()); err != nil {
		return nil, err
	}
	if l.indexVerify != "" {
		text, err := os.ReadFile(l.indexVerify)
		if err == nil {
			r.Verify, err = attest.ParsePublicKey(text)
		}
		if err != nil {
			return nil, &usageError{fmt.Errorf("--index-verify-key %s: %w", l.indexVerify, err)}
		}
	}
	if l.indexSign != "" {
		text, err := os.ReadFile(l.indexSign)
		if err == nil {
			r.Sign, err = attest.ParsePrivateKey(text)
		}
		if err != nil {
			return nil, &usageError{fmt.Errorf("--index-sign-key %s: %w", l.indexSign, err)}
		}
	}
	return r, nil
}

func (l *layerFlags) choose(o *convert.Options, reg registryFlags) (err error) {
	if o.Inflate, err = inflate.Find(l.inflate); err != nil {
		return usagef("--inflate %s: %w", l.inflate, err)
	}
	o.TrustTOC, o.Limits = l.toc, reg.limits
	o.Shared, err = l.shared(reg)
	return err
}

// reserve keeps the results of a plan out of the repository with indexes of layers.
func (l *layerFlags) reserve(p *plan.Plan, insecure bool) error {
	if l.indexRepo == "" {
		return nil
	}
	repo, err := image.ParseRepository(l.indexRepo, insecure)
	if err == nil {
		p.ReserveRepository(repo, "the repository with indexes of layers")
	}
	return err
}
