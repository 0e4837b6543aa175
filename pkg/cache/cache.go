// Package cache keeps blobs on disk between runs, those that were used last if there is no room for all.
// Several processes may use a cache at once.
package cache

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// DefaultLimit is how many bytes a cache keeps if nobody says otherwise.
const DefaultLimit = 2 << 30

// temporary is how the names of files begin that are still being written. One that is older than staleAfter
// belongs to a process that is gone.
const (
	temporary  = ".new-"
	staleAfter = time.Hour
)

// Store keeps blobs by key. Keys are slash-separated names of our own making, never taken from an image.
type Store interface {
	Get(key string) ([]byte, bool)
	Put(key string, blob []byte) error
}

// Cache is a Store in a directory.
type Cache struct {
	dir   string
	limit int64

	mu     sync.Mutex
	before bool  // whether the size was looked up
	size   int64 // of all entries, as far as this process knows
}

// Entry is a blob in the cache.
type Entry struct {
	Key  string    `json:"key"`
	Size int64     `json:"size"` // on disk, in bytes
	Used time.Time `json:"used"`
}

// Open returns the cache in a directory, which need not exist. It keeps so many bytes.
func Open(dir string, limit int64) *Cache { return &Cache{dir: dir, limit: limit} }

// DefaultDir is the user's cache directory, $XDG_CACHE_HOME/cconvert.
func DefaultDir() (string, error) {
	d, err := os.UserCacheDir()
	return filepath.Join(d, "cconvert"), err
}

// Dir is where the cache is.
func (c *Cache) Dir() string { return c.dir }

func (c *Cache) path(key string) string { return filepath.Join(c.dir, filepath.FromSlash(key)) }

// checksum is over the key as well: an entry under another's name is as good as damaged.
func checksum(key string, blob []byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00", key)
	h.Write(blob)
	h.Sum(sum[:0])
	return sum
}

// Get returns the blob of a key. One that was damaged is as good as none.
func (c *Cache) Get(key string) ([]byte, bool) {
	b, err := os.ReadFile(c.path(key))
	if err != nil || len(b) < sha256.Size {
		return nil, false
	}
	blob := b[sha256.Size:]
	if sum := checksum(key, blob); !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, false
	}
	now := time.Now()
	_ = os.Chtimes(c.path(key), now, now) // who cannot write here does not prune either
	return blob, true
}

// Put keeps a blob. Readers see all of it or nothing.
func (c *Cache) Put(key string, blob []byte) error {
	if int64(sha256.Size+len(blob)) > c.limit/10*9 {
		return nil // it would be the only one
	}
	if err := c.write(key, blob); err != nil {
		return fmt.Errorf("caching %s: %w", key, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.before {
		c.before = true
		entries, err := c.List()
		if err != nil {
			return err
		}
		for _, e := range entries {
			c.size += e.Size
		}
	} else {
		c.size += int64(sha256.Size + len(blob))
	}
	if c.size <= c.limit {
		return nil
	}
	_, left, err := c.Prune(c.limit / 10 * 9) // so that the next entry has room without another round
	c.size = left
	return err
}

// write does without fsync(2): what a power failure leaves half written does not match its checksum.
func (c *Cache) write(key string, blob []byte) error {
	dir := filepath.Dir(c.path(key))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, temporary)
	if err != nil {
		return err
	}
	sum := checksum(key, blob)
	_, err = f.Write(sum[:])
	if err == nil {
		_, err = f.Write(blob)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), c.path(key))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// List returns what is in the cache, the last used first.
func (c *Cache) List() ([]Entry, error) {
	var entries []Entry
	err := c.walk(func(name string, info fs.FileInfo) {
		if !strings.HasPrefix(info.Name(), temporary) {
			entries = append(entries, Entry{filepath.ToSlash(name), info.Size(), info.ModTime()})
		}
	})
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Or(b.Used.Compare(a.Used), cmp.Compare(a.Key, b.Key)) })
	return entries, err
}

// walk visits every file by its name in the cache. Others may add and remove files meanwhile.
func (c *Cache) walk(visit func(name string, info fs.FileInfo)) error {
	err := filepath.WalkDir(c.dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				name, _ := filepath.Rel(c.dir, p)
				visit(name, info)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the cache: %w", err)
	}
	return nil
}

// Prune removes what was not used for the longest time until no more than so many bytes are left, and what
// processes left behind that were stopped. It returns what it removed, and how many bytes are left.
func (c *Cache) Prune(keep int64) (removed []Entry, left int64, err error) {
	entries, err := c.List()
	if err != nil {
		return nil, 0, err
	}
	full := false
	for _, e := range entries {
		if !full && left+e.Size <= keep {
			left += e.Size
			continue
		}
		full = full || e.Size <= keep // then what was used even longer ago goes as well
		if err := os.Remove(c.path(e.Key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, left, fmt.Errorf("removing from the cache: %w", err)
		}
		removed = append(removed, e)
	}
	err = c.walk(func(name string, info fs.FileInfo) {
		if strings.HasPrefix(info.Name(), temporary) && time.Since(info.ModTime()) > staleAfter {
			os.Remove(filepath.Join(c.dir, name))
		}
	})
	return removed, left, err
}
