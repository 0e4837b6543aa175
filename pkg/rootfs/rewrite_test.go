package rootfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// without leaves out the files of which the path has a text in it.
func without(t testing.TB, blob []byte, name string) (archive []byte, shown map[string]string, err error) {
	t.Helper()
	var out bytes.Buffer
	shown = map[string]string{}
	err = rootfs.Rewrite(context.Background(), bytes.NewReader(blob), image.DigestOf(blob), rootfs.Options{}, &out,
		func(_ int, e *rootfs.Entry, _ time.Time) func(io.Reader) error {
			if name == "" || !strings.Contains(e.Path, name) || e.Type == rootfs.Dir {
				return nil
			}
			return func(content io.Reader) error {
				b, err := io.ReadAll(content)
				shown[e.Path] = string(b)
				return err
			}
		})
	return out.Bytes(), shown, err
}

// Archives of GNU tar, in all its formats, with what is odd in them: nothing but the entries that are left out changes.
func TestRewriteArchives(t *testing.T) {
	dir := t.TempDir()
	write := func(name, body string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(body), 0o640))
	}
	long := strings.Repeat("directory/", 14)
	write("a", "first")
	write("secret", strings.Repeat("s", 1500))
	write("blocks", strings.Repeat("b", 1024))
	write("empty", "")
	write("secret-empty", "")
	write("ü", "not ASCII")
	write("z", "last")
	require.NoError(t, os.Symlink("secret", filepath.Join(dir, "link")))
	require.NoError(t, os.Link(filepath.Join(dir, "secret"), filepath.Join(dir, "secret-link")))
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	require.NoError(t, err)
	_, err = sparse.WriteAt([]byte("behind a hole"), 1<<20)
	require.NoError(t, err)
	require.NoError(t, sparse.Close())
	for _, format := range []string{"gnu", "oldgnu", "pax", "posix", "ustar", "v7"} {
		if format != "v7" && format != "ustar" {
			write(long+"secret", "far away")
			write(long+strings.Repeat("n", 120), "long name")
		}
		args := []string{"-C", dir, "--format=" + format, "--sort=name", "-cf", "-"}
		if format != "v7" && format != "ustar" {
			args = append(args, "--sparse")
		} else {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, "directory")))
		}
		archive, err := exec.Command("tar", append(args, ".")...).Output()
		require.NoError(t, err, format)
		same, _, err := without(t, archive, "")
		require.NoError(t, err)
		assert.True(t, bytes.Equal(archive, same), "%s: nothing was left out, and it is another archive", format)
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, err = z.Write(archive)
		require.NoError(t, err)
		require.NoError(t, z.Close())
		less, shown, err := without(t, packed.Bytes(), "secret")
		require.NoError(t, err)
		assert.NotContains(t, string(less), "ssssss", format)
		assert.Equal(t, strings.Repeat("s", 1500), shown["/secret"]+shown["/secret-link"], "the first has it")
		listed, err := pipe(less, "tar", "--full-time", "-tvf", "-")
		require.NoError(t, err, "%s: %s", format, listed)
		whole, err := pipe(archive, "tar", "--full-time", "-tvf", "-")
		require.NoError(t, err)
		var want []string
		for line := range strings.Lines(whole) {
			if name := strings.Split(line, " -> ")[0]; !strings.Contains(name, "secret") {
				want = append(want, line)
			}
		}
		assert.Equal(t, strings.Join(want, ""), listed, format)
		got, err := pipe(less, "tar", "-xOf", "-", "./sparse", "./z")
		require.NoError(t, err)
		assert.True(t, strings.HasSuffix(got, "behind a hole"+"last"), format)
	}
}

func pipe(in []byte, name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	c.Stdin = bytes.NewReader(in)
	out, err := c.CombinedOutput()
	return string(out), err
}

// What follows the end of an archive is no part of it, and could be anything.
func TestRewriteTrailer(t *testing.T) {
	archive := fixture.Tar(t, fixture.File("a", "x"))
	same, _, err := without(t, append(bytes.Clone(archive), make([]byte, 4096)...), "")
	require.NoError(t, err)
	assert.Len(t, same, len(archive)+4096)
	less, _, err := without(t, append(bytes.Clone(archive), fixture.Tar(t, fixture.File("secret", "s"))...), "")
	require.NoError(t, err)
	assert.NotContains(t, string(less), "secret")
}

func TestRewriteRefuses(t *testing.T) {
	archive := fixture.Tar(t, fixture.File("a", "x"), fixture.File("b", "y"))
	var out bytes.Buffer
	keep := func(int, *rootfs.Entry, time.Time) func(io.Reader) error { return nil }
	ctx := context.Background()
	err := rootfs.Rewrite(ctx, bytes.NewReader(archive), image.DigestOf([]byte("other")), rootfs.Options{}, &out, keep)
	require.ErrorIs(t, err, rootfs.ErrDigest)
	_, _, err = without(t, archive[:1100], "b")
	require.Error(t, err)
	full := &filled{left: 600}
	err = rootfs.Rewrite(ctx, bytes.NewReader(archive), image.DigestOf(archive), rootfs.Options{}, full, keep)
	require.ErrorIs(t, err, io.ErrShortWrite)
}

// filled takes so many bytes.
type filled struct{ left int }

func (f *filled) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(b), nil
}

// What is left of any archive that can be read is what its index says without what was left out.
func FuzzRewrite(f *testing.F) {
	f.Add(fixture.Tar(f, fixture.File("a", "x"), fixture.File("secret", strings.Repeat("y", 600)), fixture.Dir("d"),
		fixture.Hardlink("secret2", "secret"), fixture.File("z", "")))
	f.Add(fixture.Tar(f, fixture.File(strings.Repeat("long/", 40)+"secret", "x"), fixture.File("b", "z")))
	f.Fuzz(func(t *testing.T, archive []byte) {
		ctx := context.Background()
		before, err := rootfs.Scan(ctx, bytes.NewReader(archive), image.DigestOf(archive), rootfs.Options{})
		if err != nil {
			return
		}
		less, _, err := without(t, archive, "secret")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tar.NewReader(bytes.NewReader(less)).Next(); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		after, err := rootfs.Scan(ctx, bytes.NewReader(less), image.DigestOf(less), rootfs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, e := range before.Entries {
			if !strings.Contains(e.Path, "secret") || e.Type == rootfs.Dir {
				want = append(want, fmt.Sprint(e.Path, e.Type, e.SHA256, e.Mode, e.Link))
			}
		}
		var got []string
		for _, e := range after.Entries {
			got = append(got, fmt.Sprint(e.Path, e.Type, e.SHA256, e.Mode, e.Link))
		}
		assert.Equal(t, want, got)
	})
}
