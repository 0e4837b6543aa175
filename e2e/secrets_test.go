//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
)

// What is kept, and is to be found nowhere but in the store, encrypted, and in the programs.
const (
	secretPassword = "correct-horse-battery-staple-1"
	secretToken    = "the token that nobody else may have"
	secretKey      = "sixteen bytes, 1"
	sealedText     = "what only the enclave can read"
)

// owner is the side that has secrets, and a server that releases them.
type owner struct {
	dir     string
	secrets string // for --secrets
	server  *exec.Cmd
	mu      sync.Mutex
	log     bytes.Buffer
}

var listening = regexp.MustCompile(`listening on (\S+), (pin=sha256/[^"\s]+)`)

func newOwner(t *testing.T) *owner {
	t.Helper()
	o := &owner{dir: t.TempDir()}
	require.NoError(t, os.Mkdir(o.file("policies"), 0o700))
	command(t, program, "keygen", "--store", o.file("store.key"))
	command(t, program, "keygen", "--files", o.file("files.key"))
	for n, value := range map[string]string{"password": secretPassword, "token": secretToken, "key": secretKey} {
		given := filepath.Join(t.TempDir(), "given")
		require.NoError(t, os.WriteFile(given, []byte(value), 0o600))
		command(t, program, append([]string{"release", "secret", n, "--from", given}, o.store()...)...)
	}
	o.server = exec.Command(program, append([]string{
		"release", "serve", "--listen", "127.0.0.1:0", "--status-listen", "", "--allow-simulated",
		"--policies", o.file("policies"), "--log", o.file("release.log"),
	}, o.store()...)...)
	out, err := o.server.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, o.server.Start())
	t.Cleanup(func() {
		_ = o.server.Process.Signal(syscall.SIGTERM)
		_ = o.server.Wait()
	})
	begun := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			o.mu.Lock()
			o.log.WriteString(lines.Text() + "\n")
			o.mu.Unlock()
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				begun <- "release=https://" + m[1] + "," + m[2]
			}
		}
	}()
	select {
	case o.secrets = <-begun:
	case <-time.After(20 * time.Second):
		t.Fatal("the server did not start")
	}
	return o
}

func (o *owner) file(n string) string { return filepath.Join(o.dir, n) }

func (o *owner) store() []string {
	return []string{"--store", o.file("secrets"), "--store-key", o.file("store.key")}
}

// said is what the server has logged.
func (o *owner) said() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.String()
}

// allow grants an image what it wants, also if its runtime is a real one, whose quotes are simulated all the same.
func (o *owner) allow(t *testing.T, policy, image string, args ...string) {
	t.Helper()
	file := o.file("policies/" + policy + ".toml")
	args = append([]string{
		"release", "allow", image, "--any-signer", "--allow-simulated", "--any-runtime", "--allow-changes",
		"--allow-debug", "--any-secrets", "--out", file, "--secret", "env:DB_PASSWORD=password",
		"--secret", "file:/run/cconvert/token=token", "--secret", "key:app=key",
		"--secret", "tls:/run/cconvert/tls=app.example",
	}, args...)
	command(t, program, append(args, o.store()...)...)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	if !strings.Contains(string(text), "\nsimulated = true") {
		text = bytes.Replace(text, []byte("\nflags = "), []byte("\nsimulated = true\nflags = "), 1)
		require.NoError(t, os.WriteFile(file, text, 0o600))
	}
	before := strings.Count(o.said(), "were read again")
	require.NoError(t, o.server.Process.Signal(syscall.SIGHUP))
	eventually(t, "the policies", func() error {
		if strings.Count(o.said(), "were read again") == before {
			return fmt.Errorf("they were not read")
		}
		return nil
	})
}

// released is a program that gets secrets.
type released struct {
	name    string
	config  v1.Config
	layers  []v1.Layer
	options []string // of Docker
	// reports is what it prints; empty: it is asked.
	reports []string
	ask     func() error
	exit    string
	// sealed has it read an encrypted file.
	sealed bool
	// childless is what starts no other process under Gramine v1.9 in direct mode, with an agent or without: it has
	// reserved too much of its addresses.
	childless bool
}

func reversed(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

func releasedPrograms(t *testing.T) []released {
	const data = "data"
	report := func(compiler string, options ...string) fixture.Entry {
		return fixture.Program("app/report", compileFile(t, compiler, "report.c", options...))
	}
	given := func(more ...string) []string {
		return append([]string{
			"env=" + reversed(secretPassword), "file=" + reversed(secretToken), "child:env=" + reversed(secretPassword),
			"argument=two words", "ready",
		}, more...)
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(goReport), 0o644))
	command(t, "env", "CGO_ENABLED=0", "GO111MODULE=off", "go", "build", "-o", dir+"/app", dir+"/main.go")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Report.java"), []byte(javaReport), 0o644))
	command(t, "javac", "--release", "17", "-d", dir, dir+"/Report.java")
	redis, web := freePort(t), freePort(t)
	return []released{
		{
			name:    "python",
			config:  v1.Config{Entrypoint: []string{"python3", "/srv/report.py", "two words"}, WorkingDir: "/srv"},
			layers:  []v1.Layer{base(t, "python3"), fixture.Layer(t, fixture.File("srv/report.py", pythonReport))},
			reports: given("directory=/srv", "identity=0:0"), exit: "7",
		},
		{
			name: "redis",
			config: v1.Config{Entrypoint: []string{
				"sh", "-c", "exec redis-server - --port " + redis + " <<end\nsave ''\nrequirepass $DB_PASSWORD\nend\n",
			}, WorkingDir: "/tmp"},
			layers: []v1.Layer{base(t, "redis-server")},
			ask: func() error {
				c, err := net.Dial("tcp", "127.0.0.1:"+redis)
				if err != nil {
					return err
				}
				defer c.Close()
				fmt.Fprintf(c, "AUTH wrong\r\nAUTH %s\r\nPING\r\n", secretPassword)
				b := make([]byte, 4096)
				var got string
				for !strings.Contains(got, "+PONG") {
					n, err := c.Read(b)
					if err != nil {
						return fmt.Errorf("%q: %w", got, err)
					}
					got += string(b[:n])
				}
				if !strings.HasPrefix(got, "-WRONGPASS") {
					return fmt.Errorf("it takes any password: %q", got)
				}
				return nil
			},
			exit: "0",
		},
		{
			name:    "go",
			config:  v1.Config{Entrypoint: []string{"/app", "two words"}},
			layers:  []v1.Layer{fixture.Layer(t, fixture.Program("app", hostFile(t, dir+"/app")))},
			reports: given("directory=/", "identity=0:0"), exit: "7", childless: true,
		},
		{
			name:   "musl",
			config: v1.Config{Entrypoint: []string{"/start"}, Cmd: []string{"two words"}, WorkingDir: "/srv"},
			layers: []v1.Layer{fixture.Layer(t, report("musl-gcc"),
				fixture.Program("lib/ld-musl-x86_64.so.1", hostFile(t, "/usr/lib/x86_64-linux-musl/libc.so")),
				fixture.Program("start", "#!/app/report\n"), fixture.File("srv/"+data, "x"))},
			reports: given("directory=/srv", "identity=0:0"), exit: "7",
		},
		{
			name:   "nginx",
			config: v1.Config{Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT"},
			layers: []v1.Layer{base(t, "nginx-light"), fixture.Layer(t, fixture.File(
				"etc/nginx/sites-available/default", "server { listen 127.0.0.1:"+web+" ssl;\n"+
					"ssl_certificate /run/cconvert/tls/tls.crt; ssl_certificate_key /run/cconvert/tls/tls.key;\n"+
					"root /var/www/html; index index.nginx-debian.html; }\n"))},
			ask: func() error {
				c, err := tls.Dial("tcp", "127.0.0.1:"+web, &tls.Config{InsecureSkipVerify: true})
				if err != nil {
					return err
				}
				defer c.Close()
				fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n")
				b, err := io.ReadAll(c)
				if err == nil && !strings.Contains(string(b), "nginx") {
					err = fmt.Errorf("%q", b)
				}
				return err
			},
			exit: "0",
		},
		{
			name: "java",
			config: v1.Config{Entrypoint: []string{"java", "-Xmx64m", "-cp", "/opt", "Report", "two words"},
				WorkingDir: "/srv"},
			layers: []v1.Layer{base(t, java), fixture.Layer(t,
				fixture.File("opt/Report.class", hostFile(t, dir+"/Report.class")), fixture.File("srv/"+data, "x"))},
			reports: given("directory=/srv"), exit: "7", childless: true,
		},
		{
			name: "non-root",
			config: v1.Config{Entrypoint: []string{"/app/report", "two words"}, User: "1000:1001",
				WorkingDir: "/srv"},
			layers: []v1.Layer{fixture.Layer(t, report("gcc", "-static"),
				fixture.File("srv/sealed/"+data, sealedText))},
			reports: given("directory=/srv", "identity=1000:1001", "sealed="+sealedText), exit: "7", sealed: true,
		},
		{
			name:    "read-only",
			config:  v1.Config{Entrypoint: []string{"/app/report", "two words"}, WorkingDir: "/srv"},
			layers:  []v1.Layer{fixture.Layer(t, report("gcc", "-static"), fixture.File("srv/"+data, "x"))},
			options: []string{"--read-only", "--tmpfs", "/run/cconvert", "--tmpfs", "/state"},
			reports: given("directory=/srv", "identity=0:0"), exit: "7",
		},
	}
}

// Programs that know nothing of it get a variable, a file, a certificate and a key, keep all that a container gives
// them, and leave nothing of a secret where others look.
func TestReleasedSecrets(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	o := newOwner(t)
	for _, p := range releasedPrograms(t) {
		t.Run(p.name, func(t *testing.T) {
			source := registry + "/released/" + p.name + ":1"
			tag, err := name.NewTag(source)
			require.NoError(t, err)
			require.NoError(t, remote.Write(tag, fixture.Image(t, p.config, p.layers...)))
			convert := func(to string, more ...string) {
				args := append([]string{
					source, "--to", to, "--secrets", o.secrets, "--secret", "env:DB_PASSWORD",
					"--secret", "file:/run/cconvert/token", "--secret", "tls:/run/cconvert/tls",
					"--encrypt-mount", "/state=app", "--secret", "key:app",
				}, more...)
				allowed := []string(nil)
				if p.sealed {
					args = append(args, "--encrypt", "/srv/sealed", "--encrypt-key", o.file("files.key"))
					allowed = []string{"--encrypt-key", o.file("files.key")}
				}
				cconvert(t, args...)
				if i := slices.Index(more, "--agent"); i >= 0 {
					sum := sha256.Sum256([]byte(hostFile(t, more[i+1])))
					allowed = append(allowed, "--agent-digest", fmt.Sprintf("%x", sum))
				}
				o.allow(t, p.name+more[1][:3], to, allowed...)
				command(t, "docker", "pull", "-q", to)
				t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", to) })
			}
			simulated := registry + "/released/" + p.name + ":sim"
			convert(simulated, "--runtime", "sim")
			options := p.options
			if p.sealed {
				options = []string{"--user", "0", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"}
			}
			p.runs(t, simulated, options, nil)
			if p.sealed {
				p.compares(t, simulated, options, nil, "the encrypted file /srv/sealed/data was changed")
			}
			o.keptSecret(t, simulated)
			if p.name == "nginx" {
				o.refuses(t, simulated)
			}
			if p.name == "musl" {
				p.startsAgain(t, simulated)
			}
			if os.Getenv(gramineDir) == "" {
				return
			}
			agent := filepath.Join(t.TempDir(), "agent")
			command(t, "env", "CGO_ENABLED=0", "go", "build", "-o", agent, "../cmd/cconvert-agent-sim")
			real := registry + "/released/" + p.name + ":gramine"
			convert(real, "--runtime", "gramine=dir:"+os.Getenv(gramineDir), "--runtime-libs", hostLibs,
				"--agent", agent, "--allow-file", "/cconvert/app/entrypoint.sig")
			if p.childless {
				p.reports = slices.DeleteFunc(p.reports, func(l string) bool { return strings.HasPrefix(l, "child:") })
			}
			options = append(slices.Clone(p.options), directOptions...)
			p.runs(t, real, options, directArgs)
			if p.sealed {
				p.compares(t, real, options, directArgs, "file is not the one of the image: /srv/sealed/data")
			}
		})
	}
	if os.Getenv(gramineDir) != "" {
		t.Run("secret_prov", secretProvClient)
	}
}

// runs starts an image, and looks at what the program got and how it ends.
func (p *released) runs(t *testing.T, image string, options, args []string) {
	t.Helper()
	c := start(t, image, options, args)
	eventually(t, p.name, func() error {
		if p.ask != nil {
			return p.ask()
		}
		if logs := c.logs(); !strings.Contains(logs, "ready") {
			return fmt.Errorf("it is not ready: %s", logs)
		}
		return nil
	})
	logs := strings.Split(c.logs(), "\n")
	for _, line := range p.reports {
		assert.Contains(t, logs, line)
	}
	for _, what := range []string{"logs", "inspect", "top"} {
		assert.Empty(t, secretIn([]byte(command(t, "docker", what, c.name))), what)
	}
	begin := time.Now()
	command(t, "docker", "kill", "--signal", "TERM", c.name)
	assert.Equal(t, p.exit, c.wait())
	assert.Less(t, time.Since(begin), 2*time.Second)
}

// compares has a container start again as it was, and not with another encrypted file.
func (p *released) compares(t *testing.T, image string, options, args []string, refusal string) {
	t.Helper()
	c := start(t, image, options, args)
	ready := func() error {
		if logs := c.logs(); !strings.Contains(logs, "sealed="+sealedText) {
			return errors.New(logs)
		}
		return nil
	}
	eventually(t, "the first start", ready)
	command(t, "docker", "kill", "--signal", "KILL", c.name)
	c.wait()
	command(t, "docker", "start", c.name)
	eventually(t, "a second start", func() error {
		if logs := c.logs(); strings.Count(logs, "sealed="+sealedText) != 2 {
			return errors.New(logs)
		}
		return nil
	})
	command(t, "docker", "kill", "--signal", "KILL", c.name)
	c.wait()
	file := filepath.Join(t.TempDir(), "sealed")
	command(t, "docker", "cp", c.name+":/srv/sealed/data", file)
	text := []byte(hostFile(t, file))
	text[100] ^= 1
	require.NoError(t, os.WriteFile(file, text, 0o644))
	command(t, "docker", "cp", file, c.name+":/srv/sealed/data")
	command(t, "docker", "start", c.name)
	assert.Equal(t, "125", c.wait())
	assert.Contains(t, c.logs(), refusal)
}

// startsAgain does it many times: that a signal is lost is a matter of chance.
func (p *released) startsAgain(t *testing.T, image string) {
	t.Helper()
	for range 50 {
		p.runs(t, image, p.options, nil)
	}
}

// secretIn returns the secret that is in a text, however it is written; empty: none is.
func secretIn(text []byte) string {
	for _, s := range []string{secretPassword, secretToken, secretKey} {
		for _, form := range []string{
			s, base64.StdEncoding.EncodeToString([]byte(s))[:len(s)], hex.EncodeToString([]byte(s)),
		} {
			if bytes.Contains(text, []byte(form)) {
				return s
			}
		}
	}
	return ""
}

// keptSecret looks for secrets in all that the owner's side writes, the store included, and in an image.
func (o *owner) keptSecret(t *testing.T, image string) {
	t.Helper()
	look := func(what string, b []byte) { assert.Empty(t, secretIn(b), what) }
	look("what the server says", []byte(o.said()))
	require.NoError(t, filepath.WalkDir(o.dir, func(file string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(file)
		look(file, b)
		return err
	}))
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", o.server.Process.Pid))
	require.NoError(t, err)
	look("the server's arguments", cmdline)
	ref, err := name.ParseReference(image)
	require.NoError(t, err)
	img, err := remote.Image(ref)
	require.NoError(t, err)
	config, err := img.RawConfigFile()
	require.NoError(t, err)
	manifest, err := img.RawManifest()
	require.NoError(t, err)
	look("the configuration", config)
	look("the manifest", manifest)
	layers, err := img.Layers()
	require.NoError(t, err)
	for _, l := range layers {
		r, err := l.Uncompressed()
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		r.Close()
		require.NoError(t, err)
		look("a layer", b)
	}
}

// refuses checks that what is changed, or not allowed any more, gets nothing.
func (o *owner) refuses(t *testing.T, image string) {
	t.Helper()
	require.NoError(t, os.Remove(o.file("policies/nginxsim.toml")))
	require.NoError(t, o.server.Process.Signal(syscall.SIGHUP))
	eventually(t, "a refusal", func() error {
		out, err := try("docker", "run", "--rm", "--network", "host", image)
		if err == nil || !strings.Contains(out+err.Error(), "exit status 125") {
			return fmt.Errorf("%s %w", out, err)
		}
		assert.Contains(t, out+err.Error(), "the server refused")
		return nil
	})
	out, err := try(program, "release", "log", o.file("release.log"), "--check")
	require.NoError(t, err, out)
}

// The commands of docs/secrets.md lead from nothing to a running service, in the order in which they are.
func TestSecretsDocument(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	tag, err := name.NewTag(registry + "/app:1.4")
	require.NoError(t, err)
	port := freePort(t)
	require.NoError(t, remote.Write(tag, fixture.Image(t, v1.Config{
		Entrypoint: []string{"/server", "/etc/server.conf"}, ExposedPorts: map[string]struct{}{port + "/tcp": {}},
	}, fixture.Layer(t, fixture.Program("server", goServer(t)), fixture.File("page", page),
		fixture.File("etc/server.conf",
			"listen 127.0.0.1:"+port+"\npage /page\ntls /run/cconvert/tls\npassword DB_PASSWORD\n")))))
	t.Cleanup(func() { _, _ = try("docker", "rm", "-f", "app-1-4-confidential", "app") })

	text, err := os.ReadFile(filepath.Join(project, "docs/secrets.md"))
	require.NoError(t, err)
	_, section, _ := strings.Cut(string(text), "## From nothing to a running service")
	section, _, _ = strings.Cut(section, "\n## ")
	var script strings.Builder
	commands := 0
	for line := range strings.Lines(section) {
		if code, ok := strings.CutPrefix(line, "    "); ok {
			script.WriteString(code)
			if !strings.HasPrefix(code, " ") {
				commands++
			}
		}
	}
	assert.LessOrEqual(t, commands, 10)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "password"), []byte(secretPassword+"\n"), 0o600))
	kms := freePort(t)
	code := strings.NewReplacer("registry.example", registry, "kms.example:8443", "127.0.0.1:"+kms,
		"app.example:8080", "127.0.0.1:"+port, "docker | sh", "docker | sed 's/docker run/& --network host/' | sh",
		"release serve &", "release serve --allow-simulated --listen 127.0.0.1:"+kms+" --status-listen '' &\nsleep 2",
		"--any-runtime", "--any-runtime --allow-simulated",
		"\ncconvert deploy", "\nsleep 1\ncconvert deploy", "\ncconvert verify", "\nsleep 5\ncconvert verify", // by then
		"pkill -HUP -f \"cconvert release serve\"", "pkill -HUP -f \"cconvert release serve.*"+kms+"\"",
	).Replace(script.String())
	// In a file, so that its text is in no command line that is looked for.
	steps := filepath.Join(dir, "steps")
	require.NoError(t, os.WriteFile(steps, []byte("set -e\ntrap 'kill $(jobs -p)' EXIT\n"+code), 0o700))
	cmd := exec.Command("timeout", "120", "bash", steps)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"), "CCONVERT_RUNTIME=sim",
		"CCONVERT_ALLOW_SIMULATED=true", "HOME="+dir)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "endpoint", "%s", out)
	assert.Regexp(t, `released +app: env:DB_PASSWORD, tls:/run/cconvert/tls`, string(out))
	assert.Equal(t, 3, strings.Count(string(out), ": it is what was expected")+
		strings.Count(string(out), "were read again"), "%s", out)
	assert.Empty(t, secretIn(out))
}

const goReport = `package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

func report(before string) {
	token, _ := os.ReadFile("/run/cconvert/token")
	fmt.Println(before + "env=" + backwards(os.Getenv("DB_PASSWORD")))
	fmt.Println("file=" + backwards(string(token)))
}

func backwards(s string) (out string) {
	for _, c := range s {
		out = string(c) + out
	}
	return out
}

func main() {
	if os.Args[1] == "child" {
		report("child:")
		return
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	report("")
	child := exec.Command("/app", "child")
	child.Stdout = os.Stdout
	child.Run()
	dir, _ := os.Getwd()
	fmt.Printf("directory=%s\nidentity=%d:%d\nargument=%s\nready\n", dir, os.Getuid(), os.Getgid(), os.Args[1])
	<-told
	os.Exit(7)
}
`

const pythonReport = `import os, signal, subprocess, sys
def report(before):
    print(before + "env=" + os.environ["DB_PASSWORD"][::-1])
    print("file=" + open("/run/cconvert/token").read()[::-1], flush=True)
if sys.argv[1] == "child":
    report("child:")
    sys.exit()
def end(*_):
    os._exit(7)
signal.signal(signal.SIGTERM, end)
report("")
subprocess.run([sys.executable, sys.argv[0], "child"])
print(f"directory={os.getcwd()}\nidentity={os.getuid()}:{os.getgid()}\nargument={sys.argv[1]}\nready", flush=True)
while True:
    signal.pause()
`

const javaReport = `import java.nio.file.*;

public class Report {
	static String backwards(String s) { return new StringBuilder(s).reverse().toString(); }

	static void report(String before) throws Exception {
		System.out.println(before + "env=" + backwards(System.getenv("DB_PASSWORD")));
		System.out.println("file=" + backwards(Files.readString(Path.of("/run/cconvert/token"))));
	}

	public static void main(String[] args) throws Exception {
		if (args[0].equals("child")) {
			report("child:");
			return;
		}
		Runtime.getRuntime().addShutdownHook(new Thread(() -> Runtime.getRuntime().halt(7)));
		report("");
		try {
			new ProcessBuilder("java", "-Xmx64m", "-cp", "/opt", "Report", "child").inheritIO().start().waitFor();
		} catch (java.io.IOException e) {
			System.out.println(e);
		}
		System.out.println("directory=" + System.getProperty("user.dir") + "\nargument=" + args[0] + "\nready");
		Thread.sleep(1000000);
	}
}
`
