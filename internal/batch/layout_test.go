package batch_test

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// TestCutOffFromTheQueue with a layout as the target.
func TestCutOffWithALayout(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	q, far, between := twoSides(ctx, t)
	reached, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	b.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/app/blobs/") && !once.Swap(true) {
			close(reached)
			<-release
		}
		return false
	})
	j := b.job(0)
	j.Target = "oci:" + filepath.Join(b.dir, "layout") + ":0"
	of := b.submit(q, []batch.Job{j})
	work, stop := context.WithCancel(ctx)
	var working sync.WaitGroup
	w := anotherWorker(b)
	w.Own.Cache = nil
	working.Go(func() { _ = far.Work(work, work, w, b.options) })
	<-reached
	between.cut()
	b.reg.Push(t, "app:0", b.image("app:1"))
	records := b.work(q, of)
	require.Equal(t, batch.Converted, records[0].Status, records[0].Error)
	between.heal()
	close(release)
	time.Sleep(4 * time.Second)
	stop()
	working.Wait()
	records, err := q.Records(ctx, of.ID)
	require.NoError(t, err)
	ref, err := image.ParseReference(j.Target, true)
	require.NoError(t, err)
	img, err := store.Open(ctx, ref, registry.Options{})
	require.NoError(t, err)
	defer img.Close()
	require.Equal(t, batch.Converted, records[0].Status, records[0].Error)
	assert.Equal(t, records[0].Digest, img.Digest)
}

// A batch whose images were not found has nothing to try again.
func TestRetryOfWhatWasNotFound(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	q := b.open()
	ctx, cancel := context.WithCancel(context.Background())
	of := &batch.Batch{Name: "x"}
	err := q.SubmitFound(ctx, of, func(context.Context) ([]batch.Job, error) { cancel(); return nil, ctx.Err() })
	require.Error(t, err)
	found, err := q.Find(context.Background(), "")
	require.NoError(t, err)
	require.True(t, found.Finding)
	_, err = q.Retry(context.Background(), found)
	assert.ErrorIs(t, err, batch.ErrFinding)
}
