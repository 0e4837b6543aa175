package main

import (
	"context"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
)

func TestHarmless(t *testing.T) {
	for in, want := range map[string]string{
		"plain: ä\n\tx":  "plain: ä\n\tx",
		"\x1b[2Jtrusted": "?[2Jtrusted",
		"a\rtrusted\b":   "a?trusted?",
		"\u009b2J":       "?2J", // the escape sequence's introducer in C1
		"\u202etxt":      "?txt",
		"\u2066a\u2069":  "?a?",
		"\xff":           "\ufffd",
	} {
		assert.Equal(t, want, harmless(in), "%q", in)
	}
}

// A runtime that cannot be found is a problem of the jobs that want it, and of no others.
func TestMissingRuntime(t *testing.T) {
	reg := fixture.NewRegistry(t)
	there := reg.Push(t, "gramine:1", fixture.Image(t, v1.Config{}, fixture.Layer(t, fixture.File("a", "1"))))
	job := func(runtime string) queue.Job {
		return queue.Job{
			Source: "registry.example/app:1", Insecure: true,
			Runtime: queue.Runtime{Kind: "gramine", Source: "docker://" + runtime},
		}
	}
	missing := reg.Host + "/none:1"
	jobs := []queue.Job{job(missing), job(there), job(missing)}
	require.NoError(t, pinRuntimes(context.Background(), jobs, registry.Options{}))
	for _, i := range []int{0, 2} {
		assert.Contains(t, jobs[i].Problem, "finding the runtime docker://"+missing)
		assert.False(t, jobs[i].Passing)
	}
	assert.Empty(t, jobs[1].Problem)
	assert.Equal(t, reg.Digest(t, "gramine:1"), jobs[1].Runtime.Digest)
	err := pinRuntimes(context.Background(), []queue.Job{job(missing)}, registry.Options{})
	assert.ErrorIs(t, err, image.ErrNotFound,
		"nothing is left to do")
}
