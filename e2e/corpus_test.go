//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
)

// page is what the servers of the corpus answer with.
const page = "a page of the corpus\n"

// sample is an image and the exchange that shows that it works.
type sample struct {
	name string
	what string // is special about it
	// packages are Debian's, comma-separated; empty for an image without them.
	packages string
	layers   [][]fixture.Entry // over the packages
	config   v1.Config
	port     string
	ask      func(port string) error
	// kill says that it does not end on a signal when it is process 1, as it is.
	kill bool
	// refused is the code of the finding for which it is not converted; empty: it is.
	refused string
	// limit is why it is converted and does not run; empty: it runs.
	limit string
	// warns are the codes of warnings that are true of it.
	warns []string
}

// corpus are the images that must convert with no flags and run.
func corpus(t *testing.T) []*sample {
	t.Helper()
	read := func(file string) string {
		b, err := os.ReadFile(filepath.Join("testdata", file))
		require.NoError(t, err)
		return string(b)
	}
	app := func(file string) []fixture.Entry {
		return []fixture.Entry{fixture.File("app/page", page), fixture.File("app/"+file, read(file))}
	}
	one := func(entries ...fixture.Entry) [][]fixture.Entry { return [][]fixture.Entry{entries} }
	p := func() string { return freePort(t) }
	var list []*sample
	add := func(s *sample) {
		if s.ask == nil {
			s.ask = getPage
		}
		list = append(list, s)
	}

	port := p()
	add(&sample{
		name: "redis", packages: "redis-server", port: port, ask: askRedis,
		config: v1.Config{
			WorkingDir: "/data", Volumes: map[string]struct{}{"/data": {}},
			Entrypoint: []string{"redis-server"}, Cmd: []string{"--save", "", "--port", port},
		},
	})
	port = p()
	add(&sample{
		name: "nginx", packages: "nginx-light", port: port, ask: func(port string) error { return get(port, "nginx") },
		layers: one(fixture.File("etc/nginx/sites-available/default", "server { listen 127.0.0.1:"+port+
			"; root /var/www/html; index index.nginx-debian.html; }\n")),
		config: v1.Config{Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT"},
	})
	port = p()
	add(&sample{
		name: "python", packages: "python3", port: port, layers: one(app("server.py")...),
		config: v1.Config{Cmd: []string{"python3", "server.py", port}, WorkingDir: "/app", User: "nobody"},
	})
	port = p()
	add(&sample{
		name: "node", packages: "nodejs", port: port, layers: one(app("server.js")...),
		config: v1.Config{Cmd: []string{"node", "/app/server.js", port}},
	})
	port = p()
	add(&sample{
		name: "java", packages: "openjdk-17-jre-headless", port: port,
		layers: one(fixture.File("app/page", page), fixture.File("app/Server.class", compileJava(t))),
		config: v1.Config{Cmd: []string{"java", "-Xmx256m", "-cp", "/app", "Server", port}},
	})
	port = p()
	add(&sample{
		name: "memcached", packages: "memcached", port: port, ask: askMemcached,
		config: v1.Config{Cmd: []string{"memcached", "-l", "127.0.0.1", "-p", port}, User: "memcache"},
	})
	port = p()
	add(&sample{
		name: "php-fpm", packages: "php-fpm", port: port, ask: askFastCGI,
		layers: one(fixture.File("app/index.php", "<?php echo file_get_contents('/app/page');\n"),
			fixture.File("app/page", page),
			fixture.File("etc/php/8.2/fpm/pool.d/www.conf", "[www]\nuser = www-data\nlisten = 127.0.0.1:"+port+
				"\npm = static\npm.max_children = 1\n"),
			fixture.File("etc/php/8.2/fpm/php-fpm.conf",
				"[global]\nerror_log = /dev/stderr\ndaemonize = no\ninclude=/etc/php/8.2/fpm/pool.d/*.conf\n")),
		config: v1.Config{Cmd: []string{"php-fpm8.2"}, StopSignal: "SIGQUIT"},
	})
	port = p()
	add(&sample{
		name: "ruby", packages: "ruby", port: port, layers: one(app("server.rb")...),
		config: v1.Config{Cmd: []string{"ruby", "/app/server.rb", port}},
	})
	port = p()
	add(&sample{
		name: "perl", packages: "perl", port: port, layers: one(app("server.pl")...),
		config: v1.Config{Cmd: []string{"perl", "/app/server.pl", port}},
	})
	port = p()
	add(&sample{
		name: "script", packages: "python3", port: port,
		layers: one(append(app("server.py"), fixture.Program("usr/local/bin/entrypoint.sh", "#!/bin/sh\nset -e\nif [ "+
			"\"$1\" = serve ]; then\n  shift\n  set -- python3 /app/server.py \"$@\"\nfi\nexec \"$@\"\n"))...),
		config: v1.Config{Entrypoint: []string{"entrypoint.sh"}, Cmd: []string{"serve", port}, User: "nobody"},
	})
	port = p()
	add(&sample{
		name: "go", packages: "python3", port: port,
		layers: one(fixture.Program("usr/bin/server", goServer(t)), fixture.File("etc/server.conf", "listen 127.0.0.1:"+
			port+"\npage /app/page\n"), fixture.File("app/page", page)),
		config: v1.Config{Cmd: []string{"server", "/etc/server.conf"}},
	})
	port = p()
	add(&sample{
		name: "musl", port: port,
		layers: one(fixture.Program("app/server", compile(t, "musl-gcc")), fixture.File("app/page", page),
			fixture.Program("lib/ld-musl-x86_64.so.1", hostFile(t, "/usr/lib/x86_64-linux-musl/libc.so")),
			fixture.File("lib/apk/db/installed",
				"P:musl\nV:1.2\np:so:libc.musl-x86_64.so.1=1\nF:lib\nR:ld-musl-x86_64.so.1\n\n")),
		config: v1.Config{Entrypoint: []string{"/app/server", port, "/app/page"}},
	})
	port = p()
	add(&sample{
		name: "distroless", port: port,
		layers: one(fixture.Program("server", compile(t, "gcc")), fixture.File("page", page),
			fixture.Symlink("lib", "usr/lib"), fixture.Symlink("lib64", "usr/lib64"),
			fixture.Program("usr/lib/x86_64-linux-gnu/libc.so.6", hostFile(t, "/lib/x86_64-linux-gnu/libc.so.6")),
			fixture.Program("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
				hostFile(t, "/lib64/ld-linux-x86-64.so.2")),
			fixture.Symlink("usr/lib64/ld-linux-x86-64.so.2", "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
			fixture.File("var/lib/dpkg/status.d/libc6", "Package: libc6\nVersion: 2.36\n"),
			fixture.File("var/lib/dpkg/status.d/libc6.md5sums",
				"0  usr/lib/x86_64-linux-gnu/libc.so.6\n0  usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2\n")),
		config: v1.Config{Entrypoint: []string{"/server"}, Cmd: []string{port, "/page"}, User: "65532:65532"},
	})
	port = p()
	add(&sample{
		name: "scratch", port: port,
		layers: one(fixture.Program("server", compile(t, "gcc", "-static")), fixture.File("page", page)),
		config: v1.Config{Entrypoint: []string{"/server", port, "/page"}},
	})
	port = p()
	add(&sample{
		name: "forty-layers", port: port, layers: fortyLayers(compile(t, "gcc", "-static")),
		config: v1.Config{Entrypoint: []string{"/opt/bin/server", port, "/data/page"}},
	})
	port = p()
	names := []string{
		"/data/page", "/data/Ω/日本語 の 名前", "/data/עברית", "/data/русский файл", "/data/emoji 🐳",
		"/data/quote\" and 'quote'", "/data/back\\slash", "/data/new\nline", "/data/tab\tand $dollar `tick`",
		"/data/[brackets] {braces} *?", "/data/ leading and trailing ", "/data/percent%20", "/data/#hash;semi&amp",
	}
	var entries []fixture.Entry
	for i, n := range names {
		content := ""
		if i == 0 {
			content = page
		}
		entries = append(entries, fixture.File(strings.TrimPrefix(n, "/"), content))
	}
	add(&sample{
		name: "names", port: port,
		layers: one(append(entries, fixture.Program("server", compile(t, "gcc", "-static")))...),
		config: v1.Config{Entrypoint: append([]string{"/server", port}, names...)},
	})
	return list
}

// fortyLayers replaces and removes files again and again; what is left is a program and a page.
func fortyLayers(program string) [][]fixture.Entry {
	layers := [][]fixture.Entry{{fixture.Program("opt/old/server", program), fixture.Dir("data")}}
	for i := 1; i < 38; i++ {
		layers = append(layers, []fixture.Entry{
			fixture.File("data/page", fmt.Sprintf("layer %d\n", i)), fixture.File(fmt.Sprintf("data/gone-%d", i), "x"),
			fixture.File(fmt.Sprintf("data/.wh.gone-%d", i-1), ""),
			fixture.File(fmt.Sprintf("tree/%d/file", i%5), "x"),
		})
	}
	link := fixture.Hardlink("opt/bin/server", "opt/old/server")
	link.Header.Mode = 0o755 // engines take the link's
	return append(layers,
		[]fixture.Entry{
			fixture.File("tree/.wh..wh..opq", ""), fixture.File("tree/left", "x"),
			fixture.Program("opt/old/server", program), link,
		},
		[]fixture.Entry{fixture.File("data/.wh.gone-37", ""), fixture.File("data/page", page)})
}

// compile returns what a compiler makes of the server of testdata.
func compile(t *testing.T, compiler string, options ...string) string {
	t.Helper()
	return compileFile(t, compiler, "server.c", options...)
}

// compileFile returns what a compiler makes of a file of testdata.
func compileFile(t *testing.T, compiler, file string, options ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	command(t, compiler, append([]string{"-O2", "-o", out, filepath.Join("testdata", file)}, options...)...)
	return hostFile(t, out)
}

func compileJava(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	command(t, "javac", "--release", "17", "-d", dir, "testdata/Server.java")
	return hostFile(t, filepath.Join(dir, "Server.class"))
}

func goServer(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "server")
	command(t, "env", "CGO_ENABLED=0", "go", "build", "-o", out, "../demo/server")
	return hostFile(t, out)
}

func hostFile(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(b)
}

// baseLayers are layers with packages, by these.
var baseLayers = map[string]v1.Layer{}

// base makes a layer of packages, once.
func base(t *testing.T, packages string) v1.Layer {
	t.Helper()
	if baseLayers[packages] == nil {
		archive := debian(t, packages)
		compressed := archive + ".gz"
		if _, err := os.Stat(compressed); err != nil {
			command(t, "sh", "-c", `pigz -1 -n -c "$1" >"$2.part" && mv "$2.part" "$2"`, "sh", archive, compressed)
		}
		l, err := tarball.LayerFromFile(compressed)
		require.NoError(t, err)
		baseLayers[packages] = l
	}
	return baseLayers[packages]
}

// image puts a sample together.
func (s *sample) image(t *testing.T) v1.Image {
	t.Helper()
	var layers []v1.Layer
	if s.packages != "" {
		layers = append(layers, base(t, s.packages))
	}
	for _, entries := range s.layers {
		layers = append(layers, fixture.Layer(t, entries...))
	}
	return fixture.Image(t, s.config, layers...)
}

// push stores the sample's image in a registry and returns its name.
func (s *sample) push(t *testing.T, registry string) string {
	t.Helper()
	tag, err := name.NewTag(registry + "/corpus:" + s.name)
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, s.image(t)))
	return tag.String()
}

// unpack writes the sample's files to a directory.
func (s *sample) unpack(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	archive := filepath.Join(t.TempDir(), "root.tar")
	f, err := os.Create(archive)
	require.NoError(t, err)
	r := mutate.Extract(s.image(t))
	defer r.Close()
	_, err = f.ReadFrom(r)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	command(t, "tar", "-x", "-p", "-C", dir, "-f", archive)
	return dir
}
