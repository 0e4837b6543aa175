// Package inflate decompresses layers: plain ones, gzip and zstd, in this process or by a faster program.
package inflate

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const maxZstdWindow = 128 << 20 // what containerd's and Docker's decoder accept too

// smallBlob is so little that it is inflated sooner than a program has started.
const smallBlob = 256 << 10

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	// Frames that a zstd decoder skips; estargz-like writers put them first (RFC 8878, 3.1.2).
	zstdSkippable = []byte{0x2a, 0x4d, 0x18}
)

// ErrCompression says that a layer is compressed in a way that no container engine reads (OCI image specification,
// "Image Layer Filesystem Changeset").
var ErrCompression = errors.New("the layer is compressed in a way that images must not be")

// maxMagic is how many bytes the longest of foreignMagic has.
const maxMagic = 8

var foreignMagic = map[string]string{
	"xz": "\xfd7zXZ\x00", "bzip2": "BZh", "LZMA": "\x5d\x00\x00", "lzip": "LZIP", "lzop": "\x89LZO", "lrzip": "LRZI",
	"LZ4": "\x04\x22\x4d\x18", "LZ4 (legacy)": "\x02\x21\x4c\x18", "Snappy": "\xff\x06\x00\x00sNaP",
	"Brotli":   "\xce\xb2\xcf\x81",
	"compress": "\x1f\x9d", "compress (LZH)": "\x1f\xa0", "pack": "\x1f\x1e",
	"zip": "PK\x03\x04", "7-Zip": "7z\xbc\xaf\x27\x1c", "RAR": "Rar!", "xar": "xar!",
}

// ErrInflater says that the program that inflates failed, which says nothing of the layer.
var ErrInflater = errors.New("inflating failed")

// Inflater inflates gzip: in this process, which is the zero value, or by a program.
type Inflater struct{ name, path string }

// Find finds what inflates gzip: "go" is this process, "igzip" (of Intel's ISA-L) is a program, and "auto" is
// igzip where it is installed. It is at least twice as fast. pigz inflates more than gzip, and so another layer.
func Find(name string) (Inflater, error) {
	switch name {
	case "go":
		return Inflater{}, nil
	case "auto":
		if path, err := exec.LookPath("igzip"); err == nil {
			return Inflater{"igzip", path}, nil
		}
		return Inflater{}, nil
	case "igzip":
		path, err := exec.LookPath(name)
		return Inflater{name, path}, err
	}
	return Inflater{}, fmt.Errorf("there is no inflater %q", name)
}

// InProcess reports whether no program is used.
func (i Inflater) InProcess() bool { return i.path == "" }

// Decompress returns the plain bytes of a blob, which may be compressed with gzip or zstd.
func Decompress(ctx context.Context, blob io.Reader) (io.ReadCloser, error) {
	return Inflater{}.Open(ctx, blob)
}

// IsCompressed reports whether Decompress would inflate a blob, by its first bytes.
func IsCompressed(r *bufio.Reader) bool {
	magic, _ := r.Peek(len(zstdMagic))
	return bytes.HasPrefix(magic, gzipMagic) || isZstd(magic)
}

// tarBlock is the size of a tar file's header.
const tarBlock = 512

// CheckPlain refuses what begins as a file that is compressed in a way that is not known here: others may know it.
func CheckPlain(r *bufio.Reader) error {
	magic, _ := r.Peek(maxMagic)
	for name, begin := range foreignMagic {
		if bytes.HasPrefix(magic, []byte(begin)) {
			return fmt.Errorf("%w: %s", ErrCompression, name)
		}
	}
	return nil
}

// CheckPolyglot refuses what is a compressed file to some and a plain tar file to others, whose first entry has a name
// that begins as one: engines know different kinds of compression. The file must be known to be a compressed one.
func CheckPolyglot(r *bufio.Reader) error {
	head, _ := r.Peek(tarBlock)
	if len(head) < tarBlock {
		return nil
	}
	var unsigned, signed int64
	for i, b := range head {
		if i >= 148 && i < 156 { // the checksum itself counts as blanks (POSIX, "ustar Interchange Format")
			b = ' '
		}
		unsigned, signed = unsigned+int64(b), signed+int64(int8(b))
	}
	for _, said := range checksums(head[148:156]) {
		if said == unsigned || said == signed {
			return fmt.Errorf("%w: it is a plain archive as well", ErrCompression)
		}
	}
	return nil
}

// checksums are all that readers of tar may take a header's field for: octal digits that begin behind blanks and NULs
// and end before whatever else, or a binary number (GNU tar, "Extensions to the Archive Format").
func checksums(field []byte) (list []int64) {
	binary := int64(field[0] & 0x3f)
	for _, b := range field[1:] {
		binary = binary<<8 | int64(b)
	}
	list = append(list, binary)
	for i := range field {
		if strings.Trim(string(field[:i]), " \x00") != "" {
			break
		}
		number := int64(-1)
		for _, b := range field[i:] {
			if b < '0' || b > '7' {
				break
			}
			number = max(number, 0)<<3 | int64(b-'0')
		}
		if number >= 0 { // without digits it is no number, which the sum of a compressed file's bytes can well be
			list = append(list, number)
		}
	}
	return list
}

func isZstd(magic []byte) bool {
	return bytes.HasPrefix(magic, zstdMagic) ||
		len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], zstdSkippable)
}

// Open returns the plain bytes of a blob whose compression shows in its first bytes. They are made
// ahead of the reader, on another processor.
func (i Inflater) Open(ctx context.Context, blob io.Reader) (io.ReadCloser, error) {
	r := bufio.NewReaderSize(blob, smallBlob)
	magic, err := r.Peek(maxMagic)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if IsCompressed(r) {
		if err := CheckPolyglot(r); err != nil {
			return nil, err
		}
	}
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		if _, err := r.Peek(smallBlob); err == nil && !i.InProcess() {
			return i.start(ctx, r)
		}
		z, err := newMembers(r)
		if err != nil {
			return nil, fmt.Errorf("inflating: %w", err)
		}
		return ReadAhead(z), nil
	case isZstd(magic):
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("inflating: %w", err)
		}
		return ReadAhead(z.IOReadCloser()), nil
	}
	if err := CheckPlain(r); err != nil {
		return nil, err
	}
	return io.NopCloser(r), nil
}

// members inflates the members of a gzip file (RFC 1952, 2.2). Builders pad blobs with NUL bytes, which programs that
// inflate pass over. Anything else after the last member is ErrCompression: pigz, which Docker uses where it is
// installed, goes on with a zlib stream or a ZIP archive there, others stop.
type members struct {
	in *bufio.Reader
	z  *gzip.Reader
}

func newMembers(in *bufio.Reader) (*members, error) {
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return &members{in, z}, nil
}

func (m *members) Read(p []byte) (int, error) {
	for {
		n, err := m.z.Read(p)
		if n > 0 || !errors.Is(err, io.EOF) {
			if errors.Is(err, io.EOF) {
				err = nil // it comes again
			}
			return n, err
		}
		next, err := m.in.Peek(len(gzipMagic))
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if !bytes.Equal(next, gzipMagic) {
			return 0, m.padding()
		}
		if err := m.z.Reset(m.in); err != nil {
			return 0, err
		}
		m.z.Multistream(false)
	}
}

// padding reads what follows the last member. The error is io.EOF if that is nothing, or padding.
func (m *members) padding() error {
	for {
		b, err := m.in.ReadByte()
		if err != nil {
			return err
		}
		if b != 0 {
			return fmt.Errorf("%w: something follows the last member of gzip", ErrCompression)
		}
	}
}

// ByProgram reports whether what a reader of this package returns comes from a program.
func ByProgram(r io.ReadCloser) bool {
	_, ok := r.(*program)
	return ok
}

// program is a running program that inflates. What it writes has passed a checksum only once it has
// ended well, so the end is told only then.
type program struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	last   []byte // what a member that is added to the blob inflates to
	stderr firstBytes
	fed    chan struct{} // closed when nothing reads the blob any more
	ended  bool
}

// lastSize is how many random bytes the member has that is added to a blob for a program. A program that stops before,
// such as at what follows a gzip file, does not come to it.
const lastSize = 32

// start runs the program. It gets nothing but three pipes.
func (i Inflater) start(ctx context.Context, blob io.Reader) (io.ReadCloser, error) {
	p := &program{cmd: exec.CommandContext(ctx, i.path, "-dc"), last: make([]byte, lastSize), fed: make(chan struct{})}
	_, _ = rand.Read(p.last) // never fails
	var member bytes.Buffer
	z := gzip.NewWriter(&member)
	if _, err := z.Write(p.last); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	p.cmd.Env, p.cmd.Dir, p.cmd.Stderr = []string{}, "/", &p.stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	enlarge(out)
	p.out = bufio.NewReaderSize(out, 256<<10)
	// A child of its own may hold the pipes when the program is gone.
	p.cmd.WaitDelay = time.Second
	p.cmd.Cancel = func() error {
		out.Close()
		return p.cmd.Process.Kill()
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInflater, err)
	}
	go func() {
		defer close(p.fed)
		defer in.Close()
		// Whoever reads the blob next meets its error, and the program's is told.
		if _, err := io.Copy(in, blob); err == nil {
			_, _ = in.Write(member.Bytes())
		}
	}()
	return p, nil
}

func (p *program) Read(b []byte) (int, error) {
	if p.ended {
		return 0, io.EOF
	}
	if p.out.Buffered() <= lastSize {
		if _, err := p.out.Peek(lastSize + 1); err != nil {
			return 0, p.end(err)
		}
	}
	return p.out.Read(b[:min(len(b), p.out.Buffered()-lastSize)])
}

// end is called if no more than the last bytes are left, because of an error. It returns io.EOF if all was inflated.
func (p *program) end(err error) error {
	left, _ := p.out.Peek(p.out.Buffered())
	complete := bytes.Equal(left, p.last)
	p.ended = true
	if failed := p.wait(); failed != nil {
		return fmt.Errorf("%w: %s: %w: %q", ErrInflater, p.cmd.Path, failed, p.stderr)
	}
	if errors.Is(err, io.EOF) && !complete {
		return fmt.Errorf("%w: %s did not come to the end", ErrInflater, p.cmd.Path)
	}
	return err
}

// Close ends the program and waits until nothing reads the blob any more.
func (p *program) Close() error {
	if !p.ended {
		p.ended = true
		_ = p.cmd.Cancel()
		_ = p.wait() // that it was killed is no news
	}
	return nil
}

func (p *program) wait() error {
	err := p.cmd.Wait() // closes the pipe that is fed
	<-p.fed
	return err
}

// firstBytes keeps what was written first.
type firstBytes []byte

func (f *firstBytes) Write(b []byte) (int, error) {
	*f = append(*f, b[:min(len(b), 256-len(*f))]...)
	return len(b), nil
}
