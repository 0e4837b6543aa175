package release

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/sgx/ratls"
)

// What other programs have made of a key and a challenge, and encrypted for a key (shared vectors, "kbs").
func TestKBSKnownAnswers(t *testing.T) {
	const dir = "../../../shared/vectors/quotes"
	if _, err := os.Stat(dir); os.Getenv("CI") == "" && err != nil {
		t.Skip("the public quotes are not on this machine")
	}
	text, err := os.ReadFile(filepath.Join(dir, "kbs/rcar-known-answers.json"))
	require.NoError(t, err)
	var v struct {
		Plain     string          `json:"plain"`
		Data      string          `json:"report_data_sha384_hex"`
		Resource  json.RawMessage `json:"resource_response"`
		Canonical string          `json:"runtime_data_canonical"`
		Key       string          `json:"tee_private_key_hex"`
	}
	require.NoError(t, json.Unmarshal(text, &v))
	raw, err := hex.DecodeString(v.Key)
	require.NoError(t, err)
	key, err := ecdh.P256().NewPrivateKey(raw)
	require.NoError(t, err)
	plain, err := openJWE(v.Resource, key)
	require.NoError(t, err)
	assert.Equal(t, v.Plain, string(plain))

	var runtime struct {
		Nonce string `json:"nonce"`
	}
	require.NoError(t, json.Unmarshal([]byte(v.Canonical), &runtime))
	_, data, err := kbsAttest(key.PublicKey(), runtime.Nonce)
	require.NoError(t, err)
	assert.Equal(t, v.Data, hex.EncodeToString(data[:sha512.Size384]))
	assert.Equal(t, make([]byte, 16), data[sha512.Size384:])
	for _, nonce := range []string{"a<b>&c", "a b"} { // canonical JSON escapes none of these
		text, err := canonicalJSON(kbsRuntimeData{Nonce: nonce})
		require.NoError(t, err)
		assert.Contains(t, string(text), nonce)
	}

	for what, change := range map[string]func(*kbsResource){
		"another key": func(r *kbsResource) { r.EncryptedKey = flipped(r.EncryptedKey) },
		"content":     func(r *kbsResource) { r.Ciphertext = flipped(r.Ciphertext) },
		"tag":         func(r *kbsResource) { r.Tag = flipped(r.Tag) },
		"short tag":   func(r *kbsResource) { r.Tag = r.Tag[:4] },
		"no iv":       func(r *kbsResource) { r.IV = "" },
		"short key":   func(r *kbsResource) { r.EncryptedKey = r.EncryptedKey[:8] },
		"another header": func(r *kbsResource) {
			h, err := base64.RawURLEncoding.DecodeString(r.Protected)
			require.NoError(t, err)
			r.Protected = base64.RawURLEncoding.EncodeToString(append([]byte(" "), h...))
		},
		"another algorithm": func(r *kbsResource) {
			r.Protected = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"dir","enc":"A256GCM"}`))
		},
		"a point off the curve": func(r *kbsResource) {
			point := base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32))
			r.Protected = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":` +
				`{"kty":"EC","crv":"P-256","x":"` + point + `","y":"` + point + `"}}`))
		},
		"no header": func(r *kbsResource) { r.Protected = "!" },
	} {
		var r kbsResource
		require.NoError(t, json.Unmarshal(v.Resource, &r))
		change(&r)
		text, err := json.Marshal(r)
		require.NoError(t, err)
		_, err = openJWE(text, key)
		assert.ErrorIs(t, err, ErrProtocol, what)
	}
}

// flipped changes a bit of a text in base64.
func flipped(text string) string {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		panic(err)
	}
	b[0] ^= 1
	return base64.RawURLEncoding.EncodeToString(b)
}

// broker is a key broker service that does what the protocol says, by another implementation of JWE.
type broker struct {
	t         *testing.T
	resources map[string][]byte
	attested  bool
	change    func(path string, w http.ResponseWriter) bool
}

func (b *broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if b.change != nil && b.change(r.URL.Path, w) {
		return
	}
	cookie, _ := r.Cookie("kbs-session-id")
	body, _ := io.ReadAll(r.Body)
	switch {
	case r.URL.Path == "/kbs/v0/auth":
		assert.JSONEq(b.t, `{"version":"0.4.0","tee":"sgx","extra-params":""}`, string(body))
		http.SetCookie(w, &http.Cookie{Name: "kbs-session-id", Value: "a-session"})
		_ = json.NewEncoder(w).Encode(map[string]string{"nonce": "a nonce", "extra-params": ""})
	case cookie == nil || cookie.Value != "a-session":
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == "/kbs/v0/attest":
		var a map[string]any
		assert.NoError(b.t, json.Unmarshal(body, &a))
		assert.ElementsMatch(b.t, []string{"init-data", "runtime-data", "tee-evidence"}, keysOf(a))
		b.key(a)
		b.attested = true
		_ = json.NewEncoder(w).Encode(map[string]string{"token": "a token"})
	case strings.HasPrefix(r.URL.Path, "/kbs/v0/resource/") && b.attested:
		value, ok := b.resources[strings.TrimPrefix(r.URL.Path, "/kbs/v0/resource/")]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = io.WriteString(w, b.encrypt(value))
	default:
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func keysOf(m map[string]any) (keys []string) {
	for k := range maps.Keys(m) {
		keys = append(keys, k)
	}
	return keys
}

var teeKey *ecdsa.PublicKey

// key reads what an attestation says, and that the quote is about it.
func (b *broker) key(a map[string]any) {
	runtime := a["runtime-data"].(map[string]any)
	jwk := runtime["tee-pubkey"].(map[string]any)
	point := []byte{4}
	for _, name := range []string{"x", "y"} {
		v, err := base64.RawURLEncoding.DecodeString(jwk[name].(string))
		require.NoError(b.t, err)
		point = append(point, v...)
	}
	var err error
	teeKey, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	require.NoError(b.t, err)
	canonical, err := json.Marshal(map[string]any{
		"additional-evidence": "", "nonce": runtime["nonce"], "tee-pubkey": jwk,
	})
	require.NoError(b.t, err)
	sum := sha512.Sum384(canonical)
	evidence := a["tee-evidence"].(map[string]any)["primary_evidence"].(map[string]any)
	quote, err := base64.StdEncoding.DecodeString(evidence["quote"].(string))
	require.NoError(b.t, err)
	assert.Equal(b.t, append(sum[:], make([]byte, 16)...), quote)
}

func (b *broker) encrypt(value []byte) string {
	e, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: teeKey}, nil)
	require.NoError(b.t, err)
	o, err := e.Encrypt(value)
	require.NoError(b.t, err)
	return o.FullSerialize()
}

func TestKBS(t *testing.T) {
	b := &broker{t: t, resources: map[string][]byte{
		"app/db/password": []byte("the password"), "app/keys/one": []byte("0123456789abcdef"),
	}}
	server := httptest.NewTLSServer(b)
	defer server.Close()
	var secrets []Slot
	s, err := ParseServer("kbs="+server.URL+",pin="+PinOf(server.Certificate()).String(), nil)
	require.NoError(t, err)
	s.Resources = map[string]string{}
	for place, resource := range map[string]string{"env:DB": "app/db/password", "key:one": "app/keys/one"} {
		slot, err := ParseSlot(place)
		require.NoError(t, err)
		secrets = append(secrets, slot)
		s.Resources[place] = resource
	}
	ask := func(want ...Slot) (map[Slot]Secret, error) {
		b.attested = false
		return s.Ask(context.Background(), newKey(t), func(data [64]byte) ([]byte, error) { return data[:], nil }, want)
	}
	got, err := ask(secrets...)
	require.NoError(t, err)
	assert.Equal(t, "the password", string(got[Slot{KindEnv, "DB"}].Value))
	assert.Equal(t, "0123456789abcdef", string(got[Slot{KindKey, "one"}].Value))

	_, err = ask(Slot{KindEnv, "OTHER"})
	assert.ErrorIs(t, err, ErrAddress)
	assert.ErrorContains(t, err, "which resource is it?")
	_, err = ask(Slot{KindTLS, "/run/tls"})
	assert.ErrorContains(t, err, "sign no certificates")
	s.Resources["env:OTHER"] = "app/db/other"
	_, err = ask(Slot{KindEnv, "OTHER"})
	assert.ErrorIs(t, err, ErrRefused)
	s.Resources["key:short"] = "app/db/password"
	_, err = ask(Slot{KindKey, "short"})
	assert.ErrorIs(t, err, ErrProtocol, "a password is no key")
	for path, status := range map[string]error{
		"/kbs/v0/auth": ErrConnect, "/kbs/v0/attest": ErrConnect, "/kbs/v0/resource/app/db/password": ErrConnect,
	} {
		b.change = func(p string, w http.ResponseWriter) bool {
			if p == path {
				w.WriteHeader(http.StatusInternalServerError)
			}
			return p == path
		}
		_, err = ask(secrets...)
		assert.ErrorIs(t, err, status, path)
		b.change = func(p string, w http.ResponseWriter) bool {
			if p == path {
				_, _ = io.WriteString(w, "{}")
			}
			return p == path
		}
		_, err = ask(secrets...)
		assert.Error(t, err, path)
	}
	for _, bad := range []string{"app", "app/db", "app/../x", "app/db/a/b", "/app/db/x", "app/db/x?y"} {
		s.Resources["env:DB"] = bad
		assert.ErrorIs(t, s.Check(), ErrAddress, bad)
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

// provisioner is a server of Gramine's: one secret, for clients whose certificate has a quote of their key.
func provisioner(t *testing.T, answer func(c *tls.Conn)) (address string, certificate *x509.Certificate) {
	t.Helper()
	web := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: web.TLS.Certificates, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12,
	})
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			answer(c.(*tls.Conn))
			c.Close()
		}
	}()
	return l.Addr().String(), web.Certificate()
}

func provisioned(secret []byte) []byte {
	b := append([]byte("SECRET_PROVISION_RA_TLS_RESPONSE_V1:\x00"), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[len(b)-4:], uint32(len(secret)))
	return append(b, secret...)
}

func TestSecretProv(t *testing.T) {
	var evidence *ratls.Evidence
	reply := provisioned([]byte("0123456789abcdef"))
	address, certificate := provisioner(t, func(c *tls.Conn) {
		request := make([]byte, 35)
		_, err := io.ReadFull(c, request)
		if err != nil || string(request) != "SECRET_PROVISION_RA_TLS_REQUEST_V1\x00" {
			return
		}
		evidence, _ = ratls.Parse(c.ConnectionState().PeerCertificates[0])
		_, _ = c.Write(reply)
	})
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw}))
	s, err := ParseServer("secret-prov="+address+",ca=x,name=example.com", func(string) ([]byte, error) {
		return []byte(ca), nil
	})
	require.NoError(t, err)
	quote := func(data [64]byte) ([]byte, error) { return bytes.Repeat(data[:], 8), nil }
	slot := Slot{KindKey, "app"}
	ask := func() (Secret, error) {
		got, err := s.Ask(context.Background(), newKey(t), quote, []Slot{slot})
		return got[slot], err
	}
	got, err := ask()
	require.NoError(t, err)
	assert.Equal(t, "0123456789abcdef", string(got.Value))
	require.NotNil(t, evidence)
	assert.Equal(t, evidence.Data[:], evidence.Quote[:64], "the quote is about the certificate's key")
	assert.Nil(t, evidence.Nonce)

	for what, bad := range map[string][]byte{
		"another version": []byte(strings.Replace(string(reply), "V1:", "V2:", 1)),
		"no key":          provisioned([]byte("short")), "nothing": provisioned(nil),
		"too much": append([]byte("SECRET_PROVISION_RA_TLS_RESPONSE_V1:\x00"), 0xff, 0xff, 0xff, 0xff),
	} {
		reply = bad
		_, err := ask()
		assert.ErrorIs(t, err, ErrProtocol, what)
	}
	reply = nil // as a server does that does not accept the quote
	_, err = ask()
	assert.ErrorIs(t, err, ErrRefused)
	reply = provisioned([]byte("0123456789abcdef"))[:50]
	_, err = ask()
	assert.ErrorIs(t, err, ErrConnect)

	_, err = s.Ask(context.Background(), newKey(t), quote, []Slot{slot, {KindEnv, "A"}})
	assert.ErrorContains(t, err, "has one secret, and there are 2 places")
	s.Name = "another.example"
	_, err = ask()
	assert.ErrorIs(t, err, ErrIdentity)
	s.Name, s.CA, s.Pins = "", "", []Pin{{1}}
	_, err = ask()
	assert.ErrorIs(t, err, ErrIdentity)
	s.Pins = []Pin{PinOf(certificate)}
	reply = provisioned([]byte("0123456789abcdef"))
	_, err = ask()
	require.NoError(t, err)
	s.Address = closed(t)
	_, err = ask()
	assert.ErrorIs(t, err, ErrConnect)
	for _, bad := range []string{"host", "https://host:1", "host:1/x", "user@host:1", ""} {
		s.Address = bad
		assert.ErrorIs(t, s.Check(), ErrAddress, bad)
	}
	_, err = s.Ask(context.Background(), newKey(t), quote, nil)
	assert.Error(t, err)
}

// A server that does not accept the quote says so by an alert: in the handshake of TLS 1.2, after it in that of 1.3.
func TestSecretProvRefuses(t *testing.T) {
	web := httptest.NewTLSServer(http.NotFoundHandler())
	defer web.Close()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
			Certificates: web.TLS.Certificates, ClientAuth: tls.RequireAnyClientCert, MinVersion: version,
			MaxVersion:            version,
			VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { return errors.New("another enclave") },
		})
		require.NoError(t, err)
		go func() {
			c, err := l.Accept()
			if err == nil {
				_ = c.(*tls.Conn).Handshake()
				c.Close()
			}
		}()
		s := Server{Protocol: SecretProv, Address: l.Addr().String(), Pins: []Pin{PinOf(web.Certificate())}}
		quote := func(data [64]byte) ([]byte, error) { return bytes.Repeat(data[:], 8), nil }
		_, err = s.Ask(context.Background(), newKey(t), quote, []Slot{{KindEnv, "A"}})
		assert.ErrorIs(t, err, ErrRefused, "%x", version)
		l.Close()
	}
}

// Who is asked is shown as it is recognised: the name in the certificate, each authority by its digest.
func TestFrom(t *testing.T) {
	web := httptest.NewTLSServer(http.NotFoundHandler())
	defer web.Close()
	der := web.Certificate().Raw
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	slot := Slot{KindEnv, "A"}
	c := Config{Want: []Slot{slot}, Servers: []Server{
		{Address: "https://kms.example:1", CA: ca, Name: "other.example"},
		{
			Protocol: KBS, Address: "https://kbs.example:1", Pins: []Pin{{1}},
			Resources: map[string]string{"env:A": "a/b/c"},
		},
	}}
	sum := sha256.Sum256(der)
	assert.Equal(t, []string{
		"https://kms.example:1 (authority other.example@sha256:" + hex.EncodeToString(sum[:]) + ")",
		"kbs https://kbs.example:1 (pin=" + Pin{1}.String() + ", env:A=a/b/c)",
	}, c.From())
	c.Servers[0].Name = ""
	assert.Equal(t, []string{"kms.example@sha256:" + hex.EncodeToString(sum[:])}, c.Servers[0].Identities())
	for _, bad := range []string{"https://kms\u2028.example:1", "https://k\u00e4se.example:1", "https://a b:1"} {
		s := Server{Address: bad, Pins: []Pin{{1}}}
		assert.ErrorIs(t, s.Check(), ErrAddress, "%q", bad)
	}
	for _, bad := range []string{"file:/run/a/b\u2028c", "file:/run/a/b\u0085c", "tls:/run/\u2029"} {
		_, err := ParseSlot(bad)
		assert.ErrorIs(t, err, ErrSlot, "%q", bad)
	}
}

// closed is an address at which nobody listens.
func closed(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

func FuzzJWE(f *testing.F) {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"protected":"e30","encrypted_key":"","iv":"","ciphertext":"","tag":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := openJWE(b, key); err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatal(err)
		}
	})
}
