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

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/convert"
)

// An earlier request's manifest is stored under the tag after the later request was done, and answered by an error: the
// later one is looked at again.
func TestMovedAndNotAnswered(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	q := b.open()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	earlier, later := b.job(0), b.job(1)
	later.Target = earlier.Target
	var once atomic.Bool
	var second *queue.Record
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, "/out/manifests/0") || once.Swap(true) {
			return false
		}
		// while it is on its way, the later one is asked for and done
		var err error
		second, err = request(ctx, q, later)
		assert.NoError(t, err)
		requestDone(ctx, q, second.ID)
		b.serve(r) // it is stored
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	_, err := request(ctx, q, earlier)
	require.NoError(t, err)
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	working.Go(func() { _ = b.worker.Work(ctx, ctx, q, b.options) })
	settled(t, q, func(records []*queue.Record) bool { return len(records) == 2 })
	time.Sleep(3 * time.Second)
	tagIsOf(t, b, q, second.ID)
}

// So it is if the worker of the earlier request ends, since its grace is over, right after its manifest was stored.
func TestStoppedAfterTheTagMoved(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	q, _ := b.server()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	one, kill := context.WithCancel(ctx)
	earlier, later := b.job(0), b.job(1)
	later.Target = earlier.Target
	var once atomic.Bool
	var second *queue.Record
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	b.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, "/out/manifests/0") || once.Swap(true) {
			return false
		}
		var err error
		second, err = request(ctx, q, later)
		assert.NoError(t, err)
		requestDone(ctx, q, second.ID)
		b.serve(r) // it is stored
		kill()
		time.Sleep(200 * time.Millisecond)
		return true
	})
	_, err := request(ctx, q, earlier)
	require.NoError(t, err)
	working.Go(func() { _ = b.worker.Work(one, one, q, b.options) })
	time.Sleep(500 * time.Millisecond)
	working.Go(func() { _ = anotherWorker(b).Work(ctx, ctx, q, b.options) })
	settled(t, q, func(records []*queue.Record) bool { return len(records) == 2 })
	time.Sleep(2 * time.Second)
	tagIsOf(t, b, q, second.ID)
}

// So it is if the later one has seen that the target is as it should be, and is still at its statements, when the
// earlier one moves the tag.
func TestMovedWhileUnchanged(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	q := b.open()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b.worker.Own.Evidence = &convert.Evidence{Required: true}
	earlier, later := b.job(0), b.job(1)
	earlier.NoEvidence, later.NoEvidence, later.NeedsEvidence = false, false, true
	later.Target = earlier.Target
	made, err := b.worker.Convert(ctx, later)
	require.NoError(t, err)
	var once, onceMore atomic.Bool
	put, stored, held := make(chan struct{}), make(chan struct{}), make(chan struct{})
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		switch {
		case r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/out/manifests/0") && !once.Swap(true):
			close(put)
			<-held // the later one has looked at the tag
			pass(w, b.serve(r))
			return true
		case strings.Contains(r.URL.Path, "/out/referrers/"+made.Digest) && once.Load() && !onceMore.Swap(true):
			close(held)
			<-stored
		}
		return false
	})
	first, err := request(ctx, q, earlier)
	require.NoError(t, err)
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	working.Go(func() { _ = b.worker.Work(ctx, ctx, q, b.options) })
	<-put
	second, err := request(ctx, q, later)
	require.NoError(t, err)
	<-held
	requestDone(ctx, q, first.ID)
	close(stored)
	settled(t, q, func(records []*queue.Record) bool { return len(records) == 2 })
	time.Sleep(2 * time.Second)
	tagIsOf(t, b, q, second.ID)
}

// A worker that is cut off from the queue moves no tag back, after another one has converted the image meanwhile.
func TestCutOffFromTheQueue(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	q, far, between := twoSides(ctx, t)
	reached, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	b.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.HasSuffix(r.URL.Path, "/out/manifests/0") && !once.Swap(true) { // the target is slow for a moment
			close(reached)
			<-release
		}
		return false
	})
	of := b.submit(q, b.jobs(1))
	work, stop := context.WithCancel(ctx)
	var working sync.WaitGroup
	working.Go(func() { _ = anotherWorker(b).Work(work, work, far, b.options) })
	<-reached
	between.cut()
	b.reg.Push(t, "app:0", b.image("app:1")) // the tag of the source is moved on
	records := b.work(q, of)
	require.Equal(t, records[0].Digest, b.reg.Digest(t, "out:0"))
	close(release)
	time.Sleep(2 * time.Second)
	stop()
	working.Wait()
	records, err := q.Records(ctx, of.ID)
	require.NoError(t, err)
	assert.Equal(t, records[0].Digest, b.reg.Digest(t, "out:0"), "what the batch says")
}

// movedAndFailed has a worker that has lost its lease move the tag, and fail in its last attempt, while another one,
// which has looked at the tag before, is still at the image: what it says in the end is what the tag has. The other one
// is a slot of the same process if there is no second worker.
func movedAndFailed(t *testing.T, second func(*bench) *batch.Worker) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	q, far, between := twoSides(ctx, t)
	b.worker.Own.Evidence = &convert.Evidence{Required: true}
	j := b.job(0)
	j.NoEvidence, j.NeedsEvidence = false, true
	older, newer := b.image("app:0"), b.image("app:1")

	// The target has what comes of the newer image, which the second worker remembers.
	b.reg.Push(t, "app:0", newer)
	made, err := b.worker.Convert(ctx, j)
	require.NoError(t, err)
	b.reg.Push(t, "app:0", older)

	reached, release, stored, held, goOn := make(chan struct{}), make(chan struct{}), make(chan struct{}),
		make(chan struct{}), make(chan struct{})
	var once, onceMore, failing atomic.Bool
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		tag := strings.HasSuffix(r.URL.Path, "/out/manifests/0")
		switch {
		case tag && failing.Load():
			w.WriteHeader(http.StatusBadGateway)
			return true
		case tag && r.Method == http.MethodPut && !once.Swap(true):
			close(reached)
			<-release
			b.serve(r) // it is stored
			failing.Store(true)
			w.WriteHeader(http.StatusBadGateway)
			close(stored)
			return true
		case strings.Contains(r.URL.Path, "/out/referrers/"+made.Digest) && once.Load() && !onceMore.Swap(true):
			close(held) // the second worker has seen that the tag has what it wants
			<-goOn
		}
		return false
	})
	of := b.submit(q, []queue.Job{j})
	work, stop := context.WithCancel(ctx)
	var working sync.WaitGroup
	defer working.Wait()
	defer stop()
	first := b.options
	first.Attempts = 1
	w := b.worker
	if second != nil {
		w = second(b)
	}
	working.Go(func() { _ = w.Work(work, work, far, first) })
	<-reached
	between.cut()
	b.reg.Push(t, "app:0", newer)
	if second != nil {
		working.Go(func() { _ = b.worker.Work(work, work, q, b.options) })
		<-held
		between.heal()
	} else {
		time.Sleep(3 * time.Second) // longer than the lease
		between.heal()
		<-held
	}
	time.Sleep(2 * time.Second)
	close(release)
	<-stored
	time.Sleep(3 * time.Second) // the first worker has failed
	failing.Store(false)
	close(goOn)
	require.NoError(t, q.Wait(ctx, of, func(r *queue.Record) { t.Log(r.Status, r.Worker, r.Digest, r.Error) }))
	time.Sleep(4 * time.Second)
	records, err := q.Records(ctx, of.ID)
	require.NoError(t, err)
	if records[0].Status != queue.Failed { // as it is if the first worker is given it again, and fails again
		require.Contains(t, []queue.Status{queue.Converted, queue.Unchanged}, records[0].Status, records[0].Error)
		assert.Equal(t, records[0].Digest, b.reg.Digest(t, "out:0"), "%s", records[0].Status)
	}
}

func TestMovedAndFailedWhileAnotherRuns(t *testing.T) {
	movedAndFailed(t, func(b *bench) *batch.Worker {
		w := anotherWorker(b)
		w.Own.Cache = nil
		return w
	})
}

// Two containers can have the host's name, and each the process 1.
func TestMovedAndFailedOneName(t *testing.T) {
	movedAndFailed(t, func(b *bench) *batch.Worker {
		w := anotherWorker(b)
		w.Own.Cache, w.Name = nil, b.worker.Name
		return w
	})
}

// One process was cut off for longer than the lease, as a laptop that slept.
func TestMovedAndFailedOneProcess(t *testing.T) { movedAndFailed(t, nil) }
