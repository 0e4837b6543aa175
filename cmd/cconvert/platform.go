package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/internal/keyserver"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
	"github.com/cconvert/cconvert/pkg/sgx/quote/pcs"
)

// platformFlags are about which platforms are trusted that make quotes, and what is known of them.
type platformFlags struct {
	collateral    string
	at            string
	minEvaluation int
	accept        []string
	minDate       string
}

// addCollateral adds the flags about what is known of platforms.
func (p *platformFlags) addCollateral(f *pflag.FlagSet) {
	f.StringVar(&p.collateral, "collateral", pcs.Intel, "what Intel publishes of the platform: the address of Intel's "+
		"service or of a cache (PCCS), a directory, or a file")
}

// addTime adds the flag about when it is.
func (p *platformFlags) addTime(f *pflag.FlagSet) {
	f.StringVar(&p.at, "at", "", "time for which a quote is verified, as 2006-01-02T15:04:05Z (default: now)")
}

func (p *platformFlags) add(f *pflag.FlagSet) {
	p.addCollateral(f)
	p.addTime(f)
	p.addAccepted(f)
}

// addAccepted adds the flags about which platforms are accepted.
func (p *platformFlags) addAccepted(f *pflag.FlagSet) {
	f.IntVar(&p.minEvaluation, "min-tcb-evaluation", 0, "lowest number of Intel's evaluations that is accepted")
	f.StringSliceVar(&p.accept, "accept-tcb", nil, "status of a platform that is accepted as well (repeatable)")
	f.StringVar(&p.minDate, "min-tcb-date", "", "oldest date of a platform that --accept-tcb accepts, YYYY-MM-DD")
}

func (p *platformFlags) options() (o quote.Options, err error) {
	o = quote.Options{At: time.Now(), MinEvaluation: p.minEvaluation}
	if p.at != "" {
		if o.At, err = time.Parse(time.RFC3339, p.at); err != nil {
			return o, usagef("--at %s: a time such as 2006-01-02T15:04:05Z expected", p.at)
		}
	}
	return o, nil
}

// policy is which platforms are accepted.
func (p *platformFlags) policy() (policy quote.Policy, err error) {
	for _, s := range p.accept {
		if quote.Status(s) == quote.Revoked || !slices.Contains(quote.Statuses, quote.Status(s)) {
			return policy, usagef("--accept-tcb %s: there is no such status that can be accepted", s)
		}
		policy.Status = append(policy.Status, quote.Status(s))
	}
	if p.minDate != "" {
		if policy.MinTCBDate, err = time.Parse(time.DateOnly, p.minDate); err != nil {
			return policy, usagef("--min-tcb-date %s: YYYY-MM-DD expected", p.minDate)
		}
	}
	return policy, nil
}

// platform is the same for a policy of released secrets.
func (p *platformFlags) platform() keyserver.Platform {
	on := keyserver.Platform{MinTCBDate: p.minDate, MinEvaluation: p.minEvaluation}
	for _, s := range p.accept {
		on.AcceptTCB = append(on.AcceptTCB, quote.Status(s))
	}
	return on
}

// service is the one that --collateral names, with what is kept of its answers; nil: it names a file or directory.
func (p *platformFlags) service() (*pcs.Service, error) {
	if !strings.Contains(p.collateral, "://") {
		return nil, nil
	}
	store, err := (&cacheFlags{limit: defaultCacheSize}).store()
	if err != nil {
		return nil, err
	}
	s, err := pcs.New(p.collateral, store)
	if err != nil {
		return nil, &usageError{fmt.Errorf("--collateral: %w", err)}
	}
	return s, nil
}

// verifyFile verifies the quote in a file. If the quote is not nil, the error is that of verify.
func (p *platformFlags) verifyFile(
	ctx context.Context, name string,
) (q *quote.Quote, r *quote.Result, c *quote.Collateral, err error) {
	o, err := p.options()
	if err != nil {
		return nil, nil, nil, err
	}
	if q, err = readQuote(name); err != nil {
		return nil, nil, nil, err
	}
	r, c, err = p.verify(ctx, q, o)
	return q, r, c, err
}

// verify verifies a quote. The error is a *quote.Error if it is not authentic.
func (p *platformFlags) verify(
	ctx context.Context, q *quote.Quote, o quote.Options,
) (*quote.Result, *quote.Collateral, error) {
	s, err := p.service()
	if err != nil {
		return nil, nil, err
	}
	if s != nil {
		return s.Verify(ctx, q, o)
	}
	c, err := quote.ReadCollateral(p.collateral)
	if err != nil {
		return nil, nil, fmt.Errorf("--collateral: %w", err)
	}
	r, err := q.Verify(c, o)
	return r, c, err
}
