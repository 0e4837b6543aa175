package verify_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/verify"
)

func changesOf(t *testing.T, config v1.Config, change func(*convert.Options)) []string {
	t.Helper()
	a := newVictim(t, nil)
	layers, err := sample(t).Layers()
	require.NoError(t, err)
	from := a.reg.Push(t, "src:changes", fixture.Image(t, config, layers...))
	o := options(t, from)
	change(&o)
	run(t, o, signer(t), a.reg.Host+"/dst:changes")
	e := a.expect
	e.AllowChanges = true
	img, source := open(t, a.reg.Host+"/dst:changes"), open(t, from)
	r, err := verify.Verify(context.Background(), img, source, e, nil, inspect.Options{})
	require.NoError(t, err)
	assert.True(t, r.Trusted)
	return checkOf(r, verify.CheckChanges).Problems
}

// All that options change is listed, also if the source cannot be converted without one of them.
func TestChangesIfPlainFails(t *testing.T) {
	said := strings.Join(changesOf(t, v1.Config{User: "1000"}, func(o *convert.Options) {
		o.Launch.Args = []string{"/bin/app"}
		o.Launch.Env = []process.EnvVar{{Name: "LD_PRELOAD", Value: "/opt/a"}}
		o.Launch.AllowedFiles = []string{"/opt/b"}
		o.Overlay = "[sys]\nallowed_ioctls = [{ request_code = 1 }]\n"
	}), "\n")
	assert.Contains(t, said, "LD_PRELOAD")
	assert.Contains(t, said, "/opt/b")
	assert.Contains(t, said, "allowed_ioctls")
}

// So is the order of long lists, and how often something is there, if there is another change of the list.
func TestChangesOfOrder(t *testing.T) {
	pad := strings.Repeat("x", 600)
	config := v1.Config{
		Entrypoint: []string{"/bin/app"}, Cmd: []string{"--deny", "world", "--allow", "me", "--comment", pad},
	}
	said := strings.Join(changesOf(t, config, func(o *convert.Options) {
		o.Launch.Args = []string{"--deny", "me", "--allow", "world", "--comment", pad, "--verbose"}
	}), "\n")
	assert.Contains(t, said, "world")
}

// Which C library runs is an option that changes what runs.
func TestLibCIsAChange(t *testing.T) {
	const musl = "/lib/ld-musl-x86_64.so.1"
	a := newVictim(t, nil)
	from := a.reg.Push(t, "src:changes", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}}, fixture.Layer(t,
		fixture.Program("bin/app", fixture.ELF(musl)), fixture.Program(musl[1:], fixture.ELF("")))))
	for choice, trusted := range map[libc.Choice]bool{libc.Auto: true, libc.Image: false} {
		o := enclaved(t, from)
		prefix := strings.TrimPrefix(o.Runtime.Source, "dir:")
		file := filepath.Join(prefix, "lib/gramine/runtime/musl/ld-musl-x86_64.so.1")
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(fixture.ELF("")), 0o755))
		o.Launch.LibC = choice
		ref := a.reg.Host + "/dst:" + string(choice)
		run(t, o, signer(t), ref)
		e := a.expect
		e.AllowDebug, e.AnyRuntime = true, true
		r, err := verify.Verify(context.Background(), open(t, ref), open(t, from), e, nil, inspect.Options{})
		require.NoError(t, err)
		assert.Equal(t, trusted, r.Trusted, "%s: %v", choice, r.Unmet())
	}
}
