package launch

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/packages"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Contents are an image's files, and what there is to know of them however the image starts.
type Contents struct {
	Tree     *rootfs.Tree
	kinds    *reach.Kinds
	packages func() (*packages.DB, error)
}

// Examine begins to look at an image's files. Packages are read by the first Build, and once, until the context ends:
// nothing of that is left if nobody builds anything.
func Examine(ctx context.Context, tree *rootfs.Tree) *Contents {
	return &Contents{
		Tree: tree, kinds: reach.Classify(tree),
		packages: sync.OnceValues(func() (*packages.DB, error) { return packages.Read(ctx, tree) }),
	}
}

// Identity returns the user and group as which the image's program runs.
func (contents *Contents) Identity(config []byte, o Options) (uid, gid uint32, err error) {
	var c v1.ConfigFile
	if err := json.Unmarshal(config, &c); err != nil {
		return 0, 0, fmt.Errorf("reading the image's configuration: %w", err)
	}
	p, err := process.New(contents.Tree, c.Config, o.Args, o.HostArgs, o.Env)
	if err != nil {
		return 0, 0, err
	}
	return p.UID, p.GID, nil
}
