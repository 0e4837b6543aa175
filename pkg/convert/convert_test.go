package convert_test

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

var keyFile = filepath.Join(root, "../../testdata/vectors/test-signing-key.pem")

func signer(t testing.TB) *sgx.Key {
	t.Helper()
	b, err := os.ReadFile(keyFile)
	require.NoError(t, err)
	k, err := sgx.ParseKey(b, nil)
	require.NoError(t, err)
	return k
}

func parse(t testing.TB, s string) image.Reference {
	t.Helper()
	r, err := image.ParseReference(s, false)
	require.NoError(t, err)
	return r
}

// runtimeFile is a program that stands in for the simulated runtime.
func runtimeFile(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "runtime")
	require.NoError(t, os.WriteFile(file, []byte(fixture.ELF("")), 0o755))
	return file
}

func options(t testing.TB, from string) convert.Options {
	t.Helper()
	return convert.Options{
		Source: parse(t, from), Backend: sim.Backend{}, Runtime: libos.LoadOptions{Source: runtimeFile(t)},
		Launch:       launch.Options{Memory: 64 << 20, Threads: 2},
		Enclave:      libos.EnclaveOptions{Attestation: "none", LogLevel: "error"},
		StoreOptions: convert.StoreOptions{Image: registry.Options{FirstPause: time.Millisecond}},
	}
}

func run(ctx context.Context, t testing.TB, o convert.Options, to string) (*convert.Result, error) {
	t.Helper()
	p, err := convert.Prepare(ctx, o)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	key, signature, err := convert.Sign(ctx, p, signer(t))
	require.NoError(t, err)
	return convert.Finish(ctx, p, key, signature, parse(t, to), o.StoreOptions)
}

func sample(t testing.TB) v1.Image {
	return fixture.Image(t, v1.Config{
		Entrypoint: []string{"/bin/app", "--serve"}, Cmd: []string{"arg"}, Env: []string{"A=1", "LD_PRELOAD=/x.so"},
		User: "1000", WorkingDir: "/srv",
		StopSignal: "SIGINT", Labels: map[string]string{"mine": "kept"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}}, Volumes: map[string]struct{}{"/data": {}},
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "true"}},
	},
		fixture.Layer(t, fixture.Program("usr/bin/app", fixture.ELF("")), fixture.Symlink("bin", "usr/bin"),
			fixture.File("etc/conf", "x")),
		fixture.Layer(t, fixture.File("srv/a", "1"), fixture.File("srv/b", "2"), fixture.File("etc/.wh.conf", "")))
}

func TestOutputImage(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	r, err := run(context.Background(), t, options(t, from), reg.Host+"/dst:1")
	require.NoError(t, err)

	tag, err := name.NewTag(reg.Host + "/dst:1")
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	require.NoError(t, validate.Image(img))
	c, err := img.ConfigFile()
	require.NoError(t, err)
	assert.Equal(t, []string{"/cconvert/sim/loader", "/cconvert/sim/loader", "init", "/cconvert/app/entrypoint"},
		c.Config.Entrypoint)
	assert.Empty(t, c.Config.Cmd)
	assert.Equal(t, "SIGTERM", c.Config.StopSignal)
	assert.Equal(t, "1000", c.Config.User)
	assert.Equal(t, "/srv", c.Config.WorkingDir)
	assert.Equal(t, []string{"A=1"}, c.Config.Env)
	assert.Equal(t, []string{"CMD", "true"}, c.Config.Healthcheck.Test)
	assert.Contains(t, c.Config.ExposedPorts, "80/tcp")
	assert.Contains(t, c.Config.Volumes, "/data")
	assert.Equal(t, "kept", c.Config.Labels["mine"])
	source, err := sample(t).Digest()
	require.NoError(t, err)
	assert.Equal(t, source.String(), c.Config.Labels["org.opencontainers.image.base.digest"])
	assert.Equal(t, r.MREnclave.String(), c.Config.Labels[recipe.LabelMREnclave])
	assert.Len(t, c.History, 4)

	m, err := img.Manifest()
	require.NoError(t, err)
	before, err := sample(t).Manifest()
	require.NoError(t, err)
	for i, l := range before.Layers {
		assert.Equal(t, l.Digest, m.Layers[i].Digest, "the source's layers are untouched")
	}
	assert.Equal(t, types.DockerLayer, m.Layers[3].MediaType, "media types follow the source's")

	back, err := store.Open(context.Background(), parse(t, r.Output.Ref), registry.Options{})
	require.NoError(t, err)
	read, err := inspect.Read(context.Background(), back, inspect.Options{})
	require.NoError(t, err)
	assert.Empty(t, read.SignatureError)
	assert.Equal(t, r.MREnclave, read.MREnclave)
	assert.Equal(t, "2026-02-28", read.Date, "the day on which the source was created")
	assert.Equal(t, []string{"/bin/app", "--serve", "arg"}, read.Program.Argv)
	assert.Equal(t, "/usr/bin/app", read.Program.Entrypoint)
	assert.Equal(t, 1000, read.Program.UID)
	assert.Equal(t, r.TrustedFiles, read.TrustedFiles)

	_, err = convert.Prepare(context.Background(), options(t, r.Output.Ref))
	assert.ErrorIs(t, err, convert.ErrConverted)
}

func TestOCISourceGivesOCIOutput(t *testing.T) {
	reg := fixture.NewRegistry(t)
	img := mutate.ConfigMediaType(mutate.MediaType(sample(t), types.OCIManifestSchema1), types.OCIConfigJSON)
	img, ok := mutate.Annotations(img, map[string]string{"org.opencontainers.image.title": "kept"}).(v1.Image)
	require.True(t, ok)
	r, err := run(context.Background(), t, options(t, reg.Push(t, "oci:1", img)), reg.Host+"/oci:2")
	require.NoError(t, err)
	d, err := name.NewDigest(r.Output.Ref)
	require.NoError(t, err)
	out, err := remote.Image(d)
	require.NoError(t, err)
	m, err := out.Manifest()
	require.NoError(t, err)
	assert.Equal(t, types.OCIManifestSchema1, m.MediaType)
	assert.Equal(t, types.OCILayer, m.Layers[3].MediaType)
	assert.Equal(t, types.OCIConfigJSON, m.Config.MediaType)
	assert.Equal(t, "kept", m.Annotations["org.opencontainers.image.title"])
}

// The same input gives the same output: whatever the mirror's name, the directory, the number of jobs,
// the kind of place, or the day.
func TestSameInputSameDigest(t *testing.T) {
	img := sample(t)
	var digests []string
	for i, jobs := range []int{1, 2, 8} {
		reg := fixture.NewRegistry(t) // another port, another name
		o := options(t, reg.Push(t, []string{"a/src:1", "mirror/of/b:other", "c:x"}[i], img))
		o.Jobs, o.Image.Jobs = jobs, jobs
		t.Chdir(t.TempDir())
		t.Setenv("TZ", []string{"UTC", "Asia/Tokyo", "America/New_York"}[i])
		r, err := run(context.Background(), t, options(t, o.Source.String()), "oci:"+t.TempDir()+":t")
		require.NoError(t, err)
		digests = append(digests, r.Output.Digest)
		r, err = run(context.Background(), t, o, reg.Host+"/out:1")
		require.NoError(t, err)
		digests = append(digests, r.Output.Digest)
	}
	for _, d := range digests {
		assert.Equal(t, digests[0], d)
	}
	// A fixed value: it changes only together with FormatEpoch.
	reg := fixture.NewRegistry(t)
	r, err := run(context.Background(), t, options(t, reg.Push(t, "x:1", img)), reg.Host+"/out:1")
	require.NoError(t, err)
	file := filepath.Join(root, "testdata", fmt.Sprintf("epoch-%d.digest", recipe.FormatEpoch))
	golden, err := os.ReadFile(file)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		require.NoError(t, os.WriteFile(file, []byte(r.Output.Digest+"\n"), 0o644))
		return
	}
	require.NoError(t, err)
	assert.Equal(t, strings.TrimSpace(string(golden)), r.Output.Digest,
		"another output for the same input needs another FormatEpoch")
}

var root = func() string {
	d, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return d
}()

// No clock can show in the output: the only ones there are time the steps for the report, say what in the cache was
// used last, and how long a registry is waited for.
func TestNoClock(t *testing.T) {
	allowed := map[string]bool{
		"convert/options.go": true, "cache/cache.go": true, "image/registry/download.go": true,
		"image/internal/roundtrip/patience.go": true, "image/internal/roundtrip/retry.go": true,
	}
	err := filepath.WalkDir(filepath.Join(root, ".."), func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return err
		}
		b, err := os.ReadFile(p)
		require.NoError(t, err)
		rel, err := filepath.Rel(filepath.Join(root, ".."), p)
		require.NoError(t, err)
		if dir := filepath.Dir(rel); dir == "batch" || dir == "plan" || dir == "service" || dir == "indexrepo" {
			// conversions do not see what hands them to workers, nor how long an index repository is left alone
			return nil
		}
		assert.Equal(t, allowed[rel], strings.Contains(string(b), "time.Now("), rel)
		return nil
	})
	require.NoError(t, err)
}

// The parts of the private key are nowhere in what is stored.
func TestKeyStaysOut(t *testing.T) {
	reg := fixture.NewRegistry(t)
	dir := t.TempDir()
	_, err := run(context.Background(), t, options(t, reg.Push(t, "src:1", sample(t))), "oci:"+dir+":t")
	require.NoError(t, err)
	secrets := keyNumbers(t)
	err = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		require.NoError(t, err)
		for _, content := range [][]byte{b, inflate(b)} {
			for what, secret := range secrets {
				assert.NotContains(t, string(content), secret, "%s in %s", what, p)
			}
		}
		return nil
	})
	require.NoError(t, err)
}

func inflate(b []byte) []byte {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil
	}
	plain, _ := io.ReadAll(z)
	return plain
}

// keyNumbers returns the parts of the private key in the forms in which they could leak.
func keyNumbers(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(keyFile)
	require.NoError(t, err)
	block, _ := pem.Decode(text)
	var key *rsa.PrivateKey
	if k, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		key = k
	} else {
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		require.NoError(t, err)
		key = k.(*rsa.PrivateKey)
	}
	forms := map[string]string{}
	for name, n := range map[string]*big.Int{
		"d": key.D, "p": key.Primes[0], "q": key.Primes[1], "dP": key.Precomputed.Dp, "dQ": key.Precomputed.Dq,
		"qInv": key.Precomputed.Qinv,
	} {
		raw := n.Bytes()
		little := make([]byte, len(raw))
		for i, b := range raw {
			little[len(raw)-1-i] = b
		}
		forms[name+" raw"], forms[name+" little endian"] = string(raw[:32]), string(little[:32])
		forms[name+" hex"] = hex.EncodeToString(raw)[:64]
		forms[name+" HEX"] = strings.ToUpper(forms[name+" hex"])
		for shift := range 3 { // where base64 begins within a text is unknown
			forms[name+" base64 "+string(rune('0'+shift))] = base64.RawStdEncoding.EncodeToString(raw[shift:])[:40]
		}
		forms[name+" decimal"] = n.String()[:60]
	}
	return forms
}

func TestKeyNumbersAreFound(t *testing.T) {
	text, err := os.ReadFile(keyFile)
	require.NoError(t, err)
	block, _ := pem.Decode(text)
	found := 0
	for _, secret := range keyNumbers(t) {
		if bytes.Contains(block.Bytes, []byte(secret)) {
			found++
		}
	}
	assert.Equal(t, 6, found, "the search would find the key's own file")
}

func TestBadImages(t *testing.T) {
	reg := fixture.NewRegistry(t)
	app := v1.Config{Cmd: []string{"/app"}}
	program := fixture.Program("app", fixture.ELF(""))
	for _, c := range []struct {
		name, want string
		img        v1.Image
		is         error
	}{
		{"empty image", "was not found", fixture.Image(t, app), process.ErrImage},
		{
			"no entrypoint", "neither ENTRYPOINT nor CMD", fixture.Image(t, v1.Config{}, fixture.Layer(t, program)),
			process.ErrImage,
		},
		{
			"entrypoint not in the image", `"/app" was not found, tried /app`,
			fixture.Image(t, app, fixture.Layer(t, fixture.File("x", ""))), process.ErrImage,
		},
		{
			"path out of the image", `leads out of the layer`,
			fixture.Image(t, app, fixture.Layer(t, program, fixture.File("../x", "x"))), nil,
		},
		{
			"entrypoint in a loop of links", "too many levels", fixture.Image(t, app,
				fixture.Layer(t, fixture.Symlink("app", "b"), fixture.Symlink("b", "app"))), rootfs.ErrLoop,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := convert.Prepare(context.Background(), options(t, reg.Push(t, "bad:1", c.img)))
			assert.ErrorContains(t, err, c.want)
			assert.ErrorContains(t, err, "bad:1", "the error names the image") //nolint:testifylint
			if c.is != nil {
				assert.ErrorIs(t, err, c.is)
			}
		})
	}
	t.Run("enclave too small", func(t *testing.T) {
		o := options(t, reg.Push(t, "ok:1", fixture.Image(t, app, fixture.Layer(t, program))))
		o.Launch.Memory = 256 << 10
		_, err := convert.Prepare(context.Background(), o)
		var small *enclave.TooSmallError
		require.ErrorAs(t, err, &small)
		o.Launch.Memory = small.Needed
		_, err = convert.Prepare(context.Background(), o)
		assert.NoError(t, err, "the size that the error names is enough")
	})
	t.Run("name that is not UTF-8", func(t *testing.T) {
		p, err := convert.Prepare(context.Background(), options(t,
			reg.Push(t, "ok:1", fixture.Image(t, app, fixture.Layer(t, program, fixture.File("caf\xe9", "x"))))))
		require.NoError(t, err)
		assert.Contains(t, p.Findings(), finding.New(finding.NameNotUTF8, finding.Warning, `"/caf\xe9"`,
			"the name is not UTF-8, so a manifest cannot list it: the program cannot read it"))
	})
	t.Run("blob that is not its digest", func(t *testing.T) {
		from := reg.Push(t, "ok:1", fixture.Image(t, app, fixture.Layer(t, program)))
		other := fixture.Tar(t, fixture.File("evil", "x"))
		config := true
		reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") || config {
				config = config && !strings.Contains(r.URL.Path, "/blobs/")
				return false
			}
			_, _ = w.Write(other)
			return true
		})
		defer reg.Intercept(nil)
		_, err := convert.Prepare(context.Background(), options(t, from))
		assert.ErrorIs(t, err, rootfs.ErrDigest)
	})
}

// A signature by another key, or over something else, is never stored.
func TestFinishRefusesAForeignSignature(t *testing.T) {
	reg := fixture.NewRegistry(t)
	p, err := convert.Prepare(context.Background(), options(t, reg.Push(t, "src:1", sample(t))))
	require.NoError(t, err)
	key, signature, err := convert.Sign(context.Background(), p, signer(t))
	require.NoError(t, err)
	signature[0] ^= 1
	_, err = convert.Finish(context.Background(), p, key, signature, parse(t, reg.Host+"/dst:1"),
		convert.StoreOptions{})
	assert.ErrorContains(t, err, "does not belong to this enclave")
	assert.Empty(t, reg.Digest(t, "dst:1"))
}

// Signed elsewhere, on another day, the image is the same.
func TestSigningApart(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	direct, err := run(context.Background(), t, options(t, from), reg.Host+"/a:1")
	require.NoError(t, err)
	p, err := convert.Prepare(context.Background(), options(t, from))
	require.NoError(t, err)
	require.Len(t, p.ToBeSigned(), 256)
	signature, err := signer(t).Sign(context.Background(), p.ToBeSigned())
	require.NoError(t, err)
	public, err := signer(t).Public(context.Background())
	require.NoError(t, err)
	apart, err := convert.Finish(context.Background(), p, public, signature, parse(t, reg.Host+"/b:1"),
		convert.StoreOptions{})
	require.NoError(t, err)
	assert.Equal(t, direct.Output.Digest, apart.Output.Digest)
}

func TestHostArguments(t *testing.T) {
	reg := fixture.NewRegistry(t)
	program := fixture.Layer(t, fixture.Program("app", fixture.ELF("")))
	for name, c := range map[string]struct {
		config    v1.Config
		args      []string
		tail, cmd []string
	}{
		"entrypoint and cmd": {
			v1.Config{Entrypoint: []string{"/app", "-x"}, Cmd: []string{"a"}}, nil, []string{"-x"}, []string{"a"},
		},
		"cmd only": {v1.Config{Cmd: []string{"/app", "a"}}, nil, []string{}, []string{"a"}},
		"neither":  {v1.Config{}, []string{"/app", "b"}, []string{}, []string{"b"}},
		"other default": {
			v1.Config{Entrypoint: []string{"/app"}, Cmd: []string{"a"}}, []string{"b"}, []string{}, []string{"b"},
		},
	} {
		o := options(t, reg.Push(t, "src:1", fixture.Image(t, c.config, program)))
		o.Launch.HostArgs, o.Launch.Args = true, c.args
		r, err := run(context.Background(), t, o, reg.Host+"/dst:1")
		require.NoError(t, err)
		d, err := name2digest(r.Output.Ref)
		require.NoError(t, err)
		img, err := remote.Image(d)
		require.NoError(t, err)
		config, err := img.ConfigFile()
		require.NoError(t, err)
		assert.Equal(t, c.tail, config.Config.Entrypoint[4:], name)
		assert.Equal(t, c.cmd, config.Config.Cmd, name)
		codes := ""
		for _, w := range r.Findings {
			codes += w.Code + " "
		}
		assert.Contains(t, codes, finding.HostArguments)
		assert.NotContains(t, codes, finding.InsecureSetting, "said once")
	}
}

func name2digest(s string) (name.Digest, error) { return name.NewDigest(s) }

func TestOverlay(t *testing.T) {
	reg := fixture.NewRegistry(t)
	o := options(t, reg.Push(t, "src:1", sample(t)))
	text := "sgx.max_threads = 4\nsgx.enclave_size = \"0x8000000\"\nsgx.trusted_files = [\"file:/srv/\", " +
		"\"file:/bin/app\"]\n"
	o.Overlay = text
	r, err := run(context.Background(), t, o, reg.Host+"/dst:1")
	require.NoError(t, err)
	assert.Equal(t, 4, r.MaxThreads)
	assert.EqualValues(t, 128<<20, r.EnclaveSize)
	img, err := store.Open(context.Background(), parse(t, r.Output.Ref), registry.Options{})
	require.NoError(t, err)
	c, err := inspect.Read(context.Background(), img, inspect.Options{})
	require.NoError(t, err)
	assert.Equal(t, text, c.Recipe.Overlay)
	assert.Contains(t, string(c.Manifest), `enclave_size = "128M"`, "in decimal, as the loader reads it")
	sum := sha256.Sum256([]byte(fixture.ELF("")))
	assert.Contains(t, c.Trusted, libos.FileEntry{
		URI: "file:/bin/app", SHA256: hex.EncodeToString(sum[:]), Reason: string(manifest.ReasonOverlay),
	})

	o.Overlay = "sgx.trusted_files = [\"file:/none\"]\n"
	_, err = convert.Prepare(context.Background(), o)
	assert.ErrorContains(t, err, `trusted file "file:/none"`)
}

func TestResultJSON(t *testing.T) {
	reg := fixture.NewRegistry(t)
	r, err := run(context.Background(), t, options(t, reg.Push(t, "src:1", sample(t))), reg.Host+"/dst:1")
	require.NoError(t, err)
	b, err := json.Marshal(r)
	require.NoError(t, err)
	var m map[string]any
	require.NoError(t, json.Unmarshal(b, &m))
	for _, key := range []string{
		"source", "output", "runtime", "mr_enclave", "mr_signer", "isv_prod_id", "isv_svn", "debug_enclave",
		"enclave_size", "max_threads", "edmm",
		"trusted_files", "manifest_bytes", "findings", "timings",
	} {
		assert.Contains(t, m, key)
	}
}

// A configuration in which some readers would find another entrypoint than ours is refused.
func TestAmbiguousConfiguration(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	dir := t.TempDir()
	_, err := run(context.Background(), t, options(t, from), "oci:"+dir+":1")
	require.NoError(t, err)
	config := []byte(
		`{"os":"linux","architecture":"amd64","config":{"Cmd":["/usr/bin/app"],"entrypoint":["/usr/bin/app"]},
		"rootfs":{"type":"layers","diff_ids":[]}}`)
	h, size, err := v1.SHA256(bytes.NewReader(config))
	require.NoError(t, err)
	layers, err := sample(t).Layers()
	require.NoError(t, err)
	desc := v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: h, Size: size}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: desc}
	var ids []string
	for _, l := range layers {
		d, err := l.Digest()
		require.NoError(t, err)
		n, err := l.Size()
		require.NoError(t, err)
		id, err := l.DiffID()
		require.NoError(t, err)
		ids = append(ids, `"`+id.String()+`"`)
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.OCILayer, Digest: d, Size: n})
	}
	config = bytes.Replace(config, []byte(`"diff_ids":[]`), []byte(`"diff_ids":[`+strings.Join(ids, ",")+`]`), 1)
	put := func(b []byte) (v1.Hash, int64) {
		h, n, err := v1.SHA256(bytes.NewReader(b))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "blobs/sha256", h.Hex), b, 0o600))
		return h, n
	}
	m.Config.Digest, m.Config.Size = put(config)
	raw, err := json.Marshal(m)
	require.NoError(t, err)
	digest, n := put(raw)
	index, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2, Manifests: []v1.Descriptor{{MediaType: m.MediaType, Digest: digest, Size: n}},
	})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "index.json"), index, 0o600))
	_, err = run(context.Background(), t, options(t, "oci:"+dir), "oci:"+t.TempDir()+":1")
	assert.ErrorContains(t, err, `has the key "entrypoint", which must be "Entrypoint"`)
}
