package batch_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// What is attached to a source after its conversion is copied by the next run, though the result is unchanged.
func TestCopyReferrersOfUnchanged(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.push(1)
	j := b.job(0)
	open := func(named string) *image.Image {
		t.Helper()
		ref, err := image.ParseReference(named, true)
		require.NoError(t, err)
		img, err := store.Open(ctx, ref, registry.Options{})
		require.NoError(t, err)
		t.Cleanup(func() { img.Close() })
		return img
	}
	attach := func(text string) {
		t.Helper()
		a := image.Artifact{Type: "application/sbom", MediaType: "text/plain", Blob: []byte(text)}
		require.NoError(t, registry.Attach(ctx, open(j.Source), []image.Artifact{a}, registry.Options{}))
	}
	copied := func() (texts []string) {
		t.Helper()
		found, err := registry.Referrers(ctx, open(b.reg.Host+"/out@"+open(j.Source).Digest), "application/sbom")
		require.NoError(t, err)
		for _, a := range found {
			texts = append(texts, string(a.Blob))
		}
		return texts
	}
	attach("before")
	j.CopyReferrers = true
	out, err := b.worker.Convert(ctx, j)
	require.NoError(t, err)
	assert.Equal(t, queue.Converted, out.Status)
	assert.Equal(t, []string{"before"}, copied())

	attach("after")
	out, err = b.worker.Convert(ctx, j)
	require.NoError(t, err)
	assert.Equal(t, queue.Unchanged, out.Status)
	assert.ElementsMatch(t, []string{"before", "after"}, copied())

	of := open(j.Target)
	found, err := registry.Referrers(ctx, of, "application/sbom")
	require.NoError(t, err)
	assert.Empty(t, found, "nothing speaks of the result")
}
