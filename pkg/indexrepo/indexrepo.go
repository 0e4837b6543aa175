// Package indexrepo keeps what is known of layers in a registry, so that of many machines one reads each
// layer. Whoever writes there decides what others take for the content of layers, so entries are signed.
package indexrepo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
)

const (
	artifactType = "application/vnd.cconvert.index.v1"
	mediaType    = "application/vnd.cconvert.index.v1+zstd"
	payloadType  = "application/vnd.cconvert.index.v1+json"
	annotation   = "dev.cconvert.index.signature" // holds the envelope

	maxBlob  = 512 << 20
	maxIndex = 2 << 30 // bytes of one that was unpacked
)

var (
	// ErrNone says that there is no entry.
	ErrNone = errors.New("no entry")
	// ErrUntrusted says that there is an entry that must not be used.
	ErrUntrusted = errors.New("the entry cannot be trusted")
)

// Repo is a repository of indexes.
type Repo struct {
	Artifacts *image.Artifacts
	// Verify is the key by which entries must be signed. Without it none is used, unless Insecure is set.
	Verify   *attest.PublicKey
	Insecure bool
	// Sign signs what is written. Without it nothing is written, unless Insecure is set.
	Sign *attest.PrivateKey
}

// Reads says whether entries can be used.
func (r *Repo) Reads() bool { return r.Verify != nil || r.Insecure }

// Writes says whether entries are written.
func (r *Repo) Writes() bool { return r.Sign != nil || r.Insecure }

// Trust names in whom somebody trusts who uses an entry: not all do in everybody.
func (r *Repo) Trust() string {
	if r.Insecure {
		return "insecure"
	}
	id, _ := r.Verify.KeyID() // of a parsed key there is one
	return id
}

// statement is what is signed: the key says of which layer the entry speaks, and how it was read.
type statement struct {
	Key    string `json:"key"`
	SHA256 string `json:"sha256"` // of the blob
}

func tagOf(key string) string { return strings.ReplaceAll(key, "/", "-") }

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Get gives the entry of a key. The error is ErrNone where there is none, ErrUntrusted for one that is not
// signed by the right key or not about this key, and everything that can go wrong with a registry.
func (r *Repo) Get(ctx context.Context, key string) ([]byte, error) {
	a, err := r.Artifacts.Pull(ctx, tagOf(key), artifactType, maxBlob)
	if errors.Is(err, image.ErrNotFound) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	if !r.Insecure {
		payload, err := r.Verify.Open(ctx, payloadType, []byte(a.Annotations[annotation]))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
		}
		var s statement
		if err := json.Unmarshal(payload, &s); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
		}
		if s.Key != key || s.SHA256 != hexSum(a.Blob) {
			return nil, fmt.Errorf("%w: the signature is about another one", ErrUntrusted)
		}
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxIndex), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	b, err := z.DecodeAll(a.Blob, nil)
	if err != nil {
		return nil, fmt.Errorf("unpacking the entry: %w", err)
	}
	return b, nil
}

// Has says whether there is an entry of a key, whoever signed it. An error is a no: writing shows what is wrong.
func (r *Repo) Has(ctx context.Context, key string) bool { return r.Artifacts.Has(ctx, tagOf(key)) }

// Put writes an entry.
func (r *Repo) Put(ctx context.Context, key string, index []byte) error {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	a := image.Artifact{Type: artifactType, MediaType: mediaType, Blob: z.EncodeAll(index, nil)}
	if r.Sign != nil {
		payload, err := json.Marshal(statement{key, hexSum(a.Blob)})
		if err != nil {
			return err
		}
		envelope, err := r.Sign.Envelope(ctx, payloadType, payload)
		if err != nil {
			return err
		}
		a.Annotations = map[string]string{annotation: string(envelope)}
	}
	return r.Artifacts.Push(ctx, tagOf(key), a)
}
