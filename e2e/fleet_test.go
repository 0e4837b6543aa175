//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/internal/fixture"
)

// fleet is a source registry full of images, and what converts them.
type fleet struct {
	t       *testing.T
	dir     string
	source  string // host
	bases   int
	images  int
	runtime string
}

// record is what "cconvert batch --output-json" says of an image.
type record struct {
	Job struct {
		Source, Target string
	}
	Status, Digest, Error string
	MREnclave             string `json:"mr_enclave"`
	Updated               time.Time
}

// newFleet makes so many images over so many bases: a repository for each base, a tag for each image.
func newFleet(t *testing.T, source string, images, bases int) *fleet {
	f := &fleet{t: t, dir: t.TempDir(), source: source, bases: bases, images: images}
	// the simulated one is larger
	f.runtime = filepath.Join(f.dir, "runtime")
	require.NoError(t, os.WriteFile(f.runtime, []byte(fixture.ELF("")), 0o755))
	var g errgroup.Group
	g.SetLimit(4)
	for b := range bases {
		entries := []fixture.Entry{fixture.Program("app", fixture.ELF(""))}
		for i := range 200 {
			entries = append(entries,
				fixture.File(fmt.Sprintf("usr/share/base/%d", i), strings.Repeat(fmt.Sprint(b, i, " "), 500)))
		}
		base := fixture.Layer(t, entries...)
		push := func(i int) error {
			img := fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}, Env: []string{fmt.Sprint("IMAGE=", i)}},
				base, fixture.Layer(t, fixture.File("opt/own", fmt.Sprint(i))))
			tag, err := name.NewTag(fmt.Sprintf("%s/base%d:%d", source, b, i))
			if err != nil {
				return err
			}
			return remote.Write(tag, img)
		}
		require.NoError(t, push(b)) // the registry cannot take the same layer twice at a time
		for i := b + bases; i < images; i += bases {
			g.Go(func() error { return push(i) })
		}
	}
	require.NoError(t, g.Wait())
	return f
}

// plan writes one that converts all images to a target.
func (f *fleet) plan(target string) string {
	f.t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "version: 1\ndefaults:\n  target: %q\n  options: {runtime: \"sim=%s\"}\nconvert:\n", target+
		"/{{.Repository}}:{{.Tag}}", f.runtime)
	for b := range f.bases {
		fmt.Fprintf(&text, "- repository: %s/base%d\n", f.source, b)
	}
	file := filepath.Join(f.dir, "plan-"+strings.NewReplacer(":", "-", "/", "-").Replace(target)+".yaml")
	require.NoError(f.t, os.WriteFile(file, []byte(text.String()), 0o600))
	return file
}

// environment keeps a process's caches and queue apart.
func (f *fleet) environment(of string) []string {
	return append(os.Environ(), "XDG_CACHE_HOME="+filepath.Join(f.dir, of, "cache"), "XDG_STATE_HOME="+
		filepath.Join(f.dir, of, "state"))
}

// batch runs "cconvert batch" to its end and returns its records by tag.
func (f *fleet) batch(of string, args ...string) map[string]record {
	f.t.Helper()
	facts := filepath.Join(f.dir, of+".json")
	cmd := exec.Command(program,
		append([]string{"batch", "--insecure", "--output-json", facts, "--key", key}, args...)...)
	cmd.Env = f.environment(of)
	out, err := cmd.CombinedOutput()
	require.NoError(f.t, err, "%s", out)
	return f.records(facts)
}

func (f *fleet) records(file string) map[string]record {
	f.t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(f.t, err)
	var list []record
	require.NoError(f.t, json.Unmarshal(text, &list))
	records := map[string]record{}
	for _, r := range list {
		_, tag, _ := strings.Cut(r.Job.Source, "/")
		records[tag] = r
	}
	return records
}

// process is one that is started again when it was killed.
type process struct {
	t     *testing.T
	start func() *exec.Cmd

	mu  sync.Mutex
	cmd *exec.Cmd
}

func newProcess(t *testing.T, start func() *exec.Cmd) *process {
	p := &process{t: t, start: start}
	p.again()
	t.Cleanup(p.kill)
	return p
}

func (p *process) again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd = p.start()
	if err := p.cmd.Start(); err != nil {
		p.t.Error(err)
	}
}

// kill ends it as a power failure would.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// nats is a server of Debian's package with JetStream.
func nats(t *testing.T) (*process, string) {
	port, dir := freePort(t), t.TempDir()
	p := newProcess(t, func() *exec.Cmd {
		return exec.Command("nats-server", "-a", "127.0.0.1", "-p", port, "-js", "-sd", dir)
	})
	eventually(t, "the queue answers", func() error {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
		}
		return err
	})
	return p, "nats://127.0.0.1:" + port
}

// faulty stands before a registry and fails a part of the requests, by an answer or by none.
func faulty(t *testing.T, registry string, part float64) string {
	t.Helper()
	host := "127.0.0.1:" + freePort(t)
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	forward.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) {
		w.WriteHeader(http.StatusBadGateway)
	}
	forward.ModifyResponse = func(r *http.Response) error {
		if l := r.Header.Get("Location"); l != "" {
			r.Header.Set("Location", strings.Replace(l, registry, host, 1))
		}
		return nil
	}
	s := &http.Server{Addr: host, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := rand.Float64(); {
		case n < part/2:
			w.WriteHeader(http.StatusServiceUnavailable)
		case n < part:
			panic(http.ErrAbortHandler) // closes the connection
		default:
			forward.ServeHTTP(w, r)
		}
	})}
	go func() { _ = s.ListenAndServe() }()
	t.Cleanup(func() { s.Close() })
	return host
}

// watcher looks at a registry's tags all along: every one must name a complete image, and never another one.
type watcher struct {
	host string
	mu   sync.Mutex
	seen map[string]string // digests by tag
	bad  []string
}

func watch(ctx context.Context, host string, repos []string) (*watcher, *sync.WaitGroup) {
	w := &watcher{host: host, seen: map[string]string{}}
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			for _, r := range repos {
				w.look(ctx, r)
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	return w, &done
}

func (w *watcher) look(ctx context.Context, repo string) {
	r, err := name.NewRepository(w.host + "/" + repo)
	if err != nil {
		w.complain(err.Error())
		return
	}
	tags, err := remote.List(r, remote.WithContext(ctx))
	if err != nil {
		return // it is not there yet
	}
	for _, tag := range tags {
		if strings.HasPrefix(tag, "sha256-") || ctx.Err() != nil {
			continue
		}
		if err := w.complete(ctx, r.Tag(tag), repo+":"+tag); err != nil && ctx.Err() == nil {
			w.complain(fmt.Sprintf("%s:%s: %v", repo, tag, err))
		}
	}
}

// complete pulls an image that was not seen before, and sees that a known one is the same.
func (w *watcher) complete(ctx context.Context, tag name.Tag, key string) error {
	var d *v1.Descriptor
	err := soon(func() (err error) {
		d, err = remote.Head(tag, remote.WithContext(ctx))
		return err
	})
	w.mu.Lock()
	before, known := w.seen[key]
	if err == nil {
		w.seen[key] = d.Digest.String()
	}
	w.mu.Unlock()
	var answer *transport.Error
	if !known && errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
		return nil // this registry lists a tag a moment before it leads anywhere
	}
	if err != nil {
		return err
	}
	if known && before != d.Digest.String() {
		return fmt.Errorf("it was %s and is %s", before, d.Digest)
	}
	if known {
		return nil
	}
	var img v1.Image
	err = soon(func() (err error) {
		if img, err = remote.Image(tag.Digest(d.Digest.String()), remote.WithContext(ctx)); err == nil {
			_, err = img.ConfigFile()
		}
		return err
	})
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	if len(layers) != 4 {
		return errors.New("it has not four layers")
	}
	for _, l := range layers {
		id, err := l.Digest()
		if err != nil {
			return err
		}
		if err := w.has(fmt.Sprintf("http://%s/v2/%s/blobs/%s", w.host, tag.RepositoryStr(), id)); err != nil {
			return fmt.Errorf("its layer %s: %w", id, err)
		}
	}
	return nil
}

// has reports why there is nothing at a URL.
func (w *watcher) has(url string) error {
	return soon(func() error {
		resp, err := http.Head(url)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

// soon calls a function until it succeeds, for a tenth of a second. This registry writes a link by emptying its file
// first, so that what another worker has sent once more is not there for a moment.
func soon(f func() error) error {
	for end := time.Now().Add(100 * time.Millisecond); ; time.Sleep(5 * time.Millisecond) {
		if err := f(); err == nil || time.Now().After(end) {
			return err
		}
	}
}

func (w *watcher) complain(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bad = append(w.bad, what)
}

// fleetSize is how many images over how many bases: 60 over 4, or what the variable CCONVERT_FLEET says, as "300/12".
func fleetSize(t *testing.T) (images, bases int) {
	images, bases = 60, 4
	if v := os.Getenv("CCONVERT_FLEET"); v != "" {
		_, err := fmt.Sscanf(v, "%d/%d", &images, &bases)
		require.NoError(t, err)
	}
	return images, bases
}

// Workers die, the queue's server is restarted, and the target's registry fails a tenth of its requests: every image
// ends converted exactly as without all that.
func TestFleetInChaos(t *testing.T) {
	images, bases := fleetSize(t)
	source, target := "127.0.0.1:"+startRegistry(t), "127.0.0.1:"+startRegistry(t)
	f := newFleet(t, source, images, bases)
	quiet := f.batch("quiet", f.plan(target+"/quiet"))
	require.Len(t, quiet, images)

	server, url := nats(t)
	var workers []*process
	for i := range 3 {
		workers = append(workers, newProcess(t, func() *exec.Cmd {
			cmd := exec.Command(program, "worker", "--insecure", "--nats", url, "--key", key, "--files", f.dir,
				"--parallel", "2", "--lease", "3s", "--attempts", "20", "--retry-pause", "200ms")
			cmd.Env = f.environment(fmt.Sprint("worker", i))
			cmd.Stderr = os.Stderr
			return cmd
		}))
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var repos []string
	for b := range bases {
		repos = append(repos, fmt.Sprintf("loud/base%d", b))
	}
	w, watching := watch(ctx, target, repos)
	var chaos sync.WaitGroup
	// An image that six workers did not live to finish has failed, so there are fewer. They go by what is done: a clock
	// kills more of them on a slower machine.
	const kills = 5
	done := 0
	chaos.Go(func() {
		for done <= kills && ctx.Err() == nil {
			if len(w.tags()) < (done+1)*images/(kills+2) {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			if done == 1 {
				server.kill()
				time.Sleep(time.Second)
				server.again()
			} else {
				victim := workers[rand.N(len(workers))]
				victim.kill()
				victim.again()
			}
			done++
		}
	})
	loud := f.batch("loud", f.plan(faulty(t, target, 0.1)+"/loud"), "--nats", url, "--lease", "3s")
	for len(w.tags()) < images && ctx.Err() == nil {
		time.Sleep(50 * time.Millisecond)
	}
	stop()
	chaos.Wait()
	watching.Wait()

	require.Len(t, loud, images)
	for tag, r := range loud {
		assert.Contains(t, []string{"converted", "unchanged"}, r.Status, "%s: %s", tag, r.Error)
		assert.Equal(t, quiet[tag].Digest, r.Digest, tag)
		assert.Equal(t, quiet[tag].MREnclave, r.MREnclave, tag)
		assert.Equal(t, quiet[tag].Digest, w.tags()["loud/"+tag], "the tag of %s", tag)
	}
	assert.Empty(t, w.bad, "what tags named all along")
	assert.GreaterOrEqual(t, done, 3, "the queue's server was restarted, and workers were killed before and after")
}

func (w *watcher) tags() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[string]string{}
	for k, v := range w.seen {
		all[k] = v
	}
	return all
}
