package batch_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/batch"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// server is a queue's of its own, to which anybody can write.
func (b *bench) server() (q *batch.Queue, js jetstream.JetStream) {
	b.t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: b.t.TempDir(), NoSigs: true, NoLog: true})
	require.NoError(b.t, err)
	go s.Start()
	b.t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	require.True(b.t, s.ReadyForConnections(10*time.Second))
	q, err = batch.Open(context.Background(), batch.QueueOptions{URL: s.ClientURL()})
	require.NoError(b.t, err)
	b.t.Cleanup(q.Close)
	nc, err := nats.Connect(s.ClientURL())
	require.NoError(b.t, err)
	b.t.Cleanup(nc.Close)
	js, err = jetstream.New(nc)
	require.NoError(b.t, err)
	return q, js
}

// Messages that name no record are thrown away, and keep no worker from the jobs behind them.
func TestMessagesWithoutRecord(t *testing.T) {
	b := newBench(t)
	b.push(1)
	q, js := b.server()
	for i := range 40 {
		for lane := range 8 {
			_, err := js.Publish(context.Background(), fmt.Sprintf("cconvert.jobs.%d.x.y%d.0", lane, i), []byte(".bad. 0"))
			require.NoError(t, err)
		}
	}
	records := b.work(q, b.submit(q, b.jobs(1)))
	assert.Equal(t, map[batch.Status]int{batch.Converted: 1}, statuses(records))
}

// A worker that was started for TLS does not speak HTTP because a job says so, nor take a runtime that came over it.
func TestInsecureJobs(t *testing.T) {
	b := newBench(t)
	b.push(1)
	b.worker.Insecure = false
	_, err := b.worker.Convert(context.Background(), b.job(0))
	require.ErrorIs(t, err, batch.ErrInsecure)
	j := b.job(0)
	j.Insecure = false // the address is a loopback's, with which HTTP is tried always
	_, err = b.worker.Convert(context.Background(), j)
	require.NoError(t, err)
}

// What no flag would allow, no job is allowed.
func TestOptionsOfStrangers(t *testing.T) {
	b := newBench(t)
	b.push(1)
	for _, change := range []func(*batch.Job){
		func(j *batch.Job) { j.Options.PassEnv = []string{"LD_PRELOAD"} },
		func(j *batch.Job) { j.Options.Tmpfs = []string{"relative"} },
		func(j *batch.Job) { j.Options.EnclaveSize = 3 << 20 },
	} {
		j := b.job(0)
		change(&j)
		_, err := b.worker.Convert(context.Background(), j)
		var wrong *launch.OptionError
		assert.ErrorAs(t, err, &wrong)
	}
}

// The default key is there to try things: no plan or job has it take a tag from another one.
func TestDefaultKeyReplacesNoOther(t *testing.T) {
	b := newBench(t)
	b.push(1)
	b.worker.DefaultKey = true
	j := b.job(0)
	_, err := b.worker.Convert(context.Background(), j)
	require.NoError(t, err)
	j.ReplaceSigner = true
	_, err = b.worker.Convert(context.Background(), j)
	require.ErrorIs(t, err, batch.ErrDefaultKey)
}

// What the same batch converts is replaced by a result if it is one itself, and not otherwise.
func TestResultsOnly(t *testing.T) {
	b := newBench(t)
	b.push(2)
	j := b.job(0)
	j.ResultsOnly = true
	for range 2 { // nothing is there, then a result
		j.Force = true
		_, err := b.worker.Convert(context.Background(), j)
		require.NoError(t, err)
	}
	j.Target = j.Source
	_, err := b.worker.Convert(context.Background(), j)
	require.ErrorIs(t, err, batch.ErrSource)
	j.Target = b.job(1).Source
	before := b.reg.Digest(t, "app:1")
	_, err = b.worker.Convert(context.Background(), j)
	require.ErrorIs(t, err, batch.ErrSource)
	assert.Equal(t, before, b.reg.Digest(t, "app:1"))
}

// Only what is wrong with the image itself makes it one that is left out.
func TestSkippedForTheImageAlone(t *testing.T) {
	b := newBench(t)
	b.push(1)
	b.worker.Backends = append(b.worker.Backends, gramine.Backend{})
	arm, err := mutate.ConfigFile(fixture.Image(t, v1.Config{Cmd: []string{"/x"}}), &v1.ConfigFile{OS: "linux", Architecture: "arm64"})
	require.NoError(t, err)
	runtime := b.job(0)
	runtime.Found, runtime.Runtime = true, batch.Runtime{Kind: "gramine", Source: b.reg.Push(t, "runtime:arm", arm)}
	itself := b.job(0)
	itself.Found, itself.Source = true, runtime.Runtime.Source
	q := b.open()
	for _, r := range b.work(q, b.submit(q, []batch.Job{runtime, itself})) {
		want := batch.Failed
		if r.Job.Source == itself.Source {
			want = batch.Skipped
		}
		assert.Equal(t, want, r.Status, r.Error)
	}
}

// Registries whose names share a lane do not share its places.
func TestSilentRegistryInTheSameLane(t *testing.T) {
	b := newBench(t)
	b.push(4)
	lane := func(host string) uint32 {
		h := fnv.New32a()
		h.Write([]byte(host))
		return h.Sum32() % 8
	}
	silent := fixture.NewRegistry(t)
	for lane(silent.Host) != lane(b.reg.Host) {
		silent = fixture.NewRegistry(t)
	}
	silent.Silence(t)
	var jobs []batch.Job
	for i := range 200 {
		j := b.job(0)
		j.Source, j.Target = fmt.Sprintf("%s/app:%d", silent.Host, i), fmt.Sprintf("%s/silent:%d", b.reg.Host, i)
		jobs = append(jobs, j)
	}
	b.options = batch.WorkOptions{Parallel: 4, Attempts: 1, FirstPause: time.Millisecond, Timeout: 20 * time.Second}
	q := b.open()
	of := b.submit(q, append(jobs, b.jobs(4)...))
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	go func() { _ = q.Work(ctx, ctx, b.worker, b.options) }()
	for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		records, err := q.Records(ctx, of.ID)
		if err == nil && statuses(records)[batch.Converted] == 4 {
			return
		}
	}
	t.Error("jobs wait behind those of a silent registry")
}

// Once another key signs for a queue, a worker with the old one signs nothing more, though it runs already.
func TestNewSignerEndsOldWorkers(t *testing.T) {
	b := newBench(t)
	b.push(2)
	q, _ := b.server()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	key, err := b.worker.Signer.Public(ctx)
	require.NoError(t, err)
	require.NoError(t, q.Claim(ctx, sgx.MRSigner(key), false))
	ended := make(chan error, 1)
	go func() { ended <- q.Work(ctx, ctx, b.worker, b.options) }()
	first := b.submit(q, b.jobs(1))
	require.NoError(t, q.Wait(ctx, first, func(*batch.Record) {}))

	// Whoever takes over is another process, with a connection of its own.
	other := *q
	require.NoError(t, (&other).Claim(ctx, sgx.Measurement{1}, true))
	second := b.submit(q, []batch.Job{b.job(1)})
	select {
	case err := <-ended:
		assert.ErrorIs(t, err, batch.ErrSigner)
	case <-ctx.Done():
		t.Fatal("the worker goes on")
	}
	records, err := q.Records(ctx, second.ID)
	require.NoError(t, err)
	assert.True(t, slices.ContainsFunc(records, func(r *batch.Record) bool { return r.Status == batch.Queued }))
}

// Of two requests for a target the last one counts, however late the source of the first one answers.
func TestLateRequestReplacesNothing(t *testing.T) {
	b := newBench(t)
	b.push(2)
	q := b.open()
	reached, release := make(chan struct{}), make(chan struct{})
	first := sync.OnceFunc(func() { close(reached) })
	b.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.HasSuffix(r.URL.Path, "/app/manifests/0") {
			first()
			<-release
		}
		return false
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	earlier, later := b.job(0), b.job(1)
	later.Target = earlier.Target
	status := func(r *batch.Record) batch.Status {
		records, err := q.Records(ctx, batch.Requests)
		require.NoError(t, err)
		for _, now := range records {
			if now.ID == r.ID {
				return now.Status
			}
		}
		return ""
	}
	one, err := q.Request(ctx, earlier)
	require.NoError(t, err)
	go func() { _ = q.Work(ctx, ctx, b.worker, b.options) }()
	<-reached
	two, err := q.Request(ctx, later)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return status(two) == batch.Converted }, 30*time.Second, 20*time.Millisecond)
	want := b.reg.Digest(t, "out:0")
	close(release)
	require.Eventually(t, func() bool { return status(one).Final() }, 30*time.Second, 20*time.Millisecond)
	assert.Equal(t, batch.Skipped, status(one))
	assert.Equal(t, want, b.reg.Digest(t, "out:0"))
}
