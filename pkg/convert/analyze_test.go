package convert_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
)

func found(a *convert.Analysis, code string) bool {
	return slices.ContainsFunc(a.Findings, func(f finding.Finding) bool { return f.Code == code })
}

func TestAnalyze(t *testing.T) {
	reg := fixture.NewRegistry(t)
	o := options(t, reg.Push(t, "src:1", sample(t)))
	o.Launch.Trust = launch.TrustAll
	reg.Intercept(nil)
	a, err := convert.Analyze(context.Background(), o)
	require.NoError(t, err)
	assert.Empty(t, a.RuntimeError)
	assert.Equal(t, "/usr/bin/app", a.Entrypoint)
	assert.Equal(t, 3, a.Files)
	assert.EqualValues(t, 64<<20/4096, a.Pages)
	assert.Equal(t, "all", a.Policy)
	assert.Equal(t, 3, a.Policies[launch.TrustAll].Entries)
	assert.Equal(t, a.Policies[launch.TrustAll], a.Policies[launch.TrustAuto], "there is no database of packages")
	assert.True(t, found(a, finding.Simulated))
	assert.False(t, found(a, finding.Converted))
	for _, r := range reg.Requests() {
		assert.NotContains(t, r, "PUT", "nothing is stored")
	}

	r, err := run(context.Background(), t, o, reg.Host+"/dst:1")
	require.NoError(t, err)
	a, err = convert.Analyze(context.Background(), options(t, r.Output.Ref))
	require.NoError(t, err)
	assert.True(t, found(a, finding.Converted))

	// Docker has a limit that registries have not.
	for n, want := range map[int]bool{123: false, 124: true} {
		layers := []v1.Layer{fixture.Layer(t, fixture.Program("app", fixture.ELF("")))}
		for i := range n - 1 {
			layers = append(layers, fixture.Layer(t, fixture.File(fmt.Sprint("f", i), "x")))
		}
		a, err = convert.Analyze(context.Background(),
			options(t, reg.Push(t, "deep:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}}, layers...))))
		require.NoError(t, err)
		assert.Equal(t, want, found(a, finding.ManyLayers), n)
	}

	// What lies where the enclave goes would be the loader's.
	for _, e := range []fixture.Entry{
		fixture.File("cconvert/gramine/lib/libprotobuf-c.so.1", "evil"), fixture.Dir("cconvert"),
		fixture.Symlink("cconvert", "/opt"), fixture.Symlink("x", "/cconvert/sim"),
	} {
		reserved := options(t, reg.Push(t, "reserved:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}},
			fixture.Layer(t, fixture.Program("app", fixture.ELF("")), e))))
		a, err = convert.Analyze(context.Background(), reserved)
		require.NoError(t, err)
		assert.True(t, found(a, finding.Reserved))
		_, err = convert.Prepare(context.Background(), reserved)
		assert.ErrorIs(t, err, convert.ErrReserved)
	}

	// Without a runtime everything else is still said.
	o.Backend, o.Runtime = gramine.Backend{}, libos.LoadOptions{Source: "dir:" + filepath.Join(t.TempDir(), "none")}
	a, err = convert.Analyze(context.Background(), o)
	require.NoError(t, err)
	assert.NotEmpty(t, a.RuntimeError)
	assert.Equal(t, 3, a.Files)
	assert.False(t, found(a, finding.Simulated))
}

// What a start takes is told if the list is long.
func TestLongListIsTold(t *testing.T) {
	reg := fixture.NewRegistry(t)
	for n, want := range map[int]bool{5_000: false, 11_000: true} {
		files := []fixture.Entry{fixture.Program("app", fixture.ELF(""))}
		for i := range n {
			files = append(files, fixture.File(fmt.Sprint("d/", i), "x"))
		}
		img := fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}}, fixture.Layer(t, files...))
		o := options(t, reg.Push(t, "many:1", img))
		a, err := convert.Analyze(context.Background(), o)
		require.NoError(t, err)
		assert.Equal(t, want, found(a, finding.LongList), n)
		r, err := run(context.Background(), t, o, reg.Host+"/many:2")
		require.NoError(t, err)
		assert.Equal(t, want, slices.ContainsFunc(r.Findings, func(f finding.Finding) bool {
			return f.Code == finding.LongList && f.Remedy != ""
		}), n)
	}
}
