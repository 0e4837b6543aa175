package queue

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hooked calls a function after a value was read.
type hooked struct {
	jetstream.KeyValue
	after func()
}

func (h *hooked) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	e, err := h.KeyValue.Get(ctx, key)
	if h.after != nil {
		h.after()
	}
	return e, err
}

// Of three requests for a target the first one is overtaken by the second, and skips no record that is the last one's
// by then.
func TestSkippedRecordOfAnother(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	q, err := Open(ctx, Options{Dir: filepath.Join(t.TempDir(), "queue")})
	require.NoError(t, err)
	defer q.Close()
	other := *q // another service
	j, k := Job{Source: "registry.example/a:1", Target: "registry.example/out:1"},
		Job{Source: "registry.example/b:1", Target: "registry.example/out:1"}
	ask := func(q *Queue, j Job) *Record {
		last, err := q.lastFor(ctx, j)
		require.NoError(t, err)
		r, _, err := q.Request(ctx, j, last)
		require.NoError(t, err)
		return r
	}
	h := &hooked{KeyValue: q.latest}
	q.latest = h
	n := 0
	var last *Record
	h.after = func() {
		if n++; n != 2 {
			return
		}
		// In Request: the last one is as it was; the record is written, and then somebody asks for another one.
		h.after = nil
		q.records = &hookedUpdate{KeyValue: q.records, before: func() {
			ask(&other, k)
			h.after = func() { // in setLatest: it was overtaken, and before that is noted it is asked for again
				h.after = nil
				last = ask(&other, j)
			}
		}}
	}
	l, err := q.lastFor(ctx, j)
	require.NoError(t, err)
	_, _, err = q.Request(ctx, j, l)
	require.ErrorIs(t, err, ErrOvertaken)
	require.NotNil(t, last)
	now, _, err := other.Get(ctx, last.Key())
	require.NoError(t, err)
	assert.Equal(t, Queued, now.Status)
}

type hookedUpdate struct {
	jetstream.KeyValue
	once   sync.Once
	before func()
}

func (h *hookedUpdate) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	n, err := h.KeyValue.Update(ctx, key, value, revision)
	if err == nil {
		h.once.Do(h.before)
	}
	return n, err
}
