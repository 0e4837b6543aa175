package batch_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/queue"
)

// A worker that is cut off from the queue has an outcome, which it cannot tell. Another one is given the job, finds a
// newer source and moves the tag; the answer is lost, so that it is to look again, or fails. The first
// one comes back: what the batch says in the end is what the tag has.
func overridden(t *testing.T, first, second string) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	q, far, between := twoSides(ctx, t)
	if first == "unchanged" {
		_, err := b.worker.Convert(ctx, b.job(0))
		require.NoError(t, err)
	}
	work, stop := context.WithCancel(ctx)
	secondWork, stopSecond := context.WithCancel(work)
	reached, release, lost := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var once, failing, storedOnce atomic.Bool
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.HasSuffix(r.URL.Path, "/out/manifests/0") {
			return false
		}
		is := r.Method == http.MethodPut
		if first == "unchanged" {
			is = r.Method == http.MethodHead
		}
		if is && !once.Swap(true) { // the first worker's
			answer := b.serve(r)
			close(reached)
			<-release
			pass(w, answer)
			return true
		}
		if r.Method == http.MethodPut && !storedOnce.Swap(true) { // the second worker's
			b.serve(r) // it is stored
			failing.Store(true)
			close(lost)
		}
		if failing.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	})
	of := b.submit(q, b.jobs(1))
	var working sync.WaitGroup
	defer working.Wait()
	defer stop()
	working.Go(func() { _ = anotherWorker(b).Work(work, work, far, b.options) })
	<-reached
	older := b.reg.Digest(t, "out:0")
	between.cut()
	close(release)
	b.reg.Push(t, "app:0", b.image("app:1")) // the tag of the source is moved on
	o := b.options
	o.FirstPause = 3 * time.Second
	if second == "failed" {
		o.Attempts = 1
	}
	working.Go(func() { _ = b.worker.Work(secondWork, secondWork, q, o) })
	<-lost
	want := map[string]queue.Status{"retrying": queue.Retrying, "failed": queue.Failed}[second]
	require.True(t, firstBecomes(ctx, t, q, of.ID, want).Moving)
	stopSecond() // it has done what it does
	failing.Store(false)
	require.NotEqual(t, older, b.reg.Digest(t, "out:0"), "the second worker has moved the tag")
	between.heal()
	require.NoError(t, q.Wait(ctx, of, func(r *queue.Record) { t.Log(r.Status, r.Worker, r.Digest, r.Error) }))
	time.Sleep(2 * time.Second)
	working.Go(func() { _ = b.worker.Work(work, work, q, b.options) }) // there are workers enough
	time.Sleep(6 * time.Second)
	require.NoError(t, q.Wait(ctx, of, func(*queue.Record) {}))
	records, err := q.Records(ctx, of.ID)
	require.NoError(t, err)
	t.Log(records[0].Status, records[0].Worker, records[0].Begun)
	if s := records[0].Status; s == queue.Converted || s == queue.Unchanged {
		assert.Equal(t, records[0].Digest, b.reg.Digest(t, "out:0"), "%s: the tag has what the record says", s)
	}
}

func TestConvertedOverRetrying(t *testing.T) { overridden(t, "converted", "retrying") }
func TestUnchangedOverFailed(t *testing.T)   { overridden(t, "unchanged", "failed") }

// As overridden, but the second worker is at its next attempt when the first one comes back: it sees that the tag
// has what it wants, so it moves nothing, and what it says is dropped for what the first one said.
func TestConvertedOverRunning(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	q, far, between := twoSides(ctx, t)
	reached, release, lost, held, goOn := make(chan struct{}), make(chan struct{}), make(chan struct{}),
		make(chan struct{}), make(chan struct{})
	var once, failing, storedOnce, heldOnce, hold atomic.Bool
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.HasSuffix(r.URL.Path, "/out/manifests/0") {
			return false
		}
		switch {
		case r.Method == http.MethodPut && !once.Swap(true): // the first worker's
			answer := b.serve(r)
			close(reached)
			<-release
			pass(w, answer)
			return true
		case r.Method == http.MethodPut && !storedOnce.Swap(true): // the second worker's
			b.serve(r) // it is stored
			failing.Store(true)
			close(lost)
		case r.Method == http.MethodHead && hold.Load() && !heldOnce.Swap(true): // its next attempt
			close(held)
			<-goOn
			return false
		}
		if failing.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	})
	of := b.submit(q, b.jobs(1))
	work, stop := context.WithCancel(ctx)
	var working sync.WaitGroup
	defer working.Wait()
	defer stop()
	working.Go(func() { _ = anotherWorker(b).Work(work, work, far, b.options) })
	<-reached
	older := b.reg.Digest(t, "out:0")
	between.cut()
	close(release)
	b.reg.Push(t, "app:0", b.image("app:1")) // the tag of the source is moved on
	o := b.options
	o.FirstPause = 2 * time.Second
	working.Go(func() { _ = b.worker.Work(work, work, q, o) })
	<-lost
	firstBecomes(ctx, t, q, of.ID, queue.Retrying)
	hold.Store(true)
	failing.Store(false)
	<-held
	require.NotEqual(t, older, b.reg.Digest(t, "out:0"))
	between.heal()
	time.Sleep(3 * time.Second) // the first one has come back
	close(goOn)
	require.NoError(t, q.Wait(ctx, of, func(*queue.Record) {}))
	records, err := q.Records(ctx, of.ID)
	require.NoError(t, err)
	t.Log(records[0].Status, records[0].Worker, records[0].Begun)
	if s := records[0].Status; s == queue.Converted || s == queue.Unchanged {
		assert.Equal(t, records[0].Digest, b.reg.Digest(t, "out:0"), "%s: the tag has what the record says", s)
	}
}

// firstBecomes waits until the first record of a batch has the status, and returns it.
func firstBecomes(ctx context.Context, t *testing.T, q *queue.Queue, id string, status queue.Status) *queue.Record {
	t.Helper()
	for {
		records, err := q.Records(ctx, id)
		require.NoError(t, err)
		if records[0].Status == status {
			return records[0]
		}
		time.Sleep(20 * time.Millisecond)
	}
}
