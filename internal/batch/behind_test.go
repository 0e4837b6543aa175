package batch_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A target with a higher security version answers, for a moment, by JSON that is no manifest.
func TestRollbackBehindAPage(t *testing.T) {
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
	before := b.reg.Digest(t, "out:0")
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/out/manifests/0") {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"message":"maintenance"}`))
			return true
		}
		return false
	})
	_, err = b.worker.Convert(context.Background(), lower)
	assert.Error(t, err)
	b.reg.Intercept(nil)
	assert.Equal(t, before, b.reg.Digest(t, "out:0"), "the tag went back to a lower security version")
}
