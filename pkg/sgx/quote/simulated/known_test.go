package simulated

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
)

// Whoever makes a quote of the platform that everybody knows, and whoever verifies it, need have nothing in common but
// this package: its root is the same everywhere, and nobody takes it for Intel's.
func TestKnown(t *testing.T) {
	text, err := os.ReadFile("../../../../testdata/vectors/cases/defaults.sig")
	require.NoError(t, err)
	s, err := sgx.ParseSigStruct(text)
	require.NoError(t, err)
	now := time.Now()
	raw, err := Of(s, [64]byte{7})
	require.NoError(t, err)
	q, err := quote.Parse(raw)
	require.NoError(t, err)
	assert.True(t, Is(q, now))
	for _, at := range []time.Time{now, now.Add(24 * time.Hour), now} {
		r, err := Verify(q, at)
		require.NoError(t, err)
		assert.Equal(t, quote.UpToDate, r.Status)
		assert.Equal(t, s.MREnclave, r.Quote.Report.MREnclave)
		assert.Equal(t, s.MRSigner(), r.Quote.Report.MRSigner)
		assert.Equal(t, byte(7), r.Quote.Report.Data[0])
		require.NoError(t, r.Check(quote.Policy{AnyEnclave: true}))
	}
	a, err := Known(now)
	require.NoError(t, err)
	b, err := Known(now.Add(-time.Hour))
	require.NoError(t, err)
	assert.Equal(t, a.Root.Certificate.Raw, b.Root.Certificate.Raw)
	assert.ErrorContains(t, q.Authentic(quote.Options{At: now}), "its root is not Intel's")

	other, err := New("another", now)
	require.NoError(t, err)
	raw, err = other.Quote()
	require.NoError(t, err)
	q, err = quote.Parse(raw)
	require.NoError(t, err)
	assert.False(t, Is(q, now))
	_, err = Verify(q, now)
	assert.Error(t, err)
}
