package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
	"github.com/cconvert/cconvert/pkg/sgx/ratls"
	"github.com/cconvert/cconvert/pkg/verify"
)

// runningFlags are about what runs, which is compared with an image.
type runningFlags struct {
	platformFlags
	quote, reportData string
	endpoint          string
	dial              ratls.DialOptions
	by                string
}

func (r *runningFlags) add(f *pflag.FlagSet) {
	f.StringVar(&r.quote, "quote", "", "file with a quote, which must be of this image")
	f.StringVar(&r.reportData, "report-data", "", "with --quote: expected report data, 64 bytes in hexadecimal")
	f.StringVar(&r.endpoint, "endpoint", "", "HOST:PORT of a TLS server, whose certificate must have a quote of this "+
		"image about its key")
	f.StringVar(&r.dial.ServerName, "sni", "", "with --endpoint: the server's name that is asked for (default: HOST)")
	f.DurationVar(&r.dial.Timeout, "endpoint-timeout", ratls.DefaultTimeout, "how long the server may take to answer")
	f.StringVar(&r.by, "by", attest.ByEnclave, "what a quote must have in common with the image: enclave (MRENCLAVE) "+
		"or signer (MRSIGNER, product, and at least the SVN)")
	r.platformFlags.add(f)
}

// running verifies the quote that is to be compared with an image; nil if there is none to compare.
func (r *runningFlags) running(
	ctx context.Context, set *pflag.FlagSet, allowDebug, allowSimulated bool,
) (*verify.Running, error) {
	if r.quote == "" && r.endpoint == "" {
		own := pflag.NewFlagSet("", pflag.ContinueOnError)
		(&runningFlags{}).add(own)
		var err error
		own.VisitAll(func(f *pflag.Flag) {
			if set.Changed(f.Name) {
				err = usagef("--%s is about a quote: name one with --quote or --endpoint", f.Name)
			}
		})
		return nil, err
	}
	switch {
	case r.quote != "" && r.endpoint != "":
		return nil, usagef("--quote and --endpoint: one of them at a time")
	case r.quote != "" && (set.Changed("sni") || set.Changed("endpoint-timeout")):
		return nil, usagef("--sni and --endpoint-timeout are about an --endpoint")
	case r.endpoint != "" && r.reportData != "":
		return nil, usagef("--report-data: with --endpoint, it must be that of the certificate's key")
	case !slices.Contains(attest.Ways, r.by):
		return nil, usagef("--by %s: there is %s", r.by, strings.Join(attest.Ways, ", "))
	case r.dial.Timeout <= 0 || r.dial.Timeout > time.Hour:
		return nil, usagef("--endpoint-timeout %s: a time up to an hour expected", r.dial.Timeout)
	}
	a := &verify.Running{Endpoint: r.endpoint, BySigner: r.by == attest.BySigner}
	var err error
	if a.Policy, err = r.policy(); err != nil {
		return nil, err
	}
	a.Policy.AllowDebug = allowDebug
	o, err := r.options()
	if err != nil {
		return nil, err
	}
	if r.quote != "" {
		if a.Policy.Data, err = reportData(r.reportData); err == nil {
			a.Quote, err = readQuote(r.quote)
		}
	} else {
		err = r.ask(ctx, a)
	}
	if err != nil || a.EndpointErr != nil {
		return a, err
	}
	if a.Simulated = allowSimulated && simulated.Is(a.Quote, o.At); a.Simulated {
		a.Result, a.Err = simulated.Verify(a.Quote, o.At)
	} else {
		a.Result, _, a.Err = r.verify(ctx, a.Quote, o)
	}
	var unproven *quote.Error
	if a.Err != nil && !errors.As(a.Err, &unproven) {
		return nil, a.Err
	}
	return a, nil
}

// ask asks a server for its certificate.
func (r *runningFlags) ask(ctx context.Context, a *verify.Running) error {
	c, err := ratls.Dial(ctx, r.endpoint, r.dial)
	if err != nil {
		return fmt.Errorf("--endpoint: %w", err)
	}
	e, err := ratls.Parse(c)
	if err == nil {
		a.Policy.Data = &e.Data
		a.Quote, err = quote.Parse(e.Quote)
	}
	a.EndpointErr = err
	return nil
}
