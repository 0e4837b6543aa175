// Package protectedfs reads and writes the encrypted files of Gramine, which it also calls protected files: what a
// mount of type "encrypted" holds. A file is bound to its path and to a key of 16 bytes. Without the key its content
// cannot be read, and cannot be changed unnoticed. Its name and its length to the next 4 KiB can be seen, and an older
// version of it can be put in its place.
//
// [Encrypt] writes a file in one pass, [Open] reads one. The package knows nothing of images and manifests.
//
// A file is a sequence of nodes of 4096 bytes (Gramine, common/src/protected_files). Node 0 has the metadata and the
// first 3072 bytes of the content. What is longer is in data nodes, whose keys and tags are in the nodes of a tree, 96
// in each; the first of the tree is node 1, and every one has the keys and tags of up to 32 below it. Every node is
// encrypted with AES-128-GCM, with a key of its own and an IV of zeros.
package protectedfs

import (
	"encoding/binary"
	"errors"
)

// NodeSize is the size of a node in bytes.
const NodeSize = 4096

// MaxPath is how long a path may be, in bytes.
const MaxPath = 771

// Version is that of the format: runtimes before v1.9 read the first only.
type Version int

// Versions of the format.
const (
	Version1 Version = 1 // of Gramine v1.6 to v1.8
	Version2 Version = 2 // of Gramine v1.9, which also reads the first
)

// Key is the wrap key of a file, as it is written to /dev/attestation/keys.
type Key [16]byte

// Errors of files that are not what they should be.
var (
	ErrFormat  = errors.New("not an encrypted file of Gramine, or a damaged one")
	ErrKey     = errors.New("the key is another one, or the file's first node was changed")
	ErrPath    = errors.New("the file was encrypted for another path")
	ErrChanged = errors.New("the file was changed")
)

// Bytes of content in node 0, and entries of a tree's node.
const (
	inline   = 3072
	perTree  = 96 // data nodes
	children = 32 // nodes of the tree
)

const (
	magic    = "GRAFS_PF"
	ivSize   = 12
	tagSize  = 16
	slotSize = len(Key{}) + tagSize
)

// Offsets in node 0: those up to the tag are the same in all versions.
const (
	offVersion = 8
	offNonce   = 10
	offTag     = 42
	nonceSize  = 32
)

// Offsets in the encrypted part of node 0.
const (
	offSize    = 772
	offRoot    = 780
	offInline  = 812
	metaSize   = offInline + inline
	maxContent = 1 << 44 // bytes
)

// metaOffset returns the offset of the encrypted part of node 0: the second version has flags before it.
func (v Version) metaOffset() int {
	if v == Version1 {
		return offTag + tagSize
	}
	return offTag + tagSize + 1
}

// slot is the key and the tag of a node.
type slot [slotSize]byte

// dataNodes returns how many data nodes a content of this size has.
func dataNodes(size int64) int64 {
	if size <= inline {
		return 0
	}
	return (size - inline + NodeSize - 1) / NodeSize
}

// treeNodes returns how many nodes the tree for so many data nodes has.
func treeNodes(data int64) int64 { return (data + perTree - 1) / perTree }

// dataOffset returns the place of data node i in the file, in bytes.
func dataOffset(i int64) int64 { return NodeSize * dataNumber(i) }

// dataNumber is the number of data node i among all nodes.
func dataNumber(i int64) int64 { return 2 + i + i/perTree }

// treeNumber is the number of node j of the tree among all nodes.
func treeNumber(j int64) int64 { return 1 + (1+perTree)*j }

// Length returns the size in bytes of the encrypted file for a content of this size.
func Length(size int64) int64 {
	data := dataNodes(size)
	return NodeSize * (1 + data + treeNodes(data))
}

// CheckLength reports whether an encrypted file can have this size in bytes.
func CheckLength(length int64) bool {
	nodes := length/NodeSize - 1
	if length <= 0 || length%NodeSize != 0 || length > Length(maxContent) {
		return false
	}
	data := nodes - (nodes+perTree)/(perTree+1)
	return data+treeNodes(data) == nodes
}

var le = binary.LittleEndian
