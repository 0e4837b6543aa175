package batch_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
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

// What is foreseen of a result that is there already is what the run then does with what refers to its source: nothing
// is copied, something is, or it fails.
func TestForeseeReferrers(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.push(1)
	j := b.job(0)
	j.CopyReferrers = true
	ref, err := image.ParseReference(j.Source, true)
	require.NoError(t, err)
	source, err := store.Open(ctx, ref, registry.Options{})
	require.NoError(t, err)
	defer source.Close()
	a := image.Artifact{Type: "application/sbom", MediaType: "text/plain", Blob: []byte("sbom")}
	require.NoError(t, registry.Attach(ctx, source, []image.Artifact{a}, registry.Options{}))
	foresee := func() batch.Forecast { return b.worker.Foresee(ctx, []queue.Job{j}, 1)[0] }
	_, err = b.worker.Convert(ctx, j)
	require.NoError(t, err)
	require.Equal(t, queue.Unchanged, foresee().Status)

	target, err := name.NewRepository(b.reg.Host+"/out", name.Insecure)
	require.NoError(t, err)
	copied, err := registry.ListReferrers(ctx, target.Digest(source.Digest), registry.Options{}, "application/sbom")
	require.NoError(t, err)
	require.Equal(t, 1, copied.Len())
	artifact, err := copied.Fetch(ctx, 0, 1000)
	require.NoError(t, err)
	require.NoError(t, remote.Delete(target.Digest(artifact.Digest)))
	assert.Equal(t, queue.Converted, foresee().Status, "a copy is gone")
	out, err := b.worker.Convert(ctx, j)
	require.NoError(t, err)
	assert.Equal(t, queue.Unchanged, out.Status)
	assert.NotContains(t, out.Warnings, finding.ReferrerKept)
	require.Equal(t, queue.Unchanged, foresee().Status)

	// A tag of cosign that has something else in the target is left there, and told.
	from, err := name.NewRepository(source.Ref.Name.Context().Name(), name.Insecure)
	require.NoError(t, err)
	tag := strings.ReplaceAll(source.Digest, ":", "-") + ".sig"
	sign := func(repo name.Repository, text string) {
		t.Helper()
		img, err := mutate.AppendLayers(empty.Image, static.NewLayer([]byte(text), "text/plain"))
		require.NoError(t, err)
		require.NoError(t, remote.Write(repo.Tag(tag), img))
	}
	sign(from, "genuine")
	assert.Equal(t, queue.Converted, foresee().Status)
	sign(target, "another")
	require.Equal(t, queue.Unchanged, foresee().Status)
	out, err = b.worker.Convert(ctx, j)
	require.NoError(t, err)
	assert.Contains(t, out.Warnings, finding.ReferrerKept)
	j.Gate = convert.Gate{Strict: true, Ignore: []string{finding.Simulated}}
	_, err = b.worker.Convert(ctx, j)
	require.ErrorIs(t, err, convert.ErrFindings)
	require.ErrorIs(t, foresee().Err, convert.ErrFindings)

	require.NoError(t, remote.WriteIndex(from.Tag(strings.ReplaceAll(source.Digest, ":", "-")+".att"), empty.Index))
	j.Gate = convert.Gate{}
	require.ErrorIs(t, foresee().Err, image.ErrUnsupported)
	_, err = b.worker.Convert(ctx, j)
	require.ErrorIs(t, err, image.ErrUnsupported)
}
