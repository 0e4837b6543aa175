package quote_test

import (
	"crypto/x509"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
)

// world is a made-up platform at a time.
type world struct {
	*simulated.Platform
	now time.Time
}

func synthetic(t testing.TB) *world {
	t.Helper()
	now := time.Unix(1_790_000_000, 0).UTC()
	p, err := simulated.New("a test", now.AddDate(0, 0, -10))
	require.NoError(t, err)
	p.Report[64], p.Report[128], p.Report[320] = 1, 2, 3
	return &world{p, now}
}

func (w *world) quote(t testing.TB) []byte {
	t.Helper()
	b, err := w.Quote()
	require.NoError(t, err)
	return b
}

func (w *world) collateral(t testing.TB) *quote.Collateral {
	t.Helper()
	c, err := w.Collateral()
	require.NoError(t, err)
	return c
}

func (w *world) at() quote.Options { return quote.Options{At: w.now, Root: w.Root.Certificate} }

func checkOf(err error) string {
	var e *quote.Error
	if errors.As(err, &e) {
		return e.Check
	}
	return ""
}

// another is an authority of another seed.
func another(t testing.TB, name string, ca bool, by *simulated.Authority) simulated.Authority {
	t.Helper()
	a, err := simulated.Issue("another", name, ca, by)
	require.NoError(t, err)
	return a
}

const (
	flags64 = 0x4
	flagRun = 0x1
	keyProv = 0x10
	keyInit = 0x20
)

var le = binary.LittleEndian

// All that can be wrong with a quote that is properly signed, and the check that finds it.
func TestSynthetic(t *testing.T) {
	flags := func(more uint64) func(*world) {
		return func(w *world) { le.PutUint64(w.Report[48:], le.Uint64(w.Report[48:])|more) }
	}
	for what, c := range map[string]struct {
		change func(*world)
		status quote.Status
		check  string // that fails
	}{
		"good":                   {func(*world) {}, quote.UpToDate, ""},
		"version 4":              {func(w *world) { w.Version = 4 }, quote.UpToDate, ""},
		"no auth data":           {func(w *world) { w.Auth = nil; _ = w.Bind() }, quote.UpToDate, ""},
		"a debug enclave":        {flags(2), quote.UpToDate, quote.CheckEnclave},
		"a key for provisioning": {flags(keyProv), quote.UpToDate, quote.CheckEnclave},
		"a key for launching":    {flags(keyInit), quote.UpToDate, quote.CheckEnclave},
		"no initialised enclave": {
			func(w *world) { le.PutUint64(w.Report[48:], flags64) }, quote.UpToDate, quote.CheckEnclave,
		},
		"a 32-bit enclave": {
			func(w *world) { le.PutUint64(w.Report[48:], flagRun) }, quote.UpToDate, quote.CheckEnclave,
		},
		"a debug quoting enclave":   {func(w *world) { le.PutUint64(w.QE[48:], 0x17) }, "", quote.CheckQE},
		"another MISCSELECT":        {func(w *world) { w.QE[16] = 1 }, "", quote.CheckQE},
		"another quoting signer":    {func(w *world) { w.QE[128] ^= 1 }, "", quote.CheckQE},
		"another quoting product":   {func(w *world) { w.QE[256] = 2 }, "", quote.CheckQE},
		"an older quoting enclave":  {func(w *world) { w.QE[258] = 7 }, quote.OutOfDate, quote.CheckStatus},
		"a revoked quoting enclave": {func(w *world) { w.QE[258] = 3 }, quote.Revoked, quote.CheckStatus},
		"an ancient one":            {func(w *world) { w.QE[258] = 1 }, "", quote.CheckQE},
		"that of another technique": {func(w *world) { w.QEID = "TD_QE" }, "", quote.CheckQEIdentity},
		"TCB info of another":       {func(w *world) { w.ID = "TDX" }, "", quote.CheckTCBInfo},
		"another kind of platform":  {func(w *world) { w.FMSPC = "00906EA10001" }, "", quote.CheckTCBInfo},
		"a level that is out of date": {
			func(w *world) { w.Levels = simulated.Level(5, 10, quote.OutOfDate) }, quote.OutOfDate, quote.CheckStatus,
		},
		"one PCESVN too low": {
			func(w *world) {
				w.Levels = simulated.Level(5, 11, quote.UpToDate) + "," +
					simulated.Level(5, 10, quote.ConfigurationNeeded)
			},
			quote.ConfigurationNeeded, quote.CheckStatus,
		},
		"levels in another order": {
			func(w *world) {
				w.Levels = simulated.Level(3, 9, quote.OutOfDate) + "," + simulated.Level(5, 10, quote.UpToDate)
			}, quote.UpToDate, "",
		},
		"a revoked level": {
			func(w *world) { w.Levels = simulated.Level(5, 10, quote.Revoked) }, quote.Revoked, quote.CheckStatus,
		},
		"no level": {
			func(w *world) { w.Levels = simulated.Level(6, 1, quote.UpToDate) }, "", quote.CheckPlatform,
		},
		"no levels at all":  {func(w *world) { w.Levels = "" }, "", quote.CheckPlatform},
		"an unknown status": {func(w *world) { w.Levels = simulated.Level(5, 10, "Fine") }, "", quote.CheckTCBInfo},
		"a component less": {
			func(w *world) { w.Levels = strings.Replace(w.Levels, `{"svn":5},`, "", 1) }, "", quote.CheckTCBInfo,
		},
		"the platform is revoked": {
			func(w *world) { w.Revoked = []*x509.Certificate{w.PCK.Certificate} }, "", quote.CheckCRL,
		},
		"its authority is revoked": {
			func(w *world) { w.Revoked = []*x509.Certificate{w.CA.Certificate} }, "", quote.CheckCRL,
		},
		"the signer is revoked": {
			func(w *world) { w.Revoked = []*x509.Certificate{w.TCB.Certificate} }, "", quote.CheckCRL,
		},
		"two months later": {
			func(w *world) { w.now = w.now.AddDate(0, 2, 0) }, "", quote.CheckTCBInfo,
		},
		"TCB info of the platform's authority": {func(w *world) { w.SignInfo = &w.CA }, "", quote.CheckTCBInfo},
		"a report signed by another": {
			func(w *world) { w.SignReport = another(t, "x", false, nil).Key }, "", quote.CheckSignature,
		},
		"a QE report signed by another": {
			func(w *world) { w.SignQE = another(t, "x", false, nil).Key }, "", quote.CheckQEReport,
		},
		"a key of another quoting enclave": {func(w *world) { w.QE[320] ^= 1 }, "", quote.CheckKey},
		"more behind the key's digest":     {func(w *world) { w.QE[383] = 1 }, "", quote.CheckKey},
		"another root": {
			func(w *world) { w.Root = another(t, "Intel SGX Root CA", true, nil) }, "", quote.CheckChain,
		},
		"a platform of no authority": {func(w *world) {
			other := another(t, "Somebody", true, &w.Root)
			extension, err := simulated.Extension(5, 10)
			require.NoError(t, err)
			pck, err := simulated.Issue("another", "Intel SGX PCK Certificate", false, &other, extension)
			require.NoError(t, err)
			w.CA, w.PCK = other, pck
		}, "", quote.CheckChain},
		"a platform that is none": {
			func(w *world) { w.PCK = another(t, "Intel SGX PCK Certificate", false, &w.CA) }, "", quote.CheckChain,
		},
	} {
		w := synthetic(t)
		root := w.Root.Certificate
		c.change(w)
		q, err := quote.Parse(w.quote(t))
		require.NoError(t, err, what)
		r, err := q.Verify(w.collateral(t), quote.Options{At: w.now, Root: root})
		if c.status == "" {
			assert.Equal(t, c.check, checkOf(err), "%s: %v", what, err)
			continue
		}
		if !assert.NoError(t, err, what) {
			continue
		}
		assert.Equal(t, c.status, r.Status, what)
		assert.Equal(t, c.check, checkOf(r.Check(quote.Policy{AnyEnclave: true})), what)
	}
}

// Without the test's root none of these is one of Intel's.
func TestOwnRootIsIntels(t *testing.T) {
	w := synthetic(t)
	q, err := quote.Parse(w.quote(t))
	require.NoError(t, err)
	_, err = q.Verify(w.collateral(t), quote.Options{At: w.now})
	assert.Equal(t, quote.CheckChain, checkOf(err))
	assert.ErrorContains(t, err, "its root is not Intel's")
}

// What the enclave says is compared in all its 64 bytes.
func TestReportData(t *testing.T) {
	w := synthetic(t)
	q, err := quote.Parse(w.quote(t))
	require.NoError(t, err)
	r, err := q.Verify(w.collateral(t), quote.Options{At: w.now, Root: w.Root.Certificate})
	require.NoError(t, err)
	want := [64]byte(w.Report[320:384])
	require.NoError(t, r.Check(quote.Policy{AnyEnclave: true, Data: &want}))
	for _, i := range []int{0, 31, 32, 63} {
		other := want
		other[i] ^= 1
		assert.Equal(t, quote.CheckEnclave, checkOf(r.Check(quote.Policy{AnyEnclave: true, Data: &other})))
	}
	own, other, one, two := r.Quote.Report, sgx.Measurement{9}, uint16(1), uint16(2)
	q.Report.ISVProdID, q.Report.ISVSVN = 1, 1
	for _, p := range []quote.Policy{
		{MREnclave: []sgx.Measurement{other}}, {MRSigner: []sgx.Measurement{other}}, {ProdID: &two}, {MinSVN: &two},
	} {
		assert.Equal(t, quote.CheckEnclave, checkOf(r.Check(p)))
	}
	good := quote.Policy{
		MREnclave: []sgx.Measurement{other, own.MREnclave}, MRSigner: []sgx.Measurement{own.MRSigner}, ProdID: &one,
		MinSVN: &one,
	}
	require.NoError(t, r.Check(good))
	assert.ErrorContains(t, r.Check(quote.Policy{ProdID: &one}), "of anybody's enclave")
	le.PutUint64(w.Report[48:], flagRun|flags64|2)
	q, err = quote.Parse(w.quote(t))
	require.NoError(t, err)
	r, err = q.Verify(w.collateral(t), quote.Options{At: w.now, Root: w.Root.Certificate})
	require.NoError(t, err)
	assert.Error(t, r.Check(quote.Policy{AnyEnclave: true}))
	assert.NoError(t, r.Check(quote.Policy{AnyEnclave: true, AllowDebug: true}))
}

func BenchmarkVerify(b *testing.B) {
	w := synthetic(b)
	raw, c := w.quote(b), w.collateral(b)
	for b.Loop() {
		q, err := quote.Parse(raw)
		require.NoError(b, err)
		_, err = q.Verify(c, quote.Options{At: w.now, Root: w.Root.Certificate})
		require.NoError(b, err)
	}
}
