package batch_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
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
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// bench is a registry with images, a queue, and a worker.
type bench struct {
	t       *testing.T
	reg     *fixture.Registry
	dir     string
	program string
	worker  *batch.Worker
	options batch.WorkOptions
}

func newBench(t *testing.T) *bench {
	b := &bench{
		t: t, reg: fixture.NewRegistry(t), dir: t.TempDir(),
		options: batch.WorkOptions{Parallel: 3, Attempts: 3, FirstPause: 10 * time.Millisecond},
	}
	b.program = filepath.Join(b.dir, "sim")
	require.NoError(t, os.WriteFile(b.program, []byte(fixture.ELF("")), 0o755))
	text, err := os.ReadFile("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	key, err := sgx.ParseKey(text, nil)
	require.NoError(t, err)
	b.worker = &batch.Worker{
		Name: "test", Signer: key, Backends: []libos.Backend{sim.Backend{}}, Files: batch.Files{Dirs: []string{b.dir}},
		Insecure: true,
		Own: convert.Options{
			Cache:        cache.Open(filepath.Join(b.dir, "cache"), cache.DefaultLimit),
			StoreOptions: convert.StoreOptions{Image: registry.Options{FirstPause: time.Millisecond}},
		},
	}
	return b
}

// push stores so many images, app:0 and so on, which differ in a variable.
func (b *bench) push(n int) {
	layer := fixture.Layer(b.t, fixture.Program("app", fixture.ELF("")))
	for i := range n {
		b.reg.Push(b.t, fmt.Sprintf("app:%d", i),
			fixture.Image(b.t, v1.Config{Entrypoint: []string{"/app"}, Env: []string{fmt.Sprint("N=", i)}}, layer))
	}
}

func (b *bench) job(i int) queue.Job {
	b.t.Helper()
	source, err := image.ParseReference(fmt.Sprintf("%s/app:%d", b.reg.Host, i), true)
	require.NoError(b.t, err)
	target, err := image.ParseReference(fmt.Sprintf("%s/out:%d", b.reg.Host, i), true)
	require.NoError(b.t, err)
	o := convert.Options{
		Source: source, Target: &target, Backend: sim.Backend{}, Runtime: libos.LoadOptions{Source: b.program},
	}
	o.Enclave.Attestation, o.Enclave.LogLevel = "none", "error"
	return queue.NewJob(o, true)
}

func (b *bench) jobs(n int) (list []queue.Job) {
	for i := range n {
		list = append(list, b.job(i))
	}
	return list
}

func (b *bench) open() *queue.Queue {
	b.t.Helper()
	q, err := queue.Open(context.Background(), queue.Options{Dir: filepath.Join(b.dir, "queue")})
	require.NoError(b.t, err)
	b.t.Cleanup(q.Close)
	return q
}

// work has the worker work until a batch is done.
func (b *bench) work(q *queue.Queue, of *queue.Batch) []*queue.Record {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var working sync.WaitGroup
	working.Go(func() { _ = b.worker.Work(ctx, ctx, q, b.options) })
	require.NoError(b.t, q.Wait(ctx, of, func(*queue.Record) {}))
	cancel()
	working.Wait()
	records, err := q.Records(context.Background(), of.ID)
	require.NoError(b.t, err)
	return records
}

func (b *bench) submit(q *queue.Queue, jobs []queue.Job) *queue.Batch {
	b.t.Helper()
	of, err := q.Submit(context.Background(), "test", jobs)
	require.NoError(b.t, err)
	return of
}

// request asks for a conversion of what was found out just now.
func request(ctx context.Context, q *queue.Queue, j queue.Job) (*queue.Record, error) {
	last, err := q.Last(ctx, j.Target, j.Insecure)
	if err != nil {
		return nil, err
	}
	r, _, err := q.Request(ctx, j, last)
	return r, err
}

func statuses(records []*queue.Record) map[queue.Status]int {
	n := map[queue.Status]int{}
	for _, r := range records {
		n[r.Status]++
	}
	return n
}

// A batch is converted; the same again changes nothing and takes two requests an image, one at the source and one at
// the target; what was changed is converted anew.
func TestUnchanged(t *testing.T) {
	b := newBench(t)
	b.push(5)
	q := b.open()
	records := b.work(q, b.submit(q, append(b.jobs(5), b.job(3)))) // one of them twice
	require.Len(t, records, 5)
	digests := map[string]string{}
	for i, r := range records {
		require.Equal(t, queue.Converted, r.Status, r.Error)
		assert.Equal(t, b.reg.Digest(t, fmt.Sprint("out:", i)), r.Digest)
		assert.NotZero(t, r.MREnclave)
		digests[r.Job.Target] = r.Digest
	}

	b.reg.Intercept(nil)
	records = b.work(q, b.submit(q, b.jobs(5)))
	assert.Equal(t, map[queue.Status]int{queue.Unchanged: 5}, statuses(records))
	var asked []string
	for _, r := range b.reg.Requests() {
		if !strings.HasSuffix(r, "/v2/") {
			asked = append(asked, r)
		}
	}
	assert.Len(t, asked, 10, "%v", asked)

	// Another machine, which remembers nothing, makes the same again.
	b.worker.Own.Cache = nil
	records = b.work(q, b.submit(q, b.jobs(5)))
	assert.Equal(t, map[queue.Status]int{queue.Unchanged: 5}, statuses(records))
	for _, r := range records {
		assert.Equal(t, digests[r.Job.Target], r.Digest)
	}

	forced := b.job(0)
	forced.Force = true
	newer := b.job(1)
	newer.Options.ISVSVN = 1
	b.reg.Push(t, "app:2", fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}, Env: []string{"N=other"}},
		fixture.Layer(t, fixture.Program("app", fixture.ELF("")))))
	records = b.work(q, b.submit(q, []queue.Job{forced, newer, b.job(2), b.job(3)}))
	assert.Equal(t, map[queue.Status]int{queue.Converted: 3, queue.Unchanged: 1}, statuses(records))
	assert.Equal(t, digests[forced.Target], b.reg.Digest(t, "out:0"))
	assert.NotEqual(t, digests[newer.Target], b.reg.Digest(t, "out:1"))
}

// What somebody has changed at the target is not taken for done, however much of it is left, and is mended.
func TestChangedTarget(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(1)
	q := b.open()
	made := b.work(q, b.submit(q, b.jobs(1)))[0]
	require.Equal(t, queue.Converted, made.Status, made.Error)
	tag, err := name.NewTag(b.reg.Host + "/out:0")
	require.NoError(t, err)
	good, err := remote.Image(tag)
	require.NoError(t, err)
	layers, err := good.Layers()
	require.NoError(t, err)
	config, err := good.ConfigFile()
	require.NoError(t, err)
	top := len(layers) - 1
	again := func(i int, l v1.Layer) func([]v1.Layer) []v1.Layer {
		return func(ls []v1.Layer) []v1.Layer { ls[i] = l; return ls }
	}
	editedTop := func(from v1.Layer, name string, change func(string) string) v1.Layer {
		r, err := from.Uncompressed()
		require.NoError(t, err)
		var entries []fixture.Entry
		for a := tar.NewReader(r); ; {
			h, err := a.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			body, err := io.ReadAll(a)
			require.NoError(t, err)
			if strings.HasSuffix(h.Name, name) {
				body = []byte(change(string(body)))
				h.Size = int64(len(body))
			}
			h.Format = tar.FormatUSTAR
			entries = append(entries, fixture.Entry{Header: *h, Body: string(body)})
		}
		return fixture.Layer(t, entries...)
	}
	edited := func(name string, change func(string) string) func([]v1.Layer) []v1.Layer {
		return again(top, editedTop(layers[top], name, change))
	}
	// The same key has signed a weaker enclave of the same image once. Whoever can push can give it the recipe of this
	// one.
	weak := b.job(0)
	weak.Target = b.reg.Host + "/weak:0"
	weak.Options.Debug, weak.Options.PassEnv = true, []string{"SECRET_URL"}
	weaker := b.work(q, b.submit(q, []queue.Job{weak}))[0]
	require.Equal(t, queue.Converted, weaker.Status, weaker.Error)
	weakTag, err := name.NewTag(weak.Target)
	require.NoError(t, err)
	weakImage, err := remote.Image(weakTag)
	require.NoError(t, err)
	weakLayers, err := weakImage.Layers()
	require.NoError(t, err)
	var recipe string
	editedTop(layers[top], "recipe.json", func(s string) string { recipe = s; return s })
	require.NotEmpty(t, recipe)
	weakTop := editedTop(weakLayers[top], "recipe.json", func(string) string { return recipe })
	for what, c := range map[string]struct {
		config func(*v1.Config)
		layers func([]v1.Layer) []v1.Layer
	}{
		"the plain program is started": {config: func(c *v1.Config) { c.Entrypoint = []string{"/app"} }},
		"a health check": {config: func(c *v1.Config) {
			c.Healthcheck = &v1.HealthConfig{Test: []string{"CMD", "/evil"}}
		}},
		"a label more":               {config: func(c *v1.Config) { c.Labels["mine"] = "x" }},
		"another user":               {config: func(c *v1.Config) { c.User = "root" }},
		"a variable":                 {config: func(c *v1.Config) { c.Env = append(c.Env, "LD_PRELOAD=/evil.so") }},
		"another program underneath": {layers: again(0, fixture.Layer(t, fixture.Program("app", "evil")))},
		"another runtime": {layers: again(top-1,
			fixture.Layer(t, fixture.Program("cconvert/sim/loader", "evil")))},
		"a layer in between": {layers: func(ls []v1.Layer) []v1.Layer {
			return append(ls[:1:1], append([]v1.Layer{fixture.Layer(t, fixture.File("x", "evil"))}, ls[1:]...)...)
		}},
		"another manifest": {layers: edited("manifest.sgx", func(s string) string { return s + "\n" })},
		"another recipe": {layers: edited("recipe.json", func(s string) string {
			return strings.Replace(s, `"replaced": {`, `"replaced": {"Cmd": ["/evil"],`, 1)
		})},
		"other reasons": {layers: edited("files.json", func(s string) string {
			return strings.Replace(s, `"count":`, `"count":1`, 1)
		})},
		"a weaker enclave of our key": {layers: again(top, weakTop), config: func(c *v1.Config) {
			for k, v := range c.Labels {
				c.Labels[k] = strings.ReplaceAll(v, made.MREnclave.String(), weaker.MREnclave.String())
			}
		}},
		"another file for the resolver": {layers: edited("hosts", func(s string) string {
			return s + "10.0.0.1 db\n"
		})},
	} {
		ls := append([]v1.Layer(nil), layers...)
		if c.layers != nil {
			ls = c.layers(ls)
		}
		img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.DockerManifestSchema2), ls...)
		require.NoError(t, err)
		changed := config.DeepCopy()
		if c.config != nil {
			c.config(&changed.Config)
		}
		own, err := img.ConfigFile()
		require.NoError(t, err)
		changed.RootFS, changed.History = own.RootFS, nil
		img, err = mutate.ConfigFile(img, changed)
		require.NoError(t, err)
		for _, remembers := range []bool{true, false} {
			require.NoError(t, remote.Write(tag, img), what)
			require.NotEqual(t, made.Digest, b.reg.Digest(t, "out:0"), what)
			own := b.worker.Own.Cache
			if !remembers {
				b.worker.Own.Cache = nil
			}
			r := b.work(q, b.submit(q, b.jobs(1)))[0]
			b.worker.Own.Cache = own
			assert.Equal(t, queue.Converted, r.Status, "%s: %s", what, r.Error)
			assert.Equal(t, made.Digest, b.reg.Digest(t, "out:0"), what)
		}
	}
}

// Whoever can write to the queue cannot have a worker read or write what is on its machine.
func TestJobsOfStrangers(t *testing.T) {
	b := newBench(t)
	b.push(1)
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "secret"), []byte(fixture.ELF("")), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(b.dir, "link")))
	for what, c := range map[string]struct {
		change func(*queue.Job)
		ok     bool
	}{
		"an archive as the target": {change: func(j *queue.Job) {
			j.Target = "docker-archive:" + outside + "/x.tar"
		}},
		"a layout as the target": {change: func(j *queue.Job) { j.Target = "oci:" + outside + "/x" }},
		"a layout behind a link": {change: func(j *queue.Job) { j.Target = "oci:" + b.dir + "/link/x" }},
		"a layout behind dots":   {change: func(j *queue.Job) { j.Target = "oci:" + b.dir + "/../x" }},
		"libraries like a registry": {change: func(j *queue.Job) {
			j.Runtime.Kind, j.Runtime.Source, j.Runtime.Libs = "gramine", "etc/ssl", "etc/ssl"
		}},
		"dots behind a link":     {change: func(j *queue.Job) { j.Runtime.Source = b.dir + "/link/../secret" }},
		"a daemon as the target": {change: func(j *queue.Job) { j.Target = "docker-daemon:x:1" }},
		"a daemon as the source": {change: func(j *queue.Job) { j.Source = "docker-daemon:x:1" }},
		"an archive as the source": {change: func(j *queue.Job) {
			j.Source = "docker-archive:" + outside + "/secret"
		}},
		"a secret as the runtime": {change: func(j *queue.Job) { j.Runtime.Source = outside + "/secret" }},
		"a directory as the runtime": {change: func(j *queue.Job) {
			j.Runtime.Kind, j.Runtime.Source = "gramine", "dir:"+outside
		}},
		"a package as the runtime": {change: func(j *queue.Job) {
			j.Runtime.Kind, j.Runtime.Source = "gramine", "deb:"+b.dir+"/x,"+outside+"/y"
		}},
		"a layout as the runtime": {change: func(j *queue.Job) {
			j.Runtime.Kind, j.Runtime.Source = "gramine", "oci:"+outside
		}},
		"a directory of libraries": {change: func(j *queue.Job) { j.Runtime.Libs = outside }},
		"a layout where layouts may be": {change: func(j *queue.Job) {
			j.Target = "oci:" + b.dir + "/new/out:1"
		}, ok: true},
		"an archive where files may be": {change: func(j *queue.Job) {
			j.Target = "docker-archive:" + b.dir + "/out.tar:a:1"
		}, ok: true},
	} {
		j := b.job(0)
		c.change(&j)
		_, err := b.worker.Convert(context.Background(), j)
		if c.ok {
			assert.NoError(t, err, what)
		} else {
			assert.ErrorIs(t, err, batch.ErrFiles, what)
		}
	}
	entries, err := os.ReadDir(outside)
	require.NoError(t, err)
	assert.Len(t, entries, 1)
}

// What is to be signed by somebody else counts as done only if all but the signature is what would be made.
func TestUnsignedTarget(t *testing.T) {
	b := newBench(t)
	b.push(1)
	q := b.open()
	key := b.worker.Signer
	signed := b.work(q, b.submit(q, b.jobs(1)))[0] // as it will be when somebody has signed it
	require.Equal(t, queue.Converted, signed.Status, signed.Error)
	b.worker.Signer, b.worker.Own.Cache = nil, nil
	later := b.job(0)
	later.Unsigned = true
	r := b.work(q, b.submit(q, []queue.Job{later}))[0]
	require.Equal(t, queue.Unchanged, r.Status, r.Error)
	public, err := key.Public(context.Background())
	require.NoError(t, err)
	assert.Equal(t, sgx.MRSigner(public), r.MRSigner)
	assert.Equal(t, signed.Digest, r.Digest)
	r = b.work(q, b.submit(q, []queue.Job{later}))[0]
	require.Equal(t, queue.Unchanged, r.Status, r.Error)
}

// A batch is waited for until all of it is done, also if one of its images is tried again meanwhile.
func TestRetriedWhileWaiting(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	slow := newBench(t)
	slow.push(1)
	release := make(chan struct{})
	end := sync.OnceFunc(func() { close(release) })
	t.Cleanup(end)
	slow.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.Contains(r.URL.Path, "/app/manifests/0") {
			<-release
		}
		return false
	})
	q := b.open()
	held := slow.job(0)
	held.Runtime = b.job(0).Runtime
	of := b.submit(q, []queue.Job{held, b.job(1)})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var working sync.WaitGroup
	working.Go(func() { _ = b.worker.Work(ctx, ctx, q, b.options) })
	waited := make(chan error, 1)
	go func() { waited <- q.Wait(ctx, of, func(*queue.Record) {}) }()
	status := func(want queue.Status) {
		require.Eventually(t, func() bool {
			records, err := q.Records(ctx, of.ID)
			return err == nil && slices.ContainsFunc(records, func(r *queue.Record) bool {
				return r.Job.Target == b.job(1).Target && r.Status == want
			})
		}, 20*time.Second, 20*time.Millisecond)
	}
	status(queue.Failed)
	b.push(2)
	_, err := q.Retry(ctx, of)
	require.NoError(t, err)
	status(queue.Converted)
	select {
	case err := <-waited:
		require.Fail(t, "an image was not done", "%v", err)
	case <-time.After(time.Second):
	}
	end()
	require.NoError(t, <-waited)
	cancel()
	working.Wait()
}

// What fails for good is not tried again, and says why; what may pass is, as often as wanted; both can be queued again.
func TestFailures(t *testing.T) {
	b := newBench(t)
	b.push(3)
	absent := b.job(7)
	var refused atomic.Int32
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.Contains(r.URL.Path, "/app/manifests/1") {
			refused.Add(1)
			http.Error(w, "overloaded", http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	q := b.open()
	of := b.submit(q, append(b.jobs(3), absent))
	records := b.work(q, of)
	assert.Equal(t, map[queue.Status]int{queue.Converted: 2, queue.Failed: 2}, statuses(records))
	busy, missing := records[1], records[3]
	assert.True(t, busy.Transient)
	assert.Equal(t, 3, busy.Attempts)
	assert.Contains(t, busy.Error, "503")
	assert.False(t, missing.Transient)
	assert.Equal(t, 1, missing.Attempts)
	assert.Contains(t, missing.Error, "not found")

	b.reg.Intercept(nil)
	n, err := q.Retry(context.Background(), of)
	require.NoError(t, err)
	assert.Equal(t, 2, n)
	records = b.work(q, of)
	assert.Equal(t, map[queue.Status]int{queue.Converted: 3, queue.Failed: 1}, statuses(records))
}

// Workers without a key, and jobs that this worker does not know, fail with the reason.
func TestRefusedJobs(t *testing.T) {
	b := newBench(t)
	b.push(1)
	b.worker.Signer = nil
	strange, broken, unsigned := b.job(0), b.job(0), b.job(0)
	strange.Runtime.Kind, broken.Source, unsigned.Unsigned = "occlum", "UPPER CASE", true
	q := b.open()
	for _, r := range b.work(q, b.submit(q, []queue.Job{b.job(0), strange, broken, unsigned})) {
		switch {
		case r.Job.Unsigned:
			assert.Equal(t, queue.Converted, r.Status, r.Error)
			assert.Zero(t, r.MRSigner)
		case r.Job.Runtime.Kind == "occlum":
			assert.Contains(t, r.Error, `no runtime "occlum"`)
		case r.Job.Source == broken.Source:
			assert.Contains(t, r.Error, "not an image reference")
		default:
			assert.Contains(t, r.Error, "this worker has none")
		}
	}
}

// A queue that was left in the middle goes on where it was: what is done is not done again, and what was under way is.
func TestResume(t *testing.T) {
	b := newBench(t)
	b.push(8)
	q := b.open()
	of := b.submit(q, b.jobs(8))
	ctx, cancel := context.WithCancel(context.Background())
	var working sync.WaitGroup
	working.Go(func() { _ = b.worker.Work(ctx, ctx, q, b.options) })
	seen := 0
	assert.ErrorIs(t, q.Wait(ctx, of, func(r *queue.Record) {
		if r.Status.Final() {
			if seen++; seen == 3 {
				cancel()
			}
		}
	}), context.Canceled)
	working.Wait()
	before, err := q.Records(context.Background(), of.ID)
	require.NoError(t, err)
	q.Close()

	again := b.open()
	_, err = queue.Open(context.Background(), queue.Options{Dir: filepath.Join(b.dir, "queue")})
	assert.ErrorIs(t, err, queue.ErrBusy)
	of, err = again.Find(context.Background(), "")
	require.NoError(t, err)
	left, err := again.Resume(context.Background(), of)
	require.NoError(t, err)
	assert.Equal(t, 8-statuses(before)[queue.Converted], left)
	records := b.work(again, of)
	if !assert.Equal(t, 8, statuses(records)[queue.Converted]+statuses(records)[queue.Unchanged]) {
		for _, r := range records {
			t.Logf("%s: %s %s", r.Job.Source, r.Status, r.Error)
		}
	}
	for i, r := range before {
		if r.Status.Final() {
			assert.Equal(t, r, records[i], "what was done is as it was")
		}
	}
	_, err = again.Find(context.Background(), "none")
	assert.ErrorIs(t, err, queue.ErrNoBatch)
}

// Requests keep to the limits of their registry.
func TestLimits(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(4)
	var now, most atomic.Int32
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodPut { // which can wait for another request
			return false
		}
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(time.Millisecond)
		b.reg.Inner.ServeHTTP(w, r)
		now.Add(-1)
		return true
	})
	jobs := b.jobs(4)
	for i := range jobs {
		jobs[i].Limits = map[string]plan.Limits{b.reg.Host: {AtOnce: 2, PerSecond: 20}}
	}
	q := b.open()
	begin := time.Now()
	records := b.work(q, b.submit(q, jobs))
	assert.Equal(t, map[queue.Status]int{queue.Converted: 4}, statuses(records))
	assert.LessOrEqual(t, most.Load(), int32(2))
	requests := len(b.reg.Requests())
	require.Greater(t, requests, 30)
	assert.Greater(t, time.Since(begin), time.Duration(requests-20)*time.Second/20)
}

// A job that ends every worker is given up in the end.
func TestPoison(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(1)
	q := b.open()
	of := b.submit(q, b.jobs(1))
	for i := 0; ; i++ {
		require.Less(t, i, 60, "it comes again and again")
		b.dieAt(q, "app:0")
		q = b.open()
		records, err := q.Records(context.Background(), of.ID)
		require.NoError(t, err)
		if records[0].Status == queue.Failed {
			assert.Contains(t, records[0].Error, "did not finish")
			assert.Equal(t, 6, i, "three times among others, three times alone, and once more to see")
			return
		}
	}
}

// dieAt has a worker end, without leaving word, at the manifest of an image.
func (b *bench) dieAt(q *queue.Queue, image string) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	name, tag, _ := strings.Cut(image, ":")
	b.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path == "/v2/"+name+"/manifests/"+tag {
			q.Close()
			cancel()
		} else if r.Method == http.MethodGet {
			time.Sleep(50 * time.Millisecond) // so that what is beside it is not done before
		}
		return false
	})
	defer time.AfterFunc(2*time.Second, cancel).Stop()
	_ = b.worker.Work(ctx, ctx, q, b.options)
	cancel()
	q.Close()
}

// What a worker had in hand when another image ended it does not fail by that.
func TestBesideAPoison(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(6)
	b.options.Parallel = 4
	q := b.open()
	of := b.submit(q, b.jobs(6))
	var records []*queue.Record
	for i := 0; ; i++ {
		require.Less(t, i, 60, "it comes again and again")
		b.dieAt(q, "app:3")
		q = b.open()
		var err error
		records, err = q.Records(context.Background(), of.ID)
		require.NoError(t, err)
		if n := statuses(records); n[queue.Failed]+n[queue.Converted]+n[queue.Unchanged] == 6 {
			break
		}
	}
	for i, r := range records {
		if i == 3 {
			assert.Equal(t, queue.Failed, r.Status)
		} else {
			assert.NotEqual(t, queue.Failed, r.Status, r.Error)
		}
	}
}

// What kept a plan from finding images is noted as it is, and not tried: there is nothing to try.
func TestPassingProblem(t *testing.T) {
	b := newBench(t)
	b.push(1)
	q := b.open()
	down := queue.Job{Source: "down.example/app", Problem: "connection refused", Passing: true, Found: true}
	jobs := append(b.jobs(1), down)
	for _, r := range b.work(q, b.submit(q, jobs)) {
		if r.Job.Problem != "" {
			assert.Equal(t, queue.Failed, r.Status)
			assert.True(t, r.Transient)
			assert.Equal(t, 1, r.Attempts)
		} else {
			assert.Equal(t, queue.Converted, r.Status)
		}
	}
}

// A worker that is told to stop again and again is not the image's fault.
func TestStoppedOften(t *testing.T) {
	b := newBench(t)
	b.push(1)
	q := b.open()
	of := b.submit(q, b.jobs(1))
	for range 8 {
		ctx, cancel := context.WithCancel(context.Background())
		b.reg.Intercept(func(http.ResponseWriter, *http.Request, int) bool { cancel(); return false })
		timeout := time.AfterFunc(5*time.Second, cancel)
		_ = b.worker.Work(ctx, ctx, q, b.options)
		timeout.Stop()
	}
	b.reg.Intercept(nil)
	assert.Equal(t, map[queue.Status]int{queue.Converted: 1}, statuses(b.work(q, of)))
}

// Images of a registry that never gets done do not keep those of others waiting, nor last for ever.
func TestSilentRegistry(t *testing.T) {
	t.Parallel()
	b, silent := newBench(t), fixture.NewRegistry(t)
	// in which case it is noticed after five seconds, which no job takes here
	for lane(silent.Host) == lane(b.reg.Host) {
		silent = fixture.NewRegistry(t)
	}
	b.push(4)
	silent.Silence(t)
	var jobs []queue.Job
	for i := range 16 {
		j := b.job(0)
		j.Source = fmt.Sprintf("%s/app:%d", silent.Host, i)
		j.Target = fmt.Sprintf("%s/silent:%d", b.reg.Host, i)
		jobs = append(jobs, j)
	}
	b.options = batch.WorkOptions{Parallel: 4, Attempts: 1, FirstPause: time.Millisecond, Timeout: 2 * time.Second}
	q := b.open()
	of := b.submit(q, append(jobs, b.jobs(4)...))
	records := b.work(q, of)
	assert.Equal(t, map[queue.Status]int{queue.Converted: 4, queue.Failed: 16}, statuses(records))
	slices.SortFunc(records, func(a, b *queue.Record) int { return a.Updated.Compare(b.Updated) })
	last := 0
	for i, r := range records {
		if r.Status == queue.Failed {
			assert.Contains(t, r.Error, "it took longer than 2s")
		} else {
			last = i
		}
	}
	assert.Less(t, last, 4+8, "the others are done while the silent ones still wait, four at a time")
}

// How far a batch is can be read while another process works on it.
func TestReadWhileWorking(t *testing.T) {
	b := newBench(t)
	b.push(3)
	q := b.open()
	of := b.submit(q, b.jobs(3))
	b.work(q, of)
	_, err := queue.Open(context.Background(), queue.Options{Dir: filepath.Join(b.dir, "queue")})
	require.ErrorIs(t, err, queue.ErrBusy)
	for range 3 {
		reader, err := queue.Open(context.Background(),
			queue.Options{Dir: filepath.Join(b.dir, "queue"), Read: true})
		require.NoError(t, err)
		records, err := reader.Records(context.Background(), of.ID)
		require.NoError(t, err)
		assert.Equal(t, map[queue.Status]int{queue.Converted: 3}, statuses(records))
		reader.Close()
	}
	b.work(q, b.submit(q, []queue.Job{b.job(1)}))
}

// A record that cannot be read hides no other one, and is not waited for.
func TestUnreadableRecord(t *testing.T) {
	for _, text := range []string{`{"job": 7`, `{"attempts": -1000000}`} { // with which it would be tried for ever
		testUnreadableRecord(t, text)
	}
}

func testUnreadableRecord(t *testing.T, text string) {
	b := newBench(t)
	b.push(2)
	q, js := b.server()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	of := b.submit(q, b.jobs(2))
	records, err := q.Records(ctx, of.ID)
	require.NoError(t, err)
	for bucket, key := range map[string]string{
		"cconvert-records": of.ID + "." + records[0].ID, "cconvert-batches": "20990101-000000-broken",
	} {
		kv, err := js.KeyValue(ctx, bucket)
		require.NoError(t, err)
		if bucket == "cconvert-batches" {
			text = `{"job": 7`
		}
		_, err = kv.Put(ctx, key, []byte(text))
		require.NoError(t, err)
	}
	done := b.work(q, of)
	assert.Equal(t, map[queue.Status]int{queue.Converted: 1, queue.Failed: 1}, statuses(done))
	found, err := q.Find(ctx, "")
	require.NoError(t, err)
	assert.Equal(t, of.ID, found.ID)
	_, err = q.Retry(ctx, of)
	require.NoError(t, err)
}

// What panics in one image is that image's failure.
func TestPanic(t *testing.T) {
	b := newBench(t)
	b.push(1)
	b.worker.Observe = func(queue.Job) convert.Observer { panic("for the test") }
	q := b.open()
	r := b.work(q, b.submit(q, b.jobs(1)))[0]
	assert.Equal(t, queue.Failed, r.Status)
	assert.Contains(t, r.Error, "this is a bug in cconvert: for the test")
}

// A batch that others have left in the same place is not for this worker's key.
func TestOtherBatches(t *testing.T) {
	b := newBench(t)
	b.push(3)
	q := b.open()
	left := b.submit(q, b.jobs(2))
	mine := b.submit(q, []queue.Job{b.job(2)})
	b.options.Batch = mine.ID
	assert.Equal(t, map[queue.Status]int{queue.Converted: 1}, statuses(b.work(q, mine)))
	records, err := q.Records(context.Background(), left.ID)
	require.NoError(t, err)
	assert.Equal(t, map[queue.Status]int{queue.Queued: 2}, statuses(records))
	now, err := q.Find(context.Background(), "")
	require.NoError(t, err)
	assert.Equal(t, mine.ID, now.ID, "the newest is the one that was made last")
}

// What is asked for again while its message is still there is done again; what was asked for the same target since
// takes its place.
func TestRequests(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(2)
	q := b.open()
	older, newer := b.job(0), b.job(1)
	newer.Target = older.Target
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	first, err := request(ctx, q, older)
	require.NoError(t, err)
	second, err := request(ctx, q, newer)
	require.NoError(t, err)
	var working sync.WaitGroup
	working.Go(func() { _ = b.worker.Work(ctx, ctx, q, b.options) })
	final := func(id string) (r *queue.Record) {
		seen, done := context.WithCancel(ctx)
		_ = q.Watch(seen, queue.Requests, func(now *queue.Record) {
			if now.ID == id && now.Status.Final() {
				r = now
				done()
			}
		})
		require.NotNil(t, r)
		return r
	}
	assert.Equal(t, queue.Skipped, final(first.ID).Status)
	assert.Equal(t, queue.Converted, final(second.ID).Status)
	assert.Equal(t, final(second.ID).Digest, b.reg.Digest(t, "out:0"))
	for range 30 {
		_, err := request(ctx, q, newer)
		require.NoError(t, err)
		assert.Equal(t, queue.Unchanged, final(second.ID).Status)
	}
	cancel()
	working.Wait()
}

// Whoever can push to the target can write labels. They count only beside an enclave of our own signature.
func TestForgedIdentity(t *testing.T) {
	b := newBench(t)
	b.push(1)
	q := b.open()
	made := b.work(q, b.submit(q, b.jobs(1)))[0]
	require.Equal(t, queue.Converted, made.Status, made.Error)
	forged := fixture.Image(t, v1.Config{Labels: map[string]string{
		recipe.LabelIdentity: made.Identity, recipe.LabelMREnclave: made.MREnclave.String(),
	}},
		fixture.Layer(t, fixture.File("evil", "x")))
	b.reg.Push(t, "out:0", forged)
	b.worker.Own.Cache = nil
	again := b.work(q, b.submit(q, b.jobs(1)))[0]
	assert.Equal(t, queue.Failed, again.Status)
	assert.ErrorContains(t, errors.New(again.Error), convert.ErrVersionUnknown.Error(),
		"what claims to be converted is not replaced without a word")
	over := b.job(0)
	over.AllowRollback = true
	again = b.work(q, b.submit(q, []queue.Job{over}))[0]
	assert.Equal(t, queue.Converted, again.Status, again.Error)
	assert.Equal(t, made.Digest, b.reg.Digest(t, "out:0"))
}

// What a job wants besides the identity is not taken for done.
func TestStricterJob(t *testing.T) {
	b := newBench(t)
	b.push(1)
	q := b.open()
	require.Equal(t, queue.Converted, b.work(q, b.submit(q, b.jobs(1)))[0].Status)
	strict := b.job(0)
	strict.Gate.Strict = true // the simulated runtime is a warning
	r := b.work(q, b.submit(q, []queue.Job{strict}))[0]
	assert.Equal(t, queue.Failed, r.Status)
	assert.Contains(t, r.Error, "because of what was found")
}

// The queue's settings are those of whoever made it; workers sign by one key.
func TestSharedQueue(t *testing.T) {
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
	})
	require.NoError(t, err)
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	require.True(t, s.ReadyForConnections(10*time.Second))
	ctx := context.Background()
	open := func(lease time.Duration) *queue.Queue {
		q, err := queue.Open(ctx, queue.Options{URL: s.ClientURL(), Lease: lease})
		require.NoError(t, err)
		t.Cleanup(q.Close)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		_ = (&batch.Worker{}).Work(ctx, ended, q, batch.WorkOptions{Parallel: 1, Attempts: 1, FirstPause: time.Second})
		return q
	}
	lease := func() time.Duration {
		nc, err := nats.Connect(s.ClientURL())
		require.NoError(t, err)
		defer nc.Close()
		js, err := jetstream.New(nc)
		require.NoError(t, err)
		c, err := js.Consumer(ctx, "CCONVERT", "lane-0")
		require.NoError(t, err)
		return c.CachedInfo().Config.AckWait
	}
	q := open(0)
	assert.Equal(t, queue.DefaultLease, lease())
	open(2 * time.Minute)
	assert.Equal(t, 2*time.Minute, lease())
	open(0)
	assert.Equal(t, 2*time.Minute, lease(), "who does not ask for another one leaves it")

	one, other := sgx.Measurement{1}, sgx.Measurement{2}
	require.NoError(t, q.Claim(ctx, one, false))
	require.NoError(t, q.Claim(ctx, one, false))
	assert.ErrorIs(t, q.Claim(ctx, other, false), queue.ErrSigner)
	require.NoError(t, q.Claim(ctx, other, true))
	assert.ErrorIs(t, q.Claim(ctx, one, false), queue.ErrSigner)
}

func TestJobID(t *testing.T) {
	b := newBench(t)
	a, c := b.job(1), b.job(1)
	assert.Equal(t, a.ID(), c.ID())
	c.Options.Env = []string{"A=1"}
	assert.NotEqual(t, a.ID(), c.ID())
}

// Of two who ask at the same time the one who has found out earlier what is to be converted does not have the last
// word.
func TestOvertaken(t *testing.T) {
	b := newBench(t)
	q, ctx := b.open(), context.Background()
	older, newer := b.job(0), b.job(1)
	newer.Target = older.Target
	last, err := q.Last(ctx, older.Target, older.Insecure)
	require.NoError(t, err)
	_, _, err = q.Request(ctx, newer, last)
	require.NoError(t, err)
	_, _, err = q.Request(ctx, older, last)
	assert.ErrorIs(t, err, queue.ErrOvertaken)
	records, err := q.Records(ctx, queue.Requests)
	require.NoError(t, err)
	for _, r := range records {
		assert.Equal(t, r.ID == newer.ID(), !r.Status.Final(), r.Job.Source)
	}
	_, err = request(ctx, q, older)
	assert.NoError(t, err)
}
