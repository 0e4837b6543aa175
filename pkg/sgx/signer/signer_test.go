package signer_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/signer"
)

const keyFile = "../../../testdata/vectors/test-signing-key.pem"

var message = (&sgx.SigStruct{ISVSVN: 7,
	Attributes: sgx.Attributes{Flags: sgx.FlagMode64 | sgx.FlagDebug, XFRM: 3}}).ToBeSigned()

// TestMain makes this program a plug-in, where it is told to be one: what it does is in its argument.
func TestMain(m *testing.M) {
	if act := os.Getenv("SIGNER_TEST_PLUGIN"); act != "" {
		os.Exit(plugin(act))
	}
	os.Exit(m.Run())
}

// plugin behaves well or badly.
func plugin(act string) int {
	var r signer.Request
	in, _ := io.ReadAll(os.Stdin)
	if err := json.Unmarshal(in, &r); err != nil || r.Version != 1 {
		fmt.Fprintln(os.Stderr, "not a request:", err)
		return 1
	}
	text, err := os.ReadFile(keyFile)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	block, _ := pem.Decode(text)
	key, _ := x509.ParsePKCS1PrivateKey(block.Bytes)
	other, _ := rsa.GenerateKey(rand.Reader, 3072) // its exponent is 65537
	small, _ := rsa.GenerateKey(rand.Reader, 2048)
	digest := sha256.Sum256(r.ToBeSigned)
	public := func(k *rsa.PrivateKey) string {
		der, _ := x509.MarshalPKIXPublicKey(&k.PublicKey)
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	a := signer.Answer{Version: 1, PublicKey: public(key)}
	if r.Operation == "sign" {
		a.Signature, _ = rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
	}
	switch act {
	case "wrong signature":
		a.Signature[17] ^= 1
	case "wrong key":
		k, _ := sgx.GenerateKey(rand.Reader)
		p, _ := k.Public(context.Background())
		der, _ := x509.MarshalPKIXPublicKey(p)
		a.PublicKey = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	case "wrong exponent":
		a.PublicKey = public(other)
	case "wrong size":
		a.PublicKey = public(small)
	case "short signature":
		a.Signature = a.Signature[:200]
	case "version":
		a.Version = 2
	case "hang":
		_ = exec.Command("sleep", "100").Run()
	case "fail":
		fmt.Fprintf(os.Stderr, "something\nthe token is gone: %s\n", key.D.Text(16))
		return 3
	case "say":
		fmt.Fprintln(os.Stderr, os.Getenv("SIGNER_TEST_SAYS"))
		return 1
	case "key as public key":
		a.PublicKey = string(text)
	case "key to output":
		_, _ = os.Stdout.Write(text)
	case "key to messages":
		_, _ = os.Stderr.Write(text)
		return 1
	case "flood":
		fmt.Print(strings.Repeat("x", 1<<20))
	}
	out, _ := json.Marshal(a)
	if act == "key as public key" { // as JSON can write it, too
		out = bytes.ReplaceAll(out, []byte("PRIVATE KEY"), []byte(`PRIVATE\u0020KEY`))
	}
	if act == "truncated" {
		out = out[:len(out)/2]
	}
	_, _ = os.Stdout.Write(out)
	return 0
}

func plug(t *testing.T, act string, o signer.Options) sgx.Signer {
	t.Helper()
	t.Setenv("SIGNER_TEST_PLUGIN", act)
	self, err := os.Executable()
	require.NoError(t, err)
	s, err := signer.Open(context.Background(), "exec:"+self, o)
	require.NoError(t, err)
	return s
}

// expected is the signature by the test key.
func expected(t *testing.T) []byte {
	t.Helper()
	k, err := signer.ReadFile(keyFile, signer.Options{})
	require.NoError(t, err)
	signature, err := k.Sign(context.Background(), message)
	require.NoError(t, err)
	return signature
}

func TestPlugin(t *testing.T) {
	s := plug(t, "good", signer.Options{})
	public, err := s.Public(context.Background())
	require.NoError(t, err)
	signature, err := s.Sign(context.Background(), message)
	require.NoError(t, err)
	assert.Equal(t, expected(t), signature)
	whose, ok := sgx.TestKey(public)
	assert.True(t, ok)
	assert.Equal(t, "cconvert/cconvert", whose)

	_, err = s.Sign(context.Background(), []byte("something else"))
	assert.ErrorContains(t, err, "not what a SIGSTRUCT's signature covers", "a plug-in cannot be led to sign anything")
}

// secrets are the key's numbers as they could be printed.
func secrets(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(keyFile)
	require.NoError(t, err)
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	require.NoError(t, err)
	list := []string{strings.Split(string(text), "\n")[5]}
	for _, n := range append(key.Primes, key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv) {
		list = append(list, n.Text(16)[:40], n.Text(10)[:40], base64.StdEncoding.EncodeToString(n.Bytes())[:40])
	}
	return list
}

func TestBadPlugins(t *testing.T) {
	keep := secrets(t)
	for act, want := range map[string]string{
		"wrong signature":   "not one of these bytes by the key that it names",
		"wrong key":         "not one of these bytes by the key that it names",
		"wrong exponent":    "public exponent 65537: SGX demands 3",
		"wrong size":        "RSA-2048: SGX demands RSA-3072",
		"short signature":   "has 200 bytes, one by this key has 384",
		"truncated":         "not one JSON object",
		"version":           "version 2 of the protocol, this program knows 1",
		"fail":              "exit status 3: it says: (something that looks like a key",
		"key as public key": "its public_key is a private key",
		"key to output":     "wrote a private key to standard output",
		"key to messages":   "a private key, which is not repeated here",
		"flood":             "more than 65536 bytes",
		"hang":              "no answer in time",
	} {
		t.Run(act, func(t *testing.T) {
			o := signer.Options{}
			if act == "hang" {
				o.Timeout = 300 * time.Millisecond
			}
			begin := time.Now()
			_, err := plug(t, act, o).Sign(context.Background(), message)
			require.ErrorIs(t, err, signer.ErrPlugin)
			assert.ErrorContains(t, err, want)
			for _, s := range keep {
				assert.NotContains(t, err.Error(), s)
			}
			assert.Less(t, time.Since(begin), 20*time.Second)
		})
	}
	_, err := signer.Open(context.Background(), "exec:", signer.Options{})
	assert.ErrorIs(t, err, signer.ErrName)
	s, err := signer.Open(context.Background(), "exec:/does/not/exist", signer.Options{})
	require.NoError(t, err)
	_, err = s.Sign(context.Background(), message)
	assert.ErrorContains(t, err, "no such file")
}

func TestHangingPluginIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err := plug(t, "hang", signer.Options{}).Sign(ctx, message)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
}

// Every form of a key file signs the same.
func TestForms(t *testing.T) {
	made := func(name string) string { return filepath.Join("testdata", name+".pem") } // by openssl 3
	written := filepath.Join(t.TempDir(), "own.pem")
	k, err := signer.ReadFile(keyFile, signer.Options{})
	require.NoError(t, err)
	own, err := k.PEM([]byte("secret"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(written, own, 0o600))
	plain, err := os.ReadFile(keyFile)
	require.NoError(t, err)
	t.Setenv("THE_KEY", string(plain))
	t.Setenv("THE_KEY_BASE64", base64.StdEncoding.EncodeToString(own))

	var asked string
	o := signer.Options{Passphrase: func(of string) ([]byte, error) { asked = of; return []byte("secret"), nil }}
	for _, name := range []string{
		keyFile, made("pkcs8"), made("pbes2-pbkdf2"), made("pbes2-scrypt"), made("legacy"), written, "env:THE_KEY",
		"env:THE_KEY_BASE64",
	} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			s, err := signer.Open(context.Background(), name, o)
			require.NoError(t, err)
			signature, err := s.Sign(context.Background(), message)
			require.NoError(t, err)
			assert.Equal(t, expected(t), signature)
			require.NoError(t, s.Close())
		})
	}
	assert.Equal(t, "env:THE_KEY_BASE64", asked)
	assert.Empty(t, os.Getenv("THE_KEY"), "programs that are started later inherit it")

	wrong := signer.Options{Passphrase: func(string) ([]byte, error) { return []byte("wrong"), nil }}
	none := errors.New("nobody is there")
	for _, name := range []string{made("pbes2-pbkdf2"), made("pbes2-scrypt"), made("legacy"), written} {
		_, err := signer.Open(context.Background(), name, wrong)
		assert.ErrorIs(t, err, sgx.ErrPassphrase, name)
		assert.ErrorContains(t, err, name)
		_, err = signer.Open(context.Background(), name, signer.Options{})
		assert.ErrorIs(t, err, sgx.ErrPassphrase, name)
		_, err = signer.Open(context.Background(), name, signer.Options{Passphrase: func(string) ([]byte, error) {
			return nil, none
		}})
		assert.ErrorIs(t, err, none, name)
	}
	_, err = signer.Open(context.Background(), "env:NO_SUCH_VARIABLE", signer.Options{})
	assert.ErrorIs(t, err, signer.ErrName)
}

// A key that is given where its name belongs is not repeated.
func TestKeyAsName(t *testing.T) {
	text, err := os.ReadFile(keyFile)
	require.NoError(t, err)
	encoded := base64.StdEncoding.EncodeToString(text)
	for _, name := range []string{
		string(text), encoded, "env:" + string(text), "env:" + encoded, "exec:" + string(text),
		strings.ReplaceAll(string(text), "\n", " "),
	} {
		_, err := signer.Open(context.Background(), name, signer.Options{})
		require.ErrorIs(t, err, signer.ErrName)
		assert.NotContains(t, err.Error(), "MII")
		assert.NotContains(t, err.Error(), "LS0")
		assert.Less(t, len(err.Error()), 300)
	}
}

// What plug-ins say is repeated without what could be a part of a key, in whatever form.
func TestHarmless(t *testing.T) {
	keep := secrets(t)
	raw, err := os.ReadFile(keyFile)
	require.NoError(t, err)
	block, _ := pem.Decode(raw)
	for name, said := range map[string]string{
		"xxd":       fmt.Sprintf("00000000: % x", block.Bytes[:64]),
		"base64url": base64.RawURLEncoding.EncodeToString(block.Bytes[:96]),
		"groups":    strings.Join(strings.Split(fmt.Sprintf("%x", block.Bytes[:64]), ""), " "),
		"at an end": strings.Repeat("word ", 58) + base64.StdEncoding.EncodeToString(block.Bytes[:96]),
	} {
		t.Setenv("SIGNER_TEST_SAYS", said)
		_, err := plug(t, "say", signer.Options{}).Sign(context.Background(), message)
		require.ErrorIs(t, err, signer.ErrPlugin, name)
		for i := 0; i+12 < len(said) && name != "at an end"; i += 7 {
			assert.NotContains(t, err.Error(), said[i:i+12], name)
		}
		for _, s := range keep {
			assert.NotContains(t, err.Error(), s)
		}
		assert.NotContains(t, err.Error(), base64.StdEncoding.EncodeToString(block.Bytes[:9]))
	}
	t.Setenv("SIGNER_TEST_SAYS", "bad\x1b[31m \u009b\x7f end")
	_, err = plug(t, "say", signer.Options{}).Sign(context.Background(), message)
	for _, c := range []string{"\x1b", "\u009b", "\x7f"} {
		assert.NotContains(t, err.Error(), c)
	}
}

func TestKeyFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub", "key.pem")
	made, err := signer.CreateFile(file, []byte("secret"))
	require.NoError(t, err)
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	_, err = signer.CreateFile(file, nil)
	assert.ErrorIs(t, err, os.ErrExist, "a key is never written over")

	var exposed string
	o := signer.Options{Passphrase: func(string) ([]byte, error) {
		return []byte("secret"), nil
	}, Exposed: func(f string) { exposed = f }}
	read, err := signer.ReadFile(file, o)
	require.NoError(t, err)
	assert.Empty(t, exposed)
	a, _ := made.Public(context.Background())
	b, _ := read.Public(context.Background())
	assert.Equal(t, a, b)
	require.NoError(t, os.Chmod(file, 0o640))
	_, err = signer.ReadFile(file, o)
	require.NoError(t, err)
	assert.Equal(t, file, exposed)

	require.NoError(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	_, err = signer.ReadFile(file, o)
	assert.ErrorContains(t, err, "which no key has")
}

// The key of simulations is one that is known to be everybody's, so that no enclave is signed by it.
func TestSimulated(t *testing.T) {
	key, err := signer.Simulated()
	require.NoError(t, err)
	public, err := key.Public(context.Background())
	require.NoError(t, err)
	_, known := sgx.TestKey(public)
	assert.True(t, known)
}
