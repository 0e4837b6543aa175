package batch_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
)

// pinning is a runtime that is pinned if the job says by which digest, as Gramine's from a registry is.
type pinning struct{ sim.Backend }

func (p pinning) Load(ctx context.Context, o libos.LoadOptions) (*libos.Bundle, error) {
	b, err := p.Backend.Load(ctx, o)
	if err == nil {
		b.Pinned = o.Digest != ""
	}
	return b, err
}

// A job that fails on warnings, and whose runtime is found by a tag, fails also if another one whose runtime was pinned
// has made the same.
func TestStrictUnpinned(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(1)
	b.worker.Backends = []libos.Backend{pinning{}}
	ctx := context.Background()
	pinned := b.job(0)
	pinned.Runtime.Digest = "sha256:" + strings.Repeat("1", 64)
	pinned.Gate.Strict = true
	for range 5 { // what is a warning of the simulation
		_, err := b.worker.Convert(ctx, pinned)
		if err == nil {
			break
		}
		_, codes, _ := strings.Cut(err.Error(), "found: ")
		pinned.Gate.Ignore = append(pinned.Gate.Ignore, strings.Split(codes, ", ")...)
	}
	tagged := pinned
	tagged.Runtime.Digest = ""
	_, err := b.worker.Convert(ctx, tagged)
	assert.ErrorContains(t, err, "runtime-unpinned")
	b.worker.Own.Cache = cache.Open(t.TempDir(), cache.DefaultLimit)
	_, err = b.worker.Convert(ctx, tagged)
	require.ErrorContains(t, err, "runtime-unpinned")
}

// What is unchanged is told with its findings, as when it was made.
func TestFindingsOfTheUnchanged(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(1)
	q := b.open()
	made := b.work(q, b.submit(q, b.jobs(1)))[0]
	again := b.work(q, b.submit(q, b.jobs(1)))[0]
	require.Equal(t, queue.Unchanged, again.Status)
	assert.Positive(t, made.Findings)
	assert.Equal(t, made.Findings, again.Findings)
}
