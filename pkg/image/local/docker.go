package local

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/client"

	"github.com/cconvert/cconvert/pkg/image"
)

func writeArchive(ctx context.Context, ref image.Reference, img *image.Output) error {
	tag, err := archiveName(ref)
	if err != nil {
		return err
	}
	return writeAtomically(ctx, ref.Path, func(w io.Writer) error { return tarball.Write(tag, img.Image(), w) })
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
func openDaemon(ctx context.Context, ref image.Reference) (*image.Image, error) {
	c, err := dockerClient(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	named := ref.Inside
	if ref.Name != nil {
		named = ref.Name.Name() // with its tag: Docker saves all tags of a name without one
	}
	if _, err := c.ImageInspect(ctx, named); err != nil {
		if errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("%w in Docker", image.ErrNotFound)
		}
		return nil, err
	}
	saved, err := c.ImageSave(ctx, []string{named})
	if err != nil {
		return nil, err
	}
	defer saved.Close()
	f, err := spool(ctx, saved, maxArchiveBytes)
	if err != nil {
		return nil, fmt.Errorf("saving the image: %w", err)
	}
	a, err := listTar(ctx, f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("saving the image: %w", err)
	}
	return a.image(ctx, ref)
}

// maxSaidByDaemon is how much of a daemon's answer is read, in bytes.
const maxSaidByDaemon = 4 << 20

func writeDaemon(ctx context.Context, ref image.Reference, img *image.Output) error {
	tag, ok := ref.Name.(name.Tag)
	if !ok {
		return fmt.Errorf("%s is a digest or an ID: a name with a tag is needed", ref)
	}
	c, err := dockerClient(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	r, w := io.Pipe()
	go func() { w.CloseWithError(tarball.Write(tag, img.Image(), &contextWriter{ctx, w})) }()
	defer r.Close()
	resp, err := c.ImageLoad(ctx, r, client.ImageLoadWithQuiet(true))
	if err != nil {
		return fmt.Errorf("loading the image: %w", err)
	}
	defer resp.Close()
	answer, err := io.ReadAll(io.LimitReader(resp, maxSaidByDaemon))
	if err != nil {
		return fmt.Errorf("loading the image: %w", err)
	}
	// The daemon answers 200 and reports failures in the stream.
	if strings.Contains(string(answer), `"error"`) {
		return fmt.Errorf("loading the image: the daemon says %s", strings.TrimSpace(string(answer)))
	}
	return nil
}
