package batch_test

import (
	"io"
	"net"

	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/pkg/convert"
)

func anotherWorker(b *bench) *batch.Worker {
	return &batch.Worker{
		Name: "other", Signer: b.worker.Signer, Backends: b.worker.Backends, Files: b.worker.Files, Insecure: true,
		Own: b.worker.Own,
	}
}

// The earlier request's manifest is stored under the tag, after the later request was done, and the answer is an error.
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
	var second *batch.Record
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, "/out/manifests/0") || once.Swap(true) {
			return false
		}
		// while it is on its way, the later one is asked for and done
		var err error
		second, err = request(ctx, q, later)
		assert.NoError(t, err)
		for {
			records, err := q.Records(ctx, batch.Requests)
			if err != nil {
				return true
			}
			done := false
			for _, x := range records {
				done = done || x.ID == second.ID && x.Status.Final()
			}
			if done {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		rec := httptest.NewRecorder()
		b.reg.Inner.ServeHTTP(rec, r) // it is stored
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	_, err := request(ctx, q, earlier)
	require.NoError(t, err)
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	working.Go(func() { _ = q.Work(ctx, ctx, b.worker, b.options) })
	settled(t, q, func(records []*batch.Record) bool { return len(records) == 2 })
	time.Sleep(3 * time.Second)
	records, err := q.Records(ctx, batch.Requests)
	require.NoError(t, err)
	for _, r := range records {
		if r.ID == second.ID {
			assert.Equal(t, r.Digest, b.reg.Digest(t, "out:0"), "the tag has what was asked for last")
		}
	}
}

// The worker of the earlier request ends (its grace is over) right after its manifest was stored.
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
	var second *batch.Record
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
		for range 500 {
			records, _ := q.Records(ctx, batch.Requests)
			done := false
			for _, x := range records {
				done = done || x.ID == second.ID && x.Status.Final()
			}
			if done {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		rec := httptest.NewRecorder()
		b.reg.Inner.ServeHTTP(rec, r) // it is stored
		kill()
		time.Sleep(200 * time.Millisecond)
		return true
	})
	_, err := request(ctx, q, earlier)
	require.NoError(t, err)
	working.Go(func() { _ = q.Work(one, one, b.worker, b.options) })
	time.Sleep(500 * time.Millisecond)
	working.Go(func() { _ = q.Work(ctx, ctx, anotherWorker(b), b.options) })
	settled(t, q, func(records []*batch.Record) bool { return len(records) == 2 })
	time.Sleep(2 * time.Second)
	records, err := q.Records(ctx, batch.Requests)
	require.NoError(t, err)
	for _, r := range records {
		if r.ID == second.ID {
			assert.Equal(t, r.Digest, b.reg.Digest(t, "out:0"), "the tag has what was asked for last")
		}
	}
}

// The later one has seen that the target is as it should be, and is still at its statements, when the earlier one moves
// the tag.
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
			rec := httptest.NewRecorder()
			b.reg.Inner.ServeHTTP(rec, r)
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
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
	working.Go(func() { _ = q.Work(ctx, ctx, b.worker, b.options) })
	<-put
	second, err := request(ctx, q, later)
	require.NoError(t, err)
	<-held
	require.Eventually(t, func() bool {
		records, err := q.Records(ctx, batch.Requests)
		require.NoError(t, err)
		for _, r := range records {
			if r.ID == first.ID && r.Status.Final() {
				return true
			}
		}
		return false
	}, 20*time.Second, 20*time.Millisecond)
	close(stored)
	settled(t, q, func(records []*batch.Record) bool { return len(records) == 2 })
	time.Sleep(2 * time.Second)
	records, err := q.Records(ctx, batch.Requests)
	require.NoError(t, err)
	for _, r := range records {
		if r.ID == second.ID {
			assert.Equal(t, r.Digest, b.reg.Digest(t, "out:0"), "the tag has what was asked for last")
		}
	}
}

func mustImage(b *bench) v1.Image {
	ref, err := name.ParseReference(b.reg.Host + "/app:1")
	require.NoError(b.t, err)
	img, err := remote.Image(ref)
	require.NoError(b.t, err)
	return img
}

// A worker that is cut off from the queue, whose image another one has converted meanwhile, moves the tag back.
func TestCutOffFromTheQueue(t *testing.T) {
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
	// a network between that can be cut
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var mu sync.Mutex
	var conns []net.Conn
	var cut atomic.Bool
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if cut.Load() {
				c.Close()
				continue
			}
			d, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				c.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, c, d)
			mu.Unlock()
			go io.Copy(c, d) //nolint:errcheck
			go io.Copy(d, c) //nolint:errcheck
		}
	}()
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	q, err := batch.Open(ctx, batch.QueueOptions{URL: s.ClientURL(), Lease: time.Second})
	require.NoError(t, err)
	defer q.Close()
	far, err := batch.Open(ctx, batch.QueueOptions{URL: "nats://" + l.Addr().String(), Lease: time.Second})
	require.NoError(t, err)
	defer far.Close()

	reached, release := make(chan struct{}), make(chan struct{})
	var once, ended atomic.Bool
	b.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.HasSuffix(r.URL.Path, "/out/manifests/0") && !once.Swap(true) { // the target is slow for a moment
			close(reached)
			<-release
		}
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/out/manifests/0") {
			defer func() { ended.Store(ended.Load() || cut.Load()) }()
		}
		return false
	})
	of := b.submit(q, b.jobs(1))
	work, stop := context.WithCancel(ctx)
	var working sync.WaitGroup
	working.Go(func() { _ = far.Work(work, work, anotherWorker(b), b.options) })
	<-reached
	cut.Store(true)
	mu.Lock()
	for _, c := range conns {
		c.Close()
	}
	mu.Unlock()
	b.reg.Push(t, "app:0", mustImage(b)) // the tag of the source is moved on
	records := b.work(q, of)
	require.Equal(t, records[0].Digest, b.reg.Digest(t, "out:0"))
	close(release)
	time.Sleep(2 * time.Second)
	stop()
	working.Wait()
	records, err = q.Records(ctx, of.ID)
	require.NoError(t, err)
	assert.Equal(t, records[0].Digest, b.reg.Digest(t, "out:0"), "what the batch says")
}
