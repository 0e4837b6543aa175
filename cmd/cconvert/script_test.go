package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/keyserver"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/protectedfs/filekey"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/signer"
)

// program is cconvert as it is shipped: static, and with the loader of simulated images and the agents in it.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "cconvert-test-")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "cconvert")
	if err := build(program, dir); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// build makes the program, and what is put into it, in a directory.
func build(program, dir string) error {
	compile := func(args ...string) error {
		build := exec.Command("go", append([]string{"build", "-ldflags", "-s -w"}, args...)...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		return build.Run()
	}
	replace := map[string]string{}
	for _, p := range []struct{ source, place string }{
		{"../cconvert-sim-loader", "sim/embedded/loader"}, {"../cconvert-agent", "embedded/agent.gz"},
		{"../cconvert-agent-sim", "sim/embedded/agent.gz"},
	} {
		place, err := filepath.Abs("../../pkg/libos/gramine/" + p.place)
		if err != nil {
			return err
		}
		out := filepath.Join(dir, filepath.Base(p.source))
		if err := compile("-o", out, p.source); err != nil {
			return err
		}
		if filepath.Ext(place) == ".gz" {
			if err := compress(out); err != nil {
				return err
			}
			out += ".gz"
		}
		replace[place] = out
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		return err
	}
	return compile("-overlay", filepath.Join(dir, "overlay.json"), "-o", program, ".")
}

// compress writes FILE.gz.
func compress(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := z.Write(text); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return os.WriteFile(file+".gz", b.Bytes(), 0o600)
}

func TestScripts(t *testing.T) {
	vectors, err := filepath.Abs("../../testdata/vectors")
	require.NoError(t, err)
	testscript.Run(t, testscript.Params{
		Dir: "../../testdata/scripts",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(program)+":"+os.Getenv("PATH"))
			e.Setenv("HOME", e.WorkDir+"/home")
			e.Setenv("XDG_CONFIG_HOME", e.WorkDir+"/config")
			e.Setenv("XDG_CACHE_HOME", e.WorkDir+"/cache")
			e.Setenv("VECTORS", vectors)
			e.Setenv("QUOTES", quoteVectors(e.T().(testing.TB)))
			e.Setenv("KEY", filepath.Join(vectors, "test-signing-key.pem"))
			reg := fixture.NewRegistry(e.T().(testing.TB))
			e.Setenv("REG", reg.Host)
			if strings.HasSuffix(e.WorkDir, "script-running") {
				e.Setenv("RATLS", startRATLS(e.T().(testing.TB)))
				plain := httptest.NewTLSServer(http.NotFoundHandler())
				e.Defer(plain.Close)
				e.Setenv("TLS", strings.TrimPrefix(plain.URL, "https://"))
				if quotes := e.Getenv("QUOTES"); quotes != "" {
					e.Setenv("PCCS", startPCCS(e.T().(testing.TB), quotes))
				}
			}
			pushSamples(e.T().(testing.TB), reg)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exitcode": exitcode, "lines": lines},
		Condition: func(name string) (bool, error) {
			if name != "quotes" {
				return false, fmt.Errorf("unknown condition %s", name)
			}
			return quoteVectors(t) != "", nil
		},
	})
}

// pushSamples fills a registry with images by name.
func pushSamples(t testing.TB, reg *fixture.Registry) {
	config := v1.Config{Entrypoint: []string{"/app"}, Cmd: []string{"--serve"}, Env: []string{"A=1"}}
	app := fixture.Layer(t, fixture.Program("app", fixture.ELF("")), fixture.File("etc/conf", "x"))
	img := fixture.Image(t, config, app)
	for _, name := range []string{"app:1", "app:1.4", "redis:7", "redis:7-confidential"} {
		reg.Push(t, name, img)
	}
	reg.Push(t, "secret:1", fixture.Image(t, config, app, fixture.Layer(t,
		fixture.File("srv/app/model", "the weights of a model that nobody else may have"),
		fixture.File("srv/app/lib/rules", "rules by which it decides, which are a secret, too"),
		fixture.Symlink("current", "srv/app"), fixture.File("etc/app/tls.pem", "a private key that was shipped"),
		fixture.File("etc/app/public.conf", "for everybody"))))
	reg.Push(t, "packaged:1", fixture.Image(t, config, app, fixture.Layer(t,
		fixture.File("var/lib/dpkg/status", "Package: other\nStatus: install ok installed\n"),
		fixture.File("var/lib/dpkg/info/other.list", "/usr/share/other\n"),
		fixture.File("usr/share/other", "x"), fixture.File("opt/mine", "x"))))
	reg.Push(t, "postgres:1", fixture.Image(t, v1.Config{Cmd: []string{"/usr/bin/postgres"}, StopSignal: "SIGINT"},
		fixture.Layer(t, fixture.Program("usr/bin/postgres", fixture.ELF("")))))
	reg.Push(t, "rpm:1",
		fixture.Image(t, config, app, fixture.Layer(t, fixture.File("var/lib/rpm/Packages", "damaged"))))
	for tag, names := range map[string][]string{"enclave:1": {"default"}, "enclave:2": {"kss", "one-thread"}} {
		var files []fixture.Entry
		for _, n := range names {
			signed, err := os.ReadFile("../../testdata/vectors/sgx-sdk/" + n + ".signed.so")
			require.NoError(t, err)
			files = append(files, fixture.Program("opt/"+n+".signed.so", string(signed)))
		}
		reg.Push(t, tag, fixture.Image(t, config, app, fixture.Layer(t, files...)))
	}
	signed, err := os.ReadFile("../../testdata/vectors/sgx-sdk/default.signed.so")
	require.NoError(t, err)
	steered := mutate.Annotations(fixture.Image(t, config, app, fixture.Layer(t,
		fixture.Program("opt/e.signed.so", string(signed)))), map[string]string{"run.oci.handler": "krun"})
	reg.Push(t, "enclave:steered", steered.(v1.Image))
	structure, err := os.ReadFile("../../testdata/vectors/cases/defaults.sig")
	require.NoError(t, err)
	reg.Push(t, "enclave:unknown", fixture.Image(t, config, app,
		fixture.Layer(t, fixture.Program("opt/enclave", fixture.ELF("")+string(structure)))))
	reg.Push(t, "attached:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}}, app))
	reg.Push(t, "attached:"+strings.ReplaceAll(reg.Digest(t, "attached:1"), ":", "-")+".sig",
		fixture.Image(t, v1.Config{}, fixture.Layer(t, fixture.File("signature", ""))))
	reg.Push(t, "noentry:1", fixture.Image(t, v1.Config{}, app))
	reg.Push(t, "broken:1", fixture.Image(t, config, fixture.Layer(t, fixture.File("../app", "x"))))
	reg.Push(t, "big:1",
		fixture.Image(t, config, app, fixture.Layer(t, fixture.File("opt/big", strings.Repeat("random", 5_000_000)))))
}

// exitcode runs a program and checks its exit code: exitcode CODE PROGRAM [ARGS…].
func exitcode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, not %s", code, args[0])
	}
	for line := range strings.Lines(ts.ReadFile("stderr")) {
		if problem := messageProblem(strings.TrimSpace(line)); problem != "" {
			ts.Fatalf("%s: %s", problem, line)
		}
	}
}

// messageProblem reports what no message to people has: a colon that nothing follows, or what Go prints for a
// value that is missing.
func messageProblem(line string) string {
	message := strings.HasPrefix(line, "cconvert:") || strings.HasPrefix(line, "hint:") // others can be headings
	switch {
	case message && strings.HasSuffix(line, ":"), strings.Contains(line, ": :"), strings.Contains(line, ":,"):
		return "a dangling colon"
	case strings.Contains(line, "<nil>"), strings.Contains(line, "%!"):
		return "a value that is missing"
	}
	return ""
}

// lines checks how many lines a file has: lines N FILE.
func lines(ts *testscript.TestScript, _ bool, args []string) {
	if n := strings.Count(ts.ReadFile(args[1]), "\n"); fmt.Sprint(n) != args[0] {
		ts.Fatalf("%s has %d lines, not %s", args[1], n, args[0])
	}
}

// Every vector through the command line.
func TestMeasureVectors(t *testing.T) {
	const dir = "../../testdata/vectors/"
	var cases []struct {
		Name, PAL, Manifest, SigStruct, Date string
		MREnclave                            string `json:"mr_enclave"`
		MRSigner                             string `json:"mr_signer"`
	}
	b, err := os.ReadFile(dir + "cases/index.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &cases))
	require.Len(t, cases, 9)
	for _, c := range cases {
		sig := filepath.Join(t.TempDir(), "sig")
		args := []string{"measure", "--enclave", dir + "pal/" + c.PAL, "--manifest", dir + "cases/" + c.Manifest}
		out, err := exec.Command(program, args...).Output()
		require.NoError(t, err, c.Name)
		assert.Equal(t, c.MREnclave+"\n", string(out))
		out, err = exec.Command(program,
			append(args, "--key", dir+"test-signing-key.pem", "--date", c.Date, "--sig", sig, "--json")...).Output()
		require.NoError(t, err, c.Name)
		var got map[string]any
		require.NoError(t, json.Unmarshal(out, &got))
		assert.Equal(t, c.MREnclave, got["mr_enclave"])
		assert.Equal(t, c.MRSigner, got["mr_signer"])
		want, err := os.ReadFile(dir + "cases/" + c.SigStruct)
		require.NoError(t, err)
		have, err := os.ReadFile(sig)
		require.NoError(t, err)
		assert.Equal(t, want, have, c.Name)
	}
}

// asSimulated are flags by which commands take what the simulated runtime has made for what an enclave would be.
var asSimulated = map[string][]string{
	"verify": {"--allow-simulated"}, "reference": {"--simulated"}, "allow": {"--allow-simulated", "--allow-debug"},
}

// Every example of --help runs, with the names of registries and runtimes replaced by those of the test.
func TestHelpExamplesRun(t *testing.T) {
	reg := fixture.NewRegistry(t)
	pushSamples(t, reg)
	key, err := filepath.Abs("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	vectors := filepath.Dir(key)
	var examples []string
	var collect func(*cobra.Command)
	collect = func(c *cobra.Command) {
		if c.Runnable() && c.Name() != "completion" && c.Parent() != nil && c.Parent().Name() != "completion" &&
			c.Name() != "help" && !c.HasSubCommands() {
			assert.NotEmpty(t, c.Example, "%s has no example", c.CommandPath())
		}
		for line := range strings.Lines(strings.ReplaceAll(c.Example, "\\\n", "")) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "cconvert ") {
				examples = append(examples, line)
			}
		}
		for _, sub := range c.Commands() {
			collect(sub)
		}
	}
	collect(newRoot())
	require.Greater(t, len(examples), 8)
	replace := strings.NewReplacer(
		"app.example:8443", startRATLS(t), "registry.example", reg.Host,
		" redis:7 ", " "+reg.Host+"/redis:7 ", " app:1.4 ", " "+reg.Host+"/app:1.4 ",
		"--lock cconvert.lock", "--any-runtime --allow-simulated", "docker-daemon:app:latest", reg.Host+"/app:1",
		"gramine=dir:/usr", "sim", "nats://nats.example:4222",
		startNATS(t), "127.0.0.1:8080", "127.0.0.1:0", "127.0.0.1:8443", "127.0.0.1:0",
		"enclave.signed.so", vectors+"/sgx-sdk/default.signed.so", "libpal.so", vectors+"/pal/pal-twosegments.so",
		"app.manifest.sgx", vectors+"/cases/edmm-64g.manifest.sgx",
	)
	quotes := quoteVectors(t)
	pccs := ""
	if quotes != "" {
		pccs = startPCCS(t, quotes)
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "policy.toml"), []byte("any_signer = true\n"), 0o644))
	public, err := signer.ReadFile(key, signer.Options{})
	require.NoError(t, err)
	answer, err := json.Marshal(signer.Answer{Version: signer.ProtocolVersion, PublicKey: publicPEM(t, public)})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "sign.sh"),
		fmt.Appendf(nil, "#!/bin/sh\ncat <<'END'\n%s\nEND\n", answer), 0o755))
	plan := fmt.Sprintf("version: 1\nconvert:\n- {image: %s/app:1, allowUnsigned: true}\n", reg.Host)
	for name, text := range map[string]string{
		"shop.yaml": "kind: Pod\nspec:\n  containers:\n  - image: " + reg.Host + "/redis:7\n",
		"plan.yaml": plan, "secret": "the secret of the test", "images.txt": reg.Host + "/app:1\n" + reg.Host +
			"/app:1.4\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	require.NoError(t, keyserver.CreateKey(filepath.Join(dir, "store.key")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "release.log"), nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "policies"), 0o700))
	selfSigned(t, filepath.Join(dir, "tls.pem"), filepath.Join(dir, "tls-key.pem"))
	wrap := make([]byte, len(protectedfs.Key{}))
	for name, content := range map[string][]byte{"wrap-key": wrap, "model.bin": []byte("weights")} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	require.NoError(t, protectedfs.EncryptFile(t.Context(), filepath.Join(dir, "model.bin"),
		filepath.Join(dir, "model.bin.encrypted"),
		protectedfs.File{Path: "/srv/app/model.bin", Version: protectedfs.Version2}, protectedfs.Key(wrap)))
	if quotes != "" {
		require.NoError(t, copyFile(quotes+"/good/phala-sgx_quote", filepath.Join(dir, "app.quote")))
		require.NoError(t,
			copyFile(quotes+"/good/phala-sgx_quote_collateral.json", filepath.Join(dir, "collateral.json")))
	}
	for _, e := range examples {
		if quotes == "" && strings.HasPrefix(e, "cconvert quote") {
			continue
		}
		e, input, _ := strings.Cut(e, " < ")
		args := strings.Fields(strings.NewReplacer(`"`, "", "https://pccs.example/sgx/certification/v4", pccs).Replace(
			replace.Replace(e)))[1:]
		if args[0] == "runtime" && args[1] == "lock" {
			args = append(args, "--runtime", "gramine=oci:none") // there is no runtime to lock here
		}
		args = append(args, asSimulated[args[0]]...)
		if args[0] == "release" {
			args = append(args, asSimulated[args[1]]...)
		}
		if args[0] == "keygen" {
			args[2] = "new-" + args[2]
		}
		cmd := exec.Command(program, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CCONVERT_RUNTIME=sim", "CCONVERT_KEY_PASSPHRASE=secret", "XDG_CONFIG_HOME="+dir,
			"XDG_CACHE_HOME="+dir, "HOME="+dir)
		for _, name := range []string{"enclave-key.pem", "key.pem", "production.pem"} {
			require.NoError(t, copyFile(key, filepath.Join(dir, name)))
		}
		if args[0] == "sign" && args[1] == "attach" {
			signApart(t, dir, args[2], key)
		}
		if args[0] == "rekey" {
			for _, name := range []string{"app-files.key", "app-files-2.key"} {
				require.NoError(t, filekey.Create(filepath.Join(dir, name)))
			}
			out, err := exec.Command(program, "convert", reg.Host+"/secret:1", "--to", args[1], "--runtime", "sim",
				"--key", key, "--encrypt", "/srv/app", "--encrypt-key", filepath.Join(dir, "app-files.key"),
			).CombinedOutput()
			require.NoError(t, err, string(out))
		}
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "cconvert"), 0o700))
		require.NoError(t, copyFile(key, filepath.Join(dir, "cconvert", "enclave-key.pem")))
		if input != "" {
			f, err := os.Open(filepath.Join(dir, input))
			require.NoError(t, err)
			defer f.Close()
			cmd.Stdin = f
		}
		if slices.Contains(args, "--endpoint") { // of which no enclave has the key
			out, _ := cmd.CombinedOutput()
			assert.Regexp(t, "failed +quote-chain", string(out))
			assert.Equal(t, exitRefused, cmd.ProcessState.ExitCode())
			continue
		}
		switch {
		case args[0] == "release" && args[1] == "serve":
			until(t, cmd, "listening on")
			continue
		case args[0] == "worker", args[0] == "serve":
			until(t, cmd, map[string]string{"worker": "takes images", "serve": "listening on"}[args[0]])
			continue
		case args[0] == "batch" && slices.Contains(args, "--nats") && strings.HasSuffix(args[1], ".yaml"):
			worker := exec.Command(program, "worker", "--nats", args[slices.Index(args, "--nats")+1], "--key", key)
			worker.Env = cmd.Env
			require.NoError(t, worker.Start())
			defer func() { _ = worker.Process.Kill(); _ = worker.Wait() }()
		}
		out, err := cmd.CombinedOutput()
		switch {
		case args[0] == "runtime" && args[1] == "lock":
			assert.Contains(t, string(out), "image not found")
		case args[0] == "inspect" && args[1] != "--html" && !strings.Contains(string(out), "MRENCLAVE") &&
			!strings.Contains(string(out), "the runtime's") && !strings.Contains(string(out), "mr_enclave"):
			t.Errorf("%s: %s", e, out)
		default:
			assert.NoError(t, err, "%s: %s", e, out)
		}
	}
}

// until runs a program that goes on until it is told to end, and does that when it has said something.
func until(t *testing.T, cmd *exec.Cmd, says string) {
	t.Helper()
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	said := ""
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if said += lines.Text() + "\n"; strings.Contains(lines.Text(), says) {
			require.NoError(t, cmd.Process.Signal(os.Interrupt))
		}
	}
	require.NoError(t, cmd.Wait(), "%s: %s", cmd.Args, said)
	require.Contains(t, said, says)
}

// startNATS starts a server with JetStream and returns its URL.
func startNATS(t *testing.T) string {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
	})
	require.NoError(t, err)
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	require.True(t, s.ReadyForConnections(10*time.Second))
	return s.ClientURL()
}

// selfSigned writes a certificate for this machine, and its key.
func selfSigned(t *testing.T, certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	require.NoError(t,
		os.WriteFile(certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
}

// What the README shows under "Use it" runs, up to where it needs SGX.
func TestREADME(t *testing.T) {
	reg, other := fixture.NewRegistry(t), fixture.NewRegistry(t)
	pushSamples(t, reg)
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, use, ok := strings.Cut(string(text), "\n## Use it\n")
	require.True(t, ok)
	use, _, ok = strings.Cut(use, "\n### Without SGX")
	require.True(t, ok)
	script := "set -e\n"
	for line := range strings.Lines(use) {
		if code, ok := strings.CutPrefix(line, "    "); ok && !strings.HasPrefix(code, "docker run") {
			script += code
		}
	}
	require.Greater(t, strings.Count(script, "cconvert "), 4)
	script = strings.NewReplacer("registry.example", reg.Host, "other.example", other.Host, "cconvert verify ",
		"cconvert verify --allow-simulated ").Replace(script)
	reg.Push(t, "app:1.3",
		fixture.Image(t, v1.Config{Cmd: []string{"/app"}}, fixture.Layer(t, fixture.Program("app", fixture.ELF("")))))
	dir := t.TempDir()
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CCONVERT_RUNTIME=sim", "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"), "HOME="+
		dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Regexp(t, "confidential/app@sha256:[0-9a-f]{64} runs as [0-9a-f]{64}", string(out))
	assert.NotEmpty(t, other.Digest(t, "app:1.3"))
	assert.NotEmpty(t, other.Digest(t, "app:1.4"))
}

// signApart signs what is to be signed of an image, as somebody elsewhere would.
func signApart(t *testing.T, dir, ref, keyFile string) {
	t.Helper()
	out, err := exec.Command(program, "sign", "prepare", ref, "--any-runtime", "--allow-simulated", "-o",
		filepath.Join(dir, "tbs.bin")).CombinedOutput()
	require.NoError(t, err, string(out))
	key, err := signer.ReadFile(keyFile, signer.Options{})
	require.NoError(t, err)
	message, err := os.ReadFile(filepath.Join(dir, "tbs.bin"))
	require.NoError(t, err)
	signature, err := key.Sign(context.Background(), message)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "signature.bin"), signature, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "public.pem"), []byte(publicPEM(t, key)), 0o600))
}

func publicPEM(t *testing.T, key *sgx.Key) string {
	t.Helper()
	public, err := key.Public(context.Background())
	require.NoError(t, err)
	der, err := x509.MarshalPKIXPublicKey(public)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

// Ctrl-C stops within a second, whether reading or writing hangs, and leaves nothing behind.
func TestInterrupt(t *testing.T) {
	key, err := filepath.Abs("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	// The layer is read once to be measured, and once more to be copied.
	var mu sync.Mutex
	copied := map[string]int{}
	copying := func(r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			copied[r.URL.Path]++
		}
		return copied[r.URL.Path] == 2
	}
	for name, hangs := range map[string]func(*http.Request) bool{
		"reading": func(r *http.Request) bool {
			return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
		},
		"writing": func(r *http.Request) bool {
			return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/")
		},
		"writing oci":      copying,
		"writing archives": copying,
	} {
		t.Run(name, func(t *testing.T) {
			reg := fixture.NewRegistry(t)
			pushSamples(t, reg)
			dir := t.TempDir()
			reached := make(chan struct{}, 100)
			reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if !hangs(r) {
					return false
				}
				_, _ = io.Copy(io.Discard, r.Body)
				if r.Method == http.MethodGet { // the beginning of the blob, and then nothing more
					w.Header().Set("Content-Length", "100000")
					_, _ = w.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0})
					w.(http.Flusher).Flush()
				}
				reached <- struct{}{}
				<-r.Context().Done()
				return true
			})
			clear(copied)
			to := map[string]string{
				"writing oci": "oci:" + dir + "/out:1", "writing archives": "docker-archive:" + dir + "/out.tar:app:1",
			}[name]
			if to == "" {
				to = reg.Host + "/out:1"
			}
			cmd := exec.Command(program, reg.Host+"/app:1", "--runtime", "sim", "--key", key, "--to", to)
			cmd.Env = append(os.Environ(), "TMPDIR="+dir, "XDG_CACHE_HOME="+dir+"/cache")
			require.NoError(t, cmd.Start())
			select {
			case <-reached:
			case <-time.After(time.Minute):
				_ = cmd.Process.Kill()
				t.Fatal("what should hang was not reached")
			}
			start := time.Now()
			require.NoError(t, cmd.Process.Signal(os.Interrupt))
			_ = cmd.Wait()
			assert.Less(t, time.Since(start), 5*time.Second, "on a machine that is busy, too")
			assert.Equal(t, 130, cmd.ProcessState.ExitCode())
			reg.Intercept(nil)
			assert.Empty(t, reg.Digest(t, "out:1"))
			_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
				// What is there is in the cache, or a blob that is complete.
				if err == nil && !d.IsDir() && !strings.HasPrefix(p, dir+"/cache/") {
					b, err := os.ReadFile(p)
					require.NoError(t, err)
					sum := sha256.Sum256(b)
					assert.Equal(t, hex.EncodeToString(sum[:]), d.Name(), p)
				}
				return nil
			})
		})
	}
}

// The parts of the private key do not show in the most talkative log, nor in temporary files.
func TestKeyIsNotLogged(t *testing.T) {
	reg := fixture.NewRegistry(t)
	pushSamples(t, reg)
	text, err := os.ReadFile("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	dir := t.TempDir()
	key := filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(key, text, 0o600))
	tmp := filepath.Join(dir, "tmp")
	require.NoError(t, os.Mkdir(tmp, 0o700))
	for _, args := range [][]string{
		{"-v", "convert", reg.Host + "/app:1", "--runtime", "sim", "--key", key, "--to", "oci:" + dir + "/out:1"},
		{"-v", "convert", reg.Host + "/none:1", "--runtime", "sim", "--key", key},
	} {
		cmd := exec.Command(program, args...)
		cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "XDG_CACHE_HOME="+dir+"/cache")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		_ = cmd.Run()
		require.NotEmpty(t, out.String())
		for _, secret := range secrets(t, text) {
			assert.NotContains(t, strings.ToLower(out.String()), secret)
		}
		left, err := os.ReadDir(tmp)
		require.NoError(t, err)
		assert.Empty(t, left, "temporary files")
	}
}

func secrets(t *testing.T, text []byte) []string {
	t.Helper()
	block, _ := pem.Decode(text)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	require.NoError(t, err)
	key, ok := parsed.(*rsa.PrivateKey)
	require.True(t, ok)
	var list []string
	for _, n := range [][]byte{
		key.D.Bytes(), key.Primes[0].Bytes(), key.Primes[1].Bytes(), key.Precomputed.Dp.Bytes(),
		key.Precomputed.Dq.Bytes(), key.Precomputed.Qinv.Bytes(),
	} {
		list = append(list, hex.EncodeToString(n)[:32], fmt.Sprintf("%d", n[:8]), strings.ToLower(string(n[:24])))
		for shift := range 3 {
			list = append(list, strings.ToLower(base64.StdEncoding.EncodeToString(n[shift:])[:32]))
		}
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "-----") {
			list = append(list, strings.ToLower(strings.TrimSpace(line)))
		}
	}
	return list
}

// quoteVectors is the directory of public quotes, which is beside the checkout where it is tested; empty: it is not
// here.
func quoteVectors(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("../../../shared/vectors/quotes")
	require.NoError(t, err)
	if _, err := os.Stat(dir); err != nil {
		require.Empty(t, os.Getenv("CI"), "the public quotes are missing")
		return ""
	}
	return dir
}
