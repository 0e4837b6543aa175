package image_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
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
		img, err := image.Open(ctx, parse(t, ref), o)
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

// Whoever reads slowly, or sends much, is not taken for a slow registry.
func TestSlowReader(t *testing.T) {
	reg := fixture.NewRegistry(t)
	ref := reg.Push(t, "app:1", sample(t))
	o := quick
	o.Idle = 100 * time.Millisecond
	img, err := image.Open(context.Background(), parse(t, ref), o)
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
