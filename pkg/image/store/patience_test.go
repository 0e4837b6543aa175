package store_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// A registry that is silent, or sends a byte now and then, is not waited for for ever.
func TestSlowRegistry(t *testing.T) {
	reg := fixture.NewRegistry(t)
	ref := reg.Push(t, "app:1", sample(t))
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	drip := func(w http.ResponseWriter, every time.Duration) {
		w.Header().Set("Content-Length", "1000000")
		w.WriteHeader(http.StatusOK)
		for {
			if _, err := io.WriteString(w, "x"); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-over:
				return
			case <-time.After(every):
			}
		}
	}
	for what, answer := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"no answer at all": func(_ http.ResponseWriter, r *http.Request) bool {
			<-r.Context().Done()
			return true
		},
		"a silent manifest": func(_ http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			<-r.Context().Done()
			return true
		},
		"a manifest drop by drop": func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				drip(w, 5*time.Millisecond)
			}
			return strings.Contains(r.URL.Path, "/manifests/")
		},
		"blobs drop by drop": func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/blobs/") {
				drip(w, 5*time.Millisecond)
			}
			return strings.Contains(r.URL.Path, "/blobs/")
		},
	} {
		reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool { return answer(w, r) })
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		o := quick
		o.Idle = 50 * time.Millisecond
		img, err := store.Open(ctx, parse(t, ref), o)
		if err == nil {
			var layer io.ReadCloser
			if layer, err = img.Layers[0].Open(ctx); err == nil {
				_, err = io.Copy(io.Discard, layer)
				layer.Close()
			}
			img.Close()
		}
		assert.ErrorContains(t, err, "too slowly", what)
		assert.True(t, image.Transient(err), what)
		assert.NoError(t, ctx.Err(), what)
		cancel()
	}
}

// A registry that breaks each connection after a byte is not begun with anew for ever.
func TestBrokenAfterEachByte(t *testing.T) {
	reg := fixture.NewRegistry(t)
	ref := reg.Push(t, "app:1", sample(t))
	o := quick
	o.Idle = 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	img, err := store.Open(ctx, parse(t, ref), o)
	require.NoError(t, err)
	defer img.Close()
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		w.Header().Set("Content-Length", "1000000")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = io.WriteString(w, "x")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	layer, err := img.Layers[0].Open(ctx)
	require.NoError(t, err)
	defer layer.Close()
	_, err = io.Copy(io.Discard, layer)
	require.NoError(t, ctx.Err())
	assert.ErrorContains(t, err, "too slowly")
	assert.True(t, image.Transient(err))
}

// Who sends the same blob from another source waits for nobody: that source may never come to an end.
func TestSharedUploads(t *testing.T) {
	to := fixture.NewRegistry(t)
	slow, sound := fixture.NewRegistry(t), fixture.NewRegistry(t)
	o := quick
	o.Shared = &registry.Shared{}
	from := slow.Push(t, "app:1", sample(t))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stuck, err := store.Open(ctx, parse(t, from), o)
	require.NoError(t, err)
	defer stuck.Close()
	slow.Silence(t)
	u := store.NewUpload(ctx, parse(t, to.Host+"/slow:1"), o)
	defer u.Close()
	defer cancel() // it would wait for the silent one
	u.Begin(stuck)
	require.Eventually(t, func() bool { return len(slow.Requests()) > 0 }, 10*time.Second, time.Millisecond)

	within, end := context.WithTimeout(context.Background(), 20*time.Second)
	defer end()
	_, err = extend(within, t, sound.Push(t, "app:1", sample(t)), to.Host+"/slow:2", o)
	require.NoError(t, err)
}

// What registries lead to can be signed: its address is not for messages.
func TestSignedAddresses(t *testing.T) {
	reg := fixture.NewRegistry(t)
	ref := reg.Push(t, "app:1", sample(t))
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(w, r, "http://127.0.0.1:1/blob?X-Amz-Signature=secret", http.StatusTemporaryRedirect)
		return true
	})
	_, err := store.Open(context.Background(), parse(t, ref), quick)
	require.ErrorContains(t, err, "127.0.0.1:1")
	assert.NotContains(t, err.Error(), "secret")
}

// Whoever is asked before a tag is moved can keep it where it is.
func TestBeforeTag(t *testing.T) {
	reg := fixture.NewRegistry(t)
	o := quick
	o.BeforeTag = func(context.Context) error { return errNotWanted }
	_, err := extend(context.Background(), t, reg.Push(t, "app:1", sample(t)), reg.Host+"/app:2", o)
	require.ErrorIs(t, err, errNotWanted)
	assert.Empty(t, reg.Digest(t, "app:2"))
}

var errNotWanted = errors.New("another one is wanted")

// Whoever reads slowly, or sends much, is not taken for a slow registry.
func TestSlowReader(t *testing.T) {
	reg := fixture.NewRegistry(t)
	ref := reg.Push(t, "app:1", sample(t))
	o := quick
	o.Idle = 100 * time.Millisecond
	img, err := store.Open(context.Background(), parse(t, ref), o)
	require.NoError(t, err)
	defer img.Close()
	layer, err := img.Layers[1].Open(context.Background())
	require.NoError(t, err)
	defer layer.Close()
	_, err = io.ReadFull(layer, make([]byte, 10))
	require.NoError(t, err)
	time.Sleep(3 * o.Idle)
	_, err = io.Copy(io.Discard, layer)
	assert.NoError(t, err)
}

// What is uploaded goes where the registry is, and nowhere else.
func TestUploadElsewhere(t *testing.T) {
	ctx, reg, other := context.Background(), fixture.NewRegistry(t), fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	other.Intercept(nil)
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodPost {
			return false
		}
		w.Header().Set("Location", "http://"+other.Host+"/v2/dst/blobs/uploads/1")
		w.WriteHeader(http.StatusAccepted)
		return true
	})
	_, err := extend(ctx, t, from, reg.Host+"/dst:1", quick)
	assert.ErrorContains(t, err, "which is another host")
	assert.Empty(t, other.Requests())
}

// A registry is not blamed for the time in which nobody asks it.
func TestPaceIsNobodysSilence(t *testing.T) {
	reg := fixture.NewRegistry(t)
	reg.Push(t, "app:1", sample(t))
	o := quick
	o.Idle = 100 * time.Millisecond
	var asked atomic.Int32
	before := len(reg.Requests())
	o.Pace = func(*http.Request) (func(), error) {
		asked.Add(1)
		time.Sleep(2 * o.Idle)
		return func() {}, nil
	}
	img, err := store.Open(context.Background(), parse(t, reg.Host+"/app:1"), o)
	require.NoError(t, err)
	defer img.Close()
	assert.EqualValues(t, len(reg.Requests())-before, asked.Load())
}

// A registry need not say in a header which manifest a tag has.
func TestAtWithoutHeader(t *testing.T) {
	reg := fixture.NewRegistry(t)
	reg.Push(t, "app:1", sample(t))
	want := reg.Digest(t, "app:1")
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		answer := httptest.NewRecorder()
		reg.Inner.ServeHTTP(answer, r)
		answer.Header().Del("Docker-Content-Digest")
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
		return true
	})
	at, err := registry.At(context.Background(), parse(t, reg.Host+"/app:1"), quick)
	require.NoError(t, err)
	assert.Equal(t, want, at)
}
