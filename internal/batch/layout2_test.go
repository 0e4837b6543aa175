package batch_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// With the target "oci:DIR/{{.Repository}}:{{.Tag}}": all that is said to be converted is there.
func TestTagsOfOneLayout(t *testing.T) {
	b := newBench(t)
	const n = 12
	b.push(n)
	b.options.Parallel = 4
	var jobs []queue.Job
	for i := range n {
		j := b.job(i)
		j.Target = "oci:" + filepath.Join(b.dir, "layouts/app") + fmt.Sprint(":", i)
		jobs = append(jobs, j)
	}
	q := b.open()
	for _, r := range b.work(q, b.submit(q, jobs)) {
		require.Equal(t, queue.Converted, r.Status, r.Error)
		ref, err := image.ParseReference(r.Job.Target, true)
		require.NoError(t, err)
		img, err := store.Open(context.Background(), ref, registry.Options{})
		if assert.NoError(t, err, "%s is %s as %s", r.Job.Source, r.Status, r.Ref) {
			assert.Equal(t, r.Digest, img.Digest)
			img.Close()
		}
	}
}

// The same once more: a tag that is said to have a new image does not keep, or get back, the one of before.
func TestTagsOfOneLayoutMoved(t *testing.T) {
	b := newBench(t)
	const n = 12
	b.push(n)
	var jobs []queue.Job
	for i := range n {
		j := b.job(i)
		j.Target = "oci:" + filepath.Join(b.dir, "layouts/app") + fmt.Sprint(":", i)
		_, err := b.worker.Convert(context.Background(), j)
		require.NoError(t, err)
		j.Options.ISVSVN = 5
		jobs = append(jobs, j)
	}
	b.options.Parallel = 4
	q := b.open()
	for _, r := range b.work(q, b.submit(q, jobs)) {
		require.Equal(t, queue.Converted, r.Status, r.Error)
		ref, err := image.ParseReference(r.Job.Target, true)
		require.NoError(t, err)
		img, err := store.Open(context.Background(), ref, registry.Options{})
		require.NoError(t, err)
		assert.Equal(t, r.Digest, img.Digest, "%s still has the enclave of security version 0", r.Job.Target)
		img.Close()
	}
}
