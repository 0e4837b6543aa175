package batch

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// A job is put back for long enough that all behind it can be looked at first.
func TestAside(t *testing.T) {
	for _, c := range []struct {
		deliveries, behind uint64
		want               time.Duration
	}{
		{1, 0, 4 * time.Second}, {5, 10, time.Minute}, {100, 0, time.Minute}, {1, 300_000, 10 * time.Minute},
		{1, 1 << 62, 15 * time.Minute},
	} {
		assert.Equal(t, c.want, asideFor(c.deliveries, c.behind), "%d %d", c.deliveries, c.behind)
	}
}

// A job is held up by the registry that it waits for, and by no other one.
func TestHeldUpBy(t *testing.T) {
	hosts := []string{"index.docker.io", "registry.example:443"}
	m := &meter{}
	over := m.Waiting("index.example") // of what others have found out
	assert.Equal(t, "index.example", m.heldUpBy(hosts))
	over()
	assert.Equal(t, "index.example", m.heldUpBy(hosts))
	defer m.Waiting("registry.example:443")()
	assert.Equal(t, "registry.example:443", m.heldUpBy(hosts))
}
