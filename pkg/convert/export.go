package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Export is what a conversion would go by, for those who start the program by other means.
type Export struct {
	Spec *launch.Spec
	Tree *rootfs.Tree
	// Findings are those of the image, for any library OS.
	Findings []finding.Finding

	in *inputs
	o  Options
}

// NewExport reads an image as Prepare does. It must be closed.
func NewExport(ctx context.Context, o Options) (*Export, error) {
	if err := o.begin(); err != nil {
		return nil, err
	}
	in, err := read(ctx, o)
	if err != nil {
		return nil, err
	}
	e := &Export{Tree: in.contents.Tree, in: in, o: o}
	if e.Tree.Lookup(libos.RecipePath) != nil {
		e.Close()
		return nil, fmt.Errorf("%s: %w", o.Source, ErrConverted)
	}
	e.Spec, err = in.contents.Build(ctx, in.source.Config, o.Launch)
	if err == nil {
		err = e.Tree.Err()
	}
	if err != nil {
		e.Close()
		return nil, fmt.Errorf("%s: %w", o.Source, err)
	}
	e.Findings = slices.Concat(e.Spec.Findings, in.layers.findings)
	return e, nil
}

// Close lets go of the image.
func (e *Export) Close() {
	e.in.stop()
	e.in.source.Close()
}

// Manifest returns the manifest that a conversion would write, and all findings of it.
func (e *Export) Manifest(ctx context.Context) ([]byte, []finding.Finding, error) {
	s, err := seal(ctx, e.o, e.in.source, e.in.contents, e.in.runtime, e.in.agent, nil)
	if err != nil {
		return nil, nil, err
	}
	return s.Manifest, slices.Concat(s.findings, e.in.layers.findings), nil
}

// Unpack writes the image's files to a directory, which is made, or empty: regular files, directories and symbolic
// links. Links are made last, and all of it through one open directory, so that no path leads out of it. Owners,
// devices and the bits set-uid and set-gid are left out; hard links become files of their own.
func (e *Export) Unpack(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return errors.Join(err, fmt.Errorf("%s: the directory is not empty", dir))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	name := func(n *rootfs.Node) string { return strings.TrimPrefix(n.Path, "/") }
	err = e.Tree.Walk(func(n *rootfs.Node) error {
		if n.Type != rootfs.Dir || n.Path == "/" {
			return nil
		}
		return root.Mkdir(name(n), 0o755)
	})
	if err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	contents := contentsOf(e.in.source, e.Tree, rootfs.Options{Inflate: e.o.Inflate, Limits: e.o.Limits})
	all := func(*rootfs.Node) bool { return true }
	err = contents(ctx, all, func(nodes []*rootfs.Node, r io.Reader) error {
		first := ""
		for _, n := range nodes {
			if first != "" { // the same content
				from, err := root.Open(first)
				if err != nil {
					return err
				}
				defer from.Close()
				r = from
			}
			if err := writeTo(root, name(n), fs.FileMode(n.Mode&0o777), r); err != nil {
				return err
			}
			first = name(n)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	err = e.Tree.Walk(func(n *rootfs.Node) error {
		if n.Type != rootfs.Symlink {
			return nil
		}
		return root.Symlink(n.Link, name(n))
	})
	if err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	return nil
}

// writeTo makes a file that its owner can read.
func writeTo(root *os.Root, name string, mode fs.FileMode, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
