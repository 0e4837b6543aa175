package cache_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/cache"
)

func TestDamageIsNoticed(t *testing.T) {
	dir := t.TempDir()
	c := cache.Dir(filepath.Join(dir, "new"))
	_, ok := c.Get("a/b")
	assert.False(t, ok)
	require.NoError(t, c.Put("a/b", []byte("blob")))
	b, ok := c.Get("a/b")
	require.True(t, ok)
	assert.Equal(t, "blob", string(b))

	file := filepath.Join(dir, "new/a/b")
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
}

func TestManyWriters(t *testing.T) {
	c := cache.Dir(t.TempDir())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 20 {
				assert.NoError(t, c.Put("k", []byte("same")))
				if b, ok := c.Get("k"); ok {
					assert.Equal(t, "same", string(b))
				}
			}
		})
	}
	wg.Wait()
}
