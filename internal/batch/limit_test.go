package batch_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/plan"
)

// The port that goes without saying, which a request to the service may write, does not lift a registry's limit.
func TestLimitByPort(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(1)
	b.worker.Own.Image.HTTP, b.worker.Own.Cache = fixture.ToHost(b.reg.Host), nil
	took := func(host string) time.Duration {
		j := b.job(0)
		j.Insecure, j.Force = false, true
		j.Limits = map[string]plan.Limits{"registry.example": {PerSecond: 3}}
		j.Source = strings.Replace(j.Source, b.reg.Host, host, 1)
		j.Target = strings.Replace(j.Target, b.reg.Host, host, 1)
		begin := time.Now()
		_, err := b.worker.Convert(context.Background(), j)
		require.NoError(t, err)
		return time.Since(begin)
	}
	plain, port := took("registry.example"), took("registry.example:443")
	t.Log(plain, port)
	require.Greater(t, plain, time.Second)
	assert.Greater(t, port, time.Second, "the limit does not hold for registry.example:443")
}
