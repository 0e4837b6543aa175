package convert_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/launch"
)

// layerRequests counts the requests for layers since the last call.
func layerRequests(t *testing.T, reg *fixture.Registry) int {
	t.Helper()
	layers, err := sample(t).Layers()
	require.NoError(t, err)
	n := 0
	for _, l := range layers {
		d, err := l.Digest()
		require.NoError(t, err)
		for _, r := range reg.Requests() {
			if strings.HasPrefix(r, "GET ") && strings.HasSuffix(r, d.String()) {
				n++
			}
		}
	}
	reg.Intercept(nil)
	return n
}

// A layer that is known is not fetched, and nothing else comes out. Damage in the cache is noticed.
func TestLayersAreReadOnce(t *testing.T) {
	reg, dir := fixture.NewRegistry(t), t.TempDir()
	from := reg.Push(t, "src:1", sample(t))
	reg.Intercept(nil)
	runWith := func(store cache.Store) (string, int) {
		o := options(t, from)
		o.Cache = store
		r, err := run(context.Background(), t, o, reg.Host+"/src:2")
		require.NoError(t, err)
		return r.Output.Digest, layerRequests(t, reg)
	}
	want, n := runWith(nil)
	assert.Equal(t, 2, n)
	open := func() cache.Store { return cache.Open(dir, cache.DefaultLimit) }
	first, n := runWith(open())
	assert.Equal(t, 2, n)
	assert.Equal(t, want, first)
	second, n := runWith(open())
	assert.Zero(t, n)
	assert.Equal(t, want, second)

	for _, damage := range []func(b []byte) []byte{
		func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		func(b []byte) []byte { return b[:len(b)/2] },
		func([]byte) []byte { return nil },
	} {
		damaged := 0
		require.NoError(t, filepath.WalkDir(filepath.Join(dir, "index"), func(p string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			damaged++
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			return os.WriteFile(p, damage(b), 0o600)
		}))
		assert.Equal(t, 2, damaged)
		again, n := runWith(open())
		assert.Equal(t, 2, n, "what is damaged is read again")
		assert.Equal(t, want, again)
		_, n = runWith(open())
		assert.Zero(t, n)
	}

	// An entry of another layer in the place of this one's, well written.
	entries, err := cache.Open(dir, cache.DefaultLimit).List()
	require.NoError(t, err)
	b, ok := open().Get(entries[0].Key)
	require.True(t, ok)
	require.NoError(t, open().Put(entries[1].Key, b))
	again, n := runWith(open())
	assert.Equal(t, 1, n)
	assert.Equal(t, want, again)
}

// Who does not accept what was found stores nothing, however early uploads begin.
func TestNothingIsSentBeforeItIsAccepted(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	o := options(t, from)
	target := parse(t, reg.Host+"/other:1")
	refused := errors.New("refused")
	o.Target, o.Accept = &target, func([]launch.Finding) error { return refused }
	reg.Intercept(nil)
	_, err := convert.Prepare(context.Background(), o)
	require.ErrorIs(t, err, refused)
	for _, r := range reg.Requests() {
		assert.NotRegexp(t, "^(POST|PUT|PATCH)", r)
	}

	// Afterwards, what needs no signature is sent before there is one, and once only.
	o.Accept = nil
	p, err := convert.Prepare(context.Background(), o)
	require.NoError(t, err)
	defer p.Close()
	key, signature, err := convert.Sign(context.Background(), p, signer(t))
	require.NoError(t, err)
	require.Eventually(t, func() bool { // the runtime; the two layers are mounted
		return count(reg.Requests(), "PUT /v2/other/blobs/") == 1 && count(reg.Requests(), "POST /v2/other/blobs/") == 3
	}, 5e9, 1e6)
	r, err := convert.Finish(context.Background(), p, key, signature, target)
	require.NoError(t, err)
	assert.Equal(t, 3, count(reg.Requests(), "PUT /v2/other/blobs/"), "the enclave and the configuration as well")
	assert.Equal(t, 5, count(reg.Requests(), "POST /v2/other/blobs/"))
	assert.Equal(t, r.Output.Digest, reg.Digest(t, "other:1"))
}

// An early upload that fails is told of, and moves no tag.
func TestEarlyUploadFails(t *testing.T) {
	reg := fixture.NewRegistry(t)
	o := options(t, reg.Push(t, "src:1", sample(t)))
	target := parse(t, reg.Host+"/other:1")
	o.Target = &target
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusForbidden)
		}
		return r.Method == http.MethodPost
	})
	p, err := convert.Prepare(context.Background(), o)
	require.NoError(t, err)
	defer p.Close()
	key, signature, err := convert.Sign(context.Background(), p, signer(t))
	require.NoError(t, err)
	_, err = convert.Finish(context.Background(), p, key, signature, target)
	assert.ErrorContains(t, err, "uploading the blob")
	assert.NotErrorIs(t, err, context.Canceled)
	assert.Empty(t, reg.Digest(t, "other:1"))
}

func count(requests []string, prefix string) (n int) {
	for _, r := range requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}
