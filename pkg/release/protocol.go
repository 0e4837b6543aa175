package release

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cconvert/cconvert/internal/strictjson"
)

// Version of the protocol.
const Version = 1

// Paths on the server.
const (
	PathChallenge = "/v1/challenge" // GET
	PathRelease   = "/v1/release"   // POST, with a client certificate of RA-TLS whose claims have the challenge's nonce
)

// Bounds in bytes.
const (
	MaxRequest = 64 << 10
	MaxAnswer  = 4 << 20 // of all secrets together, encoded
	NonceSize  = 32
)

// Challenge is the answer to a GET of PathChallenge. A nonce is good for one request, for a minute.
type Challenge struct {
	Nonce []byte `json:"nonce"`
}

// Request is what an enclave sends to PathRelease.
type Request struct {
	Version int    `json:"version"`
	Want    []Slot `json:"want"`
}

// Secret is what is put into a slot.
type Secret struct {
	// Value is of env, file and key; a key has 16 bytes.
	Value []byte `json:"value,omitempty"`
	// Certificate is of tls: the certificate of the key by which the request was made, and those above it, in PEM.
	Certificate string `json:"certificate,omitempty"`
}

// Answer is what is released: each slot that was wanted, and no other.
type Answer struct {
	Version int               `json:"version"`
	Secrets map[string]Secret `json:"secrets"`
}

// Refusal is the answer to everybody who gets nothing, whatever the reason.
const Refusal = "refused"

// ErrProtocol says that a message is not one of the protocol.
var ErrProtocol = errors.New("not a message of the protocol cconvert/1")

// ParseRequest reads a request.
func ParseRequest(b []byte) (*Request, error) {
	var r Request
	if err := parse(b, &r, MaxRequest); err != nil {
		return nil, err
	}
	if r.Version != Version || len(r.Want) == 0 {
		return nil, fmt.Errorf("%w: it is of the version %d, and wants %d secrets", ErrProtocol, r.Version, len(r.Want))
	}
	if err := CheckSlots(r.Want); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return &r, nil
}

// ParseAnswer reads an answer to a request: what was not wanted is an error, as is what is missing.
func ParseAnswer(b []byte, want []Slot) (map[Slot]Secret, error) {
	var a Answer
	if err := parse(b, &a, MaxAnswer); err != nil {
		return nil, err
	}
	if a.Version != Version || len(a.Secrets) != len(want) {
		return nil, fmt.Errorf("%w: it is of the version %d, with %d secrets for %d", ErrProtocol, a.Version,
			len(a.Secrets), len(want))
	}
	out := map[Slot]Secret{}
	for _, s := range want {
		secret, ok := a.Secrets[s.String()]
		if !ok {
			return nil, fmt.Errorf("%w: it has nothing for %s", ErrProtocol, s)
		}
		if problem := secret.Problem(s); problem != "" {
			return nil, fmt.Errorf("%w: what it has for %s %s", ErrProtocol, s, problem)
		}
		out[s] = secret
	}
	return out, nil
}

const keySize = 16 // of Gramine's encrypted files

// Problem says why a secret cannot be put into a slot; empty: it can.
func (s Secret) Problem(to Slot) string {
	switch {
	case (to.Kind == KindTLS) != (s.Certificate != "") || to.Kind == KindTLS && len(s.Value) > 0:
		return "is of another kind"
	case to.Kind != KindTLS && len(s.Value) == 0:
		return "is empty"
	case to.Kind == KindKey && len(s.Value) != keySize:
		return fmt.Sprintf("is not a key of %d bytes", keySize)
	case to.Kind != KindEnv:
		return ""
	}
	for _, c := range s.Value {
		if c == 0 {
			return "has a zero byte, which no variable can have"
		}
	}
	return ""
}

func parse(b []byte, to any, limit int) error {
	if len(b) > limit {
		return fmt.Errorf("%w: it has more than %d bytes", ErrProtocol, limit)
	}
	if err := strictjson.Check(b, strictjson.Rules{MaxList: MaxSlots, Named: []string{"secrets"}}); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}
