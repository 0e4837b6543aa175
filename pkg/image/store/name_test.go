package store_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
)

// hostileNames are none that a registry, a file system or a rule would all read alike.
var hostileNames = []string{
	"R/public/../prod/app:7", "R/public/./app:7", "R/public//app:7", "R/../app", "R/public/app:..", "R/public/app:.",
	"R/public/app:.hidden", "R/public/app/", "R/.public/app", "R/public/..", "../R/app", "./app", "R/pub%2e%2e/app",
	"R/a\x00b",
	"R/a/../../../../etc/passwd", "R/app@sha256:..", "R/app:7/../8", "R/app?x=1", "R/app#x", "R/app:a b",
	"user@R/app:1", "R/A/app",
}

func TestHostileNames(t *testing.T) {
	for _, s := range hostileNames {
		s = strings.ReplaceAll(s, "R", "registry.example")
		_, err := image.ParseReference(s, false)
		assert.ErrorIs(t, err, image.ErrReference, s)
		_, err = image.ParseName(s, false)
		assert.ErrorIs(t, err, image.ErrReference, s)
		_, err = image.ParseReference("docker-daemon:"+s, false)
		assert.ErrorIs(t, err, image.ErrReference, s)
	}
	for _, s := range []string{
		"registry.example/a:1", "registry.example/../a", "registry.example/a/..", "registry.example/a@sha256:" +
			strings.Repeat("0", 64),
	} {
		_, err := image.ParseRepository(s, false)
		assert.ErrorIs(t, err, image.ErrReference, s)
	}
	for _, s := range []string{"..", "a/b", "registry.example/", "", "a b", "user@host", "host?x"} {
		if s == "" {
			continue // Docker Hub
		}
		_, err := image.ParseRegistry(s, false)
		assert.ErrorIs(t, err, image.ErrReference, s)
	}
}

// A tag stays that of the name, and the digest decides.
func TestTagAndDigest(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	r := parse(t, "registry.example:5000/app:7@"+digest)
	assert.Equal(t, digest, r.Name.Identifier())
	assert.Equal(t, "registry.example:5000/app:7@"+digest, r.String())
	to, err := r.Target("-confidential", "", false)
	require.NoError(t, err)
	assert.Equal(t, "registry.example:5000/app:7-confidential", to.String())
	_, err = parse(t, "registry.example/app:"+strings.Repeat("x", 120)).Target("-confidential", "", false)
	assert.ErrorIs(t, err, image.ErrReference)
}

// Results in a Docker daemon are called as Docker shows their sources: without its own registry.
func TestTargetInDocker(t *testing.T) {
	hex := strings.Repeat("a", 64)
	for source, want := range map[string]string{
		"docker-daemon:app":                     "docker-daemon:app:latest-sim",
		"docker-daemon:app:1":                   "docker-daemon:app:1-sim",
		"docker-daemon:me/app:1":                "docker-daemon:me/app:1-sim",
		"docker-daemon:docker.io/library/app:1": "docker-daemon:app:1-sim",
		"docker-daemon:registry.example/app:1":  "docker-daemon:registry.example/app:1-sim",
		"docker-daemon:app@sha256:" + hex:       "docker-daemon:app:sha256_" + hex + "-sim",
	} {
		to, err := parse(t, source).Target("-sim", "", false)
		require.NoError(t, err, source)
		assert.Equal(t, want, to.String(), source)
	}
}

// What stands for a digest in a derived name is no tag under which something is that refers to an image, and tells the
// digest.
func TestDigestOfTag(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	tag := image.TagOf(parse(t, "registry.example/app@"+digest).Name)
	assert.Equal(t, digest, image.DigestOfTag(tag))
	assert.False(t, image.IsReferrersTag(tag))
	for _, other := range []string{"latest", "sha256_00", tag + "-confidential", strings.ReplaceAll(tag, "_", "-")} {
		assert.Empty(t, image.DigestOfTag(other), other)
	}
	for tag, want := range map[string]bool{
		"sha256-" + strings.Repeat("0a", 32): true, "sha256-" + strings.Repeat("0a", 32) + ".sig": true,
		"sha512-" + strings.Repeat("0a", 64): true, "sha256-" + strings.Repeat("0a", 32) + "x": false,
		"sha256-0a": false, "1.0": false,
	} {
		assert.Equal(t, want, image.IsReferrersTag(tag), tag)
	}
}

// A name without a registry may have been meant for an image that Docker has.
func TestInDocker(t *testing.T) {
	for s, want := range map[string]string{
		"app":                      "docker-daemon:app",
		"app:1":                    "docker-daemon:app:1",
		"me/app:1":                 "docker-daemon:me/app:1",
		"docker:app":               "docker-daemon:app",
		"docker.io/library/app":    "",
		"registry.example/app":     "",
		"localhost/app":            "",
		"127.0.0.1:5000/app":       "",
		"docker-daemon:app":        "",
		"oci:app":                  "",
		"docker://app":             "docker-daemon:app",
		"docker-archive:app.tar:a": "",
	} {
		assert.Equal(t, want, parse(t, s).InDocker(), s)
	}
}

// A manifest that lies in another repository than was asked for is not taken.
func TestRedirectedManifest(t *testing.T) {
	ctx, reg := context.Background(), fixture.NewRegistry(t)
	other := fixture.NewRegistry(t)
	img := fixture.Image(t, v1.Config{Cmd: []string{"/a"}}, fixture.Layer(t, fixture.File("a", "1")))
	reg.Push(t, "prod/app:7", img)
	other.Push(t, "mirror/app:7", img)
	other.Push(t, "public/app:7", img)
	lead := func(to string) {
		reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if !strings.HasPrefix(r.URL.Path, "/v2/public/app/manifests/") {
				return false
			}
			http.Redirect(w, r, to, http.StatusTemporaryRedirect)
			return true
		})
	}
	for _, c := range []struct {
		what, to      string
		plain, strict bool
	}{
		{"another repository of the same host", "/v2/prod/app/manifests/7", false, false},
		{"something else than a manifest", "/v2/prod/app/blobs/sha256:00", false, false},
		{"the same name on another host", "http://" + other.Host + "/v2/public/app/manifests/7", true, true},
		{"another name on another host", "http://" + other.Host + "/v2/mirror/app/manifests/7", true, false},
	} {
		lead(c.to)
		for strict, want := range map[bool]bool{false: c.plain, true: c.strict} {
			o := quick
			o.StrictNames = strict
			digest, err := registry.ResolveTag(ctx, parse(t, reg.Host+"/public/app:7"), o)
			if want {
				assert.NoError(t, err, "%s, strict: %v", c.what, strict)
				assert.NotEmpty(t, digest)
			} else {
				assert.ErrorIs(t, err, image.ErrRedirect, "%s, strict: %v", c.what, strict)
			}
		}
	}
}

// Hosts have one spelling, and names an end.
func TestSpellingOfNames(t *testing.T) {
	for given, want := range map[string]string{
		"Registry.Example/app:1": "registry.example/app:1", "LOCALHOST:5000/a/b:T": "localhost:5000/a/b:T",
		"app:Tag": "index.docker.io/library/app:Tag",
	} {
		n, err := image.ParseName(given, false)
		require.NoError(t, err)
		assert.Equal(t, want, n.Name())
	}
	repo, err := image.ParseRepository("Registry.Example/a/b", false)
	require.NoError(t, err)
	assert.Equal(t, "registry.example/a/b", repo.Name())
	r, err := image.ParseRegistry("Registry.Example:443", false)
	require.NoError(t, err)
	assert.Equal(t, "registry.example", r.RegistryStr(), "the port of HTTPS goes without saying")
	for given, want := range map[string]string{
		"Registry.Example:443/app:1": "registry.example/app:1", "[::1]:443/app:1": "[::1]/app:1",
		"registry.example:80/app:1": "registry.example:80/app:1", "harbor:443/app:1": "harbor:443/app:1",
	} {
		n, err := image.ParseName(given, false)
		require.NoError(t, err)
		assert.Equal(t, want, n.Name())
	}
	for _, n := range []string{"a/" + strings.Repeat("b", 2000), strings.Repeat("\x7f", 4<<20)} {
		_, err := image.ParseName(n, false)
		assert.ErrorIs(t, err, image.ErrReference)
		assert.Less(t, len(err.Error()), 200)
	}
}

// An image that does not say when it was made is not an old one.
func TestCreated(t *testing.T) {
	for config, want := range map[string]string{
		`{"created":"2026-02-03T04:05:06Z"}`: "",
		`{"created":"1970-01-01T00:00:00Z"}`: "does not say when",
		`{"created":"0001-01-01T00:00:00Z"}`: "does not say when",
		`{"created":null}`:                   "does not say when",
		`{}`:                                 "does not say when",
		`{"created":"yesterday"}`:            "reading when",
	} {
		at, err := (&image.Image{Config: []byte(config)}).Created()
		if want == "" {
			require.NoError(t, err)
			assert.False(t, at.IsZero())
			continue
		}
		assert.ErrorContains(t, err, want)
	}
}
