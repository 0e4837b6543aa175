package launch_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/launch/process"
)

func try(t *testing.T, c v1.Config, o launch.Options, entries ...Entry) (*launch.Spec, error) {
	t.Helper()
	config, err := json.Marshal(v1.ConfigFile{Config: c})
	require.NoError(t, err)
	return launch.Examine(context.Background(),
		Tree(t, launch.Options{}.Keep(), nil, entries...)).Build(context.Background(), config, o)
}

func build(t *testing.T, c v1.Config, o launch.Options, entries ...Entry) *launch.Spec {
	t.Helper()
	s, err := try(t, c, o, entries...)
	require.NoError(t, err)
	return s
}

var app = v1.Config{Cmd: []string{"/app"}}

func withApp(entries ...Entry) []Entry {
	return append(entries, Program("app", ELF("")))
}

func trusted(s *launch.Spec) string {
	var paths []string
	for _, f := range s.Trusted {
		paths = append(paths, f.Path)
	}
	slices.Sort(paths)
	return strings.Join(paths, " ")
}

// mounts returns the mounts in short, without those that every image has.
func mounts(s *launch.Spec) string {
	var list []string
	for _, m := range s.Mounts {
		switch m.Type {
		case launch.Bind:
			list = append(list, m.Path+"="+m.Target)
		case launch.Encrypted:
			list = append(list, m.Path+"=encrypted:"+m.Target+":"+m.Key)
		default:
			if m.Path != "/tmp" && m.Path != "/run" && m.Path != "/var/tmp" && m.Path != "/dev/shm" {
				list = append(list, m.Path+"="+string(m.Type))
			}
		}
	}
	return strings.Join(list, " ")
}

func codes(s *launch.Spec) string {
	var list []string
	for _, f := range s.Findings {
		if f.Code != finding.ArgumentsFixed && f.Code != finding.NoPackages {
			list = append(list, strings.TrimSuffix(f.Code+":"+f.Path, ":"))
		}
	}
	return strings.Join(list, " ")
}

// The rules of paths and links, one by one.
func TestPaths(t *testing.T) {
	for _, c := range []struct {
		name                   string
		entries                []Entry
		trusted, mounts, codes string
	}{
		{"a file once", []Entry{File("a/b", "x")}, "/a/b /app", "", ""},
		{"link to a file", []Entry{File("usr/x", "x"), Symlink("y", "usr/x")}, "/app /usr/x /y", "", ""},
		{
			"link to a link to a file", []Entry{File("x", "x"), Symlink("y", "x"), Symlink("z", "y")}, "/app /x /y /z",
			"", "",
		},
		{
			"link to a directory", []Entry{File("usr/lib/x", "x"), Symlink("lib", "usr/lib")}, "/app /usr/lib/x",
			"/lib=/usr/lib", "",
		},
		{
			"directory aliased twice", []Entry{File("d/x", "x"), Symlink("a", "d"), Symlink("b", "a")}, "/app /d/x",
			"/a=/d /b=/d", "",
		},
		{
			"a link in a linked directory has a mount for each spelling",
			[]Entry{
				File("real/x", "x"), File("d/f", "x"), Symlink("d/in", "/real"), Symlink("a", "d"), Symlink("b", "d"),
			},
			"/app /d/f /real/x", "/a=/d /a/in=/real /b=/d /b/in=/real /d/in=/real", "",
		},
		{
			"three levels",
			[]Entry{File("r/x", "x"), Symlink("m/r", "/r"), Symlink("d/m", "/m"), Symlink("a", "d")},
			"/app /r/x", "/a=/d /a/m=/m /a/m/r=/r /d/m=/m /d/m/r=/r /m/r=/r", "",
		},
		{
			"a file link in a linked directory is found by its real directory",
			[]Entry{File("x", "x"), Symlink("d/l", "/x"), Symlink("a", "d")}, "/app /d/l /x", "/a=/d", "",
		},
		{"link to itself", []Entry{File("d/x", "x"), Symlink("d/self", ".")}, "/app /d/x", "/d/self=/d", ""},
		{
			"link to an ancestor", []Entry{File("d/e/x", "x"), Symlink("d/e/up", "../..")}, "/app /d/e/x", "/d/e/up=/",
			"",
		},
		{
			"two directories that link to each other",
			[]Entry{File("a/x", "x"), File("b/x", "x"), Symlink("a/b", "/b"), Symlink("b/a", "/a")},
			"/a/x /app /b/x", "/a/b=/b /a/b/a=/a /b/a=/a /b/a/b=/b", "",
		},
		{"loop", []Entry{Symlink("a", "b"), Symlink("b", "a")}, "/app", "", "link-loop:/a link-loop:/b"},
		{
			"linked interpreter",
			[]Entry{
				File("usr/lib/x86_64-linux-gnu/ld.so", "x"),
				Symlink("usr/lib64/ld.so", "../lib/x86_64-linux-gnu/ld.so"),
				Symlink("lib64", "usr/lib64"), Symlink("lib", "usr/lib"),
			},
			"/app /usr/lib/x86_64-linux-gnu/ld.so /usr/lib64/ld.so", "/lib=/usr/lib /lib64=/usr/lib64", "",
		},
		{"leads nowhere", []Entry{Symlink("a", "/none")}, "/app", "", ""},
		{"leads out", []Entry{File("x", "x"), Symlink("d/a", "../../../x")}, "/app /d/a /x", "", ""},
		{
			"link into temporary storage",
			[]Entry{Dir("run"), Dir("var"), Symlink("var/run", "/run")}, "/app", "/var/run=tmpfs",
			"link-into-tmpfs:/var/run",
		},
		{
			"link to a directory in temporary storage",
			[]Entry{Dir("run/lock"), Symlink("var/lock", "../run/lock")}, "/app", "/run/lock=tmpfs /var/lock=tmpfs",
			"link-into-tmpfs:/var/lock",
		},
		{
			"link to a file in temporary storage",
			[]Entry{Dir("run"), Symlink("etc/x", "/run/x")}, "/app", "", "link-into-tmpfs:/etc/x",
		},
		{
			"temporary storage is there under linked names too",
			[]Entry{
				Dir("srv/log"), Dir("var"), Symlink("var/log", "/srv/log"), Dir("var/lib/x/empty"),
				Symlink("state", "/var/lib"),
			},
			"/app", "/state=/var/lib /state/x/empty=tmpfs /var/lib/x/empty=tmpfs /var/log=/srv/log", "",
		},
		{
			"links to the console",
			[]Entry{Symlink("var/log/nginx/access.log", "/dev/stdout"), File("var/log/nginx/error.log", "")},
			"/app", "/var/log/nginx=tmpfs", "link-to-console:/var/log/nginx/access.log",
		},
		{
			"link into the kernel's trees", []Entry{Symlink("etc/mtab", "/proc/self/mounts")}, "/app", "",
			"link-into-proc:/etc/mtab",
		},
		{
			"the kernel's trees, devices and host files are not trusted",
			[]Entry{
				File("proc/x", "x"), File("sys/x", "x"), File("dev/x", "x"), File("etc/resolv.conf", "x"),
				File("etc/hosts", "x"), File("etc/hostname", "x"), Special("pipe", '6'),
			},
			"/app", "", "device-node:/pipe",
		},
		{
			"a link to a host file is not trusted either",
			[]Entry{File("etc/hosts", "x"), Symlink("h", "etc/hosts")}, "/app", "", "",
		},
		{
			"odd names",
			[]Entry{
				File("new\nline", "x"), File("quo\"te", "x"), File("back\\slash", "x"), File("caf\xe9", "x"),
				File("日本", "x"),
			},
			"/app /back\\slash /new\nline /quo\"te /日本", "", `name-not-utf8:"/caf\xe9"`,
		},
		{
			"directories in temporary storage exist in it",
			[]Entry{Dir("run/mysqld/x"), Dir("var"), Symlink("var/run", "/run"), Symlink("run/l", "/app")},
			"/app", "/run/mysqld=tmpfs /run/mysqld/x=tmpfs /var/run=tmpfs /var/run/mysqld=tmpfs " +
				"/var/run/mysqld/x=tmpfs", "link-into-tmpfs:/var/run hidden-by-tmpfs:/run",
		},
		{
			"files that engines mount over, behind links",
			[]Entry{
				Dir("usr/etc"), Symlink("etc", "usr/etc"), File("usr/etc/hosts", "x"), File("usr/etc/resolv.conf", "x"),
				File("usr/etc/conf", "x"),
			},
			"/app /usr/etc/conf", "/etc=/usr/etc", "",
		},
		{
			"link to a name that is not UTF-8", []Entry{File("caf\xe9/x", "x"), Symlink("l", "caf\xe9")}, "/app", "",
			`name-not-utf8:"/caf\xe9/x" name-not-utf8:/l`,
		},
		{
			"shared memory that is a link", []Entry{Dir("run/shm"), Symlink("dev/shm", "/run/shm")}, "/app",
			"/run/shm=tmpfs", "",
		},
		{
			"files in temporary storage", []Entry{File("tmp/a", "x"), File("tmp/b", "x")}, "/app", "",
			"hidden-by-tmpfs:/tmp",
		},
		{
			"directories shipped empty, or with empty files",
			[]Entry{
				Dir("var/log/nginx"), File("var/log/redis/redis.log", ""), File("var/lib/app/data", "x"),
				Dir("var/cache/a/b"), Dir("var/lib/dpkg/parts"), Dir("srv/empty"),
			},
			"/app /var/lib/app/data", "/var/cache/a/b=tmpfs /var/log/nginx=tmpfs /var/log/redis=tmpfs", "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := build(t, app, launch.Options{}, withApp(c.entries...)...)
			assert.Equal(t, c.trusted, trusted(s))
			assert.Equal(t, c.mounts, mounts(s))
			assert.Equal(t, c.codes, codes(s))
		})
	}
}

// A hostile image must not make a list without end.
func TestLinksExplode(t *testing.T) {
	entries := withApp()
	for i := range 12 {
		entries = append(entries, File(fmt.Sprintf("d%d/f", i), "x"))
		for j := range 12 {
			if i != j {
				entries = append(entries, Symlink(fmt.Sprintf("d%d/l%d", i, j), fmt.Sprintf("/d%d", j)))
			}
		}
	}
	entries = append(entries, Symlink("zlib", "d0"))
	s := build(t, app, launch.Options{}, entries...)
	assert.Less(t, len(s.Mounts), 30_000)
	assert.Contains(t, codes(s), "too-many-mounts")
	have := map[string]bool{}
	for _, m := range s.Mounts {
		have[m.Path] = true
	}
	for _, p := range []string{"/tmp", "/run", "/zlib", "/d0/l1", "/d11/l0"} {
		assert.True(t, have[p], "%s has a short name and is there", p)
	}
}

func TestVolumesAndUserMounts(t *testing.T) {
	volumes := func(v ...string) v1.Config {
		c := app
		c.Volumes = map[string]struct{}{}
		for _, p := range v {
			c.Volumes[p] = struct{}{}
		}
		return c
	}
	s := build(t, volumes("/data"), launch.Options{},
		withApp(Dir("data"), Symlink("d", "data"), File("data/shipped", "x"))...)
	assert.Equal(t, "/d=encrypted:/data:_sgx_mrsigner /data=encrypted:/data:_sgx_mrsigner", mounts(s))
	assert.Equal(t, "volume-sealed:/data volume-hides-files:/data", codes(s))
	assert.Equal(t, "/app", trusted(s))

	s = build(t, volumes("/data", "/cache"), launch.Options{
		Tmpfs: []string{"/cache"}, Encrypted: []launch.Mount{{Type: launch.Encrypted, Path: "/data", Key: "mine"}},
	}, withApp(Dir("data"))...)
	assert.Equal(t, "/cache=tmpfs /data=encrypted:/data:mine", mounts(s))
	assert.Empty(t, codes(s))

	s = build(t, volumes("/data"), launch.Options{},
		withApp(Dir("data"), File("data/f", "x"), Symlink("l", "data/f"))...)
	assert.Contains(t, codes(s), "link-into-volume:/l")

	s = build(t, volumes("/tmp", "/sys/fs/cgroup"), launch.Options{}, withApp()...)
	assert.Empty(t, mounts(s))
	assert.Equal(t, "volume-skipped:/sys/fs/cgroup volume-temporary:/tmp", codes(s))

	s = build(t, volumes("/opt"), launch.Options{}, Program("opt/app", ELF("")), Symlink("app", "opt/app"))
	assert.Empty(t, mounts(s))
	assert.Equal(t, "volume-skipped:/opt", codes(s))
	assert.Equal(t, "/app /opt/app", trusted(s))

	s = build(t, v1.Config{Entrypoint: []string{"/run/app"}}, launch.Options{}, Program("run/app", ELF("")))
	assert.Equal(t, "tmpfs-skipped:/run", codes(s))

	s = build(t, app, launch.Options{AllowedFiles: []string{"/d/", "/f"}},
		withApp(File("d/x", "x"), File("f", "x"), File("ff", "x"))...)
	assert.Equal(t, "/app /ff", trusted(s), "what the host may change is not trusted")
	s2 := build(t, app, launch.Options{AllowedFiles: []string{"/lib/x"}},
		withApp(File("usr/lib/x", "x"), Symlink("lib", "usr/lib"), Symlink("y", "lib/x"))...)
	assert.Equal(t, "/app", trusted(s2))
	assert.Equal(t, []string{"/usr/lib/x", "/y"}, s2.Allowed, "by every name that the host is asked for")
	assert.Equal(t, "allow-file:/d allow-file:/f", codes(s))

	_, err := try(t, app, launch.Options{Tmpfs: []string{"/proc/x"}}, withApp()...)
	assert.ErrorContains(t, err, "the library OS's own")
	_, err = try(t, app, launch.Options{Tmpfs: []string{"/"}}, withApp()...)
	assert.ErrorContains(t, err, "would hide the program")
}

func TestCommand(t *testing.T) {
	files := []Entry{
		Program("usr/bin/tool", ELF("")), Symlink("bin", "usr/bin"), Symlink("etc/alternatives/t", "/usr/bin/tool"),
		Symlink("usr/bin/t", "/etc/alternatives/t"),
		File("usr/bin/plain", "x"), Program("srv/script", "#!/usr/bin/env -S tool -x\n"), Program("srv/other", "#!t\n"),
		Program("srv/lost", "#!/bin/none\n"),
		Program("srv/a", "#!/srv/b\n"), Program("srv/b", "#!/srv/a\n"), Program("srv/text", "hello"),
		Program("srv/env", "#!/usr/bin/env -u NAME -C / A=1 tool\n"), Program("srv/vt", "#!\v\n"),
		Program("usr/bin/sh", ELF("")), Program("usr/bin/env", ELF("")),
	}
	for _, c := range []struct {
		name       string
		config     v1.Config
		args       []string
		want, argv string
	}{
		{
			"entrypoint and cmd", v1.Config{Entrypoint: []string{"/bin/tool", "a"}, Cmd: []string{"b"}}, nil,
			"/usr/bin/tool", "/bin/tool a b",
		},
		{"env with options", v1.Config{Cmd: []string{"/srv/env"}}, nil, "/srv/env", "/srv/env"},
		{"through PATH and alternatives", v1.Config{Cmd: []string{"t"}}, nil, "/usr/bin/tool", "t"},
		{
			"PATH of the image", v1.Config{Cmd: []string{"script"}, Env: []string{"PATH=/nowhere:/srv:/usr/bin"}}, nil,
			"/srv/script", "script",
		},
		{
			"relative to the working directory", v1.Config{Cmd: []string{"./script"}, WorkingDir: "/srv"}, nil,
			"/srv/script", "./script",
		},
		{
			"shell form", v1.Config{Entrypoint: []string{"/bin/sh", "-c", "exec tool"}}, nil, "/usr/bin/sh",
			"/bin/sh -c exec tool",
		},
		{
			"arguments instead of cmd", v1.Config{Entrypoint: []string{"tool"}, Cmd: []string{"old"}},
			[]string{"new", "er"}, "/usr/bin/tool", "tool new er",
		},
		{
			"an entrypoint that was taken back", v1.Config{Entrypoint: []string{""}, Cmd: []string{"tool", "x"}}, nil,
			"/usr/bin/tool", "tool x",
		},
		{
			"variables that are not set", v1.Config{Cmd: []string{"tool"}, Env: []string{"UNSET", "=x", "A=1"}}, nil,
			"/usr/bin/tool", "tool",
		},
		{
			"arguments where cmd is the program, as docker run has it", v1.Config{Cmd: []string{"none", "old"}},
			[]string{"tool", "new"}, "/usr/bin/tool", "tool new",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := build(t, c.config, launch.Options{Args: c.args}, files...)
			assert.Equal(t, c.want, s.Entrypoint)
			assert.Equal(t, c.argv, strings.Join(s.Argv, " "))
		})
	}
	for want, c := range map[string]v1.Config{
		"neither ENTRYPOINT nor CMD": {},
		`"none" was not found, tried /usr/local/sbin/none, /usr/local/bin/none`: {Cmd: []string{"none"}},
		"/usr/bin/plain is not executable":                                      {Cmd: []string{"/bin/plain"}},
		"/usr/bin is not a regular file":                                        {Cmd: []string{"/bin"}},
		"the script /srv/lost begins with #!":                                   {Cmd: []string{"/srv/lost"}},
		"interpret each other":                                                  {Cmd: []string{"/srv/a"}},
		"the script /srv/vt begins with #!":                                     {Cmd: []string{"/srv/vt"}},
		"/srv/text is neither a program nor a sc":                               {Cmd: []string{"/srv/text"}},
		`"a\x00b" holds a NUL byte`:                                             {Cmd: []string{"tool", "a\x00b"}},
		`"/v\x00" holds a NUL byte`: {Cmd: []string{"tool"},
			Volumes: map[string]struct{}{"/v\x00": {}}},
	} {
		_, err := try(t, c, launch.Options{}, files...)
		assert.ErrorContains(t, err, want)
		assert.ErrorIs(t, err, process.ErrImage)
	}
	_, err := try(t, app, launch.Options{}, Program("app", strings.Replace(ELF(""), "\x3e\x00", "\xb7\x00", 1)))
	assert.ErrorContains(t, err, "not a 64-bit program for x86-64")
}

func TestLinkedPasswd(t *testing.T) {
	c := app
	c.User = "1000"
	s := build(t, c, launch.Options{},
		withApp(File("usr/lib/passwd", "u:x:1000:1001::/h:\n"), Symlink("etc/passwd", "/usr/lib/passwd"))...)
	assert.EqualValues(t, 1001, s.GID)
	// Of Nix, all of /etc can be elsewhere, and lists have other names.
	for _, entries := range [][]Entry{
		{File("odd/passwd", "u:x:1000:1001::/h:\n"), Symlink("etc/passwd", "/odd/passwd")},
		{
			File("nix/store/abc-fake-nss/etc/passwd", "u:x:1000:1001::/h:\n"),
			Symlink("etc", "nix/store/abc-fake-nss/etc"),
		},
		{File("nix/store/abc-passwd", "u:x:1000:1001::/h:\n"), Symlink("etc/passwd", "../nix/store/abc-passwd")},
		{File("etc/passwd", "   u:x:1000:1001::/h:\n")},
		{File("etc/passwd", "\n# comment\nroot:x:0\nu:x:1000:1001\n")},
	} {
		assert.EqualValues(t, 1001, build(t, c, launch.Options{}, withApp(entries...)...).GID)
	}
	c.User = "u"
	assert.EqualValues(t, 1000,
		build(t, c, launch.Options{}, withApp(File("etc/passwd", "root:x:0:0:root\n u:x:1000 \n"))...).UID)
	for _, odd := range []string{"odd/list", "odd/shadow"} {
		_, err := try(t, c, launch.Options{},
			withApp(File(odd, "u:x:1000:1001::/h:\n"), Symlink("etc/passwd", "/"+odd))...)
		assert.ErrorContains(t, err, "/etc/passwd leads to /"+odd)
	}
}

func TestScriptEntrypoint(t *testing.T) {
	sh := Program("bin/sh", ELF(""))
	for script, writes := range map[string]bool{
		"exec /app": false, "echo to >&2; exec /app 2>/dev/null >/dev/stdout": false, "echo x > /tmp/x": true,
		"echo x >>$CONFIG": true, `echo "$x" >"$CONFIG"`: true,
		"envsubst </a >/dev/null": true, "sed -e s/a/b/ -i /etc/x": true, "sed -i s/a/b/ /etc/x": true,
		"sed s/a/b/ x": false, "mv /a /b": true,
		"exec java -Xmx1g -cp /app Main": false, "echo '-> /etc/x'; exec /app --install x": false,
		"test -f /c && cp /c /d":          true,
		"[ $n -gt 3 ] || /usr/bin/tee /x": true, "f=`mktemp -d`": true, "echo '<-> .'": false, "cat /a>/b": true,
	} {
		for _, cmd := range [][]string{{"/start.sh"}, {"/bin/sh", "-c", script}} {
			found := codes(build(t, v1.Config{Cmd: cmd}, launch.Options{},
				withApp(sh, Program("start.sh", "#!/bin/sh\n"+script+"\n"))...))
			assert.Equal(t, writes, strings.Contains(found, "tmpfs-per-process"), "%s: %s", script, found)
		}
	}
	assert.Empty(t, codes(build(t, app, launch.Options{}, withApp(sh)...)))
	for script, several := range map[string]bool{
		"exec gosu a /app": false, "gosu a /app; exec /app": true, "date; exec /app": true,
	} {
		found := codes(build(t, v1.Config{Cmd: []string{"/start.sh"}, Env: []string{"PATH=/bin"}}, launch.Options{},
			withApp(sh, Program("bin/gosu", ELF("")), Program("bin/date", ELF("")),
				Program("start.sh", "#!/bin/sh\n"+script+"\n"))...))
		assert.Equal(t, several, strings.Contains(found, "process-per-enclave"), "%s: %s", script, found)
	}
}

func TestHostArgs(t *testing.T) {
	s := build(t, v1.Config{}, launch.Options{HostArgs: true, Args: []string{"/app"}}, withApp()...)
	assert.Equal(t, 1, s.FixedArgs)
	s = build(t, v1.Config{Cmd: []string{"link", "x"}, Env: []string{"PATH=/"}}, launch.Options{HostArgs: true},
		withApp(Symlink("link", "app"))...)
	assert.Contains(t, codes(s), "argv-zero")
}

func TestWorkingDirectory(t *testing.T) {
	for dir, want := range map[string]string{"": "/", "/a/": "/a", "rel": "/rel", "/../..": "/"} {
		c := app
		c.WorkingDir = dir
		assert.Equal(t, want, build(t, c, launch.Options{}, withApp()...).WorkDir)
	}
}

func TestIdentity(t *testing.T) {
	passwd := File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:web:/srv/www:/bin/false\nbroken line\n")
	group := File("etc/group", "root:x:0:\nwww:x:34:\nstaff:x:50:www\n")
	for user, want := range map[string]string{
		"": "0:0 /root", "www": "33:34 /srv/www", "33": "33:34 /srv/www", "www:staff": "33:50 /srv/www",
		"1000": "1000:0 /", "1000:2000": "1000:2000 /", "0:50": "0:50 /root",
	} {
		c := app
		c.User = user
		s := build(t, c, launch.Options{}, withApp(passwd, group)...)
		home, _ := s.Getenv("HOME")
		assert.Equal(t, want, fmt.Sprintf("%d:%d %s", s.UID, s.GID, home), user)
	}
	for user, want := range map[string]string{
		"nobody": `no matching entries in passwd file`, "0:none": `no matching entries in group file`,
		"99999999999": "its user",
	} {
		c := app
		c.User = user
		_, err := try(t, c, launch.Options{}, withApp(passwd, group)...)
		assert.ErrorContains(t, err, want)
	}
}

func TestEnvironment(t *testing.T) {
	c := app
	c.Env = []string{"A=1", "B=x=y\nz", "LD_PRELOAD=/x.so"}
	s := build(t, c, launch.Options{Env: []process.EnvVar{
		{Name: "A", Value: "2"}, {Name: "HOSTNAME", PassThrough: true},
	}}, withApp()...)
	got := map[string]string{}
	for _, v := range s.Env {
		got[v.Name] = v.Value
	}
	assert.Equal(t, "2", got["A"])
	assert.Equal(t, "x=y\nz", got["B"])
	assert.Contains(t, got["PATH"], "/usr/bin")
	assert.Equal(t, "/", got["HOME"])
	assert.Contains(t, codes(s), "pass-env")
	assert.Contains(t, codes(s), "loader-env")
	for _, name := range []string{
		"LD_PRELOAD", "LD_X", "GLIBC_TUNABLES", "PYTHONPATH", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS", "PERL5LIB",
		"RUBYOPT", "PATH", "BASH_ENV", "ENV",
	} {
		assert.True(t, process.Steers(name), name)
	}
	for _, name := range []string{"HOSTNAME", "NODE_NAME", "POD_NAME", "ENVIRONMENT", "PATHS", "TZ"} {
		assert.False(t, process.Steers(name), name)
	}
}

func TestLibC(t *testing.T) {
	for want, interp := range map[libc.Kind]string{
		libc.Static: "", libc.GLIBC: "/lib64/ld-linux-x86-64.so.2", libc.Musl: "/lib/ld-musl-x86_64.so.1",
	} {
		s := build(t, app, launch.Options{}, Program("app", ELF(interp)))
		assert.Equal(t, want, s.LibC.Kind)
	}
	s := build(t, v1.Config{Cmd: []string{"/s"}}, launch.Options{}, Program("s", "#!/i\n"),
		Program("i", ELF("/lib64/ld-linux-x86-64.so.2")),
		File("etc/ld.so.conf", "# comment\ninclude /etc/ld.so.conf.d/*.conf\n/opt/lib # mine\n"),
		File("etc/ld.so.conf.d/a.conf", "/usr/local/lib\n"),
		Dir("opt/lib"), Dir("usr/local/lib"), Dir("usr/lib"), Symlink("lib", "usr/lib"))
	assert.Equal(t, "/i", s.LibC.Program)
	assert.Equal(t, []string{"/opt/lib", "/usr/local/lib", "/usr/lib"}, s.LibC.Dirs)
}

func TestStopSignal(t *testing.T) {
	c := app
	c.StopSignal = "SIGQUIT"
	assert.Equal(t, "stop-signal", codes(build(t, c, launch.Options{}, withApp()...)))
	c.StopSignal = "SIGTERM"
	assert.Empty(t, codes(build(t, c, launch.Options{}, withApp()...)))
}

// A file that the host may change can have very many names.
func TestManyLinksToAnAllowedFile(t *testing.T) {
	const links = 80_000
	files := withApp(File("data/f", "x"))
	for i := range links {
		files = append(files, Symlink(fmt.Sprintf("data/l%d", i), "f"))
	}
	begin := time.Now()
	s := build(t, app, launch.Options{AllowedFiles: []string{"/data/f"}}, files...)
	assert.Len(t, s.Allowed, links+1)
	assert.Less(t, time.Since(begin), 10*time.Second)
}
