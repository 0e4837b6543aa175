package verify_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/verify"
)

type esgz struct {
	v1.Layer
	diffID v1.Hash
}

func (l esgz) DiffID() (v1.Hash, error) { return l.diffID, nil }

// A hard link to a name that the same archive replaces: tar readers link to the first entry of the name, stargz to the
// last.
func TestHardlinkInEStargz(t *testing.T) {
	enclave, err := os.ReadFile("../../testdata/vectors/sgx-sdk/default.signed.so")
	require.NoError(t, err)
	archive := fixture.Tar(t, fixture.Dir("opt/"), fixture.Program("opt/x", string(enclave)),
		fixture.Hardlink("opt/e.so", "opt/x"), fixture.Program("opt/evil", "evil"), fixture.Symlink("opt/x", "evil"))
	var blob bytes.Buffer
	w := estargz.NewWriter(&blob)
	require.NoError(t, w.AppendTar(bytes.NewReader(archive)))
	toc, err := w.Close()
	require.NoError(t, err)
	diffID, err := v1.NewHash(w.DiffID())
	require.NoError(t, err)
	img, err := mutate.Append(fixture.Image(t, v1.Config{Entrypoint: []string{"/opt/app"}}), mutate.Addendum{
		Layer: esgz{static.NewLayer(blob.Bytes(), types.DockerLayer), diffID}, MediaType: types.DockerLayer,
		Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: toc.String()},
	})
	require.NoError(t, err)
	reg := fixture.NewRegistry(t)
	tag, err := name.NewTag(reg.Host + "/sdk:esgz")
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, img))

	r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(blob.Bytes()), 0, int64(blob.Len())))
	require.NoError(t, err)
	e, ok := r.Lookup("opt/e.so")
	require.True(t, ok)
	require.Equal(t, "symlink", e.Type, "so it is to engines that load lazily")

	x := verify.Expectations{Layout: inspect.LayoutSDK, AllowDebug: true, AnySigner: true}
	report, err := verify.OwnEnclaves(context.Background(), open(t, tag.String()), nil, x, inspect.Options{})
	require.NoError(t, err)
	assert.False(t, report.Trusted)
}
