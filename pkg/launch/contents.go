package launch

import (
	"context"
	"sync"

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

// Examine begins to look at an image's files, and leaves it to Build to wait for that. The context ends it.
func Examine(ctx context.Context, tree *rootfs.Tree) *Contents {
	c := &Contents{
		Tree: tree, kinds: reach.Classify(tree),
		packages: sync.OnceValues(func() (*packages.DB, error) { return packages.Read(ctx, tree) }),
	}
	go c.packages() //nolint:errcheck // Build sees what comes of it
	return c
}
