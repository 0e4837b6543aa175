package signer

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/shlex"

	"github.com/cconvert/cconvert/internal/secret"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// ProtocolVersion is that of what plug-ins read and write.
const ProtocolVersion = 1

// DefaultTimeout is how long a plug-in may take: somebody may have to touch a token.
const DefaultTimeout = 2 * time.Minute

// Request is what a plug-in gets on standard input, as one line of JSON.
type Request struct {
	Version int `json:"version"`
	// Operation is sign or public-key.
	Operation string `json:"operation"`
	// ToBeSigned are the bytes to sign: RSA PKCS#1 v1.5 with SHA-256.
	ToBeSigned []byte `json:"to_be_signed,omitempty"`
	// SHA256 is their digest, in hexadecimal.
	SHA256 string `json:"sha256,omitempty"`
	// Enclave says what the bytes mean.
	Enclave *Enclave `json:"enclave,omitempty"`
}

// Enclave is what is signed, in the names of sgx.Description.
type Enclave struct {
	MREnclave    sgx.Measurement `json:"mr_enclave"`
	ISVProdID    uint16          `json:"isv_prod_id"`
	ISVSVN       uint16          `json:"isv_svn"`
	DebugEnclave bool            `json:"debug_enclave"`
	Date         string          `json:"date"`
	Flags        string          `json:"attribute_flags"`
	FlagsMask    string          `json:"attribute_flags_mask"`
	XFRM         string          `json:"attribute_xfrms"`
	XFRMMask     string          `json:"attribute_xfrm_mask"`
	MiscSelect   string          `json:"misc_select"`
	MiscMask     string          `json:"misc_select_mask"`
}

// Answer is what a plug-in writes to standard output.
type Answer struct {
	Version int `json:"version"`
	// Signature is big endian, as RSA implementations give it; only for the operation sign.
	Signature []byte `json:"signature,omitempty"`
	// PublicKey is PEM: PKIX or PKCS#1.
	PublicKey string `json:"public_key"`
}

// Errors of plug-ins.
var (
	ErrPlugin  = errors.New("signing plug-in")
	ErrTimeout = secret.ErrTimeout
)

// plugin signs by a program of the user's.
type plugin struct {
	command []string
	timeout time.Duration
	key     *rsa.PublicKey // as it told with the last answer
}

func newPlugin(command string, o Options) (*plugin, error) {
	words, err := shlex.Split(command)
	if err != nil || len(words) == 0 {
		return nil, fmt.Errorf("exec:%s: %w: it has no command", command, ErrName)
	}
	return &plugin{command: words, timeout: cmp.Or(o.Timeout, DefaultTimeout)}, nil
}

func (p *plugin) Close() error { return nil }

// Public returns the key of the last signature or, where there was none, asks for it.
func (p *plugin) Public(ctx context.Context) (*rsa.PublicKey, error) {
	if p.key == nil {
		if _, err := p.ask(ctx, Request{Operation: "public-key"}); err != nil {
			return nil, err
		}
	}
	return p.key, nil
}

func (p *plugin) Sign(ctx context.Context, message []byte) ([]byte, error) {
	s, err := sgx.ParseToBeSigned(message)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(message)
	signature, err := p.ask(ctx, Request{
		Operation: "sign", ToBeSigned: message, SHA256: hex.EncodeToString(digest[:]),
		Enclave: describe(s),
	})
	if err != nil {
		return nil, err
	}
	if n := p.key.Size(); len(signature) != n {
		return nil, p.failed("its signature has %d bytes, one by this key has %d", len(signature), n)
	}
	if rsa.VerifyPKCS1v15(p.key, crypto.SHA256, digest[:], signature) != nil {
		return nil,
			p.failed("its signature is not one of these bytes by the key that it names: it must be RSA PKCS#1 " +
				"v1.5 over the SHA-256 of to_be_signed, by the private key that belongs to public_key")
	}
	return signature, nil
}

func describe(s *sgx.SigStruct) *Enclave {
	d := s.Describe()
	return &Enclave{
		MREnclave: d.MREnclave, ISVProdID: d.ISVProdID, ISVSVN: d.ISVSVN, DebugEnclave: d.DebugEnclave, Date: d.Date,
		Flags: d.Flags, FlagsMask: d.FlagsMask, XFRM: d.XFRM, XFRMMask: d.XFRMMask,
		MiscSelect: d.MiscSelect, MiscMask: d.MiscSelectMask,
	}
}

// ask runs the plug-in once, and notes the key that it names.
func (p *plugin) ask(ctx context.Context, r Request) ([]byte, error) {
	r.Version = ProtocolVersion
	question, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	out, err := p.run(ctx, append(question, '\n'))
	defer clear(out)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(out, []byte("PRIVATE KEY")) {
		return nil, p.failed("it wrote a private key to standard output. What it wrote was thrown away; mend the " +
			"plug-in, and see to it that nothing else has kept its output")
	}
	var a Answer
	if err := json.Unmarshal(out, &a); err != nil { // the cause quotes what was written
		return nil,
			p.failed("it wrote %d bytes that are not one JSON object of version, signature and public_key", len(out))
	}
	if a.Version != ProtocolVersion {
		return nil,
			p.failed("it answers with version %d of the protocol, this program knows %d", a.Version, ProtocolVersion)
	}
	if strings.Contains(a.PublicKey, "PRIVATE KEY") {
		return nil, p.failed("its public_key is a private key. What it wrote was thrown away; mend the plug-in, and " +
			"see to it that nothing else has kept its output")
	}
	if p.key, err = sgx.ParsePublicKey([]byte(a.PublicKey)); err != nil {
		return nil, p.failed("its public_key is not usable: %w", err)
	}
	return a.Signature, nil
}

// run returns what the plug-in wrote to standard output.
func (p *plugin) run(ctx context.Context, in []byte) ([]byte, error) {
	out, err := secret.Run(ctx, p.command, in, p.timeout)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, ErrTimeout):
		return nil, p.failed("%w: it was stopped after %s; --key-timeout gives it longer", ErrTimeout, p.timeout)
	case err != nil:
		return nil, p.failed("%w", err)
	}
	return out, nil
}

func (p *plugin) failed(format string, args ...any) error {
	return fmt.Errorf("%w %s: %w", ErrPlugin, p.command[0], fmt.Errorf(format, args...))
}
