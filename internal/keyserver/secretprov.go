package keyserver

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/cconvert/cconvert/internal/bug"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/sgx/ratls"
)

// ServeSecretProv answers clients of Gramine's library secret_prov, version 1, on a listener, until the context ends.
// Whoever proves to be an enclave of a policy that grants SecretProv gets that secret. The protocol has no nonce of the
// server's: a quote is as old as the key of the connection, which is in no other enclave.
func (s *Server) ServeSecretProv(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{s.certificate},
		ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true,
	}
	from := &limited{Listener: l, connections: s.connections}
	var open sync.WaitGroup
	defer open.Wait()
	for {
		c, err := from.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // such as too many open files
			logrus.Errorf("accepting a connection: %v", err)
			time.Sleep(acceptPause)
			continue
		}
		open.Go(func() { s.secretProv(ctx, tls.Server(c, config)) })
	}
}

const acceptPause = 100 * time.Millisecond

// secretProv answers one client. One that is refused gets nothing, without a word.
func (s *Server) secretProv(ctx context.Context, c *tls.Conn) {
	defer c.Close()
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	d := Decision{Time: s.o.Now().UTC(), Address: host, Want: []string{SecretProv}}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	value, err := s.decideSecretProv(ctx, c, &d)
	defer clear(value)
	if err != nil {
		d.Reason = err.Error()
		s.refused(d)
		return
	}
	if !s.released(d) {
		return
	}
	answer := append([]byte(release.SecretProvAnswer), make([]byte, 4)...)
	binary.BigEndian.PutUint32(answer[len(answer)-4:], uint32(len(value)))
	if _, err = c.Write(answer); err == nil {
		_, _ = c.Write(value)
	}
}

// SecretProv is what policies and the log name what these clients get, which have no name for it.
const SecretProv = "secret-prov"

// decideSecretProv returns the secret that a client gets.
func (s *Server) decideSecretProv(ctx context.Context, c *tls.Conn, d *Decision) (value []byte, err error) {
	defer bug.Catch(&err) // what a stranger sends ends no other's connection
	if err := c.SetDeadline(time.Now().Add(headerTimeout)); err != nil {
		return nil, err
	}
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	request := make([]byte, len(release.SecretProvRequest))
	if _, err := io.ReadFull(c, request); err != nil {
		return nil, err
	}
	if string(request) != release.SecretProvRequest {
		return nil, errors.New("it does not ask as Gramine's clients do")
	}
	e, err := ratls.Parse(c.ConnectionState().PeerCertificates[0])
	if err != nil {
		return nil, err
	}
	err = s.inTurn(ctx, d, func() error {
		r, err := s.authentic(ctx, e, d)
		if err != nil {
			return err
		}
		p, err := s.choose(r, (*Policy).lacksSecretProv, d)
		if err == nil {
			value, err = s.o.Store.Get(ctx, p.secretProv)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return value, c.SetDeadline(time.Now().Add(headerTimeout))
}

func (p *Policy) lacksSecretProv() []string {
	if p.secretProv == "" {
		return []string{"a secret for " + SecretProv}
	}
	return nil
}
