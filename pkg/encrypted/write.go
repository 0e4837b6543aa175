package encrypted

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/internal/ctxio"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Options say how files are encrypted.
type Options struct {
	Key     protectedfs.Key
	KeyName string // in the library OS's manifest
	Version protectedfs.Version
	Random  bool
	// Mutable reports whether the program may change a file; nil: it may change none.
	Mutable func(path string) bool
	// UID and GID are those of the program, which must be able to write to the ciphertexts: Gramine opens them for
	// reading and writing, always.
	UID, GID int
}

// Writer makes the layer with the ciphertexts. It is not compressed: ciphertext cannot be.
type Writer struct {
	o       Options
	tree    *rootfs.Tree
	spool   *os.File
	size    int64
	made    map[string]bool
	entries []rootfs.Entry
	at      []int64 // of the content of each entry
	files   []File
}

// NewWriter begins a layer for files of a tree. The writer is closed by its caller, after the layer was sent.
func NewWriter(tree *rootfs.Tree, o Options) (*Writer, error) {
	spool, err := image.NewSpool()
	if err != nil {
		return nil, err
	}
	return &Writer{o: o, tree: tree, spool: spool, made: map[string]bool{"/": true}}, nil
}

// Close frees the space that the layer takes.
func (w *Writer) Close() error { return w.spool.Close() }

// Plain is what is to be known of a file's content before it is encrypted.
type Plain struct {
	Size   int64
	SHA256 [sha256.Size]byte
}

// Mode returns the mode of a file's ciphertext: that of the plain one, and its owner may also read and write it.
func Mode(plain *rootfs.Node) uint32 { return plain.Mode&0o7777 | 0o600 }

// Add encrypts a file of the tree, with this content.
func (w *Writer) Add(
	ctx context.Context, n *rootfs.Node, plain Plain, modified time.Time, content io.Reader,
) error {
	if err := w.dirs(n.Parent()); err != nil {
		return err
	}
	length := protectedfs.Length(plain.Size)
	e := rootfs.Entry{
		Path: n.Path, Type: rootfs.Regular, Mode: Mode(n), UID: w.o.UID, GID: w.o.GID, Size: length,
	}
	if err := w.header(e, modified); err != nil {
		return err
	}
	w.at[len(w.at)-1] = w.size
	err := protectedfs.Encrypt(io.NewOffsetWriter(w.spool, w.size), ctxio.NewReader(ctx, content), protectedfs.File{
		Path: n.Path, Size: plain.Size, SHA256: plain.SHA256, Version: w.o.Version, Random: w.o.Random,
	}, w.o.Key)
	if err != nil {
		return fmt.Errorf("encrypting it: %w", err)
	}
	w.size += length
	w.files = append(w.files, File{Path: n.Path, Size: length, Interpreter: n.Shebang, ELF: Published(n.ELF)})
	return nil
}

// dirs writes the directories above a file as the image has them: engines would make them with other modes and owners.
func (w *Writer) dirs(dir *rootfs.Node) error {
	if w.made[dir.Path] {
		return nil
	}
	w.made[dir.Path] = true
	if err := w.dirs(dir.Parent()); err != nil {
		return err
	}
	return w.header(rootfs.Entry{Path: dir.Path, Type: rootfs.Dir, Mode: dir.Mode, UID: dir.UID, GID: dir.GID},
		time.Unix(0, 0))
}

// header writes what is before an entry's content.
func (w *Writer) header(e rootfs.Entry, modified time.Time) error {
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: e.Path[1:], Mode: int64(e.Mode), Uid: e.UID, Gid: e.GID, Size: e.Size,
		ModTime: modified.Truncate(time.Second),
	}
	if e.Type == rootfs.Dir {
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", e.Path, err)
	}
	if _, err := w.spool.WriteAt(b.Bytes(), w.size); err != nil {
		return err
	}
	w.size += int64(b.Len())
	w.entries, w.at = append(w.entries, e), append(w.at, 0)
	return nil
}

// Layer ends the layer, and returns its index, and the list of the files in it.
func (w *Writer) Layer(
	ctx context.Context, manifest *image.Image,
) (layer image.NewLayer, index *rootfs.Index, list *List, err error) {
	if _, err := w.spool.WriteAt(make([]byte, 2*blockSize), w.size); err != nil { // the end of an archive
		return layer, nil, nil, err
	}
	w.size += 2 * blockSize
	whole := sha256.New()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	g.Go(func() error { return w.sum(gctx, whole, 0, w.size) })
	heads := make([]string, len(w.entries))
	for i := range w.entries {
		if e := &w.entries[i]; e.Type == rootfs.Regular {
			g.Go(func() error {
				sum := sha256.New()
				defer func() { sum.Sum(e.SHA256[:0]) }()
				return w.sum(gctx, sum, w.at[i], e.Size)
			})
			if w.o.Mutable == nil || !w.o.Mutable(e.Path) {
				g.Go(func() error {
					sum := sha256.New()
					defer func() { heads[i] = hex.EncodeToString(sum.Sum(nil)) }()
					return w.sum(gctx, sum, w.at[i], protectedfs.NodeSize)
				})
			}
		}
	}
	if err := g.Wait(); err != nil {
		return layer, nil, nil, fmt.Errorf("reading the encrypted files: %w", err)
	}
	digest := "sha256:" + hex.EncodeToString(whole.Sum(nil))
	layer = image.SpooledLayer(w.spool, w.size, digest, digest, image.Uncompressed(manifest.MediaType))
	list = &List{KeyID: w.o.Key.ID(), Key: w.o.KeyName, Version: w.o.Version, Random: w.o.Random}
	next := 0
	for i, e := range w.entries {
		if e.Type == rootfs.Regular {
			f := w.files[next]
			f.SHA256, f.Head = hex.EncodeToString(e.SHA256[:]), heads[i]
			list.Files = append(list.Files, f)
			next++
		}
	}
	slices.SortFunc(list.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	index = &rootfs.Index{Digest: digest, DiffID: digest, Entries: w.entries}
	if index, err = list.Describe(index); err != nil {
		return layer, nil, nil, err
	}
	return layer, index, list, nil
}

const blockSize = 512 // of an archive

// sum hashes a part of the spool.
func (w *Writer) sum(ctx context.Context, sum hash.Hash, at, size int64) error {
	_, err := io.Copy(sum, ctxio.NewReader(ctx, io.NewSectionReader(w.spool, at, size)))
	return err
}
