package launch_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
)

// encrypt are options by which files are encrypted.
func encrypt(paths ...string) launch.Options {
	return launch.Options{Encrypt: launch.Encryption{Paths: paths, Key: "k"}}
}

// toEncrypt returns the paths of the files that are to be encrypted.
func toEncrypt(t *testing.T, c v1.Config, o launch.Options, entries ...Entry) (string, error) {
	t.Helper()
	config, err := json.Marshal(v1.ConfigFile{Config: c})
	require.NoError(t, err)
	files, _, err := launch.Examine(context.Background(), Tree(t, o.Keep(), nil, entries...)).ToEncrypt(config, o)
	var paths []string
	for _, f := range files {
		paths = append(paths, f.Path)
	}
	return strings.Join(paths, " "), err
}

var secrets = []Entry{
	File("srv/app/a.py", "a"), File("srv/app/lib/b.py", "b"), File("srv/app-2/c", "c"), Dir("srv/app/empty"),
	File("etc/app/one.pem", "1"), File("etc/app/two.pem", "2"), File("etc/app/conf", "public"),
	Symlink("current", "/srv/app"), Symlink("two", "etc/app/two.pem"), File("srv/[odd]", "x"), Dir("srv/none"),
}

func TestToEncrypt(t *testing.T) {
	for paths, want := range map[string]string{
		"/srv/app":                    "/srv/app/a.py /srv/app/lib/b.py",
		"/srv/app/":                   "/srv/app/a.py /srv/app/lib/b.py",
		"/srv/app/**":                 "/srv/app/a.py /srv/app/lib/b.py",
		"/srv/app /srv/app/lib":       "/srv/app/a.py /srv/app/lib/b.py",
		"/srv/app/a.py":               "/srv/app/a.py",
		"/etc/app/*.pem":              "/etc/app/one.pem /etc/app/two.pem",
		"/etc/app/*.pem /two":         "/etc/app/one.pem /etc/app/two.pem",
		"/current":                    "/srv/app/a.py /srv/app/lib/b.py",
		"/current/lib":                "/srv/app/lib/b.py",
		"/two":                        "/etc/app/two.pem",
		"/srv/app*":                   "/srv/app/a.py /srv/app/lib/b.py /srv/app-2/c",
		"/srv/**/*.py":                "/srv/app/a.py /srv/app/lib/b.py",
		"/srv/[odd]":                  "/srv/[odd]",
		"/etc/{app,none}/{one,x}.pe*": "/etc/app/one.pem",
	} {
		got, err := toEncrypt(t, v1.Config{}, encrypt(strings.Fields(paths)...), secrets...)
		require.NoError(t, err, paths)
		assert.Equal(t, want, got, paths)
	}
}

// What something else needs than the program in the enclave is refused, by name and with the reason.
func TestNotEncrypted(t *testing.T) {
	entries := append([]Entry{
		File("etc/passwd", "root:x:0:0::/:/bin/sh\n"), File("etc/hosts", "x"), File("etc/ld.so.cache", "x"),
		File("data/a", "x"), File("tmp/a", "x"), File("run/x", "x"), File("state/a", "x"), File("sealed/a", "x"),
		File("open/a", "x"), Program("usr/bin/check", ELF("")), Symlink("bin", "usr/bin"),
		Program("usr/bin/sh", ELF("")),
		File("dev/a", "x"), Special("srv/fifo", '6'), File("link/a", "x"), Symlink("vol", "/link"),
		File("srv/bad\xff", "x"), File(strings.Repeat("long/", 160)+"x", "x"),
	}, secrets...)
	config := v1.Config{
		Volumes:     map[string]struct{}{"/data": {}, "/vol": {}},
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "check"}}, Env: []string{"PATH=/bin"},
	}
	o := launch.Options{
		Tmpfs: []string{"/state"}, Encrypted: []launch.Mount{{Path: "/sealed"}}, AllowedFiles: []string{"/open"},
	}
	for path, why := range map[string]string{
		"/":                "the root of the image cannot be encrypted as a whole",
		"/nothing":         "the image has no such file",
		"/nothing/*.pem":   "the image has no such file",
		"/srv/none":        "the directory has no files",
		"/srv/fifo":        "neither a file nor a directory",
		"/etc/{a":          "pattern",
		"/etc/passwd":      "container engines read it",
		"/etc":             "/etc/hosts: container engines put a file of their own there",
		"/etc/ld.so.cache": "before a key can be there",
		"/data":            "in the VOLUME /data",
		"/link":            "in the VOLUME /vol",
		"/tmp/a":           "temporary storage",
		"/run":             "temporary storage",
		"/state":           "--tmpfs",
		"/sealed":          "--encrypt-mount",
		"/open/a":          "--allow-file",
		"/usr/bin/check":   "the health check runs it outside of the enclave",
		"/bin/check":       "the health check runs it outside of the enclave",
		"/dev/a":           "the library OS's own",
		"/srv/bad*":        "not UTF-8",
		"/long":            "more than the 771",
	} {
		o.Encrypt = encrypt(path).Encrypt
		_, err := toEncrypt(t, config, o, entries...)
		var option *launch.OptionError
		require.ErrorAs(t, err, &option, path)
		assert.Equal(t, "encrypt", option.Option)
		assert.ErrorContains(t, err, why, path)
	}
	config.Healthcheck.Test = []string{"CMD", "check", "--file=/srv/app/a.py"}
	o.Encrypt = encrypt("/srv/app").Encrypt
	_, err := toEncrypt(t, config, o, entries...)
	require.ErrorContains(t, err, "/srv/app/a.py: the health check names it")
	config.Healthcheck.Test = []string{"CMD-SHELL", "check || exit 1"}
	o.Encrypt = encrypt("/usr/bin/sh").Encrypt
	_, err = toEncrypt(t, config, o, entries...)
	assert.ErrorContains(t, err, "the health check runs it")
	require.Error(t, encrypt("srv").Check())
}

// Each name by which an encrypted file can be reached leads to the ciphertext under its own path, and each that leads
// out of an encrypted directory to a plain file.
func TestEncryptedMounts(t *testing.T) {
	s := build(t, v1.Config{Cmd: []string{"/app"}}, encrypt("/srv/app", "/etc/key.pem"), withApp(
		File("srv/app/a", "x"), File("srv/app/lib/b", "x"), File("etc/key.pem", "x"), File("etc/conf", "x"),
		Symlink("current", "/srv/app"), Symlink("now", "current"), Symlink("srv/app/b", "lib/b"),
		Symlink("srv/app/conf", "/etc/conf"), Symlink("srv/app/dir", "/opt"), File("opt/x", "x"),
		Symlink("key", "etc/key.pem"), Symlink("config", "etc"), Symlink("srv/app/gone", "/nowhere"),
		Symlink("srv/app/t", "/tmp"), Program("srv/app/tool", ELF("")), Symlink("tool", "srv/app/tool"),
	)...)
	got := map[string]string{}
	for _, m := range s.Mounts {
		if m.Type != launch.Tmpfs {
			got[m.Path] = string(m.Type) + " " + m.Target
			if m.Type == launch.Encrypted {
				assert.Equal(t, "k", m.Key)
				assert.True(t, m.Shipped)
			}
		}
	}
	for p, want := range map[string]string{
		"/srv/app": "encrypted /srv/app", "/etc/key.pem": "encrypted /etc/key.pem", "/current": "encrypted /srv/app",
		"/now": "encrypted /srv/app", "/srv/app/b": "encrypted /srv/app/lib/b",
		"/current/b": "encrypted /srv/app/lib/b",
		"/now/b":     "encrypted /srv/app/lib/b", "/srv/app/conf": "bind /etc/conf", "/now/conf": "bind /etc/conf",
		"/srv/app/dir": "bind /opt", "/key": "encrypted /etc/key.pem", "/config": "bind /etc",
		"/config/key.pem": "encrypted /etc/key.pem", "/tool": "encrypted /srv/app/tool",
	} {
		assert.Equal(t, want, got[p], p)
	}
	assert.NotContains(t, got, "/srv/app/gone")
	for _, f := range s.Trusted {
		assert.NotContains(t, f.Path, "/srv/app")
		assert.NotContains(t, f.Path, "key")
	}
	assert.Equal(t, int64(3+len(ELF(""))), s.EncryptedBytes)
	assert.NotContains(t, codes(s), finding.HiddenFiles)
	assert.NotContains(t, codes(s), finding.VolumeHides)
}
