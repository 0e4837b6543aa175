package batch_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/sbom"
)

// A copy of an image comes without its statements: it is no reason to leave them out.
func TestUnchangedWithoutStatements(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.push(1)
	b.worker.Own.Evidence = &convert.Evidence{Required: true}
	j := b.job(0)
	j.NoEvidence, j.NeedsEvidence = false, true
	out, err := b.worker.Convert(ctx, j)
	require.NoError(t, err)
	assert.Equal(t, queue.Converted, out.Status)
	out, err = b.worker.Convert(ctx, j)
	require.NoError(t, err)
	assert.Equal(t, queue.Unchanged, out.Status)

	from, err := name.ParseReference(out.Ref)
	require.NoError(t, err)
	img, err := remote.Image(from)
	require.NoError(t, err)
	j.Target = b.reg.Push(t, "elsewhere:1", img)
	statements := func() int {
		ref, err := image.ParseReference(j.Target, true)
		require.NoError(t, err)
		copied, err := store.Open(ctx, ref, registry.Options{})
		require.NoError(t, err)
		defer copied.Close()
		artifacts, err := registry.Referrers(ctx, copied, attest.InTotoMediaType)
		require.NoError(t, err)
		return len(artifacts)
	}
	require.Zero(t, statements())
	_, err = b.worker.Convert(ctx, j)
	require.NoError(t, err)
	assert.Equal(t, 4, statements())
}

// What was attached is attached still, to the byte: of an image that has lost one of its statements, or has others in
// their place, a batch says that it is unchanged no more, and attaches them again.
func TestUnchangedWithOtherStatements(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.push(1)
	b.worker.Own.Evidence = &convert.Evidence{Required: true}
	j := b.job(0)
	j.NoEvidence, j.NeedsEvidence = false, true
	made, err := b.worker.Convert(ctx, j)
	require.NoError(t, err)
	attached := func() (*image.Image, []image.Artifact) {
		t.Helper()
		ref, err := image.ParseReference(made.Ref, true)
		require.NoError(t, err)
		img, err := store.Open(ctx, ref, registry.Options{})
		require.NoError(t, err)
		t.Cleanup(func() { img.Close() })
		list, err := registry.Referrers(ctx, img, attest.Kinds...)
		require.NoError(t, err)
		return img, list
	}
	img, genuine := attached()
	require.Len(t, genuine, len(convertedKinds))
	for _, a := range genuine {
		for _, forged := range []bool{false, true} {
			at, err := name.NewDigest(img.Ref.Name.Context().Name()+"@"+a.Digest, name.Insecure)
			require.NoError(t, err)
			require.NoError(t, remote.Delete(at))
			if forged {
				lie := a
				lie.Blob = bytes.ReplaceAll(a.Blob, []byte("signatures"), []byte("Signatures"))
				require.NoError(t, registry.Attach(ctx, img, []image.Artifact{lie}, registry.Options{}))
			}
			assert.Equal(t, queue.Converted, b.worker.Foresee(ctx, []queue.Job{j}, 1)[0].Status, a.Annotations)
			_, err = b.worker.Convert(ctx, j)
			require.NoError(t, err)
			_, now := attached()
			assert.True(t, slices.ContainsFunc(now, func(x image.Artifact) bool { return x.Digest == a.Digest }),
				"%s is attached again", a.Annotations)
			out, err := b.worker.Convert(ctx, j)
			require.NoError(t, err)
			assert.Equal(t, queue.Unchanged, out.Status)
		}
	}
}

// convertedKinds are the types of statements that a simulated conversion attaches.
var convertedKinds = []string{attest.IdentityType, attest.ProvenanceType, sbom.SPDXType, sbom.CycloneDXType}

// What is remembered is remembered of a target: a copy elsewhere may lack what a strict job needs there.
func TestRememberedElsewhere(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.push(1)
	b.worker.Own.Evidence = &convert.Evidence{}
	j := b.job(0)
	j.NoEvidence, j.Gate = false, convert.Gate{Strict: true, Ignore: []string{finding.Simulated}}
	made, err := b.worker.Convert(ctx, j)
	require.NoError(t, err)
	from, err := name.ParseReference(made.Ref)
	require.NoError(t, err)
	img, err := remote.Image(from)
	require.NoError(t, err)
	j.Target = b.reg.Push(t, "elsewhere:1", img)
	assert.Equal(t, queue.Converted, b.worker.Foresee(ctx, []queue.Job{j}, 1)[0].Status)
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/elsewhere/manifests/sha256") {
			w.WriteHeader(http.StatusBadRequest)
			return true
		}
		return false
	})
	_, err = b.worker.Convert(ctx, j)
	require.ErrorContains(t, err, "attaching evidence")
}

// Statements that are asked for are attached, or the job fails: nothing is left out without a word.
func TestStatementsWithoutPlace(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.push(1)
	j := b.job(0)
	j.NoEvidence, j.NeedsEvidence = false, true
	_, err := b.worker.Convert(ctx, j)
	require.ErrorIs(t, err, queue.ErrNoEvidence, "the worker attaches none")
	b.worker.Own.Evidence = &convert.Evidence{}
	j.Target = "oci:" + b.worker.Files.Dirs[0] + "/x:1"
	_, err = b.worker.Convert(ctx, j)
	require.ErrorIs(t, err, convert.ErrNotInRegistry)
	require.ErrorIs(t, b.worker.Foresee(ctx, []queue.Job{j}, 1)[0].Err, convert.ErrNotInRegistry)
	j.NeedsEvidence = false
	_, err = b.worker.Convert(ctx, j)
	require.NoError(t, err)
}

// An image that is remembered without a key's statements is not what a run with that key wants.
func TestRememberedWithoutStatements(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.push(1)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	by, err := attest.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	require.NoError(t, err)
	j := b.job(0)
	j.NoEvidence = false
	for _, evidence := range []*convert.Evidence{{}, {Key: by, Required: true}} {
		b.worker.Own.Evidence = evidence
		out, err := b.worker.Convert(ctx, j)
		require.NoError(t, err)
		ref, err := image.ParseReference(out.Ref, true)
		require.NoError(t, err)
		img, err := store.Open(ctx, ref, registry.Options{})
		require.NoError(t, err)
		artifacts, err := registry.Referrers(ctx, img, attest.InTotoMediaType)
		require.NoError(t, err)
		require.NoError(t, img.Close())
		verified := 0
		for _, f := range attest.Read(ctx, artifacts, &by.PublicKey) {
			if f.Verified {
				verified++
			}
		}
		assert.Equal(t, evidence.Key != nil, verified > 0)
	}
}
