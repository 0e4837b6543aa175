package rootfs

import (
	"cmp"
	"errors"
	"fmt"
	"sync"
)

// Limits bound what an image may hold, whoever has made it: a few bytes can claim terabytes, which would be hashed.
// Zero values stand for the defaults.
type Limits struct {
	// FileBytes, LayerBytes and ImageBytes are sizes of files as they appear, of one, of a layer's and of all layers'.
	FileBytes, LayerBytes, ImageBytes int64
	// Files is how many entries the layers may have together.
	Files int
}

// Defaults of Limits.
const (
	DefaultFileBytes  = 64 << 30
	DefaultLayerBytes = 128 << 30
	DefaultImageBytes = 256 << 30
	DefaultFiles      = 2_000_000
)

// ErrLimit says that an image is larger than the Limits allow.
var ErrLimit = errors.New("larger than the limit")

func (l Limits) defaults() Limits {
	return Limits{
		cmp.Or(l.FileBytes, DefaultFileBytes), cmp.Or(l.LayerBytes, DefaultLayerBytes),
		cmp.Or(l.ImageBytes, DefaultImageBytes), cmp.Or(l.Files, DefaultFiles),
	}
}

// Bounds that no flag moves: they are about this program's memory.
const (
	maxKept         = 512 << 20 // bytes of kept contents that all layers of an image can have together
	maxImplied      = 1_000_000 // directories that only the paths of entries speak of
	maxImpliedBytes = 64 << 20  // of their paths
)

// Room bounds what the layers of an image take together, each of which Scan bounds.
type Room struct {
	Limits Limits

	mu      sync.Mutex
	entries int
	kept    int64
	names   int64
	bytes   int64
}

// Take notes another layer, however it is known. It fails if it, or the image as a whole, is too large, whatever the
// order of its layers.
func (r *Room) Take(i *Index) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	limits := r.Limits.defaults()
	r.entries += len(i.Entries)
	layer := room{limits: limits}
	for k := range i.Entries {
		e := &i.Entries[k]
		r.kept += int64(len(e.Content))
		r.names += int64(len(e.Path) + len(e.Link))
		if err := layer.take(e); err != nil {
			return fmt.Errorf("layer %s: %w", i.Digest, err)
		}
	}
	r.bytes += layer.bytes
	switch {
	case r.entries > limits.Files:
		return fmt.Errorf("the image's layers have more than %d entries, %w", limits.Files, ErrLimit)
	case r.bytes > limits.ImageBytes:
		return fmt.Errorf("the image's files have more than %d bytes, %w", limits.ImageBytes, ErrLimit)
	case r.kept > maxKept:
		return fmt.Errorf("the image's databases and scripts have more than %d bytes", maxKept)
	case r.names > maxNames:
		return fmt.Errorf("the image's names have more than %d bytes", int64(maxNames))
	}
	return nil
}

// room bounds one layer.
type room struct {
	limits  Limits
	entries int
	names   int64
	bytes   int64
}

// take notes an entry, before its content is read.
func (r *room) take(e *Entry) error {
	if r.entries++; r.entries > r.limits.Files {
		return fmt.Errorf("it has more than %d entries, %w", r.limits.Files, ErrLimit)
	}
	if r.names += int64(len(e.Path) + len(e.Link)); r.names > maxNames {
		return fmt.Errorf("its names have more than %d bytes", int64(maxNames))
	}
	if e.Type != Regular {
		return nil
	}
	if e.Size > r.limits.FileBytes {
		return fmt.Errorf("%q has %d bytes, %w of %d", e.Path, e.Size, ErrLimit, r.limits.FileBytes)
	}
	if r.bytes += e.Size; r.bytes > r.limits.LayerBytes {
		return fmt.Errorf("its files have more than %d bytes, %w", r.limits.LayerBytes, ErrLimit)
	}
	return nil
}

// implied bounds the directories of an image that no layer has as an entry: a short path can speak of thousands.
type implied struct{ dirs, bytes int }

func (i *implied) take(path string) error {
	i.dirs, i.bytes = i.dirs+1, i.bytes+len(path)
	if i.dirs > maxImplied || i.bytes > maxImpliedBytes {
		return fmt.Errorf("the paths speak of more than %d directories, or %d bytes of their names, that are no "+
			"entries", maxImplied, maxImpliedBytes)
	}
	return nil
}
