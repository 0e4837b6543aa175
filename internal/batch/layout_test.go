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

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/pkg/image"
)

// TestCutOffFromTheQueue with a layout as the target: nobody asks before its name is moved.
func TestCutOffWithALayout(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
	})
	require.NoError(t, err)
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	require.True(t, s.ReadyForConnections(10*time.Second))
	p := newCut(t, s.Addr().String())
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	q, err := batch.Open(ctx, batch.QueueOptions{URL: s.ClientURL(), Lease: time.Second})
	require.NoError(t, err)
	defer q.Close()
	far, err := batch.Open(ctx, batch.QueueOptions{URL: "nats://" + p.addr, Lease: time.Second})
	require.NoError(t, err)
	defer far.Close()
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
	p.cut()
	b.reg.Push(t, "app:0", mustImage(b))
	records := b.work(q, of)
	require.Equal(t, batch.Converted, records[0].Status, records[0].Error)
	p.heal()
	close(release)
	time.Sleep(4 * time.Second)
	stop()
	working.Wait()
	records, err = q.Records(ctx, of.ID)
	require.NoError(t, err)
	ref, err := image.ParseReference(j.Target, true)
	require.NoError(t, err)
	img, err := image.Open(ctx, ref, image.Options{})
	require.NoError(t, err)
	defer img.Close()
	assert.False(t, records[0].Status.Final() && records[0].Digest != img.Digest, "VOUCHES WRONGLY")
}

// A batch whose images are still being found is retried with success, and has no results.
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
