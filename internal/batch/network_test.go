package batch_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/queue"
)

// natsServer starts a server with JetStream, and completes its options.
func natsServer(t *testing.T, o *server.Options) *server.Server {
	t.Helper()
	o.Host, o.Port, o.JetStream, o.StoreDir, o.NoSigs, o.NoLog = "127.0.0.1", server.RANDOM_PORT, true, t.TempDir(),
		true, true
	s, err := server.NewServer(o.Clone())
	require.NoError(t, err)
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	require.True(t, s.ReadyForConnections(10*time.Second))
	return s
}

// link is a connection to a server that can be cut.
type link struct {
	addr  string
	mu    sync.Mutex
	conns []net.Conn
	down  atomic.Bool
}

func newLink(t *testing.T, to string) *link {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	n := &link{addr: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if n.down.Load() {
				c.Close()
				continue
			}
			d, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			n.mu.Lock()
			n.conns = append(n.conns, c, d)
			n.mu.Unlock()
			go io.Copy(c, d) //nolint:errcheck // it ends when it is cut
			go io.Copy(d, c) //nolint:errcheck // it ends when it is cut
		}
	}()
	return n
}

func (n *link) cut() {
	n.down.Store(true)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.Close()
	}
}

func (n *link) heal() { n.down.Store(false) }

// twoSides opens a queue whose lease is a second, here and at the other end of a link.
func twoSides(ctx context.Context, t *testing.T) (near, far *queue.Queue, between *link) {
	t.Helper()
	s := natsServer(t, &server.Options{})
	between = newLink(t, s.Addr().String())
	open := func(url string) *queue.Queue {
		q, err := queue.Open(ctx, queue.Options{URL: url, Lease: time.Second})
		require.NoError(t, err)
		t.Cleanup(q.Close)
		return q
	}
	return open(s.ClientURL()), open("nats://" + between.addr), between
}

func anotherWorker(b *bench) *batch.Worker {
	return &batch.Worker{
		Name: "other", Signer: b.worker.Signer, Backends: b.worker.Backends, Files: b.worker.Files, Insecure: true,
		Own: b.worker.Own,
	}
}

// image is one of the bench's registry.
func (b *bench) image(ref string) v1.Image {
	b.t.Helper()
	n, err := name.ParseReference(b.reg.Host + "/" + ref)
	require.NoError(b.t, err)
	img, err := remote.Image(n)
	require.NoError(b.t, err)
	return img
}

// serve has the registry do what a request asks for, and returns its answer.
func (b *bench) serve(r *http.Request) *httptest.ResponseRecorder {
	answer := httptest.NewRecorder()
	b.reg.Inner.ServeHTTP(answer, r)
	return answer
}

// pass writes an answer of the registry to whoever asked.
func pass(w http.ResponseWriter, answer *httptest.ResponseRecorder) {
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

// requestDone waits until a request is done.
func requestDone(ctx context.Context, q *queue.Queue, id string) {
	for ctx.Err() == nil {
		records, err := q.Records(ctx, queue.Requests)
		for _, r := range records {
			if err == nil && r.ID == id && r.Status.Final() {
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// tagIsOf checks that the tag has, in the end, what a request says.
func tagIsOf(t *testing.T, b *bench, q *queue.Queue, id string) {
	t.Helper()
	records, err := q.Records(context.Background(), queue.Requests)
	require.NoError(t, err)
	for _, r := range records {
		if r.ID == id {
			require.Contains(t, []queue.Status{queue.Converted, queue.Unchanged}, r.Status, r.Error)
			assert.Equal(t, r.Digest, b.reg.Digest(t, "out:0"), "the tag has what was asked for last")
			return
		}
	}
	t.Errorf("there is no record of %s", id)
}
