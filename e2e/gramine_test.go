//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/startcheck"
)

// gramineDir names a real installation of Gramine, with which the same images are run.
const gramineDir = "CCONVERT_GRAMINE_DIR"

// hostLibs is where this machine has the libraries of the loader.
const hostLibs = "/usr/lib/x86_64-linux-gnu"

// runReal converts with a real Gramine, runs the result without SGX, and takes the SGX loader up to the
// point where a CPU would accept the enclave. It returns the seconds until the answer and the added bytes.
func (s *sample) runReal(t *testing.T, source string, runtimes map[string]bool) (string, int) {
	t.Helper()
	target := strings.Replace(source, "/corpus/", "/gramine/", 1)
	facts := filepath.Join(t.TempDir(), "facts.json")
	cconvert(t, source, "--runtime", "gramine=dir:"+os.Getenv(gramineDir), "--runtime-libs", hostLibs, "--to", target,
		"--output-json", facts)
	b, err := os.ReadFile(facts)
	require.NoError(t, err)
	var r struct{ Runtime struct{ Digest string } }
	require.NoError(t, json.Unmarshal(b, &r))
	runtimes[r.Runtime.Digest] = true
	assert.Less(t, layerSize(t, target, r.Runtime.Digest), 6_000_000)
	command(t, "docker", "pull", "-q", target)
	t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", target) })
	seconds := s.run(t, target, directOptions, directArgs)
	startCheck(t, target)
	return fmt.Sprintf("%.1f s", seconds), added(t, facts)
}

// failsReal sees to it that what is known not to run does not: else it should not be told so.
func (s *sample) failsReal(t *testing.T, source string) {
	t.Helper()
	target := strings.Replace(source, "/corpus/", "/gramine/", 1)
	cconvert(t, source, "--runtime", "gramine=dir:"+os.Getenv(gramineDir), "--runtime-libs", hostLibs, "--to", target)
	command(t, "docker", "pull", "-q", target)
	t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", target) })
	c := start(t, target, directOptions, directArgs)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Second) {
		require.Error(t, s.ask(s.port), "it runs, and is said not to: %s", s.limit)
	}
	command(t, "docker", "rm", "-f", "-v", c.name)
}

// directOptions and directArgs have a converted image started by Gramine's loader that needs no SGX.
var (
	directOptions = []string{"--security-opt", "seccomp=unconfined", "--entrypoint", "/cconvert/gramine/direct/loader"}
	directArgs    = []string{"/cconvert/gramine/direct/libpal.so", "init", "/cconvert/app/entrypoint"}
)

// layerSize returns the compressed size of one of an image's layers.
func layerSize(t *testing.T, image, digest string) int {
	t.Helper()
	var m struct {
		Layers []struct {
			Digest string
			Size   int
		}
	}
	require.NoError(t,
		json.Unmarshal([]byte(command(t, "skopeo", "inspect", "--raw", "--tls-verify=false", "docker://"+image)), &m))
	for _, l := range m.Layers {
		if l.Digest == digest {
			return l.Size
		}
	}
	t.Fatalf("%s has no layer %s", image, digest)
	return 0
}

// startCheck has the image's own SGX loader build its enclave, up to what a CPU would accept.
func startCheck(t *testing.T, image string) {
	t.Helper()
	var r struct {
		Trusted bool
		Started struct {
			Reached         bool
			Refused         []string
			MREnclave       string `json:"mr_enclave"`
			SignedMREnclave string `json:"signed_mr_enclave"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(command(t, program, "verify", "--start", "--signer-key", key,
		"--any-runtime", "--json", image)), &r))
	if startcheck.Lacks() != "" {
		assert.True(t, r.Trusted, "the check is skipped on such a machine")
		return
	}
	assert.True(t, r.Started.Reached)
	assert.Empty(t, r.Started.Refused)
	assert.Equal(t, r.Started.SignedMREnclave, r.Started.MREnclave)
	assert.True(t, r.Trusted)
}

// standIn compiles an installation of Gramine's shape: a loader that is linked to a library, an enclave
// image, the library OS. It returns the prefix and the directory of the libraries.
func standIn(t *testing.T) (prefix, libs string) {
	t.Helper()
	dir := t.TempDir()
	prefix, libs = filepath.Join(dir, "opt/gramine"), filepath.Join(dir, "libs")
	run := filepath.Join(prefix, "lib/x86_64-linux-gnu/gramine")
	for _, d := range []string{run + "/sgx", run + "/direct", run + "/runtime/glibc", libs} {
		require.NoError(t, os.MkdirAll(d, 0o755))
	}
	source := func(name, text string) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, []byte(text), 0o644))
		return p
	}
	library := source("library.c", "int answer(void) { return 42; }\n")
	loader := source("loader.c", `#include <stdio.h>
int answer(void);
int main(int argc, char** argv) {
    printf("loader started with %d arguments, the library says %d\n", argc, answer());
    return argc == 4 ? 7 : 1;
}
`)
	inside := source("inside.c", "int data[5000] = {1};\nvoid _start(void) { for (;;) data[0]++; }\n")
	command(t, "gcc", "-shared", "-fPIC", "-Wl,-soname,libprotobuf-c.so.1", "-o", libs+"/libprotobuf-c.so.1", library)
	command(t, "gcc", "-pie", "-fPIE", "-o", run+"/sgx/loader", loader, libs+"/libprotobuf-c.so.1")
	command(t, "gcc", "-shared", "-fPIC", "-nostdlib", "-o", run+"/sgx/libpal.so", inside)
	command(t, "gcc", "-shared", "-fPIC", "-nostdlib", "-o", run+"/libsysdb.so", inside)
	command(t, "gcc", "-static-pie", "-fPIE", "-nostdlib", "-o", run+"/direct/libpal.so", inside)
	require.NoError(t, os.Symlink("libpal.so", run+"/direct/loader"))
	for _, name := range []string{"libc.so.6", "ld-linux-x86-64.so.2"} {
		for _, to := range []string{libs, run + "/runtime/glibc"} {
			b, err := os.ReadFile(filepath.Join(hostLibs, name))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(to, name), b, 0o755))
		}
	}
	return prefix, libs
}

// The loader starts in an image that has nothing, whatever the image's environment says, and the same
// runtime from any kind of source is the same layer.
func TestRuntimeFromAnySource(t *testing.T) {
	port := startRegistry(t)
	prefix, libs := standIn(t)
	dir := t.TempDir()

	// One static program in an image of nothing else, with an environment that misleads loaders.
	app := filepath.Join(dir, "app.c")
	require.NoError(t, os.WriteFile(app, []byte("int main(void) { return 0; }\n"), 0o644))
	root := filepath.Join(dir, "scratch")
	require.NoError(t, os.MkdirAll(root+"/lib", 0o755))
	command(t, "gcc", "-static", "-o", root+"/app", app)
	require.NoError(t, os.WriteFile(root+"/lib/libprotobuf-c.so.1", []byte("not a library"), 0o644))
	mislead(t, root)
	command(t, "tar", "-C", root, "-cf", dir+"/scratch.tar", ".")
	source := "127.0.0.1:" + port + "/scratch:1"
	buildImage(t, source, dir+"/scratch.tar",
		"ENV LD_LIBRARY_PATH=/lib LD_PRELOAD=/lib/libprotobuf-c.so.1\nENTRYPOINT [\"/app\"]\n")

	// The installation as a directory, as packages, as an image in a registry and in a layout.
	deb := func(name, from, to string) string {
		tree := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(tree+"/DEBIAN", 0o755))
		require.NoError(t, os.MkdirAll(filepath.Dir(tree+to), 0o755))
		control := "Package: " + name +
			"\nVersion: 1\nArchitecture: amd64\nMaintainer: none <none@example.org>\nDescription: test\n"
		require.NoError(t, os.WriteFile(tree+"/DEBIAN/control", []byte(control), 0o644))
		command(t, "cp", "-a", from, tree+to)
		command(t, "dpkg-deb", "--build", tree, tree+".deb")
		return tree + ".deb"
	}
	runtimeDeb, libsDeb := deb("gramine", prefix, "/opt/gramine"), deb("libs", libs, "/usr/lib/x86_64-linux-gnu")
	whole := filepath.Join(dir, "whole")
	require.NoError(t, os.MkdirAll(whole+"/opt", 0o755))
	require.NoError(t, os.MkdirAll(whole+"/usr/lib", 0o755))
	command(t, "cp", "-a", prefix, whole+"/opt/gramine")
	command(t, "cp", "-a", libs, whole+hostLibs)
	command(t, "tar", "-C", whole, "-cf", dir+"/whole.tar", ".")
	runtimeImage := "127.0.0.1:" + port + "/runtime:stable"
	buildImage(t, runtimeImage, dir+"/whole.tar", "CMD [\"/none\"]\n")
	command(t, "skopeo", "copy", "-q", "--src-tls-verify=false", "docker://"+runtimeImage, "oci:"+dir+"/runtime:1")

	layers := map[string]string{}
	for name, args := range map[string][]string{
		"directory":              {"--runtime", "gramine=dir:" + prefix, "--runtime-libs", libs},
		"directory and packages": {"--runtime", "gramine=dir:" + prefix, "--runtime-libs", "deb:" + libsDeb},
		"packages":               {"--runtime", "gramine=deb:" + runtimeDeb + "," + libsDeb},
		"registry":               {"--runtime", "gramine=docker://" + runtimeImage},
		"layout":                 {"--runtime", "gramine=oci:" + dir + "/runtime:1"},
	} {
		facts := filepath.Join(dir, "facts.json")
		image := "cconvert-e2e/scratch:" + strings.ReplaceAll(name, " ", "-")
		cconvert(t, append([]string{source, "--to", "docker-daemon:" + image, "--output-json", facts}, args...)...)
		t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", image) })
		var r struct {
			Runtime  struct{ Digest string }
			Findings []struct{ Code string }
		}
		b, err := os.ReadFile(facts)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(b, &r))
		layers[r.Runtime.Digest] += name + " "
		var codes []string
		for _, w := range r.Findings {
			codes = append(codes, w.Code)
		}
		assert.Equal(t, name == "registry", strings.Contains(strings.Join(codes, " "), "runtime-unpinned"), name)
		if name == "directory" {
			c := start(t, image, nil, nil)
			assert.Equal(t, "7", c.wait())
			assert.Contains(t, c.logs(), "loader started with 4 arguments, the library says 42")
			assert.Equal(t, "1", start(t, image, nil, []string{"more"}).wait(), "it sees one argument more")
		}
	}
	assert.Len(t, layers, 1, "the same runtime, the same layer: %v", layers)

	// What is in the runtime's layer, the loader's own libraries among it, is as verify wants it.
	converted := "127.0.0.1:" + port + "/scratch:1-confidential"
	cconvert(t, source, "--to", converted, "--runtime", "gramine=dir:"+prefix, "--runtime-libs", libs)
	command(t, program, "verify", converted, "--signer-key", key, "--source", source, "--any-runtime")
	said, err := exec.Command(program, "verify", converted, "--signer-key", key, "--source", source).Output()
	require.Error(t, err, "nobody vouched for the loader")
	require.Contains(t, string(said), "nobody vouched for the loader")
	tamper(t, converted, source)

	// Without its libraries the loader could not start: that is said, with what to do.
	out, err := exec.Command(program, source, "--to", "oci:"+dir+"/x:1", "--key", key, "--runtime", "gramine=dir:"+
		prefix).CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(out), "--runtime-libs")

	testLock(t, source, runtimeImage, dir)
}

// mislead puts a library into an image that ends whatever loads it, and all that could have a loader load it.
func mislead(t *testing.T, root string) {
	t.Helper()
	source := filepath.Join(t.TempDir(), "evil.c")
	require.NoError(t, os.WriteFile(source, []byte(`__attribute__((constructor)) static void evil(void) {
    __asm__ volatile("syscall" : : "a"(231), "D"(66) : "rcx", "r11", "memory");
}
int answer(void) { return 66; }
`), 0o644))
	evil := root + "/lib/evil.so"
	command(t, "gcc", "-shared", "-fPIC", "-nostdlib", "-o", evil, source)
	for _, dir := range []string{
		"/etc", "/lib/glibc-hwcaps/x86-64-v2", "/lib/x86_64-linux-gnu",
		"/usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2",
	} {
		require.NoError(t, os.MkdirAll(root+dir, 0o755))
		if dir != "/etc" {
			command(t, "cp", evil, root+dir+"/libprotobuf-c.so.1")
		}
	}
	require.NoError(t, os.WriteFile(root+"/lib/preloads", []byte("/lib/evil.so\n"), 0o644))
	require.NoError(t, os.Symlink("/lib/preloads", root+"/etc/ld.so.preload"))
	command(t, "ldconfig", "-r", root, "-X", "/lib", "/lib/x86_64-linux-gnu")
	require.FileExists(t, root+"/etc/ld.so.cache")
}

// tamper changes each file of the runtime, one at a time, in an image that somebody can write to. All are refused, by
// the check that is for it: only the enclave image and the library OS are measured.
func tamper(t *testing.T, converted, source string) {
	t.Helper()
	tag, err := name.NewTag(converted)
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	at := len(layers) - 2
	r, err := layers[at].Uncompressed()
	require.NoError(t, err)
	defer r.Close()
	archive, err := io.ReadAll(r)
	require.NoError(t, err)
	for file, check := range map[string]string{
		"cconvert/gramine/libpal.so": "measurement", "cconvert/gramine/libsysdb.so": "runtime",
		"cconvert/gramine/loader": "runtime", "cconvert/ld.so": "runtime",
		"cconvert/gramine/lib/libprotobuf-c.so.1": "runtime",
	} {
		var changed bytes.Buffer
		w, found := tar.NewWriter(&changed), false
		for in := tar.NewReader(bytes.NewReader(archive)); ; {
			h, err := in.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			content, err := io.ReadAll(in)
			require.NoError(t, err)
			if h.Name == file {
				found = true
				content[len(content)/2] ^= 1
			}
			require.NoError(t, w.WriteHeader(h))
			_, err = w.Write(content)
			require.NoError(t, err)
		}
		require.NoError(t, w.Close())
		require.True(t, found, file)
		config, err := img.ConfigFile()
		require.NoError(t, err)
		config = config.DeepCopy()
		out, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64"})
		require.NoError(t, err)
		for i, l := range layers {
			if i == at {
				l, err = tarball.LayerFromOpener(func() (io.ReadCloser, error) {
					return io.NopCloser(bytes.NewReader(changed.Bytes())), nil
				})
				require.NoError(t, err)
			}
			out, err = mutate.AppendLayers(out, l)
			require.NoError(t, err)
		}
		now, err := out.ConfigFile()
		require.NoError(t, err)
		config.RootFS, config.History = now.RootFS, nil
		out, err = mutate.ConfigFile(out, config)
		require.NoError(t, err)
		evil := tag.Context().Tag("evil")
		require.NoError(t, remote.Write(evil, out))
		said, err := exec.Command(program, "verify", evil.String(), "--signer-key", key, "--source", source).Output()
		require.Error(t, err, file)
		assert.Regexp(t, `failed +`+check+` `, string(said), file)
	}
}

// A lock file keeps conversions to a runtime when its tag moves.
func testLock(t *testing.T, source, runtimeImage, dir string) {
	t.Helper()
	work := t.TempDir()
	in := func(args ...string) string {
		cmd := exec.Command(program, args...)
		cmd.Dir = work
		out, err := cmd.Output()
		require.NoError(t, err, "%s", args)
		return strings.TrimSpace(string(out))
	}
	locked := in("runtime", "lock", "--runtime", "gramine=docker://"+runtimeImage)
	assert.True(t, strings.HasPrefix(locked, "sha256:"))
	before := in(source, "--to", "oci:"+work+"/out:1", "--key", key)

	buildImage(t, runtimeImage, dir+"/scratch.tar", "CMD [\"/moved\"]\n") // the tag moves to something else
	after := in(source, "--to", "oci:"+work+"/out:2", "--key", key)
	assert.Equal(t, before, after)
	_, err := try(program, source, "--to", "oci:"+work+"/out:3", "--key", key, "--runtime", "gramine=docker://"+
		runtimeImage)
	assert.ErrorContains(t, err, "no runtime found", "without the lock the moved tag is used")
}
