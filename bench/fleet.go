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
			if err := b.registry.push(fmt.Sprintf("fleet/base%d:%d", base, i), v1.Config{Entrypoint: []string{"/app"}, Env: []string{fmt.Sprint("IMAGE=", i)}}, layer); err != nil {
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
	// Each run gives other images: the first makes all layers known.
	run := func(flags ...string) (time.Duration, int64, error) {
		svn++
		plan := filepath.Join(b.dir, "plan.yaml")
		if err := os.WriteFile(plan, fmt.Appendf(nil,
			"version: 1\ndefaults:\n  target: '%s/out%d/{{.Repository}}:{{.Tag}}'\n  options: {runtime: 'sim=%s', isv-svn: %d, attest: false}\nconvert: [{registry: '%s', repositories: {allow: ['fleet/.*']}}]\n",
			f.host, time.Now().Unix(), b.runtime, svn, f.host), 0o600); err != nil {
			return 0, 0, err
		}
		before := f.requests.Load()
		done, err := command(ctx, b.program, append([]string{"batch", plan, "--key", b.key}, flags...)...)
		return done.took, f.requests.Load() - before, err
	}
	const parallel = 16
	if _, _, err := run("--parallel", fmt.Sprint(parallel)); err != nil {
		return err
	}
	var requests int64
	took, err := b.median(fmt.Sprintf("%d warm images, %d at a time, %s more for each request", images, parallel, latency), func() (time.Duration, error) {
		took, n, err := run("--parallel", fmt.Sprint(parallel))
		requests = n
		return took, err
	})
	if err != nil {
		return err
	}
	bound := float64(requests) * latency.Seconds() / parallel
	b.note("%d warm images take %d requests: %d in each place at a time, that is %.1f s at least", images, requests, parallel, bound)
	b.goal("300 warm images ÷ requests × 50 ms ÷ images at a time", took/bound, 1.5, "")
	return b.workers(ctx, images, run)
}

// workers compares one worker with two.
func (b *bench) workers(ctx context.Context, images int, run func(...string) (time.Duration, int64, error)) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	queue := exec.CommandContext(ctx, "nats-server", "-a", "127.0.0.1", "-p", port, "-js", "-sd", filepath.Join(b.dir, "nats"))
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
		worker := exec.CommandContext(ctx, b.program, "worker", "--nats", at, "--key", b.key, "--parallel", "4")
		if err := worker.Start(); err != nil {
			return err
		}
		defer func() { _ = worker.Process.Kill(); _ = worker.Wait() }()
		times[n], err = b.median(fmt.Sprintf("%d warm images by %d workers, 4 at a time each", images, n+1), func() (time.Duration, error) {
			took, _, err := run("--nats", at)
			return took, err
		})
		if err != nil {
			return err
		}
	}
	// A goal is a ratio that must not be above a limit: the other way round it must be 1.7 at least.
	b.goal("two workers ÷ one worker, time (1 ÷ 1.7)", times[1]/times[0], 1/1.7, "")
	return nil
}
