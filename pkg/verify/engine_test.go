package verify_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/verify"
)

// A volume at or over the enclave's directory would keep the old enclave after an upgrade.
func TestVolumesOverTheEnclave(t *testing.T) {
	for volume, refused := range map[string]bool{
		"/cconvert": true, "/cconvert/gramine": true, "/cconvert/app": true, "/x/../cconvert/app": true,
		"cconvert": true,
		"/":        true, "/.": true, "/data": false, "/cconverted": false, "/data/cconvert": false,
	} {
		a := newVictim(t, nil)
		config := v1.Config{Entrypoint: []string{"/usr/bin/app"}, Volumes: map[string]struct{}{volume: {}}}
		app := fixture.Layer(t, fixture.Program("usr/bin/app", fixture.ELF("")))
		a.from = a.reg.Push(t, "src:v", fixture.Image(t, config, app))
		p, err := convert.Prepare(context.Background(), enclaved(t, a.from))
		if err == nil {
			p.Close()
		}
		assert.Equal(t, refused, err != nil, "%s: %v", volume, err)
	}

	// Who writes to the registry puts one into the configuration of what was converted.
	a := newVictim(t, nil)
	ref := a.reg.Host + "/dst:volume"
	tag, err := name.NewTag(ref)
	require.NoError(t, err)
	original, x := a.image()
	x.config.Config.Volumes = map[string]struct{}{"/cconvert/app": {}}
	changed, err := mutate.ConfigFile(original, x.config)
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, changed))
	r, err := verify.Verify(context.Background(), open(t, ref), nil, a.expect, nil, inspect.Options{})
	require.NoError(t, err)
	assert.False(t, r.Consistent)
}

// By some annotations of a layer engines take its files from elsewhere than its archive, where nobody has looked: a
// conversion leaves them out, and its result verifies.
func TestLazyAnnotations(t *testing.T) {
	for annotation, lazy := range map[string]bool{
		"containerd.io/snapshot/nydus-blob": true, "containerd.io/snapshot/stargz/toc.digest": true,
		"containerd.io/snapshot/overlaybd/blob-digest": true, "io.containers.zstd-chunked.manifest-checksum": true,
		"io.github.containers.zstd-chunked.manifest-position": true, "org.example.of-a-layer": false,
	} {
		a := newVictim(t, nil)
		tag, err := name.NewTag(a.from)
		require.NoError(t, err)
		original, err := remote.Image(tag)
		require.NoError(t, err)
		m, err := original.Manifest()
		require.NoError(t, err)
		m = m.DeepCopy()
		m.Layers[0].Annotations = map[string]string{annotation: "sha256:" + strings.Repeat("0", 64), "kept": "yes"}
		body, err := json.Marshal(m)
		require.NoError(t, err)
		require.NoError(t, remote.Put(tag, rawManifest{body, m.MediaType}))
		r := run(t, enclaved(t, a.from), signer(t), a.reg.Host+"/dst:1")
		assert.Equal(t, lazy, slices.ContainsFunc(r.Findings, func(f finding.Finding) bool {
			return f.Code == finding.Annotation && strings.Contains(f.Message, annotation)
		}), annotation)
		img, _ := a.image()
		m, err = img.Manifest()
		require.NoError(t, err)
		_, there := m.Layers[0].Annotations[annotation]
		assert.Equal(t, lazy, !there, annotation)
		assert.Equal(t, "yes", m.Layers[0].Annotations["kept"])
		result := open(t, a.reg.Host+"/dst:1")
		v, err := verify.Verify(context.Background(), result, open(t, a.from), a.expect, nil, inspect.Options{})
		require.NoError(t, err)
		assert.True(t, v.Consistent, "%s: %v", annotation, v.FailedChecks())
	}
}

// By some annotations of the manifest engines run an image otherwise: a conversion leaves them out, and nobody adds
// them.
func TestSteeringAnnotations(t *testing.T) {
	annotated := func(a *victim, from, to string, annotations map[string]string) string {
		tag, err := name.NewTag(from)
		require.NoError(t, err)
		original, err := remote.Image(tag)
		require.NoError(t, err)
		m, err := original.Manifest()
		require.NoError(t, err)
		m = m.DeepCopy()
		m.Annotations = annotations
		body, err := json.Marshal(m)
		require.NoError(t, err)
		ref, err := name.NewTag(a.reg.Host + "/" + to)
		require.NoError(t, err)
		if from != ref.String() {
			require.NoError(t, remote.Write(ref, original))
		}
		require.NoError(t, remote.Put(ref, rawManifest{body, m.MediaType}))
		return ref.String()
	}
	for annotation, refused := range map[string]bool{
		"run.oci.handler": true, "run.oci.seccomp_bpf_data": true, "io.podman.annotations.seccomp": true,
		"io.kubernetes.cri-o.Devices": true, "org.systemd.property.CPUQuota": true,
		"org.opencontainers.image.title":      false,
		"seccomp-profile.kubernetes.cri-o.io": true, "dev.gvisor.spec.mount": true,
		"com.amazon.soci.index-digest": true, "mine": true,
	} {
		a := newVictim(t, nil)
		ref := annotated(a, a.reg.Host+"/dst:1", "dst:annotated",
			map[string]string{annotation: "x", "org.opencontainers.image.vendor": "y"})
		assert.Equal(t, refused, len(a.failed(ref, true)) > 0, annotation)
		rebuilt, err := verify.Rebuild(context.Background(), open(t, ref),
			verify.RebuildOptions{Source: parse(t, a.from), Convert: convert.Options{}})
		require.NoError(t, err)
		assert.Equal(t, refused, !rebuilt.Same, annotation)

		a.from = annotated(a, a.from, "src:annotated",
			map[string]string{annotation: "x", "org.opencontainers.image.vendor": "y"})
		r := run(t, enclaved(t, a.from), signer(t), a.reg.Host+"/dst:1")
		kept := map[string]string{"org.opencontainers.image.vendor": "y", annotation: "x"}
		found := false
		for _, f := range r.Findings {
			found = found || f.Code == finding.Annotation && f.Path == annotation
		}
		assert.Equal(t, refused, found, annotation)
		if refused {
			delete(kept, annotation)
		}
		img, _ := a.image()
		m, err := img.Manifest()
		require.NoError(t, err)
		assert.Equal(t, kept, m.Annotations)
		result := open(t, a.reg.Host+"/dst:1")
		again, err := verify.Verify(context.Background(), result, open(t, a.from), a.expect, nil, inspect.Options{})
		require.NoError(t, err)
		assert.True(t, again.Consistent, annotation)
	}
}

// rawManifest is a manifest that is stored as it is.
type rawManifest struct {
	body []byte
	kind types.MediaType
}

func (m rawManifest) RawManifest() ([]byte, error)        { return m.body, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return m.kind, nil }
