//go:build e2e

package e2e

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/sgx/signer"
)

const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// signingPlace is a place to sign at: a directory with keys, a token, a signing service, and an image.
type signingPlace struct {
	dir, app string // app is the image, without its tag
	env      []string
	key      *rsa.PrivateKey // production.pem
}

func newSigningPlace(t *testing.T, repository string) *signingPlace {
	t.Helper()
	b := &signingPlace{dir: t.TempDir(), app: "127.0.0.1:" + startRegistry(t) + "/" + repository}
	_, err := try(program, "keygen", "--out", b.file("production.pem"))
	require.NoError(t, err)
	text, err := os.ReadFile(b.file("production.pem"))
	require.NoError(t, err)
	block, _ := pem.Decode(text)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	require.NoError(t, err)
	b.key = parsed.(*rsa.PrivateKey)

	require.NoError(t, os.MkdirAll(b.file("bin"), 0o755))
	require.NoError(t, os.Symlink(program, b.file("bin/cconvert")))
	require.NoError(t, os.Symlink(program+"-pkcs11", b.file("bin/cconvert-pkcs11")))
	require.NoError(t, os.Symlink(filepath.Join(project, "examples"), b.file("examples")))
	require.NoError(t, os.MkdirAll(b.file("tokens"), 0o700))
	require.NoError(t,
		os.WriteFile(b.file("softhsm2.conf"), []byte("directories.tokendir = "+b.file("tokens")+"\n"), 0o600))
	b.env = append(os.Environ(), "PATH="+b.file("bin")+":"+os.Getenv("PATH"), "HOME="+b.dir, "XDG_CONFIG_HOME="+
		b.file("config"), "XDG_CACHE_HOME="+b.file("cache"),
		"SOFTHSM2_CONF="+b.file("softhsm2.conf"), "MODULE="+softHSM, "CCONVERT_RUNTIME=sim="+program,
		"CCONVERT_ATTEST=false", "CCONVERT_VERBOSE=true")

	root := b.file("root")
	require.NoError(t, os.MkdirAll(root, 0o755))
	require.NoError(t, os.WriteFile(b.file("app.c"), []byte("int main(void) { return 0; }\n"), 0o644))
	command(t, "gcc", "-static", "-o", root+"/app", b.file("app.c"))
	command(t, "tar", "-C", root, "-cf", b.file("root.tar"), ".")
	buildImage(t, b.app+":1.4", b.file("root.tar"), "ENTRYPOINT [\"/app\"]\n")
	return b
}

func (b *signingPlace) file(name string) string { return filepath.Join(b.dir, name) }

// shell runs a script, and returns what it prints.
func (b *signingPlace) shell(script string, env ...string) (stdout, stderr string, err error) {
	cmd := exec.Command("bash", "-euc", script)
	cmd.Dir, cmd.Env = b.dir, append(slices.Clone(b.env), env...)
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	err = cmd.Run()
	return out.String(), messages.String(), err
}

// service signs over HTTPS as docs/signing.md says. It returns its address and the file of its certificate.
func (b *signingPlace) service(t *testing.T) (url, certificate string) {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&b.key.PublicKey)
	require.NoError(t, err)
	public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q signer.Request
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		a := signer.Answer{Version: signer.ProtocolVersion, PublicKey: public}
		if q.Operation == "sign" {
			digest := sha256.Sum256(q.ToBeSigned)
			a.Signature, _ = rsa.SignPKCS1v15(nil, b.key, crypto.SHA256, digest[:])
		}
		_ = json.NewEncoder(w).Encode(a)
	}))
	t.Cleanup(s.Close)
	certificate = b.file("service.pem")
	require.NoError(t, os.WriteFile(certificate,
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
	return s.URL, certificate
}

// Every command of docs/signing.md runs, and however an image is signed with a key, its digest is the same.
func TestSigningDocument(t *testing.T) {
	b := newSigningPlace(t, "signing")
	url, certificate := b.service(t)
	text, err := os.ReadFile(filepath.Join(project, "docs/signing.md"))
	require.NoError(t, err)
	var script strings.Builder
	for line := range strings.Lines(string(text)) {
		if code, ok := strings.CutPrefix(line, "    "); ok {
			script.WriteString(code)
		}
	}
	require.Greater(t, strings.Count(script.String(), "cconvert"), 15)
	// The document shows ways to choose from. Here they follow each other, on one tag and with several keys.
	code := strings.NewReplacer("registry.example/app:1.4 --key", b.app+":1.4 --replace-signer --key",
		"registry.example/app:1.4 --unsigned", b.app+":1.4 --replace-signer --unsigned",
		"--lock cconvert.lock", "--any-runtime --allow-simulated", // there is none of the simulated runtime
		"registry.example/app", b.app, "https://signer.example/v1/sign", url).Replace(script.String())
	out, messages, err := b.shell(code, "CURL_CA_BUNDLE="+certificate)
	require.NoError(t, err, "%s\n%s", out, messages)

	var digests []string
	for _, m := range regexp.MustCompile(`@(sha256:[0-9a-f]{64})`).FindAllStringSubmatch(lines(out, b.app), -1) {
		digests = append(digests, m[1])
	}
	require.Len(t, digests, 11, out)
	production, _, err := b.shell("cconvert " + b.app + ":1.4 --key production.pem --to " + b.app + ":expected")
	require.NoError(t, err)
	want := strings.TrimSpace(production[strings.Index(production, "@")+1:])
	const development, encrypted, variable, module, openssl, tool, https, unsigned, attached, again, promoted = 0, 1, 2,
		3, 4, 5, 6, 7, 8, 9, 10
	for _, i := range []int{module, openssl, tool, https, attached, promoted} {
		assert.Equal(t, want, digests[i], i)
	}
	// So it is with every form in which a key is kept.
	forms, messages, err := b.shell(`openssl rsa -in production.pem -traditional -out pkcs1.pem
openssl pkcs8 -topk8 -in production.pem -out pbes2.pem -passout pass:secret
openssl rsa -in production.pem -traditional -aes256 -out legacy.pem -passout pass:secret
export CCONVERT_KEY_PASSPHRASE=secret PLAIN="$(cat production.pem)" ENCRYPTED="$(base64 -w0 pbes2.pem)"
for key in pkcs1.pem pbes2.pem legacy.pem env:PLAIN env:ENCRYPTED; do
  cconvert ` + b.app + `:1.4 --key $key --to ` + b.app + `:form
done
cconvert ` + b.app + `:1.4 --key <(cat production.pem) --to ` + b.app + `:form`)
	require.NoError(t, err, messages)
	assert.Equal(t, 6, strings.Count(forms, "@"+want+"\n"), forms)
	assert.Equal(t, digests[development], digests[variable])
	assert.Equal(t, digests[development], digests[again])
	assert.NotContains(t, []string{want, digests[development]}, digests[unsigned])
	assert.NotEqual(t, digests[development], digests[encrypted])
	command(t, program, "verify", b.app+":1.4-production", "--signer-key", b.file("production.pem"), "--source", b.app+
		":1.4", "--allow-simulated")
	b.searched(t, out+messages)
}

// lines are those of a text that begin with something.
func lines(text, prefix string) string {
	var found []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, prefix) && strings.Count(line, " ") == 0 {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}

// searched fails where the private key's numbers are in a text.
func (b *signingPlace) searched(t *testing.T, text string) {
	t.Helper()
	stored, err := os.ReadFile(b.file("production.pem"))
	require.NoError(t, err)
	for line := range strings.Lines(string(stored)) {
		if !strings.HasPrefix(line, "-----") {
			assert.NotContains(t, text, strings.TrimSpace(line))
		}
	}
	bare := strings.NewReplacer(":", "", " ", "", "\n", "").Replace(text) // as openssl prints them
	for _, n := range append(b.key.Primes, b.key.D) {
		for _, text := range []string{text, bare} {
			assert.NotContains(t, text, n.Text(16)[:32])
			assert.NotContains(t, text, n.Text(10)[:32])
		}
	}
}

// On a terminal the passphrase is asked for, twice where a key is made, and not shown.
func TestPassphraseOnATerminal(t *testing.T) {
	b := newSigningPlace(t, "terminal")
	typed := func(words, command string) string {
		out, messages, err := b.shell("for w in " + words +
			"; do sleep 1; echo $w; done | (cat; sleep 3) | script -qec '" + command + "' /dev/null")
		require.NoError(t, err, messages)
		return out
	}
	made := typed("sesame sesame", "cconvert keygen --out typed.pem --encrypt")
	assert.NotContains(t, made, "sesame")
	assert.Contains(t, made, "once more")
	signer := regexp.MustCompile("[0-9a-f]{64}").FindString(made)
	require.NotEmpty(t, signer)
	assert.Contains(t, typed("sesame", "cconvert key info --key typed.pem"), signer)
	out, _, err := b.shell("for w in one two; do sleep 1; echo $w; done | (cat; sleep 3) | script -qec 'cconvert " +
		"keygen --out other.pem --encrypt' /dev/null")
	assert.Error(t, err)
	assert.Contains(t, out, "two different passphrases")
	_, err = os.Stat(b.file("other.pem"))
	assert.ErrorIs(t, err, os.ErrNotExist)
}

// What can go wrong with a token has a message that says what to do, and nothing is stored.
func TestTokenTroubles(t *testing.T) {
	b := newSigningPlace(t, "tokens")
	out, messages, err := b.shell(`softhsm2-util --init-token --free --label production --so-pin 12345678 --pin 1234
softhsm2-util --import production.pem --token production --label enclave --id 01 --pin 1234
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out usual.pem
softhsm2-util --import usual.pem --token production --label usual --id 02 --pin 1234
cat >locked.c <<'END'
` + lockedModule + `
END
gcc -shared -fPIC -DREAL="\"$MODULE\"" -o locked.so locked.c -ldl
gcc -shared -fPIC -DREAL="\"$MODULE\"" -DHANGS -o hanging.so locked.c -ldl`)
	require.NoError(t, err, "%s\n%s", out, messages)
	uri := "pkcs11:token=production;object=enclave?module-path=" + softHSM
	for _, c := range []struct{ name, key, pin, want, hint string }{
		{"wrong PIN", uri, "4321", "the PIN is wrong", "CCONVERT_KEY_PASSPHRASE"},
		{"no PIN", uri, "", "needs a passphrase", "CCONVERT_KEY_PASSPHRASE"},
		{
			"no such token", "pkcs11:token=other;object=enclave?module-path=" + softHSM, "1234",
			"could not find PKCS#11 token", "",
		},
		{
			"no such key", "pkcs11:token=production;object=other?module-path=" + softHSM, "1234",
			"0 key pairs of this name", "",
		},
		{
			"another exponent", "pkcs11:token=production;object=usual?module-path=" + softHSM, "1234",
			"public exponent 65537: SGX demands 3", "",
		},
		{"no module", "pkcs11:token=production;object=enclave", "1234", "module-path=FILE", ""},
		{"a PIN for everybody to see", uri + "&pin-value=1234", "1234", "other users can read the arguments", ""},
		{
			"two tokens", "pkcs11:token=production;serial=1;object=enclave?module-path=" + softHSM, "1234",
			"one of token, serial and slot-id", "",
		},
		{
			"an unknown attribute", "pkcs11:token=production;manufacturer=x;object=enclave?module-path=" + softHSM,
			"1234", "is not understood here", "",
		},
		{
			"a module that hangs", "pkcs11:token=production;object=enclave?module-path=" + b.file("hanging.so"), "1234",
			"no answer in time", "",
		},
		{
			"a locked token", "pkcs11:token=production;object=enclave?module-path=" + b.file("locked.so"), "1234",
			"the token is locked", "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			env := []string{"KEY=" + c.key, "TARGET=" + b.app + ":out"}
			if c.pin != "" {
				env = append(env, "CCONVERT_KEY_PASSPHRASE="+c.pin)
			}
			_, messages, err := b.shell("cconvert-pkcs11 -v "+b.app+
				":1.4 --key-timeout 3s --key \"$KEY\" --to \"$TARGET\"", env...)
			require.Error(t, err)
			assert.Contains(t, messages, c.want)
			assert.Contains(t, messages, c.hint)
			assert.NotContains(t, messages, "4321")
			_, err = try("skopeo", "inspect", "--tls-verify=false", "docker://"+b.app+":out")
			assert.Error(t, err, "nothing is stored")
		})
	}
	_, messages, err = b.shell("cconvert " + b.app + ":1.4 --key '" + uri + "'")
	require.Error(t, err)
	assert.Contains(t, messages, "make build-pkcs11", "the static build says how to get the other")
}

// So has what can go wrong with a signature that was made elsewhere.
func TestAttachTroubles(t *testing.T) {
	b := newSigningPlace(t, "attach")
	out, messages, err := b.shell(`cconvert ` + b.app + `:1.4 --unsigned --to ` + b.app + `:out
cconvert sign prepare ` + b.app + `:out --any-runtime --allow-simulated -o tbs.bin
openssl dgst -sha256 -sign production.pem -out good.bin tbs.bin
openssl rsa -in production.pem -pubout -out production.pub
cconvert keygen --out other.pem
openssl dgst -sha256 -sign other.pem -out other.bin tbs.bin; openssl rsa -in other.pem -pubout -out other.pub
openssl genrsa -out usual.pem 3072
openssl rsa -in usual.pem -pubout -out usual.pub; openssl dgst -sha256 -sign usual.pem -out usual.bin tbs.bin
openssl genrsa -3 -out small.pem 2048; openssl rsa -in small.pem -pubout -out small.pub
openssl dgst -sha512 -sign production.pem -out sha512.bin tbs.bin
head -c 200 good.bin >short.bin; base64 good.bin >encoded.bin; head -c 384 /dev/zero >zero.bin
openssl asn1parse -genstr OCTETSTRING:x -noout -out der.bin; cat good.bin >>der.bin`)
	require.NoError(t, err, "%s\n%s", out, messages)
	before := command(t, "skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://"+b.app+":out")
	for _, c := range []struct{ name, signature, key, want string }{
		{"wrong signature", "zero.bin", "production.pub", "was it made over what"},
		{"another digest", "sha512.bin", "production.pub", "was it made over what"},
		{"wrong key", "good.bin", "other.pub", "was it made over what"},
		{"signature of another key", "other.bin", "production.pub", "was it made over what"},
		{"wrong exponent", "usual.bin", "usual.pub", "public exponent 65537: SGX demands 3"},
		{"wrong size", "good.bin", "small.pub", "RSA-2048: SGX demands RSA-3072"},
		{"truncated", "short.bin", "production.pub", "it has 200 bytes, a signature by this key has 384"},
		{"in base64", "encoded.bin", "production.pub", "without any encoding"},
		{"in DER", "der.bin", "production.pub", "without any encoding"},
		{"no key", "good.bin", "tbs.bin", "no PEM block of a key"},
	} {
		_, messages, err := b.shell("cconvert sign attach " + b.app + ":out --any-runtime --allow-simulated " +
			"--signature " + c.signature + " --public-key " + c.key)
		require.Error(t, err, c.name)
		assert.Contains(t, messages, c.want, c.name)
		assert.Equal(t, before, command(t, "skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}",
			"docker://"+b.app+":out"), c.name)
	}
	_, messages, err = b.shell("cconvert sign attach " + b.app +
		":out --any-runtime --allow-simulated --signature good.bin --public-key production.pub")
	assert.NoError(t, err, messages)
}

// So has what can go wrong with a plug-in, and what it prints of a key goes nowhere.
func TestPluginTroubles(t *testing.T) {
	b := newSigningPlace(t, "plugins")
	for _, c := range []struct{ name, script, want string }{
		{"fails", "echo the safe is locked >&2; exit 3", "exit status 3: it says: the safe is locked"},
		{"hangs", "sleep 100 & wait", "no answer in time"},
		{"prints the key", "cat production.pem", "wrote a private key to standard output"},
		{"complains with the key", "openssl rsa -in production.pem -text -noout >&2; exit 1", "exit status 1"},
		{"is cut short", "examples/signing/openssl.sh production.pem | head -c 300", "not one JSON object"},
		{
			"has another key", "openssl genrsa -out usual.pem 3072; examples/signing/openssl.sh usual.pem",
			"public exponent 65537: SGX demands 3",
		},
		{
			"has a key of another size", "openssl genrsa -3 -out small.pem 2048; examples/signing/openssl.sh small.pem",
			"RSA-2048: SGX demands RSA-3072",
		},
		{
			"names another key", "cconvert keygen --out other.pem >&2; examples/signing/openssl.sh production.pem | " +
				"jq --arg key \"$(openssl rsa -in other.pem -pubout)\" '.public_key = $key'",
			"not one of these bytes by the key that it names",
		},
		{
			"signs something else", "jq -c '.to_be_signed = \"AAAA\"' | examples/signing/openssl.sh production.pem",
			"not one of these bytes by the key that it names",
		},
		{
			"gives half a signature", "examples/signing/openssl.sh production.pem | jq '.signature = " +
				".signature[0:256]'", "has 192 bytes, one by this key has 384",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(b.file("plugin.sh"), []byte("#!/bin/bash\n"+c.script+"\n"), 0o755))
			// Some of them make keys, which takes seconds on a busy machine.
			timeout := "1m"
			if c.name == "hangs" {
				timeout = "4s"
			}
			out, messages, err := b.shell("cconvert " + b.app + ":1.4 --key exec:./plugin.sh --key-timeout " + timeout +
				" --to " + b.app + ":out")
			require.Error(t, err)
			assert.Contains(t, messages, c.want)
			assert.Contains(t, messages, "nothing was stored")
			b.searched(t, out+messages)
			_, err = try("skopeo", "inspect", "--tls-verify=false", "docker://"+b.app+":out")
			assert.Error(t, err, "nothing is stored")
		})
	}
}

// lockedModule is SoftHSM with a token that is locked: SoftHSM itself locks none. The list of functions of PKCS#11
// 2.40 is a version, then pointers in the order of the specification, of which C_Login is the 19th.
const lockedModule = `#include <dlfcn.h>
#include <string.h>
#include <unistd.h>
typedef unsigned long rv;
struct list { unsigned char version[8]; rv (*f[68])(); };
static struct list copy;
static rv locked() {
#ifdef HANGS
    for (;;) pause();
#endif
    return 0xA4; /* CKR_PIN_LOCKED */
}
rv C_GetFunctionList(struct list **out) {
    struct list *real;
    rv (*get)(struct list **) = (rv (*)(struct list **))dlsym(dlopen(REAL, RTLD_NOW), "C_GetFunctionList");
    rv r = get(&real);
    if (r) return r;
    memcpy(&copy, real, sizeof copy);
    copy.f[18] = locked;
    *out = &copy;
    return 0;
}`
