package service_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/service"
)

// Pushed A, B, A within seconds: that nothing came of the first A is the answer to the second one.
func TestKeptNothing(t *testing.T) {
	t.Parallel()
	p := newPlace(t, func(o *service.Options) { o.AnswerIn = 700 * time.Millisecond })
	p.push("free:1", "a")
	a := p.reg.Digest(t, "free:1")
	p.push("free:1", "b")
	event := harborEvent(p.reg.Host, "free:1", a)
	code, _ := p.ask("POST", "/api/v1/notifications/harbor", event)
	require.Equal(t, 503, code)
	time.Sleep(1200 * time.Millisecond)
	p.push("free:1", "a")
	code, _ = p.ask("POST", "/api/v1/notifications/harbor", event)
	records, err := p.queue.Records(context.Background(), batch.Requests)
	require.NoError(t, err)
	asked := false
	for _, r := range records {
		asked = asked || strings.HasSuffix(r.Job.Source, a)
	}
	assert.False(t, code < 300 && !asked, "VOUCHES")
}
