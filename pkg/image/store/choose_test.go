package store_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// Every other entry of an index is a rival unless all engines know that it is for another platform.
func TestRivalsInIndexes(t *testing.T) {
	reg := fixture.NewRegistry(t)
	ours := fixture.Image(t, v1.Config{Cmd: []string{"ours"}})
	other := fixture.Image(t, v1.Config{Cmd: []string{"other"}})
	reg.Push(t, "index:ours", ours)
	reg.Push(t, "index:other", other)
	digest, err := other.Digest()
	require.NoError(t, err)
	amd64 := v1.Platform{OS: "linux", Architecture: "amd64"}
	for i, c := range []struct {
		d     v1.Descriptor
		rival bool
	}{
		{v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}, false},
		{v1.Descriptor{Platform: &v1.Platform{OS: "windows", Architecture: "amd64"}}, false},
		{v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}, false},
		{v1.Descriptor{Platform: &v1.Platform{Architecture: "arm64"}}, false},
		{v1.Descriptor{Platform: &amd64}, true},
		{v1.Descriptor{Platform: &v1.Platform{OS: "Linux", Architecture: "x86-64", Variant: "v1"}}, true},
		{v1.Descriptor{}, true},
		{v1.Descriptor{Platform: &v1.Platform{}}, true},
		{v1.Descriptor{Platform: &v1.Platform{OS: "linux"}}, true},
		{v1.Descriptor{Platform: &v1.Platform{Architecture: "AMD64"}}, true},
		{v1.Descriptor{Platform: &amd64, MediaType: "application/octet-stream"}, true},
		{v1.Descriptor{Platform: &amd64, MediaType: "application/vnd.oci.image.manifest.v2+json"}, true},
		{v1.Descriptor{Platform: &amd64, MediaType: types.DockerManifestSchema1Signed}, true},
		{v1.Descriptor{Platform: &amd64, MediaType: types.OCILayer}, true},
	} {
		index := mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: ours, Descriptor: v1.Descriptor{Platform: &amd64}},
			mutate.IndexAddendum{Add: other, Descriptor: c.d})
		tag, err := name.NewTag(fmt.Sprintf("%s/index:%d", reg.Host, i))
		require.NoError(t, err)
		require.NoError(t, remote.Put(tag, index))
		img, err := store.Open(context.Background(), parse(t, tag.String()), quick)
		require.NoError(t, err)
		var want []string
		if c.rival {
			want = []string{digest.String()}
		}
		assert.Equal(t, want, img.Rivals, "%+v", c.d)
	}
}

// twoLists is an archive that has a list of Docker's and one of OCI's, of images for the commands "a" and "b".
type twoLists struct{ layer, a, b, c, ma, mb, mc string }

func newTwoLists(t *testing.T) twoLists {
	t.Helper()
	l := twoLists{layer: string(fixture.Tar(t, fixture.File("a", "1")))}
	config := func(cmd string) string {
		return fmt.Sprintf(
			`{"os":"linux","architecture":"amd64","config":{"Cmd":[%q]},"rootfs":{"type":"layers","diff_ids":[%q]}}`,
			cmd, digest([]byte(l.layer)))
	}
	manifest := func(config string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},
			"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
			types.OCIManifestSchema1, types.OCIConfigJSON, digest([]byte(config)), len(config),
			types.OCIUncompressedLayer, digest([]byte(l.layer)), len(l.layer))
	}
	l.a, l.b = config("a"), config("b")
	l.c = strings.Replace(config("c"), `"amd64"`, `"arm64"`, 1) // of another platform
	l.ma, l.mb, l.mc = manifest(l.a), manifest(l.b), manifest(l.c)
	return l
}

func blob(content string) string {
	return "blobs/sha256/" + strings.TrimPrefix(digest([]byte(content)), "sha256:")
}

// saved is an entry of manifest.json, and listed one of index.json.
func (l twoLists) saved(config, tag string) string {
	return fmt.Sprintf(`{"Config":%q,"RepoTags":[%q],"Layers":[%q]}`, blob(config), tag, blob(l.layer))
}

func listed(manifest, annotations, more string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"annotations":{%s}%s}`,
		types.OCIManifestSchema1, digest([]byte(manifest)), len(manifest), annotations, more)
}

func (l twoLists) archive(t *testing.T, docker, oci []string) string {
	t.Helper()
	entries := []fixture.Entry{fixture.File("oci-layout", `{"imageLayoutVersion":"1.0.0"}`)}
	for _, content := range []string{l.layer, l.a, l.b, l.c, l.ma, l.mb, l.mc} {
		entries = append(entries, fixture.File(blob(content), content))
	}
	if docker != nil {
		entries = append(entries, fixture.File("manifest.json", "["+strings.Join(docker, ",")+"]"))
	}
	if oci != nil {
		entries = append(entries,
			fixture.File("index.json", fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`,
				types.OCIImageIndex, strings.Join(oci, ","))))
	}
	return archive(t, entries...)
}

// An archive can list one image for readers of Docker's format and another one for those of OCI's.
func TestRivalsInArchives(t *testing.T) {
	l := newTwoLists(t)
	docker := func(tag string) string {
		return fmt.Sprintf(
			`"io.containerd.image.name":"docker.io/library/app:%s","org.opencontainers.image.ref.name":"%[1]s"`, tag)
	}
	tag := `"org.opencontainers.image.ref.name":"1"`
	arm := `,"platform":{"os":"linux","architecture":"arm64"}`
	for what, c := range map[string]struct {
		docker, oci []string
		ref         string
		rivals      bool
	}{
		"as docker saves one": {
			[]string{l.saved(l.a, "app:1")}, []string{listed(l.ma, docker("1"), "")}, "docker-archive:%s", false,
		},
		"as docker saves two": {
			[]string{l.saved(l.a, "app:1"), l.saved(l.b, "app:2")}, []string{
				listed(l.ma, docker("1"), ""), listed(l.mb, docker("2"), ""),
			}, "docker-archive:%s:app:1", false,
		},
		"for another platform": {
			[]string{l.saved(l.a, "app:1")}, []string{listed(l.ma, docker("1"), ""), listed(l.mc, docker("1"), arm)},
			"docker-archive:%s", true,
		},
		"another one in OCI's list": {
			[]string{l.saved(l.a, "app:1")}, []string{listed(l.mb, docker("1"), "")}, "docker-archive:%s", true,
		},
		"names exchanged": {
			[]string{l.saved(l.a, "app:1"), l.saved(l.b, "app:2")},
			[]string{listed(l.mb, docker("1"), ""), listed(l.ma, docker("2"), "")}, "docker-archive:%s:app:1", true,
		},
		"without a name": {
			[]string{l.saved(l.a, "app:1")}, []string{listed(l.ma, docker("1"), ""), listed(l.mb, "", "")},
			"docker-archive:%s:app:1", true,
		},
		"a name twice": {
			[]string{l.saved(l.a, "app:1"), l.saved(l.b, "app:1")}, nil, "docker-archive:%s:app:1", true,
		},
		"a name in two forms": {
			[]string{l.saved(l.a, "app:1"), l.saved(l.b, "docker.io/library/app:1")}, nil, "docker-archive:%s:app:1",
			true,
		},
		"OCI's alone": {nil, []string{listed(l.ma, tag, "")}, "oci-archive:%s:1", false},
		"OCI's of docker": {
			[]string{l.saved(l.a, "app:1")}, []string{listed(l.ma, docker("1"), "")}, "oci-archive:%s:1", false,
		},
		"another one in Docker's": {
			[]string{l.saved(l.b, "app:1")}, []string{listed(l.ma, tag, "")}, "oci-archive:%s:1", true,
		},
		"of OCI's, without tag": {
			[]string{l.saved(l.b, "app:2")}, []string{listed(l.ma, tag, "")}, "oci-archive:%s", true,
		},
		"containerd's name": {
			nil, []string{listed(l.ma, tag, ""), listed(l.mb, `"io.containerd.image.name":"app:1"`, "")},
			"oci-archive:%s:1", true,
		},
		"labelled for another one": {
			[]string{l.saved(l.a, "app:1")}, []string{listed(l.mb, docker("1"), arm)}, "docker-archive:%s", true,
		},
	} {
		img, err := store.Open(context.Background(), parse(t, fmt.Sprintf(c.ref, l.archive(t, c.docker, c.oci))), quick)
		if !assert.NoError(t, err, what) {
			continue
		}
		assert.Equal(t, l.a, string(img.Config), what)
		var want []string
		if c.rivals {
			want = []string{digest([]byte(l.b))}
			if what == "for another platform" { // by the name some take it all the same
				want = []string{digest([]byte(l.c))}
			}
			if strings.Contains(what, "containerd") {
				want = []string{digest([]byte(l.mb)), digest([]byte(l.b))}
			}
		}
		assert.Equal(t, want, img.Rivals, what)
		require.NoError(t, img.Close())
	}
}

// What another list in the archive has is the same image only if everything of it is the same.
func TestOtherListInArchive(t *testing.T) {
	l := newTwoLists(t)
	for what, c := range map[string]struct {
		manifest, name string
	}{
		"other layers": {strings.ReplaceAll(l.ma, digest([]byte(l.layer)), digest([]byte(l.c))), "app:1"},
		"annotations":  {strings.Replace(l.ma, "{", `{"annotations":{"run.oci.handler":"krun"},`, 1), "app:1"},
		"lazy layers": {
			strings.Replace(l.ma, `"layers":[{`,
				`"layers":[{"annotations":{"containerd.io/snapshot/nydus-bootstrap":"true"},`, 1), "app:1",
		},
		"an odd config": {
			strings.Replace(l.mb, string(types.OCIConfigJSON), "application/vnd.example.config+json", 1), "app:1",
		},
		"what is not there":  {"", "app:1"},
		"podman's own name":  {l.mb, "localhost/app:1"},
		"another name":       {l.mb, "registry.example/x/app:1"},
		"nothing of another": {l.ma, "app:1"},
	} {
		entries := []fixture.Entry{
			fixture.File("oci-layout", `{"imageLayoutVersion":"1.0.0"}`),
			fixture.File("manifest.json", "["+l.saved(l.a, "app:1")+"]"),
			fixture.File("index.json",
				fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, types.OCIImageIndex,
					listed(c.manifest, fmt.Sprintf(`"io.containerd.image.name":%q`, c.name), ""))),
		}
		for _, content := range []string{l.layer, l.a, l.b, l.c} {
			entries = append(entries, fixture.File(blob(content), content))
		}
		if c.manifest != "" {
			entries = append(entries, fixture.File(blob(c.manifest), c.manifest))
		}
		img, err := store.Open(context.Background(), parse(t, "docker-archive:"+archive(t, entries...)), quick)
		if !assert.NoError(t, err, what) {
			continue
		}
		other := what != "nothing of another" && what != "another name"
		assert.Equal(t, other, len(img.Rivals) > 0, "%s: %q", what, img.Rivals)
		require.NoError(t, img.Close())
	}
}

// Readers of tar files disagree on names that are there twice, that are absolute, and that lie below links.
func TestAmbiguousArchives(t *testing.T) {
	l := newTwoLists(t)
	good := fixture.File("manifest.json", "["+l.saved(l.a, "app:1")+"]")
	evil := fixture.File("manifest.json", "["+l.saved(l.b, "app:1")+"]")
	content := []fixture.Entry{
		fixture.File(blob(l.a), l.a), fixture.File(blob(l.b), l.b), fixture.File(blob(l.layer), l.layer),
	}
	absolute, above, dotted := evil, evil, evil
	absolute.Header.Name, above.Header.Name, dotted.Header.Name = "/manifest.json", "../manifest.json",
		"x/.././manifest.json"
	for what, more := range map[string][]fixture.Entry{
		"twice":        {good, evil},
		"with dots":    {good, dotted},
		"absolute":     {good, absolute},
		"above":        {good, above},
		"below a link": {good, fixture.Symlink("x", "blobs"), fixture.File("x/sha256/y", "z")},
		"a directory":  {good, fixture.Dir("manifest.json")},
	} {
		_, err := store.Open(context.Background(), parse(t, "docker-archive:"+archive(t, append(more, content...)...)),
			quick)
		assert.ErrorIs(t, err, image.ErrAmbiguous, what)
	}
	_, err := store.Open(context.Background(), parse(t, "docker-archive:"+archive(t, append(content,
		fixture.Dir("blobs"), fixture.Dir("blobs"), good, fixture.File(blob(l.layer), l.layer))...)), quick)
	assert.NoError(t, err)
}

// Layers in archives are inflated as those of registries are.
func TestPaddedLayerInArchive(t *testing.T) {
	l := newTwoLists(t)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write([]byte(l.layer))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	packed.Write(make([]byte, 512))
	img, err := store.Open(context.Background(), parse(t, "docker-archive:"+archive(t,
		fixture.File("manifest.json", "["+l.saved(l.a, "app:1")+"]"), fixture.File(blob(l.a), l.a),
		fixture.File(blob(l.layer), packed.String()))), quick)
	require.NoError(t, err)
	defer img.Close()
	r, err := img.Layers[0].Open(context.Background())
	require.NoError(t, err)
	defer r.Close()
	plain, err := io.ReadAll(r)
	require.NoError(t, err)
	assert.Equal(t, l.layer, string(plain))
}

// If the image for amd64 has what a machine may lack, containerd takes one for 386, however that is written.
func TestRivalsOfVariants(t *testing.T) {
	reg := fixture.NewRegistry(t)
	ours, other := fixture.Image(t, v1.Config{Cmd: []string{"ours"}}),
		fixture.Image(t, v1.Config{Cmd: []string{"other"}})
	reg.Push(t, "index:ours", ours)
	reg.Push(t, "index:other", other)
	for i, c := range []struct {
		platform v1.Platform
		other    string
		rivals   int
	}{
		{v1.Platform{}, "386", 0},
		{v1.Platform{Variant: "v1"}, "386", 0},
		{v1.Platform{Variant: "v3"}, "386", 1},
		{v1.Platform{Variant: "v3"}, "i386", 1},
		{v1.Platform{Variant: "v3"}, "I686", 1},
		{v1.Platform{Variant: "v3"}, "arm64", 0},
		{v1.Platform{OSFeatures: []string{"x"}}, "386", 1},
		{v1.Platform{OSVersion: "1"}, "386", 1},
	} {
		c.platform.OS, c.platform.Architecture = "linux", "amd64"
		tag, err := name.NewTag(fmt.Sprintf("%s/index:%d", reg.Host, i))
		require.NoError(t, err)
		require.NoError(t, remote.Put(tag, mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: ours, Descriptor: v1.Descriptor{Platform: &c.platform}},
			mutate.IndexAddendum{
				Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: c.other}},
			})))
		img, err := store.Open(context.Background(), parse(t, tag.String()), quick)
		require.NoError(t, err)
		assert.Len(t, img.Rivals, c.rivals, "%v beside %s", c.platform, c.other)
	}
}
