package verify_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
	"github.com/cconvert/cconvert/pkg/verify"
)

// machine is a made-up one that runs an enclave.
type machine struct {
	*simulated.Platform
	t      *testing.T
	report quote.Report
	data   [64]byte
	now    time.Time
	status []quote.Status
}

func newMachine(t *testing.T, s *sgx.SigStruct, signer sgx.Measurement) *machine {
	t.Helper()
	m := &machine{t: t, now: time.Unix(1_790_000_000, 0), data: [64]byte{1, 31: 2, 63: 3}}
	var err error
	m.Platform, err = simulated.New("a test", m.now.AddDate(0, 0, -10))
	require.NoError(t, err)
	m.report = quote.Report{
		MREnclave: s.MREnclave, MRSigner: signer, ISVProdID: s.ISVProdID, ISVSVN: s.ISVSVN, Attributes: s.Attributes,
		Data: m.data,
	}
	m.report.Attributes.Flags |= 1 // INIT, which EINIT sets
	return m
}

// running is a quote of the machine, verified.
func (m *machine) running() verify.Running {
	m.t.Helper()
	m.Set(&m.report)
	raw, err := m.Quote()
	require.NoError(m.t, err)
	a := verify.Running{Policy: quote.Policy{AllowDebug: true, Data: &m.data, Status: m.status}}
	a.Quote, err = quote.Parse(raw)
	require.NoError(m.t, err)
	c, err := m.Collateral()
	require.NoError(m.t, err)
	a.Result, a.Err = a.Quote.Verify(c, quote.Options{At: m.now, Root: m.Root.Certificate})
	return a
}

// A quote of the image makes nothing better that is wrong with the image, and one of another machine or image is told.
func TestAttested(t *testing.T) {
	reg := fixture.NewRegistry(t)
	o := enclaved(t, reg.Push(t, "src/app:1", sample(t)))
	o.Enclave.ISVProdID, o.Enclave.ISVSVN = 7, 3
	target := reg.Host + "/out:1"
	run(t, o, signer(t), target)
	public, err := signer(t).Public(t.Context())
	require.NoError(t, err)
	trusted := verify.Expectations{
		MRSigner: []sgx.Measurement{sgx.MRSigner(public)}, AllowDebug: true, AnyRuntime: true,
		AllowChanges: true,
	}
	report := func(e verify.Expectations) *verify.Report {
		t.Helper()
		r, err := verify.Verify(context.Background(), open(t, target), nil, e, nil, inspect.Options{})
		require.NoError(t, err)
		return r
	}
	r := report(trusted)
	require.True(t, r.Trusted, "%v", r.Unmet())
	s, mrSigner := r.SigStruct, r.MRSigner
	ok := func(name string) verify.Check { return verify.Check{Name: name, Status: verify.OK} }
	names := func(r *verify.Report) (list []verify.Check) {
		for _, c := range r.Checks {
			if slices.Contains([]string{verify.CheckQuoteImage, verify.CheckQuoteData, verify.CheckEndpoint}, c.Name) {
				list = append(list, verify.Check{Name: c.Name, Status: c.Status})
			}
		}
		return list
	}

	r.Attested(newMachine(t, s, mrSigner).running())
	assert.True(t, r.Trusted, "%v", r.Unmet())
	assert.NotContains(t, r.Waived, "accept-tcb")
	assert.NotContains(t, r.Waived, "by")
	assert.Equal(t, []verify.Check{ok(verify.CheckQuoteImage), ok(verify.CheckQuoteData)}, names(r))
	assert.Equal(t, quote.UpToDate, r.Quote.Status)

	// Without an expectation nobody is trusted, whatever runs.
	r = report(verify.Expectations{AllowDebug: true, AnyRuntime: true, AllowChanges: true})
	r.Attested(newMachine(t, s, mrSigner).running())
	assert.False(t, r.Trusted)

	for what, c := range map[string]struct {
		change func(*machine)
		after  func(*verify.Running)
		want   string // the check that fails; empty: none
	}{
		"another image":            {func(m *machine) { m.report.MREnclave[0] ^= 1 }, nil, verify.CheckQuoteImage},
		"another signer":           {func(m *machine) { m.report.MRSigner[0] ^= 1 }, nil, verify.CheckQuoteImage},
		"another product":          {func(m *machine) { m.report.ISVProdID++ }, nil, verify.CheckQuoteImage},
		"another security version": {func(m *machine) { m.report.ISVSVN++ }, nil, verify.CheckQuoteImage},
		"attributes not signed for": {
			func(m *machine) { m.report.Attributes.Flags |= 0x80 }, nil, verify.CheckQuoteImage,
		},
		"a key for provisioning": {func(m *machine) { m.report.Attributes.Flags |= 0x10 }, nil, "quote-enclave"},
		"other report data":      {func(m *machine) { m.report.Data[63] ^= 1 }, nil, "quote-enclave"},
		"a debug enclave": {
			nil, func(a *verify.Running) { a.Policy.AllowDebug = false }, "quote-enclave",
		},
		"a platform that is out of date": {
			func(m *machine) { m.Levels = simulated.Level(5, 10, quote.OutOfDate) }, nil, "quote-status",
		},
		"which is accepted": {func(m *machine) {
			m.Levels, m.status = simulated.Level(5, 10, quote.OutOfDate), []quote.Status{quote.OutOfDate}
		}, nil, ""},
		"a revoked one": {func(m *machine) {
			m.Levels, m.status = simulated.Level(5, 10, quote.Revoked), []quote.Status{quote.Revoked}
		}, nil, "quote-status"},
		"a quote by nobody": {func(m *machine) { m.SignReport = m.PCK.Key }, nil, "quote-signature"},
		"by signer, another version": {
			func(m *machine) { m.report.MREnclave[0] ^= 1; m.report.ISVSVN++ },
			func(a *verify.Running) { a.BySigner = true }, "",
		},
		"by signer, an older version": {
			func(m *machine) { m.report.MREnclave[0] ^= 1; m.report.ISVSVN-- },
			func(a *verify.Running) { a.BySigner = true }, verify.CheckQuoteImage,
		},
		"by signer, another's": {
			func(m *machine) { m.report.MRSigner[0] ^= 1 }, func(a *verify.Running) { a.BySigner = true },
			verify.CheckQuoteImage,
		},
		"a server without a quote": {
			nil, func(a *verify.Running) {
				*a = verify.Running{Endpoint: "app.example:1", EndpointErr: errors.New("it has no quote")}
			}, verify.CheckEndpoint,
		},
		"a quote that could not be verified": {
			nil, func(a *verify.Running) { a.Result, a.Err = nil, errors.New("for another reason") }, "quote-format",
		},
	} {
		m := newMachine(t, s, mrSigner)
		if c.change != nil {
			c.change(m)
		}
		a := m.running()
		if c.after != nil {
			c.after(&a)
		}
		r := report(trusted)
		r.Attested(a)
		if c.want == "" {
			assert.True(t, r.Trusted, "%s: %v", what, r.Unmet())
			given := map[string]string{"which is accepted": "accept-tcb", "by signer, another version": "by"}[what]
			assert.Contains(t, r.Waived, given, "what was accepted is told")
			continue
		}
		assert.Equal(t, []string{c.want}, r.FailedChecks(), what)
		assert.False(t, r.Trusted, what)
		assert.True(t, r.Consistent, "%s: nothing is wrong with the image", what)
		if c.want != verify.CheckQuoteImage && c.want != verify.CheckEndpoint {
			assert.Equal(t, []verify.Check{{Name: verify.CheckQuoteImage, Status: verify.Skipped}}, names(r), what)
		}
	}

	// A quote of no time, and one that a server has shown.
	a := newMachine(t, s, mrSigner).running()
	a.Policy.Data = nil
	r = report(trusted)
	r.Attested(a)
	assert.Equal(t,
		[]verify.Check{ok(verify.CheckQuoteImage), {Name: verify.CheckQuoteData, Status: verify.Skipped}}, names(r))
	a = newMachine(t, s, mrSigner).running()
	a.Endpoint, a.Policy.Data = "app.example:1", nil
	r = report(trusted)
	r.Attested(a)
	assert.Equal(t, []string{verify.CheckEndpoint}, r.FailedChecks())
	a = newMachine(t, s, mrSigner).running()
	a.Endpoint = "app.example:1"
	r = report(trusted)
	r.Attested(a)
	assert.Equal(t, []verify.Check{ok(verify.CheckEndpoint), ok(verify.CheckQuoteImage)}, names(r))
	assert.True(t, r.Trusted)
}

// An image of the simulated runtime has no enclave that a CPU could report, whatever its SIGSTRUCT says.
func TestAttestedSimulated(t *testing.T) {
	reg := fixture.NewRegistry(t)
	target := reg.Host + "/out:1"
	run(t, options(t, reg.Push(t, "src/app:1", sample(t))), signer(t), target)
	e := verify.Expectations{
		AnySigner: true, AllowSimulated: true, AnyRuntime: true, AllowChanges: true, AllowDebug: true,
	}
	r, err := verify.Verify(context.Background(), open(t, target), nil, e, nil, inspect.Options{})
	require.NoError(t, err)
	require.True(t, r.Trusted, "%v", r.Unmet())
	before := *r
	before.Checks = slices.Clone(r.Checks)
	r.Attested(newMachine(t, r.SigStruct, r.MRSigner).running())
	assert.Equal(t, []string{verify.CheckQuoteImage}, r.FailedChecks())
	assert.False(t, r.Trusted)

	// A quote that anybody can make is compared if that is accepted, and each line says what it is.
	raw, err := simulated.Of(r.SigStruct, [64]byte{1})
	require.NoError(t, err)
	q, err := quote.Parse(raw)
	require.NoError(t, err)
	result, err := simulated.Verify(q, time.Now())
	require.NoError(t, err)
	running := verify.Running{Quote: q, Result: result, Simulated: true, Policy: quote.Policy{AllowDebug: true}}
	accepted := before
	n := len(before.Checks)
	accepted.Attested(running)
	require.True(t, accepted.Trusted, "%v", accepted.Unmet())
	require.Greater(t, len(accepted.Checks), n)
	for _, c := range accepted.Checks[n:] {
		assert.Regexp(t, "^SIMULATED", c.Detail)
	}
	assert.True(t, accepted.Quote.Simulated)

	// It is of no enclave, and one of another image is not of this.
	run(t, enclaved(t, reg.Push(t, "src/app:2", sample(t))), signer(t), reg.Host+"/enclave:1")
	genuine, err := verify.Verify(context.Background(), open(t, reg.Host+"/enclave:1"), nil, e, nil, inspect.Options{})
	require.NoError(t, err)
	require.True(t, genuine.Trusted)
	genuine.Attested(running)
	assert.Equal(t, []string{verify.CheckQuoteImage}, genuine.FailedChecks())
	other := *r.SigStruct
	other.MREnclave[0]++
	raw, err = simulated.Of(&other, [64]byte{1})
	require.NoError(t, err)
	running.Quote, err = quote.Parse(raw)
	require.NoError(t, err)
	running.Result, err = simulated.Verify(running.Quote, time.Now())
	require.NoError(t, err)
	refused := before
	refused.Attested(running)
	assert.Equal(t, []string{verify.CheckQuoteImage}, refused.FailedChecks())
}

// Of an image with several enclaves of its own, the quote must be of one.
func TestAttestedOwn(t *testing.T) {
	var files []fixture.Entry
	for _, name := range []string{"default", "large"} {
		b, err := os.ReadFile("../../testdata/vectors/sgx-sdk/" + name + ".signed.so")
		require.NoError(t, err)
		files = append(files, fixture.Program("opt/"+name+".so", string(b)))
	}
	reg := fixture.NewRegistry(t)
	img := open(t, reg.Push(t, "sdk:1",
		fixture.Image(t, v1.Config{Entrypoint: []string{"/opt/app"}}, fixture.Layer(t, files...))))
	e := verify.Expectations{Layout: inspect.LayoutSDK, AllowDebug: true, AnySigner: true}
	for _, other := range []bool{false, true} {
		r, err := verify.OwnEnclaves(context.Background(), img, nil, e, inspect.Options{})
		require.NoError(t, err)
		require.True(t, r.Trusted, "%v", r.Unmet())
		last := r.Enclaves[len(r.Enclaves)-1]
		m := newMachine(t, last.Structure, last.MRSigner)
		if other {
			m.report.MREnclave[0] ^= 1
		}
		r.Attested(m.running())
		assert.Equal(t, !other, r.Trusted, "%v", r.Unmet())
	}
}
