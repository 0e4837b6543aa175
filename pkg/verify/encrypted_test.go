package verify_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/page"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/indexrepo"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

// filesKey is another key for each source, as an owner's is.
func filesKey(seed string) func(string) (protectedfs.Key, error) {
	return func(source string) (protectedfs.Key, error) {
		sum := sha256.Sum256([]byte(seed + source))
		return protectedfs.Key(sum[:16]), nil
	}
}

// encrypting has an image's files encrypted.
func encrypting(o convert.Options, paths ...string) convert.Options {
	o.Launch.Encrypt = launch.Encryption{Paths: paths, Key: "files"}
	o.Encrypt = &convert.Encryption{Key: filesKey("one")}
	return o
}

// lines are a text of which every line tells.
func lines(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 1))
	var b strings.Builder
	for range n {
		fmt.Fprintf(&b, "SECRET = %016x%016x\n", r.Uint64(), r.Uint64())
	}
	return b.String()
}

// archive is a Java archive.
func javaArchive(t testing.TB) string {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := range 5 {
		w, err := z.Create(fmt.Sprintf("org/example/Secret%d.class", i))
		require.NoError(t, err)
		_, err = io.WriteString(w, lines(uint64(100+i), 40))
		require.NoError(t, err)
	}
	require.NoError(t, z.Close())
	return b.String()
}

// encryptedSample is an image with files that are encrypted.
type encryptedSample struct {
	paths  []string
	image  func(t testing.TB) v1.Image
	secret []string // contents that must be nowhere
	files  []string // that are encrypted in the end
}

// packed is a layer in another form, with its history.
func packed(t testing.TB, mt types.MediaType, entries ...fixture.Entry) v1.Layer {
	archive := fixture.Tar(t, entries...)
	switch mt {
	case types.OCIUncompressedLayer:
		return static.NewLayer(archive, mt)
	case types.OCILayerZStd:
		w, err := zstd.NewWriter(nil)
		require.NoError(t, err)
		return zstdLayer{static.NewLayer(w.EncodeAll(archive, nil), mt), archive}
	}
	return fixture.Layer(t, entries...)
}

// zstdLayer knows its archive.
type zstdLayer struct {
	v1.Layer
	archive []byte
}

func (l zstdLayer) DiffID() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.archive))
	return h, err
}

func encryptedSamples(t testing.TB) map[string]encryptedSample {
	python := []string{lines(1, 50), lines(2, 3000), "#!/usr/bin/python3 -u\n" + lines(3, 20)}
	golang := fixture.ELF("") + lines(4, 5000)
	versions := []string{lines(5, 10), lines(6, 300), lines(7, 20)}
	base := func(more ...fixture.Entry) []fixture.Entry {
		return append([]fixture.Entry{
			fixture.Program("usr/bin/app", fixture.ELF("")), fixture.File("etc/conf", "public configuration"),
			fixture.Symlink("bin", "usr/bin"),
		}, more...)
	}
	start := v1.Config{Entrypoint: []string{"/usr/bin/app"}, User: "1000:1001"}
	return map[string]encryptedSample{
		"an application in Python": {
			paths: []string{"/srv/app", "/etc/*.pem"}, secret: append(python, lines(8, 9)),
			files: []string{"/etc/key.pem", "/srv/app/empty", "/srv/app/lib/b.py", "/srv/app/main.py", "/srv/app/run"},
			image: func(t testing.TB) v1.Image {
				return fixture.Image(t, v1.Config{
					Entrypoint: []string{"/usr/bin/python3", "/srv/app/main.py"}, WorkingDir: "/srv/app",
				}, fixture.Layer(t, fixture.Program("usr/bin/python3", fixture.ELF("")), fixture.Dir("srv/app/lib"),
					fixture.File("etc/key.pem", lines(8, 9)), fixture.File("etc/cert", "public")),
					fixture.Layer(t, fixture.File("srv/app/main.py", python[0]),
						fixture.File("srv/app/lib/b.py", python[1]),
						fixture.Program("srv/app/run", python[2]), fixture.File("srv/app/empty", "")))
			},
		},
		"a program in Go, from scratch": {
			paths: []string{"/app"}, secret: []string{golang[len(fixture.ELF("")):]}, files: []string{"/app"},
			image: func(t testing.TB) v1.Image {
				return fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}},
					fixture.Layer(t, fixture.Program("app", golang)))
			},
		},
		"a Java archive": {
			paths: []string{"/opt/*/*.jar"}, secret: []string{javaArchive(t)}, files: []string{"/opt/x/app.jar"},
			image: func(t testing.TB) v1.Image {
				return fixture.Image(t, start, fixture.Layer(t, base()...),
					fixture.Layer(t, fixture.File("opt/x/app.jar", javaArchive(t)),
						fixture.File("opt/x/doc", "public")))
			},
		},
		"a directory through two links": {
			paths: []string{"/current"}, secret: []string{lines(9, 80), lines(10, 5)},
			files: []string{"/srv/v1/data", "/srv/v1/sub/more"},
			image: func(t testing.TB) v1.Image {
				return fixture.Image(t, start, fixture.Layer(t, base(fixture.File("srv/v1/data", lines(9, 80)),
					fixture.File("srv/v1/sub/more", lines(10, 5)), fixture.Symlink("app", "srv/v1"),
					fixture.Symlink("current", "/app"), fixture.Symlink("srv/v1/conf", "../../etc/conf"),
					fixture.Symlink("srv/v1/link", "sub/more"), fixture.Symlink("srv/other", "v1/sub"))...))
			},
		},
		"a file that three layers change": {
			paths: []string{"/srv/secret"}, secret: versions,
			files: []string{"/opt/name", "/srv/old", "/srv/secret"},
			image: func(t testing.TB) v1.Image {
				return fixture.Image(t, start,
					fixture.Layer(t, base(fixture.File("srv/secret", versions[0]),
						fixture.Hardlink("srv/old", "srv/secret"))...),
					fixture.Layer(t, fixture.File("srv/secret", versions[1]), fixture.File("srv/public", "for all")),
					fixture.Layer(t, fixture.File("etc/more", "untouched")),
					fixture.Layer(t, fixture.File("opt/name", versions[2]), fixture.Hardlink("srv/secret", "opt/name")))
			},
		},
		"a file that another layer removes": {
			paths: []string{"/srv", "/etc/*.key"}, secret: []string{lines(14, 30), lines(15, 3), lines(16, 3)},
			files: []string{"/etc/new.key", "/srv/a"},
			image: func(t testing.TB) v1.Image {
				return fixture.Image(t, start, fixture.Layer(t, base(fixture.File("srv/gone", lines(14, 30)),
					fixture.File("etc/new.key", "2"),
					fixture.File("etc/old.key", lines(15, 3)), fixture.File("srv/link", lines(16, 3)))...),
					fixture.Layer(t, fixture.File("srv/.wh.gone", ""), fixture.File("etc/.wh.old.key", ""),
						fixture.Symlink("srv/link", "/etc/conf"), fixture.File("srv/a", "1")))
			},
		},
		"layers in all forms": {
			paths: []string{"/srv"}, secret: []string{lines(11, 30), lines(12, 30), lines(13, 30)},
			files: []string{"/srv/gzip", "/srv/none", "/srv/zstd"},
			image: func(t testing.TB) v1.Image {
				img := mutate.MediaType(fixture.Image(t, start), types.OCIManifestSchema1)
				img, err := mutate.Append(mutate.ConfigMediaType(img, types.OCIConfigJSON),
					mutate.Addendum{
						Layer:     packed(t, types.OCILayer, base(fixture.File("srv/gzip", lines(11, 30)))...),
						MediaType: types.OCILayer, History: v1.History{CreatedBy: "first"},
					},
					mutate.Addendum{
						Layer:       packed(t, types.OCILayerZStd, fixture.File("srv/zstd", lines(12, 30))),
						Annotations: map[string]string{"mine": "lost"},
						History:     v1.History{CreatedBy: "second"},
					},
					mutate.Addendum{
						Layer:   packed(t, types.OCIUncompressedLayer, fixture.File("srv/none", lines(13, 30))),
						History: v1.History{CreatedBy: "third"},
					})
				require.NoError(t, err)
				return img
			},
		},
	}
}

// leaks are what must be nowhere: each line of a content, and its digest in all forms.
func leaks(contents []string) map[string]string {
	found := map[string]string{}
	for i, c := range contents {
		for n, line := range strings.Split(c, "\n") {
			if len(line) >= 12 {
				found[fmt.Sprintf("line %d of content %d", n+1, i)] = line
			}
		}
		sum := sha256.Sum256([]byte(c))
		for form, text := range map[string]string{
			"bytes": string(sum[:]), "hexadecimal": hex.EncodeToString(sum[:]), "capitals": fmt.Sprintf("%X", sum),
			"base64":    base64.StdEncoding.EncodeToString(sum[:]),
			"base64url": base64.RawURLEncoding.EncodeToString(sum[:]),
		} {
			found[fmt.Sprintf("the digest of content %d in %s", i, form)] = strings.TrimRight(text, "=")
		}
	}
	return found
}

// search looks for leaks in something that was published.
func search(t testing.TB, what string, b []byte, secrets map[string]string) {
	t.Helper()
	assert.Empty(t, leak(b, secrets), what)
}

// leak names a secret that is in something, as it is or inflated; empty: there is none.
func leak(b []byte, secrets map[string]string) string {
	all := [][]byte{b}
	if z, err := gzip.NewReader(bytes.NewReader(b)); err == nil {
		if plain, err := io.ReadAll(z); err == nil {
			all = append(all, plain)
		}
	}
	if z, err := zstd.NewReader(bytes.NewReader(b)); err == nil {
		if plain, err := io.ReadAll(z); err == nil {
			all = append(all, plain)
		}
		z.Close()
	}
	for _, text := range all {
		for _, name := range slices.Sorted(maps.Keys(secrets)) {
			if bytes.Contains(text, []byte(secrets[name])) {
				return name
			}
		}
	}
	return ""
}

// The search finds what it is for.
func TestLeaksAreFound(t *testing.T) {
	content := "a line of it\n" + lines(1, 2)
	secrets := leaks([]string{content})
	for what, b := range map[string]string{
		"line 1 of content 0":                    "before a line of it after",
		"the digest of content 0 in hexadecimal": fmt.Sprintf("%x", sha256.Sum256([]byte(content))),
	} {
		assert.Equal(t, what, leak([]byte(b), secrets))
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, err := io.WriteString(z, b)
		require.NoError(t, err)
		require.NoError(t, z.Close())
		assert.Equal(t, what, leak(packed.Bytes(), secrets))
		w, err := zstd.NewWriter(nil)
		require.NoError(t, err)
		assert.Equal(t, what, leak(w.EncodeAll([]byte(b), nil), secrets))
	}
	assert.Empty(t, leak([]byte("a line"), secrets))
}

// searchImage looks into all that belongs to an image.
func searchImage(t testing.TB, ref string, secrets map[string]string) {
	t.Helper()
	tag, err := name.ParseReference(ref)
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	raw, err := img.RawManifest()
	require.NoError(t, err)
	search(t, "the manifest", raw, secrets)
	raw, err = img.RawConfigFile()
	require.NoError(t, err)
	search(t, "the configuration", raw, secrets)
	layers, err := img.Layers()
	require.NoError(t, err)
	for i, l := range layers {
		r, err := l.Compressed()
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		search(t, fmt.Sprintf("layer %d", i+1), b, secrets)
	}
	attached, err := registry.Referrers(context.Background(), open(t, ref), attest.Kinds...)
	require.NoError(t, err)
	for _, a := range attached {
		search(t, "what is attached", a.Blob, secrets)
	}
}

func status(r *verify.Report, check string) verify.Status {
	for _, c := range r.Checks {
		if c.Name == check {
			return c.Status
		}
	}
	return ""
}

func trusted(t testing.TB, r *verify.Report) {
	t.Helper()
	for _, c := range r.Checks {
		if c.Status == verify.Failed || c.Undecided {
			t.Errorf("%s: %v %s", c.Name, c.Problems, c.Detail)
		}
	}
	require.True(t, r.Trusted)
}

// No file that is encrypted is anywhere in plain text, nor a digest of it, and the image can be verified and made again
// with the key and without.
func TestEncryptedImages(t *testing.T) {
	reg := fixture.NewRegistry(t)
	public, err := signer(t).Public(context.Background())
	require.NoError(t, err)
	expect := verify.Expectations{MRSigner: []sgx.Measurement{sgx.MRSigner(public)}, AllowSimulated: true}
	withKey := expect
	withKey.FilesKey = filesKey("one")
	wrong := expect
	wrong.FilesKey = filesKey("other")
	samples := encryptedSamples(t)
	for i, what := range slices.Sorted(maps.Keys(samples)) {
		t.Run(what, func(t *testing.T) {
			ctx, s := context.Background(), samples[what]
			repo := fmt.Sprintf("%s/encrypted%d", reg.Host, i)
			from := reg.Push(t, fmt.Sprintf("source%d:1", i), s.image(t))
			kept := t.TempDir()
			o := encrypting(options(t, from), s.paths...)
			o.Cache = cache.Open(kept, cache.DefaultLimit)
			shared, err := registry.NewArtifacts(fmt.Sprintf("%s/index%d", reg.Host, i), false,
				registry.Options{FirstPause: 1})
			require.NoError(t, err)
			signing := keys(t)["ECDSA"]
			o.Shared = &indexrepo.Repo{Artifacts: shared, Sign: signing}
			o.Evidence = &convert.Evidence{Key: signing}
			r := run(t, o, signer(t), repo+":1")
			secrets := leaks(s.secret)
			wrap, err := filesKey("one")(open(t, from).Digest)
			require.NoError(t, err)
			secrets["the key"], secrets["the key in hexadecimal"] = string(wrap[:]), hex.EncodeToString(wrap[:])
			secrets["the key in base64"] = strings.TrimRight(base64.StdEncoding.EncodeToString(wrap[:]), "=")
			searchImage(t, repo+":1", secrets)
			told, err := json.Marshal(r)
			require.NoError(t, err)
			search(t, "the result", told, secrets)
			require.NoError(t, filepath.WalkDir(kept, func(p string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				b, err := os.ReadFile(p)
				search(t, "the cache", b, secrets)
				return err
			}))
			if tags, err := remote.List(repository(t, fmt.Sprintf("%s/index%d", reg.Host, i))); err == nil {
				for _, tag := range tags {
					searchImage(t, fmt.Sprintf("%s/index%d:%s", reg.Host, i, tag), secrets)
				}
			}

			again := run(t, o, signer(t), repo+":again")
			assert.Equal(t, r.Output.Digest, again.Output.Digest)
			c, err := inspect.ReadLayers(ctx, open(t, repo+":1"), inspect.Options{})
			require.NoError(t, err)
			assert.Equal(t, s.files, c.Encrypted.Paths())
			var html bytes.Buffer
			require.NoError(t, page.Write(&html, c))
			search(t, "the page", html.Bytes(), secrets)
			said, err := json.Marshal(c)
			require.NoError(t, err)
			search(t, "what inspect says", said, secrets)

			v := check(t, repo+":1", expect, nil)
			trusted(t, v)
			assert.Equal(t, verify.OK, status(v, verify.CheckEncrypted))
			assert.Equal(t, verify.Skipped, status(v, verify.CheckContents))
			v = check(t, repo+":1", expect, open(t, from))
			trusted(t, v)
			assert.Equal(t, verify.OK, status(v, verify.CheckSource))
			v = check(t, repo+":1", withKey, open(t, from))
			trusted(t, v)
			assert.Equal(t, verify.OK, status(v, verify.CheckContents))
			report, err := json.Marshal(v)
			require.NoError(t, err)
			search(t, "the report", report, secrets)
			v = check(t, repo+":1", wrong, nil)
			assert.False(t, v.Trusted)
			assert.Equal(t, verify.Failed, status(v, verify.CheckContents))

			for _, key := range []func(string) (protectedfs.Key, error){nil, filesKey("one")} {
				rebuilt, err := verify.Rebuild(ctx, open(t, repo+":1"),
					verify.RebuildOptions{Source: parse(t, from), FilesKey: key})
				require.NoError(t, err)
				assert.True(t, rebuilt.Same, "%v", rebuilt.Why)
				assert.Equal(t, key == nil, strings.Contains(strings.Join(rebuilt.Taken, "\n"), "the encrypted files"))
				assert.Contains(t, rebuilt.Taken[0], "the runtime, layer sha256:")
			}
			rebuilt, err := verify.Rebuild(ctx, open(t, repo+":1"),
				verify.RebuildOptions{Source: parse(t, from), FilesKey: filesKey("other")})
			require.NoError(t, err)
			assert.False(t, rebuilt.Same)

			// Another key, without the source: it is as if converted with that.
			o.Encrypt = &convert.Encryption{Key: filesKey("other")}
			want := run(t, o, signer(t), repo+":other")
			before := withKey
			before.MRSigner, before.AnyRuntime = nil, true
			_, p, err := verify.Rekey(ctx, open(t, repo+":1"), nil, before, filesKey("other"), inspect.Options{})
			require.NoError(t, err)
			require.NotNil(t, p)
			defer p.Close()
			key, signature, err := convert.Sign(ctx, p, signer(t))
			require.NoError(t, err)
			got, err := convert.Finish(ctx, p, key, signature, parse(t, repo+":rekeyed"), o.StoreOptions)
			require.NoError(t, err)
			assert.Equal(t, want.Output.Digest, got.Output.Digest)
			a, err := inspect.Read(ctx, open(t, repo+":1"), inspect.Options{})
			require.NoError(t, err)
			b, err := inspect.Read(ctx, open(t, repo+":rekeyed"), inspect.Options{})
			require.NoError(t, err)
			differences, err := inspect.Compare(a, b)
			require.NoError(t, err)
			for _, f := range s.files {
				assert.True(t, slices.ContainsFunc(differences, func(d inspect.Difference) bool {
					return d.Part == "encrypted" && d.Name == f
				}), f)
			}
		})
	}
}

func repository(t *testing.T, s string) name.Repository {
	t.Helper()
	r, err := name.NewRepository(s)
	require.NoError(t, err)
	return r
}

// What can be done to encrypted files, and the check that finds it.
func TestTamperingWithEncryptedFiles(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", encryptedSamples(t)["a directory through two links"].image(t))
	run(t, encrypting(options(t, from), "/current"), signer(t), reg.Host+"/dst:1")
	public, err := signer(t).Public(context.Background())
	require.NoError(t, err)
	expect := verify.Expectations{MRSigner: []sgx.Measurement{sgx.MRSigner(public)}, AllowSimulated: true}
	const ciphertext, list = "srv/v1/data", "cconvert/app/encrypted.json"
	const plainLayer, encryptedLayer, runtimeAt, enclaveAt = 0, 1, 2, enclaveLayer
	changed := func(change func(*encrypted.List)) func(*tampered) {
		return func(x *tampered) {
			x.file(enclaveAt, list, func(b []byte) []byte {
				l, err := encrypted.ParseList(b)
				require.NoError(t, err)
				change(l)
				b, err = l.Marshal()
				require.NoError(t, err)
				return b
			})
		}
	}
	tag, err := name.NewTag(reg.Host + "/dst:1")
	require.NoError(t, err)
	original, err := remote.Image(tag)
	require.NoError(t, err)
	other := entries(t, func() v1.Layer {
		o := encrypting(options(t, from), "/current")
		o.Encrypt.Key = filesKey("other")
		run(t, o, signer(t), reg.Host+"/dst:other")
		tag, err := name.NewTag(reg.Host + "/dst:other")
		require.NoError(t, err)
		img, err := remote.Image(tag)
		require.NoError(t, err)
		layers, err := img.Layers()
		require.NoError(t, err)
		return layers[encryptedLayer]
	}())
	for what, c := range map[string]struct {
		change func(*tampered)
		want   string
		says   string
	}{
		"a bit of a ciphertext": {func(x *tampered) {
			x.file(encryptedLayer, ciphertext, flip(5000))
		}, verify.CheckEncrypted, "/srv/v1/data has"},
		"a shorter ciphertext": {func(x *tampered) {
			x.file(encryptedLayer, ciphertext, func(b []byte) []byte { return b[:protectedfs.NodeSize] })
		}, verify.CheckEncrypted, "the list says"},
		"another key's ciphertexts": {func(x *tampered) {
			x.layers[encryptedLayer] = fixture.Layer(x.t, other...)
		}, verify.CheckEncrypted, "the list says"},
		"a ciphertext less": {func(x *tampered) {
			x.edit(encryptedLayer, func(l []fixture.Entry) []fixture.Entry { return l[:len(l)-1] })
		}, verify.CheckEncrypted, "1 of 2"},
		"a file more": {func(x *tampered) {
			x.edit(encryptedLayer, func(l []fixture.Entry) []fixture.Entry {
				return append(l, fixture.File("srv/v1/new", "plain"))
			})
		}, verify.CheckEncrypted, "has /srv/v1/new"},
		"a directory in the place of a file": {func(x *tampered) {
			x.edit(encryptedLayer, func(l []fixture.Entry) []fixture.Entry {
				return append(l, fixture.Dir("etc/conf"))
			})
		}, verify.CheckEncrypted, "is no directory of an encrypted file"},
		"another mode of a directory": {func(x *tampered) {
			x.edit(encryptedLayer, func(l []fixture.Entry) []fixture.Entry { l[0].Header.Mode = 0o777; return l })
		}, verify.CheckEncrypted, "has the mode 777"},
		"a file of the directory that another layer removes": {func(x *tampered) {
			x.edit(plainLayer, func(l []fixture.Entry) []fixture.Entry {
				return append(l, fixture.File("srv/v1/gone", "plain"))
			})
		}, verify.CheckEncrypted, `layer 1 has "/srv/v1/gone" in plain text`},
		"a link among the ciphertexts": {func(x *tampered) {
			x.edit(encryptedLayer, func(l []fixture.Entry) []fixture.Entry {
				return append(l, fixture.Symlink("srv/v1/new", "/etc/conf"))
			})
		}, verify.CheckEncrypted, "has /srv/v1/new"},
		"another owner of a ciphertext": {func(x *tampered) {
			x.edit(encryptedLayer, func(l []fixture.Entry) []fixture.Entry { l[len(l)-1].Header.Uid = 7; return l })
		}, verify.CheckEncrypted, "belongs to 7:"},
		"the plain file again": {func(x *tampered) {
			x.edit(plainLayer, func(l []fixture.Entry) []fixture.Entry {
				return append(l, fixture.File(ciphertext, lines(9, 80)))
			})
		}, verify.CheckEncrypted, `layer 1 has "/srv/v1/data" in plain text`},
		"the plain file through a link": {func(x *tampered) {
			x.edit(plainLayer, func(l []fixture.Entry) []fixture.Entry {
				return append(l, fixture.File("app/data", lines(9, 80)))
			})
		}, verify.CheckEncrypted, `layer 1 has "/srv/v1/data" in plain text`},
		"a hard link in the place of the plain file": {func(x *tampered) {
			x.edit(plainLayer, func(l []fixture.Entry) []fixture.Entry {
				return append(l, fixture.Hardlink(ciphertext, "etc/conf"))
			})
		}, verify.CheckEncrypted, `layer 1 has "/srv/v1/data" in plain text`},
		"the plain file on top": {func(x *tampered) {
			x.layers = append(x.layers, fixture.Layer(x.t, fixture.File(ciphertext, lines(9, 80))))
		}, verify.CheckOnTop, `has "/srv/v1/data"`},
		"the plain file in the runtime's layer": {func(x *tampered) {
			x.edit(runtimeAt, func(l []fixture.Entry) []fixture.Entry {
				return append(l, fixture.File(ciphertext, lines(9, 80)))
			})
		}, verify.CheckOnTop, `has "/srv/v1/data"`},
		"the list": {changed(func(l *encrypted.List) {
			l.Files[0].SHA256 = strings.Repeat("0", 64)
		}), verify.CheckFiles, "encrypted.json"},
		"the list, found": {changed(func(l *encrypted.List) {
			l.Files[0].SHA256 = strings.Repeat("0", 64)
		}), verify.CheckEncrypted, "the list says"},
		"the digest of a first node in the list": {changed(func(l *encrypted.List) {
			l.Files[0].Head = strings.Repeat("0", 64)
		}), verify.CheckEncrypted, "begins with a node of the digest"},
		"no digest of a first node in the list": {changed(func(l *encrypted.List) {
			l.Files[0].Head = ""
		}), verify.CheckEncrypted, "do not agree that the program may change"},
		"a recipe by which the program may change files": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Options.Encrypt.Mutable = []string{"/srv/**"} })
		}, verify.CheckEncrypted, "do not agree that the program may change"},
		"an entry less in the list": {changed(func(l *encrypted.List) {
			l.Files = l.Files[1:]
		}), verify.CheckEncrypted, ""},
		"an interpreter in the list": {changed(func(l *encrypted.List) {
			l.Files[0].Interpreter = "/bin/evil"
		}), verify.CheckFiles, "encrypted.json"},
		"another key's id in the list": {changed(func(l *encrypted.List) {
			l.KeyID = strings.Repeat("0", 32)
		}), verify.CheckPolicy, "the recipe has another key"},
		"a list that is none": {func(x *tampered) {
			x.file(enclaveAt, list, func([]byte) []byte { return []byte("{}") })
		}, verify.CheckEncrypted, "its key or its version"},
		"no list": {func(x *tampered) {
			x.edit(enclaveAt, func(l []fixture.Entry) []fixture.Entry {
				return slices.DeleteFunc(l, func(e fixture.Entry) bool { return e.Header.Name == list })
			})
		}, verify.CheckEncrypted, "do not agree"},
		"a mount that is no longer encrypted": {func(x *tampered) {
			x.file(enclaveAt, libos.ManifestPath[1:], func(b []byte) []byte {
				return bytes.Replace(b, []byte(`type = "encrypted"`), []byte(`type = "chroot"   `), 1)
			})
		}, verify.CheckPolicy, "fs.mounts"},
		"a mount of another key": {func(x *tampered) {
			x.file(enclaveAt, libos.ManifestPath[1:], func(b []byte) []byte {
				return bytes.Replace(b, []byte(`key_name = "files"`), []byte(`key_name = "_evil"`), 1)
			})
		}, verify.CheckPolicy, "fs.mounts"},
		"the recipe's paths": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Options.Encrypt.Paths = []string{"/srv/v1/sub"} })
		}, verify.CheckPolicy, ""},
		"the recipe's key": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Options.Encrypt.KeyID = strings.Repeat("1", 32) })
		}, verify.CheckPolicy, "another key"},
		"a recipe without encryption": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Options.Encrypt = nil })
		}, verify.CheckEncrypted, "do not agree"},
		"a recipe that has the key in the manifest": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Options.Encrypt.Insecure = true })
		}, verify.CheckPolicy, "and it does not"},
	} {
		t.Run(what, func(t *testing.T) {
			x := &tampered{t: t}
			x.layers, err = original.Layers()
			require.NoError(t, err)
			config, err := original.ConfigFile()
			require.NoError(t, err)
			x.config = config.DeepCopy()
			c.change(x)
			ref := fmt.Sprintf("%s/tampered:%x", reg.Host, sha256.Sum256([]byte(what)))
			x.push(ref, original)
			withKey := expect
			withKey.FilesKey = filesKey("one")
			for _, e := range []verify.Expectations{expect, withKey} {
				r := check(t, ref, e, nil)
				assert.False(t, r.Trusted)
				i := slices.IndexFunc(r.Checks, func(k verify.Check) bool {
					return k.Name == c.want && k.Status == verify.Failed
				})
				require.GreaterOrEqual(t, i, 0, "%+v", r.Checks)
				assert.Contains(t, strings.Join(r.Checks[i].Problems, "\n"), c.says)
			}
		})
	}
}

// Whoever has the key can have encrypted something else than the source has: with the key and the source that is seen.
func TestEncryptedContentsOfAnotherSource(t *testing.T) {
	reg := fixture.NewRegistry(t)
	images := map[string]string{}
	for name, body := range map[string]string{"good": lines(1, 30), "evil": lines(2, 30)} {
		images[name] = reg.Push(t, name+":1", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}},
			fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")), fixture.File("srv/a", body))))
	}
	same := func(string) (protectedfs.Key, error) { return protectedfs.Key{1}, nil }
	o := encrypting(options(t, images["evil"]), "/srv")
	o.Encrypt.Key = same
	o.Found = &image.Found{Open: func(context.Context) (*image.Image, error) {
		img := open(t, images["evil"])
		img.Digest = open(t, images["good"]).Digest // a conversion that lies about what it has read
		return img, nil
	}}
	run(t, o, signer(t), reg.Host+"/dst:1")
	e := verify.Expectations{AnySigner: true, AllowSimulated: true}
	r := check(t, reg.Host+"/dst:1", e, open(t, images["good"]))
	assert.Equal(t, verify.OK, status(r, verify.CheckSource), "not to be seen without the key")
	assert.Equal(t, verify.Skipped, status(r, verify.CheckContents))
	e.FilesKey = same
	r = check(t, reg.Host+"/dst:1", e, open(t, images["good"]))
	assert.Equal(t, verify.Failed, status(r, verify.CheckSource))
	assert.False(t, r.Trusted)
}

// Whoever passes a key expects encrypted files.
func TestKeyWithoutEncryptedFiles(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	run(t, options(t, from), signer(t), reg.Host+"/dst:1")
	e := verify.Expectations{AnySigner: true, AllowSimulated: true, FilesKey: filesKey("one")}
	r := check(t, reg.Host+"/dst:1", e, nil)
	assert.False(t, r.Trusted)
	assert.Equal(t, verify.Failed, status(r, verify.CheckEncrypted))
	_, err := verify.Rebuild(context.Background(), open(t, reg.Host+"/dst:1"),
		verify.RebuildOptions{Source: parse(t, from), FilesKey: filesKey("one")})
	assert.ErrorIs(t, err, verify.ErrNotEncrypted)
}

// Nobody signs contents that nobody has looked into without saying so.
func TestSigningEncryptedImages(t *testing.T) {
	reg := fixture.NewRegistry(t)
	ctx := context.Background()
	from := reg.Push(t, "src:1", encryptedSamples(t)["a Java archive"].image(t))
	run(t, encrypting(options(t, from), "/opt"), signer(t), reg.Host+"/dst:1")
	e := verify.Expectations{AllowSimulated: true, AnyRuntime: true}
	r, p, err := verify.BeforeSigning(ctx, open(t, reg.Host+"/dst:1"), nil, e, inspect.Options{})
	require.NoError(t, err)
	assert.Nil(t, p)
	assert.Equal(t, []string{verify.CheckContents}, r.Unmet())
	e.AnyContents = true
	_, p, err = verify.BeforeSigning(ctx, open(t, reg.Host+"/dst:1"), nil, e, inspect.Options{})
	require.NoError(t, err)
	assert.NotNil(t, p)
	e.AnyContents, e.FilesKey = false, filesKey("one")
	_, p, err = verify.BeforeSigning(ctx, open(t, reg.Host+"/dst:1"), nil, e, inspect.Options{})
	require.NoError(t, err)
	assert.NotNil(t, p)
	_, _, err = verify.Rekey(ctx, open(t, reg.Host+"/dst:1"), nil, verify.Expectations{
		AllowSimulated: true, AnyRuntime: true, AnyContents: true,
	}, filesKey("new"), inspect.Options{})
	require.ErrorIs(t, err, verify.ErrFilesKey)
	_, _, err = verify.Rekey(ctx, open(t, reg.Host+"/dst:1"), nil, e, filesKey("one"), inspect.Options{})
	require.ErrorIs(t, err, verify.ErrSameKey)
	plain := reg.Push(t, "plain:1", sample(t))
	run(t, options(t, plain), signer(t), reg.Host+"/plain:2")
	e.FilesKey = nil
	_, _, err = verify.Rekey(ctx, open(t, reg.Host+"/plain:2"), nil, e, filesKey("new"), inspect.Options{})
	assert.ErrorIs(t, err, verify.ErrNotEncrypted)
}

// The key in the manifest is for trials, and is seen as what it is.
func TestInsecureKey(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", encryptedSamples(t)["a program in Go, from scratch"].image(t))
	o := encrypting(enclaved(t, from), "/app")
	o.Launch.Encrypt.AtStart = true
	r := run(t, o, signer(t), reg.Host+"/dst:1")
	assert.Contains(t, codesOf(r.Findings), finding.InsecureKey)
	assert.NotContains(t, codesOf(r.Findings), finding.EncryptedAtStart)
	e := verify.Expectations{AnySigner: true, AnyRuntime: true, AllowDebug: true}
	v := check(t, reg.Host+"/dst:1", e, open(t, from))
	trusted(t, v)
	assert.Equal(t, verify.OK, status(v, verify.CheckContents), "everybody has the key")
	assert.Contains(t, v.Weaknesses, "fs.insecure__keys.files")
	rebuilt, err := verify.Rebuild(context.Background(), open(t, reg.Host+"/dst:1"),
		verify.RebuildOptions{Source: parse(t, from)})
	require.NoError(t, err)
	assert.True(t, rebuilt.Same)

	o.Launch.Encrypt.AtStart = false
	r = run(t, o, signer(t), reg.Host+"/dst:2")
	assert.Contains(t, codesOf(r.Findings), finding.EncryptedAtStart)
	assert.Contains(t, codesOf(r.Findings), finding.EncryptedKey)
}

// Files that are encrypted at random have other ciphertexts each time, and rebuild says so.
func TestEncryptedAtRandom(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", encryptedSamples(t)["a Java archive"].image(t))
	o := encrypting(options(t, from), "/opt/x/app.jar")
	o.Launch.Encrypt.Random = true
	one := run(t, o, signer(t), reg.Host+"/dst:1")
	two := run(t, o, signer(t), reg.Host+"/dst:2")
	assert.NotEqual(t, one.MREnclave, two.MREnclave)
	rebuilt, err := verify.Rebuild(context.Background(), open(t, reg.Host+"/dst:1"),
		verify.RebuildOptions{Source: parse(t, from), FilesKey: filesKey("one")})
	require.NoError(t, err)
	assert.True(t, rebuilt.Same)
	assert.Contains(t, strings.Join(rebuilt.Taken, "\n"), "at random")
	v := check(t, reg.Host+"/dst:1", verify.Expectations{
		AnySigner: true, AllowSimulated: true, FilesKey: filesKey("one"),
	}, open(t, from))
	trusted(t, v)
}

// Files that the program may change have no digest that an agent compares, after a new key as well.
func TestFilesThatMayChange(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", encryptedSamples(t)["a directory through two links"].image(t))
	o := getting(encrypting(options(t, from), "/current"))
	o.Launch.Encrypt.Mutable = []string{"/srv/*/data"}
	run(t, o, signer(t), reg.Host+"/dst:1")
	expect := verify.Expectations{
		AllowSimulated: true, AnyRuntime: true, AnySecrets: true, FilesKey: filesKey("one"),
	}
	r := verified(t, reg.Host+"/dst:1", from, verify.Expectations{
		AnySigner: true, AllowSimulated: true, FilesKey: filesKey("one"), AnySecrets: true,
	}, knowing(""))
	trusted(t, r)
	assert.Empty(t, r.Weaknesses)
	assert.True(t, r.Agent.Encrypted)
	assert.Contains(t, string(r.Manifest), `"/cconvert/ciphertexts/srv/v1"`)
	for _, f := range r.Encrypted.Files {
		assert.Equal(t, f.Path == "/srv/v1/data", f.Head == "", f.Path)
	}
	rebuilt, err := verify.Rebuild(context.Background(), open(t, reg.Host+"/dst:1"), verify.RebuildOptions{
		Source: parse(t, from), FilesKey: filesKey("one"), Read: knowing(""), Convert: options(t, from),
	})
	require.NoError(t, err)
	assert.True(t, rebuilt.Same, "%v", rebuilt.Why)
	report, p, err := verify.Rekey(context.Background(), open(t, reg.Host+"/dst:1"), nil, expect, filesKey("other"),
		knowing(""))
	require.NoError(t, err)
	require.NotNil(t, p, "%v", report.Unmet())
	defer p.Close()
	key, signature, err := convert.Sign(context.Background(), p, signer(t))
	require.NoError(t, err)
	_, err = convert.Finish(context.Background(), p, key, signature, parse(t, reg.Host+"/dst:2"), o.StoreOptions)
	require.NoError(t, err)
	r = verified(t, reg.Host+"/dst:2", "", verify.Expectations{
		AnySigner: true, AllowSimulated: true, FilesKey: filesKey("other"),
	}, knowing(""))
	trusted(t, r)
	assert.True(t, r.Encrypted.Mutable("/srv/v1/data"))

	o.Launch.Encrypt.Mutable = []string{"/srv/other"}
	_, err = convert.Prepare(context.Background(), o)
	assert.ErrorContains(t, err, "encrypt-mutable /srv/other: no encrypted file has this path")
	o.Launch.Encrypt.Mutable = nil
	for what, overlay := range map[string]string{
		`there is a mount at "/cconvert/ciphertexts"`: "[[fs.mounts]]\npath = '/cconvert/ciphertexts'\n" +
			"uri = 'file:/x'\n",
		`there is a mount at "/cconvert/ciphertexts/srv/v1"`: "[[fs.mounts]]\n" +
			"path = '/cconvert/ciphertexts/srv/v1'\nuri = 'file:/x'\n",
		"/cconvert/app/encrypted.json is not measured": "[sgx]\n" +
			"allowed_files = ['file:/cconvert/app/encrypted.json']\n",
	} {
		o.Overlay = overlay
		_, err = convert.Prepare(context.Background(), o)
		assert.ErrorContains(t, err, what)
	}
}

func codesOf(findings []finding.Finding) (codes []string) {
	for _, f := range findings {
		codes = append(codes, f.Code)
	}
	return codes
}

// What else says what is in encrypted files is told, with the paths.
func TestPlainCopies(t *testing.T) {
	reg := fixture.NewRegistry(t)
	secret := lines(1, 3)
	img := fixture.Image(t, v1.Config{
		Entrypoint: []string{"/bin/app"}, Env: []string{"TOKEN=" + strings.TrimSpace(strings.Split(secret, "\n")[1])},
	},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")), fixture.File("build/copy", secret)),
		fixture.Layer(t, fixture.File("srv/a", secret), fixture.Hardlink("srv/b", "srv/a"),
			fixture.File("opt/copy", secret), fixture.File("build/.wh.copy", "")))
	o, target := encrypting(options(t, reg.Push(t, "src:1", img)), "/srv/a"), parse(t, reg.Host+"/src:2")
	o.Target = &target
	r := run(t, o, signer(t), target.String())
	var told []string
	for _, f := range r.Findings {
		switch f.Code {
		case finding.PlainCopy, finding.PlainQuote, finding.PlainSource, finding.EncryptedLink:
			told = append(told, f.Code+" "+f.Path+": "+f.Message)
		}
	}
	assert.Equal(t, []string{
		"encrypted-link /srv/b: it is a hard link to an encrypted file, and encrypted as well",
		"plain-copy /build/copy: layer 1 has the content of /srv/a at this path, though a layer above hides it, in " +
			"plain text",
		"plain-copy /opt/copy: layer 2 has the content of /srv/a at this path, in plain text",
		"plain-source " + reg.Host + "/src:1: the source, with the files in plain text, is in the repository to " +
			"which the result goes: whoever may read the one may read the other",
		"plain-quote /srv/a: the image says in public what is in this file: config.Env[0]",
	}, told)
}
