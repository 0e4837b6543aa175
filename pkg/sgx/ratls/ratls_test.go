package ratls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// vectors are certificates by other programs, which are beside the checkout where it is tested.
const vectors = "../../../../shared/vectors/quotes/"

func parsed(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectors, name))
	if err != nil && os.Getenv("CI") == "" {
		t.Skip("the certificates are not here")
	}
	require.NoError(t, err)
	c, err := x509.ParseCertificate(b)
	require.NoError(t, err)
	return c
}

// The quotes of these are zeros, but for the report data.
func TestOthers(t *testing.T) {
	agent, gramine := parsed(t, "agent-ratls-fakequote.der"), parsed(t, "gramine-style-ratls.der")
	older := *gramine
	older.Extensions = slices.DeleteFunc(slices.Clone(gramine.Extensions), func(e pkix.Extension) bool {
		return e.Id.Equal(oidDICE)
	})
	for _, c := range []struct {
		certificate *x509.Certificate
		form        string
	}{{agent, FormDICE}, {gramine, FormDICE}, {&older, FormLegacy}} {
		e, err := Parse(c.certificate)
		require.NoError(t, err)
		assert.Equal(t, c.form, e.Form)
		const reportData = 368
		require.Greater(t, len(e.Quote), reportData+64)
		assert.Equal(t, e.Data[:], e.Quote[reportData:reportData+64], "as its maker has it")
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return k
}

// with makes a certificate of extensions.
func with(t testing.TB, key *ecdsa.PrivateKey, list ...pkix.Extension) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), ExtraExtensions: list,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	c, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return c
}

func request(t testing.TB, key *ecdsa.PrivateKey, nonce []byte) *Request {
	t.Helper()
	r, err := NewRequest(key, nonce)
	require.NoError(t, err)
	return r
}

func encoded(t testing.TB, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	require.NoError(t, err)
	return b
}

func evidence(t testing.TB, tag uint64, parts ...[]byte) pkix.Extension {
	t.Helper()
	return pkix.Extension{Id: oidDICE, Value: encoded(t, cbor.RawTag{Number: tag, Content: encoded(t, parts)})}
}

func TestOwn(t *testing.T) {
	key, quote, nonce := newKey(t), bytes.Repeat([]byte{7}, 5000), []byte("0123456789abcdef0123456789abcdef")
	r := request(t, key, nonce)
	der, err := r.Certificate(quote)
	require.NoError(t, err)
	c, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	e, err := Parse(c)
	require.NoError(t, err)
	assert.Equal(t, &Evidence{Form: FormDICE, Quote: quote, Data: r.Data, Nonce: nonce}, e)
	assert.Zero(t, [32]byte(e.Data[32:]))
	_, err = NewRequest(key, make([]byte, maxNonce+1))
	require.Error(t, err)
	plain := request(t, key, nil)
	assert.Len(t, plain.claims, 51, "as in the facts of Gramine's")
}

// What does not show beyond doubt that the quote is about the key.
func TestRefused(t *testing.T) {
	key, other, quote := newKey(t), newKey(t), []byte("quote")
	r, foreign := request(t, key, nil), request(t, other, nil)
	good, err := r.Extension(quote)
	require.NoError(t, err)
	theirs, err := foreign.Extension(quote)
	require.NoError(t, err)
	legacy := pkix.Extension{Id: oidLegacy, Value: quote}
	odd := pkix.Extension{Id: oidGramine, Value: quote}
	name := func(algorithm uint64, value []byte) []byte {
		return encoded(t, map[string][]byte{"pubkey-hash": encoded(t, hash{Algorithm: algorithm, Value: value})})
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	require.NoError(t, err)
	sum := sha256.Sum256(public)
	more := func(name string, value any) []byte {
		return encoded(t, map[string]any{
			"pubkey-hash": encoded(t, hash{Algorithm: algorithmSHA256, Value: sum[:]}), name: value,
		})
	}
	twice := append([]byte{0xa2}, bytes.Repeat(r.claims[1:], 2)...)
	indefinite := append(append([]byte{0xbf}, r.claims[1:]...), 0xff)
	for what, list := range map[string][]pkix.Extension{
		"nothing":                    nil,
		"two older ones":             {legacy, odd},
		"another key":                {theirs},
		"another key, and older one": {theirs, legacy},
		"no CBOR":                    {{Id: oidDICE, Value: []byte("x")}},
		"another tag":                {evidence(t, 60001, quote, r.claims)},
		"no claims":                  {evidence(t, tagEvidence, quote)},
		"three parts":                {evidence(t, tagEvidence, quote, r.claims, quote)},
		"claims without the key":     {evidence(t, tagEvidence, quote, encoded(t, map[string][]byte{"nonce": {1}}))},
		"no map":                     {evidence(t, tagEvidence, quote, encoded(t, "claims"))},
		"the key twice":              {evidence(t, tagEvidence, quote, twice)},
		"indefinite length":          {evidence(t, tagEvidence, quote, indefinite)},
		"bytes behind":               {evidence(t, tagEvidence, quote, append(bytes.Clone(r.claims), 0))},
		"unknown digest":             {evidence(t, tagEvidence, quote, name(2, make([]byte, 15)))},
		"a short digest":             {evidence(t, tagEvidence, quote, name(algorithmSHA256, nil))},
		"too long a quote":           {evidence(t, tagEvidence, make([]byte, maxQuote+1), r.claims)},
		"too long an older one":      {{Id: oidLegacy, Value: make([]byte, maxQuote+1)}},
		"too long claims":            {evidence(t, tagEvidence, quote, more("other", make([]byte, maxClaims)))},
		"a number for a nonce":       {evidence(t, tagEvidence, quote, more("nonce", 1))},
		"too long a nonce":           {evidence(t, tagEvidence, quote, more("nonce", make([]byte, maxNonce+1)))},
	} {
		_, err := Parse(with(t, key, list...))
		assert.ErrorIs(t, err, ErrCertificate, what)
	}
	// And what is no fault.
	for what, list := range map[string][]pkix.Extension{
		"both forms":       {good, legacy},
		"another claim":    {evidence(t, tagEvidence, quote, more("other", 1))},
		"other extensions": {{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}, odd},
	} {
		_, err := Parse(with(t, key, list...))
		assert.NoError(t, err, what)
	}
}

func TestDial(t *testing.T) {
	key := newKey(t)
	der, err := request(t, key, nil).Certificate([]byte("quote"))
	require.NoError(t, err)
	var asked string
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			asked = h.ServerName
			return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
		},
	})
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	c, err := Dial(t.Context(), l.Addr().String(), DialOptions{ServerName: "app.example"})
	require.NoError(t, err)
	assert.Equal(t, der, c.Raw)
	assert.Equal(t, "app.example", asked)

	_, err = Dial(t.Context(), "127.0.0.1", DialOptions{})
	require.ErrorIs(t, err, ErrEndpoint)

	// One that has the certificate of another.
	stolen, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: newKey(t)}},
	})
	require.NoError(t, err)
	defer stolen.Close()
	go func() {
		c, err := stolen.Accept()
		if err == nil {
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	_, err = Dial(t.Context(), stolen.Addr().String(), DialOptions{})
	require.ErrorIs(t, err, ErrEndpoint)

	// One that says nothing.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	begin := time.Now()
	_, err = Dial(t.Context(), silent.Addr().String(), DialOptions{Timeout: 200 * time.Millisecond})
	require.ErrorIs(t, err, ErrEndpoint)
	assert.Less(t, time.Since(begin), 5*time.Second)
}

func FuzzRATLS(f *testing.F) {
	key := newKey(f)
	r := request(f, key, []byte("nonce"))
	good, err := r.Extension([]byte("quote"))
	require.NoError(f, err)
	f.Add(good.Value, true)
	f.Add([]byte("quote"), false)
	f.Fuzz(func(t *testing.T, value []byte, dice bool) {
		id := oidLegacy
		if dice {
			id = oidDICE
		}
		c := with(t, key, pkix.Extension{Id: id, Value: value})
		e, err := Parse(c)
		if err != nil {
			return
		}
		// Nothing names this key but its own digest.
		sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
		wide, widest := sha512.Sum384(c.RawSubjectPublicKeyInfo), sha512.Sum512(c.RawSubjectPublicKeyInfo)
		named := bytes.Contains(value, sum[:]) || bytes.Contains(value, wide[:]) || bytes.Contains(value, widest[:])
		if dice && !named {
			t.Fatal("accepted without the key")
		}
		if !dice && (!bytes.Equal(e.Quote, value) || !bytes.Equal(e.Data[:32], sum[:])) {
			t.Fatal("accepted without the key")
		}
	})
}
