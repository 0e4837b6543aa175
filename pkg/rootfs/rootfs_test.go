package rootfs_test

import (
	"archive/tar"
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha256"
	debugelf "debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
	"github.com/cconvert/cconvert/pkg/rootfs/glob"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
)

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func scan(t *testing.T, entries ...Entry) *rootfs.Index {
	t.Helper()
	b := Tar(t, entries...)
	i, err := rootfs.Scan(context.Background(), bytes.NewReader(b), digest(b),
		rootfs.Options{Keep: []string{"/etc/passwd", "/keep/*"}})
	require.NoError(t, err)
	return i
}

func merge(t *testing.T, layers ...*rootfs.Index) *rootfs.Tree {
	t.Helper()
	tree, err := rootfs.Merge(layers)
	require.NoError(t, err)
	return tree
}

// listing returns the tree as lines "path content", links as "path -> target".
func listing(tree *rootfs.Tree, contents ...string) string {
	known := map[[32]byte]string{}
	for _, c := range contents {
		known[sha256.Sum256([]byte(c))] = c
	}
	var b strings.Builder
	_ = tree.Walk(func(n *rootfs.Node) error {
		switch n.Type {
		case rootfs.Dir:
			fmt.Fprintln(&b, n.Path+"/")
		case rootfs.Symlink:
			fmt.Fprintln(&b, n.Path, "->", n.Link)
		case rootfs.Regular:
			fmt.Fprintln(&b, n.Path, known[n.SHA256])
		default:
			fmt.Fprintln(&b, n.Path, "special")
		}
		return nil
	})
	return strings.TrimSpace(b.String())
}

func TestMerge(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers [][]Entry
		want   string
	}{
		{"later layers win", [][]Entry{{File("a", "1"), File("b", "1")}, {File("a", "2")}}, "/a 2\n/b 1"},
		{"whiteout", [][]Entry{{File("d/a", "1"), File("d/b", "1")}, {File("d/.wh.a", "")}}, "/d/\n/d/b 1"},
		{"whiteout of a directory", [][]Entry{{File("d/x/a", "1")}, {File("d/.wh.x", "")}}, "/d/"},
		{
			"whiteout in its own layer hides nothing of it",
			[][]Entry{{File("a", "1")}, {File("a", "2"), File(".wh.a", "")}}, "/a 2",
		},
		{
			"opaque", [][]Entry{{File("d/a", "1"), File("d/s/b", "1")}, {File("d/c", "2"), File("d/.wh..wh..opq", "")}},
			"/d/\n/d/c 2",
		},
		{"opaque root", [][]Entry{{File("a", "1")}, {File(".wh..wh..opq", ""), File("b", "2")}}, "/b 2"},
		{
			"bookkeeping of AUFS",
			[][]Entry{{File("a", "1"), Dir(".wh..wh.plnk"), File(".wh..wh.aufs", ""), Dir(".wh..wh.orph")}}, "/a 1",
		},
		{"file becomes directory", [][]Entry{{File("a", "1")}, {File("a/b", "2")}}, "/a/\n/a/b 2"},
		{"directory becomes file", [][]Entry{{File("a/b", "1")}, {File("a", "2")}}, "/a 2"},
		{"directory becomes link", [][]Entry{{File("a/b", "1")}, {Symlink("a", "/c")}}, "/a -> /c"},
		{
			"link becomes directory, as overlays do", [][]Entry{
				{Symlink("lib", "usr/lib"), File("usr/lib/a", "1")}, {File("lib/b", "2")},
			}, "/lib/\n/lib/b 2\n/usr/\n/usr/lib/\n/usr/lib/a 1",
		},
		{
			"links of the same layer are followed", [][]Entry{{
				Dir("usr/lib"), Symlink("lib", "usr/lib"), File("lib/a", "1"),
			}}, "/lib -> usr/lib\n/usr/\n/usr/lib/\n/usr/lib/a 1",
		},
		{"hard link", [][]Entry{{File("a", "1"), Hardlink("b", "a")}}, "/a 1\n/b 1"},
		{
			"hard link through a link", [][]Entry{{
				Dir("usr/lib"), Symlink("lib", "usr/lib"), File("usr/lib/a", "1"), Hardlink("b", "lib/a"),
			}}, "/b 1\n/lib -> usr/lib\n/usr/\n/usr/lib/\n/usr/lib/a 1",
		},
		{
			"hard link keeps its content when the other name changes",
			[][]Entry{{File("a", "1"), Hardlink("b", "a")}, {File("a", "2")}}, "/a 2\n/b 1",
		},
		{"hard link to a lower layer", [][]Entry{{File("a", "1")}, {Hardlink("b", "a"), File(".wh.a", "")}}, "/b 1"},
		{
			"duplicates in one layer",
			[][]Entry{{File("a", "1"), File("a", "2"), Dir("d"), File("d/x", "1"), Dir("d")}}, "/a 2\n/d/\n/d/x 1",
		},
		{
			"absolute names", [][]Entry{{File("/a", "1"), File("./b", "1"), File("//c//d", "1")}},
			"/a 1\n/b 1\n/c/\n/c/d 1",
		},
		{
			"devices and pipes", [][]Entry{{
				Special("null", tar.TypeChar), Special("sda", tar.TypeBlock), Special("pipe", tar.TypeFifo),
			}}, "/null special\n/pipe special\n/sda special",
		},
		{
			"a replaced directory's whiteouts are spent",
			[][]Entry{{File("a", "1")}, {File("a/.wh.x", ""), File("a/y", "2")}}, "/a/\n/a/y 2",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var layers []*rootfs.Index
			for _, l := range c.layers {
				layers = append(layers, scan(t, l...))
			}
			assert.Equal(t, c.want, listing(merge(t, layers...), "1", "2"))
		})
	}
}

// Archives list directories in their order, or not; the tree is the same.
func TestMergeInAnyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var lower, upper []Entry
	for i := range 300 {
		lower = append(lower, File(fmt.Sprintf("d%d/e%d/f%d", i%5, i%7, i), "1"))
		if i%3 == 0 {
			upper = append(upper, File(fmt.Sprintf("d%d/e%d/g-%d", i%5, i%11, i), "2"),
				Symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("d%d/../d%d/e%d", i%5, i%5, i%13)))
		}
		if i%10 == 0 {
			upper = append(upper, File(fmt.Sprintf("d%d/e%d/.wh.f%d", i%5, i%7, i), ""))
		}
	}
	want := ""
	for range 20 {
		tree := merge(t, scan(t, lower...), scan(t, upper...))
		text, next := listing(tree, "1", "2"), 1
		if want == "" {
			want = text
		}
		require.Equal(t, want, text)
		require.NoError(t, tree.Walk(func(n *rootfs.Node) error {
			assert.Equal(t, next, n.Number())
			assert.Equal(t, path.Dir(n.Path), n.Parent().Path)
			assert.Same(t, n, tree.Lookup(n.Path))
			to, real, err := tree.Follow(n)
			node, resolved, failed := tree.Resolve(n.Path)
			assert.Same(t, node, to)
			assert.Equal(t, resolved, real)
			assert.Equal(t, failed == nil, err == nil)
			next++
			return nil
		}))
		assert.Equal(t, next, tree.Len())
		random.Shuffle(len(lower), func(i, j int) { lower[i], lower[j] = lower[j], lower[i] })
		random.Shuffle(len(upper), func(i, j int) { upper[i], upper[j] = upper[j], upper[i] })
	}
}

func TestMergeRefuses(t *testing.T) {
	for want, entries := range map[string][]Entry{
		"which does not exist":            {Hardlink("a", "b")},
		"hard link to the directory":      {Dir("d"), Hardlink("a", "d")},
		"which is not a directory":        {File("a", "1"), File("a/b", "2")},
		"too many levels of symbolic lin": {Symlink("a", "b"), Symlink("b", "a"), File("a/c", "1")},
	} {
		_, err := rootfs.Merge([]*rootfs.Index{scan(t, entries...)})
		assert.ErrorContains(t, err, want)
	}
}

// Links that prolong paths again and again are refused before the paths are.
func TestEndlessPaths(t *testing.T) {
	deep := strings.Repeat(strings.Repeat("d", 29)+"/", 100)
	entries := []Entry{Symlink("l0", deep)}
	for i := range 50 {
		entries = append(entries, File(fmt.Sprintf("l%d/%sf", i, deep), "x"),
			Symlink(fmt.Sprintf("l%d", i+1), fmt.Sprintf("l%d/%s", i, deep)))
	}
	_, err := rootfs.Merge([]*rootfs.Index{scan(t, entries...)})
	assert.ErrorContains(t, err, "more than 4096 bytes")
}

func TestScanRefuses(t *testing.T) {
	good := Tar(t, File("a", strings.Repeat("x", 100_000)))
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(good)
	require.NoError(t, z.Close())
	corrupt := bytes.Clone(zipped.Bytes())
	corrupt[len(corrupt)/2] ^= 0xff
	long := Entry{Header: tar.Header{
		Name: strings.Repeat("d/", 2100) + "f", Typeflag: tar.TypeReg, Format: tar.FormatPAX,
	}}
	for _, c := range []struct {
		name, want string
		blob       []byte
	}{
		{"deep path", "has more than 256 parts", Tar(t, File(strings.Repeat("d/", 256)+"f", "x"))},
		{
			"path out of the image", `the path "../etc/passwd" leads out of the layer`,
			Tar(t, File("../etc/passwd", "x")),
		},
		{"path through the image and out", `leads out of the layer`, Tar(t, File("a/../../x", "x"))},
		{"hard link out of the image", `hard link "/a"`, Tar(t, Hardlink("a", "../../etc/shadow"))},
		{"whiteout of nothing", "names nothing", Tar(t, File("d/.wh.", ""))},
		{"whiteout of the parent", "names nothing", Tar(t, File("d/.wh...", ""))},
		{"truncated archive", "unexpected EOF", good[:len(good)/2]},
		{"truncated gzip", "unexpected EOF", zipped.Bytes()[:zipped.Len()/2]},
		{"corrupt gzip", "reading", corrupt},
		{"unknown type", "unknown entry type", Tar(t, Special("a", 'Z'))},
		{"path too long", "more than 4096", Tar(t, long)},
		{"not an archive", "invalid tar header", bytes.Repeat([]byte("no"), 1000)},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := rootfs.Scan(context.Background(), bytes.NewReader(c.blob), digest(c.blob), rootfs.Options{})
			assert.ErrorContains(t, err, c.want)
			assert.NotErrorIs(t, err, rootfs.ErrDigest, "the digest was right")
			assert.ErrorContains(t, err, digest(c.blob), "the error names the layer")
		})
	}
	t.Run("wrong digest", func(t *testing.T) {
		_, err := rootfs.Scan(context.Background(), bytes.NewReader(good), digest(nil), rootfs.Options{})
		assert.ErrorIs(t, err, rootfs.ErrDigest)
	})
	t.Run("damaged on the way", func(t *testing.T) {
		_, err := rootfs.Scan(context.Background(), bytes.NewReader(corrupt), digest(zipped.Bytes()), rootfs.Options{})
		assert.ErrorIs(t, err, rootfs.ErrDigest)
	})
	t.Run("bytes after the archive count", func(t *testing.T) {
		_, err := rootfs.Scan(context.Background(), bytes.NewReader(append(bytes.Clone(good), "more"...)), digest(good),
			rootfs.Options{})
		assert.ErrorIs(t, err, rootfs.ErrDigest)
	})
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := rootfs.Scan(ctx, bytes.NewReader(good), digest(good), rootfs.Options{})
		assert.ErrorIs(t, err, context.Canceled)
	})
	t.Run("read error", func(t *testing.T) {
		broken := errors.New("line cut")
		_, err := rootfs.Scan(context.Background(), io.MultiReader(bytes.NewReader(good[:700]), &failing{broken}),
			digest(good), rootfs.Options{})
		assert.ErrorIs(t, err, broken)
	})
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func TestScanFormats(t *testing.T) {
	long := strings.Repeat("long/", 60) + "name"
	pax := File(long, "1")
	pax.Header.Format = tar.FormatPAX
	gnu := File("gnu/"+long, "2")
	gnu.Header.Format = tar.FormatGNU
	latin1 := File("caf\xe9", "3")
	plain := Tar(t, pax, gnu, latin1, File("empty", ""))

	var zipped, zst bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(plain[:1000])
	_ = z.Close()
	z.Reset(&zipped) // a second member
	_, _ = z.Write(plain[1000:])
	_ = z.Close()
	s, err := zstd.NewWriter(&zst)
	require.NoError(t, err)
	_, _ = s.Write(plain)
	_ = s.Close()

	for name, blob := range map[string][]byte{
		"plain": plain, "gzip with two members": zipped.Bytes(), "zstd": zst.Bytes(),
	} {
		t.Run(name, func(t *testing.T) {
			i, err := rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob), rootfs.Options{})
			require.NoError(t, err)
			require.Len(t, i.Entries, 4)
			assert.Equal(t, "/"+long, i.Entries[0].Path)
			assert.Equal(t, "/gnu/"+long, i.Entries[1].Path)
			assert.Equal(t, "/caf\xe9", i.Entries[2].Path)
			assert.Equal(t, sha256.Sum256([]byte("1")), i.Entries[0].SHA256)
			assert.Equal(t, sha256.Sum256(nil), i.Entries[3].SHA256)
		})
	}
}

func TestScanSparse(t *testing.T) {
	// A sparse file in PAX format 1.0: a map of one data region "0..3" in a file of 1000 bytes.
	const sparse = "1\n997\n3\n"
	body := sparse + strings.Repeat("\x00", 512-len(sparse)) + "end"
	h := tar.Header{
		Name: "GNUSparseFile.0/s", Typeflag: tar.TypeReg, Size: int64(len(body)), Mode: 0o644, Format: tar.FormatPAX,
	}
	b := Tar(t, Entry{Header: h, Body: body})
	// archive/tar refuses to write the records, so they are put in by hand as an extended header.
	records := ""
	for _, r := range []string{
		"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=s", "GNU.sparse.realsize=1000",
	} {
		n := len(r) + 4
		if n >= 100 {
			n++
		}
		records += fmt.Sprintf("%d %s\n", n, r)
	}
	x := Tar(t, Entry{
		Header: tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: int64(len(records)), Format: tar.FormatUSTAR},
		Body:   records,
	})
	x = x[:1024]
	x[156] = tar.TypeXHeader
	copy(x[148:156], "        ")
	sum := 0
	for _, c := range x[:512] {
		sum += int(c)
	}
	copy(x[148:156], fmt.Sprintf("%06o\x00 ", sum))
	b = append(x, b...)

	i, err := rootfs.Scan(context.Background(), bytes.NewReader(b), digest(b), rootfs.Options{})
	require.NoError(t, err)
	require.Len(t, i.Entries, 1)
	assert.Equal(t, "/s", i.Entries[0].Path)
	assert.EqualValues(t, 1000, i.Entries[0].Size)
	want := append(make([]byte, 997), "end"...)
	assert.Equal(t, sha256.Sum256(want), i.Entries[0].SHA256, "holes are zeroes")
}

func TestScanKeepsAndReads(t *testing.T) {
	i := scan(t, File("etc/passwd", "root:x:0:0::/root:/bin/sh\n"), File("keep/a", "A"), File("other", "O"),
		Program("run.sh", "#! /bin/sh -e\necho"), Program("bin", ELF("/lib/ld.so")))
	by := map[string]rootfs.Entry{}
	for _, e := range i.Entries {
		by[e.Path] = e
	}
	assert.Equal(t, "root:x:0:0::/root:/bin/sh\n", string(by["/etc/passwd"].Content))
	assert.Equal(t, "A", string(by["/keep/a"].Content))
	assert.Nil(t, by["/other"].Content)
	assert.Equal(t, "/bin/sh -e", by["/run.sh"].Shebang)
	require.NotNil(t, by["/bin"].ELF)
	assert.Equal(t, "/lib/ld.so", by["/bin"].ELF.Interp)
	assert.Nil(t, by["/other"].ELF)
}

func TestResolve(t *testing.T) {
	tree := merge(t, scan(t,
		File("usr/lib/libc.so", "1"), Symlink("lib", "usr/lib"), Symlink("usr/lib/up", "../.."),
		Symlink("abs", "/usr/lib/libc.so"),
		Symlink("out", "../../../../usr"), Symlink("a", "b"), Symlink("b", "a"), Symlink("self", "."),
		Symlink("dangling", "run/x"), Symlink("through", "usr/lib/libc.so/x")))
	for p, want := range map[string]string{
		"/lib/libc.so": "/usr/lib/libc.so", "/abs": "/usr/lib/libc.so", "/out/lib": "/usr/lib",
		"/lib/up/lib":     "/usr/lib",
		"/self/self/self": "/", "/lib/../lib/libc.so": "/usr/lib/libc.so", "/": "/",
	} {
		n, real, err := tree.Resolve(p)
		if assert.NoError(t, err, p) {
			assert.Equal(t, want, real, p)
			assert.Equal(t, want, n.Path, p)
		}
	}
	_, _, err := tree.Resolve("/a")
	assert.ErrorIs(t, err, rootfs.ErrLoop)
	_, real, err := tree.Resolve("/dangling")
	assert.ErrorIs(t, err, fs.ErrNotExist)
	assert.Equal(t, "/run/x", real)
	_, _, err = tree.Resolve("/through")
	assert.ErrorIs(t, err, fs.ErrNotExist)
	n, _, err := tree.ResolveParent("/lib/up")
	require.NoError(t, err)
	assert.Equal(t, rootfs.Symlink, n.Type)
}

func TestParseELF(t *testing.T) {
	f, err := os.Open("../../testdata/vectors/pal/pal-foursegments.so")
	require.NoError(t, err)
	defer f.Close()
	facts, err := elf.Parse(f)
	require.NoError(t, err)
	assert.True(t, facts.Dynamic)
	assert.NotZero(t, facts.MemSize)

	b, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	for i := range 1024 { // damage: any answer, no panic
		c := bytes.Clone(b)
		c[i] ^= 0xff
		_, _ = elf.Parse(bytes.NewReader(c))
		_, _ = elf.Parse(bytes.NewReader(b[:i]))
	}
	assert.Positive(t, elf.CompareVersions("2.36", "2.4"))
	assert.Zero(t, elf.CompareVersions("2.4", "2.4"))
	assert.Negative(t, elf.CompareVersions("", "2.0"))
}

// hostileELF is a file whose headers point where they should not, in a layer, since there only parts of
// it are at hand.
func hostileELF(segments ...debugelf.Prog64) Entry {
	var b bytes.Buffer
	h := debugelf.Header64{
		Type: uint16(debugelf.ET_DYN), Machine: uint16(debugelf.EM_X86_64), Phoff: 64, Phentsize: 56,
		Phnum: uint16(len(segments)),
	}
	copy(h.Ident[:], debugelf.ELFMAG+"\x02\x01\x01")
	_ = binary.Write(&b, binary.LittleEndian, h)
	_ = binary.Write(&b, binary.LittleEndian, segments)
	return Program("p", b.String()+strings.Repeat("\x01\x00\x00\x00", 50_000))
}

func TestHostileELF(t *testing.T) {
	for _, off := range []uint64{0, 1, 1 << 20, 1 << 40, 1<<63 - 1, 1 << 63, ^uint64(0)} {
		for _, size := range []uint64{0, 16, 1 << 20, 1 << 62, ^uint64(0)} {
			scan(t, hostileELF(
				debugelf.Prog64{Type: uint32(debugelf.PT_DYNAMIC), Off: off, Filesz: size},
				debugelf.Prog64{Type: uint32(debugelf.PT_INTERP), Off: 1 << 40, Filesz: size},
				debugelf.Prog64{Type: uint32(debugelf.PT_NOTE), Off: off},
				debugelf.Prog64{Type: uint32(debugelf.PT_LOAD), Vaddr: off, Filesz: size, Off: size}))
		}
	}
	// Version records that overlap, each naming a long string: no more work than the file is large.
	tags := []uint64{
		uint64(debugelf.DT_STRTAB), 0, uint64(debugelf.DT_STRSZ), 1 << 18, 0x6ffffffe, 4096, 0x6fffffff, 1 << 30, 0, 0,
	}
	var dyn bytes.Buffer
	_ = binary.Write(&dyn, binary.LittleEndian, tags)
	e := hostileELF(debugelf.Prog64{Type: uint32(debugelf.PT_LOAD), Filesz: 1 << 30},
		debugelf.Prog64{Type: uint32(debugelf.PT_DYNAMIC), Off: 176, Filesz: uint64(dyn.Len())})
	e.Body = e.Body[:176] + dyn.String() + e.Body[176+dyn.Len():]
	start := time.Now()
	scan(t, e)
	assert.Less(t, time.Since(start), 5*time.Second)
}

func TestExtract(t *testing.T) {
	b := Tar(t, File("a", "1"), File("b", "22"))
	found, err := rootfs.Extract(context.Background(), bytes.NewReader(b), digest(b),
		map[string]bool{"/b": true, "/c": true}, 10, nil)
	require.NoError(t, err)
	assert.Equal(t, map[string][]byte{"/b": []byte("22")}, found)
	_, err = rootfs.Extract(context.Background(), bytes.NewReader(b), digest(nil), map[string]bool{"/b": true}, 10, nil)
	assert.ErrorIs(t, err, rootfs.ErrDigest)
	_, err = rootfs.Extract(context.Background(), bytes.NewReader(b), digest(b), map[string]bool{"/b": true}, 1, nil)
	assert.ErrorContains(t, err, "more than 1")
}

func TestIndexIsKept(t *testing.T) {
	full := scan(t, File("plain", "p"), File("etc/passwd", "root\n"), File("keep/empty", ""), Dir("d"),
		Symlink("l", "plain"),
		Hardlink("h", "plain"), Program("sh", "#!/bin/sh -e\ntrue\n"),
		Program("prog", ELF("/lib64/ld-linux-x86-64.so.2")),
		Special("fifo", tar.TypeFifo), File("d/.wh.gone", ""), File("d/.wh..wh..opq", ""))
	full.Entries[0].UID, full.Entries[0].GID = -1, 1<<31
	for k := range full.Entries {
		if f := full.Entries[k].ELF; f != nil {
			f.SOName, f.RPath, f.RunPath, f.NeedsGLIBC, f.DefinesGLIBC = "a", "b", "c", "2.4", "2.36"
			f.Needed, f.Imports, f.Go, f.Dynamic, f.MemSize = []string{"x", "y"}, []string{"flock"}, true, true, 1<<40
		}
	}
	b, err := full.MarshalBinary()
	require.NoError(t, err)
	var back rootfs.Index
	require.NoError(t, back.UnmarshalBinary(b))
	assert.Equal(t, *full, back)

	for n := range b {
		assert.ErrorIs(t, new(rootfs.Index).UnmarshalBinary(b[:n]), rootfs.ErrIndex, "the first %d bytes", n)
	}
	assert.ErrorIs(t, new(rootfs.Index).UnmarshalBinary(append(bytes.Clone(b), 0)), rootfs.ErrIndex)
}

func FuzzIndex(f *testing.F) {
	b, err := (&rootfs.Index{Digest: "sha256:0", Entries: []rootfs.Entry{
		{Path: "/a", Size: 1, ELF: &elf.Facts{Needed: []string{"x"}}, Content: []byte("c"), Shebang: "/bin/sh"},
		{Path: "/l", Type: rootfs.Symlink, Link: "a"}, {Path: "/a", Type: rootfs.Whiteout},
	}}).MarshalBinary()
	require.NoError(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var i rootfs.Index
		if i.UnmarshalBinary(b) != nil {
			return
		}
		for _, e := range i.Entries {
			assert.True(t, path.IsAbs(e.Path) && path.Clean(e.Path) == e.Path)
		}
		_, _ = rootfs.Merge([]*rootfs.Index{&i, &i}) // an index of anybody's making does no harm
	})
}

func TestIndexKey(t *testing.T) {
	key := func(digest string, keep ...string) string { return rootfs.IndexKey(digest, rootfs.Options{Keep: keep}) }
	assert.Equal(t, key("sha256:1", "/a", "/b"), key("sha256:1", "/b", "/a"))
	for _, other := range []string{
		key("sha256:2", "/a", "/b"), key("sha256:1", "/a"), key("sha256:1", "/a/b"), key("sha256:1"),
	} {
		assert.NotEqual(t, key("sha256:1", "/a", "/b"), other)
	}
}

// What inflates makes no difference; a program that fails, or writes something else, is not believed.
func TestInflaters(t *testing.T) {
	var entries []Entry
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		content := make([]byte, 4096)
		for k := range content {
			content[k] = byte(rnd.Uint32())
		}
		entries = append(entries, File(fmt.Sprintf("f%d", i), string(content)))
	}
	plain := Tar(t, entries...)
	member := func(b []byte) []byte {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, err := w.Write(b)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		return z.Bytes()
	}
	one, two := member(plain), append(member(plain[:5000]), member(plain[5000:])...)
	want, err := rootfs.Scan(context.Background(), bytes.NewReader(plain), digest(plain), rootfs.Options{})
	require.NoError(t, err)

	dir := t.TempDir()
	script := func(name, text string) string {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755))
		return name
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("SECRET", "of the environment")
	pass := map[string]string{"gzip": "exec gzip -dc", "slow": "sleep 0.1; exec gzip -dc"}
	fail := map[string]string{
		"exits": "gzip -dc; exit 3", "stops": "gzip -dc | head -c 102400", "dies": "kill -9 $$", "silent": "exit 0",
		"leaks": `gzip -dc; test -z "$SECRET" && exit 1`,
	}
	for name, text := range pass {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.Rename(filepath.Join(dir, script(name, text)), filepath.Join(dir, "igzip")))
			with, err := inflate.Find("auto")
			require.NoError(t, err)
			assert.False(t, with.InProcess())
			for _, blob := range [][]byte{one, two} {
				got, err := rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob),
					rootfs.Options{Inflate: with})
				require.NoError(t, err)
				assert.Equal(t, want.Entries, got.Entries)
			}
		})
	}
	for name, text := range fail {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.Rename(filepath.Join(dir, script(name, text)), filepath.Join(dir, "igzip")))
			with, err := inflate.Find("igzip")
			require.NoError(t, err)
			// Without the archive's end, so that it is read until the program's.
			blob := member(plain[:len(plain)-1024])
			_, err = rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob),
				rootfs.Options{Inflate: with})
			assert.ErrorIs(t, err, inflate.ErrInflater)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		require.NoError(t, os.Rename(filepath.Join(dir, script("hangs", "sleep 100")), filepath.Join(dir, "igzip")))
		with, err := inflate.Find("igzip")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err = rootfs.Scan(ctx, bytes.NewReader(one), digest(one), rootfs.Options{Inflate: with})
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Less(t, time.Since(start), 5*time.Second)
	})
	_, err = inflate.Find("unzip")
	assert.Error(t, err)
}

func TestPatterns(t *testing.T) {
	p := glob.Compile([]string{"/a", "/dir/**", "/x/*.conf", "/y/**/z", "/usr/lib{,64}/l*", "**/any"})
	require.NoError(t, p.Check())
	// A matcher that knows a directory says the same as one that comes there anew.
	m := p.Matcher()
	for range 2 {
		for _, file := range []string{
			"/a", "/b", "/dir/b", "/dire/b", "/x/a.conf", "/x/a.con", "/y/z", "/y/1/2/z", "/p/q/any", "/p/q/a",
			"/usr/lib/l1", "/usr/lib/k",
		} {
			assert.Equal(t, p.Match(file), m.Match(file), file)
		}
	}
	for _, yes := range []string{
		"/a", "/dir/b", "/dir/b/c", "/x/a.conf", "/y/z", "/y/1/2/z", "/usr/lib/l1", "/usr/lib64/l1", "/p/q/any",
	} {
		assert.True(t, p.Match(yes), yes)
	}
	for _, no := range []string{"/b", "/dire/b", "/x/y/a.conf", "/x/a.con", "/y/1/2/zz", "/usr/lib/k", "/anyone"} {
		assert.False(t, p.Match(no), no)
	}
	assert.Error(t, glob.Compile([]string{"/a/[b"}).Check())
	assert.ErrorContains(t, glob.Compile([]string{"/a/" + strings.Repeat("{a*,a*}", 18)}).Check(),
		"which multiply")
}

func BenchmarkScan(b *testing.B) {
	var entries []Entry
	for i := range 2000 {
		entries = append(entries, File(fmt.Sprintf("usr/share/%d/%d", i/50, i), strings.Repeat(fmt.Sprint(i), 4096)))
	}
	blob := Tar(b, entries...)
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		if _, err := rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob),
			rootfs.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMerge(b *testing.B) {
	var layers []*rootfs.Index
	for l := range 5 {
		i := &rootfs.Index{}
		for k := range 20_000 {
			i.Entries = append(i.Entries, rootfs.Entry{Path: fmt.Sprintf("/usr/share/%d/%d", k/50, k+l*10_000)})
		}
		layers = append(layers, i)
	}
	for b.Loop() {
		if _, err := rootfs.Merge(layers); err != nil {
			b.Fatal(err)
		}
	}
}

// The digest of the archive is the one that engines compute, however the layer is compressed, and reading it
// tells no complete archive for one that ends early.
func TestDiffID(t *testing.T) {
	archive := Tar(t, File("a", strings.Repeat("x", 3<<20)), File("b", "y"))
	archive = append(archive, make([]byte, 9000)...) // what follows the end belongs to it
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write(archive)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	for _, name := range []string{"go", "auto"} {
		with, err := inflate.Find(name)
		require.NoError(t, err)
		for _, blob := range [][]byte{archive, packed.Bytes()} {
			index, err := rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob),
				rootfs.Options{DiffID: true, Inflate: with})
			require.NoError(t, err)
			assert.Equal(t, digest(archive), index.DiffID)
			assert.Len(t, index.Entries, 2)
		}
	}
}

// What inflates is believed only when it has ended well, which shows after the archive's own end.
func TestInflatingMustEndWell(t *testing.T) {
	archive := Tar(t, File("a", strings.Repeat("x", 3<<20)))
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write(archive)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	blob := packed.Bytes()
	blob[len(blob)-5] ^= 1 // the checksum
	_, err = rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob), rootfs.Options{})
	assert.ErrorIs(t, err, gzip.ErrChecksum)

	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "igzip"),
		[]byte("#!/bin/sh\nexport PATH=/usr/bin:/bin\ngzip -dc\nexit 3\n"), 0o755))
	with, err := inflate.Find("igzip")
	require.NoError(t, err)
	packed.Reset()
	w, err := gzip.NewWriterLevel(&packed, gzip.NoCompression) // large enough for a program
	require.NoError(t, err)
	_, err = w.Write(archive)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	blob = packed.Bytes()
	_, err = rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob), rootfs.Options{Inflate: with})
	assert.ErrorIs(t, err, inflate.ErrInflater)
}

// SIGSTRUCTs are found at every aligned place, once each, also where the pieces in which a file is read meet.
func TestSigStructsInPrograms(t *testing.T) {
	sig, err := os.ReadFile("../../testdata/vectors/cases/defaults.sig")
	require.NoError(t, err)
	other, err := os.ReadFile("../../testdata/vectors/cases/edmm-64g.sig")
	require.NoError(t, err)
	const piece = 128 << 10
	for _, at := range []int{
		1024, 26273, piece - 1808, piece - 1807, piece - 1804, piece - 1, piece, piece + 1, 2*piece - 900,
		2*piece - 901,
	} {
		body := []byte(ELF(""))
		body = append(body, make([]byte, 3*piece-len(body))...)
		copy(body[at:], sig)
		body = append(append(body, other...), 1, 2, 3)
		i := scan(t, File("p", string(body)))
		require.NotNil(t, i.Entries[0].ELF)
		assert.Equal(t, []string{string(sig), string(other)}, i.Entries[0].ELF.SigStructs, at)
	}
}

// Those that Intel's tool has written lie at odd places.
func TestSigStructsOfTheSDK(t *testing.T) {
	for _, name := range []string{"default", "one-thread", "large", "kss"} {
		file, err := os.ReadFile("../../testdata/vectors/sgx-sdk/" + name + ".signed.so")
		require.NoError(t, err)
		i := scan(t, File("opt/enclave.so", string(file)))
		assert.Equal(t, []string{string(file[26273 : 26273+1808])}, i.Entries[0].ELF.SigStructs, name)
	}
}

// All layers together are bounded as each is by itself.
func TestRoom(t *testing.T) {
	var room rootfs.Room
	layer := &rootfs.Index{Entries: []rootfs.Entry{{Path: "/a", Content: make([]byte, 200<<20)}}}
	require.NoError(t, room.Take(layer))
	require.NoError(t, room.Take(layer))
	assert.ErrorContains(t, room.Take(layer), "databases and scripts")
}

// Dots that stay inside are taken away, as container engines do.
func TestInnerDots(t *testing.T) {
	index := scan(t, File("a/../b", "1"), File("./c/./d/../../e", ""), Hardlink("h", "x/../b"))
	var paths []string
	for _, e := range index.Entries {
		paths = append(paths, e.Path)
	}
	assert.Equal(t, []string{"/b", "/e", "/h"}, paths)
	assert.Equal(t, "/b", index.Entries[2].Link)
}

// What follows the last member of a gzip file is no part of it, whatever inflates it: the answer is the same.
func TestPaddedGzip(t *testing.T) {
	archive := Tar(t, File("a", strings.Repeat("x", 100)), File("b", strings.Repeat("y", 300<<10)))
	member := func(b []byte) []byte {
		var z bytes.Buffer
		w, err := gzip.NewWriterLevel(&z, gzip.NoCompression) // large enough for a program
		require.NoError(t, err)
		_, err = w.Write(b)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		return z.Bytes()
	}
	inflaters := map[string]inflate.Inflater{}
	for _, name := range []string{"go", "igzip"} {
		if with, err := inflate.Find(name); err == nil {
			inflaters[name] = with
		}
	}
	for what, blob := range map[string][]byte{
		"nothing": member(archive),
		"padding": append(member(archive), make([]byte, 1000)...),
		"two members and padding": append(append(member(archive[:5000]), member(archive[5000:])...),
			make([]byte, 3)...),
		"something else": append(member(archive), "garbage"...),
		"zlib":           append(member(archive), zlibOf(t, archive)...),
	} {
		for name, with := range inflaters {
			index, err := rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob),
				rootfs.Options{Inflate: with, DiffID: true})
			if what == "something else" || what == "zlib" {
				want := inflate.ErrCompression
				if name != "go" { // in which case it is read again
					want = inflate.ErrInflater
				}
				assert.ErrorIs(t, err, want, "%s, %s", what, name)
				continue
			}
			if name != "go" && strings.Contains(what, "padding") {
				assert.ErrorIs(t, err, inflate.ErrInflater, "%s: it is read again", what)
				continue
			}
			if assert.NoError(t, err, "%s, %s", what, name) {
				assert.Equal(t, digest(archive), index.DiffID, "%s, %s", what, name)
			}
		}
	}
}

func zlibOf(t *testing.T, content []byte) []byte {
	t.Helper()
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	_, err := w.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return z.Bytes()
}
