package verify_test

import (
	"context"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/verify"
)

// A volume that leads to the enclave's directory through the kernel's own links: /proc/self/root is "/". Docker fills
// the volume from the image's own directory of that name, and runc mounts it over /cconvert.
func TestVolumeThroughProc(t *testing.T) {
	for _, volume := range []string{"/proc/self/root/cconvert", "/proc/1/root/cconvert/gramine", "/opt/way/cconvert"} {
		a := newVictim(t, nil)
		assert.NotEmpty(t, a.attack(false, func(x *tampered) {
			x.below(fixture.Symlink("opt/way", "/proc/self/root"),
				fixture.Program("proc/self/root/cconvert/sim/loader", "evil"))
			x.config.Config.Volumes = map[string]struct{}{"/data": {}, volume: {}}
		}), volume)
	}
}

// The same of an enclave, under an expected signer and an expected runtime: the loader that was vouched for is not the
// one that Docker starts.
func TestLoaderUnderAVolume(t *testing.T) {
	a := newVictim(t, func(o *convert.Options) { *o = enclaved(t, o.Source.String()) })
	a.expect.AllowDebug = true
	r := check(t, a.reg.Host+"/dst:1", a.expect, nil)
	a.expect.RuntimeDigest = []string{r.Recipe.Runtime.Digest}
	a.attack(false, func(x *tampered) {
		x.below(fixture.Program("proc/self/root/cconvert/gramine/loader", "evil"))
		x.config.Config.Volumes = map[string]struct{}{"/data": {}, "/proc/self/root/cconvert/gramine": {}}
	})
	r = check(t, a.reg.Host+"/attack:1", a.expect, nil)
	assert.False(t, r.Trusted)
}

// A source that has such a volume is not converted.
func TestVolumesOfASource(t *testing.T) {
	for _, volume := range []string{
		"/proc/self/root/cconvert", "/opt/way/cconvert",
		// Docker and podman clean the path first, and follow links then
		"/opt/up/../l/cconvert",
	} {
		reg := fixture.NewRegistry(t)
		config := v1.Config{Entrypoint: []string{"/usr/bin/app"}, Volumes: map[string]struct{}{volume: {}}}
		from := reg.Push(t, "src:v", fixture.Image(t, config, fixture.Layer(t,
			fixture.Program("usr/bin/app", fixture.ELF("")), fixture.Symlink("opt/way", "/proc/self/root"),
			fixture.Symlink("opt/up", "/srv"), fixture.Symlink("opt/l", "/"), fixture.File("srv/a", "a"))))
		p, err := convert.Prepare(context.Background(), enclaved(t, from))
		if err == nil {
			p.Close()
		}
		assert.Error(t, err, volume)
	}
}

// A recipe chooses product and security version. Whoever signs says that they are his.
func TestProductBeforeSigning(t *testing.T) {
	a := newVictim(t, func(o *convert.Options) { o.Enclave.ISVSVN, o.Enclave.ISVProdID = 65535, 4711 })
	img, source := open(t, a.reg.Host+"/dst:1"), open(t, a.from)
	r, e, err := verify.BeforeSigning(context.Background(), img, source,
		verify.Expectations{AnyRuntime: true, AllowSimulated: true}, inspect.Options{})
	require.NoError(t, err)
	assert.False(t, r.Trusted, "unmet: %v", r.Unmet())
	assert.True(t, e == nil)
}

// The name of the source leads engines to another image than the one that was converted.
func TestRivalsOfTheSource(t *testing.T) {
	a := newVictim(t, nil)
	tag, err := name.NewTag(a.from)
	require.NoError(t, err)
	converted, err := remote.Image(tag)
	require.NoError(t, err)
	layer := fixture.Layer(t, fixture.Program("other", "x"))
	other := fixture.Image(t, v1.Config{Entrypoint: []string{"/other"}}, layer)
	platform := v1.Platform{OS: "linux", Architecture: "amd64"}
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: converted, Descriptor: v1.Descriptor{Platform: &platform}},
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &platform}})
	both, err := name.NewTag(a.reg.Host + "/src:both")
	require.NoError(t, err)
	require.NoError(t, remote.WriteIndex(both, index))
	source := open(t, both.String())
	require.NotEmpty(t, source.Rivals)
	ctx, img := context.Background(), open(t, a.reg.Host+"/dst:1")
	r, err := verify.Verify(ctx, img, source, a.expect, nil, inspect.Options{})
	require.NoError(t, err)
	assert.False(t, r.Trusted, "%v", checkOf(r, verify.CheckSource))
	_, e, err := verify.BeforeSigning(context.Background(), open(t, a.reg.Host+"/dst:1"), source,
		verify.Expectations{AnyRuntime: true, AllowSimulated: true}, inspect.Options{})
	require.NoError(t, err)
	assert.True(t, e == nil)
}
