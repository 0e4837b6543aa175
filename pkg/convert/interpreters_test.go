package convert_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
)

// Scripts in great number name the same interpreter, which is looked for in many deep directories of PATH once.
func TestInterpretersOfManyScripts(t *testing.T) {
	reg := fixture.NewRegistry(t)
	deep := strings.Repeat("/a", 30)
	entries := []fixture.Entry{
		fixture.File(deep[1:]+"/x", "x"), fixture.Program("bin/sh", fixture.ELF("")),
		fixture.Program("usr/bin/env", fixture.ELF("")),
	}
	for i := range 20_000 { // of 2,000,000 files that an image may have
		entries = append(entries, fixture.Program(fmt.Sprintf("s/%d", i), "#!/usr/bin/env zz\n"))
	}
	layer := fixture.Layer(t, entries...)
	took := func(path string) time.Duration {
		img := fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/sh"}, Env: []string{"PATH=" + path}}, layer)
		o := options(t, reg.Push(t, "src:1", img))
		begin := time.Now()
		p, err := convert.Prepare(context.Background(), o)
		require.NoError(t, err)
		require.NoError(t, p.Close())
		return time.Since(begin)
	}
	plain := took("/bin")
	assert.Less(t, took(strings.Repeat(deep+":", 255)+"/bin"), 3*plain+time.Second, "%s without them", plain)
}
