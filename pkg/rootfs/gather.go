package rootfs

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// Gather finds out what is in layers, so many at a time, by a function that is asked for each digest once: builders
// repeat layers, and an image can list a few bytes any number of times. All of them together are bounded as by Room.
func Gather(
	ctx context.Context, digests []string, jobs int, limits Limits,
	index func(ctx context.Context, layer int) (*Index, error),
) ([]*Index, error) {
	indexes := make([]*Index, len(digests))
	room := Room{Limits: limits}
	first := map[string]int{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, jobs))
	for i, digest := range digests {
		if _, again := first[digest]; again {
			continue
		}
		first[digest] = i
		g.Go(func() (err error) {
			if indexes[i], err = index(gctx, i); err == nil {
				err = room.Take(indexes[i])
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, digest := range digests {
		indexes[i] = indexes[first[digest]]
	}
	return indexes, nil
}
