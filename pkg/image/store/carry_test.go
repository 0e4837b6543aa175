package store_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	gcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// signedSource is an image of an index, with an SBOM that is signed itself and signatures of cosign, written by
// go-containerregistry.
type signedSource struct {
	reg        *fixture.Registry
	img        *image.Image
	index      string // its digest
	sbom       string
	signatures string // of the index
}

func artifactOf(t *testing.T, text string, subject *v1.Descriptor) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1),
		static.NewLayer([]byte(text), "application/spdx+json"))
	require.NoError(t, err)
	img = mutate.ConfigMediaType(img, "application/vnd.example.sbom")
	if subject != nil {
		img = mutate.Subject(img, *subject).(v1.Image)
	}
	return img
}

func newSignedSource(t *testing.T, o ...gcr.Option) signedSource {
	t.Helper()
	s := signedSource{reg: fixture.NewRegistry(t, o...)}
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: sample(t), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
	})
	tag, err := name.NewTag(s.reg.Host + "/src:1")
	require.NoError(t, err)
	require.NoError(t, remote.WriteIndex(tag, index))
	s.index = s.reg.Digest(t, "src:1")
	s.img, err = store.Open(context.Background(), parse(t, tag.String()), quick)
	require.NoError(t, err)

	push := func(at string, img v1.Image) *v1.Descriptor {
		ref, err := name.ParseReference(s.reg.Host + "/src" + at)
		require.NoError(t, err)
		require.NoError(t, remote.Write(ref, img))
		d, err := remote.Head(ref)
		require.NoError(t, err)
		return d
	}
	attach := func(text string, subject *v1.Descriptor) *v1.Descriptor {
		a := artifactOf(t, text, subject)
		d, err := a.Digest()
		require.NoError(t, err)
		return push("@"+d.String(), a)
	}
	platform, err := remote.Head(tag.Digest(s.img.Digest))
	require.NoError(t, err)
	platform.Platform = nil
	sbom := attach("what is in it", platform)
	attach("a signature of the SBOM", sbom)
	s.sbom = sbom.Digest.String()
	push(":"+strings.ReplaceAll(s.index, ":", "-")+".sig", artifactOf(t, "a signature", nil))
	s.signatures = s.reg.Digest(t, "src:"+strings.ReplaceAll(s.index, ":", "-")+".sig")
	return s
}

// What refers to a source, its index and what refers to them is the same to the byte in another repository, and refers
// to the same there.
func TestCopyReferrers(t *testing.T) {
	ctx := context.Background()
	for what, o := range map[string]gcr.Option{
		"referrers": gcr.WithReferrersSupport(true), "tags": gcr.WithReferrersSupport(false),
	} {
		t.Run(what, func(t *testing.T) {
			s := newSignedSource(t, o)
			other := fixture.NewRegistry(t, o)
			to, err := name.NewRepository(other.Host + "/dst")
			require.NoError(t, err)
			_, err = extend(ctx, t, s.img.Ref.String(), other.Host+"/dst:1", quick)
			require.NoError(t, err)
			before := other.Digest(t, "dst:1")
			for range 2 {
				done, err := registry.CopyReferrers(ctx, s.img, to, true, quick)
				require.NoError(t, err)
				require.Len(t, done, 3)
				assert.Equal(t, s.img.Digest, done[0].Of)
				assert.Equal(t, s.sbom, done[0].Digest)
				assert.Equal(t, "application/vnd.example.sbom", done[0].Kind)
				assert.Equal(t, registry.Carried{
					Of: s.index, Digest: s.signatures, Kind: "application/spdx+json",
					Tag: strings.ReplaceAll(s.index, ":", "-") + ".sig",
				}, done[1])
				assert.Equal(t, s.sbom, done[2].Of)
			}
			assert.Equal(t, before, other.Digest(t, "dst:1"))
			base, err := store.Open(ctx, parse(t, other.Host+"/dst@"+s.img.Digest), quick)
			require.NoError(t, err, "the source's manifest is there")
			referrers, err := remote.Referrers(to.Digest(base.Digest))
			require.NoError(t, err)
			m, err := referrers.IndexManifest()
			require.NoError(t, err)
			require.Len(t, m.Manifests, 1)
			assert.Equal(t, s.sbom, m.Manifests[0].Digest.String())
			copied, err := remote.Image(to.Tag(strings.ReplaceAll(s.index, ":", "-") + ".sig"))
			require.NoError(t, err)
			digest, err := copied.Digest()
			require.NoError(t, err)
			assert.Equal(t, s.signatures, digest.String())
			layers, err := copied.Layers()
			require.NoError(t, err)
			r, err := layers[0].Uncompressed()
			require.NoError(t, err)
			defer r.Close()
			text := make([]byte, 20)
			n, _ := r.Read(text)
			assert.Equal(t, "a signature", string(text[:n]))
		})
	}
}

// Signatures that others have put into the target are not replaced.
func TestCopyReferrersKeepsTags(t *testing.T) {
	ctx := context.Background()
	s := newSignedSource(t, gcr.WithReferrersSupport(true))
	to, err := name.NewRepository(s.reg.Host + "/dst")
	require.NoError(t, err)
	tag := to.Tag(strings.ReplaceAll(s.index, ":", "-") + ".sig")
	require.NoError(t, remote.Write(tag, artifactOf(t, "another signature", nil)))
	theirs := s.reg.Digest(t, "dst:"+tag.TagStr())
	done, err := registry.CopyReferrers(ctx, s.img, to, false, quick)
	require.NoError(t, err)
	require.Len(t, done, 3)
	assert.True(t, done[1].Kept)
	assert.Equal(t, theirs, s.reg.Digest(t, "dst:"+tag.TagStr()))
}

// Whoever can write the list of what refers to a source attaches nothing to other images of the target.
func TestCopyReferrersOfOthers(t *testing.T) {
	ctx := context.Background()
	s := newSignedSource(t, gcr.WithReferrersSupport(false))
	to, err := name.NewRepository(s.reg.Host + "/dst")
	require.NoError(t, err)
	victim := s.reg.Push(t, "dst:1", fixture.Image(t, v1.Config{}, fixture.Layer(t, fixture.File("victim", ""))))
	ref, err := name.ParseReference(victim)
	require.NoError(t, err)
	d, err := remote.Head(ref)
	require.NoError(t, err)
	d.Platform = nil
	foreign := artifactOf(t, "lies about the victim", d)
	digest, err := foreign.Digest()
	require.NoError(t, err)
	src, err := name.NewRepository(s.reg.Host + "/src")
	require.NoError(t, err)
	require.NoError(t, remote.Write(src.Digest(digest.String()), foreign))
	list := src.Tag(strings.ReplaceAll(s.img.Digest, ":", "-"))
	index, err := remote.Index(list)
	require.NoError(t, err)
	require.NoError(t, remote.WriteIndex(list, mutate.AppendManifests(index, mutate.IndexAddendum{Add: foreign})))

	done, err := registry.CopyReferrers(ctx, s.img, to, false, quick)
	require.NoError(t, err)
	assert.Len(t, done, 3)
	_, err = remote.Head(to.Digest(digest.String()))
	assert.Error(t, err)
}

// A source that refers to another image is not attached to that in the target.
func TestCopyReferrersOfReferring(t *testing.T) {
	ctx := context.Background()
	reg := fixture.NewRegistry(t, gcr.WithReferrersSupport(true))
	victim, err := name.NewTag(reg.Push(t, "dst:1", fixture.Image(t, v1.Config{}, fixture.Layer(t,
		fixture.File("victim", "")))))
	require.NoError(t, err)
	d, err := remote.Head(victim)
	require.NoError(t, err)
	d.Platform = nil
	source, err := name.NewTag(reg.Host + "/src:1")
	require.NoError(t, err)
	require.NoError(t, remote.Write(source, mutate.Subject(sample(t), *d).(v1.Image)))
	img, err := store.Open(ctx, parse(t, source.String()), quick)
	require.NoError(t, err)
	require.NoError(t, registry.Attach(ctx, img,
		[]image.Artifact{{Type: "application/sbom", MediaType: "text/plain", Blob: []byte("x")}}, quick))
	done, err := registry.CopyReferrers(ctx, img, victim.Context(), true, quick)
	require.NoError(t, err)
	assert.Len(t, done, 1)
	of, err := store.Open(ctx, parse(t, victim.String()), quick)
	require.NoError(t, err)
	list, err := registry.ListReferrers(ctx, victim.Context().Digest(of.Digest), quick, "application/sbom")
	require.NoError(t, err)
	assert.Zero(t, list.Len())
	_, err = remote.Head(victim.Context().Digest(img.Digest))
	assert.Error(t, err)
}

// A blob that is too large is not copied, and no list goes on for ever.
func TestCopyReferrersBounds(t *testing.T) {
	ctx := context.Background()
	s := newSignedSource(t, gcr.WithReferrersSupport(true))
	to, err := name.NewRepository(s.reg.Host + "/dst")
	require.NoError(t, err)
	large := mutate.Subject(artifactOf(t, "large", nil), v1.Descriptor{
		MediaType: s.img.MediaType, Digest: hashOf(t, s.img.Digest), Size: 1,
	}).(v1.Image)
	m, err := large.Manifest()
	require.NoError(t, err)
	raw, err := large.RawManifest()
	require.NoError(t, err)
	raw = []byte(strings.Replace(string(raw), `"size":5,`, `"size":300000000,`, 1))
	require.Len(t, m.Layers, 1)
	at := "/v2/src/manifests/" + image.DigestOf(raw)
	s.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v2/src/referrers/"):
			w.Header().Set("Content-Type", string(types.OCIImageIndex))
			_, _ = w.Write([]byte(`{"schemaVersion":2,"mediaType":"` + string(types.OCIImageIndex) + `","manifests":[` +
				`{"mediaType":"` + string(types.OCIManifestSchema1) + `","size":1,"digest":"` +
				image.DigestOf(raw) + `"}]}`))
		case r.URL.Path == at:
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			_, _ = w.Write(raw)
		default:
			return false
		}
		return true
	})
	_, err = registry.CopyReferrers(ctx, s.img, to, false, quick)
	assert.ErrorIs(t, err, image.ErrUnsupported)
	assert.ErrorContains(t, err, "300000000")
}

func hashOf(t *testing.T, digest string) v1.Hash {
	t.Helper()
	h, err := v1.NewHash(digest)
	require.NoError(t, err)
	return h
}
