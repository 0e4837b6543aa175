package batch_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// A record of an image that was stored without a signature must not name a signer.
func TestSignerOfTheUnsigned(t *testing.T) {
	b := newBench(t)
	b.push(1)
	q := b.open()
	first := b.work(q, b.submit(q, b.jobs(1)))[0] // signed, without statements
	require.NotEqual(t, sgx.Measurement{}, first.MRSigner)
	b.worker.Own.Cache = nil
	b.worker.Own.Evidence = &convert.Evidence{Required: true}
	j := b.job(0)
	j.Unsigned, j.ReplaceSigner, j.NoEvidence, j.NeedsEvidence = true, true, false, true
	r := b.work(q, b.submit(q, []queue.Job{j}))[0]
	require.Equal(t, queue.Converted, r.Status, r.Error)
	require.NotEqual(t, first.Digest, r.Digest)
	require.Equal(t, r.Digest, b.reg.Digest(t, "out:0"), "the tag has the image without a signature")
	assert.Equal(t, sgx.Measurement{}, r.MRSigner, "the record names a signer of an image that nobody has signed")
}

// What appears under the tag after it was found to be empty, and before its digest is asked for, is not replaced
// unseen.
func TestRollbackOfWhatAppears(t *testing.T) {
	b := newBench(t)
	b.push(2)
	ctx := context.Background()
	higher := b.job(0)
	higher.Options.ISVSVN = 9
	_, err := b.worker.Convert(ctx, higher)
	require.NoError(t, err)
	lower := b.job(1) // to out:1, which is empty
	manifest, err := b.image("out:0").RawManifest()
	require.NoError(t, err)
	mt, err := b.image("out:0").MediaType()
	require.NoError(t, err)
	var once atomic.Bool
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/out/manifests/1") || once.Swap(true) {
			return false
		}
		answer := b.serve(r)
		require.Equal(t, http.StatusNotFound, answer.Code)
		pushed := httptest.NewRequest(http.MethodPut, r.URL.Path, bytes.NewReader(manifest)) // by another publisher
		pushed.Header.Set("Content-Type", string(mt))
		require.Equal(t, http.StatusCreated, b.serve(pushed).Code)
		pass(w, answer)
		return true
	})
	out, err := b.worker.Convert(ctx, lower)
	b.reg.Intercept(nil)
	require.True(t, once.Load())
	assert.Error(t, err, "an enclave with SVN 9 was replaced by one with a lower one, and nobody was asked: %+v", out)
	assert.Equal(t, b.reg.Digest(t, "out:0"), b.reg.Digest(t, "out:1"), "the tag went back to a lower security version")
}
