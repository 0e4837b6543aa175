package reach_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/packages"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// find returns what a program reaches, by reason.
func find(
	t *testing.T, tree *rootfs.Tree, start reach.Start, program string, read ...string,
) (*reach.Set, map[reach.Reason]string) {
	t.Helper()
	db, err := packages.Read(context.Background(), tree)
	require.NoError(t, err)
	lookUp := func(name string) (*rootfs.Node, string, error) {
		if !strings.Contains(name, "/") {
			name = "/usr/bin/" + name
		}
		n, _, err := tree.Resolve(name)
		if err == nil && (n.Type != rootfs.Regular || n.Mode&0o111 == 0) {
			err = assert.AnError
		}
		return n, name, err
	}
	n, _, err := lookUp(program)
	require.NoError(t, err)
	start.Programs, start.LookUp = []*rootfs.Node{n}, lookUp
	start.Interpreters = func(n *rootfs.Node) ([]*rootfs.Node, error) {
		if n.Shebang == "" {
			return nil, nil
		}
		i, _, err := lookUp(strings.Fields(n.Shebang)[0])
		return []*rootfs.Node{i}, err
	}
	finder, _ := reach.Programs(tree, db, reach.Classify(tree), start)
	set, err := finder.Files(read)
	require.NoError(t, err)
	reasons := map[reach.Reason]string{}
	_ = tree.Walk(func(n *rootfs.Node) error {
		if why, ok := set.Has(n); ok {
			reasons[why.Reason] = strings.TrimSpace(reasons[why.Reason] + " " + n.Path)
		}
		return nil
	})
	return set, reasons
}

// Each way by which a dynamic linker finds a library, and which goes before which.
func TestLibraries(t *testing.T) {
	lib := func(names ...string) elf.Facts { return elf.Facts{Needed: names, Dynamic: true} }
	for _, c := range []struct {
		name    string
		facts   map[string]elf.Facts
		entries []Entry
		path    string
		want    string
		missing string
	}{
		{
			name: "default directories", facts: map[string]elf.Facts{
				"/p": lib("liba.so"), "/usr/lib/x86_64-linux-gnu/liba.so": lib("libb.so"), "/usr/lib64/libb.so": lib(),
			}, want: "/usr/lib/x86_64-linux-gnu/liba.so /usr/lib64/libb.so",
		},
		{
			name: "dynamic linker", facts: map[string]elf.Facts{
				"/p": {Interp: "/lib64/ld.so"}, "/usr/lib/ld.so": lib(),
			}, entries: []Entry{Symlink("lib64", "usr/lib")}, want: "/usr/lib/ld.so",
		},
		{
			name: "a dynamic linker in Nix's store is there by its name",
			facts: map[string]elf.Facts{
				"/p": {
					Interp: "/nix/store/g/lib/ld.so.2", Needed: []string{"libc.so"}, RunPath: "/nix/store/l",
				},
				"/nix/store/g/lib/ld.so.2": lib(), "/nix/store/l/libc.so": lib("ld.so.2"),
			}, want: "/nix/store/g/lib/ld.so.2 /nix/store/l/libc.so",
		},
		{
			name: "no dynamic linker", facts: map[string]elf.Facts{"/p": {Interp: "/lib64/ld.so"}},
			missing: "/lib64/ld.so",
		},
		{
			name: "RUNPATH with ORIGIN", facts: map[string]elf.Facts{
				"/opt/app/bin/p":       {Needed: []string{"liba.so"}, RunPath: "$ORIGIN/../lib"},
				"/opt/app/lib/liba.so": lib(), "/usr/lib/liba.so": lib(),
			}, want: "/opt/app/lib/liba.so",
		},
		{
			name: "RUNPATH is not inherited", facts: map[string]elf.Facts{
				"/p": {Needed: []string{"liba.so"}, RunPath: "/a"}, "/a/liba.so": lib("libb.so"), "/a/libb.so": lib(),
				"/usr/lib/libb.so": lib(),
			}, want: "/a/liba.so /usr/lib/libb.so",
		},
		{
			name: "RPATH is inherited", facts: map[string]elf.Facts{
				"/p": {Needed: []string{"liba.so"}, RPath: "${ORIGIN}/a"}, "/a/liba.so": lib("libb.so"),
				"/a/libb.so": lib(), "/usr/lib/libb.so": lib(),
			}, want: "/a/liba.so /a/libb.so",
		},
		{
			name: "RPATH beside RUNPATH counts for nothing",
			facts: map[string]elf.Facts{
				"/p": {Needed: []string{"liba.so"}, RPath: "/a", RunPath: "/b"}, "/a/liba.so": lib(),
				"/b/liba.so": lib(),
			}, want: "/b/liba.so",
		},
		{
			name: "LD_LIBRARY_PATH before RUNPATH, after RPATH",
			facts: map[string]elf.Facts{
				"/p": {Needed: []string{"liba.so"}, RunPath: "/b"}, "/a/liba.so": lib(), "/b/liba.so": lib(),
			}, path: "/a", want: "/a/liba.so",
		},
		{
			name: "ld.so.conf", facts: map[string]elf.Facts{"/p": lib("liba.so"), "/x/liba.so": lib()},
			entries: []Entry{
				File("etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n"),
				File("etc/ld.so.conf.d/x.conf", "# x\n/x # y\n"),
			}, want: "/x/liba.so",
		},
		{
			name: "ld.so.cache", facts: map[string]elf.Facts{"/p": lib("liba.so"), "/odd/liba.so.1": lib()},
			entries: []Entry{File("etc/ld.so.cache", cacheFile("liba.so", "/odd/liba.so.1"))}, want: "/odd/liba.so.1",
		},
		{
			name: "a directory of musl", facts: map[string]elf.Facts{
				"/p": lib("liba.so", "libc.musl-x86_64.so.1"), "/m/liba.so": lib(),
			}, entries: []Entry{File("etc/ld-musl-x86_64.path", "/m:/n\n")}, want: "/m/liba.so",
		},
		{
			name: "one for each processor", facts: map[string]elf.Facts{
				"/p": lib("liba.so"), "/usr/lib64/liba.so": lib(), "/usr/lib64/glibc-hwcaps/x86-64-v3/liba.so": lib(),
			}, want: "/usr/lib64/glibc-hwcaps/x86-64-v3/liba.so /usr/lib64/liba.so",
		},
		{
			name: "modules of a library", facts: map[string]elf.Facts{
				"/p": lib("libcrypto.so.3"), "/usr/lib/libcrypto.so.3": lib(),
				"/usr/lib/engines-3/e.so": lib("libe.so"), "/usr/lib/libe.so": lib(),
			}, want: "/usr/lib/libcrypto.so.3 /usr/lib/libe.so",
		},
		{
			name: "cycle, and one that is missing",
			facts: map[string]elf.Facts{
				"/p": lib("liba.so"), "/usr/lib/liba.so": lib("libb.so", "none.so"), "/usr/lib/libb.so": lib("liba.so"),
			}, want: "/usr/lib/liba.so /usr/lib/libb.so", missing: "none.so",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := "/p"
			if _, ok := c.facts[program]; !ok {
				program = "/opt/app/bin/p"
			}
			set, reasons := find(t, Tree(t, reach.Keep, c.facts, c.entries...), reach.Start{LibraryPath: c.path},
				program)
			assert.Equal(t, c.missing, strings.Join(set.Missing, " "))
			if c.name == "modules of a library" {
				assert.Equal(t, c.want, reasons[reach.Library])
				assert.Equal(t, "/usr/lib/engines-3/e.so", reasons[reach.Module])
				return
			}
			var linked []string
			for _, n := range set.Linked[1:] {
				linked = append(linked, n.Path)
			}
			assert.ElementsMatch(t, strings.Fields(c.want), linked)
		})
	}
}

// Libraries in a chain that all miss many others take no longer than their number.
func TestManyMissingLibraries(t *testing.T) {
	facts := map[string]elf.Facts{}
	for i := range 150 {
		needed := []string{fmt.Sprintf("lib%d.so", i+1)}
		for k := range 255 {
			needed = append(needed, fmt.Sprintf("none%d-%d.so", i, k))
		}
		facts[fmt.Sprintf("/usr/lib/lib%d.so", i)] = elf.Facts{Needed: needed, Dynamic: true}
	}
	facts["/usr/lib/lib150.so"] = elf.Facts{Dynamic: true}
	facts["/usr/bin/p"] = elf.Facts{Needed: []string{"lib0.so"}, Dynamic: true}
	tree := Tree(t, reach.Keep, facts)
	begin := time.Now()
	find(t, tree, reach.Start{}, "p")
	assert.Less(t, time.Since(begin), 20*time.Second)
}

// cacheFile is an ld.so.cache with one entry.
func cacheFile(name, file string) string {
	b := make([]byte, 48+24)
	copy(b, "glibc-ld.so.cache1.1")
	binary.LittleEndian.PutUint32(b[20:], 1)
	binary.LittleEndian.PutUint32(b[48+4:], 72)
	binary.LittleEndian.PutUint32(b[48+8:], uint32(72+len(name)+1))
	return string(b) + name + "\x00" + file + "\x00"
}

const status = `Package: server
Status: install ok installed
Depends: libserver (>= 1), adduser, data | other-data

Package: libserver
Status: install ok installed

Package: data
Status: install ok installed

Package: adduser
Status: install ok installed
Depends: editor

Package: editor
Status: install ok installed

Package: coreutils
Essential: yes
Status: install ok installed

Package: dpkg
Essential: yes
Status: install ok installed

Package: module
Status: install ok installed
Depends: server

Package: tool
Status: install ok installed
Priority: optional
Depends: tool-data

Package: tool-data
Status: install ok installed
Priority: optional

Package: extra
Status: install ok installed
Priority: optional
`

// A script of a package that is needed needs the modules of its language; one that is only there does not.
func TestLanguageOfScripts(t *testing.T) {
	status := ""
	for _, p := range []string{"server", "lang", "other", "slang"} {
		status += "Package: " + p + "\nStatus: install ok installed\n\n"
	}
	tree := Tree(t, reach.Keep, map[string]elf.Facts{"/usr/bin/server": {}, "/usr/bin/lang": {}, "/usr/bin/slang": {}},
		File("var/lib/dpkg/status", status),
		File("var/lib/dpkg/info/server.list", "/usr/bin/server\n/usr/share/server/ask\n"),
		File("var/lib/dpkg/info/lang.list", "/usr/bin/lang\n/usr/lib/lang/socket.mod\n"),
		File("var/lib/dpkg/info/other.list", "/usr/bin/other\n"),
		File("var/lib/dpkg/info/slang.list", "/usr/bin/slang\n/usr/lib/slang/x.mod\n"),
		Program("usr/share/server/ask", "#!/usr/bin/lang -w\n"), File("usr/lib/lang/socket.mod", "x"),
		Program("usr/bin/other", "#!/usr/bin/slang\n"), File("usr/lib/slang/x.mod", "x"),
	)
	_, reasons := find(t, tree, reach.Start{}, "server")
	assert.Contains(t, reasons[reach.Dependency], "/usr/lib/lang/socket.mod")
	assert.Contains(t, reasons[reach.AnyProgram], "/usr/bin/other")
	for _, files := range reasons {
		assert.NotContains(t, files, "/usr/lib/slang/x.mod")
	}
}

// The policy, rule by rule, on one image with packages.
func TestPolicy(t *testing.T) {
	list := func(name, files string) Entry {
		return File("var/lib/dpkg/info/"+name+".list", strings.ReplaceAll(files, " ", "\n")+"\n")
	}
	facts := map[string]elf.Facts{
		"/usr/bin/server": {Needed: []string{"libserver.so"}}, "/usr/lib/libserver.so": {}, "/usr/bin/sh": {},
		"/usr/bin/vi": {}, "/usr/bin/ls": {}, "/usr/bin/ffmpeg": {}, "/usr/bin/tool": {}, "/usr/bin/extra": {},
	}
	tree := Tree(t, reach.Keep, facts,
		File("var/lib/dpkg/status", status),
		list("server", "/usr/bin/server /usr/share/server /usr/share/server/default.conf /usr/share/doc/server/README "+
			"/usr/share/man/man1/server.1 /usr/include/server.h /usr/lib/libserver.a "+
			"/usr/share/locale/de/LC_MESSAGES/server.mo /etc/server.conf"),
		list("libserver", "/usr/lib/libserver.so /usr/lib/server-plugin.dat"), list("data", "/usr/share/data/d"),
		list("adduser", "/usr/sbin/adduser"), list("editor", "/usr/bin/vi /usr/share/editor /usr/share/editor/x"),
		File("var/lib/apt/extended_states",
			"Package: tool-data\nAuto-Installed: 1\n\nPackage: extra\nAuto-Installed: 1\n"),
		list("tool", "/usr/bin/tool /usr/share/tool/t /usr/share/doc/tool/x"),
		list("tool-data", "/usr/share/tool-data/d"), list("extra", "/usr/share/extra/e /usr/bin/extra"),
		Program("usr/bin/tool", "x"), File("usr/share/tool/t", "x"), File("usr/share/doc/tool/x", "x"),
		File("usr/share/tool-data/d", "x"), File("usr/share/extra/e", "x"),
		list("coreutils", "/usr/bin/ls"), list("dpkg", "/usr/bin/dpkg"),
		list("module", "/usr/share/module/m.conf /usr/share/module/m.so"),
		File("usr/share/server/default.conf", "x"), File("usr/share/doc/server/README", "x"),
		File("usr/share/man/man1/server.1", "x"), File("usr/include/server.h", "x"), File("usr/lib/libserver.a", "x"),
		File("usr/share/locale/de/LC_MESSAGES/server.mo", "x"), File("usr/lib/server-plugin.dat", "x"),
		File("usr/share/data/d", "x"), File("usr/sbin/adduser", "x"), File("usr/share/editor/x", "x"),
		Program("usr/bin/dpkg", "x"),
		File("usr/share/module/m.conf", "x"), File("usr/share/module/m.so", "x"),
		File("etc/server.conf", "x"), File("etc/shadow", "x"), File("etc/passwd", "x"), Symlink("etc/modules/m.conf",
			"/usr/share/module/m.conf"), Symlink("etc/alternatives/editor", "/usr/bin/vi"),
		File("usr/share/server/cache", "generated"), File("usr/share/editor/cache", "generated"), File("app/data", "x"),
		File("usr/local/lib/x.py", "x"), File("usr/bin/copied", "x"),
		File("etc/ssl/certs/ca.pem", "x"), File("usr/share/ca-certificates/a.crt", "x"),
		File("usr/share/zoneinfo/UTC", "x"), File("usr/share/zoneinfo/right/UTC", "x"),
		File("usr/share/zoneinfo/Europe/Berlin", "x"), File("usr/share/zoneinfo/Asia/Tokyo", "x"),
		File("usr/share/zoneinfo/zone.tab", "x"), File("usr/lib/locale/C.utf8/x", "x"),
		File("usr/lib/locale/de_DE.utf8/x", "x"),
		File("root/.ssh/id_rsa", "x"), File("var/log/dpkg.log", "x"),
		Program("usr/local/bin/start.sh", "#!/usr/bin/sh\n# vi is only spoken of\ngrep dpkg /var/lib/dpkg/status\n"+
			"ffmpeg -version | grep x\nexec \"$@\"\n"),
	)
	common := map[reach.Reason]string{
		reach.Program: "/usr/bin/server", reach.Library: "/usr/lib/libserver.so", reach.Shell: "",
		reach.Package:    "/usr/lib/server-plugin.dat /usr/share/module/m.so /usr/share/server/default.conf",
		reach.Dependency: "/usr/share/data/d /usr/share/tool-data/d", reach.Asked: "/usr/bin/tool /usr/share/tool/t",
		reach.Config:      "/etc/passwd /etc/server.conf /usr/share/module/m.conf",
		reach.Generated:   "/usr/share/server/cache",
		reach.Certificate: "/etc/ssl/certs/ca.pem /usr/share/ca-certificates/a.crt",
		reach.TimeZone:    "/usr/share/zoneinfo/UTC", reach.Locale: "/usr/lib/locale/C.utf8/x",
		reach.AnyProgram: "/usr/bin/extra /usr/bin/ls /usr/bin/vi",
		reach.Unpackaged: "/app/data /usr/bin/copied /usr/bin/ffmpeg /usr/bin/sh /usr/lib/locale/de_DE.utf8/x " +
			"/usr/local/bin/start.sh /usr/local/lib/x.py",
	}
	set, reasons := find(t, tree, reach.Start{}, "server")
	for why, want := range common {
		assert.Equal(t, want, reasons[why], string(why))
	}
	assert.Equal(t, "adduser dpkg", strings.Join(set.LeftOut, " "))
	why, _ := set.Has(tree.Lookup("/usr/lib/libserver.so"))
	assert.Equal(t, "libserver", why.Package)

	_, reasons = find(t, tree, reach.Start{Locales: []string{"de_DE.UTF-8"}}, "server", "/usr/share/edit*/*")
	assert.Equal(t, "/usr/lib/locale/C.utf8/x /usr/lib/locale/de_DE.utf8/x /usr/share/locale/de/LC_MESSAGES/server.mo",
		reasons[reach.Locale])
	assert.Equal(t, "/usr/share/editor/cache /usr/share/editor/x", reasons[reach.Profile])

	for want, start := range map[string]reach.Start{
		"/usr/share/zoneinfo/UTC":                                   {},
		"/usr/share/zoneinfo/Europe/Berlin /usr/share/zoneinfo/UTC": {Zones: []string{":Europe/Berlin"}},
		"/usr/share/zoneinfo/Asia/Tokyo /usr/share/zoneinfo/UTC":    {Words: []string{"Asia/Tokyo"}},
		"/usr/share/zoneinfo/Asia/Tokyo /usr/share/zoneinfo/Europe/Berlin /usr/share/zoneinfo/UTC " +
			"/usr/share/zoneinfo/zone.tab": {AnyZone: true},
	} {
		_, reasons = find(t, tree, start, "server")
		assert.Equal(t, want, reasons[reach.TimeZone], "%+v", start)
	}
	_, reasons = find(t, tree, reach.Start{}, "server", "/usr/share/zoneinfo/*", "/usr/share/zoneinfo/[A-Z]*/**")
	assert.Equal(t, "/usr/share/zoneinfo/Asia/Tokyo /usr/share/zoneinfo/Europe/Berlin /usr/share/zoneinfo/UTC "+
		"/usr/share/zoneinfo/zone.tab", reasons[reach.Profile], "no copy of them")

	set, reasons = find(t, tree, reach.Start{Words: []string{"server", "/etc/server.conf"}}, "/usr/local/bin/start.sh")
	assert.Equal(t, "/usr/bin/sh /usr/local/bin/start.sh", reasons[reach.Program])
	assert.Equal(t, "/etc/server.conf /usr/bin/dpkg /usr/bin/ffmpeg /usr/bin/server /var/lib/dpkg/status",
		reasons[reach.Named], "what the script and the arguments name, but not its comments")
	assert.Equal(t, "/usr/bin/ls", reasons[reach.Essential])
	assert.True(t, set.Scripts)
	assert.Equal(t, "adduser", strings.Join(set.LeftOut, " "),
		"the content of a file that a script names is no command")
}

// Scripts that name each other end.
func TestScriptsInCircles(t *testing.T) {
	_, reasons := find(t, Tree(t, reach.Keep, map[string]elf.Facts{"/usr/bin/sh": {}},
		Program("usr/bin/a", "#!/usr/bin/sh\nb\n"), Program("usr/bin/b", "#!/usr/bin/sh\na; /usr/bin/c\n"),
		Program("usr/bin/c", "#!/usr/bin/b\nc\n")), reach.Start{}, "a")
	assert.Equal(t, "/usr/bin/b /usr/bin/c", reasons[reach.Named])
}

// Scripts that include others, and directories of scripts.
func TestIncludedScripts(t *testing.T) {
	_, reasons := find(t, Tree(t, reach.Keep,
		map[string]elf.Facts{"/usr/bin/sh": {}, "/usr/bin/one": {}, "/usr/bin/two": {}, "/usr/bin/three": {}},
		Program("opt/start", "#!/usr/bin/sh\n. \"$(dirname \"$0\")/lib.sh\"\nfor f in /start.d/*; do \"$f\"; done\nls "+
			"/usr/share/other\n"), File("opt/lib.sh", "one\n"),
		Program("start.d/10-two", "#!/usr/bin/sh\ntwo\n"), File("start.d/README", "three\n"),
		Program("usr/share/other/x.sh", "three\n"),
		File("var/lib/dpkg/status", "Package: p\nStatus: install ok installed\n"),
		File("var/lib/dpkg/info/p.list", "/usr/bin/one\n/usr/bin/two\n/usr/bin/three\n/usr/share/other/x.sh\n"),
	), reach.Start{}, "/opt/start")
	assert.Equal(t, "/opt/lib.sh /start.d/10-two /usr/bin/one /usr/bin/two", reasons[reach.Named])
}

func TestWords(t *testing.T) {
	assert.Equal(t, []string{"exec", "/usr/bin/redis-server", "/etc/r.conf", "port", "1"},
		reach.Words("  # comment redis\nexec /usr/bin/redis-server '/etc/r.conf' --port=port -x \"1\"\n"))
	assert.Equal(t, []string{"A", "b"}, reach.Words("A=${b}"))
}

// A hostile image costs seconds, not hours, and is refused.
func TestTooManyLibraries(t *testing.T) {
	facts := map[string]elf.Facts{"/p": {}}
	var dirs []string
	for i := range 1000 {
		dirs = append(dirs, fmt.Sprintf("/%d", i))
	}
	for i := range 400 {
		var needed []string
		for j := range 256 {
			needed = append(needed, fmt.Sprintf("l%d-%d.so", i, j))
		}
		facts[fmt.Sprintf("/opt/%d", i)] = elf.Facts{Needed: needed, RunPath: strings.Join(dirs, ":")}
	}
	tree := Tree(t, reach.Keep, facts)
	n := tree.Lookup("/p")
	finder, _ := reach.Programs(tree, &packages.DB{}, reach.Classify(tree), reach.Start{
		Programs: []*rootfs.Node{n}, LookUp: func(string) (*rootfs.Node, string, error) {
			return nil, "", assert.AnError
		},
	})
	begin := time.Now()
	_, err := finder.Files(nil)
	assert.ErrorIs(t, err, reach.ErrPrograms)
	assert.Less(t, time.Since(begin), time.Minute)
}
