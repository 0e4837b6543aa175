package gramine

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/sys/reexec"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	os.Exit(m.Run())
}

// shape is an image of the shape that a distribution gives it, as small as it shows.
type shape struct {
	config  v1.Config
	facts   map[string]elf.Facts
	entries []Entry
}

func shapes(t *testing.T) map[string]shape {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/anchore/go-rpmdb").Output()
	require.NoError(t, err)
	fedora, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "pkg/testdata/fedora35/rpmdb.sqlite"))
	require.NoError(t, err)
	const glibc, musl = "/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"
	return map[string]shape{
		"debian": {
			config: v1.Config{
				Entrypoint: []string{"docker-entrypoint.sh"}, Cmd: []string{"server"}, User: "www-data",
				WorkingDir: "/srv", Volumes: map[string]struct{}{"/data": {}},
			},
			facts: map[string]elf.Facts{
				"/usr/bin/server": {
					Interp: glibc, Needed: []string{"libssl.so.3", "libc.so.6"}, NeedsGLIBC: "2.34",
				},
				"/usr/bin/dash":                                  {Interp: glibc, Needed: []string{"libc.so.6"}},
				"/usr/lib/x86_64-linux-gnu/libssl.so.3":          {Needed: []string{"libc.so.6"}},
				"/usr/lib/x86_64-linux-gnu/libc.so.6":            {DefinesGLIBC: "2.36", Interp: glibc},
				"/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": {}, "/usr/bin/other": {Interp: glibc},
			},
			entries: []Entry{
				Symlink("bin", "usr/bin"), Symlink("lib", "usr/lib"), Symlink("lib64", "usr/lib64"),
				Symlink("usr/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
				Symlink("usr/bin/sh", "dash"),
				Symlink("var/run", "/run"), Dir("var/log/server"), File("etc/passwd", "root:x:0:0::/root:/bin/sh\n"+
					"www-data:x:33:33::/var/www:/none\n"), File("etc/shadow", "secret"), File("etc/hostname", "build"),
				File("etc/ld.so.cache", ""),
				File("usr/share/doc/server/README", "x"), File("usr/share/zoneinfo/UTC", "x"),
				Symlink("etc/localtime", "/usr/share/zoneinfo/UTC"),
				Program("usr/local/bin/docker-entrypoint.sh", "#!/bin/sh\nset -e\nexec \"$@\"\n"),
				File("var/lib/dpkg/status", "Package: server\nStatus: install ok installed\nDepends: libssl3, "+
					"libc6\n\nPackage: libssl3\nStatus: install ok installed\n\nPackage: libc6\nStatus: install ok "+
					"installed\n\nPackage: dash\nEssential: yes\nStatus: install ok installed\n\nPackage: other\n"+
					"Status: install ok installed\n"),
				File("var/lib/dpkg/info/server.list", "/usr/bin/server\n/usr/share/doc/server/README\n"),
				File("var/lib/dpkg/info/libssl3:amd64.list", "/usr/lib/x86_64-linux-gnu/libssl.so.3\n"),
				File("var/lib/dpkg/info/libc6:amd64.list", "/lib/x86_64-linux-gnu/libc.so.6\n"+
					"/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2\n/lib64/ld-linux-x86-64.so.2\n"),
				File("var/lib/dpkg/info/dash.list", "/bin/dash\n"),
				File("var/lib/dpkg/info/other.list", "/usr/bin/other\n"),
			},
		},
		"alpine": {
			config: v1.Config{Cmd: []string{"sh", "-c", "exec httpd -f -p 8080"}},
			facts: map[string]elf.Facts{
				"/bin/busybox": {Interp: musl, Needed: []string{"libc.musl-x86_64.so.1"}}, musl: {},
				"/usr/bin/curl": {Interp: musl},
			},
			entries: []Entry{
				Symlink("bin/sh", "/bin/busybox"), Symlink("usr/sbin/httpd", "/bin/busybox"),
				Symlink("lib/libc.musl-x86_64.so.1", "ld-musl-x86_64.so.1"), File("etc/alpine-release", "3.22"),
				File("etc/apk/world", "x"), File("etc/ssl/cert.pem", "x"),
				File("lib/apk/db/installed", "P:busybox\nD:so:libc.musl-x86_64.so.1\nF:bin\nR:busybox\nR:sh\n\n"+
					"P:musl\np:so:libc.musl-x86_64.so.1=1\nF:lib\nR:ld-musl-x86_64.so.1\nR:libc.musl-x86_64.so.1\n\n"+
					"P:curl\nF:usr/bin\nR:curl\n\n"),
			},
		},
		"wolfi": {
			config: v1.Config{Entrypoint: []string{"/usr/bin/app"}, User: "65532"},
			facts: map[string]elf.Facts{
				"/usr/bin/app":       {Interp: glibc, Needed: []string{"libc.so.6"}, NeedsGLIBC: "2.41"},
				"/usr/lib/libc.so.6": {DefinesGLIBC: "2.41"}, "/usr/lib/ld-linux-x86-64.so.2": {},
			},
			entries: []Entry{
				Symlink("lib64", "usr/lib"), Symlink("lib", "usr/lib"), File("etc/passwd",
					"nonroot:x:65532:65532::/home/nonroot:/none\n"), File("usr/share/man/man1/app.1", "x"),
				File("usr/lib/apk/db/installed", "P:app\nD:so:libc.so.6\nF:usr/bin\nR:app\nF:usr/share/man/man1\n"+
					"R:app.1\n\nP:glibc\np:so:libc.so.6=6\nF:usr/lib\nR:libc.so.6\nR:ld-linux-x86-64.so.2\n\n"),
			},
		},
		"fedora": {
			config: v1.Config{Cmd: []string{"/bin/bash"}},
			facts: map[string]elf.Facts{
				"/usr/bin/bash":                   {Interp: glibc, Needed: []string{"libtinfo.so.6", "libc.so.6"}},
				"/usr/lib64/libtinfo.so.6.2":      {SOName: "libtinfo.so.6", Needed: []string{"libc.so.6"}},
				"/usr/lib64/libc.so.6":            {DefinesGLIBC: "2.34"},
				"/usr/lib64/ld-linux-x86-64.so.2": {}, "/usr/bin/rpm": {Interp: glibc},
				"/usr/bin/curl": {Interp: glibc},
			},
			entries: []Entry{
				Symlink("bin", "usr/bin"), Symlink("lib64", "usr/lib64"), Symlink("usr/lib64/libtinfo.so.6",
					"libtinfo.so.6.2"), Symlink("var/lib/rpm", "../../usr/lib/sysimage/rpm"),
				File("usr/lib/sysimage/rpm/rpmdb.sqlite", string(fedora)), File("etc/pki/tls/certs/ca.crt", "x"),
				File("etc/fedora-release", "35"), File("usr/share/doc/bash/README", "x"),
			},
		},
		"distroless": {
			config: v1.Config{Entrypoint: []string{"/app/server"}, User: "65532:65532", WorkingDir: "/home/nonroot"},
			facts: map[string]elf.Facts{
				"/app/server":                                {Interp: glibc, Needed: []string{"libc.so.6"}},
				"/lib/x86_64-linux-gnu/libc.so.6":            {DefinesGLIBC: "2.36"},
				"/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": {},
			},
			entries: []Entry{
				Symlink("lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
				Dir("home/nonroot"), File("var/lib/dpkg/status.d/libc6", "Package: libc6\n"),
				File("var/lib/dpkg/status.d/libc6.md5sums",
					"0  lib/x86_64-linux-gnu/libc.so.6\n0  lib/x86_64-linux-gnu/ld-linux-x86-64.so.2\n"),
			},
		},
		"scratch": {
			config: v1.Config{Entrypoint: []string{"/server"}}, facts: map[string]elf.Facts{"/server": {Go: true}},
		},
		"two-libcs": {
			config: v1.Config{Entrypoint: []string{"/app"}},
			facts: map[string]elf.Facts{
				"/app": {Interp: glibc}, "/lib64/ld-linux-x86-64.so.2": {}, "/bin/busybox": {Interp: musl}, musl: {},
			},
			entries: []Entry{Symlink("bin/sh", "busybox")},
		},
		"bundled": {
			config: v1.Config{Entrypoint: []string{"/opt/app/bin/app"}, Env: []string{"LD_LIBRARY_PATH=/opt/extra"}},
			facts: map[string]elf.Facts{
				"/opt/app/bin/app":        {Interp: glibc, Needed: []string{"libmine.so"}, RunPath: "$ORIGIN/../lib"},
				"/opt/app/lib/libmine.so": {}, "/usr/lib/libmine.so": {}, "/lib64/ld-linux-x86-64.so.2": {},
			},
			entries: []Entry{File("etc/ld.so.cache", "")},
		},
	}
}

// What the manifest of an image of each shape says, to be reviewed by eye.
func TestGoldenManifests(t *testing.T) {
	for name, s := range shapes(t) {
		t.Run(name, func(t *testing.T) {
			tree := Tree(t, launch.Options{}.Keep(), s.facts, s.entries...)
			config, err := json.Marshal(v1.ConfigFile{Config: s.config})
			require.NoError(t, err)
			for range 3 { // no order of a map shows
				spec, err := launch.Examine(context.Background(), tree).Build(context.Background(), config,
					launch.Options{})
				require.NoError(t, err)
				in := libos.Input{Spec: spec, Bundle: bundle(), Tree: tree}
				sealed, err := Backend{}.Seal(context.Background(), in)
				require.NoError(t, err)
				file := filepath.Join("testdata/golden", name+".manifest")
				if os.Getenv("UPDATE_GOLDEN") != "" {
					require.NoError(t, os.MkdirAll("testdata/golden", 0o755))
					require.NoError(t, os.WriteFile(file, sealed.Manifest, 0o644))
				}
				want, err := os.ReadFile(file)
				require.NoError(t, err)
				assert.Equal(t, string(want), string(sealed.Manifest))
			}
		})
	}
}
