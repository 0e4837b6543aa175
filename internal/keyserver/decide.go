package keyserver

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
	"github.com/cconvert/cconvert/pkg/sgx/ratls"
)

// decide finds the policy by which an enclave gets what it wants. The error is the reason why no policy does.
func (s *Server) decide(ctx context.Context, c *x509.Certificate, body []byte, d *Decision) (*Policy, error) {
	e, err := ratls.Parse(c)
	if err != nil {
		return nil, err
	}
	// The older form has no nonce.
	if !s.nonces.good(e.Nonce) {
		return nil, errors.New("the nonce is not one of this server's, or is too old")
	}
	request, err := release.ParseRequest(body)
	if err != nil {
		return nil, err
	}
	r, err := s.authentic(ctx, e, d)
	if err != nil {
		return nil, err
	}
	for _, w := range request.Want {
		d.Want = append(d.Want, w.String())
	}
	if !s.nonces.use(e.Nonce) {
		return nil, errors.New("the nonce was used before, or too many ask")
	}
	return s.choose(r, func(p *Policy) []string { return p.Lacks(request.Want) }, d)
}

// authentic verifies the quote of a certificate. If there is no error, it is an enclave that asks, with its own quote.
func (s *Server) authentic(ctx context.Context, e *ratls.Evidence, d *Decision) (*quote.Result, error) {
	q, err := quote.Parse(e.Quote)
	if err != nil {
		return nil, err
	}
	if q.Report.Data != e.Data {
		return nil, errors.New("the quote is about another key, or another nonce")
	}
	r, err := s.verify(ctx, q, d)
	if err != nil {
		var wrong *quote.Error
		d.passing = !d.Simulated && !errors.As(err, &wrong)
		return nil, err
	}
	d.of(r)
	return r, nil
}

// verify verifies a quote: by Intel's root, or by that of the platform that every cconvert knows.
func (s *Server) verify(ctx context.Context, q *quote.Quote, d *Decision) (*quote.Result, error) {
	now := s.o.Now()
	if d.Simulated = simulated.Is(q, now); d.Simulated {
		if !s.o.AllowSimulated {
			return nil, errors.New("the quote is a simulated one, which anybody can make")
		}
		return simulated.Verify(q, now)
	}
	return s.o.Verify(ctx, q, quote.Options{At: now, Root: s.o.root})
}

// of notes what an authentic quote says.
func (d *Decision) of(r *quote.Result) {
	report := &r.Quote.Report
	d.MREnclave, d.MRSigner = &report.MREnclave, &report.MRSigner
	d.ISVProdID, d.ISVSVN, d.Debug = report.ISVProdID, report.ISVSVN, report.Debug()
	d.Status, d.Advisories, d.expires = r.Status, r.Advisories, r.Expires
	d.FMSPC = hex.EncodeToString(r.Platform.FMSPC[:])
	machine := sha256.Sum256(r.Quote.UserData[:16])
	d.Machine = hex.EncodeToString(machine[:8])
}

// choose finds the first policy that is about the enclave, accepts the platform, and lacks nothing that is wanted.
func (s *Server) choose(r *quote.Result, lacking func(*Policy) []string, d *Decision) (*Policy, error) {
	var reasons []string
	for _, p := range *s.policies.Load() {
		problem := p.mismatch(&r.Quote.Report, d.Simulated)
		if problem != "" {
			if len(reasons) < 3 {
				reasons = append(reasons, p.name+": "+problem)
			}
			continue
		}
		err := r.Check(p.platform())
		lacks := lacking(p)
		switch {
		case err != nil:
			problem = err.Error()
		case r.Evaluation < p.Platform.MinEvaluation:
			problem = fmt.Sprintf("Intel's evaluation is %d, the lowest that is accepted is %d", r.Evaluation,
				p.Platform.MinEvaluation)
		case len(lacks) > 0:
			problem = "it does not grant " + strings.Join(lacks, ", ")
		default:
			d.Policy = p.name
			return p, nil
		}
		reasons = append([]string{p.name + ": " + problem}, reasons...) // what is nearest comes first
	}
	if len(reasons) > 5 {
		reasons = reasons[:5]
	}
	if len(reasons) == 0 {
		return nil, errors.New("no policy accepts it")
	}
	return nil, fmt.Errorf("no policy accepts it: %s", strings.Join(reasons, "; "))
}

// maxReleased is what an answer can hold: a byte of a secret is more than one of its own.
const maxReleased = release.MaxAnswer / 2

// fill takes from the store what a policy grants. All of it is there, or nothing is released.
func (s *Server) fill(
	ctx context.Context, p *Policy, c *x509.Certificate, want []string,
) (out map[string]release.Secret, err error) {
	out = map[string]release.Secret{}
	all := 0
	defer func() {
		if err != nil {
			for _, v := range out {
				clear(v.Value)
			}
		}
	}()
	for _, text := range want {
		slot, err := release.ParseSlot(text)
		if err != nil {
			return nil, err
		}
		grant := p.slots[slot]
		if slot.Kind == release.KindTLS {
			chain, err := s.authority.issue(c, grant.Names, s.o.Now())
			if err != nil {
				return nil, err
			}
			out[text] = release.Secret{Certificate: chain}
			continue
		}
		value, err := s.o.Store.Get(ctx, grant.Secret)
		if err != nil {
			return nil, err
		}
		secret := release.Secret{Value: value}
		out[text] = secret
		if problem := secret.Problem(slot); problem != "" {
			return nil, fmt.Errorf("the secret %s for %s %s", grant.Secret, slot, problem)
		}
		if all += len(value); all > maxReleased {
			return nil, fmt.Errorf("the secrets have more than %d bytes together", maxReleased)
		}
	}
	return out, nil
}
