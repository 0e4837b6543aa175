package simulated

import (
	"crypto/x509"
	"sync"
	"time"

	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
)

// knownSeed is of the platform that every cconvert knows.
const knownSeed = "cconvert: a simulated platform, whose quotes anybody can make"

// Known is the platform that every cconvert knows, for programs that run without hardware. Anybody can make its quotes.
func Known(issued time.Time) (*Platform, error) { return New(knownSeed, issued) }

// root is that of the platform that every cconvert knows.
var root = sync.OnceValues(func() (*x509.Certificate, error) {
	p, err := Known(time.Time{})
	if err != nil {
		return nil, err
	}
	return p.Root.Certificate, nil
})

// Is reports whether a quote is by the platform that every cconvert knows, for a time.
func Is(q *quote.Quote, at time.Time) bool {
	known, err := root()
	if err != nil {
		return false
	}
	return q.Authentic(quote.Options{At: at, Root: known}) == nil
}

// published is what the platform that every cconvert knows would have been said of last.
var published struct {
	sync.Mutex
	issued     time.Time
	root       *x509.Certificate
	collateral *quote.Collateral
}

// publish is what would be said of it on the day before a time.
func publish(at time.Time) (*quote.Collateral, *x509.Certificate, error) {
	const day = 24 * time.Hour
	issued := at.Add(-day).Truncate(day)
	published.Lock()
	defer published.Unlock()
	if published.collateral == nil || !published.issued.Equal(issued) {
		p, err := Known(issued)
		if err != nil {
			return nil, nil, err
		}
		c, err := p.Collateral()
		if err != nil {
			return nil, nil, err
		}
		published.issued, published.root, published.collateral = issued, p.Root.Certificate, c
	}
	return published.collateral, published.root, nil
}

// Verify verifies a quote of the platform that every cconvert knows: it shows that a protocol works, and nothing of who
// made the quote.
func Verify(q *quote.Quote, at time.Time) (*quote.Result, error) {
	c, root, err := publish(at)
	if err != nil {
		return nil, err
	}
	return q.Verify(c, quote.Options{At: at, Root: root})
}

// Of makes a quote of the enclave that a SIGSTRUCT is for, over report data.
func Of(s *sgx.SigStruct, data [64]byte) ([]byte, error) {
	p, err := Known(time.Time{})
	if err != nil {
		return nil, err
	}
	r := quote.Report{
		MREnclave: s.MREnclave, MRSigner: s.MRSigner(), ISVProdID: s.ISVProdID, ISVSVN: s.ISVSVN,
		Attributes: s.Attributes, MiscSelect: s.MiscSelect, Data: data,
	}
	r.Attributes.Flags |= sgx.FlagInit // which EINIT sets
	p.Set(&r)
	return p.Quote()
}
