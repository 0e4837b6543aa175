package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/internal/freeport"
)

// far is a registry that is some way off.
type far struct {
	host     string
	server   *http.Server
	requests atomic.Int64
}

// latency is what is added to every request.
const latency = 50 * time.Millisecond

func startFar(registry string) (*far, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &far{host: l.Addr().String()}
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	forward.ModifyResponse = func(resp *http.Response) error {
		if to := resp.Header.Get("Location"); to != "" {
			resp.Header.Set("Location", strings.Replace(to, registry, f.host, 1))
		}
		return nil
	}
	f.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.requests.Add(1)
		time.Sleep(latency)
		forward.ServeHTTP(w, r)
	})}
	go f.server.Serve(l) //nolint:errcheck // it ends when it is closed
	return f, nil
}

// fleet converts many small images whose layers are known, between registries that are far away.
func (b *bench) fleet(ctx context.Context) error {
	const images, bases = 300, 12
	app, err := os.ReadFile("testdata/vectors/pal/pal-twosegments.so")
	if err != nil {
		return err
	}
	for base := range bases {
		layer, err := newLayer(filepath.Join(b.dir, fmt.Sprintf("base-%d.tar.gz", base)), func(w *layerWriter) error {
			for name, content := range map[string][]byte{"app": app, "etc/base": fmt.Append(nil, base)} {
				if err := w.file(name, content); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i := base; i < images; i += bases {
			if err := b.registry.push(fmt.Sprintf("fleet/base%d:%d", base, i),
				v1.Config{Entrypoint: []string{"/app"}, Env: []string{fmt.Sprint("IMAGE=", i)}}, layer); err != nil {
				return err
			}
		}
	}
	f, err := startFar(b.registry.host)
	if err != nil {
		return err
	}
	defer f.server.Close()
	svn := 0
	// Each run makes other images: the first makes all layers known. Measuring a large enclave is work for the
	// processor, not for the network, so these are small.
	run := func(repositories string, flags ...string) (time.Duration, int64, error) {
		svn++
		plan := filepath.Join(b.dir, "plan.yaml")
		if err := os.WriteFile(plan, fmt.Appendf(nil,
			"version: 1\ndefaults:\n  target: '%s/out%d/{{.Repository}}:{{.Tag}}'\n  options: {runtime: 'sim=%s', "+
				"isv-svn: %d, attest: false, memory: 256M}\nconvert: [{registry: '%s', repositories: {allow: "+
				"['%s']}}]\n",
			f.host, time.Now().Unix(), b.runtime, svn, f.host, repositories), 0o600); err != nil {
			return 0, 0, err
		}
		before := f.requests.Load()
		done, err := command(ctx, b.program, append([]string{"batch", plan, "--key", b.key}, flags...)...)
		return done.took, f.requests.Load() - before, err
	}
	const parallel = 8 // the default for two processors
	all := func() (time.Duration, int64, error) { return run("fleet/.*", "--parallel", fmt.Sprint(parallel)) }
	if _, _, err := all(); err != nil {
		return err
	}
	var requests int64
	took, err := b.median(fmt.Sprintf("%d warm images, %d at a time, %s more for each request", images, parallel,
		latency), func() (time.Duration, error) {
		took, n, err := all()
		requests = n
		return took, err
	})
	if err != nil {
		return err
	}
	bound := float64(requests) * latency.Seconds() / parallel
	b.note("%d warm images take %d requests, which for %d images at a time are %.1f s of waiting", images, requests,
		parallel, bound)
	b.goal("300 warm images ÷ requests × 50 ms ÷ images at a time", took/bound, 1.5, "")
	return b.workers(ctx, func(queue string) (time.Duration, error) {
		took, _, err := run("fleet/base[0-3]", "--nats", queue)
		return took, err
	})
}

// workers compares one worker with two.
func (b *bench) workers(ctx context.Context, run func(queue string) (time.Duration, error)) error {
	port, err := freeport.Find()
	if err != nil {
		return err
	}
	queue := exec.CommandContext(ctx, "nats-server", "-a", "127.0.0.1", "-p", port, "-js", "-sd",
		filepath.Join(b.dir, "nats"))
	if err := queue.Start(); err != nil {
		return err
	}
	defer func() { _ = queue.Process.Kill(); _ = queue.Wait() }()
	at := "nats://127.0.0.1:" + port
	for range 100 {
		if c, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			c.Close()
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	var times [2]float64
	for n := range times {
		worker := exec.CommandContext(ctx, b.program, "worker", "--nats", at, "--key", b.key, "--parallel", "2")
		if err := worker.Start(); err != nil {
			return err
		}
		defer func() { _ = worker.Process.Kill(); _ = worker.Wait() }()
		times[n], err = b.median(fmt.Sprintf("100 warm images, workers with 2 at a time: %d", n+1),
			func() (time.Duration, error) {
				return run(at)
			})
		if err != nil {
			return err
		}
	}
	// A goal is a ratio that must not be above a limit: the other way round it must be 1.7 at least.
	b.goal("two workers ÷ one worker, time (1 ÷ 1.7)", times[1]/times[0], 1/1.7, "")
	return nil
}
