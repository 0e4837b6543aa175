package batch_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
)

// withoutConfiguration has the registry lose the configuration of an image, though its tag is there.
func (b *bench) withoutConfiguration(ref string) {
	b.t.Helper()
	config, err := b.image(ref).ConfigName()
	require.NoError(b.t, err)
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, config.String()) {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
}

// lower converts an image with a high security version, and returns a job of a lower one for the same target.
func (b *bench) lower() queue.Job {
	b.t.Helper()
	higher := b.job(0)
	higher.Options.ISVSVN = 9
	_, err := b.worker.Convert(context.Background(), higher)
	require.NoError(b.t, err)
	lower := b.job(1)
	lower.Target = higher.Target
	_, err = b.worker.Convert(context.Background(), lower)
	require.ErrorContains(b.t, err, "security version")
	return lower
}

// An image that the same plan converts, whose configuration cannot be found for a moment, is not replaced by a result.
func TestResultsOnlyWithoutConfiguration(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	j := b.job(0)
	j.ResultsOnly = true
	j.Target = b.job(1).Source
	b.withoutConfiguration("app:1")
	before := b.reg.Digest(t, "app:1")
	_, err := b.worker.Convert(context.Background(), j)
	assert.ErrorIs(t, err, image.ErrIncomplete)
	assert.Equal(t, before, b.reg.Digest(t, "app:1"))
}

// A result with a higher security version, whose configuration cannot be found for a moment, is not replaced by a lower
// one.
func TestRollbackWithoutConfiguration(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	lower := b.lower()
	b.withoutConfiguration("out:0")
	before := b.reg.Digest(t, "out:0")
	_, err := b.worker.Convert(context.Background(), lower)
	assert.ErrorIs(t, err, convert.ErrVersionUnknown)
	assert.Equal(t, before, b.reg.Digest(t, "out:0"))
}

// Nor is one whose registry answers, for a moment, by JSON that is not a manifest.
func TestRollbackBehindAPage(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	lower := b.lower()
	before := b.reg.Digest(t, "out:0")
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/out/manifests/") {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"message":"maintenance"}`))
			return true
		}
		return false
	})
	_, err := b.worker.Convert(context.Background(), lower)
	assert.ErrorIs(t, err, convert.ErrVersionUnknown)
	b.reg.Intercept(nil)
	assert.Equal(t, before, b.reg.Digest(t, "out:0"), "the tag went back to a lower security version")
}
