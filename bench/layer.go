package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// fileLayer is a compressed layer in a file.
type fileLayer struct {
	file           string
	digest, diffID v1.Hash
	size           int64
}

func (l *fileLayer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *fileLayer) DiffID() (v1.Hash, error)             { return l.diffID, nil }
func (l *fileLayer) Size() (int64, error)                 { return l.size, nil }
func (l *fileLayer) MediaType() (types.MediaType, error)  { return types.OCILayer, nil }
func (l *fileLayer) Compressed() (io.ReadCloser, error)   { return os.Open(l.file) }
func (l *fileLayer) Uncompressed() (io.ReadCloser, error) { return nil, errors.New("not needed") }

// layerWriter writes a layer. What is packed is compressed once and stands in it many times, as a member
// of its own (RFC 1952, 2.2): that makes layers of gigabytes in seconds.
type layerWriter struct {
	out    *bufio.Writer // compressed
	diffID hash.Hash
	z      *gzip.Writer
	tar    *tar.Writer
}

func newLayer(file string, fill func(*layerWriter) error) (_ *fileLayer, err error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	digest := sha256.New()
	w := &layerWriter{out: bufio.NewWriterSize(io.MultiWriter(f, digest), 1<<20), diffID: sha256.New()}
	if w.z, err = gzip.NewWriterLevel(w.out, gzip.BestSpeed); err != nil {
		return nil, err
	}
	w.tar = tar.NewWriter(io.MultiWriter(w.z, w.diffID))
	if err := fill(w); err != nil {
		return nil, err
	}
	if err := errors.Join(w.tar.Close(), w.z.Close(), w.out.Flush()); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &fileLayer{
		file: file, size: info.Size(),
		digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(digest.Sum(nil))},
		diffID: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(w.diffID.Sum(nil))},
	}, nil
}

func (w *layerWriter) file(name string, content []byte) error {
	if err := w.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)),
		Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := w.tar.Write(content)
	return err
}

// packed writes a file that holds the same content some times over, whose size must be a multiple of the
// archive's blocks.
func (w *layerWriter) packed(name string, content []byte, times int, packed []byte) error {
	var head bytes.Buffer
	h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(content) * times), Typeflag: tar.TypeReg}
	if err := tar.NewWriter(&head).WriteHeader(h); err != nil {
		return err
	}
	if err := w.tar.Flush(); err != nil { // the padding of the file before
		return err
	}
	w.diffID.Write(head.Bytes())
	if _, err := w.z.Write(head.Bytes()); err != nil {
		return err
	}
	if err := w.z.Close(); err != nil {
		return err
	}
	for range times {
		w.diffID.Write(content)
		if _, err := w.out.Write(packed); err != nil {
			return err
		}
	}
	w.z.Reset(w.out)
	return nil
}

func compressed(content []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	_, err = z.Write(content)
	err = errors.Join(err, z.Close())
	return b.Bytes(), err
}
