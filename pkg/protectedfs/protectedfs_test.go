package protectedfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const vectors = "../../testdata/vectors/gramine-encrypted-files/"

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(vectors + name)
	require.NoError(t, err)
	return b
}

func testKey(t testing.TB) Key { return Key(read(t, "key.bin")) }

// content is the plain text of the vectors.
func content(n int64) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = (x*1103515245 + 12345) & 0x7fffffff
		b[i] = byte(x >> 16)
	}
	return b
}

// file is a file in memory.
type file []byte

func (f file) WriteAt(b []byte, offset int64) (int, error) {
	if offset+int64(len(b)) > int64(len(f)) {
		return 0, io.ErrShortWrite
	}
	return copy(f[offset:], b), nil
}

func announced(path string, plain []byte, v Version) File {
	return File{Path: path, Size: int64(len(plain)), Version: v, SHA256: sha256.Sum256(plain)}
}

func encrypt(t testing.TB, plain []byte, f File, key Key) []byte {
	t.Helper()
	out := make(file, Length(f.Size))
	require.NoError(t, Encrypt(out, bytes.NewReader(plain), f, key))
	return out
}

func decrypt(b []byte, path string, key Key) ([]byte, error) {
	r, err := Open(bytes.NewReader(b), int64(len(b)), path, key)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// Gramine's own tool wrote these.
func TestFilesOfGramine(t *testing.T) {
	key := testKey(t)
	names, err := filepath.Glob(vectors + "tool/data-*")
	require.NoError(t, err)
	require.Len(t, names, 7)
	for _, name := range names {
		name = filepath.Base(name)
		size, err := strconv.ParseInt(strings.TrimPrefix(name, "data-"), 10, 64)
		require.NoError(t, err)
		b := read(t, "tool/"+name)
		assert.Len(t, b, int(Length(size)))
		plain, err := decrypt(b, name, key)
		require.NoError(t, err, name)
		assert.Equal(t, content(size), plain, name)
	}
	r, err := Open(bytes.NewReader(read(t, "tool/d e/ü/x y")), 12288, "d e/ü/x y", key)
	require.NoError(t, err)
	assert.Equal(t, Version2, r.Version)
	_, err = io.ReadAll(r)
	assert.NoError(t, err)
}

// Files with derived keys are as another implementation wrote them, and Gramine's tool has read them.
func TestDerivedKeys(t *testing.T) {
	key := testKey(t)
	names, err := filepath.Glob(vectors + "det/*")
	require.NoError(t, err)
	require.Len(t, names, 8)
	for _, name := range names {
		name = filepath.Base(name)
		kind, number, _ := strings.Cut(name, "-")
		size, err := strconv.ParseInt(number, 10, 64)
		require.NoError(t, err)
		version := Version2
		if kind == "v1" {
			version = Version1
		}
		want, path := read(t, "det/"+name), "/srv/app/"+name
		assert.True(t, bytes.Equal(want, encrypt(t, content(size), announced(path, content(size), version), key)), name)
		plain, err := decrypt(want, path, key)
		require.NoError(t, err)
		assert.Equal(t, content(size), plain, name)
	}

	plain := content(3073)
	k := newDerivedKeys(key, "/srv/app/f-3073", 3073, sha256.Sum256(plain))
	assert.Equal(t, "03f1524b5de180309f96b6f71f0cb0ac3470aa61fa6aaa77f1519068517e15b0", hex.EncodeToString(k.file))
	one := k.node(1)
	assert.Equal(t, "1e0be11634a1085538fbdb573664a67f", hex.EncodeToString(one[:]))
	meta := key.derive(metadataLabel, k.nonce())
	assert.Equal(t, "0d28ac4fe75f7335f7cdd8fed0ff6425", hex.EncodeToString(meta[:]))
	assert.Len(t, key.ID(), 32)
}

// RFC 4493, section 4, example 3.
func TestCMAC(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		require.NoError(t, err)
		return b
	}
	key := Key(unhex("2b7e151628aed2a6abf7158809cf4f3c"))
	mac := cmac(key, unhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411"))
	assert.Equal(t, "dfa66747de9ae63030ca32611497c827", hex.EncodeToString(mac[:]))
	mac = cmac(key, nil)
	assert.Equal(t, "bb1d6929e95937287fa37d129b756746", hex.EncodeToString(mac[:]))
}

// sizes are those at which the number of nodes changes, and what is beside them.
var sizes = []int64{
	0, 1, 2, 15, 16, 3071, 3072, 3073, 4095, 4096, 4097, 7167, 7168, 7169, 8191, 8193, 65535, 65537, 396287, 396288,
	396289, 400383, 400385, 1_700_000, 12_979_199, 12_979_200, 12_979_201, 12_983_297, 13_000_000, 40_000_000,
	157_000_000,
}

func TestSizes(t *testing.T) {
	key := testKey(t)
	for _, size := range sizes {
		plain := content(size)
		for _, version := range []Version{Version1, Version2} {
			if version == Version1 && size > 2_000_000 {
				continue
			}
			f := announced("/a", plain, version)
			b := encrypt(t, plain, f, key)
			assert.True(t, CheckLength(int64(len(b))))
			back, err := decrypt(b, "/a", key)
			require.NoError(t, err, size)
			require.True(t, bytes.Equal(plain, back), size)
			f.Random = true
			random := encrypt(t, plain, f, key)
			assert.NotEqual(t, b[:NodeSize], random[:NodeSize])
			if size < 2_000_000 {
				back, err = decrypt(random, "/a", key)
				require.NoError(t, err, size)
				assert.True(t, bytes.Equal(plain, back), size)
			}
		}
	}
}

func TestLengths(t *testing.T) {
	for size, want := range map[int64]int64{0: 1, 3072: 1, 3073: 3, 396_288: 98, 396_289: 100} {
		assert.Equal(t, want*NodeSize, Length(size), size)
	}
	possible := map[int64]bool{}
	for size := int64(0); size < 1<<21; size += 512 {
		possible[Length(size)] = true
	}
	for n := range int64(400) {
		assert.Equal(t, possible[n*NodeSize], CheckLength(n*NodeSize), n)
	}
	for _, bad := range []int64{-4096, 1, 4095, 4097, 1 << 62} {
		assert.False(t, CheckLength(bad))
	}
}

// Every way in which a host can change a file is refused, with the reason.
func TestRefused(t *testing.T) {
	key, size := testKey(t), int64(500_000) // two nodes of the tree
	good := encrypt(t, content(size), announced("/srv/a", content(size), Version2), key)
	other := content(size)
	other[len(other)-1] ^= 1
	second := encrypt(t, other, announced("/srv/a", other, Version2), key)
	small := encrypt(t, content(9), announced("/srv/a", content(9), Version2), key)
	last := len(good)/NodeSize - 1
	for name, c := range map[string]struct {
		change func(b []byte) []byte
		want   error
	}{
		"empty":                   {func([]byte) []byte { return nil }, ErrFormat},
		"magic":                   {func(b []byte) []byte { b[0]++; return b }, ErrFormat},
		"version":                 {func(b []byte) []byte { b[8] = 3; return b }, ErrFormat},
		"minor version":           {func(b []byte) []byte { b[9] = 1; return b }, ErrFormat},
		"taken for the first":     {func(b []byte) []byte { b[8] = 1; return b }, ErrFormat},
		"writing was interrupted": {func(b []byte) []byte { b[58] = 1; return b }, ErrFormat},
		"nonce":                   {func(b []byte) []byte { b[10] ^= 1; return b }, ErrKey},
		"tag":                     {func(b []byte) []byte { b[42] ^= 1; return b }, ErrKey},
		"metadata":                {func(b []byte) []byte { b[59] ^= 1; return b }, ErrKey},
		"what follows them":       {func(b []byte) []byte { b[NodeSize-1] = 1; return b }, ErrFormat},
		"root":                    {func(b []byte) []byte { b[NodeSize+5] ^= 1; return b }, ErrChanged},
		"first data":              {func(b []byte) []byte { b[2*NodeSize] ^= 1; return b }, ErrChanged},
		"second node of the tree": {func(b []byte) []byte { b[98*NodeSize] ^= 1; return b }, ErrChanged},
		"last data":               {func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, ErrChanged},
		"shorter by a node":       {func(b []byte) []byte { return b[:last*NodeSize] }, ErrFormat},
		"shorter by a byte":       {func(b []byte) []byte { return b[:len(b)-1] }, ErrFormat},
		"longer":                  {func(b []byte) []byte { return append(b, make([]byte, NodeSize)...) }, ErrFormat},
		"swapped": {func(b []byte) []byte {
			copy(b[2*NodeSize:], good[3*NodeSize:4*NodeSize])
			copy(b[3*NodeSize:], good[2*NodeSize:3*NodeSize])
			return b
		}, ErrChanged},
		"of another file": {func(b []byte) []byte {
			copy(b[2*NodeSize:], second[2*NodeSize:3*NodeSize])
			return b
		}, ErrChanged},
		"another's first node": {func(b []byte) []byte { copy(b, second[:NodeSize]); return b }, ErrChanged},
		"another's size":       {func(b []byte) []byte { copy(b, small[:NodeSize]); return b }, ErrFormat},
	} {
		_, err := decrypt(c.change(bytes.Clone(good)), "/srv/a", key)
		assert.ErrorIs(t, err, c.want, name)
	}
	_, err := decrypt(good, "/srv/b", key)
	assert.ErrorIs(t, err, ErrPath)
	assert.ErrorContains(t, err, `"/srv/a", not "/srv/b"`)
	key[0] ^= 1
	_, err = decrypt(good, "/srv/a", key)
	assert.ErrorIs(t, err, ErrKey)
}

// A key is used for one content only, so another content than was announced is an error.
func TestContentIsTheAnnouncedOne(t *testing.T) {
	plain := content(10_000)
	f := announced("/a", plain, Version2)
	out := make(file, Length(f.Size))
	for name, r := range map[string]io.Reader{
		"changed":  bytes.NewReader(append(bytes.Clone(plain[:9999]), plain[9999]^1)),
		"shorter":  bytes.NewReader(plain[:9999]),
		"longer":   bytes.NewReader(append(bytes.Clone(plain), 0)),
		"empty":    bytes.NewReader(nil),
		"breaking": io.MultiReader(bytes.NewReader(plain), iotest.ErrReader(errors.New("broken"))),
	} {
		assert.ErrorIs(t, Encrypt(out, r, f, Key{}), ErrContent, name)
		assert.Equal(t, make([]byte, NodeSize), []byte(out[:NodeSize]), "without the first node nothing can be read")
	}
	for _, bad := range []File{
		{Path: "", Version: Version2}, {Path: strings.Repeat("x", MaxPath+1), Version: Version2},
		{Path: "/a\x00b", Version: Version2}, {Path: "/a/../b", Version: Version2}, {Path: "/a/", Version: Version2},
		{Path: "/a", Version: 3}, {Path: "/a", Version: Version2, Size: -1},
	} {
		assert.Error(t, Encrypt(out, bytes.NewReader(nil), bad, Key{}), fmt.Sprint(bad))
	}
	assert.ErrorIs(t, Encrypt(out[:NodeSize], bytes.NewReader(plain), f, Key{}), io.ErrShortWrite)
}

// What is announced costs nothing before it is there.
func TestAnnouncedSize(t *testing.T) {
	f := File{Path: "/a", Size: maxContent, Version: Version2}
	assert.ErrorIs(t, Encrypt(make(file, 1<<20), bytes.NewReader(content(10_000)), f, Key{}), ErrContent)
	assert.True(t, CheckLength(Length(maxContent)))
}

// flaky is a file that a host serves otherwise after it has failed once.
type flaky struct {
	before, after []byte
	failed        bool
}

func (f *flaky) ReadAt(b []byte, offset int64) (int, error) {
	if !f.failed && offset == 2*NodeSize {
		f.failed = true
		return 0, errors.New("once")
	}
	if f.failed {
		return bytes.NewReader(f.after).ReadAt(b, offset)
	}
	return bytes.NewReader(f.before).ReadAt(b, offset)
}

// After an error nothing more is read: the tree would be read again, and nodes be taken for others.
func TestErrorsStay(t *testing.T) {
	key, plain := testKey(t), content(13_000_000)
	good := encrypt(t, plain, announced("/a", plain, Version2), key)
	moved := bytes.Clone(good)
	copy(moved[treeNumber(33)*NodeSize:][:3*NodeSize], good[treeNumber(1)*NodeSize:])
	r, err := Open(&flaky{before: good, after: moved}, int64(len(good)), "/a", key)
	require.NoError(t, err)
	head, err := io.ReadAll(r)
	require.ErrorContains(t, err, "once")
	assert.Len(t, head, inline)
	n, again := r.Read(make([]byte, 10))
	assert.Zero(t, n)
	assert.Equal(t, err, again)
}

func TestFiles(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	name := func(n string) string { return filepath.Join(dir, n) }
	plain, f := content(10_000), File{Path: "/a", Version: Version2}
	require.NoError(t, os.WriteFile(name("in"), plain, 0o644))
	require.NoError(t, os.Symlink("in", name("link")))
	require.NoError(t, syscall.Mkfifo(name("pipe"), 0o600))
	require.NoError(t, EncryptFile(ctx, name("in"), name("out"), f, Key{}))
	require.NoError(t, DecryptFile(ctx, name("out"), name("back"), "/a", Key{}))
	back, err := os.ReadFile(name("back"))
	require.NoError(t, err)
	assert.Equal(t, plain, back)
	for _, c := range [][2]string{
		{"in", "link"}, {"in", "in"}, {"in", "pipe"}, {"pipe", "new"}, {"in", "."}, {".", "new"},
	} {
		assert.ErrorIs(t, EncryptFile(ctx, name(c[0]), name(c[1]), f, Key{}), ErrFile, c)
		assert.ErrorIs(t, DecryptFile(ctx, name(c[0]), name(c[1]), "/a", Key{}), ErrFile, c)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	assert.ErrorIs(t, EncryptFile(ended, name("in"), name("new"), f, Key{}), context.Canceled)
	assert.ErrorIs(t, DecryptFile(ended, name("out"), name("new"), "/a", Key{}), context.Canceled)
	assert.ErrorIs(t, DecryptFile(ctx, name("out"), name("new"), "/b", Key{}), ErrPath)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, left, 5, "nothing is left of what failed")
}

// No key is used twice: not by another path, nor by another content, however little it differs.
func TestKeysAreNotUsedTwice(t *testing.T) {
	key, plain := testKey(t), content(500_000)
	changed := bytes.Clone(plain)
	changed[len(changed)-1] ^= 1
	seen := map[string]string{}
	for name, b := range map[string][]byte{
		"one":         encrypt(t, plain, announced("/a", plain, Version2), key),
		"other path":  encrypt(t, plain, announced("/b", plain, Version2), key),
		"one changed": encrypt(t, changed, announced("/a", changed, Version2), key),
		"other key":   encrypt(t, plain, announced("/a", plain, Version2), Key{}),
	} {
		for n := NodeSize; n < len(b); n += NodeSize {
			node := string(b[n : n+NodeSize])
			assert.Empty(t, seen[node], name)
			seen[node] = name
		}
	}
}

// Metadata is authenticated, and can be nonsense all the same if whoever has the key wrote it.
func FuzzOpen(f *testing.F) {
	key := testKey(f)
	for _, size := range []int64{0, 3073, 12_000} {
		plain := content(size)
		b := encrypt(f, plain, announced("/a", plain, Version2), key)
		h, err := ReadHeader(b)
		require.NoError(f, err)
		meta, err := gcm(key.derive(metadataLabel, h.nonce)).
			Open(nil, zeroIV[:], append(bytes.Clone(h.meta), h.tag[:]...), nil)
		require.NoError(f, err)
		f.Add(meta, b, true)
		f.Add([]byte{}, b, false)
	}
	f.Fuzz(func(t *testing.T, meta, b []byte, rewrite bool) {
		if rewrite && len(meta) == metaSize && len(b) >= NodeSize {
			w := writer{File: File{Version: Version2}, dst: file(b), keys: randomKeys{}}
			if err := w.writeMetadata(meta, key); err != nil {
				t.Fatal(err)
			}
		}
		plain, err := decrypt(b, "/a", key)
		if err == nil && Length(int64(len(plain))) != int64(len(b)) {
			t.Fatalf("%d bytes of %d", len(plain), len(b))
		}
		_, _ = ReadHeader(b)
	})
}

// Encrypting, beside AES-128-GCM over as many bytes.
func BenchmarkEncrypt(b *testing.B) {
	plain := content(100_000_000)
	out := make(file, Length(int64(len(plain))))
	f := announced("/a", plain, Version2)
	b.Run("file", func(b *testing.B) {
		b.SetBytes(f.Size)
		for b.Loop() {
			require.NoError(b, Encrypt(out, bytes.NewReader(plain), f, Key{}))
		}
	})
	b.Run("gcm", func(b *testing.B) {
		b.SetBytes(f.Size)
		aead := gcm(Key{})
		for b.Loop() {
			dst := out[:0]
			for i := 0; i < len(plain); i += NodeSize {
				aead.Seal(dst, zeroIV[:], plain[i:min(i+NodeSize, len(plain))], nil)
			}
		}
	})
}
