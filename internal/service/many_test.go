package service_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/service"
)

// Of more than 2,000 tags that are pushed to a repository at a time, the rest is answered as taken, and forgotten.
func TestManyPushesOfARepository(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	p := newPlace(t, func(o *service.Options) { o.Queue = crowded{o.Queue, o.Plan.Convert[0].Repository, done} })
	p.push("free:t999", "the 1000th")
	p.push("free:t1000", "the 1001st")
	require.Eventually(t, func() bool {
		code, _ := p.convert(p.reg.Host + "/free:t999")
		return code == http.StatusTooManyRequests
	}, 10*time.Second, 20*time.Millisecond)
	for i := range 1001 {
		code, _ := p.ask("POST", "/api/v1/notifications/harbor",
			harborEvent(p.reg.Host, fmt.Sprintf("free:t%d", i), ""))
		require.Equal(t, http.StatusAccepted, code, i)
	}
	close(done)
	sources := func() string {
		records, err := p.queue.Records(context.Background(), batch.Requests)
		require.NoError(t, err)
		var list []string
		for _, r := range records {
			list = append(list, r.Job.Source)
		}
		return strings.Join(list, " ")
	}
	require.Eventually(t, func() bool {
		return strings.Contains(sources(), p.reg.Digest(t, "free:t999"))
	}, 30*time.Second, 200*time.Millisecond)
	time.Sleep(5 * time.Second)
	assert.Contains(t, sources(), p.reg.Digest(t, "free:t1000"))
}
