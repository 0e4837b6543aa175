package encrypted_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

func scan(t testing.TB, layers ...[]fixture.Entry) (indexes []*rootfs.Index, tree *rootfs.Tree) {
	t.Helper()
	for _, l := range layers {
		archive := fixture.Tar(t, l...)
		index, err := rootfs.Scan(context.Background(), bytes.NewReader(archive), image.DigestOf(archive),
			rootfs.Options{})
		require.NoError(t, err)
		indexes = append(indexes, index)
	}
	tree, err := rootfs.Merge(indexes)
	require.NoError(t, err)
	return indexes, tree
}

// What has to leave the layers: all versions of a file, by all its names, wherever they are written.
func TestSelect(t *testing.T) {
	file, link, sym := fixture.File, fixture.Hardlink, fixture.Symlink
	for what, c := range map[string]struct {
		layers [][]fixture.Entry
		chosen string
		files  string // that are encrypted
		left   string // in the layers
		copies string
	}{
		"one file": {
			[][]fixture.Entry{{file("a", "1"), file("b", "2")}}, "/a", "/a", "0/b", "",
		},
		"older versions": {
			[][]fixture.Entry{{file("a", "1"), file("b", "2")}, {file("a", "3")}, {file("b", "4")}},
			"/a", "/a", "0/b 2/b", "",
		},
		"a version that was removed in between": {
			[][]fixture.Entry{{file("a", "1")}, {file(".wh.a", "")}, {file("a", "2")}}, "/a", "/a", "1/a", "",
		},
		"hard links": {
			[][]fixture.Entry{{file("x", "1"), link("a", "x"), link("y", "a"), file("z", "2")}},
			"/a", "/a /x /y", "0/z", "",
		},
		"a hard link to an older version": {
			[][]fixture.Entry{{file("a", "1"), link("old", "a")}, {file("a", "2")}}, "/a", "/a /old", "", "",
		},
		"a hard link to a file of another layer": {
			[][]fixture.Entry{{file("a", "1")}, {link("b", "a")}}, "/b", "/a /b", "", "",
		},
		"versions of another name": {
			[][]fixture.Entry{{file("b", "0")}, {file("a", "1"), link("b", "a")}}, "/a", "/a /b", "", "",
		},
		"through a link of the same layer": {
			[][]fixture.Entry{{sym("l", "d"), file("l/a", "1")}, {file("d/a", "2")}}, "/d/a", "/d/a", "0/l", "",
		},
		"twice in an archive": {
			[][]fixture.Entry{{file("a", "1"), file("a", "2"), file("a", "2"), file("b", "3")}}, "/a", "/a", "0/b", "",
		},
		"a link of the name below": {
			[][]fixture.Entry{{sym("a", "b"), file("b", "1")}, {file("a", "2")}}, "/a", "/a", "0/a 0/b", "",
		},
		"a file that is gone": {
			[][]fixture.Entry{{file("a", "1"), file("b", "2")}, {file(".wh.a", "")}}, "/a", "", "0/b 1/a", "",
		},
		"a file in whose place is a link": {
			[][]fixture.Entry{{file("a", "1"), file("b", "2")}, {sym("a", "b")}}, "/a", "", "0/b 1/a", "",
		},
		"an eStargz layer": {
			[][]fixture.Entry{{file("a", "1"), file("stargz.index.json", "digests")}, {file("stargz.index.json", "b")}},
			"/a", "/a", "1/stargz.index.json", "",
		},
		"copies": {
			[][]fixture.Entry{
				{file("a", "1"), file("gone", "1"), file("b", "1"), file("empty", "")}, {file(".wh.gone", "")},
			},
			"/a", "/a", "0/gone 0/b 0/empty 1/gone", "/b:false /gone:true",
		},
		"empty files are no copies": {
			[][]fixture.Entry{{file("a", ""), file("b", "")}}, "/a", "/a", "0/b", "",
		},
	} {
		indexes, _ := scan(t, c.layers...)
		s, err := encrypted.Select(indexes, func(p string) bool { return p == c.chosen })
		require.NoError(t, err, what)
		var files, copies, left []string
		for _, n := range s.Files {
			files = append(files, n.Path)
		}
		for _, n := range s.Copies {
			copies = append(copies, fmt.Sprintf("%s:%v", n.Path, n.Hidden))
		}
		assert.Equal(t, c.files, strings.Join(files, " "), what)
		assert.Equal(t, c.copies, strings.Join(copies, " "), what)

		stripped, contents := cut(t, s, indexes, c.layers)
		for i, index := range stripped.Indexes {
			for _, e := range index.Entries {
				left = append(left, fmt.Sprintf("%d%s", i, e.Path))
			}
			if l, ok := stripped.Layers[i]; ok {
				blob, err := l.Blob()
				require.NoError(t, err)
				again, err := rootfs.Scan(context.Background(), bytes.NewReader(blob), l.Digest,
					rootfs.Options{DiffID: true})
				require.NoError(t, err)
				assert.Equal(t, again, index, what)
			}
		}
		assert.Equal(t, c.left, strings.Join(left, " "), what)
		for _, n := range s.Files {
			assert.Equal(t, n.SHA256, sha256.Sum256([]byte(contents[n.Path])), "%s: %s", what, n.Path)
		}
		assert.Len(t, contents, len(s.Files), what)
	}
}

// cut takes what was selected out of layers, and returns the contents by their paths.
func cut(
	t testing.TB, s *encrypted.Selection, indexes []*rootfs.Index, layers [][]fixture.Entry,
) (*encrypted.Stripped, map[string]string) {
	t.Helper()
	img := &image.Image{MediaType: types.OCIManifestSchema1}
	for i, l := range layers {
		archive := fixture.Tar(t, l...)
		pushed, _, err := image.NewLayers(img.MediaType, []image.NewLayer{{
			Digest: indexes[i].Digest, DiffID: indexes[i].Digest, MediaType: types.OCIUncompressedLayer,
		}})
		require.NoError(t, err)
		img.Layers = append(img.Layers, &image.Layer{
			Digest: indexes[i].Digest, Push: pushed[0],
			Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil },
		})
	}
	contents := map[string]string{}
	stripped, err := s.Cut(context.Background(), img, indexes, rootfs.Options{},
		func(n *rootfs.Node, _ time.Time, content io.Reader) error {
			b, err := io.ReadAll(content)
			contents[n.Path] = string(b)
			return err
		})
	require.NoError(t, err)
	t.Cleanup(func() { stripped.Close() })
	return stripped, contents
}

// A layer that is not what its index says is not cut.
func TestCutRefuses(t *testing.T) {
	layers := [][]fixture.Entry{{fixture.File("a", "1"), fixture.File("b", "2")}}
	indexes, _ := scan(t, layers...)
	s, err := encrypted.Select(indexes, func(p string) bool { return p == "/a" })
	require.NoError(t, err)
	lying := *indexes[0]
	lying.Entries = lying.Entries[:1]
	archive := fixture.Tar(t, layers[0]...)
	pushed, _, err := image.NewLayers(types.OCIManifestSchema1,
		[]image.NewLayer{{Digest: lying.Digest, DiffID: lying.Digest}})
	require.NoError(t, err)
	img := &image.Image{Layers: []*image.Layer{{
		Digest: lying.Digest, Push: pushed[0],
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil },
	}}}
	_, err = s.Cut(context.Background(), img, []*rootfs.Index{&lying}, rootfs.Options{}, nil)
	assert.ErrorIs(t, err, encrypted.ErrLayer)
}

// The layer of a Writer is what it says that it is, and holds what can be decrypted.
func TestWriter(t *testing.T) {
	ctx := context.Background()
	private := fixture.Dir("srv/private")
	private.Header.Mode, private.Header.Uid = 0o710, 33
	script := fixture.Program("srv/private/run", "#!/bin/sh -e\nexit\n")
	script.Header.ModTime = time.Unix(1_700_000_000, 999)
	_, tree := scan(t, []fixture.Entry{
		private, script, fixture.Program("srv/app", fixture.ELF("/lib/ld.so")),
		fixture.File("srv/large", strings.Repeat("x", 9000)),
	})
	key := protectedfs.Key{1, 2, 3}
	w, err := encrypted.NewWriter(tree, encrypted.Options{
		Key: key, KeyName: "k", Version: protectedfs.Version2, UID: 1000, GID: 100,
	})
	require.NoError(t, err)
	defer w.Close()
	plain := map[string]string{
		"/srv/private/run": script.Body, "/srv/app": fixture.ELF("/lib/ld.so"), "/srv/large": strings.Repeat("x", 9000),
	}
	for _, p := range []string{"/srv/private/run", "/srv/app", "/srv/large"} {
		n := tree.Lookup(p)
		require.NoError(t, w.Add(ctx, n, encrypted.Plain{Size: n.Size, SHA256: n.SHA256}, script.Header.ModTime,
			strings.NewReader(plain[p])))
	}
	n := tree.Lookup("/srv/app")
	require.ErrorIs(t, w.Add(ctx, n, encrypted.Plain{Size: 1, SHA256: n.SHA256}, time.Now(), strings.NewReader("y")),
		protectedfs.ErrContent)
}

func TestWriterLayer(t *testing.T) {
	ctx := context.Background()
	private := fixture.Dir("srv/private")
	private.Header.Mode, private.Header.Uid = 0o710, 33
	_, tree := scan(t, []fixture.Entry{
		private, fixture.Program("srv/private/run", "#!/bin/sh -e\nexit\n"),
		fixture.Program("srv/app", fixture.ELF("/lib/ld.so")),
	})
	key := protectedfs.Key{1, 2, 3}
	made := func() (image.NewLayer, *rootfs.Index, *encrypted.List) {
		w, err := encrypted.NewWriter(tree, encrypted.Options{
			Key: key, KeyName: "k", Version: protectedfs.Version1, UID: 1000, GID: 100,
		})
		require.NoError(t, err)
		t.Cleanup(func() { w.Close() })
		for p, body := range map[string]string{"/srv/private/run": "#!/bin/sh -e\nexit\n"} {
			n := tree.Lookup(p)
			plain := encrypted.Plain{Size: n.Size, SHA256: n.SHA256}
			require.NoError(t, w.Add(ctx, n, plain, time.Unix(1_700_000_000, 999), strings.NewReader(body)))
		}
		n := tree.Lookup("/srv/app")
		require.NoError(t, w.Add(ctx, n, encrypted.Plain{Size: n.Size, SHA256: n.SHA256}, time.Unix(5, 0),
			strings.NewReader(fixture.ELF("/lib/ld.so"))))
		layer, index, list, err := w.Layer(ctx, &image.Image{MediaType: types.DockerManifestSchema2})
		require.NoError(t, err)
		return layer, index, list
	}
	layer, index, list := made()
	again, _, _ := made()
	assert.Equal(t, layer.Digest, again.Digest)
	assert.Equal(t, types.DockerUncompressedLayer, layer.MediaType)
	blob, err := layer.Blob()
	require.NoError(t, err)
	assert.Len(t, blob, layer.Size)
	scanned, err := rootfs.Scan(ctx, bytes.NewReader(blob), layer.Digest, rootfs.Options{DiffID: true})
	require.NoError(t, err)
	assert.Equal(t, layer.DiffID, scanned.DiffID)
	scanned, err = list.Describe(scanned)
	require.NoError(t, err)
	assert.Equal(t, index, scanned)
	text, err := list.Marshal()
	require.NoError(t, err)
	parsed, err := encrypted.ParseList(text)
	require.NoError(t, err)
	assert.Equal(t, list, parsed)
	run := parsed.Find("/srv/private/run")
	assert.Equal(t, "/bin/sh -e", run.Interpreter)
	assert.Equal(t, "/lib/ld.so", parsed.Find("/srv/app").ELF.Interp)
	assert.Nil(t, parsed.Find("/srv"))
	owners := map[string]string{}
	for _, e := range scanned.Entries {
		owners[e.Path] = fmt.Sprintf("%d:%d %o", e.UID, e.GID, e.Mode)
	}
	assert.Equal(t, map[string]string{
		"/srv": "0:0 755", "/srv/private": "33:0 710", "/srv/private/run": "1000:100 755", "/srv/app": "1000:100 755",
	}, owners)
}

// A layer with ciphertexts changes nothing of the layers below it.
func TestCheckLayer(t *testing.T) {
	dir := func(p string, mode int64, uid int) fixture.Entry {
		e := fixture.Dir(p)
		e.Header.Mode, e.Header.Uid = mode, uid
		return e
	}
	cipher := func(p string, mode int64, uid int) fixture.Entry {
		e := fixture.File(p, strings.Repeat("x", protectedfs.NodeSize))
		e.Header.Mode, e.Header.Uid, e.Header.Gid = mode, uid, uid
		return e
	}
	below := []fixture.Entry{
		dir("srv", 0o711, 3), dir("srv/app", 0o700, 5), fixture.File("etc/deny.conf", "x"),
		fixture.Symlink("link", "srv"),
	}
	list := &encrypted.List{Files: []encrypted.File{{Path: "/new/b"}, {Path: "/srv/app/a"}}}
	good := []fixture.Entry{
		dir("srv", 0o711, 3), dir("srv/app", 0o700, 5), cipher("srv/app/a", 0o640, 9), dir("new", 0o755, 0),
		cipher("new/b", 0o600, 9),
	}
	attributes := dir("srv", 0o711, 3)
	attributes.Header.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "y"}
	for says, change := range map[string][]fixture.Entry{
		"":                                     nil,
		"is no directory of an encrypted file": {dir("etc/deny.conf", 0o777, 0)},
		"has the mode 777":                     {dir("srv", 0o777, 3)},
		"belongs to 0:0, below it has 711":     {dir("srv", 0o711, 0)},
		"is a new directory":                   {dir("new", 0o777, 0)},
		"belongs to 8:8, not to 9:9":           {cipher("srv/app/a", 0o640, 8)},
		"has the mode 400":                     {cipher("srv/app/a", 0o400, 9)},
		"has extended attributes":              {attributes},
	} {
		indexes, _ := scan(t, below, append(good, change...))
		_, tree := scan(t, below)
		problems := strings.Join(list.CheckLayer(indexes[1], tree, 9, 9), "\n")
		if says == "" {
			assert.Empty(t, problems)
			continue
		}
		assert.Contains(t, problems, says)
	}
	links := &encrypted.List{Files: []encrypted.File{{Path: "/link/a"}}}
	_, tree := scan(t, below)
	top, _ := scan(t, []fixture.Entry{dir("link", 0o755, 0), cipher("link/a", 0o600, 9)})
	assert.Contains(t, strings.Join(links.CheckLayer(top[0], tree, 9, 9), "\n"), "the place of what is no directory")
}

func TestParseList(t *testing.T) {
	const id = `"key_id":"00112233445566778899aabbccddeeff","key":"k","version":2`
	sum := strings.Repeat("0", 64)
	file := func(path string, size int) string {
		return fmt.Sprintf(`{"path":%q,"size":%d,"sha256":%q}`, path, size, sum)
	}
	_, err := encrypted.ParseList([]byte(`{` + id + `,"files":[` + file("/a", 4096) + `]}`))
	require.NoError(t, err)
	for what, text := range map[string]string{
		"empty":           ``,
		"no object":       `[]`,
		"no key":          `{"files":[]}`,
		"a long name":     strings.Replace(`{`+id+`,"files":[]}`, `"k"`, `"`+strings.Repeat("k", 65)+`"`, 1),
		"the CPU's key":   strings.Replace(`{`+id+`,"files":[]}`, `"k"`, `"_sgx_mrsigner"`, 1),
		"another version": strings.Replace(`{`+id+`,"files":[]}`, `:2`, `:3`, 1),
		"twice":           `{` + id + `,"key":"z","files":[]}`,
		"a relative path": `{` + id + `,"files":[` + file("a", 4096) + `]}`,
		"a path with ..":  `{` + id + `,"files":[` + file("/../a", 4096) + `]}`,
		"another length":  `{` + id + `,"files":[` + file("/a", 8192) + `]}`,
		"no digest":       `{` + id + `,"files":[{"path":"/a","size":4096,"sha256":"00"}]}`,
		"not sorted":      `{` + id + `,"files":[` + file("/b", 4096) + "," + file("/a", 4096) + `]}`,
		"one path twice":  `{` + id + `,"files":[` + file("/a", 4096) + "," + file("/a", 4096) + `]}`,
	} {
		_, err := encrypted.ParseList([]byte(text))
		assert.ErrorIs(t, err, encrypted.ErrList, what)
	}
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte(`{"key_id":"00112233445566778899aabbccddeeff","key":"k","version":2,"files":[` +
		`{"path":"/a","size":4096,"sha256":"` + strings.Repeat("0", 64) + `",` +
		`"elf":{"class":2,"machine":62,"type":2}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := encrypted.ParseList(text)
		if err != nil {
			return
		}
		written, err := l.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := encrypted.ParseList(written)
		if err != nil || !assert.ObjectsAreEqual(l, again) {
			t.Fatalf("%v: %s", err, written)
		}
	})
}
