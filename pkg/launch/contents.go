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

// Examine begins to look at an image's files. Packages are read by the first Build, and once, until the context ends:
// nothing of that is left if nobody builds anything.
func Examine(ctx context.Context, tree *rootfs.Tree) *Contents {
	return &Contents{
		Tree: tree, kinds: reach.Classify(tree),
		packages: sync.OnceValues(func() (*packages.DB, error) { return packages.Read(ctx, tree) }),
	}
}
