package batch_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
)

// With the target "oci:DIR/{{.Repository}}:{{.Tag}}": a repository whose name is a file's of another one's layout.
func TestNestedLayouts(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.push(1)
	b.reg.Push(t, "app/index.json:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}},
		fixture.Layer(t, fixture.Program("app", fixture.ELF("")))))
	strange, victim := b.job(0), b.job(0)
	strange.Source = fmt.Sprintf("%s/app/index.json:1", b.reg.Host)
	strange.Target = "oci:" + filepath.Join(b.dir, "layouts/app/index.json") + ":1"
	victim.Target = "oci:" + filepath.Join(b.dir, "layouts/app") + ":0"
	_, err := b.worker.Convert(ctx, strange)
	require.ErrorContains(t, err, "where a layout above it has a file")
	_, err = b.worker.Convert(ctx, victim)
	assert.NoError(t, err, "a stranger's repository is in the way")
}
