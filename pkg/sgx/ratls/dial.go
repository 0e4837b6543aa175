package ratls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"
)

// DialOptions say how a server is asked for its certificate.
type DialOptions struct {
	// ServerName is what is asked for by SNI; empty: the host.
	ServerName string
	// Timeout is how long it may take in all; 0: DefaultTimeout.
	Timeout time.Duration
}

// DefaultTimeout is how long a server may take to show its certificate.
const DefaultTimeout = 10 * time.Second

// ErrEndpoint says that a server did not show a certificate.
var ErrEndpoint = errors.New("the server showed no certificate")

// Dial asks a server at HOST:PORT for its certificate, and has it prove that it has the key. By whom the certificate is
// signed does not matter: what the key is worth, the quote says.
func Dial(ctx context.Context, address string, o DialOptions) (*x509.Certificate, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEndpoint, err)
	}
	if o.ServerName == "" {
		o.ServerName = host
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: o.ServerName,
		InsecureSkipVerify: true, // the handshake still proves that the server has the key
	}}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrEndpoint, address, err)
	}
	defer c.Close()
	conn, ok := c.(*tls.Conn)
	if !ok || len(conn.ConnectionState().PeerCertificates) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrEndpoint, address)
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}
