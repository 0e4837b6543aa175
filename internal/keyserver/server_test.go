package keyserver

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
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
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
	"github.com/cconvert/cconvert/pkg/sgx/ratls"
)

// owner is a server with its policies and secrets, and a machine whose enclaves ask it.
type owner struct {
	t       *testing.T
	machine *simulated.Platform
	report  quote.Report
	policy  *Policy
	store   *Directory
	dir     string
	log     string
	server  *Server
	address string
	mu      sync.Mutex
	now     time.Time
	key     *ecdsa.PrivateKey
	end     context.CancelFunc
}

const canary = "the password that nobody may see"

func newOwner(t *testing.T, change ...func(*Options)) *owner {
	t.Helper()
	o := &owner{t: t, now: time.Unix(1_790_000_000, 0).UTC(), dir: t.TempDir()}
	var err error
	o.machine, err = simulated.New("a test", o.now.AddDate(0, 0, -10))
	require.NoError(t, err)
	o.key = newKey(t)
	enclave, signer := sgx.Measurement{1}, sgx.Measurement{2}
	o.report = quote.Report{
		MREnclave: enclave, MRSigner: signer, ISVProdID: 7, ISVSVN: 3, Attributes: sgx.Attributes{Flags: 5, XFRM: 7},
	}
	o.policy = &Policy{
		Version: PolicyVersion, name: "app",
		Enclave: Enclave{
			By: attest.ByEnclave, MREnclave: &enclave, MRSigner: signer, ISVProdID: 7, MinISVSVN: 3,
			Flags: Masked{4, ^uint64(0)},
			XFRM:  Masked{3, 3}, MiscSelect: Masked{0, 0xffffffff},
		},
		Secrets: map[string]Grant{
			"env:PASSWORD": {Secret: "password"}, "key:app": {Secret: "files"},
			"file:/run/secrets/token": {Secret: "token"}, "tls:/run/tls": {Names: []string{"app.example"}},
		},
	}
	require.NoError(t, o.policy.check())
	keyFile := filepath.Join(o.dir, "store.key")
	require.NoError(t, CreateKey(keyFile))
	o.store, err = OpenDirectory(t.Context(), filepath.Join(o.dir, "store"), keyFile, nil)
	require.NoError(t, err)
	for name, value := range map[string]string{"password": canary, "token": "a\x00b", "files": "0123456789abcdef"} {
		require.NoError(t, o.store.Put(t.Context(), name, []byte(value)))
	}
	o.log = filepath.Join(o.dir, "log")
	l, err := OpenLog(o.log)
	require.NoError(t, err)
	options := Options{
		Store: o.store, Log: l, Policies: func() ([]*Policy, error) { return []*Policy{o.policy}, nil },
		Verify: func(_ context.Context, q *quote.Quote, qo quote.Options) (*quote.Result, error) {
			o.mu.Lock()
			defer o.mu.Unlock()
			c, err := o.machine.Collateral()
			if err != nil {
				return nil, err
			}
			return q.Verify(c, qo)
		},
		Now: func() time.Time { o.mu.Lock(); defer o.mu.Unlock(); return o.now }, root: o.machine.Root.Certificate,
	}
	for _, c := range change {
		c(&options)
	}
	o.server, err = New(t.Context(), options)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	o.address = "https://" + listener.Addr().String()
	ctx, end := context.WithCancel(context.Background())
	o.end = end
	done := make(chan struct{})
	go func() { defer close(done); assert.NoError(t, o.server.Serve(ctx, listener)) }()
	t.Cleanup(func() { end(); <-done; l.Close() })
	return o
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return k
}

func (o *owner) client() *release.Server {
	o.t.Helper()
	pin, err := o.server.Pin()
	require.NoError(o.t, err)
	return &release.Server{Address: o.address, Pins: []release.Pin{pin}, Timeout: 20 * time.Second}
}

// quote has the machine report the enclave.
func (o *owner) quote(data [64]byte) ([]byte, error) {
	o.report.Data = data
	o.machine.Set(&o.report)
	return o.machine.Quote()
}

func slots(texts ...string) (list []release.Slot) {
	for _, text := range texts {
		s, err := release.ParseSlot(text)
		if err != nil {
			panic(err)
		}
		list = append(list, s)
	}
	return list
}

var all = slots("env:PASSWORD", "key:app", "file:/run/secrets/token", "tls:/run/tls")

func (o *owner) ask(want []release.Slot) (map[release.Slot]release.Secret, error) {
	return o.client().Ask(o.t.Context(), o.key, o.quote, want)
}

// decisions are what the log has, whose chain is whole.
func (o *owner) decisions() (list []Decision) {
	o.t.Helper()
	f, err := os.Open(o.log)
	require.NoError(o.t, err)
	defer f.Close()
	_, _, err = CheckLog(f, func(d *Decision, _ string) { list = append(list, *d) })
	require.NoError(o.t, err)
	return list
}

func TestReleased(t *testing.T) {
	o := newOwner(t)
	got, err := o.ask(all)
	require.NoError(t, err)
	require.Len(t, got, 4)
	assert.Equal(t, canary, string(got[all[0]].Value))
	assert.Equal(t, "a\x00b", string(got[all[2]].Value))

	// The certificate is for the attested key, by the server's authority, with the quote in it.
	text, err := Authority(t.Context(), o.store, o.now)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(text))
	block, _ := pem.Decode([]byte(got[all[3]].Certificate))
	c, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	_, err = c.Verify(x509.VerifyOptions{Roots: roots, DNSName: "app.example", CurrentTime: o.now})
	require.NoError(t, err)
	assert.True(t, o.key.PublicKey.Equal(c.PublicKey))
	e, err := ratls.Parse(c)
	require.NoError(t, err)
	q, err := quote.Parse(e.Quote)
	require.NoError(t, err)
	assert.Equal(t, e.Data, q.Report.Data)

	list := o.decisions()
	require.Len(t, list, 1)
	assert.True(t, list[0].Released)
	assert.Equal(t, "app", list[0].Policy)
	assert.Equal(t, o.report.MREnclave, *list[0].MREnclave)
	assert.Equal(t, []string{"env:PASSWORD", "key:app", "file:/run/secrets/token", "tls:/run/tls"}, list[0].Want)
	log, err := os.ReadFile(o.log)
	require.NoError(t, err)
	assert.NotContains(t, string(log), canary)

	// Some of it is enough; the server is the same after a restart.
	_, err = o.ask(slots("env:PASSWORD"))
	require.NoError(t, err)
	pin, err := o.server.Pin()
	require.NoError(t, err)
	again, err := New(t.Context(), o.server.o)
	require.NoError(t, err)
	other, err := again.Pin()
	require.NoError(t, err)
	assert.Equal(t, pin, other)
}

// raw is a request by hand.
type raw struct {
	*owner
	key, certificateKey crypto.Signer
	nonce               []byte
	data                func(*[64]byte)
	certificate         func(*ratls.Request, []byte) ([]byte, error)
	body                []byte
	none                bool // no certificate
}

func (o *owner) raw() *raw {
	return &raw{owner: o, key: o.key, certificateKey: o.key, nonce: o.server.nonces.next()}
}

func (r *raw) send() (status int, body string) {
	r.t.Helper()
	request, err := ratls.NewRequest(r.key, r.nonce)
	require.NoError(r.t, err)
	data := request.Data
	if r.data != nil {
		r.data(&data)
	}
	q, err := r.quote(data)
	require.NoError(r.t, err)
	make := (*ratls.Request).Certificate
	if r.certificate != nil {
		make = r.certificate
	}
	der, err := make(request, q)
	require.NoError(r.t, err)
	if r.body == nil {
		r.body, err = json.Marshal(release.Request{Version: 1, Want: all})
		require.NoError(r.t, err)
	}
	config := &tls.Config{InsecureSkipVerify: true}
	if !r.none {
		config.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: r.certificateKey}}
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	resp, err := client.Post(r.address+release.PathRelease, "application/json", bytes.NewReader(r.body))
	if err != nil {
		r.t.Logf("no answer: %v", err)
		return 0, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(r.t, err)
	return resp.StatusCode, string(b)
}

// Nothing is released in any of these, nobody learns why, and the log says it.
func TestAttacks(t *testing.T) {
	levels := func(svn int, s quote.Status) func(*raw) {
		return func(r *raw) { r.machine.Levels = simulated.Level(svn, 10, s) }
	}
	body := func(text string) func(*raw) { return func(r *raw) { r.body = []byte(text) } }
	want := func(list ...string) func(*raw) {
		text, err := json.Marshal(map[string]any{"version": 1, "want": list})
		require.NoError(t, err)
		return body(string(text))
	}
	type authority = simulated.Authority
	revoke := func(of func(*raw) authority) func(*raw) {
		return func(r *raw) { r.machine.Revoked = append(r.machine.Revoked, of(r).Certificate) }
	}
	grant := func(slot int, secret string) func(*raw) {
		return func(r *raw) { r.policy.slots[all[slot]] = Grant{Secret: secret} }
	}
	other := newKey(t)
	for what, c := range map[string]struct {
		change func(*raw)
		reason string // empty: the connection fails
	}{
		"no certificate":            {func(r *raw) { r.none = true }, "it has no certificate"},
		"another's certificate":     {func(r *raw) { r.certificateKey = other }, ""},
		"no nonce":                  {func(r *raw) { r.nonce = nil }, "the nonce is not"},
		"a nonce of one's own":      {func(r *raw) { r.nonce = make([]byte, 32) }, "the nonce is not"},
		"a nonce that was changed":  {func(r *raw) { r.nonce[9] ^= 1 }, "the nonce is not"},
		"a nonce made older":        {func(r *raw) { r.nonce[0] ^= 1 }, "the nonce is not"},
		"a longer nonce":            {func(r *raw) { r.nonce = append(r.nonce, 0) }, "the nonce is not"},
		"a nonce that was used":     {func(r *raw) { r.server.nonces.use(r.nonce) }, "the nonce was used before"},
		"a nonce that is old":       {func(r *raw) { r.now = r.now.Add(2 * time.Minute) }, "the nonce is not"},
		"a nonce of another server": {func(r *raw) { r.nonce = newNonces(r.server.o.Now).next() }, "the nonce is not"},
		"a quote over another key": {
			func(r *raw) { r.data = func(d *[64]byte) { d[0] ^= 1 } }, "the quote is about another key",
		},
		"a quote with more behind the digest": {
			func(r *raw) { r.data = func(d *[64]byte) { d[63] = 1 } }, "the quote is about another key",
		},
		"a quote of another's key": {func(r *raw) {
			r.certificate = func(_ *ratls.Request, q []byte) ([]byte, error) {
				victim, err := ratls.NewRequest(other, r.nonce)
				require.NoError(t, err)
				e, err := victim.Extension(q)
				require.NoError(t, err)
				return selfSignedWith(r.key, e)
			}
		}, "name another key"},
		"no quote": {func(r *raw) {
			r.certificate = func(*ratls.Request, []byte) ([]byte, error) { return selfSignedWith(r.key) }
		}, "it has no quote"},
		"no quote but zeros": {func(r *raw) {
			r.certificate = func(q *ratls.Request, _ []byte) ([]byte, error) {
				return q.Certificate(make([]byte, 5000))
			}
		}, "format: "},
		"another MRENCLAVE":           {func(r *raw) { r.report.MREnclave[31] ^= 1 }, "another MRENCLAVE"},
		"another signer":              {func(r *raw) { r.report.MRSigner[0] ^= 1 }, "another MRSIGNER"},
		"another product":             {func(r *raw) { r.report.ISVProdID++ }, "another product"},
		"an older security version":   {func(r *raw) { r.report.ISVSVN-- }, "the SVN is 2"},
		"a debug enclave":             {func(r *raw) { r.report.Attributes.Flags |= 2 }, "a debugger can read it"},
		"a key for provisioning":      {func(r *raw) { r.report.Attributes.Flags |= 0x10 }, "attributes that"},
		"a key for launching":         {func(r *raw) { r.report.Attributes.Flags |= 0x20 }, "attributes that"},
		"an enclave not initialised":  {func(r *raw) { r.report.Attributes.Flags = 4 }, "no enclave that runs"},
		"another extended state":      {func(r *raw) { r.report.Attributes.XFRM = 1 }, "attributes that"},
		"a platform out of date":      {levels(5, quote.OutOfDate), "the platform is OutOfDate"},
		"one that lacks a setting":    {levels(5, quote.ConfigurationNeeded), "the platform is ConfigurationNeeded"},
		"a revoked platform":          {levels(5, quote.Revoked), "the platform is revoked"},
		"one older than all levels":   {levels(6, quote.UpToDate), "older than all levels"},
		"a revoked certificate":       {revoke(func(r *raw) authority { return r.machine.PCK }), "is revoked"},
		"a revoked authority":         {revoke(func(r *raw) authority { return r.machine.CA }), "is revoked"},
		"a revoked signer":            {revoke(func(r *raw) authority { return r.machine.TCB }), "is revoked"},
		"collateral that has expired": {func(r *raw) { r.machine.Issued = r.now.AddDate(0, -3, 0) }, "tcb-info: "},
		"an old quoting enclave":      {func(r *raw) { r.machine.QE[258] = 3 }, "the platform is revoked"},
		"another quoting enclave":     {func(r *raw) { r.machine.QE[128] ^= 1 }, "qe: "},
		"a report by another key":     {func(r *raw) { r.machine.SignReport = other }, "signature: "},
		"a platform of no authority":  {func(r *raw) { r.machine.SignQE = other }, "qe-report: "},
		"another root": {func(r *raw) {
			strange, err := simulated.New("another", r.now.Add(-time.Hour))
			require.NoError(t, err)
			*r.machine = *strange
		}, "its root is not Intel's"},
		"the platform that everybody knows": {func(r *raw) {
			known, err := simulated.Known(r.now.Add(-time.Hour))
			require.NoError(t, err)
			*r.machine = *known
		}, "a simulated one, which anybody can make"},
		"a secret that is not granted": {want("env:PASSWORD", "env:OTHER"), "does not grant env:OTHER"},
		"a secret in another place":    {want("file:/run/secrets/password"), "does not grant file:"},
		"nothing":                      {want(), "wants 0 secrets"},
		"a slot twice":                 {want("env:PASSWORD", "env:PASSWORD"), "named twice"},
		"a file of the system":         {want("file:/etc/passwd"), "is the system's"},
		"a path that leads elsewhere":  {want("file:/run/secrets/../token"), "an absolute path"},
		"a kind that there is not":     {want("exec:sh"), "its kind is"},
		"another version":              {body(`{"version":2,"want":["env:PASSWORD"]}`), "of the version 2"},
		"no JSON":                      {body(`want`), "not a message"},
		"a key twice":                  {body(`{"version":1,"want":["env:X"],"want":["env:Y"]}`), "not a message"},
		"a request that does not end":  {body(strings.Repeat(" ", release.MaxRequest+1)), "more than 65536 bytes"},
		"a secret that is not there":   {grant(0, "gone"), "there is no such secret"},
		"a key of another length":      {grant(1, "password"), "not a key of 16 bytes"},
		"a zero byte for a variable":   {grant(0, "token"), "has a zero byte"},
		"an evaluation that is too old": {
			func(r *raw) { r.policy.Platform.MinEvaluation = 18 }, "Intel's evaluation is 17",
		},
		"a policy that was taken away": {
			func(r *raw) { r.server.policies.Store(&[]*Policy{}) }, "no policy accepts it",
		},
		"a log that cannot be written": {func(r *raw) { r.server.o.Log.Close() }, "-"},
		"a policy about simulated ones": {
			func(r *raw) { r.policy.Enclave.Simulated = true }, "about simulated enclaves",
		},
		"a secret changed in the store": {func(r *raw) { r.damage("password.age") }, "cannot be decrypted"},
		"a secret in another's place": {
			func(r *raw) { r.replace("password.age", "_authority.age") }, "it is another secret",
		},
		"too many bytes together": {func(r *raw) {
			require.NoError(t, r.store.Put(t.Context(), "password", bytes.Repeat([]byte("x"), MaxSecret)))
			for i := range r.policy.slots {
				if i.Kind != release.KindTLS {
					r.policy.slots[i] = Grant{Secret: "password"}
				}
			}
			r.body = []byte(`{"version":1,"want":["env:PASSWORD","file:/run/secrets/token","env:B"]}`)
			r.policy.slots[release.Slot{Kind: "env", Name: "B"}] = Grant{Secret: "password"}
		}, "bytes together"},
		"a secret of another store's key": {func(r *raw) {
			file := filepath.Join(r.dir, "store/password.age")
			require.NoError(t, os.WriteFile(file, []byte("age-encryption.org/v1\n"), 0o600))
		}, "cannot be decrypted"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			o := newOwner(t)
			r := o.raw()
			c.change(r)
			status, answer := r.send()
			if c.reason == "" {
				assert.Zero(t, status)
				assert.Empty(t, o.decisions())
				return
			}
			assert.Equal(t, release.Refusal+"\n", answer, "and no word more")
			if c.reason == "-" {
				assert.Equal(t, http.StatusServiceUnavailable, status)
				return
			}
			assert.Equal(t, http.StatusForbidden, status)
			list := o.decisions()
			require.Len(t, list, 1)
			assert.False(t, list[0].Released)
			assert.Contains(t, list[0].Reason, c.reason)
		})
	}
}

func (r *raw) damage(file string) {
	file = filepath.Join(r.dir, "store", file)
	b, err := os.ReadFile(file)
	require.NoError(r.t, err)
	b[len(b)-1] ^= 1
	require.NoError(r.t, os.WriteFile(file, b, 0o600))
}

// replace puts what is kept under a name in the place of another.
func (r *raw) replace(file, by string) {
	b, err := os.ReadFile(filepath.Join(r.dir, "store", by))
	require.NoError(r.t, err)
	require.NoError(r.t, os.WriteFile(filepath.Join(r.dir, "store", file), b, 0o600))
}

// Who proves nothing can neither use up nonces, nor have much written, nor keep what is released from being written.
func TestStrangers(t *testing.T) {
	o := newOwner(t)
	r := o.raw()
	r.machine.SignReport = newKey(t)
	want := make([]string, release.MaxSlots)
	for i := range want {
		want[i] = fmt.Sprintf("file:/run/%d/%s", i, strings.Repeat("<", 30)) // what is too long is not read to its end
	}
	var err error
	r.body, err = json.Marshal(map[string]any{"version": 1, "want": want})
	require.NoError(t, err)
	for range 3 {
		status, _ := r.send() // with the same nonce
		require.Equal(t, http.StatusForbidden, status)
	}
	r.machine.SignReport = nil
	r.body = nil
	status, _ := r.send()
	assert.Equal(t, http.StatusOK, status, "the nonce was not used up")
	info, err := os.Stat(o.log)
	require.NoError(t, err)
	assert.Less(t, info.Size(), int64(4000))
	assert.Len(t, o.decisions(), 4)
	for range strangersBurst {
		o.server.refused(Decision{Reason: "x"})
	}
	o.server.refused(Decision{Reason: "x", MREnclave: &sgx.Measurement{}})
	list := o.decisions()
	last := list[len(list)-1]
	assert.NotNil(t, last.MREnclave)
	assert.InDelta(t, 3, last.Unwritten, 2)

	// What is released is in no answer to others.
	assert.Equal(t, http.StatusNotFound, o.get("/metrics"))
	w := httptest.NewRecorder()
	o.server.Status().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	assert.Contains(t, w.Body.String(), `cconvert_release_decisions_total{decision="released"} 1`)
	assert.Contains(t, w.Body.String(), `cconvert_release_collateral_expires_timestamp_seconds{fmspc="00906ea10000"}`)
}

func (o *owner) get(path string) int {
	o.t.Helper()
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Get(o.address + path)
	require.NoError(o.t, err)
	resp.Body.Close()
	return resp.StatusCode
}

func TestNetworkOf(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1:5": "192.0.2.1", "[::ffff:192.0.2.1]:5": "192.0.2.1", "[2001:db8::1]:5": "2001:db8::/64",
		"[2001:db8::2:3]:5": "2001:db8::/64", "[fe80::1%eth0]:5": "fe80::/64",
	} {
		assert.Equal(t, want, networkOf(address1(address)), address)
	}
}

type address1 string

func (a address1) Network() string { return "tcp" }
func (a address1) String() string  { return string(a) }

// What a policy does not say is not left to whoever reads it.
func TestPolicies(t *testing.T) {
	const good = "version = 1\n[enclave]\nby = \"signer\"\nmr_signer = \"" +
		"0200000000000000000000000000000000000000000000000000000000000000\"\nisv_prod_id = 0\nmin_isv_svn = 0\n" +
		"flags = \"0x4/0xffffffffffffffff\"\nxfrm = \"0x3/0x3\"\nmisc_select = \"0x0/0xffffffff\"\n" +
		"[secrets]\n\"env:A\" = {secret = \"a\"}\n"
	_, err := ParsePolicy([]byte(good))
	require.NoError(t, err)
	for old, replaced := range map[string]string{
		"by = \"signer\"\n": "", "by = \"signer\"": "by = \"enclave\"", "flags = \"0x4/0xffffffffffffffff\"\n": "",
		"xfrm = \"0x3/0x3\"\n": "", "0x3/0x3": "0x3/0x3\\njunk", "version = 1": "version = 2", "0x0/0xffffffff": "0x0",
		"mr_signer = \"02": "mr_signer = \"00", "[secrets]\n\"env:A\" = {secret = \"a\"}\n": "",
		"env:A": "env:PATH", "{secret = \"a\"}": "{secret = \"_authority\"}", "secret = \"a\"": "secret = \"../a\"",
		"\"env:A\" = {secret = \"a\"}": "\"tls:/run/tls\" = {names = [\"a b\"]}", "min_isv_svn": "min_isv_svnn",
	} {
		require.Contains(t, good, old)
		_, err := ParsePolicy([]byte(strings.Replace(good, old, replaced, 1)))
		assert.ErrorIs(t, err, ErrPolicy, "%q for %q", replaced, old)
	}
}

func TestByPolicy(t *testing.T) {
	// A platform that is out of date, which the owner has accepted for a time.
	o := newOwner(t)
	o.machine.Levels = simulated.Level(5, 10, quote.OutOfDate) // of 2026-01-01
	o.policy.Platform = Platform{AcceptTCB: []quote.Status{quote.OutOfDate}, MinTCBDate: "2025-06-01"}
	require.NoError(t, o.policy.check())
	_, err := o.ask(all)
	require.NoError(t, err)
	o.policy.Platform.MinTCBDate = "2026-06-01"
	require.NoError(t, o.policy.check())
	_, err = o.ask(all)
	require.ErrorIs(t, err, release.ErrRefused)

	// Later versions of the same signer.
	o = newOwner(t)
	o.policy.Enclave.By, o.policy.Enclave.MREnclave = attest.BySigner, nil
	require.NoError(t, o.policy.check())
	o.report.MREnclave, o.report.ISVSVN = sgx.Measurement{9}, 4
	_, err = o.ask(all)
	require.NoError(t, err)

	// Simulated ones, if server and policy say so.
	o = newOwner(t, func(o *Options) { o.AllowSimulated = true })
	known, err := simulated.Known(o.now)
	require.NoError(t, err)
	*o.machine = *known
	_, err = o.ask(all)
	require.ErrorIs(t, err, release.ErrRefused)
	assert.Contains(t, o.decisions()[0].Reason, "the quote is a simulated one")
	o.policy.Enclave.Simulated = true
	_, err = o.ask(all)
	require.NoError(t, err)
	assert.True(t, o.decisions()[1].Simulated)
}

// The client sends nothing to a server that is not the expected one, and takes nothing that it did not ask for.
func TestClient(t *testing.T) {
	o := newOwner(t)
	asked := false
	quote := func([64]byte) ([]byte, error) { asked = true; return nil, nil }
	s := o.client()
	s.Pins[0][0] ^= 1
	_, err := s.Ask(t.Context(), o.key, quote, all)
	require.ErrorIs(t, err, release.ErrIdentity)
	assert.False(t, asked)

	s.Pins, s.CA = nil, string(o.pem(t))
	_, err = s.Ask(t.Context(), o.key, o.quote, all)
	require.ErrorIs(t, err, release.ErrIdentity, "another name")

	s = o.client()
	_, err = s.Ask(t.Context(), o.key, func([64]byte) ([]byte, error) { return nil, os.ErrPermission }, all)
	require.ErrorIs(t, err, release.ErrQuote)
	o.end()
	time.Sleep(50 * time.Millisecond)
	_, err = s.Ask(t.Context(), o.key, o.quote, all)
	require.ErrorIs(t, err, release.ErrConnect)
	for _, bad := range []release.Server{
		{}, {Address: "http://h", Pins: s.Pins}, {Address: "https://h/x", Pins: s.Pins}, {Address: "https://h"},
		{Address: "https://h", CA: "x"}, {Address: "https://u@h", Pins: s.Pins},
		{Address: "https://h", Pins: s.Pins, CA: string(o.pem(t))},
	} {
		_, err := bad.Ask(t.Context(), o.key, quote, all)
		assert.ErrorIs(t, err, release.ErrAddress, bad)
	}
}

func (o *owner) pem(t *testing.T) []byte {
	t.Helper()
	text, err := Authority(t.Context(), o.store, o.now)
	require.NoError(t, err)
	return text
}

// Many at once are served or closed, and those who hold connections open do not keep others out for long.
func TestMany(t *testing.T) {
	o := newOwner(t)
	var held []net.Conn
	for range maxPerAddress + 10 {
		c, err := net.Dial("tcp", strings.TrimPrefix(o.address, "https://"))
		require.NoError(t, err)
		held = append(held, c)
	}
	time.Sleep(100 * time.Millisecond)
	closed := 0
	for _, c := range held {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			closed++
		}
	}
	assert.Equal(t, 10, closed)
	_, err := o.ask(slots("env:PASSWORD"))
	require.ErrorIs(t, err, release.ErrConnect)
	for _, c := range held {
		c.Close()
	}
	require.Eventually(t, func() bool { _, err := o.ask(slots("env:PASSWORD")); return err == nil }, 10*time.Second,
		50*time.Millisecond)
}

// A server that cannot find out refuses nobody for good.
func TestUnavailable(t *testing.T) {
	o := newOwner(t, func(o *Options) {
		o.Verify = func(context.Context, *quote.Quote, quote.Options) (*quote.Result, error) {
			return nil, errors.New("no collateral")
		}
	})
	_, err := o.ask(all)
	require.ErrorIs(t, err, release.ErrConnect)
	list := o.decisions()
	require.Len(t, list, 1)
	assert.Contains(t, list[0].Reason, "no collateral")
}

func TestReload(t *testing.T) {
	o := newOwner(t)
	fails := false
	o.server.o.Policies = func() ([]*Policy, error) {
		if fails {
			return nil, ErrPolicy
		}
		return nil, nil
	}
	fails = true
	require.ErrorIs(t, o.server.Reload(), ErrPolicy)
	_, err := o.ask(all)
	require.NoError(t, err, "those that were read before stay in force")
	fails = false
	require.NoError(t, o.server.Reload())
	_, err = o.ask(all)
	require.ErrorIs(t, err, release.ErrRefused)
}

func TestLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	l, err := OpenLog(file)
	require.NoError(t, err)
	for i := range 3 {
		require.NoError(t, l.Append(Decision{Reason: fmt.Sprint(i)}))
	}
	require.NoError(t, l.Close())
	require.ErrorIs(t, l.Append(Decision{}), os.ErrClosed)
	l, err = OpenLog(file)
	require.NoError(t, err)
	_, err = OpenLog(file)
	require.ErrorContains(t, err, "another server writes it")
	require.NoError(t, l.Append(Decision{Reason: "3"}))
	require.Error(t, l.Append(Decision{Reason: strings.Repeat("x", maxLine)}))
	require.NoError(t, l.Close())
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	lines := bytes.SplitAfter(text, []byte("\n"))[:4]
	for what, changed := range map[string][][]byte{
		"a line taken out": {lines[0], lines[2], lines[3]}, "the first": lines[1:],
		"no end of the last":   {lines[0], lines[1], lines[2], bytes.TrimSpace(lines[3])},
		"another end of lines": {lines[0], append(bytes.TrimSpace(lines[1]), '\r', '\n'), lines[2], lines[3]},
		"two exchanged":        {lines[0], lines[2], lines[1], lines[3]},
		"a word": {
			lines[0], bytes.Replace(lines[1], []byte(`"1"`), []byte(`"9"`), 1), lines[2], lines[3],
		},
		"no JSON": {lines[0], []byte("x\n")}, "a line twice": {lines[0], lines[0]},
	} {
		require.NoError(t, os.WriteFile(file, bytes.Join(changed, nil), 0o600))
		_, err := OpenLog(file)
		assert.ErrorIs(t, err, ErrLog, what)
	}
}

// selfSignedWith makes a certificate with extensions.
func selfSignedWith(key crypto.Signer, extra ...pkix.Extension) ([]byte, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), ExtraExtensions: extra,
	}
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
}
