package batch_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
)

// An image that the same plan converts, whose configuration cannot be found for a moment, is replaced by a result.
func TestResultsOnlyWithoutConfiguration(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	j := b.job(0)
	j.ResultsOnly = true
	j.Target = b.job(1).Source
	ref, err := name.ParseReference(b.reg.Host + "/app:1")
	require.NoError(t, err)
	img, err := remote.Image(ref)
	require.NoError(t, err)
	config, err := img.ConfigName()
	require.NoError(t, err)
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, config.String()) {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
	before := b.reg.Digest(t, "app:1")
	_, err = b.worker.Convert(context.Background(), j)
	assert.ErrorIs(t, err, image.ErrIncomplete)
	assert.Equal(t, before, b.reg.Digest(t, "app:1"))
}

// A result with a higher security version, whose configuration cannot be found for a moment, is replaced by a lower
// one; so is one of another signer.
func TestRollbackWithoutConfiguration(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	higher := b.job(0)
	higher.Options.ISVSVN = 9
	_, err := b.worker.Convert(context.Background(), higher)
	require.NoError(t, err)
	lower := b.job(1)
	lower.Target = higher.Target
	_, err = b.worker.Convert(context.Background(), lower)
	require.ErrorContains(t, err, "security version")
	ref, err := name.ParseReference(b.reg.Host + "/out:0")
	require.NoError(t, err)
	img, err := remote.Image(ref)
	require.NoError(t, err)
	config, err := img.ConfigName()
	require.NoError(t, err)
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, config.String()) {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
	before := b.reg.Digest(t, "out:0")
	_, err = b.worker.Convert(context.Background(), lower)
	assert.ErrorIs(t, err, convert.ErrVersionUnknown)
	assert.Equal(t, before, b.reg.Digest(t, "out:0"))
}
