package batch_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// Several tags of one image, statements that are required, and a registry without a list of referrers: what each
// conversion states is attached.
func TestStatementsOfSeveralTags(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.worker.Own.Evidence = &convert.Evidence{Required: true}
	b.options.Parallel = 4
	layer := fixture.Layer(t, fixture.Program("app", fixture.ELF("")))
	img := fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}}, layer)
	const n = 6
	var jobs []queue.Job
	for i := range n {
		b.reg.Push(t, fmt.Sprint("app:", i), img)
		j := b.job(i)
		j.NoEvidence, j.NeedsEvidence = false, true
		jobs = append(jobs, j)
	}
	q := b.open()
	sources := map[string]bool{}
	for _, r := range b.work(q, b.submit(q, jobs)) {
		require.Equal(t, queue.Converted, r.Status, r.Error)
		ref, err := image.ParseReference(r.Job.Target, true)
		require.NoError(t, err)
		img, err := store.Open(ctx, ref, registry.Options{})
		require.NoError(t, err)
		found, err := registry.Referrers(ctx, img, attest.InTotoMediaType)
		require.NoError(t, err)
		for _, f := range attest.Read(ctx, found, nil) {
			var said attest.Identity
			if f.Statement.PredicateType == attest.IdentityType && json.Unmarshal(f.Statement.Predicate, &said) == nil {
				sources[said.Source.Name] = true
			}
		}
		img.Close()
	}
	assert.Len(t, sources, n, "%v", sources)
}
