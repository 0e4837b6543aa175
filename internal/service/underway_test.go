package service_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/service"
)

// Pushed A, B, A: what was kept of the first A is the answer to the second one, while B is being looked at, which is
// queued after it.
func TestKeptWhileAnotherIsUnderWay(t *testing.T) {
	t.Parallel()
	p := newPlace(t, func(o *service.Options) { o.AnswerIn = 300 * time.Millisecond })
	p.push("free:1", "a")
	a := p.reg.Digest(t, "free:1")
	var mode atomic.Int32 // 1: slow; 2: hold B's answer
	at, goOn := make(chan struct{}), make(chan struct{})
	p.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		switch {
		case mode.Load() == 1:
			time.Sleep(400 * time.Millisecond)
		case strings.HasSuffix(r.URL.Path, "/free/manifests/1") && r.Method == "GET" && mode.CompareAndSwap(2, 3):
			rec := httptest.NewRecorder()
			p.reg.Inner.ServeHTTP(rec, r)
			close(at)
			<-goOn
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
			_, _ = w.Write(rec.Body.Bytes())
			return true
		}
		return false
	})
	mode.Store(1)
	event := harborEvent(p.reg.Host, "free:1", a)
	code, _ := p.ask("POST", "/api/v1/notifications/harbor", event)
	require.Equal(t, 503, code)
	time.Sleep(2 * time.Second)
	mode.Store(0)
	p.push("free:1", "b")
	b := p.reg.Digest(t, "free:1")
	mode.Store(2)
	code, _ = p.ask("POST", "/api/v1/notifications/harbor", harborEvent(p.reg.Host, "free:1", b))
	require.Equal(t, 503, code)
	<-at
	p.push("free:1", "a")
	require.Equal(t, a, p.reg.Digest(t, "free:1"))
	code, _ = p.ask("POST", "/api/v1/notifications/harbor", event) // the push of A
	close(goOn)
	time.Sleep(time.Second)
	// The registry sends again what was answered by 503: A's first, and B's.
	_, _ = p.ask("POST", "/api/v1/notifications/harbor", harborEvent(p.reg.Host, "free:1", b))
	p.work()
	time.Sleep(3 * time.Second)
	records, err := p.queue.Records(context.Background(), batch.Requests)
	require.NoError(t, err)
	for _, r := range records {
		if strings.HasSuffix(r.Job.Source, a) && code < 300 {
			assert.Contains(t, []batch.Status{batch.Converted, batch.Unchanged}, r.Status,
				"A was pushed last and taken")
		}
	}
}

// One of two services has postponed a push; the other one is still asking for an earlier one.
func TestPostponedBeforeElsewhere(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	var o service.Options
	var full atomic.Bool
	p := newPlace(t, func(own *service.Options) {
		o = *own
		own.Queue = crowdedWhen{own.Queue, own.Plan.Convert[0].Repository, &full, done}
	})
	second := service.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = second.Run(ctx) }()
	server := httptest.NewServer(second)
	defer server.Close()
	p.push("free:1", "older")
	older := p.reg.Digest(t, "free:1")
	at, goOn := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	p.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.HasSuffix(r.URL.Path, "/free/manifests/1") && r.Method == "GET" && !once.Swap(true) {
			rec := httptest.NewRecorder()
			p.reg.Inner.ServeHTTP(rec, r)
			close(at)
			<-goOn
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
			_, _ = w.Write(rec.Body.Bytes())
			return true
		}
		return false
	})
	first := make(chan int)
	go func() {
		req, _ := http.NewRequest("POST", server.URL+"/api/v1/notifications/harbor",
			strings.NewReader(harborEvent(p.reg.Host, "free:1", older)))
		req.Header.Set("Authorization", "Bearer "+secret)
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			first <- resp.StatusCode
		}
	}()
	<-at
	p.push("free:1", "newer")
	newer := p.reg.Digest(t, "free:1")
	full.Store(true)
	time.Sleep(1500 * time.Millisecond)
	code, _ := p.ask("POST", "/api/v1/notifications/harbor", harborEvent(p.reg.Host, "free:1", newer))
	require.Equal(t, 202, code)
	close(goOn)
	require.Equal(t, 202, <-first)
	close(done)
	time.Sleep(7 * time.Second)
	records, err := p.queue.Records(context.Background(), batch.Requests)
	require.NoError(t, err)
	var sources []string
	for _, r := range records {
		sources = append(sources, r.Job.Source)
	}
	assert.Contains(t, strings.Join(sources, " "), newer, "VOUCHES: the push that was told of last, and taken (202)")
}

// A file that the plan names, such as a manifest, is not there for a moment, while a ConfigMap is replaced.
func TestFileOfAnOptionIsAbsent(t *testing.T) {
	t.Parallel()
	var missing atomic.Bool
	p := newPlace(t, func(o *service.Options) {
		job := o.Job
		o.Job = func(img plan.Image) (batch.Job, error) {
			if missing.Load() { // as planJob: it reads the manifest for each request
				_, err := os.ReadFile("/nonexistent/own.toml")
				return batch.Job{}, err
			}
			return job(img)
		}
	})
	p.push("free:1", "a")
	missing.Store(true)
	code, _ := p.ask("POST", "/api/v1/notifications/harbor",
		harborEvent(p.reg.Host, "free:1", p.reg.Digest(t, "free:1")))
	assert.GreaterOrEqual(t, code, 500, "VOUCHES")
}
