package convert

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// contentsOf reads files of a tree from the layers of its image.
func contentsOf(img *image.Image, tree *rootfs.Tree, o rootfs.Options) libos.Contents {
	return func(
		ctx context.Context, want func(*rootfs.Node) bool, visit func([]*rootfs.Node, io.Reader) error,
	) error {
		wanted := make([]map[string][]*rootfs.Node, len(img.Layers)) // by the path of their entry
		err := tree.Walk(func(n *rootfs.Node) error {
			if n.Type != rootfs.Regular || !want(n) {
				return nil
			}
			if wanted[n.Layer] == nil {
				wanted[n.Layer] = map[string][]*rootfs.Node{}
			}
			wanted[n.Layer][n.Origin()] = append(wanted[n.Layer][n.Origin()], n)
			return nil
		})
		if err != nil {
			return err
		}
		for i, l := range img.Layers {
			if wanted[i] == nil {
				continue
			}
			if err := visitLayer(ctx, l, o, wanted[i], visit); err != nil {
				return fmt.Errorf("reading the files of layer %d: %w", i+1, err)
			}
		}
		return nil
	}
}

// visitLayer visits the wanted files of a layer.
func visitLayer(
	ctx context.Context, l *image.Layer, o rootfs.Options, wanted map[string][]*rootfs.Node,
	visit func([]*rootfs.Node, io.Reader) error,
) error {
	r, err := l.Open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	err = rootfs.Visit(ctx, r, l.Digest, o, func(e *rootfs.Entry, content io.Reader) error {
		nodes := wanted[e.Path]
		if nodes == nil {
			return nil
		}
		delete(wanted, e.Path)
		sum := sha256.New()
		read := io.TeeReader(content, sum)
		if err := visit(nodes, read); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, read); err != nil {
			return err
		}
		if [sha256.Size]byte(sum.Sum(nil)) != nodes[0].SHA256 {
			return fmt.Errorf("it has several entries of the path %s", e.Path)
		}
		return nil
	})
	if err == nil && len(wanted) > 0 {
		err = errors.New("files are gone that it had")
	}
	return err
}
