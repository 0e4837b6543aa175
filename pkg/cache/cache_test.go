package cache_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/cache"
)

func TestDamageIsNoticed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	c := cache.Open(dir, cache.DefaultLimit)
	_, ok := c.Get("a/b")
	assert.False(t, ok)
	require.NoError(t, c.Put("a/b", []byte("blob")))
	b, ok := c.Get("a/b")
	require.True(t, ok)
	assert.Equal(t, "blob", string(b))

	file := filepath.Join(dir, "a/b")
	raw, err := os.ReadFile(file)
	require.NoError(t, err)
	for i := range raw {
		damaged := append([]byte(nil), raw...)
		damaged[i] ^= 1
		require.NoError(t, os.WriteFile(file, damaged, 0o600))
		_, ok := c.Get("a/b")
		assert.False(t, ok)
	}
	require.NoError(t, os.WriteFile(file, raw[:10], 0o600))
	_, ok = c.Get("a/b")
	assert.False(t, ok)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "a/c"), raw, 0o600))
	_, ok = c.Get("a/c")
	assert.False(t, ok, "an entry under another's name")
}

func TestManyWriters(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			c := cache.Open(dir, 300) // each is a process of its own, and there is never room for all
			for i := range 20 {
				key := fmt.Sprint("k", i%5)
				assert.NoError(t, c.Put(key, []byte(key+" is the same for everyone, and larger than a few bytes")))
				if b, ok := c.Get(key); ok {
					assert.Equal(t, key+" is the same for everyone, and larger than a few bytes", string(b))
				}
			}
		})
	}
	wg.Wait()
	c := cache.Open(dir, 300)
	require.NoError(t, c.Put("last", nil))
	entries, err := c.List()
	require.NoError(t, err)
	assert.LessOrEqual(t, size(entries), int64(300))
}

func size(entries []cache.Entry) (n int64) {
	for _, e := range entries {
		n += e.Size
	}
	return n
}

func TestLeastRecentlyUsedGoes(t *testing.T) {
	dir := t.TempDir()
	c := cache.Open(dir, 1000)
	for i, key := range []string{"x/a", "x/b", "y/c"} {
		require.NoError(t, c.Put(key, make([]byte, 200)))
		old := time.Now().Add(time.Duration(i-10) * time.Hour)
		require.NoError(t, os.Chtimes(filepath.Join(dir, key), old, old))
	}
	_, ok := c.Get("x/a") // the oldest becomes the youngest
	require.True(t, ok)
	stale := filepath.Join(dir, "x/.new-123")
	require.NoError(t, os.WriteFile(stale, nil, 0o600))
	require.NoError(t, os.Chtimes(stale, time.Time{}, time.Now().Add(-2*time.Hour)))

	require.NoError(t, c.Put("y/d", make([]byte, 300)))
	var keys []string
	entries, err := c.List()
	require.NoError(t, err)
	for _, e := range entries {
		keys = append(keys, e.Key)
	}
	assert.Equal(t, []string{"y/d", "x/a", "y/c"}, keys)
	assert.NoFileExists(t, stale)

	removed, left, err := c.Prune(0)
	require.NoError(t, err)
	assert.Len(t, removed, 3)
	assert.Zero(t, left)
}

// An entry that is larger than what is kept does not drive the others out.
func TestLargeEntryIsNotKept(t *testing.T) {
	c := cache.Open(t.TempDir(), 1000)
	for i := range 5 {
		require.NoError(t, c.Put(fmt.Sprint("small/", i), make([]byte, 100)))
	}
	require.NoError(t, c.Put("large/0", make([]byte, 900)))
	_, ok := c.Get("large/0")
	assert.False(t, ok)
	for i := range 5 {
		_, ok := c.Get(fmt.Sprint("small/", i))
		assert.True(t, ok, i)
	}
	removed, left, err := c.Prune(100)
	require.NoError(t, err)
	assert.Len(t, removed, 5)
	assert.Zero(t, left)
}
