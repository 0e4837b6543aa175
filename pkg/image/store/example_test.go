package store_test

import (
	"context"
	"fmt"
	"os"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// An image is opened by a reference, and its layers are read as streams.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := fixture.WriteLayout(dir); err != nil {
		panic(err)
	}

	ctx := context.Background()
	ref, err := image.ParseReference("oci:"+dir+":1", false)
	if err != nil {
		panic(err)
	}
	img, err := store.Open(ctx, ref, registry.Options{})
	if err != nil {
		panic(err)
	}
	defer img.Close()
	for _, l := range img.Layers {
		r, err := l.Open(ctx)
		if err != nil {
			panic(err)
		}
		_, err = image.ReadChecked(r, l.Digest, 1<<20) // what it says it is, or an error
		r.Close()
		fmt.Println("a layer was read:", err == nil)
	}
	// Output: a layer was read: true
}
