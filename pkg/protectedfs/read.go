package protectedfs

import (
	"bytes"
	"fmt"
	"io"
	"slices"
)

// Header is what can be known of an encrypted file without its key.
type Header struct {
	Version Version
	nonce   [nonceSize]byte
	tag     [tagSize]byte
	meta    []byte // encrypted
}

// ReadHeader reads node 0 of an encrypted file. The error is ErrFormat if it is not one, or one whose writing was
// interrupted.
func ReadHeader(node []byte) (*Header, error) {
	if len(node) < NodeSize || string(node[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: it does not begin with %s", ErrFormat, magic)
	}
	h := &Header{Version: Version(node[offVersion])}
	if (h.Version != Version1 && h.Version != Version2) || node[offVersion+1] != 0 {
		return nil, fmt.Errorf("%w: its version is %d.%d", ErrFormat, node[offVersion], node[offVersion+1])
	}
	start := h.Version.metaOffset()
	if flags := node[offTag+tagSize : start]; len(flags) > 0 && flags[0] != 0 {
		return nil, fmt.Errorf("%w: writing it was interrupted", ErrFormat)
	}
	copy(h.nonce[:], node[offNonce:])
	copy(h.tag[:], node[offTag:])
	h.meta = node[start:][:metaSize]
	if len(bytes.Trim(node[start+metaSize:NodeSize], "\x00")) > 0 {
		return nil, fmt.Errorf("%w: what follows the metadata is not zero", ErrFormat)
	}
	return h, nil
}

// Reader reads the content of an encrypted file from its beginning. All that it returns was authenticated.
type Reader struct {
	Version Version // which is not authenticated: a host can turn the one into the other

	src   io.ReaderAt
	size  int64
	left  int64  // bytes that were not read into rest
	next  int64  // data node
	rest  []byte // of what was decrypted
	node  []byte // the encrypted node
	plain []byte
	tree  []byte
	trees []slot // of the nodes of the tree, as far as they are known
	err   error  // of what was read before
}

// Open begins to read an encrypted file with so many bytes, which must be for this path.
func Open(src io.ReaderAt, length int64, path string, key Key) (*Reader, error) {
	r := &Reader{src: src, node: make([]byte, NodeSize+tagSize)}
	if !CheckLength(length) {
		return nil, fmt.Errorf("%w: no such file has %d bytes", ErrFormat, length)
	}
	if err := readAt(src, r.node[:NodeSize], 0); err != nil {
		return nil, err
	}
	h, err := ReadHeader(r.node[:NodeSize])
	if err != nil {
		return nil, err
	}
	r.Version = h.Version
	meta, err := gcm(key.derive(metadataLabel, h.nonce)).Open(nil, zeroIV[:], slices.Concat(h.meta, h.tag[:]), nil)
	if err != nil {
		return nil, ErrKey
	}
	if own, _, _ := bytes.Cut(meta[:offSize], []byte{0}); string(own) != path {
		return nil, fmt.Errorf("%w: %q, not %q", ErrPath, own, path)
	}
	size := le.Uint64(meta[offSize:])
	if size > maxContent || Length(int64(size)) != length {
		return nil, fmt.Errorf("%w: for %d bytes of content it would not have %d bytes", ErrFormat, size, length)
	}
	r.size = int64(size)
	r.rest = meta[offInline:][:min(r.size, inline)]
	r.left = r.size - int64(len(r.rest))
	if n := treeNodes(dataNodes(r.size)); n > 0 {
		r.trees = append(r.trees, slot(meta[offRoot:]))
		r.plain = make([]byte, 0, NodeSize)
		r.tree = make([]byte, 0, NodeSize)
	}
	return r, nil
}

// Size is that of the content in bytes.
func (r *Reader) Size() int64 { return r.size }

// Read reads the content. The error is ErrChanged from the first node on that was changed. After an error, of whatever
// kind, there is only that error.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err == nil && len(r.rest) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		r.err = r.nextNode()
	}
	if r.err != nil {
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// nextNode decrypts the next data node. If it is the first one below a node of the tree, that one is decrypted before;
// its own parent was decrypted earlier.
func (r *Reader) nextNode() (err error) {
	if r.next%perTree == 0 {
		j := r.next / perTree
		if r.tree, err = r.open(r.tree[:0], treeNumber(j), r.trees[j]); err != nil {
			return err
		}
		total := treeNodes(dataNodes(r.size))
		for c := range min(children, max(total-(j*children+1), 0)) {
			r.trees = append(r.trees, slot(r.tree[(perTree+c)*int64(slotSize):]))
		}
	}
	s := slot(r.tree[int(r.next%perTree)*slotSize:])
	if r.plain, err = r.open(r.plain[:0], dataNumber(r.next), s); err != nil {
		return err
	}
	r.next++
	r.rest = r.plain[:min(r.left, NodeSize)]
	r.left -= int64(len(r.rest))
	return nil
}

// open decrypts a node.
func (r *Reader) open(dst []byte, number int64, s slot) ([]byte, error) {
	if err := readAt(r.src, r.node[:NodeSize], number*NodeSize); err != nil {
		return nil, err
	}
	copy(r.node[NodeSize:], s[len(Key{}):])
	plain, err := gcm(Key(s[:len(Key{})])).Open(dst, zeroIV[:], r.node, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: node %d", ErrChanged, number)
	}
	return plain, nil
}

// readAt fills b from an offset.
func readAt(src io.ReaderAt, b []byte, offset int64) error {
	n, err := src.ReadAt(b, offset)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		return fmt.Errorf("%w: it ends early", ErrFormat)
	}
	return fmt.Errorf("reading the encrypted file: %w", err)
}
