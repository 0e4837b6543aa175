package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
)

// maxHeader is how many bytes of an archive the headers of one entry may have, and a map of its holes.
const maxHeader = 16 << 20

// Cut decides on entry k of a layer, in the order of its Index: nil keeps it, and of an entry that is left out the
// function is shown the content.
type Cut func(k int, e *Entry, modified time.Time) (show func(content io.Reader) error)

// Rewrite writes the archive of a layer without some of its entries. What is kept stays byte for byte as it was, its
// headers too. A blob that is not the one that its digest names is an error.
func Rewrite(ctx context.Context, blob io.Reader, digest string, o Options, out io.Writer, cut Cut) error {
	return checked(ctx, blob, digest, func(blob io.Reader) error {
		r, err := o.Inflate.Open(ctx, blob)
		if err != nil {
			return err
		}
		defer r.Close()
		limits := o.Limits.defaults()
		in := &endNoter{Reader: r, left: limits.LayerBytes + int64(limits.Files)<<10}
		c := &cutter{in: in, out: out}
		archive := tar.NewReader(c)
		for k := 0; ; {
			c.undecided = true
			c.padding = int(-c.offset & (blockSize - 1))
			h, err := archive.Next()
			if errors.Is(err, io.EOF) {
				if inflate.ByProgram(r) && in.ended {
					return fmt.Errorf("%w: the archive ends early", inflate.ErrInflater)
				}
				if err := c.decide(true); err != nil {
					return err
				}
				c.out = &zeros{out: out}
				_, err := io.Copy(io.Discard, c)
				return err
			}
			if err != nil {
				return fmt.Errorf("reading the archive: %w", err)
			}
			e, err := entryOf(h)
			if err != nil {
				return err
			}
			var show func(io.Reader) error
			if e != nil {
				show = cut(k, e, h.ModTime)
				k++
			}
			if err := c.decide(show == nil); err != nil {
				return err
			}
			if show != nil && e.Type == Regular {
				if err := show(archive); err != nil {
					return fmt.Errorf("%q: %w", e.Path, err)
				}
			}
			if _, err := io.Copy(io.Discard, archive); err != nil { // so that headers follow
				return fmt.Errorf("reading %q: %w", h.Name, err)
			}
		}
	})
}

// blockSize is that of an archive's blocks (pax, "ustar Interchange Format").
const blockSize = 512

// cutter passes on what is read through it, but for the entries that are left out. The headers of an entry are kept
// until it is decided on.
type cutter struct {
	in        io.Reader
	out       io.Writer
	offset    int64
	leaveOut  bool // the entry that is being read
	padding   int  // bytes up to the next block, which are that entry's
	undecided bool
	headers   []byte
}

func (c *cutter) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.offset += int64(n)
	b := p[:n]
	if c.undecided {
		own := min(c.padding, n)
		c.padding -= own
		c.headers = append(c.headers, b[own:]...)
		if b = b[:own]; len(c.headers) > maxHeader {
			return n, fmt.Errorf("the headers of an entry have more than %d bytes", maxHeader)
		}
	}
	if c.leaveOut || len(b) == 0 {
		return n, err
	}
	if _, err := c.out.Write(b); err != nil {
		return n, err
	}
	return n, err
}

// zeros passes on what fills the last record of an archive, up to the first byte that is not zero: nothing says what
// follows the end.
type zeros struct {
	out   io.Writer
	ended bool
}

func (z *zeros) Write(b []byte) (int, error) {
	n := len(b) - len(bytes.TrimLeft(b, "\x00"))
	if z.ended = z.ended || n < len(b); z.ended {
		return len(b), nil
	}
	return z.out.Write(b)
}

// decide passes on what was kept, and the rest of the entry, or leaves it out.
func (c *cutter) decide(keep bool) error {
	var err error
	if keep {
		_, err = c.out.Write(c.headers)
	}
	c.headers, c.undecided, c.leaveOut = c.headers[:0], false, !keep
	return err
}
