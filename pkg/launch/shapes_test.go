package launch_test

import (
	"context"
	"encoding/json"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// Distributions put programs, libraries and databases of packages in different places. In each the program is found
// with its loader, its library and its package's files, and what no program reads is left out.
func TestDistributions(t *testing.T) {
	const glibc, musl = "/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"
	program := func(interp string, needed ...string) elf.Facts { return elf.Facts{Interp: interp, Needed: needed} }
	libC := elf.Facts{DefinesGLIBC: "2.36"}
	for name, c := range map[string]struct {
		command string
		facts   map[string]elf.Facts
		entries []Entry
		libC    libc.Kind
		policy  launch.Policy
		trusts  []string
		not     []string
	}{
		"Debian": {
			"/bin/server", map[string]elf.Facts{
				"/usr/bin/server": program(glibc, "libc.so.6"), "/usr/lib/x86_64-linux-gnu/libc.so.6": libC,
			},
			[]Entry{
				Symlink("bin", "usr/bin"), Symlink("lib", "usr/lib"), Symlink("lib64", "usr/lib64"),
				Program("usr/bin/server", ELF("")),
				Program("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", ELF("")),
				Symlink("usr/lib64/ld-linux-x86-64.so.2", "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
				File("usr/lib/x86_64-linux-gnu/libc.so.6", ELF("")), File("usr/share/server/data", "x"),
				File("usr/share/man/man1/server.1", "x"),
				File("var/lib/dpkg/status", "Package: server\nStatus: install ok installed\n"),
				File("var/lib/dpkg/info/server.list",
					"/usr/bin/server\n/usr/share/server/data\n/usr/share/man/man1/server.1\n"),
			},
			libc.GLIBC, launch.TrustAuto,
			[]string{
				"/usr/bin/server", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib64/ld-linux-x86-64.so.2",
				"/usr/share/server/data",
			}, []string{"/usr/share/man/man1/server.1"},
		},
		"Fedora and UBI": {
			"/usr/bin/server",
			map[string]elf.Facts{"/usr/bin/server": program(glibc, "libc.so.6"), "/usr/lib64/libc.so.6": libC},
			[]Entry{
				Symlink("bin", "usr/bin"), Symlink("sbin", "usr/sbin"), Symlink("lib", "usr/lib"),
				Symlink("lib64", "usr/lib64"), Program("usr/bin/server", ELF("")),
				Program("usr/lib64/ld-linux-x86-64.so.2", ELF("")), File("usr/lib64/libc.so.6", ELF("")),
				File("usr/share/server/data", "x"),
			},
			libc.GLIBC, launch.TrustAll, // its database of rpm is another test's
			[]string{
				"/usr/bin/server", "/usr/lib64/libc.so.6", "/usr/lib64/ld-linux-x86-64.so.2", "/usr/share/server/data",
			}, nil,
		},
		"Wolfi": {
			"/usr/bin/server",
			map[string]elf.Facts{"/usr/bin/server": program(glibc, "libc.so.6"), "/usr/lib/libc.so.6": libC},
			[]Entry{
				Symlink("bin", "usr/bin"), Symlink("lib", "usr/lib"), Symlink("lib64", "usr/lib"),
				Program("usr/bin/server", ELF("")),
				Program("usr/lib/ld-linux-x86-64.so.2", ELF("")), File("usr/lib/libc.so.6", ELF("")),
				File("usr/share/server/data", "x"), File("usr/share/other", "x"),
				File("usr/lib/apk/db/installed", "P:server\nV:1\nD:so:libc.so.6\nF:usr/bin\nR:server\n"+
					"F:usr/share/server\nR:data\n\nP:glibc\nV:1\np:so:libc.so.6=6\nF:usr/lib\nR:libc.so.6\n"+
					"R:ld-linux-x86-64.so.2\n\nP:other\nV:1\nF:usr/share\nR:other\n"),
			},
			libc.GLIBC, launch.TrustAuto,
			[]string{
				"/usr/bin/server", "/usr/lib/libc.so.6", "/usr/lib/ld-linux-x86-64.so.2", "/usr/share/server/data",
			}, []string{"/usr/share/other"},
		},
		"Alpine": {
			"/usr/bin/server", map[string]elf.Facts{"/usr/bin/server": program(musl, "libc.musl-x86_64.so.1")},
			[]Entry{
				Program("usr/bin/server", ELF("")), Program("lib/ld-musl-x86_64.so.1", ELF("")),
				Symlink("lib/libc.musl-x86_64.so.1", "ld-musl-x86_64.so.1"), File("usr/share/other", "x"),
				File("lib/apk/db/installed", "P:server\nV:1\nF:usr/bin\nR:server\n\nP:musl\nV:1\nF:lib\n"+
					"R:ld-musl-x86_64.so.1\nR:libc.musl-x86_64.so.1\n\nP:other\nV:1\nF:usr/share\nR:other\n"),
			},
			libc.Musl, launch.TrustAuto,
			[]string{"/usr/bin/server", "/lib/ld-musl-x86_64.so.1", "/lib/libc.musl-x86_64.so.1"},
			[]string{"/usr/share/other"},
		},
		"distroless": {
			"/app/server",
			map[string]elf.Facts{"/app/server": program(glibc, "libc.so.6"), "/lib/x86_64-linux-gnu/libc.so.6": libC},
			[]Entry{
				Program("app/server", ELF("")), Program("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", ELF("")),
				Symlink("lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
				File("lib/x86_64-linux-gnu/libc.so.6", ELF("")), File("usr/share/doc/libc6/copyright", "x"),
				File("var/lib/dpkg/status.d/libc6", "Package: libc6\nVersion: 1\n"),
				File("var/lib/dpkg/status.d/libc6.md5sums",
					"0  lib/x86_64-linux-gnu/libc.so.6\n0  usr/share/doc/libc6/copyright\n"),
			},
			libc.GLIBC, launch.TrustAuto,
			[]string{"/app/server", "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"},
			[]string{"/usr/share/doc/libc6/copyright"},
		},
		"own libraries": {
			"/opt/app/bin/server", map[string]elf.Facts{
				"/opt/app/bin/server": {
					Interp: glibc, Needed: []string{"libmine.so", "libc.so.6"}, RunPath: "$ORIGIN/../lib",
				},
				"/opt/app/lib/libc.so.6": libC, "/usr/lib/libc.so.6": libC,
			},
			[]Entry{
				Program("opt/app/bin/server", ELF("")), File("opt/app/lib/libmine.so", ELF("")),
				File("opt/app/lib/libc.so.6", ELF("")), File("usr/lib/libc.so.6", ELF("")),
				Program("lib64/ld-linux-x86-64.so.2", ELF("")),
				File("var/lib/dpkg/status", "Package: libc\nStatus: install ok installed\n"),
				File("var/lib/dpkg/info/libc.list", "/usr/lib/libc.so.6\n"),
			},
			libc.GLIBC, launch.TrustAuto,
			[]string{"/opt/app/bin/server", "/opt/app/lib/libmine.so", "/opt/app/lib/libc.so.6"},
			[]string{"/usr/lib/libc.so.6"},
		},
		"both C libraries": {
			"/app",
			map[string]elf.Facts{
				"/app": program(musl), "/other": program(glibc, "libc.so.6"), "/lib64/libc.so.6": libC,
			},
			[]Entry{
				Program("app", ELF("")), Program("other", ELF("")), Program("lib/ld-musl-x86_64.so.1", ELF("")),
				Program("lib64/ld-linux-x86-64.so.2", ELF("")), File("lib64/libc.so.6", ELF("")),
			},
			libc.Musl, launch.TrustAll, []string{"/app", "/other", "/lib/ld-musl-x86_64.so.1"}, nil,
		},
		"scratch": {
			"/app", map[string]elf.Facts{"/app": {}}, []Entry{Program("app", ELF(""))}, libc.Static, launch.TrustAll,
			[]string{"/app"}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := json.Marshal(v1.ConfigFile{Config: v1.Config{Entrypoint: []string{c.command}}})
			require.NoError(t, err)
			s, err := launch.Examine(context.Background(), Tree(t, launch.Options{}.Keep(), c.facts,
				c.entries...)).Build(context.Background(), config, launch.Options{})
			require.NoError(t, err)
			assert.Equal(t, c.libC, s.LibC.Kind)
			assert.Equal(t, c.policy, s.Policy)
			var listed []string
			for _, f := range s.Trusted {
				if f.Reason != reach.AnyProgram && f.Reason != reach.AnyLibrary {
					listed = append(listed, f.Path)
				}
			}
			for _, p := range c.trusts {
				assert.True(t, slices.Contains(listed, p), "%s in %v", p, listed)
			}
			for _, p := range c.not {
				assert.False(t, slices.Contains(listed, p), p)
			}
		})
	}
}
