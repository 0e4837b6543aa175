// Package indexrepo keeps what is known of layers in a registry, so that of many machines one reads each
// layer. Whoever writes there decides what others take for the content of layers, so entries are signed.
package indexrepo

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
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
	Artifacts *registry.Artifacts
	// Verify is the key by which entries must be signed. Without it none is used, unless Insecure is set.
	Verify   *attest.PublicKey
	Insecure bool
	// Sign signs what is written. Without it nothing is written, unless Insecure is set.
	Sign *attest.PrivateKey
	// Patience is how long a request may take, all in all; 0: DefaultPatience. Reading a layer is always another way.
	Patience time.Duration

	mu     sync.Mutex
	failed error // of a registry that did not answer
	until  time.Time
}

// DefaultPatience is enough for the entry of a large layer, of some megabytes.
const DefaultPatience = time.Minute

// leftAlone is how long a registry is not asked that did not answer: there are layers in great number.
const leftAlone = 5 * time.Minute

// within does something that takes no longer than the repository's patience. Once the registry did not answer, the
// error is the same for a while, without asking.
func (r *Repo) within(ctx context.Context, do func(context.Context) error) error {
	r.mu.Lock()
	failed := r.failed
	if failed != nil && time.Now().After(r.until) {
		failed = nil
	}
	r.mu.Unlock()
	if failed != nil {
		return failed
	}
	patience := cmp.Or(r.Patience, DefaultPatience)
	limited, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("it did not answer in %s", patience))
	defer cancel()
	err := do(limited)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if limited.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(limited), err)
	} else if !image.Transient(err) {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed, r.until = err, time.Now().Add(leftAlone)
	return err
}

// Reads reports whether entries can be used.
func (r *Repo) Reads() bool { return r.Verify != nil || r.Insecure }

// Writes reports whether entries are written.
func (r *Repo) Writes() bool { return r.Sign != nil || r.Insecure }

// Trust names in whom somebody trusts who uses an entry: the key that signs them or, if none is asked for, the
// repository. Not all do in everybody.
func (r *Repo) Trust() string {
	if r.Insecure {
		sum := sha256.Sum256([]byte(r.Artifacts.String()))
		return "insecure-" + hex.EncodeToString(sum[:])
	}
	id, _ := r.Verify.KeyID() // of a parsed key there is one
	return id
}

// statement is what is signed: the key says of which layer the entry speaks, and how it was read.
type statement struct {
	Key    string `json:"key"`
	SHA256 string `json:"sha256"` // of the blob
}

// check reports by ErrUntrusted that an entry, of which the blob was not read yet, is not signed for a key.
func (r *Repo) check(ctx context.Context, key string, a *image.Artifact) error {
	if r.Insecure {
		return nil
	}
	payload, err := r.Verify.Open(ctx, payloadType, []byte(a.Annotations[annotation]))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	var s statement
	if err := json.Unmarshal(payload, &s); err != nil {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if s.Key != key || "sha256:"+s.SHA256 != a.BlobDigest {
		return fmt.Errorf("%w: the signature is about another one", ErrUntrusted)
	}
	return nil
}

func tagOf(key string) string { return strings.ReplaceAll(key, "/", "-") }

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Get returns the entry of a key. The error is ErrNone if no entry exists, ErrUntrusted for one that is not signed by
// the right key or not about this key, and everything that can go wrong with a registry. Nothing but its manifest is
// read of an entry that is not trusted.
func (r *Repo) Get(ctx context.Context, key string) ([]byte, error) {
	accept := func(a *image.Artifact) error { return r.check(ctx, key, a) }
	var a *image.Artifact
	err := r.within(ctx, func(ctx context.Context) (err error) {
		a, err = r.Artifacts.Pull(ctx, tagOf(key), artifactType, maxBlob, accept)
		return err
	})
	if errors.Is(err, image.ErrNotFound) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
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

// Has reports whether there is an entry of a key, whoever signed it. An error is a no: writing shows what is wrong.
func (r *Repo) Has(ctx context.Context, key string) (has bool) {
	_ = r.within(ctx, func(ctx context.Context) error {
		has = r.Artifacts.Has(ctx, tagOf(key))
		return ctx.Err()
	})
	return has
}

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
	return r.within(ctx, func(ctx context.Context) error { return r.Artifacts.Push(ctx, tagOf(key), a) })
}
