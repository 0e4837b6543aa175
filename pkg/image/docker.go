package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/client"
)

// openArchive reads a file of "docker save".
func openArchive(ctx context.Context, ref Reference) (*Image, error) {
	f, err := os.Open(ref.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	return openSaved(ctx, ref, f)
}

// openSaved reads an archive; the image keeps the file open.
func openSaved(ctx context.Context, ref Reference, f *os.File) (*Image, error) {
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	opener := func() (io.ReadCloser, error) { return sectionFile{ctx, io.NewSectionReader(f, 0, info.Size())}, nil }
	var tag *name.Tag
	if t, ok := ref.Name.(name.Tag); ok && ref.Transport == DockerArchive {
		tag = &t
	}
	layers, err := checkArchive(opener, tag, ref)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("reading the archive: %w", err)
	}
	img, err := tarball.Image(opener, tag)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("reading the archive: %w", err)
	}
	out, err := fromArchive(ref, img)
	if err == nil && len(out.Layers) != layers {
		err = fmt.Errorf("the archive lists %d layers, the configuration %d", layers, len(out.Layers))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	out.close = f.Close
	return out, nil
}

const maxArchiveEntries = 100_000

// checkArchive makes sure that what is read whole is small, and that it is clear which image is meant.
// It gives the number of layers that the archive lists for it.
func checkArchive(opener tarball.Opener, tag *name.Tag, ref Reference) (layers int, err error) {
	sizes, err := archiveSizes(opener)
	if err != nil {
		return 0, err
	}
	if size := sizes["manifest.json"]; size > maxConfig {
		return 0, fmt.Errorf("its manifest.json has %d bytes, more than %d", size, maxConfig)
	}
	m, err := tarball.LoadManifest(opener)
	if err != nil {
		return 0, err
	}
	var tags []string
	for _, d := range m {
		if size := sizes[d.Config]; size > maxConfig {
			return 0, fmt.Errorf("the configuration %q has %d bytes, more than %d", d.Config, size, maxConfig)
		}
		tags = append(tags, d.RepoTags...)
		if tag != nil && slices.ContainsFunc(d.RepoTags, func(s string) bool {
			t, err := name.NewTag(s)
			return err == nil && t.Name() == tag.Name()
		}) {
			return len(d.Layers), nil
		}
	}
	if len(m) == 1 && tag == nil {
		return len(m[0].Layers), nil
	}
	return 0, fmt.Errorf("%w: name one of %q as docker-archive:%s:NAME", ErrNotFound, tags, ref.Path)
}

func archiveSizes(opener tarball.Opener) (map[string]int64, error) {
	r, err := opener()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	sizes := map[string]int64{}
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return sizes, nil
		}
		if err != nil {
			return nil, err
		}
		if len(sizes) == maxArchiveEntries {
			return nil, fmt.Errorf("it has more than %d entries", maxArchiveEntries)
		}
		sizes[h.Name] = h.Size
	}
}

// sectionFile reads a part of a file until the context ends.
type sectionFile struct {
	ctx context.Context
	*io.SectionReader
}

func (s sectionFile) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.SectionReader.Read(p)
}

func (sectionFile) Close() error { return nil }

func fromArchive(ref Reference, img v1.Image) (*Image, error) {
	id, err := img.ConfigName()
	if err != nil {
		return nil, fmt.Errorf("reading the archive: %w", err)
	}
	out := &Image{Ref: ref, Digest: id.String(), manifest: img.RawManifest}
	if out.Config, err = img.RawConfigFile(); err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if out.mediaType, err = img.MediaType(); err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		// In an archive only the plain layer has a digest that is written down.
		id, err := l.DiffID()
		if err != nil {
			return nil, err
		}
		out.Layers = append(out.Layers, &Layer{
			Digest: id.String(), Size: -1, push: l,
			Open: func(context.Context) (io.ReadCloser, error) { return l.Uncompressed() },
		})
	}
	return out, nil
}

func writeArchive(ctx context.Context, ref Reference, img *Output) error {
	tag, err := archiveName(ref)
	if err != nil {
		return err
	}
	return writeAtomically(ctx, ref.Path, func(w io.Writer) error { return tarball.Write(tag, output{img}, w) })
}

func dockerClient(ctx context.Context) (*client.Client, error) {
	c, err := client.New(client.FromEnv)
	if err != nil {
		return nil, fmt.Errorf("finding the Docker daemon: %w", err)
	}
	if _, err := c.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true}); err != nil {
		c.Close()
		return nil, fmt.Errorf("talking to the Docker daemon: %w", err)
	}
	return c, nil
}

// openDaemon saves the daemon's image into an unnamed temporary file: a saved image cannot be read in
// the order in which it comes.
func openDaemon(ctx context.Context, ref Reference) (*Image, error) {
	c, err := dockerClient(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.ImageInspect(ctx, ref.Name.Name()); err != nil {
		if strings.Contains(err.Error(), "No such image") {
			return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		return nil, err
	}
	saved, err := c.ImageSave(ctx, []string{ref.Name.Name()})
	if err != nil {
		return nil, err
	}
	defer saved.Close()
	f, err := os.CreateTemp("", "cconvert-")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name())
	if _, err := io.Copy(&contextWriter{ctx, f}, saved); err != nil {
		f.Close()
		return nil, fmt.Errorf("saving the image: %w", err)
	}
	return openSaved(ctx, ref, f)
}

func writeDaemon(ctx context.Context, ref Reference, img *Output) error {
	tag, ok := ref.Name.(name.Tag)
	if !ok {
		return fmt.Errorf("%s is a digest: a tag is needed", ref.Name)
	}
	c, err := dockerClient(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	r, w := io.Pipe()
	go func() { w.CloseWithError(tarball.Write(tag, output{img}, &contextWriter{ctx, w})) }()
	defer r.Close()
	resp, err := c.ImageLoad(ctx, r, client.ImageLoadWithQuiet(true))
	if err != nil {
		return fmt.Errorf("loading the image: %w", err)
	}
	defer resp.Close()
	answer, err := io.ReadAll(io.LimitReader(resp, maxAnswer))
	if err != nil {
		return fmt.Errorf("loading the image: %w", err)
	}
	// The daemon answers 200 and reports failures in the stream.
	if strings.Contains(string(answer), `"error"`) {
		return fmt.Errorf("loading the image: the daemon says %s", strings.TrimSpace(string(answer)))
	}
	return nil
}
