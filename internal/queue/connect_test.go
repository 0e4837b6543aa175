package queue

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/sirupsen/logrus"
	logged "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/freeport"
)

// start runs a server with JetStream on a port of 127.0.0.1.
func start(t *testing.T, o server.Options) *server.Server {
	t.Helper()
	o.Host, o.JetStream, o.StoreDir, o.NoSigs, o.NoLog = "127.0.0.1", true, t.TempDir(), true, true
	s, err := server.NewServer(&o)
	require.NoError(t, err)
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

// A server that starts with its clients resets connections, ends them without a word, or does not listen yet.
func TestServerThatIsStarting(t *testing.T) {
	s := start(t, server.Options{Port: server.RANDOM_PORT})
	require.True(t, s.ReadyForConnections(20*time.Second))
	for name, end := range map[string]func(*net.TCPConn){
		"resets": func(c *net.TCPConn) { _ = c.SetLinger(0) },
		"ends":   func(*net.TCPConn) {},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer l.Close()
			var seen atomic.Int32
			go func() {
				for range 2 {
					c, err := l.Accept()
					if err != nil {
						return
					}
					seen.Add(1)
					end(c.(*net.TCPConn))
					c.Close()
				}
				forward(l, s.Addr().String())
			}()
			q, err := Open(t.Context(), Options{URL: "nats://" + l.Addr().String(), Lease: time.Second})
			require.NoError(t, err)
			q.Close()
			assert.EqualValues(t, 2, seen.Load())
		})
	}
	t.Run("listens late", func(t *testing.T) {
		port, err := freeport.Find()
		require.NoError(t, err)
		address := net.JoinHostPort("127.0.0.1", port)
		time.AfterFunc(time.Second, func() {
			if l, err := net.Listen("tcp", address); err == nil {
				t.Cleanup(func() { l.Close() })
				forward(l, s.Addr().String())
			}
		})
		q, err := Open(t.Context(), Options{URL: "nats://" + address, Lease: time.Second})
		require.NoError(t, err)
		q.Close()
	})
}

// What waiting cannot mend is answered at once, and the rest after a bounded time or with the context.
func TestServerThatRefuses(t *testing.T) {
	s := start(t, server.Options{Port: server.RANDOM_PORT, Authorization: "the token"})
	require.True(t, s.ReadyForConnections(20*time.Second))
	hook := logged.NewGlobal()
	defer logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	_, err := Open(t.Context(), Options{URL: s.ClientURL()})
	require.ErrorIs(t, err, nats.ErrAuthorization)
	_, err = Open(t.Context(), Options{URL: "nats://[::1"})
	require.Error(t, err)
	assert.Empty(t, hook.AllEntries(), "it was not waited for")

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = Open(ctx, Options{URL: "nats://127.0.0.1:1"})
	require.Error(t, err)
	assert.True(t, errors.Is(err, ErrUnreachable) || errors.Is(err, context.DeadlineExceeded), "%v", err)
	assert.NotEmpty(t, hook.AllEntries(), "it was waited for, as long as there was time")
}

// forward passes connections on.
func forward(l net.Listener, to string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			s, err := net.Dial("tcp", to)
			if err != nil {
				return
			}
			defer s.Close()
			go func() { _, _ = io.Copy(s, c); s.Close() }()
			_, _ = io.Copy(c, s)
		}()
	}
}

// No password is told, however wrong its URL is.
func TestWithoutPassword(t *testing.T) {
	for urls, want := range map[string]string{
		"nats://a.example:4222":                     "nats://a.example:4222",
		"a.example":                                 "a.example",
		"nats://user:secret@a.example:4222":         "nats://…@a.example:4222",
		"user:secret@a.example":                     "nats://…@a.example",
		"tls://t:secret@a.example,tls://t:secret@b": "tls://…@a.example,tls://…@b",
		"nats://user:sec/ret@a.example:4222":        "nats://…",
		"nats://user:sec#ret@a.example":             "nats://…",
		"nats://user:sec?ret@a.example":             "nats://…",
		"nats://user:sec%zzret@a.example":           "nats://…",
		"nats://user:secret":                        "nats://…",
		"nats://user:a@b@a.example:4222":            "nats://…@a.example:4222",
	} {
		assert.Equal(t, want, withoutPassword(urls), urls)
	}
}

// The lanes are there before the first worker is, who is started by what waits in them.
func TestLanesWithoutWorkers(t *testing.T) {
	s := start(t, server.Options{Port: server.RANDOM_PORT})
	require.True(t, s.ReadyForConnections(20*time.Second))
	q, err := Open(t.Context(), Options{URL: s.ClientURL()})
	require.NoError(t, err)
	defer q.Close()
	for lane := range lanes {
		_, err := q.js.Consumer(t.Context(), streamName, consumerName(lane))
		assert.NoError(t, err)
	}
}
