package roundtrip

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Explain makes an answer of a registry the error that callers know.
func Explain(err error) error {
	err = withoutQueries(err)
	var answer *transport.Error
	if !errors.As(err, &answer) {
		return err
	}
	err = Brief(err)
	switch answer.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", image.ErrNotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %w", image.ErrUnauthorized, err)
	}
	return err
}

// Send sends a request. Its errors have addresses without their queries, which can be credentials: registries lead to
// addresses that are signed. What writes is not led to where it would be a request of another kind, as to the page of a
// login.
func Send(rt http.RoundTripper, req *http.Request) (*http.Response, error) {
	client := &http.Client{Transport: rt, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		switch {
		case next.Method != req.Method:
			return fmt.Errorf("%w: what is to be stored there is led to %s", image.ErrRedirect, next.URL.Host)
		case len(via) >= maxRedirects:
			return fmt.Errorf("%w: it redirects more than %d times", image.ErrRedirect, maxRedirects)
		}
		return nil
	}}
	resp, err := client.Do(req)
	return resp, withoutQueries(err)
}

func withoutQueries(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		of.URL, _, _ = strings.Cut(of.URL, "?")
	}
	return err
}

// maxSaid is how much of a registry's answer an error repeats, in bytes: proxies answer with whole pages.
const maxSaid = 300

// Brief returns an error on one line.
func Brief(err error) error { return brief{err} }

type brief struct{ error }

func (b brief) Error() string {
	text := strings.Join(strings.Fields(b.error.Error()), " ")
	if len(text) > maxSaid {
		text = strings.ToValidUTF8(text[:maxSaid], "") + "…"
	}
	return text
}

func (b brief) Unwrap() error { return b.error }
