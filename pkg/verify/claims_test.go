package verify_test

import (
	"context"
	"io"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/verify"
)

// readings are the ways to read an image that are compared.
var readings = map[string]func(context.Context, *image.Image, inspect.Options) (*inspect.Converted, error){
	"as diff reads": inspect.Read, "all layers": inspect.ReadLayers,
}

// Volumes, ports and labels say something by their names alone.
func TestNamesWithoutValues(t *testing.T) {
	a := newVictim(t, nil)
	config := v1.Config{
		Entrypoint: []string{"/usr/bin/app"}, Volumes: map[string]struct{}{"/data": {}},
		ExposedPorts: map[string]struct{}{"443/tcp": {}}, Labels: map[string]string{"a": ""},
	}
	a.from = a.reg.Push(t, "src:names", fixture.Image(t, config,
		fixture.Layer(t, fixture.Program("usr/bin/app", fixture.ELF("")), fixture.File("x", "x")),
		fixture.Layer(t, fixture.File("y", "y"))))
	run(t, options(t, a.from), signer(t), a.reg.Host+"/dst:1")
	assert.Empty(t, a.attack(true, func(*tampered) {}))
	for what, change := range map[string]func(*v1.Config){
		"a volume over the program": func(c *v1.Config) {
			c.Volumes = map[string]struct{}{"/data": {}, "/usr/bin": {}}
		},
		"a port more":  func(c *v1.Config) { c.ExposedPorts = map[string]struct{}{"443/tcp": {}, "22/tcp": {}} },
		"another port": func(c *v1.Config) { c.ExposedPorts = map[string]struct{}{"23/tcp": {}} },
		"a label less": func(c *v1.Config) { delete(c.Labels, "a") },
		"a label more": func(c *v1.Config) { c.Labels["b"] = "" },
	} {
		assert.Equal(t, []string{verify.CheckSource}, a.attack(true, func(x *tampered) {
			change(&x.config.Config)
		}), what)
	}
}

// What a runtime's layer has is not the runtime's only because the layer is at its place.
func TestDifferencesThatAreNotMeasured(t *testing.T) {
	a := newVictim(t, nil)
	original, x := a.image()
	x.edit(runtimeLayer, func(l []fixture.Entry) []fixture.Entry {
		return append(l, fixture.Program("usr/bin/app", "other"))
	})
	x.config.Config.Entrypoint, x.config.Config.User = []string{"/usr/bin/app"}, "0"
	to := a.reg.Host + "/dst:other"
	x.push(to, original)
	for what, read := range readings {
		one, err := read(context.Background(), open(t, a.reg.Host+"/dst:1"), inspect.Options{})
		require.NoError(t, err)
		two, err := read(context.Background(), open(t, to), inspect.Options{})
		require.NoError(t, err)
		list, err := inspect.Compare(one, two)
		require.NoError(t, err)
		found := map[string]bool{}
		for _, d := range list {
			found[d.Part+" "+d.Name] = true
		}
		for _, want := range []string{"runtime files", "config config.Entrypoint", "config config.User"} {
			assert.True(t, found[want], "%s: %s is not in %v", what, want, list)
		}
		same, err := inspect.Compare(one, one)
		require.NoError(t, err)
		assert.Empty(t, same, what)

		// Of entries of one file the first one counts.
		other := one.Trusted[0]
		other.SHA256 = "00"
		three, four := *one, *one
		three.Trusted = append([]libos.FileEntry{other, one.Trusted[0]}, one.Trusted[1:]...)
		four.Trusted = append([]libos.FileEntry{one.Trusted[0], one.Trusted[0]}, one.Trusted[1:]...)
		list, err = inspect.Compare(&three, &four)
		require.NoError(t, err)
		assert.NotEmpty(t, list, what)
	}
	r, err := verify.Rebuild(context.Background(), open(t, to), verify.RebuildOptions{Source: parse(t, a.from)})
	require.NoError(t, err)
	assert.False(t, r.Same)
	assert.Contains(t, r.Why[0], "not one that a conversion makes")
}

// What is in the enclave's layer is compared too.
func TestDiffOfTheLayerOnTop(t *testing.T) {
	a := newVictim(t, nil)
	_, x := a.image()
	x.edit(enclaveLayer, func(l []fixture.Entry) []fixture.Entry {
		return append(l, fixture.Program("cconvert/sim/start", "evil"), fixture.Program("usr/bin/app", "evil"))
	})
	rc, err := x.layers[enclaveLayer].Compressed()
	require.NoError(t, err)
	defer rc.Close()
	blob, err := io.ReadAll(rc)
	require.NoError(t, err)
	to := a.swap("evil", enclaveLayer, blob, types.OCILayer, nil)
	for what, read := range readings {
		one, err := read(context.Background(), open(t, a.reg.Host+"/dst:1"), inspect.Options{})
		require.NoError(t, err)
		two, err := read(context.Background(), open(t, to), inspect.Options{})
		require.NoError(t, err)
		list, err := inspect.Compare(one, two)
		require.NoError(t, err)
		assert.NotEmpty(t, list, what)
	}
}

// A signature that is broken is a difference.
func TestDiffOfABrokenSignature(t *testing.T) {
	a := newVictim(t, nil)
	_, x := a.image()
	x.file(enclaveLayer, libos.SigPath[1:], flip(0x204))
	rc, err := x.layers[enclaveLayer].Compressed()
	require.NoError(t, err)
	defer rc.Close()
	blob, err := io.ReadAll(rc)
	require.NoError(t, err)
	one, err := inspect.Read(context.Background(), open(t, a.reg.Host+"/dst:1"), inspect.Options{})
	require.NoError(t, err)
	two, err := inspect.Read(context.Background(), open(t, a.swap("broken", enclaveLayer, blob, types.OCILayer, nil)),
		inspect.Options{})
	require.NoError(t, err)
	require.NotEqual(t, one.SignatureError, two.SignatureError)
	list, err := inspect.Compare(one, two)
	require.NoError(t, err)
	assert.NotEmpty(t, list)
}
