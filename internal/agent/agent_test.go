package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/keyserver"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
)

// asAgent is the variable by which this program is an agent, in the directory that it names.
const asAgent = "CCONVERT_TEST_AGENT"

func init() {
	if os.Getenv(asAgent) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	dir := os.Getenv(asAgent)
	if dir == "" {
		os.Exit(m.Run())
	}
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, asAgent) })
	s := System{
		Config: filepath.Join(dir, "agent.json"), Attestation: filepath.Join(dir, "attestation"), Args: os.Args,
		List: filepath.Join(dir, "encrypted.json"), Ciphertexts: filepath.Join(dir, "ciphertexts"),
		Env: env, Exec: syscall.Exec,
	}
	fmt.Fprintln(os.Stderr, "agent:", s.Run(context.Background()))
	os.Exit(125)
}

var enclave = quote.Report{
	MREnclave: sgx.Measurement{1}, MRSigner: sgx.Measurement{2}, Attributes: sgx.Attributes{Flags: 5, XFRM: 3},
}

const canary = "the secret of this test"

// world is an owner's server, and a place where an agent runs.
type world struct {
	t      *testing.T
	dir    string
	config release.Config
	log    string
	// report is what the machine says that asks.
	report quote.Report
}

func newWorld(t *testing.T, grants ...string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), report: enclave}
	keyFile := filepath.Join(w.dir, "store.key")
	require.NoError(t, keyserver.CreateKey(keyFile))
	store, err := keyserver.OpenDirectory(t.Context(), filepath.Join(w.dir, "store"), keyFile, nil)
	require.NoError(t, err)
	for name, value := range map[string]string{"password": canary, "key": "0123456789abcdef"} {
		require.NoError(t, store.Put(t.Context(), name, []byte(value)))
	}
	policy := &keyserver.Policy{
		Version: keyserver.PolicyVersion,
		Enclave: keyserver.Enclave{
			By: attest.ByEnclave, MREnclave: &enclave.MREnclave, MRSigner: enclave.MRSigner, Simulated: true,
			Flags: keyserver.Masked{Value: 4, Mask: 6}, XFRM: keyserver.Masked{Value: 3, Mask: 3},
		},
		Secrets: map[string]keyserver.Grant{},
	}
	for _, g := range grants {
		slot, err := release.ParseSlot(g)
		require.NoError(t, err)
		w.config.Want = append(w.config.Want, slot)
		grant := keyserver.Grant{Secret: "password"}
		switch slot.Kind {
		case release.KindKey:
			grant.Secret = "key"
		case release.KindTLS:
			grant = keyserver.Grant{Names: []string{"app.example"}}
		}
		policy.Secrets[g] = grant
	}
	text, err := policy.Text()
	require.NoError(t, err)
	policies := filepath.Join(w.dir, "policies")
	require.NoError(t, os.Mkdir(policies, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(policies, "app.toml"), text, 0o600))
	w.log = filepath.Join(w.dir, "log")
	log, err := keyserver.OpenLog(w.log)
	require.NoError(t, err)
	server, err := keyserver.New(t.Context(), keyserver.Options{
		Store: store, Log: log, AllowSimulated: true,
		Policies: func() ([]*keyserver.Policy, error) { return keyserver.ReadPolicies(policies) },
	})
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, end := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); assert.NoError(t, server.Serve(ctx, l)) }()
	t.Cleanup(func() { end(); <-done; log.Close() })
	pin, err := server.Pin()
	require.NoError(t, err)
	w.config.Version, w.config.Exec = release.ConfigVersion, "/bin/sh"
	w.config.Servers = []release.Server{{Address: "https://" + l.Addr().String(), Pins: []release.Pin{pin}}}

	require.NoError(t, os.MkdirAll(filepath.Join(w.dir, "attestation/keys"), 0o700))
	for _, name := range []string{"user_report_data", "quote"} {
		require.NoError(t, syscall.Mkfifo(filepath.Join(w.dir, "attestation", name), 0o600))
	}
	w.device("keys/app")
	w.device("keys/random")
	return w
}

func (w *world) device(name string) {
	w.t.Helper()
	require.NoError(w.t, os.WriteFile(filepath.Join(w.dir, "attestation", name), make([]byte, keySize), 0o600))
}

func (w *world) gone(name string) {
	w.t.Helper()
	require.NoError(w.t, os.Remove(filepath.Join(w.dir, name)))
}

// machine answers as Gramine's files do, once, with quotes of the machine that everybody knows.
func (w *world) machine() {
	dir := filepath.Join(w.dir, "attestation")
	if err := fixture.Attest(dir, w.report); err != nil {
		w.t.Error(err)
		return
	}
	again, err := os.ReadFile(filepath.Join(dir, "user_report_data"))
	if err != nil || !bytes.Equal(again, make([]byte, 64)) {
		w.t.Errorf("report data %x is left behind: %v", again, err)
	}
}

// command is an agent that is to be started, with arguments of the program.
func (w *world) command(args ...string) *exec.Cmd {
	w.t.Helper()
	text, err := json.Marshal(w.config)
	require.NoError(w.t, err)
	require.NoError(w.t, os.WriteFile(filepath.Join(w.dir, "agent.json"), text, 0o600))
	self, err := os.Executable()
	require.NoError(w.t, err)
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asAgent+"="+w.dir, "PASSWORD=of the host", "KEPT=1")
	cmd.Dir = w.t.TempDir()
	return cmd
}

// The program gets what it wants, and is left alone: arguments, directory, exit code, descriptors, other variables.
func TestBecomes(t *testing.T) {
	secrets := t.TempDir()
	w := newWorld(t, "env:PASSWORD", "file:"+secrets+"/run/token", "key:app", "tls:"+secrets+"/tls")
	w.config.Dirs, w.config.Key = []string{secrets}, "random"
	w.config.Arg0 = "my-shell"
	const descriptors = "ls /proc/self/fd | wc -l"
	plain, err := exec.Command("/bin/sh", "-c", descriptors).Output()
	require.NoError(t, err)
	cmd := w.command("-c", `echo "$PASSWORD|$KEPT|$0|$1|$2"; cat "$1"; echo; pwd; `+descriptors+"; env; exit 7",
		"name", secrets+"/run/token", "two words")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	go w.machine()
	err = cmd.Run()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", &stderr)
	assert.Equal(t, 7, exit.ExitCode(), "%s", &stderr)
	lines := strings.Split(out.String(), "\n")
	assert.Equal(t, canary+"|1|name|"+secrets+"/run/token|two words", lines[0])
	assert.Equal(t, canary, lines[1])
	assert.Equal(t, cmd.Dir, lines[2])
	assert.Equal(t, strings.TrimSpace(string(plain)), lines[3], "descriptors")
	assert.Equal(t, 1, strings.Count(out.String(), "PASSWORD="), "the host's is gone")
	assert.NotContains(t, out.String(), asAgent)
	assert.Empty(t, stderr.String())

	released, err := os.ReadFile(filepath.Join(w.dir, "attestation/keys/app"))
	require.NoError(t, err)
	assert.Equal(t, "0123456789abcdef", string(released))
	random, err := os.ReadFile(filepath.Join(w.dir, "attestation/keys/random"))
	require.NoError(t, err)
	assert.NotEqual(t, make([]byte, keySize), random)
	_, err = tls.LoadX509KeyPair(secrets+"/tls/tls.crt", secrets+"/tls/tls.key")
	require.NoError(t, err)
	info, err := os.Stat(secrets + "/run/token")
	require.NoError(t, err)
	assert.EqualValues(t, fileMode, info.Mode().Perm())
}

// A program that is told to end ends, every time.
func TestSignals(t *testing.T) {
	w := newWorld(t, "env:PASSWORD")
	for range 10 {
		cmd := w.command("-c", `trap 'echo ended; exit 3' TERM; echo ready; while :; do sleep 0.01; done`)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		var machine sync.WaitGroup
		machine.Go(w.machine)
		require.NoError(t, cmd.Start())
		line := make([]byte, 6)
		_, err = out.Read(line)
		require.NoError(t, err)
		require.Equal(t, "ready\n", string(line))
		begin := time.Now()
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		_ = cmd.Wait()
		assert.Equal(t, 3, cmd.ProcessState.ExitCode())
		assert.Less(t, time.Since(begin), 2*time.Second)
		machine.Wait()
	}
}

// What fails is said in one line, with the step and what to look at, and the program does not start.
func TestFails(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*world)
		quote  bool // one is asked for
		want   string
	}{
		"another enclave": {
			func(w *world) { w.report.MREnclave[0] ^= 1 }, true,
			"release: the server refused: its log says why. Does a policy grant all of it",
		},
		"a secret that is not granted": {
			func(w *world) { w.config.Want = append(w.config.Want, release.Slot{Kind: "env", Name: "OTHER"}) }, true,
			"release: the server refused",
		},
		"another server": {
			func(w *world) { w.config.Servers[0].Pins[0][0] ^= 1 }, false, "it is not the expected server",
		},
		"no server": {
			func(w *world) { w.config.Servers[0].Address, w.config.Seconds = "https://127.0.0.1:1", 1 }, false,
			"Look at the network",
		},
		"no attestation": {
			func(w *world) { w.gone("attestation/user_report_data") }, false,
			"no quote could be made: .*Was the image converted for attestation",
		},
		"no such program": {func(w *world) { w.config.Exec = "/none" }, true, "exec: /none: no such file"},
		"no place for a key": {
			func(w *world) { w.config.Dirs, w.config.Key = []string{"/x"}, "none" }, false, "keys: open .*keys/none",
		},
		"no configuration": {func(w *world) { w.config.Version = 1 }, false, "configuration: .* its version is 1"},
		"a configuration twice": {
			func(w *world) { w.config.Want = append(w.config.Want, w.config.Want[0]) }, false, "named twice",
		},
	} {
		w := newWorld(t, "env:PASSWORD")
		c.change(w)
		cmd := w.command("-c", "echo started")
		if c.quote {
			go w.machine()
		}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit, what)
		assert.Equal(t, 125, exit.ExitCode(), what)
		assert.Regexp(t, "^agent: [a-z]+: [^\n]*"+strings.TrimPrefix(c.want, "^")+"|^agent: "+c.want, string(out), what)
		assert.Equal(t, 1, strings.Count(string(out), "\n"), what)
		assert.NotContains(t, string(out), canary)
		assert.NotContains(t, string(out), "started")
	}
}

// encrypt makes the image's encrypted files, of which the program may change one.
func (w *world) encrypt() {
	w.t.Helper()
	dir := filepath.Join(w.dir, "ciphertexts/srv")
	require.NoError(w.t, os.MkdirAll(dir, 0o700))
	list := encrypted.List{
		Key: "app", KeyID: strings.Repeat("0", 32), Version: protectedfs.Version2,
	}
	for i, name := range []string{"data", "model", "state"} {
		content := bytes.Repeat([]byte{byte(i)}, nodeSize*(1+2*i))
		require.NoError(w.t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
		f := encrypted.File{Path: "/srv/" + name, Size: int64(len(content)), SHA256: sum(content)}
		if name != "state" {
			f.Head = sum(content[:nodeSize])
		}
		list.Files = append(list.Files, f)
	}
	text, err := list.Marshal()
	require.NoError(w.t, err)
	require.NoError(w.t, os.WriteFile(filepath.Join(w.dir, "encrypted.json"), text, 0o600))
	w.config.Encrypted = true
}

func sum(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

// A key is asked for only if the encrypted files are those of the image, but for what the program itself may change.
func TestCompares(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*world, string)
		want   string
	}{
		"those of the image":   {func(*world, string) {}, ""},
		"changed by a program": {func(w *world, _ string) { w.gone("ciphertexts/srv/state") }, ""},
		"another version of one": {
			func(_ *world, dir string) {
				if err := os.Rename(filepath.Join(dir, "model"), filepath.Join(dir, "data")); err != nil {
					panic(err)
				}
			}, "an encrypted file is not the one of the image: /srv/data. Start a new container",
		},
		"one is gone": {
			func(w *world, _ string) { w.gone("ciphertexts/srv/model") }, "/srv/model: open .*no such file",
		},
		"one is cut short": {
			func(_ *world, dir string) { _ = os.Truncate(filepath.Join(dir, "data"), 100) },
			"/srv/data: unexpected EOF",
		},
		"the list is gone": {
			func(w *world, _ string) { w.gone("encrypted.json") }, "open .*encrypted.json",
		},
		"the list is short": {
			func(w *world, _ string) { _ = os.Truncate(filepath.Join(w.dir, "encrypted.json"), 100) }, "unexpected EOF",
		},
	} {
		w := newWorld(t, "key:app")
		w.encrypt()
		c.change(w, filepath.Join(w.dir, "ciphertexts/srv"))
		cmd := w.command("-c", "echo started")
		if c.want == "" {
			go w.machine()
		}
		out, err := cmd.CombinedOutput()
		key, readErr := os.ReadFile(filepath.Join(w.dir, "attestation/keys/app"))
		require.NoError(t, readErr)
		if c.want == "" {
			require.NoError(t, err, "%s: %s", what, out)
			assert.Equal(t, "0123456789abcdef", string(key))
			continue
		}
		assert.Equal(t, 125, cmd.ProcessState.ExitCode(), what)
		assert.Regexp(t, "^agent: encrypted files: [^\n]*"+c.want, string(out), what)
		assert.Equal(t, make([]byte, keySize), key, what)
	}
}

// The next server is asked if one does not answer, and not if it refuses.
func TestServers(t *testing.T) {
	w := newWorld(t, "env:PASSWORD")
	good := w.config.Servers[0]
	down := good
	down.Address = "https://127.0.0.1:1"
	w.config.Servers = []release.Server{down, good}
	go w.machine()
	out, err := w.command("-c", "echo $PASSWORD").CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, canary+"\n", string(out))

	w.report.MREnclave[0] ^= 1
	w.config.Servers = []release.Server{good, good}
	go w.machine()
	_, err = w.command("-c", "true").CombinedOutput()
	require.Error(t, err)
	f, err := os.Open(w.log)
	require.NoError(t, err)
	defer f.Close()
	refused := 0
	_, _, err = keyserver.CheckLog(f, func(d *keyserver.Decision, _ string) {
		if !d.Released {
			refused++
		}
	})
	require.NoError(t, err)
	assert.Equal(t, 1, refused)
}

// What is released is for the key that the agent made.
func TestPair(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	p, err := simulated.New("a test", time.Now())
	require.NoError(t, err)
	other := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Root.Certificate.Raw})
	dir := t.TempDir()
	assert.ErrorContains(t, writePair(dir, key, string(other)), "another key")
	assert.ErrorContains(t, writePair(dir, key, "x"), "no certificate")
	assert.NoFileExists(t, filepath.Join(dir, "tls.key"))
	require.NoError(t, writePair(dir, p.Root.Key, string(other)))
}

// What the host can change about a file that is to be written leads nowhere else.
func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	require.NoError(t, os.WriteFile(victim, []byte("as it was"), 0o644))
	place := filepath.Join(dir, "place")
	require.NoError(t, os.Symlink(victim, place))
	require.NoError(t, write(place, []byte(canary)))
	b, err := os.ReadFile(victim)
	require.NoError(t, err)
	assert.Equal(t, "as it was", string(b))
	require.NoError(t, write(place, []byte("again")))
	assert.Equal(t, []string{"B=1", "A=2"}, with([]string{"A=1", "B=1", "A=3"}, "A", "2"))
}
