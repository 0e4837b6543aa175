package batch_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/queue"
)

// A worker whose credentials the queue does not take any more ends, so that a supervisor starts it again.
func TestRefusedByTheQueue(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(1)
	o := &server.Options{Username: "a", Password: "old"}
	s := natsServer(t, o)
	url := s.ClientURL()
	q, err := queue.Open(context.Background(),
		queue.Options{URL: url, Connect: []nats.Option{nats.UserInfo("a", "old")}})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- b.worker.Work(ctx, ctx, q, b.options) }()
	time.Sleep(time.Second)
	changed := o.Clone()
	changed.Port, changed.Password = s.Addr().(*net.TCPAddr).Port, "new"
	require.NoError(t, s.ReloadOptions(changed))
	select {
	case err := <-ended:
		assert.ErrorIs(t, err, queue.ErrClosed)
	case <-time.After(20 * time.Second):
		assert.Fail(t, "the worker goes on without a queue")
	}
}
