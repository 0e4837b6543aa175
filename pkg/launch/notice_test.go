package launch_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/sys/reexec"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// testImage is an image for one finding.
type testImage struct {
	config  v1.Config
	options launch.Options
	facts   map[string]elf.Facts // of programs, instead of what their files say
	entries []Entry
}

func (i testImage) build(t *testing.T) *launch.Spec {
	t.Helper()
	if i.config.Cmd == nil && i.config.Entrypoint == nil {
		i.config.Cmd = []string{"/app"}
	}
	entries := append(slices.Clone(i.entries), Program("app", ELF("")), Program("bin/sh", ELF("")))
	config, err := json.Marshal(v1.ConfigFile{Config: i.config})
	require.NoError(t, err)
	s, err := launch.Examine(context.Background(),
		Tree(t, i.options.Keep(), i.facts, entries...)).Build(context.Background(), config, i.options)
	require.NoError(t, err)
	return s
}

const oneInstalled = "Package: base\nStatus: install ok installed\n"

func volume(names ...string) v1.Config {
	c := v1.Config{Volumes: map[string]struct{}{}}
	for _, n := range names {
		c.Volumes[n] = struct{}{}
	}
	return c
}

func cmd(args ...string) v1.Config { return v1.Config{Cmd: args} }

func env(kv ...string) v1.Config { return v1.Config{Env: kv} }

func manyFiles(n int, name string) []Entry {
	var list []Entry
	for i := range n {
		list = append(list, File(fmt.Sprintf(name, i), "x"))
	}
	return list
}

// celery is a script for Python, as it is installed.
var celery = []Entry{Program("usr/bin/celery", "#!/usr/bin/python3\n"), Program("usr/bin/python3", ELF(""))}

// Users are switched by programs that cannot do it in an enclave, and by others.
func TestUserSwitch(t *testing.T) {
	for script, fails := range map[string]bool{
		"exec runuser -u a -- /app": true, "test x && exec /usr/bin/su -c /app a": true, "exec gosu a /app": false,
		"exec chroot --userspec=a / /app": false, "echo do not exec: su is broken; exec /app": false,
		"setpriv --dump": false,
	} {
		s := build(t, v1.Config{Cmd: []string{"/start.sh"}}, launch.Options{},
			withApp(Program("bin/sh", ELF("")), Program("start.sh", "#!/bin/sh\n"+script+"\n"))...)
		assert.Equal(t, fails, strings.Contains(codes(s), finding.UserSwitch), script)
	}
	s := build(t, v1.Config{Cmd: []string{"/bin/setpriv", "--reuid=1", "/app"}}, launch.Options{},
		withApp(Program("bin/setpriv", ELF("")))...)
	assert.Contains(t, codes(s), finding.UserSwitch)
}

// The configuration that counts is the one that the program is told to read.
func TestNamedConfiguration(t *testing.T) {
	for _, args := range [][]string{{"-c", "app.d/supervisord.conf"}, {"--configuration=/srv/app.d/supervisord.conf"}} {
		s := build(t, v1.Config{Cmd: append([]string{"/usr/bin/supervisord"}, args...), WorkingDir: "/srv"},
			launch.Options{},
			Program("usr/bin/supervisord", ELF("")), File("etc/supervisord.conf", "[supervisord]\n"),
			File("srv/app.d/supervisord.conf", "[unix_http_server]\n"))
		assert.Contains(t, codes(s), finding.ControlSocket, "%q", args)
	}
}

// Each code with an image that has the finding and one that all but has it.
var findingImages = map[string]struct{ with, without testImage }{
	finding.EncryptedKey: {
		testImage{entries: secrets, options: encrypt("/srv/app")},
		testImage{entries: secrets, options: launch.Options{
			Encrypt: launch.Encryption{Paths: []string{"/srv/app"}, Key: "k", AtStart: true},
		}},
	},
	finding.EncryptedAtStart: {
		testImage{options: encrypt("/app")},
		testImage{entries: secrets, options: encrypt("/srv/app")},
	},
	finding.GoLauncher: {
		testImage{config: cmd("/start", "/app"), entries: []Entry{Program("start", ELF(""))},
			facts: map[string]elf.Facts{"/start": {Go: true}}},
		testImage{config: cmd("/start", "app"), entries: []Entry{Program("start", ELF(""))},
			facts: map[string]elf.Facts{"/start": {Go: true}}},
	},
	finding.EncryptedWritable: {
		testImage{entries: secrets, options: encrypt("/srv/app")},
		testImage{entries: secrets},
	},
	finding.PlainDigest: {
		testImage{options: encrypt("/lib/mine/a.py"), entries: []Entry{
			File("lib/mine/a.py", "x"), File("lib/mine-1.dist-info/RECORD", "mine/a.py,sha256=...,1\n"),
		}},
		testImage{options: encrypt("/lib"), entries: []Entry{
			File("lib/mine/a.py", "x"), File("lib/mine-1.dist-info/RECORD", "mine/a.py,sha256=...,1\n"),
		}},
	},
	finding.EncryptedScript: {
		testImage{config: cmd("/start"), entries: []Entry{Program("start", "#!/bin/sh\nexec /app\n")},
			options: encrypt("/start")},
		testImage{config: cmd("/start"), entries: append(secrets, Program("start", "#!/bin/sh\nexec /app\n")),
			options: encrypt("/srv/app")},
	},
	finding.Semaphores: {
		testImage{config: v1.Config{Cmd: []string{"/usr/bin/celery", "-A", "app", "worker"}}, entries: celery},
		testImage{
			config: v1.Config{Cmd: []string{"/usr/bin/celery", "-A", "app", "worker", "--pool=solo"}}, entries: celery,
		},
	},
	finding.ControlSocket: {
		testImage{
			config: cmd("/usr/bin/supervisord"), entries: []Entry{
				Program("usr/bin/supervisord", ELF("")),
				File("etc/supervisord.conf", "[supervisord]\n[unix_http_server]\nfile=/run/s\n"),
			},
		},
		testImage{config: v1.Config{Cmd: []string{"/usr/bin/supervisord", "-c", "/app/supervisord.conf"}},
			entries: []Entry{
				Program("usr/bin/supervisord", ELF("")), File("etc/supervisord.conf", "[unix_http_server]\n"),
				File("app/supervisord.conf", "[supervisord]\n#[unix_http_server]\n"),
			}},
	},
	finding.UserSwitch: {
		testImage{
			config: cmd("/s"), entries: []Entry{Program("s",
				"#!/bin/sh\nif [ $(id -u) = 0 ]; then\n  exec setpriv --reuid=a -- \"$0\" \"$@\"\nfi\n")},
		},
		testImage{
			config:  v1.Config{Cmd: []string{"/s"}, User: "1"},
			entries: []Entry{Program("s", "#!/bin/sh\n[ $(id -u) = 0 ] && exec setpriv --reuid=a -- /app\n")},
		},
	},
	finding.PluginLink: {
		testImage{
			config:  v1.Config{Cmd: []string{"/usr/bin/uwsgi", "--plugin", "python3"}},
			entries: []Entry{Program("usr/bin/uwsgi", ELF(""))},
		},
		testImage{
			config:  v1.Config{Cmd: []string{"/usr/bin/uwsgi", "--plugin", "python311"}},
			entries: []Entry{Program("usr/bin/uwsgi", ELF(""))},
		},
	},
	finding.DataDirectory: {
		testImage{
			config:  cmd("/usr/sbin/mariadbd"),
			entries: []Entry{Program("usr/sbin/mariadbd", ELF("")), File("var/lib/mysql/ibdata1", "x")},
		},
		testImage{
			config:  v1.Config{Cmd: []string{"/usr/sbin/mariadbd"}, Volumes: map[string]struct{}{"/var/lib/mysql": {}}},
			entries: []Entry{Program("usr/sbin/mariadbd", ELF("")), File("var/lib/mysql/ibdata1", "x")},
		},
	},
	finding.NameNotUTF8: {
		testImage{entries: []Entry{File("caf\xe9", "x")}}, testImage{entries: []Entry{File("café", "x")}},
	},
	finding.LinkIntoTmpfs: {
		testImage{entries: []Entry{Dir("run"), Symlink("var/run", "/run")}},
		testImage{entries: []Entry{Dir("run"), Symlink("var/run", "/app")}},
	},
	finding.LinkOutside: {
		testImage{entries: []Entry{Symlink("mounts", "/proc/mounts")}},
		testImage{entries: []Entry{Symlink("mounts", "/app")}},
	},
	finding.LinkToConsole: {
		testImage{entries: []Entry{Symlink("var/log/app/access.log", "/dev/stdout")}},
		testImage{entries: []Entry{Symlink("logs", "/dev/stdout")}},
	},
	finding.VolumeTemporary: {testImage{config: volume("/tmp/x")}, testImage{config: volume("/data")}},
	finding.VolumeSealed: {
		testImage{config: volume("/data")},
		testImage{config: volume("/data"), options: launch.Options{Tmpfs: []string{"/data"}}},
	},
	finding.VolumeHides: {
		testImage{config: volume("/data"), entries: []Entry{File("data/x", "x")}},
		testImage{config: volume("/data"), entries: []Entry{File("data/x", "")}},
	},
	finding.VolumeSkipped: {
		testImage{
			config:  v1.Config{Cmd: []string{"/opt/app"}, Volumes: map[string]struct{}{"/opt": {}}},
			entries: []Entry{Program("opt/app", ELF(""))},
		}, testImage{config: volume("/data")},
	},
	finding.LinkIntoVolume: {
		testImage{config: volume("/data"), entries: []Entry{File("data/x", "x"), Symlink("l", "data/x")}},
		testImage{config: volume("/data"), entries: []Entry{File("datas/x", "x"), Symlink("l", "datas/x")}},
	},
	finding.HiddenDirs: {
		testImage{entries: manyFiles(300, "run/%d/x")}, testImage{entries: manyFiles(100, "run/%d/x")},
	},
	finding.HiddenFiles: {
		testImage{entries: []Entry{File("tmp/x", "x")}}, testImage{entries: []Entry{File("tmp/x", "")}},
	},
	finding.TmpfsSkipped: {
		testImage{config: cmd("/run/app"), entries: []Entry{Program("run/app", ELF(""))}}, testImage{},
	},
	finding.DeviceNode: {
		testImage{entries: []Entry{Special("pipe", '6')}}, testImage{entries: []Entry{File("pipe", "x")}},
	},
	finding.LinkLoop: {
		testImage{entries: []Entry{Symlink("a", "b"), Symlink("b", "a")}},
		testImage{entries: []Entry{Symlink("a", "b")}},
	},
	finding.TooManyMounts: {testImage{entries: linkMaze(14)}, testImage{entries: linkMaze(3)}},
	finding.ArgvZero: {
		testImage{
			config: cmd("/link"), options: launch.Options{HostArgs: true}, entries: []Entry{Symlink("link", "app")},
		}, testImage{options: launch.Options{HostArgs: true}},
	},
	finding.TmpfsPerProcess: {
		testImage{config: cmd("/s"), entries: []Entry{Program("s", "#!/bin/sh\nsed s/a/b/ /t >/tmp/c\n")}},
		testImage{config: cmd("/s"), entries: []Entry{Program("s", "#!/bin/sh\nexec /app 2>/dev/null\n")}},
	},
	finding.Processes: {
		testImage{
			config:  cmd("/s"),
			entries: []Entry{Program("s", "#!/bin/sh\nother\nexec /app\n"), Program("usr/bin/other", ELF(""))},
		}, testImage{config: cmd("/s"), entries: []Entry{Program("s", "#!/bin/sh\nexec /app\n")}},
	},
	finding.StopSignal: {
		testImage{config: v1.Config{StopSignal: "SIGQUIT"}}, testImage{config: v1.Config{StopSignal: "SIGTERM"}},
	},
	finding.ArgumentsFixed: {testImage{}, testImage{options: launch.Options{HostArgs: true}}},
	finding.HostArguments:  {testImage{options: launch.Options{HostArgs: true}}, testImage{}},
	finding.PassThrough: {
		testImage{options: launch.Options{Env: []process.EnvVar{{Name: "A", PassThrough: true}}}},
		testImage{options: launch.Options{Env: []process.EnvVar{{Name: "A", Value: "1"}}}},
	},
	finding.AllowedFile: {testImage{options: launch.Options{AllowedFiles: []string{"/x"}}}, testImage{}},
	finding.LoaderEnv:   {testImage{config: env("LD_PRELOAD=/x.so")}, testImage{config: env("LD_PRELOAD=")}},
	finding.PackageDatabase: {
		testImage{entries: []Entry{File("var/lib/rpm/Packages", "damaged")}},
		testImage{entries: []Entry{File("var/lib/dpkg/status", oneInstalled)}},
	},
	finding.NoPackages: {testImage{}, testImage{entries: []Entry{File("var/lib/dpkg/status", oneInstalled)}}},
	finding.LeftOut: {
		testImage{entries: []Entry{
			File("var/lib/dpkg/status", oneInstalled), File("var/lib/dpkg/info/base.list", "/usr/x\n"),
			File("usr/x", "x"),
		}},
		testImage{
			options: launch.Options{Trust: launch.TrustAll}, entries: []Entry{
				File("var/lib/dpkg/status", oneInstalled), File("var/lib/dpkg/info/base.list", "/usr/x\n"),
				File("usr/x", "x"),
			},
		},
	},
	finding.Threads: {
		testImage{
			config: cmd("/memcached", "-t", "64"), options: launch.Options{Threads: 16},
			entries: []Entry{Program("memcached", ELF(""))},
		},
		testImage{config: cmd("/memcached", "-t", "64"), entries: []Entry{Program("memcached", ELF(""))}},
	},
	finding.SharedMemory: {
		testImage{config: cmd("/postgres"), entries: []Entry{Program("postgres", ELF(""))}},
		testImage{config: cmd("/postgrest"), entries: []Entry{Program("postgrest", ELF(""))}},
	},
	finding.FileLocks: {
		testImage{facts: map[string]elf.Facts{"/app": {Imports: []string{"flock"}}}},
		testImage{facts: map[string]elf.Facts{"/app": {Imports: []string{"setlocale"}}}},
	},
	finding.RenameDir: {
		testImage{config: cmd("/etcd"), entries: []Entry{Program("etcd", ELF(""))}},
		testImage{config: cmd("/etcdctl"), entries: []Entry{Program("etcdctl", ELF(""))}},
	},
	finding.Interfaces: {
		testImage{facts: map[string]elf.Facts{"/app": {Imports: []string{"getifaddrs"}}}},
		testImage{
			facts: map[string]elf.Facts{
				"/app":             {Needed: []string{"libc.so.6"}},
				"/lib64/libc.so.6": {Imports: []string{"getifaddrs"}, DefinesGLIBC: "2.36"},
			}, entries: []Entry{Program("lib64/libc.so.6", ELF(""))},
		},
	},
	finding.SetUID: {
		testImage{config: cmd("/su", "/app"), entries: []Entry{setuid("su")}},
		testImage{entries: []Entry{setuid("su")}},
	},
	finding.UserCannotRead: {
		testImage{
			config:  v1.Config{Cmd: []string{"/mine"}, User: "1000"},
			entries: []Entry{withMode(Program("mine", ELF("")), 0o711)},
		},
		testImage{
			config:  v1.Config{Cmd: []string{"/mine"}, User: "0"},
			entries: []Entry{withMode(Program("mine", ELF("")), 0o711)},
		},
	},
	finding.DeviceUser: {testImage{config: v1.Config{User: "1000"}}, testImage{config: v1.Config{User: "0"}}},
	finding.Healthcheck: {
		testImage{config: v1.Config{Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "true"}}}},
		testImage{config: v1.Config{Healthcheck: &v1.HealthConfig{Test: []string{"NONE"}}}},
	},
	finding.MountedSecrets: {
		testImage{config: env("PASSWORD_FILE=/run/secrets/password")},
		testImage{config: env("PASSWORD_FILE=/run/secret")},
	},
	finding.Locale: {
		testImage{config: env("LANG=de_DE.UTF-8"), facts: glibcApp, entries: glibcFiles},
		testImage{
			config: env("LANG=de_DE.UTF-8"), facts: glibcApp,
			entries: append(slices.Clone(glibcFiles), File("usr/lib/locale/de_DE.utf8/x", "x")),
		},
	},
	finding.ContainsEnclave: {
		testImage{entries: []Entry{File("opt/x.signed.so", "x")}}, testImage{entries: []Entry{File("opt/x.so", "x")}},
	},
	finding.InterpreterAbsent: {testImage{facts: glibcApp}, testImage{facts: glibcApp, entries: glibcFiles}},
	finding.LibraryAbsent: {
		testImage{facts: map[string]elf.Facts{"/app": {Needed: []string{"liba.so"}}}},
		testImage{
			facts:   map[string]elf.Facts{"/app": {Needed: []string{"liba.so"}}},
			entries: []Entry{Program("usr/lib/liba.so", ELF(""))},
		},
	},
}

var (
	glibcApp   = map[string]elf.Facts{"/app": {Interp: "/lib64/ld-linux-x86-64.so.2"}}
	glibcFiles = []Entry{Program("lib64/ld-linux-x86-64.so.2", ELF(""))}
)

func withMode(e Entry, mode int64) Entry { e.Header.Mode = mode; return e }

func setuid(name string) Entry { return withMode(Program(name, ELF("")), 0o4755) }

// linkMaze has so many directories, each with links to all the others.
func linkMaze(n int) []Entry {
	var list []Entry
	for i := range n {
		for j := range n {
			if i != j {
				list = append(list, Symlink(fmt.Sprintf("d%d/l%d", i, j), fmt.Sprintf("/d%d", j)))
			}
		}
	}
	return list
}

// elsewhere are the codes of findings that a runtime or a conversion adds, with the test that has images
// for them and how it calls them.
var elsewhere = map[string][2]string{
	finding.GLIBCTooNew:      {"../libos/gramine/seal_test.go", "glibc-too-new"},
	finding.SyscallTraps:     {"../libos/gramine/seal_test.go", "syscall-traps"},
	finding.Gconv:            {"../libos/gramine/seal_test.go", "finding.Gconv"},
	finding.Annotation:       {"../verify/engine_test.go", "finding.Annotation"},
	finding.AVX512:           {"../libos/gramine/seal_test.go", "finding.AVX512"},
	finding.InsecureSetting:  {"../libos/gramine/seal_test.go", "finding.InsecureSetting"},
	finding.Simulated:        {"../convert/analyze_test.go", "finding.Simulated"},
	finding.Converted:        {"../convert/analyze_test.go", "finding.Converted"},
	finding.ManyLayers:       {"../convert/analyze_test.go", "finding.ManyLayers"},
	finding.Reserved:         {"../convert/analyze_test.go", "finding.Reserved"},
	finding.TOCTrusted:       {"../convert/layers_test.go", "finding.TOCTrusted"},
	finding.TOCRejected:      {"../convert/layers_test.go", "finding.TOCRejected"},
	finding.IndexInsecure:    {"../convert/layers_test.go", "finding.IndexInsecure"},
	finding.IndexRejected:    {"../convert/layers_test.go", "finding.IndexRejected"},
	finding.EvidenceRefused:  {"../verify/evidence_test.go", "finding.EvidenceRefused"},
	finding.ReferrerKept:     {"../../internal/batch/carried_test.go", "finding.ReferrerKept"},
	finding.IndexUnreachable: {"../convert/layers_test.go", "finding.IndexUnreachable"},
	finding.IndexNotShared:   {"../convert/layers_test.go", "finding.IndexNotShared"},
	finding.LongList:         {"../convert/analyze_test.go", "finding.LongList"},
	finding.Debug:            {"../libos/options_test.go", "finding.Debug"},
	finding.InsecureKey:      {"../verify/encrypted_test.go", "finding.InsecureKey"},
	finding.PlainCopy:        {"../verify/encrypted_test.go", "finding.PlainCopy"},
	finding.PlainQuote:       {"../verify/encrypted_test.go", "finding.PlainQuote"},
	finding.PlainSource:      {"../verify/encrypted_test.go", "finding.PlainSource"},
	finding.EncryptedLink:    {"../verify/encrypted_test.go", "finding.EncryptedLink"},
	finding.OcclumUnmeasured: {"../libos/occlum/occlum_test.go", "finding.OcclumUnmeasured"},
	finding.OcclumFork:       {"../libos/occlum/occlum_test.go", "finding.OcclumFork"},
	finding.OcclumProgram:    {"../libos/occlum/occlum_test.go", "finding.OcclumProgram"},
	finding.OcclumSyscalls:   {"../libos/occlum/occlum_test.go", "finding.OcclumSyscalls"},
	finding.OcclumShebang:    {"../libos/occlum/occlum_test.go", "finding.OcclumShebang"},
	finding.OcclumLibC:       {"../libos/occlum/occlum_test.go", "finding.OcclumLibC"},
	finding.OcclumUser:       {"../libos/occlum/occlum_test.go", "finding.OcclumUser"},
	finding.OcclumArguments:  {"../libos/occlum/occlum_test.go", "finding.OcclumArguments"},
	finding.OcclumVolume:     {"../libos/occlum/occlum_test.go", "finding.OcclumVolume"},
	finding.RuntimeUnpinned:  {"../../e2e/gramine_test.go", "runtime-unpinned"},
}

func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	os.Exit(m.Run())
}

func TestEveryFinding(t *testing.T) {
	has := func(s *launch.Spec, code string) bool {
		return slices.ContainsFunc(s.Findings, func(f finding.Finding) bool {
			return f.Code == code && f.Remedy != "" && f.Message != ""
		})
	}
	for _, code := range slices.Sorted(maps.Keys(findingImages)) {
		t.Run(code, func(t *testing.T) {
			assert.True(t, has(findingImages[code].with.build(t), code), "an image that has it")
			s := findingImages[code].without.build(t)
			assert.False(t, has(s, code), "an image that does not: %v", s.Findings)
		})
	}
	source, err := os.ReadFile("../finding/finding.go")
	require.NoError(t, err)
	for _, m := range regexp.MustCompile(`(?m)^\t[A-Z]\w+ += "([\w-]+)"$`).FindAllStringSubmatch(string(source), -1) {
		if _, ok := findingImages[m[1]]; ok {
			continue
		}
		require.NotEmpty(t, elsewhere[m[1]][0], "%s has no image", m[1])
		test, err := os.ReadFile(elsewhere[m[1]][0])
		require.NoError(t, err)
		assert.True(t, strings.Contains(string(test), elsewhere[m[1]][1]), "%s in %s", m[1], elsewhere[m[1]][0])
	}
}

func TestSize(t *testing.T) {
	const gb = 1 << 30
	java := []Entry{Program("usr/bin/java", ELF(""))}
	s := testImage{config: cmd("java"), entries: java}.build(t)
	assert.Equal(t, "java", s.Profile.Name)
	assert.EqualValues(t, 4*gb, s.Memory)
	assert.Equal(t, 128, s.Threads)
	s = testImage{config: cmd("java", "-Xmx3g"), entries: java}.build(t)
	assert.EqualValues(t, 8*gb, s.Memory, "twice the heap and 1.5 GB, to the next power of two")
	assert.Equal(t, "-Xmx3g", s.SizeWhy)
	s = testImage{config: v1.Config{Cmd: []string{"java"}, Env: []string{"JAVA_OPTS=-Xmx3g"}}, entries: java}.build(t)
	assert.EqualValues(t, 8*gb, s.Memory)
	s = testImage{
		config: cmd("/s"), entries: append(slices.Clone(java), Program("s", "#!/bin/sh\nexec java -Xmx3g\n")),
	}.build(t)
	assert.EqualValues(t, 8*gb, s.Memory, "a script's flags")
	s = testImage{
		config: cmd("java", "-Xmx3g"), entries: java, options: launch.Options{Memory: gb},
	}.build(t)
	assert.EqualValues(t, gb, s.Memory, "as asked for")
	s = testImage{facts: map[string]elf.Facts{"/app": {MemSize: 3 * gb}}}.build(t)
	assert.EqualValues(t, 8*gb, s.Memory)
	assert.Contains(t, s.SizeWhy, "3072 MB")
	s = testImage{facts: map[string]elf.Facts{"/app": {MemSize: 1 << 62}}}.build(t)
	assert.EqualValues(t, 64*gb, s.Memory, "the most there is")
	s = testImage{config: cmd("/memcached", "-t", "64"), entries: []Entry{Program("memcached", ELF(""))}}.build(t)
	assert.Equal(t, 76, s.Threads)

	mine, err := profile.Parse("mine", []byte("[enclave]\nsize = \"2G\"\nthreads = 7\n[env]\nA = \"1\"\nB = \"2\"\n"+
		"[paths]\ntmpfs = [\"/run/mine\", \"/usr/empty\", \"/usr/share\"]\nread = [\"/usr/share/mine/*\"]\n"))
	require.NoError(t, err)
	s = testImage{config: env("A=0"), options: launch.Options{Profile: mine}, entries: []Entry{
		File("var/lib/dpkg/status", oneInstalled), File("var/lib/dpkg/info/base.list", "/usr/share/mine/x\n"),
		File("usr/share/mine/x", "x"), Dir("usr/empty"),
	}}.build(t)
	assert.EqualValues(t, 2*gb, s.Memory)
	assert.Equal(t, 7, s.Threads)
	a, _ := s.Getenv("A")
	b, _ := s.Getenv("B")
	assert.Equal(t, "02", a+b, "what the image says stays")
	assert.Equal(t, "/run/mine=tmpfs /usr/empty=tmpfs", mounts(s))
	assert.Contains(t, trusted(s), "/usr/share/mine/x")
	mine.Paths.Read = []string{"[a"}
	_, err = try(t, app, launch.Options{Profile: mine}, withApp()...)
	assert.ErrorContains(t, err, "the pattern")
}

func TestTrustList(t *testing.T) {
	entries := []Entry{
		File("data/a", "x"), File("data/b", "x"), Symlink("link", "data/b"), Dir("dir"), File("dir/c", "x"),
	}
	s := testImage{
		options: launch.Options{Trust: launch.TrustList, List: []string{"/link", "/dir", "/none"}}, entries: entries,
	}.build(t)
	assert.Equal(t, "/app /data/b /link", trusted(s), "the program, and what is listed by each of its names")
	assert.Equal(t, launch.TrustList, s.Policy)
	assert.Equal(t, 3, s.LeftOut)
	_, err := try(t, app, launch.Options{Trust: launch.TrustList, List: []string{"/none"}}, withApp()...)
	require.ErrorContains(t, err, "names no file of the image")
	_, err = try(t, app, launch.Options{Trust: "some"}, withApp()...)
	assert.ErrorContains(t, err, `no trust policy "some"`)
}

func TestParseList(t *testing.T) {
	paths, err := launch.ParseList(strings.NewReader(`
1234 execve("/usr/bin/app", ["app", "/not/this"], 0x7ffd /* 5 vars */) = 0
1234 openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3
1234 openat(AT_FDCWD, "/missing", O_RDONLY) = -1 ENOENT (No such file or directory)
1234 open("/etc/shadow", O_RDONLY)        = -1 EACCES (Permission denied)
[pid  1235] newfstatat(AT_FDCWD, "/caf\303\251 \"x\"\n", {st_mode=S_IFREG|0644, st_size=1, ...}, 0) = 0
1235 chdir("/srv") = 0
1235 openat(AT_FDCWD, "rel", O_RDONLY) = 3
1235 openat(4</opt/app>, "inner", O_RDONLY) = 3
1235 openat(AT_FDCWD</job>, "there", O_RDONLY) = 3
1235 openat(AT_FDCWD, "/unfinished", O_RDONLY <unfinished ...>
1235 <... openat resumed>) = 5
1235 readlink("/proc/self/exe", "/usr/bin/app", 4096) = 12
12:00:00.123 open("/timed", O_RDONLY) = 3
+++ exited with 0 +++
--- SIGCHLD {si_signo=SIGCHLD} ---
`))
	require.NoError(t, err)
	for _, want := range []string{
		"/usr/bin/app", "/etc/ld.so.cache", "/café \"x\"\n", "/srv", "/srv/rel", "/rel", "/opt/app/inner", "/job/there",
		"/unfinished", "/timed",
	} {
		assert.Contains(t, paths, want)
	}
	for _, not := range []string{"/missing", "/etc/shadow", "/not/this", "/app"} {
		assert.NotContains(t, paths, not)
	}
	paths, err = launch.ParseList(strings.NewReader("/b\n/a/../a\r\n\n/with space\n/open(\"x\")\n"))
	require.NoError(t, err)
	assert.Equal(t, []string{"/a", "/b", "/open(\"x\")", "/with space"}, paths)
	_, err = launch.ParseList(strings.NewReader("nothing\n"))
	assert.Error(t, err)
	_, err = launch.ParseList(strings.NewReader("/" + strings.Repeat("a", 2<<20)))
	assert.Error(t, err)
}

// A supervisor's configuration names what it starts.
func TestSupervisor(t *testing.T) {
	list := func(name, files string) Entry { return File("var/lib/dpkg/info/"+name+".list", files) }
	s := testImage{config: cmd("supervisord", "-n"), entries: []Entry{
		Program("usr/bin/supervisord", "#!/usr/bin/python3\n"), Program("usr/bin/python3", ELF("")),
		Program("usr/sbin/nginx", ELF("")), Program("usr/bin/other", ELF("")), File("usr/share/other/data", "x"),
		File("etc/supervisor/conf.d/web.conf", "[program:web]\ncommand=/usr/sbin/nginx -g 'daemon off;'\n"),
		File("usr/share/nginx/page", "x"),
		File("var/lib/dpkg/status",
			"Package: nginx\nStatus: install ok installed\n\nPackage: other\nStatus: install ok installed\n"),
		list("nginx", "/usr/sbin/nginx\n/usr/share/nginx/page\n"),
		list("other", "/usr/bin/other\n/usr/share/other/data\n"),
	}}.build(t)
	assert.Equal(t, "supervisor", s.Profile.Name)
	assert.Contains(t, trusted(s), "/usr/sbin/nginx")
	assert.Contains(t, trusted(s), "/usr/share/nginx/page")
	assert.NotContains(t, trusted(s), "/usr/share/other/data")
	assert.Contains(t, codes(s), "process-per-enclave")
}

// Behind an init program or a script, the program that runs in the end is looked at as if it were started itself.
func TestProgramBehindOthers(t *testing.T) {
	real := map[string]elf.Facts{
		"/real": {
			Interp: "/lib64/ld-linux-x86-64.so.2", Imports: []string{"flock", "getifaddrs", "shmget"},
			Needed: []string{"libnone.so"}, MemSize: 3 << 30,
		},
		"/usr/tini": {},
	}
	for name, i := range map[string]testImage{
		"itself": {config: cmd("/real"), facts: real},
		"tini":   {config: cmd("/usr/tini", "--", "/real"), facts: real},
		"script": {
			config: cmd("/s", "/real"), facts: real, entries: []Entry{Program("s", "#!/bin/sh\nset -e\nexec \"$@\"\n")},
		},
	} {
		s := i.build(t)
		for _, code := range []string{
			finding.FileLocks, finding.Interfaces, finding.SharedMemory, finding.LibraryAbsent,
			finding.InterpreterAbsent,
		} {
			assert.Contains(t, codes(s), code, name)
		}
		assert.EqualValues(t, 8<<30, s.Memory, name)
	}
}

// What one import is worth does not depend on another one.
func TestSeverityOfImports(t *testing.T) {
	s := testImage{facts: map[string]elf.Facts{"/app": {Imports: []string{"flock", "getifaddrs", "shmget"}}}}.build(t)
	severity := map[string]finding.Severity{}
	for _, f := range s.Findings {
		severity[f.Code] = f.Severity
	}
	assert.Equal(t, finding.Info, severity[finding.FileLocks])
	assert.Equal(t, finding.Info, severity[finding.Interfaces], "brokers import it, and run")
	assert.Equal(t, finding.Info, severity[finding.SharedMemory])
}

// Libraries that the image preloads are reached, though only a variable names them.
func TestPreload(t *testing.T) {
	list := func(name, files string) Entry { return File("var/lib/dpkg/info/"+name+".list", files) }
	s := testImage{
		config: env("LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libjemalloc.so.2 libother.so", "LD_AUDIT=libaudit.so"),
		facts: map[string]elf.Facts{
			"/usr/lib/x86_64-linux-gnu/libjemalloc.so.2": {Needed: []string{"libdep.so"}},
			"/usr/lib/x86_64-linux-gnu/libdep.so":        {},
			"/usr/lib/libother.so":                       {}, "/usr/lib/libaudit.so": {},
		},
		entries: []Entry{
			File("var/lib/dpkg/status", "Package: jemalloc\nStatus: install ok installed\n"),
			list("jemalloc", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2\n/usr/lib/x86_64-linux-gnu/libdep.so\n"+
				"/usr/lib/libother.so\n/usr/lib/libaudit.so\n"),
		},
	}.build(t)
	for _, p := range []string{
		"/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "/usr/lib/x86_64-linux-gnu/libdep.so", "/usr/lib/libother.so",
		"/usr/lib/libaudit.so",
	} {
		assert.Contains(t, trusted(s), p)
	}
}

// Threads take memory, comments say nothing, and where a size is given threads are kept to it.
func TestThreadsAndComments(t *testing.T) {
	memcached := []Entry{Program("memcached", ELF(""))}
	s := testImage{config: cmd("/memcached", "-t", "1700"), entries: memcached}.build(t)
	assert.Equal(t, 1712, s.Threads)
	assert.EqualValues(t, 2<<30, s.Memory)
	s = testImage{
		config: cmd("/memcached", "-t", "1700"), entries: memcached,
		options: launch.Options{Memory: 256 << 20},
	}.build(t)
	assert.LessOrEqual(t, s.Threads*360<<10, 256<<20/2)
	s = testImage{
		config: cmd("/s"), entries: []Entry{
			Program("usr/bin/java", ELF("")),
			Program("s", "#!/bin/sh\n# set -Xmx30g on large machines\nexec java -Xmx256m\n"),
		},
	}.build(t)
	assert.EqualValues(t, 4<<30, s.Memory)
}

// Supplementary groups count, as engines give them to a user that is named without a group.
func TestSupplementaryGroups(t *testing.T) {
	entries := func(members string) []Entry {
		mine := withMode(Program("mine", ELF("")), 0o750)
		mine.Header.Gid = 500
		return []Entry{mine, File("etc/passwd", "u:x:1000:1000::/:\n"), File("etc/group", "g:x:500:"+members+"\n")}
	}
	for user, c := range map[string]struct {
		members string
		finds   bool
	}{"u": {"a,u", false}, "1000": {"u", false}, "u:1000": {"u", true}, "u:g": {"", false}, "1000:1000": {"u", true}} {
		s := testImage{config: v1.Config{Cmd: []string{"/mine"}, User: user}, entries: entries(c.members)}.build(t)
		assert.Equal(t, c.finds, strings.Contains(codes(s), finding.UserCannotRead), user)
	}
	s := testImage{config: v1.Config{Cmd: []string{"/mine"}, User: "u"}, entries: entries("other")}.build(t)
	assert.Contains(t, codes(s), finding.UserCannotRead)
}

// Every script that is started is looked at, not only the first.
func TestScriptsOfScripts(t *testing.T) {
	s := testImage{config: cmd("/entry.sh", "/app"), entries: []Entry{
		Program("entry.sh", "#!/bin/sh\nfor f in /docker-entrypoint.d/*; do \"$f\"; done\nrun-parts "+
			"/docker-entrypoint.d\nexec \"$@\"\n"),
		Program("docker-entrypoint.d/20-envsubst.sh",
			"#!/bin/sh\n# cp a b\nenvsubst </t >/etc/conf\ncat /run/secrets/mine\n"),
	}}.build(t)
	at := map[string]string{}
	for _, f := range s.Findings {
		at[f.Code] = f.Path
	}
	assert.Equal(t, "/docker-entrypoint.d/20-envsubst.sh", at[finding.TmpfsPerProcess])
	assert.Equal(t, "/run/secrets/mine", at[finding.MountedSecrets])
}

// The commands of a profile that the user gives are read as those of the built-in ones are.
func TestCommandsOfOwnProfile(t *testing.T) {
	mine, err := profile.Parse("mine", []byte("[paths]\ncommands = [\"/etc/mine.conf\"]\n"))
	require.NoError(t, err)
	s := testImage{options: launch.Options{Profile: mine}, entries: []Entry{
		File("etc/mine.conf", "run /usr/bin/other\n"), Program("usr/bin/other", ELF("")),
		File("var/lib/dpkg/status", "Package: other\nStatus: install ok installed\n"),
		File("var/lib/dpkg/info/other.list", "/usr/bin/other\n"),
	}}.build(t)
	assert.Contains(t, trusted(s), "/usr/bin/other")
	_, err = profile.Parse("mine", []byte("[[finding]]\ncode = \"x\"\nseverity = \"fatal\"\n"))
	assert.ErrorContains(t, err, `the severity "fatal"`)
}
