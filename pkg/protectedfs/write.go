package protectedfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"
)

// File is what is to be encrypted.
type File struct {
	// Path is where Gramine will open it: what follows "file:" in the URI of a mount and the rest of the path, without
	// links, ".." or repeated slashes. At most MaxPath bytes.
	Path string
	// Size of the content in bytes.
	Size    int64
	Version Version
	// SHA256 is that of the content. The keys of the nodes follow from it, unless Random is set.
	SHA256 [sha256.Size]byte
	// Random has all keys be new ones: the same file is encrypted to other bytes every time.
	Random bool
}

// ErrPathForm says that a path is not one by which Gramine opens a file.
var ErrPathForm = errors.New("not the path of an encrypted file")

// ErrContent says that a content is not the one whose size and digest were given.
var ErrContent = errors.New("the content is not the one that was announced")

// Encrypt writes a file of Length(f.Size) bytes. It reads the content once, and keeps 32 bytes in memory for each 4096
// of it. Until it has returned without an error, nobody may read dst who must not know the content, and after an error
// what was written must be removed: if the content is not the announced one (ErrContent), it was encrypted with the
// keys of another, which tells of both.
func Encrypt(dst io.WriterAt, content io.Reader, f File, key Key) error {
	if f.Version != Version1 && f.Version != Version2 {
		return fmt.Errorf("version %d of the format of encrypted files is unknown", f.Version)
	}
	if len(f.Path) > MaxPath || f.Path == "." || path.Clean(f.Path) != f.Path || strings.Contains(f.Path, "\x00") {
		return fmt.Errorf("%w: %q, which must be without links, \"..\" or repeated slashes, and at most %d bytes",
			ErrPathForm, f.Path, MaxPath)
	}
	if f.Size < 0 || f.Size > maxContent {
		return fmt.Errorf("%d bytes cannot be the size of an encrypted file", f.Size)
	}
	w := &writer{File: f, dst: dst, keys: randomKeys{}}
	if !f.Random {
		w.sum = sha256.New()
		w.keys = newDerivedKeys(key, f.Path, f.Size, f.SHA256)
	}
	return w.write(content, key)
}

type writer struct {
	File
	dst   io.WriterAt
	keys  nodeKeys
	sum   hash.Hash // nil if nothing follows from the content's digest
	data  [][]slot  // below each node of the tree
	trees []slot
}

func (w *writer) write(content io.Reader, key Key) error {
	meta := make([]byte, metaSize)
	copy(meta, w.Path)
	le.PutUint64(meta[offSize:], uint64(w.Size))
	if err := w.read(content, meta[offInline:][:min(w.Size, inline)]); err != nil {
		return err
	}
	if err := w.writeData(content); err != nil {
		return err
	}
	switch _, err := io.ReadFull(content, make([]byte, 1)); {
	case err == nil:
		return fmt.Errorf("%w: it has more than %d bytes", ErrContent, w.Size)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("%w: it cannot be read to its end: %w", ErrContent, err)
	}
	if w.sum != nil && [sha256.Size]byte(w.sum.Sum(nil)) != w.SHA256 {
		return fmt.Errorf("%w: its digest is another", ErrContent)
	}
	w.trees = make([]slot, len(w.data))
	if err := w.writeTree(); err != nil {
		return err
	}
	if len(w.trees) > 0 {
		copy(meta[offRoot:], w.trees[0][:])
	}
	return w.writeMetadata(meta, key)
}

// read reads a part of the content.
func (w *writer) read(content io.Reader, b []byte) error {
	if _, err := io.ReadFull(content, b); err != nil {
		return fmt.Errorf("%w: it ends early or cannot be read: %w", ErrContent, err)
	}
	if w.sum != nil {
		w.sum.Write(b)
	}
	return nil
}

// writeData writes the data nodes, those below one node of the tree at a time, which follow on one another in the file.
func (w *writer) writeData(content io.Reader) error {
	g, ctx := errgroup.WithContext(context.Background())
	workers := runtime.GOMAXPROCS(0)
	free := make(chan *run, workers+1)
	for range workers + 1 {
		free <- &run{keys: w.keys.clone()}
	}
	g.SetLimit(workers)
	left, total := w.Size-inline, dataNodes(w.Size)
	var err error
	for first := int64(0); first < total && ctx.Err() == nil; first += perTree {
		r := <-free
		n := min(left, perTree*NodeSize)
		left -= n
		slots := make([]slot, min(total-first, perTree))
		w.data = append(w.data, slots) // as the content arrives: its size is only what was announced
		r.resize(len(slots))
		clear(r.plain[n:])
		if err = w.read(content, r.plain[:n]); err != nil {
			break
		}
		g.Go(func() error {
			defer func() { free <- r }()
			r.encrypt(slots, first)
			_, err := w.dst.WriteAt(r.sealed, dataOffset(first))
			return err
		})
	}
	if writeErr := g.Wait(); writeErr != nil {
		return writeErr
	}
	return err
}

// run is memory for the data nodes below one node of the tree.
type run struct {
	keys          nodeKeys
	plain, sealed []byte
}

func (r *run) resize(nodes int) {
	if r.plain == nil {
		r.plain, r.sealed = make([]byte, perTree*NodeSize), make([]byte, 0, perTree*NodeSize+tagSize)
	}
	r.plain = r.plain[:nodes*NodeSize]
}

func (r *run) encrypt(slots []slot, first int64) {
	r.sealed = r.sealed[:0]
	for i := range len(r.plain) / NodeSize {
		r.sealed, slots[i] = seal(r.sealed, r.plain[i*NodeSize:][:NodeSize], r.keys.node(dataNumber(first+int64(i))))
	}
}

// seal appends a node that is encrypted, without its tag, and returns what its parent must know of it.
func seal(dst, plain []byte, key Key) (sealed []byte, s slot) {
	sealed = gcm(key).Seal(dst, zeroIV[:], plain, nil)
	end := len(sealed) - tagSize
	copy(s[:], key[:])
	copy(s[len(key):], sealed[end:])
	return sealed[:end], s
}

// writeTree writes the nodes of the tree, the last one first: each has the tags of those below it.
func (w *writer) writeTree() error {
	plain, sealed := make([]byte, NodeSize), make([]byte, 0, NodeSize+tagSize)
	for j := len(w.trees) - 1; j >= 0; j-- {
		clear(plain)
		for i, s := range w.data[j] {
			copy(plain[i*slotSize:], s[:])
		}
		for i, s := range w.trees[min(j*children+1, len(w.trees)):min((j+1)*children+1, len(w.trees))] {
			copy(plain[(perTree+i)*slotSize:], s[:])
		}
		number := treeNumber(int64(j))
		sealed, w.trees[j] = seal(sealed[:0], plain, w.keys.node(number))
		if _, err := w.dst.WriteAt(sealed, number*NodeSize); err != nil {
			return err
		}
	}
	return nil
}

// writeMetadata writes node 0.
func (w *writer) writeMetadata(meta []byte, key Key) error {
	node := make([]byte, NodeSize)
	copy(node, magic)
	node[offVersion] = byte(w.Version)
	nonce := w.keys.nonce()
	copy(node[offNonce:], nonce[:])
	sealed, s := seal(nil, meta, key.derive(metadataLabel, nonce))
	copy(node[offTag:], s[len(Key{}):])
	copy(node[w.Version.metaOffset():], sealed)
	_, err := w.dst.WriteAt(node, 0)
	return err
}
