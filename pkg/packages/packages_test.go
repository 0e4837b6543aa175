package packages_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/reexec"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/packages"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	os.Exit(m.Run())
}

func tree(t *testing.T, entries ...Entry) *rootfs.Tree {
	t.Helper()
	return Tree(t, packages.Keep, nil, entries...)
}

func read(t *testing.T, entries ...Entry) *packages.DB {
	t.Helper()
	db, err := packages.Read(context.Background(), tree(t, entries...))
	require.NoError(t, err)
	return db
}

func names(list []*packages.Package) string {
	var s []string
	for _, p := range list {
		s = append(s, p.Name)
	}
	return strings.Join(s, " ")
}

func owner(db *packages.DB, p string) string {
	return names(db.Provider(p))
}

func none(*packages.Package) bool { return false }

const status = `Package: app
Status: install ok installed
Architecture: amd64
Version: 1.0-1
Depends: libc6 (>= 2.36), mail-agent | exim,
 python3:any, missing
Pre-Depends: dpkg (>= 1)
Description: words
 Depends: not this

Package: libc6
Essential: no
Status: install ok installed
Architecture: amd64
Version: 2.36

Package: postfix
Status: install ok installed
Provides: mail-agent (= 1), smtp
Version: 3

Package: dpkg
Essential: yes
Status: install ok installed
Version: 1

Package: gone
Status: deinstall ok config-files
Version: 1
`

func TestDPKG(t *testing.T) {
	db := read(t,
		File("var/lib/dpkg/status", status), Symlink("lib", "usr/lib"),
		File("usr/lib/x86_64-linux-gnu/libc.so.6", "x"), File("usr/bin/app", "x"), File("etc/gone", "x"),
		File("var/lib/dpkg/info/app.list", "/.\n/usr\n/usr/bin\n/usr/bin/app\n"),
		File("var/lib/dpkg/info/libc6:amd64.list", "/.\n/lib\n/lib/x86_64-linux-gnu/libc.so.6\n"),
		File("var/lib/dpkg/info/gone.list", "/etc/gone\n"))
	assert.Equal(t, "app dpkg libc6 postfix", names(db.Packages))
	assert.Equal(t, "app", owner(db, "/usr/bin/app"))
	assert.Equal(t, "libc6", owner(db, "/usr/lib/x86_64-linux-gnu/libc.so.6"), "through the link /lib")
	assert.Empty(t, owner(db, "/etc/gone"), "removed packages own nothing")
	assert.Empty(t, owner(db, "/usr/lib"))
	app := db.Provider("/usr/bin/app")[0]
	assert.Equal(t, "dpkg", app.Manager)
	assert.Equal(t, "1.0-1", app.Version)
	assert.Equal(t, "app dpkg libc6 postfix", names(db.Closure([]*packages.Package{app}, none)),
		"a virtual package, of two alternatives the one there is")
	assert.Equal(t, "app libc6 postfix", names(db.Closure([]*packages.Package{app}, func(p *packages.Package) bool {
		return p.Name == "dpkg"
	})))
	assert.True(t, db.Provider("dpkg")[0].Essential)
	assert.False(t, db.Provider("libc6")[0].Essential)
}

// Whoever built the image has asked for what is neither a base package, nor needed by one, nor there for others.
func TestAsked(t *testing.T) {
	record := func(name, priority, depends string) string {
		return fmt.Sprintf("Package: %s\nStatus: install ok installed\nVersion: 1\nPriority: %s\nDepends: %s\n\n",
			name, priority, depends)
	}
	db := read(t,
		File("var/lib/dpkg/status", record("bash", "required", "libtinfo")+record("libtinfo", "optional", "")+
			record("less", "important", "")+record("git", "optional", "libpcre2, libtinfo")+
			record("file", "standard", "")+record("libpcre2", "optional", "")+
			"Package: unknown\nStatus: install ok installed\nVersion: 1\n"),
		File("var/lib/apt/extended_states", "Package: libpcre2\nArchitecture: amd64\nAuto-Installed: 1\n\n"+
			"Package: git\nArchitecture: amd64\nAuto-Installed: 0\n"))
	assert.Equal(t, "file git", asked(db))
	db = read(t, File("var/lib/dpkg/status", record("bash", "required", "")+record("git", "optional", "")))
	assert.Equal(t, "git", asked(db), "apt has noted nothing yet")

	db = read(t, File("lib/apk/db/installed", "P:busybox\nV:1\n\nP:git\nV:2\n\nP:libcurl\nV:8\n\nP:jq\nV:1\n"),
		File("etc/apk/world", "busybox\ngit>2\njq@edge\n"))
	assert.Equal(t, "git jq", asked(db), "busybox is in every image")
}

func asked(db *packages.DB) string {
	return names(slices.DeleteFunc(slices.Clone(db.Packages), func(p *packages.Package) bool { return !p.Asked }))
}

func TestDistroless(t *testing.T) {
	db := read(t,
		File("var/lib/dpkg/status.d/libssl3", "Package: libssl3\nVersion: 3.0\nDepends: libc6\n"),
		File("var/lib/dpkg/status.d/libssl3.md5sums", "d41d8cd98f00b204e9800998ecf8427e  usr/lib/libssl.so.3\n"),
		File("var/lib/dpkg/status.d/base", "Package: base-files\nVersion: 12\n"),
		File("usr/lib/libssl.so.3", "x"))
	assert.Equal(t, "base-files libssl3", names(db.Packages))
	assert.Equal(t, "libssl3", owner(db, "/usr/lib/libssl.so.3"))
}

func TestAPK(t *testing.T) {
	const installed = `C:Q1x
P:busybox
V:1.36
D:so:libc.musl-x86_64.so.1
p:cmd:busybox=1.36 cmd:sh
F:bin
R:busybox
a:0:0:755

P:musl
V:1.2.5
p:so:libc.musl-x86_64.so.1=1
F:lib
R:ld-musl-x86_64.so.1

P:app
V:1
D:busybox>=1 !other so:libz.so.1 /bin/busybox
F:
R:app
`
	for _, at := range []string{"lib/apk/db/installed", "usr/lib/apk/db/installed"} {
		entries := []Entry{File(at, installed), File("bin/busybox", "x"), File("app", "x")}
		if strings.HasPrefix(at, "usr") {
			entries = append(entries, Symlink("lib", "usr/lib"), File("usr/lib/ld-musl-x86_64.so.1", "x"))
		} else {
			entries = append(entries, File("lib/ld-musl-x86_64.so.1", "x"))
		}
		db := read(t, entries...)
		assert.Equal(t, "app busybox musl", names(db.Packages), at)
		assert.Equal(t, "app busybox musl", names(db.Closure(db.Provider("app"), none)))
		assert.Equal(t, "busybox", owner(db, "/bin/busybox"))
		assert.Equal(t, "app", owner(db, "/app"))
		assert.True(t, db.Provider("cmd:sh")[0].Essential)
	}
}

// moduleData is the test data of the library that reads databases of rpm.
func moduleData(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/anchore/go-rpmdb").Output()
	require.NoError(t, err)
	return filepath.Join(strings.TrimSpace(string(out)), "pkg/testdata")
}

func TestRPM(t *testing.T) {
	data := moduleData(t)
	for _, c := range []struct{ from, at string }{
		{"fedora35/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite"},
		{"rockylinux-9/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite"},
		{"centos7-plain/Packages", "var/lib/rpm/Packages"},
		{"sle15-bci/Packages.db", "usr/lib/sysimage/rpm/Packages.db"},
	} {
		b, err := os.ReadFile(filepath.Join(data, c.from))
		require.NoError(t, err)
		db := read(t, File(c.at, string(b)), Symlink("bin", "usr/bin"), Symlink("lib64", "usr/lib64"),
			Program("usr/bin/bash", "x"), File("usr/lib64/libc.so.6", "x"))
		assert.Greater(t, len(db.Packages), 30, c.from)
		assert.Equal(t, "bash", owner(db, "/usr/bin/bash"), c.from)
		assert.Equal(t, "glibc", owner(db, "/usr/lib64/libc.so.6"), c.from)
		closure := names(db.Closure(db.Provider("/usr/bin/bash"), none))
		assert.Contains(t, closure, "glibc", c.from)
		assert.NotContains(t, names(db.Packages), "gpg-pubkey")
	}
}

// Whoever built an image with DNF has asked for some packages; the others are there for their sake. The databases are
// DNF 4.14's, of "dnf install t-base" and "dnf install t-app", which needs t-tool, which needs t-lib; in the log t-app
// is there for the sake of others.
func TestAskedOfDNF(t *testing.T) {
	plain := func(name string) string {
		f, err := os.Open(filepath.Join("testdata/dnf", name+".gz"))
		require.NoError(t, err)
		defer f.Close()
		z, err := gzip.NewReader(f)
		require.NoError(t, err)
		b, err := io.ReadAll(z)
		require.NoError(t, err)
		return string(b)
	}
	installed := File("var/lib/rpm/rpmdb.sqlite", plain("rpmdb.sqlite"))
	history := File("var/lib/dnf/history.sqlite", plain("history.sqlite"))
	log := File("var/lib/dnf/history.sqlite-wal", plain("history.sqlite-wal"))
	state := File("usr/lib/sysimage/libdnf5/packages.toml", "version = \"1.0\"\n[packages]\n\"t-tool.noarch\" = "+
		"{reason = \"User\"}\n\"t-lib.noarch\" = {reason = \"Dependency\"}\n\"dnf5.x86_64\" = {reason = \"User\"}\n")
	for want, entries := range map[string][]Entry{
		"":             {installed},
		"t-app t-base": {installed, history},
		"t-base":       {installed, history, log},
		"t-tool":       {installed, state},
	} {
		db := read(t, entries...)
		require.Len(t, db.Packages, 4)
		var asked []string
		for _, p := range db.Packages {
			if p.Asked {
				asked = append(asked, p.Name)
			}
		}
		assert.Equal(t, want, strings.Join(asked, " "))
	}
	for _, e := range []Entry{
		File("var/lib/dnf/history.sqlite", "SQLite format 3\x00"+strings.Repeat("\xff", 9000)),
		File("usr/lib/sysimage/libdnf5/packages.toml", "[packages"),
	} {
		_, err := packages.Read(context.Background(), tree(t, installed, e))
		assert.ErrorIs(t, err, packages.ErrDamaged)
	}
}

// A hostile database is an error, whatever it does to its reader.
func TestHostileRPM(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(moduleData(t), "centos7-plain/Packages"))
	require.NoError(t, err)
	page := bytes.Repeat([]byte{0xff}, 4096)
	copy(b[4096*3:], page)
	b[4096*3+25] = 2 // a page of the hash table, with entries anywhere
	b[4096*3+20], b[4096*3+21] = 0xfe, 0x01
	for name, content := range map[string]string{
		"pages":   string(b),
		"nothing": "x",
		"sqlite":  "SQLite format 3\x00" + strings.Repeat("\xff", 9000),
	} {
		_, err := packages.Read(context.Background(), tree(t, File("var/lib/rpm/Packages", content)))
		assert.ErrorIs(t, err, packages.ErrDamaged, name)
		assert.ErrorContains(t, err, "/var/lib/rpm/Packages: ", name)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = packages.Read(ctx, tree(t, File("var/lib/rpm/Packages", string(b))))
	require.Error(t, err)
	assert.NotErrorIs(t, err, packages.ErrDamaged, "what happens to this machine says nothing of the image")
}

// Many packages that need, and provide, the same are followed once.
func TestClosureOfMany(t *testing.T) {
	var b strings.Builder
	for i := range 60_000 {
		fmt.Fprintf(&b, "P:p%d\nD:x\np:x\n\n", i)
	}
	db := read(t, File("lib/apk/db/installed", b.String()))
	assert.Len(t, db.Closure(db.Packages[:1], none), 60_000)
}

// Records of nothing are none.
func TestEmptyRecords(t *testing.T) {
	db := read(t, File("var/lib/dpkg/status", strings.Repeat("\n", 4<<20)+status+strings.Repeat("a:b\n\n", 1<<20)))
	assert.NotEmpty(t, db.Packages)
}

func TestNoTemporaryDirectory(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "none"))
	b, err := os.ReadFile(filepath.Join(moduleData(t), "sle15-bci/Packages.db"))
	require.NoError(t, err)
	assert.NotEmpty(t, read(t, File("var/lib/rpm/Packages.db", string(b))).Packages)
	left, err := filepath.Glob("/dev/shm/cconvert-rpmdb-*")
	require.NoError(t, err)
	assert.Empty(t, left)
}

// A database that was not kept is said, not taken for none.
func TestDatabaseThatWasNotKept(t *testing.T) {
	for _, entries := range [][]Entry{
		{File("odd/status", status), Symlink("var/lib/dpkg/status", "/odd/status")},
		{File("odd/installed", "P:x\n"), Symlink("lib/apk/db/installed", "/odd/installed")},
		{File("odd/Packages", "x"), Symlink("var/lib/rpm/Packages", "/odd/Packages")},
	} {
		_, err := packages.Read(context.Background(), tree(t, entries...))
		assert.ErrorContains(t, err, "it is too large, or a link leads to it")
	}
}
