package queue

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos/all"
)

// A job whose runtime is the default one waits for the registry of that, which goes without saying.
func TestHostOfTheDefaultRuntime(t *testing.T) {
	source, err := image.ParseReference("a.example/app:1", false)
	require.NoError(t, err)
	target, err := image.ParseReference("b.example/app:1", false)
	require.NoError(t, err)
	job := NewJob(convert.Options{Source: source, Target: &target, Backend: all.Backends()[0]}, false)
	assert.Equal(t, []string{"a.example", "b.example", "index.docker.io"},
		HostsIn(message(&Record{Batch: "b", ID: "i", Job: job})))
}

// A registry has one name, however it is written.
func TestHostsOfAJob(t *testing.T) {
	r := &Record{
		Batch: "b", ID: "i", Job: Job{
			Source: "docker://nginx", Target: "registry.example:443/a:1", Runtime: Runtime{Source: "dir:/opt/gramine"},
		},
	}
	assert.Equal(t, []string{"index.docker.io", "registry.example:443"}, HostsIn(message(r)))
}
