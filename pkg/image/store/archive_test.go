package store_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// Archives come compressed as a whole, with links, with several images that have no name, and as layouts.
func TestFormsOfArchives(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	layer := string(fixture.Tar(t, fixture.File("a", "1")))
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := io.WriteString(z, layer)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	config := func(env string) string {
		return fmt.Sprintf(
			`{"os":"linux","architecture":"amd64","config":{"Env":["A=%s"]},
				"rootfs":{"type":"layers","diff_ids":[%q]}}`, env, digest([]byte(layer)))
	}
	saved := fixture.Tar(t,
		fixture.File("manifest.json",
			`[{"Config":"c1.json","RepoTags":null,"Layers":["l1/layer.tar"]},
				{"Config":"c2.json","RepoTags":["app:2"],"Layers":["l2/layer.tar"]},
				{"Config":"./c3.json","Layers":["l3/layer.tar"]}]`),
		fixture.File("c1.json", config("1")), fixture.File("c2.json", config("2")),
		fixture.File("c3.json", config("3")),
		fixture.File("l1/layer.tar", layer), fixture.Symlink("l2/layer.tar", "../l1/layer.tar"),
		fixture.File("l3/layer.tar", packed.String()))
	dir := t.TempDir()
	pack := func(name string, writer func(io.Writer) (io.WriteCloser, error)) string {
		file := filepath.Join(dir, name)
		var b bytes.Buffer
		w, err := writer(&b)
		require.NoError(t, err)
		_, err = w.Write(saved)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		require.NoError(t, os.WriteFile(file, b.Bytes(), 0o600))
		return file
	}
	files := []string{
		filepath.Join(dir, "plain.tar"),
		pack("a.tar.gz", func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }),
		pack("a.tar.xz", func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }),
		pack("a.tar.zst", func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
	}
	require.NoError(t, os.WriteFile(files[0], saved, 0o600))
	for _, file := range files {
		for inside, env := range map[string]string{
			"@0": "1", "@1": "2", "@2": "3", "app:2": "2", digest([]byte(config("3"))): "3",
		} {
			img, err := store.Open(context.Background(), parse(t, "docker-archive:"+file+":"+inside), quick)
			require.NoError(t, err, "%s %s", file, inside)
			assert.Equal(t, config(env), string(img.Config))
			r, err := img.Layers[0].Open(context.Background())
			require.NoError(t, err)
			b, err := io.ReadAll(r)
			require.NoError(t, err)
			assert.Equal(t, layer, string(b), "%s %s", file, inside)
			require.NoError(t, img.Close())
		}
		for _, inside := range []string{"", ":@3", ":app:3", ":sha256:" + strings.Repeat("0", 64)} {
			_, err := store.Open(context.Background(), parse(t, "docker-archive:"+file+inside), quick)
			assert.ErrorIs(t, err, image.ErrNotFound, inside)
			assert.ErrorContains(t, err, "@2")
		}
	}
	entries, err := os.ReadDir(os.TempDir())
	require.NoError(t, err)
	for _, e := range entries {
		assert.False(t, strings.HasPrefix(e.Name(), "cconvert-") && !e.IsDir(), "%s is left", e.Name())
	}

	// As skopeo writes it, a layout in one file; also compressed.
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	out, err := extend(context.Background(), t, from, "oci-archive:"+dir+"/oci.tar:v1", quick)
	require.NoError(t, err)
	saved, err = os.ReadFile(dir + "/oci.tar")
	require.NoError(t, err)
	for _, file := range []string{dir + "/oci.tar", pack("oci.tar.gz", func(w io.Writer) (io.WriteCloser, error) {
		return gzip.NewWriter(w), nil
	})} {
		for _, tag := range []string{"", ":v1", "@" + out.Digest} {
			img, err := store.Open(context.Background(), parse(t, "oci-archive:"+file+tag), quick)
			require.NoError(t, err)
			assert.Equal(t, out.Digest, img.Digest)
			for _, l := range img.Layers {
				r, err := l.Open(context.Background())
				require.NoError(t, err)
				b, err := io.ReadAll(r)
				require.NoError(t, err)
				assert.Equal(t, l.Digest, digest(b))
			}
			require.NoError(t, img.Close())
		}
		_, err = store.Open(context.Background(), parse(t, "oci-archive:"+file+":v2"), quick)
		assert.ErrorIs(t, err, image.ErrNotFound)
		_, err = store.Open(context.Background(), parse(t, "docker-archive:"+file), quick)
		assert.ErrorContains(t, err, "to be named oci-archive:")
	}
	_, err = store.Open(context.Background(), parse(t, "oci-archive:"+files[0]), quick)
	assert.ErrorIs(t, err, image.ErrNotFound)
}

// What an archive says of where a layer is does not count if the layer is there: what was read is sent.
func TestLayerSourcesOfAnArchive(t *testing.T) {
	ctx, reg := context.Background(), fixture.NewRegistry(t)
	layer := string(fixture.Tar(t, fixture.File("a", "read")))
	id := digest([]byte(layer))
	config := fmt.Sprintf(
		`{"os":"linux","architecture":"amd64","config":{"Cmd":["/a"]},"rootfs":{"type":"layers","diff_ids":[%q]}}`, id)
	other := fixture.Layer(t, fixture.File("a", "another"))
	otherDigest, err := other.Digest()
	require.NoError(t, err)
	size, err := other.Size()
	require.NoError(t, err)
	reg.Push(t, "dst:other", fixture.Image(t, v1.Config{Cmd: []string{"/a"}}, other))
	file := filepath.Join(t.TempDir(), "a.tar")
	list := fmt.Sprintf(
		`[{"Config":"c.json","RepoTags":["app:1"],"Layers":["l.tar"],
		"LayerSources":{%q:{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":%d,"digest":%q}}}]`,
		id, size, otherDigest)
	require.NoError(t, os.WriteFile(file, fixture.Tar(t, fixture.File("manifest.json", list),
		fixture.File("c.json", config), fixture.File("l.tar", layer)), 0o600))
	_, err = extend(ctx, t, "docker-archive:"+file+":app:1", reg.Host+"/dst:1", quick)
	require.NoError(t, err)
	img, err := store.Open(ctx, parse(t, reg.Host+"/dst:1"), quick)
	require.NoError(t, err)
	defer img.Close()
	assert.NotEqual(t, otherDigest.String(), img.Layers[0].Digest)
	r, err := img.Layers[0].Open(ctx)
	require.NoError(t, err)
	defer r.Close()
	z, err := gzip.NewReader(r)
	require.NoError(t, err)
	b, err := io.ReadAll(z)
	require.NoError(t, err)
	assert.Equal(t, layer, string(b))
}

// Docker's oldest list of images, which Docker reads if there is no newer one, is not passed over.
func TestOldestListOfAnArchive(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.tar")
	ctx, reg := context.Background(), fixture.NewRegistry(t)
	_, err := extend(ctx, t, reg.Push(t, "src:1", sample(t)), "oci-archive:"+file+":1", quick)
	require.NoError(t, err)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.Seek(-1024, io.SeekEnd) // before the end of the archive
	require.NoError(t, err)
	_, err = f.Write(fixture.Tar(t, fixture.File("repositories", `{"app":{"1":"x"}}`)))
	require.NoError(t, err)
	_, err = store.Open(ctx, parse(t, "oci-archive:"+file+":1"), quick)
	assert.ErrorIs(t, err, image.ErrAmbiguous)
}

// A dictionary of xz takes the memory that it says it needs.
func TestLargeDictionary(t *testing.T) {
	for size, ok := range map[int]bool{64 << 20: true, 1 << 30: false} {
		var b bytes.Buffer
		w, err := xz.WriterConfig{DictCap: size}.NewWriter(&b)
		require.NoError(t, err)
		_, err = w.Write(fixture.Tar(t, fixture.File("oci-layout", "{}")))
		require.NoError(t, err)
		require.NoError(t, w.Close())
		file := filepath.Join(t.TempDir(), "a.tar.xz")
		require.NoError(t, os.WriteFile(file, b.Bytes(), 0o600))
		_, err = store.Open(context.Background(), parse(t, "oci-archive:"+file), quick)
		require.Error(t, err)
		assert.Equal(t, ok, strings.Contains(err.Error(), "index.json"), "%d: %v", size, err)
	}
}
