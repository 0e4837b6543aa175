package batch_test

import (
	"context"
	"crypto/rand"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// What is foreseen is what then becomes of a job, and foreseeing stores nothing.
func TestForesee(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.push(2)
	made, other := b.job(0), b.job(1)
	foresee := func(j queue.Job) batch.Forecast { return b.worker.Foresee(ctx, []queue.Job{j}, 1)[0] }
	becomes := func(j queue.Job, status queue.Status, replaces bool) {
		t.Helper()
		f := foresee(j)
		require.NoError(t, f.Err)
		assert.Equal(t, status, f.Status)
		assert.Equal(t, replaces, f.Replaces)
		out, err := b.worker.Convert(ctx, j)
		require.NoError(t, err)
		assert.Equal(t, status, out.Status)
	}
	becomes(made, queue.Converted, false)
	becomes(made, queue.Unchanged, false)

	replaced := other
	replaced.Target = made.Target
	becomes(replaced, queue.Converted, true)
	f := foresee(made)
	assert.Equal(t, queue.Converted, f.Status, "the target has another image now")
	assert.True(t, f.Replaces)

	result := made
	result.Source, result.Target = made.Target, made.Target+"-again"
	f = foresee(result)
	assert.Equal(t, queue.Failed, f.Status)
	require.ErrorIs(t, f.Err, convert.ErrConverted)
	result.Found = true
	assert.Equal(t, queue.Skipped, foresee(result).Status)

	// What the target has can be in the way: something of another key, or of a higher version, or nothing that answers.
	key, err := sgx.GenerateKey(rand.Reader)
	require.NoError(t, err)
	others := other
	others.Target = b.reg.Host + "/others:1"
	own := b.worker.Signer
	b.worker.Signer = key
	_, err = b.worker.Convert(ctx, others)
	require.NoError(t, err)
	b.worker.Signer = own
	var signed *convert.SignerError
	require.ErrorAs(t, foresee(others).Err, &signed)
	_, err = b.worker.Convert(ctx, others)
	require.ErrorAs(t, err, &signed)
	higher := other
	higher.Target, higher.Options.ISVSVN = b.reg.Host+"/higher:1", 7
	_, err = b.worker.Convert(ctx, higher)
	require.NoError(t, err)
	higher.Options.ISVSVN = 6
	var rollback *convert.RollbackError
	require.ErrorAs(t, foresee(higher).Err, &rollback)
	away := other
	away.Target = "127.0.0.1:1/away:1"
	f = foresee(away)
	require.Error(t, f.Err)
	assert.True(t, f.Transient)

	missing := made
	missing.Source += "-missing"
	f = foresee(missing)
	assert.Equal(t, queue.Failed, f.Status)
	require.ErrorIs(t, f.Err, image.ErrNotFound)
	assert.False(t, f.Transient)
}
