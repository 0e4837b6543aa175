package keyserver

import (
	"net"
	"net/netip"
	"sync"
)

// connections counts those that are open, of all listeners of a server.
type connections struct {
	mu   sync.Mutex
	open map[string]int // by address
	all  int
}

// limited is a listener with a limit of connections, in all and of one address. More are closed.
type limited struct {
	net.Listener
	*connections
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host := networkOf(c.RemoteAddr())
		l.mu.Lock()
		ok := l.all < maxConnections && l.open[host] < maxPerAddress
		if ok {
			l.all++
			l.open[host]++
		}
		l.mu.Unlock()
		if ok {
			return &counted{Conn: c, from: l.connections, host: host}, nil
		}
		c.Close()
	}
}

// networkOf is an address, or the network of 64 bits of one of IPv6, all of which one machine can have.
func networkOf(a net.Addr) string {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return ""
	}
	ip := at.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	network, err := ip.Prefix(64)
	if err != nil {
		return ip.String()
	}
	return network.String()
}

// counted is a connection of a limited listener.
type counted struct {
	net.Conn
	from *connections
	host string
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() {
		c.from.mu.Lock()
		defer c.from.mu.Unlock()
		c.from.all--
		if c.from.open[c.host]--; c.from.open[c.host] == 0 {
			delete(c.from.open, c.host)
		}
	})
	return c.Conn.Close()
}
