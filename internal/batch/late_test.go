package batch_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
)

// silentWorker: the PUT of the tag by the first worker hangs longer than the lease (its heartbeats do not arrive),
// another one ends the job; then the first PUT is stored, and its answer is lost / is 201.
func late9(t *testing.T, how string) {
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
		rec := httptest.NewRecorder()
		b.reg.Inner.ServeHTTP(rec, r) // it is stored
		switch how {
		case "answered":
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
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
	working.Go(func() { _ = far.Work(work, work, anotherWorker(b), b.options) })
	<-reached
	p.cut()
	if how == "answered" { // a second worker fails for good, and somebody has it tried again
		w := anotherWorker(b)
		w.Backends = nil
		good := b.worker
		b.worker = w
		records := b.work(q, of)
		require.Equal(t, batch.Failed, records[0].Status)
		b.worker = good
		_, err := q.Retry(ctx, of)
		require.NoError(t, err)
	}
	b.reg.Push(t, "app:0", mustImage(b)) // the tag of the source is moved on
	records := b.work(q, of)
	require.Equal(t, batch.Converted, records[0].Status)
	require.Equal(t, records[0].Digest, b.reg.Digest(t, "out:0"))
	p.heal()
	time.Sleep(time.Second)
	close(release)
	<-after
	time.Sleep(4 * time.Second)
	failing.Store(false)
	time.Sleep(time.Second)
	records, err = q.Records(ctx, of.ID)
	require.NoError(t, err)
	if s := records[0].Status; s == batch.Converted || s == batch.Unchanged {
		assert.Equal(t, records[0].Digest, b.reg.Digest(t, "out:0"))
	}
	stop()
	working.Wait()
}

func TestLateAndNotAnswered(t *testing.T) { late9(t, "lost") }
func TestLateAndThenSilent(t *testing.T)  { late9(t, "head") }
func TestLateAndStopped(t *testing.T)     { late9(t, "stopped") }
func TestLateAfterRetry(t *testing.T)     { late9(t, "answered") }

// A, B, A, B are asked for, while the first A's tag is on its way; it is stored, and its worker is stopped.
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
		for _, j := range []batch.Job{c, a, c} {
			x, err := request(ctx, q, j)
			assert.NoError(t, err)
			final = x.ID
		}
		for range 500 {
			records, _ := q.Records(ctx, batch.Requests)
			done := true
			for _, x := range records {
				done = done && x.Status.Final()
			}
			if done {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		rec := httptest.NewRecorder()
		b.reg.Inner.ServeHTTP(rec, r)
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
	working.Go(func() { _ = q.Work(one, one, b.worker, b.options) })
	time.Sleep(500 * time.Millisecond)
	working.Go(func() { _ = q.Work(ctx, ctx, anotherWorker(b), b.options) })
	<-stored
	time.Sleep(4 * time.Second)
	records, err := q.Records(ctx, batch.Requests)
	require.NoError(t, err)
	for _, r := range records {
		if r.ID == final {
			assert.Equal(t, r.Digest, b.reg.Digest(t, "out:0"), "VOUCHES WRONGLY: the tag has what was asked for last")
		}
	}
}

func TestFindingsSignedSince(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(1)
	q := b.open()
	made := b.work(q, b.submit(q, b.jobs(1)))[0]
	b.worker.Own.Cache = nil
	j := b.job(0)
	j.Unsigned = true
	again := b.work(q, b.submit(q, []batch.Job{j}))[0]
	assert.Equal(t, made.Findings, again.Findings)
}
