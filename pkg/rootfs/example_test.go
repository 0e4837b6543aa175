package rootfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// A layer is read once, and what it holds is looked up without it.
func ExampleScan() {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range []tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etc/os-release", Typeflag: tar.TypeSymlink, Linkname: "../usr/lib/os-release"},
		{Name: "usr/lib/os-release", Typeflag: tar.TypeReg, Mode: 0o644},
	} {
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))

	index, err := rootfs.Scan(context.Background(), &layer, digest, rootfs.Options{})
	if err != nil {
		panic(err)
	}
	tree, err := rootfs.Merge([]*rootfs.Index{index})
	if err != nil {
		panic(err)
	}
	_, path, err := tree.Resolve("/etc/os-release")
	fmt.Println(path, err)
	// Output: /usr/lib/os-release <nil>
}
