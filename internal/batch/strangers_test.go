package batch_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// server is a queue's of its own, to which anybody can write.
func (b *bench) server() (q *queue.Queue, js jetstream.JetStream) {
	b.t.Helper()
	s := natsServer(b.t, &server.Options{})
	q, err := queue.Open(context.Background(), queue.Options{URL: s.ClientURL()})
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
			_, err := js.Publish(context.Background(), fmt.Sprintf("cconvert.jobs.%d.x.y%d.0", lane, i),
				[]byte(".bad. 0"))
			require.NoError(t, err)
		}
	}
	records := b.work(q, b.submit(q, b.jobs(1)))
	assert.Equal(t, map[queue.Status]int{queue.Converted: 1}, statuses(records))
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
	for _, change := range []func(*queue.Job){
		func(j *queue.Job) { j.Options.PassEnv = []string{"LD_PRELOAD"} },
		func(j *queue.Job) { j.Options.Tmpfs = []string{"relative"} },
		func(j *queue.Job) { j.Options.EnclaveSize = 3 << 20 },
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
	arm, err := mutate.ConfigFile(fixture.Image(t, v1.Config{Cmd: []string{"/x"}}),
		&v1.ConfigFile{OS: "linux", Architecture: "arm64"})
	require.NoError(t, err)
	runtime := b.job(0)
	runtime.Found, runtime.Runtime = true, queue.Runtime{Kind: "gramine", Source: b.reg.Push(t, "runtime:arm", arm)}
	itself := b.job(0)
	itself.Found, itself.Source = true, runtime.Runtime.Source
	q := b.open()
	for _, r := range b.work(q, b.submit(q, []queue.Job{runtime, itself})) {
		want := queue.Failed
		if r.Job.Source == itself.Source {
			want = queue.Skipped
		}
		assert.Equal(t, want, r.Status, r.Error)
	}
}

// lane is the part of the queue in which a registry's jobs are.
func lane(host string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(host))
	return h.Sum32() % 8
}

// Registries that hardly answer, however they do so and whatever they are for, keep no other jobs waiting.
func TestRegistriesThatHardlyAnswer(t *testing.T) {
	const many = 200
	sources := func(b *bench, reg *fixture.Registry) (list []queue.Job) {
		for i := range many {
			j := b.job(0)
			j.Source, j.Target = fmt.Sprintf("%s/app:%d", reg.Host, i), fmt.Sprintf("%s/silent:%d", b.reg.Host, i)
			list = append(list, j)
		}
		return list
	}
	for name, jobs := range map[string]func(t *testing.T, b *bench) []queue.Job{
		"one in the same lane": func(t *testing.T, b *bench) []queue.Job {
			silent := fixture.NewRegistry(t)
			for lane(silent.Host) != lane(b.reg.Host) {
				silent = fixture.NewRegistry(t)
			}
			silent.Silence(t)
			return sources(b, silent)
		},
		"three": func(t *testing.T, b *bench) (list []queue.Job) {
			for range 3 {
				silent := fixture.NewRegistry(t)
				silent.Silence(t)
				list = append(list, sources(b, silent)...)
			}
			return list
		},
		"a target": func(t *testing.T, b *bench) (list []queue.Job) {
			silent := fixture.NewRegistry(t)
			silent.Silence(t)
			for i := range many {
				j := b.job(i % 4)
				j.Target = fmt.Sprintf("%s/silent:%d", silent.Host, i)
				list = append(list, j)
			}
			return list
		},
		"byte by byte": func(t *testing.T, b *bench) []queue.Job {
			slow := fixture.NewRegistry(t)
			over := make(chan struct{})
			t.Cleanup(func() { close(over) })
			slow.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				for { // headers and bodies
					select {
					case <-over:
						return true
					case <-r.Context().Done():
						return true
					case <-time.After(100 * time.Millisecond):
						_, _ = w.Write([]byte(" "))
						_ = http.NewResponseController(w).Flush()
					}
				}
			})
			return sources(b, slow)
		},
		"try again later": func(t *testing.T, b *bench) []queue.Job {
			busy := fixture.NewRegistry(t)
			busy.Intercept(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
				w.Header().Set("Retry-After", "100")
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			})
			return sources(b, busy)
		},
		"just enough": func(t *testing.T, b *bench) (list []queue.Job) {
			slow := fixture.NewRegistry(t)
			content := make([]byte, 60<<20)
			_, _ = rand.Read(content)
			layer := fixture.Layer(t, fixture.Program("app", fixture.ELF("")), fixture.File("big", string(content)))
			for i := range 8 {
				slow.Push(t, fmt.Sprintf("app:%d", i), fixture.Image(t,
					v1.Config{Entrypoint: []string{"/app"}, Env: []string{fmt.Sprint("N=", i)}}, layer))
			}
			digest, err := layer.Digest()
			require.NoError(t, err)
			compressed, err := layer.Compressed()
			require.NoError(t, err)
			sent, err := io.ReadAll(compressed)
			require.NoError(t, err)
			slow.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest.String()) {
					return false
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(sent)))
				for rest := sent; len(rest) > 0 && r.Context().Err() == nil; time.Sleep(500 * time.Millisecond) {
					n, err := w.Write(rest[:min(len(rest), 600<<10)])
					if err != nil {
						break
					}
					rest = rest[n:]
				}
				return true
			})
			return sources(b, slow)[:8]
		},
		"a target that takes just enough": func(t *testing.T, b *bench) (list []queue.Job) {
			content := make([]byte, 60<<20)
			_, _ = rand.Read(content)
			layer := fixture.Layer(t, fixture.Program("app", fixture.ELF("")), fixture.File("big", string(content)))
			slow := fixture.NewRegistry(t)
			slow.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method == http.MethodPut || r.Method == http.MethodPatch {
					for n := int64(1); n > 0 && r.Context().Err() == nil; time.Sleep(500 * time.Millisecond) {
						n, _ = io.CopyN(io.Discard, r.Body, 600<<10)
					}
					w.WriteHeader(http.StatusBadRequest)
					return true
				}
				return false
			})
			for i := range 8 {
				b.reg.Push(t, fmt.Sprintf("big:%d", i), fixture.Image(t,
					v1.Config{Entrypoint: []string{"/app"}, Env: []string{fmt.Sprint("N=", i)}}, layer))
				j := b.job(0)
				j.Source, j.Target = fmt.Sprintf("%s/big:%d", b.reg.Host, i), fmt.Sprintf("%s/big%d:1", slow.Host, i)
				list = append(list, j)
			}
			return list
		},
		"a runtime's": func(t *testing.T, b *bench) []queue.Job {
			silent := fixture.NewRegistry(t)
			silent.Silence(t)
			list := sources(b, b.reg)
			for i := range list {
				list[i].Runtime = queue.Runtime{
					Kind: "gramine", Source: "docker://" + silent.Host + "/gramine:1", Libs: b.dir,
				}
			}
			return list
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.push(4)
			b.worker.Backends = append(b.worker.Backends, gramine.Backend{})
			b.options = batch.WorkOptions{
				Parallel: 4, Attempts: 1, FirstPause: time.Millisecond, Timeout: 50 * time.Second,
				Patience: 2 * time.Second,
			}
			q := b.open()
			b.submit(q, jobs(t, b))
			ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
			var working sync.WaitGroup
			working.Go(func() { _ = b.worker.Work(ctx, ctx, q, b.options) })
			defer working.Wait()
			defer cancel()
			time.Sleep(time.Second) // they have all places
			of := b.submit(q, b.jobs(4))
			begin := time.Now()
			for ; ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
				records, err := q.Records(ctx, of.ID)
				if err == nil && statuses(records)[queue.Converted] == 4 {
					t.Logf("done after %s", time.Since(begin))
					return
				}
			}
			t.Error("jobs wait behind those of a registry that hardly answers")
		})
	}
}

// A worker is not sent to other hosts by what somebody writes into an image.
func TestLayersElsewhere(t *testing.T) {
	b := newBench(t)
	elsewhere := fixture.NewRegistry(t)
	elsewhere.Intercept(nil)
	layer := fixture.Layer(t, fixture.Program("app", fixture.ELF("")))
	img, err := mutate.Append(fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}}), mutate.Addendum{
		Layer: layer, URLs: []string{"http://" + elsewhere.Host + "/layer"}, MediaType: types.DockerForeignLayer,
	})
	require.NoError(t, err)
	j := b.job(0)
	j.Source = b.reg.Push(t, "app:foreign", img)
	digest, err := layer.Digest()
	require.NoError(t, err)
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.HasSuffix(r.URL.Path, digest.String()) {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
	_, err = b.worker.Convert(context.Background(), j)
	require.ErrorContains(t, err, "only the registry is asked")
	assert.Empty(t, elsewhere.Requests())
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
	go func() { ended <- b.worker.Work(ctx, ctx, q, b.options) }()
	first := b.submit(q, b.jobs(1))
	require.NoError(t, q.Wait(ctx, first, func(*queue.Record) {}))

	// Whoever takes over is another process, with a connection of its own.
	other := *q
	require.NoError(t, (&other).Claim(ctx, sgx.Measurement{1}, true))
	second := b.submit(q, []queue.Job{b.job(1)})
	select {
	case err := <-ended:
		assert.ErrorIs(t, err, queue.ErrSigner)
	case <-ctx.Done():
		t.Fatal("the worker goes on")
	}
	records, err := q.Records(ctx, second.ID)
	require.NoError(t, err)
	assert.True(t, slices.ContainsFunc(records, func(r *queue.Record) bool { return r.Status == queue.Queued }))
}

// Of two requests for a target the last one counts, however late the first one is, and whatever it may replace.
func TestLateRequestReplacesNothing(t *testing.T) {
	for where, held := range map[string]func(r *http.Request, config string) bool{
		"its source answers late": func(r *http.Request, _ string) bool {
			return strings.HasSuffix(r.URL.Path, "/app/manifests/0")
		},
		"its last blob is sent late": func(r *http.Request, config string) bool {
			return r.Method == http.MethodPut && r.URL.Query().Get("digest") == config
		},
	} {
		t.Run(where, func(t *testing.T) { lateRequest(t, held) })
	}
}

func lateRequest(t *testing.T, held func(r *http.Request, config string) bool) {
	b := newBench(t)
	b.push(2)
	q := b.open()
	reached, release := make(chan struct{}), make(chan struct{})
	var again atomic.Bool
	hold := func(config string) {
		b.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
			if held(r, config) && !again.Swap(true) {
				close(reached)
				<-release
			}
			return false
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	earlier, later := b.job(0), b.job(1)
	later.Target = earlier.Target
	earlier.AllowRollback, earlier.ReplaceSigner = true, true
	same := earlier // what comes of it is known
	same.Target = b.job(1).Target
	made, err := b.worker.Convert(ctx, same)
	require.NoError(t, err)
	ref, err := image.ParseReference(made.Ref, true)
	require.NoError(t, err)
	img, err := store.Open(ctx, ref, registry.Options{})
	require.NoError(t, err)
	defer img.Close()
	b.worker.Own.Cache = nil // it would know it without a look at the source
	hold(img.ID())
	status := func(r *queue.Record) queue.Status {
		records, err := q.Records(ctx, queue.Requests)
		require.NoError(t, err)
		for _, now := range records {
			if now.ID == r.ID {
				return now.Status
			}
		}
		return ""
	}
	one, err := request(ctx, q, earlier)
	require.NoError(t, err)
	go func() { _ = b.worker.Work(ctx, ctx, q, b.options) }()
	<-reached
	two, err := request(ctx, q, later)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return status(two) == queue.Converted }, 30*time.Second, 20*time.Millisecond)
	want := b.reg.Digest(t, "out:0")
	close(release)
	require.Eventually(t, func() bool { return status(one).Final() }, 30*time.Second, 20*time.Millisecond)
	assert.Equal(t, queue.Skipped, status(one))
	assert.Equal(t, want, b.reg.Digest(t, "out:0"))
}

// settled waits until all requests are done, and more is true of them.
func settled(t *testing.T, q *queue.Queue, and func([]*queue.Record) bool) (records []*queue.Record) {
	t.Helper()
	require.Eventually(t, func() bool {
		var err error
		records, err = q.Records(context.Background(), queue.Requests)
		require.NoError(t, err)
		return !slices.ContainsFunc(records, func(r *queue.Record) bool { return !r.Status.Final() }) && and(records)
	}, 30*time.Second, 20*time.Millisecond)
	return records
}

// A request that was replaced by another one counts again if it is made once more, at whatever moment that is.
func TestRequestedOnceMore(t *testing.T) {
	b := newBench(t)
	b.push(2)
	q := b.open()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	one, other := b.job(0), b.job(1)
	other.Target = one.Target
	reached, release := make(chan struct{}), make(chan struct{})
	var held, again sync.Once
	b.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/app/manifests/0"):
			held.Do(func() { close(reached); <-release })
		case r.Method == http.MethodDelete: // it has seen that it was replaced, and has not noted it yet
			again.Do(func() {
				_, err := request(ctx, q, one)
				assert.NoError(t, err)
			})
		}
		return false
	})
	first, err := request(ctx, q, one)
	require.NoError(t, err)
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	working.Go(func() { _ = b.worker.Work(ctx, ctx, q, b.options) })
	<-reached
	_, err = request(ctx, q, other)
	require.NoError(t, err)
	close(release)
	var last *queue.Record
	settled(t, q, func(records []*queue.Record) bool {
		for _, r := range records {
			if r.ID == first.ID {
				last = r
			}
		}
		return last.Request == 1
	})
	assert.Equal(t, queue.Converted, last.Status, last.Error)
	assert.Equal(t, last.Digest, b.reg.Digest(t, "out:0"))
}

// An image that somebody else has signed since is unchanged if its tag leads to nothing else, and what is to be
// attached is there.
func TestSignedSince(t *testing.T) {
	b := newBench(t)
	b.push(2)
	ctx := context.Background()
	for i := range 2 {
		_, err := b.worker.Convert(ctx, b.job(i))
		require.NoError(t, err)
	}
	b.worker.Own.Cache = nil
	unsigned := func(i int) queue.Job {
		j := b.job(i)
		j.Unsigned, j.ReplaceSigner = true, true
		return j
	}
	out, err := b.worker.Convert(ctx, unsigned(0))
	require.NoError(t, err)
	require.Equal(t, queue.Unchanged, out.Status)

	tag, err := name.NewTag(b.reg.Host + "/out:0")
	require.NoError(t, err)
	signed, err := remote.Image(tag)
	require.NoError(t, err)
	other := fixture.Image(t, v1.Config{Entrypoint: []string{"/other"}},
		fixture.Layer(t, fixture.Program("other", "x")))
	require.NoError(t, remote.WriteIndex(tag, mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{
			Add:        other,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64", Variant: "v2"}},
		},
		mutate.IndexAddendum{
			Add: signed, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
		})))
	out, err = b.worker.Convert(ctx, unsigned(0))
	require.NoError(t, err)
	assert.Equal(t, queue.Converted, out.Status)
	assert.Equal(t, out.Digest, b.reg.Digest(t, "out:0"))

	b.worker.Own.Evidence = &convert.Evidence{Required: true}
	j := unsigned(1)
	j.NoEvidence, j.NeedsEvidence = false, true
	out, err = b.worker.Convert(ctx, j)
	require.NoError(t, err)
	assert.Equal(t, queue.Converted, out.Status)
}

// What is asked right before the tag moves is asked before each attempt at that.
func TestLaterRequestWhileRepeating(t *testing.T) {
	b := newBench(t)
	b.push(2)
	q := b.open()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	earlier, later := b.job(0), b.job(1)
	later.Target = earlier.Target
	other := &batch.Worker{}
	*other = batch.Worker{
		Name: "other", Signer: b.worker.Signer, Backends: b.worker.Backends, Files: b.worker.Files, Insecure: true,
		Own: b.worker.Own,
	}
	var again atomic.Bool
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, "/out/manifests/0") || again.Swap(true) {
			return false
		}
		_, err := request(ctx, q, later)
		assert.NoError(t, err)
		_, err = other.Convert(ctx, later)
		assert.NoError(t, err)
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	first, err := request(ctx, q, earlier)
	require.NoError(t, err)
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	working.Go(func() { _ = b.worker.Work(ctx, ctx, q, b.options) })
	records := settled(t, q, func(records []*queue.Record) bool { return len(records) == 2 })
	for _, r := range records {
		if r.ID == first.ID {
			assert.Equal(t, queue.Skipped, r.Status)
		} else {
			assert.Equal(t, b.reg.Digest(t, "out:0"), r.Digest)
		}
	}
}

// The runtime of the identity is the one that is used, even if another one is loaded meanwhile; and a layout that was
// changed after it was found is not taken for what was found.
func TestSourceChangesMeanwhile(t *testing.T) {
	b := newBench(t)
	b.push(2)
	dir := filepath.Join(b.dir, "layout")
	layout := func(i int) {
		require.NoError(t, os.RemoveAll(dir))
		ref, err := image.ParseReference(b.job(i).Source, true)
		require.NoError(t, err)
		img, err := store.Open(context.Background(), ref, registry.Options{})
		require.NoError(t, err)
		defer img.Close()
		var config map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(img.Config, &config))
		out, err := image.Append(img, config, nil)
		require.NoError(t, err)
		to, err := image.ParseReference("oci:"+dir+":1", true)
		require.NoError(t, err)
		require.NoError(t, store.Write(context.Background(), to, out, registry.Options{}))
	}
	layout(0)
	j := b.job(0)
	j.Source = "oci:" + dir + ":1"
	var once sync.Once
	b.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.Contains(r.URL.Path, "/out/manifests/") { // after it was found
			once.Do(func() { b.reg.Intercept(nil); layout(1) })
		}
		return false
	})
	_, err := b.worker.Convert(context.Background(), j)
	require.ErrorIs(t, err, image.ErrMoved)
}

// A list under a tag can speak of statements that were removed.
func TestStatementsThatWereRemoved(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.push(1)
	b.worker.Own.Cache = nil
	b.worker.Own.Evidence = &convert.Evidence{Required: true}
	j := b.job(0)
	j.NoEvidence, j.NeedsEvidence = false, true
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.Contains(r.URL.Path, "/referrers/") {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
	_, err := b.worker.Convert(ctx, j)
	require.NoError(t, err)
	ref, err := image.ParseReference(j.Target, true)
	require.NoError(t, err)
	statements := func() int {
		img, err := store.Open(ctx, ref, registry.Options{})
		require.NoError(t, err)
		defer img.Close()
		found, err := registry.Referrers(ctx, img, attest.InTotoMediaType)
		if err != nil {
			return 0
		}
		for _, a := range found {
			repo, err := name.NewRepository(b.reg.Host + "/out")
			require.NoError(t, err)
			require.NoError(t, remote.Delete(repo.Digest(a.Digest)))
		}
		return len(found)
	}
	require.Equal(t, 4, statements())
	require.Equal(t, 0, statements())
	_, err = b.worker.Convert(ctx, j)
	require.NoError(t, err)
	assert.Equal(t, 4, statements())
}

// An earlier request whose manifest is on its way to the registry does not take the place of what is there already and
// was asked for last.
func TestManifestOnItsWay(t *testing.T) {
	b := newBench(t)
	b.push(2)
	q := b.open()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	var working sync.WaitGroup
	working.Go(func() { _ = b.worker.Work(ctx, ctx, q, b.options) })
	defer working.Wait()
	defer cancel()
	older, newer := b.job(0), b.job(1)
	newer.Target = older.Target
	ask := func(j queue.Job) *queue.Record {
		r, err := request(ctx, q, j)
		require.NoError(t, err)
		return r
	}
	done := func(r *queue.Record) {
		require.Eventually(t, func() bool {
			records, err := q.Records(ctx, queue.Requests)
			require.NoError(t, err)
			return slices.ContainsFunc(records, func(now *queue.Record) bool {
				return now.ID == r.ID && now.Request >= r.Request && now.Status.Final()
			})
		}, 30*time.Second, 20*time.Millisecond)
	}
	done(ask(newer))
	want := b.reg.Digest(t, "out:0")
	reached, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	b.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/out/manifests/0") && !once.Swap(true) {
			close(reached)
			<-release
		}
		return false
	})
	first := ask(older)
	<-reached
	done(ask(newer))
	close(release)
	done(first)
	b.reg.Intercept(nil)
	assert.Eventually(t, func() bool { return b.reg.Digest(t, "out:0") == want }, 20*time.Second, 50*time.Millisecond)
}

// A registry that is busy for a moment keeps nobody from looking at a tag before it is moved.
func TestBusyBeforeTheTagMoves(t *testing.T) {
	for _, code := range []int{http.StatusServiceUnavailable, http.StatusTooManyRequests} {
		b := newBench(t)
		b.push(3)
		ctx := context.Background()
		higher := b.job(1)
		higher.Options.ISVSVN, higher.Target = 9, b.reg.Host+"/out:higher"
		made, err := b.worker.Convert(ctx, higher)
		require.NoError(t, err)
		_, err = b.worker.Convert(ctx, b.job(0))
		require.NoError(t, err)
		var heads, moved atomic.Int64
		b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
			switch at := strings.HasSuffix(r.URL.Path, "/out/manifests/0"); {
			case at && r.Method == http.MethodPut:
				moved.Add(1)
			case at && r.Method == http.MethodHead && heads.Add(1) == 2: // the first one is about what is there before
				w.WriteHeader(code)
				return true
			case at && r.Method == http.MethodHead && heads.Load() > 2: // somebody has stored the higher one meanwhile
				w.Header().Set("Docker-Content-Digest", made.Digest)
				w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
				return true
			}
			return false
		})
		j := b.job(2)
		j.Target = b.job(0).Target
		_, err = b.worker.Convert(ctx, j)
		assert.ErrorIs(t, err, image.ErrMoved, "%d", code)
		assert.Zero(t, moved.Load(), "%d", code)
		assert.GreaterOrEqual(t, heads.Load(), int64(3), "%d", code)
	}
}
