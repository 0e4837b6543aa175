package release

import (
	"context"
	"crypto"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// The protocol of Gramine's servers for secrets, version 1 (Gramine, tools/sgx/ra-tls/secret_prov.h): over TLS with a
// certificate of RA-TLS, a request, and an answer of a size in four bytes and the one secret that the server has.
const (
	SecretProvRequest = "SECRET_PROVISION_RA_TLS_REQUEST_V1\x00"
	SecretProvAnswer  = "SECRET_PROVISION_RA_TLS_RESPONSE_V1:\x00"
)

// askSecretProv is Ask of a server of Gramine's, which has one secret for all.
func (s *Server) askSecretProv(
	ctx context.Context, key crypto.Signer, quote func([64]byte) ([]byte, error), slot Slot,
) (map[Slot]Secret, error) {
	certificate, err := certify(key, nil, quote)
	if err != nil {
		return nil, err
	}
	config := s.tls()
	config.MinVersion = tls.VersionTLS12 // as mbed TLS is often built
	config.Certificates = []tls.Certificate{certificate}
	if config.ServerName == "" {
		if config.ServerName, _, err = net.SplitHostPort(s.Address); err != nil {
			return nil, err
		}
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", s.Address)
	if err != nil {
		return nil, s.refusedOr(err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	// A server that does not accept the quote ends the handshake, which TLS 1.3 tells when something is read.
	if _, err := io.WriteString(conn, SecretProvRequest); err != nil {
		return nil, s.refusedOr(err)
	}
	head := make([]byte, len(SecretProvAnswer)+4)
	if _, err := io.ReadFull(conn, head); err != nil {
		return nil, s.refusedOr(err)
	}
	size := binary.BigEndian.Uint32(head[len(SecretProvAnswer):])
	if string(head[:len(SecretProvAnswer)]) != SecretProvAnswer || size == 0 || size > MaxAnswer {
		return nil, fmt.Errorf("%w: %s does not answer as Gramine's servers do", ErrProtocol, s.Address)
	}
	secret := Secret{Value: make([]byte, size)}
	if _, err := io.ReadFull(conn, secret.Value); err != nil {
		return nil, s.failed(err)
	}
	if problem := secret.Problem(slot); problem != "" {
		return nil, fmt.Errorf("%w: what it has for %s %s", ErrProtocol, slot, problem)
	}
	return map[Slot]Secret{slot: secret}, nil
}

// refusedOr is ErrRefused if the server has ended the connection by an alert, or without a word.
func (s *Server) refusedOr(err error) error {
	var op *net.OpError
	alert := errors.As(err, &op) && op.Op == "remote error" // as crypto/tls has alerts of the other side
	if alert || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return s.failed(err)
}
