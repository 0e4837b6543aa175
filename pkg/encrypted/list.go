package encrypted

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"

	"github.com/cconvert/cconvert/internal/strictjson"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// List says which files of an image are encrypted. It is measured, so that the enclave's signature covers it. It has
// nothing of their contents, nor a digest of them, but for what must be known to start programs.
type List struct {
	// KeyID is protectedfs.Key.ID of the key, and Key its name in the library OS's manifest.
	KeyID string `json:"key_id"`
	Key   string `json:"key"`
	// Version is that of the format.
	Version protectedfs.Version `json:"version"`
	// Random says that encrypting the same files again makes other ciphertexts.
	Random bool   `json:"random,omitempty"`
	Files  []File `json:"files"` // sorted by path
}

// File is an encrypted file.
type File struct {
	Path string `json:"path"`
	// Size and SHA256 (in hexadecimal) are those of the ciphertext.
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// Head is the SHA-256, in hexadecimal, of the first node, which authenticates the others under the key. It is empty
	// if the program may change the file.
	Head string `json:"head,omitempty"`
	// Interpreter is what follows "#!" in a script, and ELF what a program or library is linked to.
	Interpreter string     `json:"interpreter,omitempty"`
	ELF         *elf.Facts `json:"elf,omitempty"`
}

// Published are the facts of a program that a list has: without what identifies it, such as an enclave's measurement.
func Published(f *elf.Facts) *elf.Facts {
	if f == nil {
		return nil
	}
	out := *f
	out.SigStructs = nil
	return &out
}

// ErrList says that a list of encrypted files is damaged, or is not that of an image.
var ErrList = errors.New("the list of encrypted files is not that of the image")

// Bounds of a list, which anybody may have written.
const (
	maxList      = 64 << 20 // bytes
	maxListItems = 1_000_000
	maxListKeys  = 16_000_000
)

var keyID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// KeyName is what the name of a key in a manifest looks like. Those with "_" before are the CPU's.
var KeyName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// Marshal writes the list: the same one always in the same way.
func (l *List) Marshal() ([]byte, error) {
	text, err := json.MarshalIndent(l, "", " ")
	return append(text, '\n'), err
}

// ParseList reads a list.
func ParseList(text []byte) (*List, error) {
	if len(text) > maxList {
		return nil, fmt.Errorf("%w: it has %d bytes, more than %d", ErrList, len(text), maxList)
	}
	rules := strictjson.Rules{MaxList: maxListItems, MaxKeys: maxListKeys}
	if err := strictjson.Check(text, rules); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrList, err)
	}
	var l List
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrList, err)
	}
	if !keyID.MatchString(l.KeyID) || !KeyName.MatchString(l.Key) ||
		l.Version != protectedfs.Version1 && l.Version != protectedfs.Version2 {
		return nil, fmt.Errorf("%w: its key or its version cannot be one", ErrList)
	}
	for i, f := range l.Files {
		switch {
		case !isSum(f.SHA256) || f.Head != "" && !isSum(f.Head) || !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path:
			return nil, fmt.Errorf("%w: the entry of %q cannot be one", ErrList, f.Path)
		case !protectedfs.CheckLength(f.Size):
			return nil, fmt.Errorf("%w: no encrypted file has %d bytes, as it says of %s", ErrList, f.Size, f.Path)
		case i > 0 && l.Files[i-1].Path >= f.Path:
			return nil, fmt.Errorf("%w: it is not sorted at %s", ErrList, f.Path)
		}
	}
	return &l, nil
}

func isSum(text string) bool {
	sum, err := hex.DecodeString(text)
	return err == nil && len(sum) == sha256.Size
}

// Find returns the entry of a path; nil if the file is not encrypted.
func (l *List) Find(p string) *File {
	i, ok := slices.BinarySearchFunc(l.Files, p, func(f File, p string) int {
		switch {
		case f.Path < p:
			return -1
		case f.Path > p:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return &l.Files[i]
}

// Mutable reports whether the program may change a file.
func (l *List) Mutable(p string) bool {
	f := l.Find(p)
	return f != nil && f.Head == ""
}

// Bytes is the size of all ciphertexts.
func (l *List) Bytes() (n int64) {
	for _, f := range l.Files {
		n += f.Size
	}
	return n
}

// Paths are those of the files.
func (l *List) Paths() []string {
	paths := make([]string, len(l.Files))
	for i, f := range l.Files {
		paths[i] = f.Path
	}
	return paths
}

// Describe returns the index of the layer with the ciphertexts, with what the list says of the files in it. It must be
// the layer of the list: it has these files and nothing else but directories.
func (l *List) Describe(index *rootfs.Index) (*rootfs.Index, error) {
	out := *index
	out.Entries = slices.Clone(index.Entries)
	seen := map[string]bool{}
	for i := range out.Entries {
		e := &out.Entries[i]
		if e.Type == rootfs.Dir {
			continue
		}
		f := l.Find(e.Path)
		switch {
		case seen[e.Path]:
			return nil, fmt.Errorf("%w: the layer for encrypted files has %s twice", ErrList, e.Path)
		case e.Type != rootfs.Regular || f == nil:
			return nil, fmt.Errorf("%w: the layer for encrypted files has %s, which the list does not", ErrList, e.Path)
		case e.Size != f.Size || hex.EncodeToString(e.SHA256[:]) != f.SHA256:
			return nil, fmt.Errorf("%w: %s has %d bytes and the digest %x, the list says %d and %s", ErrList, e.Path,
				e.Size, e.SHA256, f.Size, f.SHA256)
		}
		e.Content, e.Shebang, e.ELF = nil, f.Interpreter, f.ELF
		seen[e.Path] = true
	}
	if len(seen) != len(l.Files) {
		return nil, fmt.Errorf("%w: the layer for encrypted files has %d of %d", ErrList, len(seen), len(l.Files))
	}
	return &out, nil
}

// CheckLayer returns in what the layer with the ciphertexts differs from one that a Writer makes: it may change nothing
// of the layers below it. Its files belong to the program, by uid and gid, and its directories are those above them, as
// they are below.
func (l *List) CheckLayer(index *rootfs.Index, below *rootfs.Tree, uid, gid int) (problems []string) {
	wrong := func(e *rootfs.Entry, format string, args ...any) {
		problems = append(problems,
			fmt.Sprintf("the layer for encrypted files: %q ", e.Path)+fmt.Sprintf(format, args...))
	}
	above := map[string]bool{}
	for _, f := range l.Files {
		for dir := path.Dir(f.Path); dir != "/" && !above[dir]; dir = path.Dir(dir) {
			above[dir] = true
		}
	}
	for i := range index.Entries {
		e := &index.Entries[i]
		if e.Attributes != "" {
			wrong(e, "has extended attributes")
		}
		if e.Type != rootfs.Dir {
			if e.UID != uid || e.GID != gid || e.Mode&0o600 != 0o600 {
				wrong(e, "has the mode %o and belongs to %d:%d, not to %d:%d who must be able to write to it", e.Mode,
					e.UID, e.GID, uid, gid)
			}
			continue
		}
		n := below.Lookup(e.Path)
		switch {
		case !above[e.Path]:
			wrong(e, "is no directory of an encrypted file")
		case n == nil && (e.Mode != impliedMode || e.UID != 0 || e.GID != 0):
			wrong(e, "is a new directory with the mode %o, of %d:%d", e.Mode, e.UID, e.GID)
		case n != nil && n.Type != rootfs.Dir:
			wrong(e, "takes the place of what is no directory")
		case n != nil && (n.Mode != e.Mode || n.UID != e.UID || n.GID != e.GID):
			wrong(e, "has the mode %o and belongs to %d:%d, below it has %o and belongs to %d:%d", e.Mode, e.UID, e.GID,
				n.Mode, n.UID, n.GID)
		}
	}
	return problems
}

// impliedMode is that of directories of which only the paths of files speak.
const impliedMode = 0o755
