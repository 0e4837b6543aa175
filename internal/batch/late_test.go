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

// lateTag has a worker's request that moves the tag hang for longer than the lease, while its heartbeats do not arrive.
// Another worker ends the job, and then the tag is moved: how is what becomes of the first worker. The job is looked at
// again.
func lateTag(t *testing.T, how string) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	q, far, between := twoSides(ctx, t)
	work, stop := context.WithCancel(ctx)
	reached, release, after := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var once, failing atomic.Bool
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if how == "head" && failing.Load() && strings.HasSuffix(r.URL.Path, "/out/manifests/0") {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		if r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, "/out/manifests/0") {
			return false
		}
		if failing.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		if once.Swap(true) {
			return false
		}
		close(reached)
		<-release
		answer := b.serve(r) // it is stored
		switch how {
		case "answered":
			pass(w, answer)
		case "stopped":
			stop()
			time.Sleep(200 * time.Millisecond)
		default:
			failing.Store(true)
			w.WriteHeader(http.StatusBadGateway)
		}
		close(after)
		return true
	})
	of := b.submit(q, b.jobs(1))
	var working sync.WaitGroup
	working.Go(func() { _ = anotherWorker(b).Work(work, work, far, b.options) })
	<-reached
	between.cut()
	if how == "answered" { // a second worker fails for good, and somebody has it tried again
		w := anotherWorker(b)
		w.Backends = nil
		good := b.worker
		b.worker = w
		records := b.work(q, of)
		require.Equal(t, queue.Failed, records[0].Status)
		b.worker = good
		_, err := q.Retry(ctx, of)
		require.NoError(t, err)
	}
	b.reg.Push(t, "app:0", b.image("app:1")) // the tag of the source is moved on
	records := b.work(q, of)
	require.Equal(t, queue.Converted, records[0].Status)
	require.Equal(t, records[0].Digest, b.reg.Digest(t, "out:0"))
	between.heal()
	time.Sleep(time.Second)
	close(release)
	<-after
	time.Sleep(4 * time.Second)
	failing.Store(false)
	time.Sleep(time.Second)
	records, err := q.Records(ctx, of.ID)
	require.NoError(t, err)
	if s := records[0].Status; s == queue.Converted || s == queue.Unchanged {
		assert.Equal(t, records[0].Digest, b.reg.Digest(t, "out:0"))
	}
	stop()
	working.Wait()
}

func TestLateAndNotAnswered(t *testing.T) { lateTag(t, "lost") }
func TestLateAndThenSilent(t *testing.T)  { lateTag(t, "head") }
func TestLateAndStopped(t *testing.T)     { lateTag(t, "stopped") }
func TestLateAfterRetry(t *testing.T)     { lateTag(t, "answered") }

// While a tag is on its way for A, what is asked for is B, A and B; then it is stored, and its worker is stopped. B is
// looked at again.
func TestMovingWhileAskedAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	q, _ := b.server()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	one, kill := context.WithCancel(ctx)
	a, c := b.job(0), b.job(1)
	c.Target = a.Target
	var once atomic.Bool
	stored := make(chan struct{})
	var final string
	b.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, "/out/manifests/0") || once.Swap(true) {
			return false
		}
		for _, j := range []queue.Job{c, a, c} {
			x, err := request(ctx, q, j)
			assert.NoError(t, err)
			final = x.ID
		}
		requestDone(ctx, q, final)
		b.serve(r)
		kill()
		time.Sleep(200 * time.Millisecond)
		close(stored)
		return true
	})
	_, err := request(ctx, q, a)
	require.NoError(t, err)
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	working.Go(func() { _ = b.worker.Work(one, one, q, b.options) })
	time.Sleep(500 * time.Millisecond)
	working.Go(func() { _ = anotherWorker(b).Work(ctx, ctx, q, b.options) })
	<-stored
	time.Sleep(4 * time.Second)
	tagIsOf(t, b, q, final)
}

// What was signed since is unchanged, and told with its findings.
func TestFindingsSignedSince(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(1)
	q := b.open()
	made := b.work(q, b.submit(q, b.jobs(1)))[0]
	b.worker.Own.Cache = nil
	j := b.job(0)
	j.Unsigned = true
	again := b.work(q, b.submit(q, []queue.Job{j}))[0]
	require.Equal(t, queue.Unchanged, again.Status)
	assert.Positive(t, made.Findings)
	assert.Equal(t, made.Findings, again.Findings)
}
