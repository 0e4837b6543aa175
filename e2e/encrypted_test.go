//go:build e2e

package e2e

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
)

// secretive is a real program with files that are encrypted, which prints what is in them.
type secretive struct {
	name   string
	config v1.Config
	layers []v1.Layer
	paths  []string // to be encrypted
	// without is what is said without the key.
	without string
}

const secretText = "the secret of this program is forty-two"

func secretives(t *testing.T) []secretive {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(`package main

import (
	"fmt"
	"os"
)

func main() {
	data, err := os.ReadFile("/data/one")
	fmt.Println("`+secretText+`", string(data), err)
}
`), 0o644))
	command(t, "env", "CGO_ENABLED=0", "GO111MODULE=off", "go", "build", "-o", dir+"/app", dir+"/main.go")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Main.java"), []byte(`public class Main {
	public static void main(String[] args) throws Exception {
		System.out.println("`+secretText+` " + new String(Main.class.getResourceAsStream("/data").readAllBytes()));
	}
}
`), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "data"), []byte("one two three"), 0o644))
	command(t, "javac", "--release", "17", "-d", dir, dir+"/Main.java")
	command(t, "jar", "--create", "--file", dir+"/app.jar", "--main-class", "Main", "-C", dir, "Main.class", "-C", dir,
		"data")
	return []secretive{
		{
			// Through two links, a link out of the directory, a file that three layers change, another user.
			"python",
			v1.Config{Entrypoint: []string{"/usr/bin/python3", "/current/app.py"}, User: "1000:1000"},
			[]v1.Layer{
				base(t, "python3"),
				fixture.Layer(t, fixture.File("srv/app/lib/mod.py", "SECRET = 'first'\n"),
					fixture.Symlink("app", "/srv/app"), fixture.Symlink("current", "app"),
					fixture.Symlink("srv/app/release", "/etc/debian_version"),
					fixture.File("etc/app/one.key", "one two three")),
				fixture.Layer(t, fixture.File("srv/app/lib/mod.py", "SECRET = 'second'\n"),
					fixture.Symlink("srv/app/link.py", "lib/mod.py"), fixture.File("srv/app/app.py", `import sys
sys.path.insert(0, "/current/lib")
import mod
print(mod.SECRET, open("/etc/app/one.key").read(), len(open("/app/link.py").read()), open("/current/release").read())
`)),
				fixture.Layer(t, fixture.File("srv/app/lib/mod.py", "SECRET = '"+secretText+"'\n")),
			},
			[]string{"/current", "/etc/app/*.key"},
			"can't open file '/current/app.py': [Errno 13] Permission denied",
		},
		{
			"go", v1.Config{Entrypoint: []string{"/app"}}, []v1.Layer{
				fixture.Layer(t, fixture.Program("app", hostFile(t, dir+"/app")),
					fixture.File("data/one", "one two three")),
			}, []string{"/app", "/data"}, "init_exec_handle: Permission denied",
		},
		{
			"java", v1.Config{Entrypoint: []string{"/usr/bin/java", "-jar", "/opt/app/app.jar"}}, []v1.Layer{
				base(t, java), fixture.Layer(t, fixture.File("opt/app/app.jar", hostFile(t, dir+"/app.jar"))),
			}, []string{"/opt/app/*.jar"}, "Unable to access jarfile /opt/app/app.jar",
		},
	}
}

// run is the command line to run an image and wait for it.
func run(before []string, image string, after []string) []string {
	return slices.Concat([]string{"run", "--rm"}, before, []string{image}, after)
}

// Real programs run with encrypted files if the key is there, and say what is missing if it is not.
func TestEncryptedFiles(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	keyFile := filepath.Join(t.TempDir(), "files.key")
	command(t, program, "keygen", "--files", keyFile)
	owners := base64.StdEncoding.EncodeToString([]byte(hostFile(t, keyFile)))
	for _, s := range secretives(t) {
		t.Run(s.name, func(t *testing.T) {
			source := registry + "/secretive/" + s.name + ":1"
			tag, err := name.NewTag(source)
			require.NoError(t, err)
			require.NoError(t, remote.Write(tag, fixture.Image(t, s.config, s.layers...)))
			args := []string{source, "--encrypt-key", keyFile, "--ignore", "encrypted-at-start"}
			for _, p := range s.paths {
				args = append(args, "--encrypt", p)
			}
			convert := func(to string, more ...string) {
				cconvert(t, append(append(args, "--to", to), more...)...)
				command(t, "docker", "pull", "-q", to)
				t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", to) })
			}
			prints := func(image string, before []string, after ...string) {
				t.Helper()
				out := command(t, "docker", run(before, image, after)...)
				assert.Contains(t, out, secretText)
				assert.Contains(t, out, "one two three")
			}
			simulated := registry + "/secretive/" + s.name + ":sim"
			convert(simulated, "--runtime", "sim")
			_, err = try("docker", "run", "--rm", simulated)
			assert.ErrorContains(t, err, "give their key in the variable CCONVERT_SIM_FILES_KEY")
			_, err = try("docker", "run", "--rm", "-e", "CCONVERT_SIM_FILES_KEY="+owners, "--user", "0", simulated)
			assert.ErrorContains(t, err, "may not mount")
			asRoot := []string{"--user", "0", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"}
			prints(simulated, append(asRoot, "-e", "CCONVERT_SIM_FILES_KEY="+owners))
			_, err = try("docker", run(append(asRoot, "-e", "CCONVERT_SIM_FILES_KEY=00112233445566778899aabbccddeeff"),
				simulated, nil)...)
			assert.ErrorContains(t, err, "the key is not the one of the image's encrypted files")

			if os.Getenv(gramineDir) == "" {
				return
			}
			real := []string{"--runtime", "gramine=dir:" + os.Getenv(gramineDir), "--runtime-libs", hostLibs}
			image := registry + "/secretive/" + s.name + ":gramine"
			convert(image, append(real, "--insecure-key-in-manifest")...)
			prints(image, directOptions, directArgs...)
			startCheck(t, image)
			locked := registry + "/secretive/" + s.name + ":locked"
			convert(locked, real...)
			out, err := try("docker", run(directOptions, locked, directArgs)...)
			require.Error(t, err)
			assert.Contains(t, out+err.Error(), s.without)
			startCheck(t, locked)
		})
	}
}
