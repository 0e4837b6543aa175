// Package pcs fetches what Intel publishes of SGX platforms: from its Provisioning Certification Service (Intel, "PCS
// API", version 4), or from a cache of that (PCCS), which answers in the same way.
package pcs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
)

// Intel is the address of Intel's service, which needs no key for what is fetched here.
const Intel = "https://api.trustedservices.intel.com/sgx/certification/v4"

// intelRootCRL is where Intel publishes the revocation list of its root. Caches have it below their own address.
const intelRootCRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"

// Bounds: of one answer, and of all of them.
const (
	maxAnswer = 1 << 20
	timeout   = 20 * time.Second
	tries     = 3
	inAll     = time.Minute
)

// Errors that callers decide on.
var (
	// ErrURL says that an address is not one of a service.
	ErrURL = errors.New("not the address of a PCS or PCCS")
	// ErrService says that the service did not answer as its interface has it.
	ErrService = errors.New("fetching what Intel publishes of the platform failed")
	// ErrUnavailable says that it may do so next time. It is ErrService too.
	ErrUnavailable = fmt.Errorf("%w: the service is not available", ErrService)
)

// Service is Intel's, or a cache of it. Its answers are signed by Intel: it is trusted with nothing but to be current,
// within the dates of what it answers.
type Service struct {
	base   string
	store  cache.Store
	client *http.Client
	pause  time.Duration
}

// New is the service at an address such as Intel. What it answers is kept in the store, if that is not nil.
func New(address string, store cache.Store) (*Service, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%q: %w: https://HOST/sgx/certification/v4 expected", address, ErrURL)
	}
	return &Service{
		base: strings.TrimRight(u.String(), "/"), store: store, pause: time.Second,
		client: &http.Client{
			Timeout:       timeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Verify verifies a quote with what is kept of its platform, and otherwise with what the service answers. It returns
// the collateral that it was verified with. The error is a *quote.Error if the quote is not authentic.
func (s *Service) Verify(
	ctx context.Context, q *quote.Quote, o quote.Options,
) (*quote.Result, *quote.Collateral, error) {
	platform, ca, err := q.Platform()
	if err != nil {
		return nil, nil, err
	}
	id := sha256.Sum256([]byte(s.base))
	key := fmt.Sprintf("collateral/%x/%x-%s", id[:8], platform.FMSPC, ca)
	if s.store != nil {
		if text, ok := s.store.Get(key); ok {
			if c, err := quote.ParseDocument(text); err == nil {
				r, err := q.Verify(c, o)
				if !stale(err) {
					return r, c, err
				}
			}
		}
	}
	// Nobody is asked about a quote that anybody can have made up.
	if err := q.Authentic(o); err != nil {
		return nil, nil, err
	}
	c, err := s.Fetch(ctx, platform, ca)
	if err != nil {
		return nil, nil, err
	}
	r, err := q.Verify(c, o)
	if s.store != nil && !stale(err) {
		if text, err := c.Document(); err == nil {
			_ = s.store.Put(key, text) // it is fetched again if it cannot be kept
		}
	}
	return r, c, err
}

// stale reports whether newer collateral can make a difference.
func stale(err error) bool {
	var failed *quote.Error
	return errors.As(err, &failed) && !errors.Is(err, quote.ErrRevoked) &&
		slices.Contains([]string{quote.CheckTCBInfo, quote.CheckQEIdentity, quote.CheckCRL}, failed.Check)
}

// Fetch fetches what Intel publishes of platforms of a kind, whose certificates are by the authority quote.Processor
// or quote.PlatformCA.
func (s *Service) Fetch(ctx context.Context, p quote.Platform, ca string) (*quote.Collateral, error) {
	ctx, cancel := context.WithTimeout(ctx, inAll)
	defer cancel()
	c := &quote.Collateral{}
	for _, part := range []struct {
		path, value string
		headers     []string
		to, sum     *[]byte
		chain       *[]byte
	}{
		{
			"/tcb?fmspc=" + hex.EncodeToString(p.FMSPC[:]), "tcbInfo",
			[]string{"TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"}, &c.TCBInfo, &c.TCBInfoSignature,
			&c.TCBInfoChain,
		},
		{
			"/qe/identity", "enclaveIdentity", []string{"SGX-Enclave-Identity-Issuer-Chain"}, &c.QEIdentity,
			&c.QEIdentitySignature, &c.QEIdentityChain,
		},
	} {
		body, header, err := s.get(ctx, s.base+part.path)
		if err != nil {
			return nil, err
		}
		if *part.to, *part.sum, err = quote.ParseSigned(body, part.value); err != nil {
			return nil, fmt.Errorf("%w: %s%s: %w", ErrService, s.base, part.path, err)
		}
		for _, name := range part.headers {
			if chain, err := url.PathUnescape(header.Get(name)); err == nil && chain != "" {
				*part.chain = []byte(chain)
			}
		}
		if *part.chain == nil {
			return nil, fmt.Errorf("%w: %s%s: the answer has no header %s", ErrService, s.base, part.path,
				part.headers[0])
		}
	}
	root := s.base + "/rootcacrl"
	if s.base == Intel {
		root = intelRootCRL
	}
	for address, to := range map[string]*[]byte{
		s.base + "/pckcrl?ca=" + ca + "&encoding=der": &c.PCKCRL, root: &c.RootCRL,
	} {
		body, _, err := s.get(ctx, address)
		if err != nil {
			return nil, err
		}
		*to = quote.RevocationList(body)
	}
	return c, nil
}

// get asks for one thing, up to three times.
func (s *Service) get(ctx context.Context, address string) (body []byte, header http.Header, err error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval = s.pause
	body, err = backoff.Retry(ctx, func() ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, backoff.Permanent(err)
		}
		resp, err := s.client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		header = resp.Header
		if resp.StatusCode != http.StatusOK {
			err := fmt.Errorf("the answer is %s", resp.Status)
			if resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests {
				return nil, backoff.Permanent(fmt.Errorf("%w: %w", ErrService, err))
			}
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
		if err == nil && len(b) > maxAnswer {
			err = backoff.Permanent(fmt.Errorf("%w: the answer has more than %d bytes", ErrService, maxAnswer))
		}
		return b, err
	}, backoff.WithBackOff(pause), backoff.WithMaxTries(tries))
	switch {
	case errors.Is(err, ErrService):
		return nil, nil, fmt.Errorf("%s: %w", address, err)
	case err != nil:
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, address, err)
	}
	return body, header, nil
}
