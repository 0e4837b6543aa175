package profile_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/profile"
)

// Every profile says what its values are for, names known findings, and leaves room for a program.
func TestProfilesThatComeAlong(t *testing.T) {
	names := ""
	for _, p := range profile.All() {
		names += p.Name + " "
		assert.NotEmpty(t, p.Description, p.Name)
		assert.GreaterOrEqual(t, uint64(p.Enclave.Size), uint64(256<<20), p.Name)
		assert.GreaterOrEqual(t, p.Enclave.Threads, 4, p.Name)
		for _, f := range p.Findings {
			assert.True(t, finding.Known(f.Code), "%s: %s", p.Name, f.Code)
			assert.Contains(t, []string{"info", "warning", "error"}, f.Severity, p.Name)
		}
		explained := false
		inList := false
		for line := range strings.Lines(p.Text) {
			switch line = strings.TrimSpace(line); {
			case inList:
				inList = line != "]"
				explained = false
			case strings.HasPrefix(line, "#"):
				explained = true
			case strings.Contains(line, "=") && !strings.HasPrefix(line, "description") && !strings.HasPrefix(line,
				"code") && !strings.HasPrefix(line, "severity") && !strings.HasPrefix(line, "message"):
				assert.True(t, explained, "%s: %s has no comment", p.Name, line)
				inList = strings.HasSuffix(line, "[")
				explained = false
			}
		}
	}
	assert.Contains(t, names, "native ", "what fits where no other does")
}

func program(name string, libraries ...string) profile.Program {
	return profile.Program{Names: []string{name}, Libraries: libraries, Surely: true}
}

func TestRecognise(t *testing.T) {
	named := func(p profile.Program) profile.Program { p.Surely = false; return p }
	for _, c := range []struct {
		want     string
		programs []profile.Program
	}{
		{"native", []profile.Program{program("anything")}},
		{"native", nil},
		{"go", []profile.Program{{Names: []string{"x"}, Go: true, Surely: true}}},
		{"etcd", []profile.Program{{Names: []string{"etcd"}, Go: true, Surely: true}}},
		{"python", []profile.Program{program("python3.11")}},
		{"python-workers", []profile.Program{program("uwsgi-core", "libpython3.11.so.1.0")}},
		{"python", []profile.Program{program("embedding", "libpython3.11.so.1.0")}},
		{"node", []profile.Program{program("node")}},
		{"python-workers", []profile.Program{program("gunicorn"), program("python3.11")}},
		{"ruby-workers", []profile.Program{program("unicorn")}},
		{"java", []profile.Program{program("java")}},
		{"java", []profile.Program{program("launcher", "libjvm.so")}},
		{"ruby", []profile.Program{program("ruby3.1")}},
		{"php", []profile.Program{program("php8.2")}},
		{"perl", []profile.Program{program("perl")}},
		{"dotnet", []profile.Program{program("dotnet")}},
		{"php-fpm", []profile.Program{program("php-fpm8.2")}},
		{"nginx", []profile.Program{program("nginx")}},
		{"apache", []profile.Program{program("httpd")}},
		{"redis", []profile.Program{{Names: []string{"redis-check-rdb", "redis-server"}, Surely: true}}},
		{"postgres", []profile.Program{program("postgres")}},
		{"memcached", []profile.Program{program("memcached")}},
		{"shell", []profile.Program{program("dash")}},
		{"redis", []profile.Program{program("tini"), program("redis-server")}},
		{"native", []profile.Program{program("tini"), program("anything"), named(program("redis-server"))}},
		{"redis", []profile.Program{program("sh"), named(program("mkdir")), named(program("redis-server"))}},
		{"shell", []profile.Program{program("sh"), named(program("mkdir"))}},
		{"supervisor", []profile.Program{program("sh"), program("supervisord"), named(program("nginx"))}},
	} {
		p, why, _ := profile.Recognise(c.programs)
		assert.Equal(t, c.want, p.Name, "%v", c.programs)
		assert.NotEmpty(t, why)
	}
}

func TestNeed(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		profile string
		text    string
		memory  uint64
		threads uint64
		said    string
	}{
		{"java", "java -Xmx512m -jar x", 2*512*mb + 1536*mb, 0, "-Xmx512m"},
		{"java", "JAVA_OPTS=-Xms1g -Xmx2G", 2*2048*mb + 1536*mb, 0, "-Xmx2G"},
		{"java", "exec java $OPTS -XX:MaxHeapSize=536870912", 2*512*mb + 1536*mb, 0, "-XX:MaxHeapSize=536870912"},
		{"java", "java -Xms512m", 0, 0, ""},
		{"java", "java -Xmx99999999999999999999g -Xmx9999999999999g", 0, 0, ""},
		{"node", "node --max-old-space-size=4096 x.js", 6144 * mb, 0, "--max-old-space-size=4096"},
		{"node", "NODE_OPTIONS=--max_old_space_size=100", 150 * mb, 0, "--max_old_space_size=100"},
		{"node", "UV_THREADPOOL_SIZE=128", 0, 160, "UV_THREADPOOL_SIZE=128"},
		{"go", "GOMEMLIMIT=1GiB", 1536 * mb, 0, "GOMEMLIMIT=1GiB"},
		{"memcached", "memcached -m 1024 -t 16", 1536*mb + 128*mb, 28, ""},
		{"redis", "redis-server --maxmemory 2gb", 3072*mb + 128*mb, 0, "--maxmemory 2gb"},
		{"python", "gunicorn --threads=40 app", 0, 56, "--threads=40"},
		{"python", "gunicorn --threads 40 app", 0, 56, "--threads 40"},
		{"python", "gunicorn --threads-per-x 40 app", 0, 0, ""},
		{"dotnet", "DOTNET_GCHeapHardLimit=10000000", 6 * 256 * mb, 0, "DOTNET_GCHeapHardLimit=10000000"},
	} {
		p := profile.Find(c.profile)
		memory, saidMemory := profile.Need(p.Memory, []string{c.text})
		threads, saidThreads := profile.Need(p.Threads, []string{c.text})
		assert.Equal(t, c.memory, memory, c.text)
		assert.Equal(t, c.threads, threads, c.text)
		if c.said != "" {
			assert.Contains(t, []string{saidMemory, saidThreads}, c.said, c.text)
		}
	}
}

func TestParse(t *testing.T) {
	p, err := profile.Parse("mine",
		[]byte("description = \"x\"\n[enclave]\nsize = \"2G\"\nthreads = 3\n[manifest.sys]\nx = 1\n"))
	require.NoError(t, err)
	assert.EqualValues(t, 2<<30, p.Enclave.Size)
	for text, want := range map[string]string{
		"[enclave]\nsiz = \"2G\"\n":                                   "siz",
		"[enclave]\nsize = \"3G\"\n":                                  "is not a power of two",
		"[enclave]\nsize = \"big\"\n":                                 "mine: not a profile",
		"[[memory]]\ntimes = 2\n":                                     "has no text",
		"[detect]\nprograms = [\"[\"]\n":                              "syntax error in pattern",
		"[detect]\nprograms = [" + strings.Repeat("\"x\",", 65) + "]": "more than 64 patterns",
		"description = ":                                              "mine: not a profile",
		"[[memory]]\noption = \"a\"\nbase=8":                          "neither 10 nor 16",
		"[host]\ncapabilities = [\"SYS_ADMIN\"]":                      "not a capability that engines give by default",
	} {
		_, err := profile.Parse("mine", []byte(text))
		require.ErrorIs(t, err, profile.ErrProfile, text)
		assert.ErrorContains(t, err, want, text)
	}
}

// Only an interpreter runs other people's programs: one that has an interpreter in it, as unbound has Python, does
// itself what it can do.
func TestEmbeddedInterpreter(t *testing.T) {
	for name, want := range map[string]bool{"python3.11": true, "resolver": false} {
		p, _, _ := profile.Recognise([]profile.Program{program(name, "libpython3.11.so.1.0")})
		assert.Equal(t, "python", p.Name)
		assert.Equal(t, want, p.Language, name)
	}
	assert.True(t, profile.Find("python").Language, "the profile itself is as it was")
}
