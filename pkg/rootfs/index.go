// Package rootfs reads the filesystem of a container image without ever writing it to disk.
//
// [Scan] reads one layer as a stream, once, and keeps what later steps need in an [Index]: every entry
// with its digest and facts about programs, and the content of a few chosen files. [Merge] lays the
// layers' indexes over each other by the rules of the OCI image specification ("Image Layer Filesystem
// Changeset") into a [Tree], in which paths and symbolic links resolve as they would in a container.
//
// Every layer is hostile input: sizes are bounded and no name from a layer is used as a path on disk.
package rootfs

import (
	"crypto/sha256"

	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// Type is the kind of a directory entry.
type Type uint8

// Kinds of entries. Whiteout and Opaque exist in an Index only, not in a Tree.
const (
	Regular Type = iota
	Dir
	Symlink
	Hardlink
	CharDevice
	BlockDevice
	FIFO
	Whiteout // the entry of this path in lower layers is gone
	Opaque   // what lower layers have in this directory is gone
)

// Entry is one file, directory or other entry of a layer.
type Entry struct {
	// Path is absolute and clean, as in "/etc/passwd". It may hold any byte but NUL.
	Path string
	Type Type
	// Mode holds the permission bits, with set-uid 04000, set-gid 02000 and sticky 01000.
	Mode     uint32
	UID, GID int
	// Size in bytes of a regular file.
	Size int64
	// SHA256 of a regular file's content.
	SHA256 [sha256.Size]byte
	// Link is a symbolic link's target as written, or the absolute path of a hard link's target.
	Link string
	// Attributes is the digest of an entry's extended attributes and device numbers; empty if it has none.
	Attributes string
	// ELF holds facts about a program or shared object, nil for other files.
	ELF *elf.Facts
	// Shebang is the first line of a script, without "#!" and the newline.
	Shebang string
	// Content of the files that the scan was asked to keep, and up to 64 KiB of shell scripts and of lists of users and
	// groups. Nil if it is too large.
	Content []byte
}

// Index is what there is to know of a layer.
type Index struct {
	// Digest of the blob that was read, as in "sha256:…".
	Digest string
	// DiffID is the digest of the archive in it (OCI image specification, "Layer DiffID"); empty unless Scan
	// was asked for it. It is not encoded.
	DiffID  string
	Entries []Entry
}
