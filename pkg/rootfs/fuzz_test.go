package rootfs_test

import (
	"bytes"
	"context"
	"testing"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// Whatever a layer holds, reading it gives a tree whose paths are clean, or an error.
func FuzzScan(f *testing.F) {
	f.Add(Tar(f, File("a/b", "x"), Symlink("l", "a"), Hardlink("h", "a/b"), File("a/.wh.c", ""),
		Program("p", ELF("/lib/ld.so"))))
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		index, err := rootfs.Scan(context.Background(), bytes.NewReader(b), digest(b),
			rootfs.Options{Keep: []string{"/etc/**"}, DiffID: true})
		if err != nil {
			return
		}
		encoded, err := index.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var again rootfs.Index
		if err := again.UnmarshalBinary(encoded); err != nil {
			t.Fatal(err)
		}
		tree, err := rootfs.Merge([]*rootfs.Index{index, index})
		if err != nil {
			return
		}
		_ = tree.Walk(func(n *rootfs.Node) error {
			if tree.Lookup(n.Path) != n {
				t.Fatalf("%q is not found again", n.Path)
			}
			_, _, _ = tree.Resolve(n.Path)
			return nil
		})
	})
}

func FuzzELF(f *testing.F) {
	f.Add([]byte(ELF("/lib64/ld-linux-x86-64.so.2")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := elf.Parse(bytes.NewReader(b)); err == nil && e == nil {
			t.Fatal("neither facts nor an error")
		}
	})
}
