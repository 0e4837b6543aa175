//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// bomFile is a list for Occlum's copy_bom, as that reads it.
type bomFile struct {
	Targets []struct {
		Target string   `json:"target"`
		Mkdirs []string `json:"mkdirs"`
		Links  []struct {
			Src  string `json:"src"`
			Name string `json:"linkname"`
		} `json:"createlinks"`
		Copy []struct {
			From  string   `json:"from"`
			Dirs  []string `json:"dirs"`
			Files []struct {
				Name    string `json:"name"`
				Hash    string `json:"hash"`
				AutoDep *bool  `json:"autodep"`
			} `json:"files"`
		} `json:"copy"`
	} `json:"targets"`
}

// The list for Occlum names every file that a conversion would list, and the unpacked image beside it has each of them,
// with its digest. What copy_bom would make of it starts the program: all that it is linked to is there.
func TestOcclumManifest(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	for _, s := range corpus(t) {
		if s.name != "python" && s.name != "redis" {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			source := s.push(t, registry)
			dir := t.TempDir()
			command(t, program, "manifest", source, "--style", "occlum", "--out", dir, "--rootfs", dir+"/rootfs",
				"--ignore", "occlum-libc,occlum-program,occlum-fork")
			var b bomFile
			require.NoError(t, yaml.UnmarshalStrict([]byte(hostFile(t, filepath.Join(dir, "bom.yaml"))), &b))
			image := t.TempDir() // what copy_bom makes
			seen := map[string]bool{}
			for _, target := range b.Targets {
				require.NoError(t, os.MkdirAll(filepath.Join(image, target.Target), 0o755))
				for _, name := range target.Mkdirs {
					require.NoError(t, os.MkdirAll(filepath.Join(image, target.Target, name), 0o755))
				}
				for _, c := range target.Copy {
					assert.Empty(t, c.Dirs)
					for _, f := range c.Files {
						content := hostFile(t, filepath.Join(dir, c.From, f.Name))
						sum := sha256.Sum256([]byte(content))
						require.Equal(t, hex.EncodeToString(sum[:]), f.Hash, f.Name)
						require.False(t, *f.AutoDep)
						p := filepath.Join(target.Target, f.Name)
						require.False(t, seen[p], p)
						seen[p] = true
						require.NoError(t, os.WriteFile(filepath.Join(image, p), []byte(content), 0o755))
					}
				}
			}
			for _, target := range b.Targets {
				for _, l := range target.Links {
					require.NoError(t, os.Symlink(l.Src, filepath.Join(image, target.Target, l.Name)))
				}
			}
			var manifest struct {
				SGX struct {
					Trusted []struct{ URI string } `toml:"trusted_files"`
				}
			}
			require.NoError(t,
				toml.Unmarshal([]byte(command(t, program, "manifest", source, "--runtime", "sim")), &manifest))
			for _, f := range manifest.SGX.Trusted {
				p := strings.TrimPrefix(f.URI, "file:")
				info, err := os.Lstat(filepath.Join(dir, "rootfs", p))
				if err == nil && info.Mode().IsRegular() {
					assert.True(t, seen[p], "a conversion lists %s", p)
				}
			}
			assert.Greater(t, len(seen), 300)
			args := map[string][]string{
				"python": {"python3", "-c", "print(1+1)"},
				"redis":  {"redis-server", "--version"},
			}
			out := command(t, "chroot", append([]string{image}, args[s.name]...)...)
			assert.True(t, out == "2" || strings.HasPrefix(out, "Redis server"), out)
		})
	}
}
