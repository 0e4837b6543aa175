package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// Manifests, indexes and configurations are written by anybody. An image that opens has as many layers as its
// configuration says, whoever reads it.
func FuzzDocuments(f *testing.F) {
	img := fixture.Image(f, v1.Config{Cmd: []string{"/a"}}, fixture.Layer(f, fixture.File("a", "1")))
	manifest, err := img.RawManifest()
	if err != nil {
		f.Fatal(err)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(manifest, config)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"platform":{"os":"linux","architecture":"x86_64"}}]}`), config)
	f.Add([]byte(`{"layers":[],"Layers":[]}`), []byte(`{"config":{},"config":{}}`))
	dir := f.TempDir()
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`),
		0o600); err != nil {
		f.Fatal(err)
	}
	original := digest(config)
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		var m v1.Manifest
		if json.Unmarshal(manifest, &m) == nil && m.Config.Digest.String() == original {
			m.Config.Digest, m.Config.Size, _ = v1.SHA256(bytes.NewReader(config))
			if again, err := json.Marshal(m); err == nil {
				manifest = again
			}
		}
		kind := "application/vnd.oci.image.manifest.v1+json"
		if len(m.Layers) == 0 && m.Config.Digest.Hex == "" {
			kind = "application/vnd.oci.image.index.v1+json"
		}
		for _, b := range [][]byte{manifest, config} {
			if err := os.WriteFile(filepath.Join(blobs, digest(b)[len("sha256:"):]), b, 0o600); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(filepath.Join(blobs, digest(b)[len("sha256:"):]))
		}
		index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, kind,
			digest(manifest), len(manifest))
		if err := os.WriteFile(filepath.Join(dir, "index.json"), []byte(index), 0o600); err != nil {
			t.Fatal(err)
		}
		img, err := store.Open(context.Background(), image.Reference{Transport: image.OCILayout, Path: dir}, quick)
		if err != nil {
			return
		}
		defer img.Close()
		var c v1.ConfigFile
		if err := json.Unmarshal(img.Config, &c); err != nil || len(c.RootFS.DiffIDs) != len(img.Layers) {
			t.Fatal(err, len(img.Layers))
		}
	})
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// Names come from lists, queues, requests and registries. A name that is taken can be said again, and no part of it
// leads a file system or a server elsewhere.
func FuzzNames(f *testing.F) {
	for _, s := range []string{
		"redis", "redis:7", "ghcr.io/a/b@sha256:" + strings.Repeat("a", 64), "localhost:5000/a:1@sha256:" +
			strings.Repeat("0", 64),
		"r.example/a/../b", "r.example/%2e%2e/b", "oci:dir:tag", "oci:dir@0", "oci-archive:a.tar:t",
		"docker-daemon:a:1",
		"docker-archive:a.tar", "docker://r.example/a", "[::1]:5000/a", "r.example:0/a_b--c", "A/b", "sha256:" +
			strings.Repeat("b", 64),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, in := range []bool{false, true} {
			if n, err := image.ParseName(s, in); err == nil {
				again, err := image.ParseName(n.Name(), in)
				if err != nil || again.Name() != n.Name() {
					t.Fatalf("%q is %q, which is %v: %v", s, n.Name(), again, err)
				}
				checkParts(t, s, n.Context().RepositoryStr()+"/"+n.Identifier())
				if !image.IsTag(image.TagOf(n)) {
					t.Fatalf("%q gives %q for a tag", s, image.TagOf(n))
				}
			}
			if r, err := image.ParseRepository(s, in); err == nil {
				checkParts(t, s, r.RepositoryStr())
			}
			if r, err := image.ParseRegistry(s, in); err == nil && strings.ContainsAny(r.RegistryStr(), "/?#@ ") {
				t.Fatalf("%q is the registry %q", s, r.RegistryStr())
			}
		}
		if r, err := image.ParseReference(s, false); err == nil {
			again, err := image.ParseReference(r.String(), false)
			if err != nil || again.String() != r.String() {
				t.Fatalf("%q is %q, which is %q: %v", s, r, again, err)
			}
		}
	})
}

func checkParts(t *testing.T, given, path string) {
	t.Helper()
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "\\%?#\x00 ") {
			t.Fatalf("%q leads to %q", given, path)
		}
	}
}
