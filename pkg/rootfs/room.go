package rootfs

import (
	"fmt"
	"sync"
)

// maxKept is how many bytes of kept contents all layers of an image can have together.
const maxKept = 512 << 20

// Room bounds what the layers of an image take together, each of which Scan bounds. The zero value is ready for use.
type Room struct {
	mu      sync.Mutex
	entries int
	kept    int64
	names   int64
}

// Take notes another layer. It fails where the image as a whole is too large, whatever the order of its layers.
func (r *Room) Take(i *Index) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries += len(i.Entries)
	for k := range i.Entries {
		e := &i.Entries[k]
		r.kept += int64(len(e.Content))
		r.names += int64(len(e.Path) + len(e.Link))
	}
	switch {
	case r.entries > maxEntries:
		return fmt.Errorf("the image's layers have more than %d entries", maxEntries)
	case r.kept > maxKept:
		return fmt.Errorf("the image's databases and scripts have more than %d bytes", maxKept)
	case r.names > maxNames:
		return fmt.Errorf("the image's names have more than %d bytes", int64(maxNames))
	}
	return nil
}
