package batch_test

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

type cutNet struct {
	addr  string
	mu    sync.Mutex
	conns []net.Conn
	is    atomic.Bool
}

func newCut(t *testing.T, to string) *cutNet {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	n := &cutNet{addr: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if n.is.Load() {
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
			go io.Copy(c, d) //nolint
			go io.Copy(d, c) //nolint
		}
	}()
	return n
}
func (n *cutNet) cut() {
	n.is.Store(true)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.Close()
	}
}
func (n *cutNet) heal() { n.is.Store(false) }
