package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Errors that callers decide on.
var (
	// ErrNotFound says that the reference names nothing.
	ErrNotFound = errors.New("image not found")
	// ErrIncomplete says that the reference names an image of which a part is missing. It is not ErrNotFound: the image
	// is there.
	ErrIncomplete = errors.New("a part of the image is missing")
	// ErrUnauthorized says that the registry wants other credentials, or any.
	ErrUnauthorized = errors.New("access denied")
	// ErrUnsupported says that what the reference names cannot be converted by anybody.
	ErrUnsupported = errors.New("not supported")
	// errNoImage says that it is no image at all, which is ErrUnsupported too.
	errNoImage = fmt.Errorf("%w: it is not a container image", ErrUnsupported)
	// ErrAmbiguous says that a document can be read as two different ones.
	ErrAmbiguous = errors.New("it is ambiguous")
	// ErrDigest says that a blob is not the one that its digest names.
	ErrDigest = errors.New("content does not match its digest")
	// ErrEvidence says that an image was stored, and that the registry refused what was to be attached to it.
	ErrEvidence = errors.New("the registry refuses what is attached to images")
	// ErrTarget says that the repository to be written to is not there, and that its registry makes none by itself.
	ErrTarget = errors.New("the target's repository does not exist")
	// ErrCredentials says that a credential helper has failed.
	ErrCredentials = errors.New("finding credentials failed")
	// ErrPlatform says that the image exists, but not for linux/amd64.
	ErrPlatform = errors.New("no image for linux/amd64")
)

// transientStatus are the answers of a registry that may be different next time.
var transientStatus = []int{
	http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
	http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

// Transient reports whether doing the same again may succeed.
func Transient(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false
	}
	var answer *transport.Error
	if errors.As(err, &answer) {
		// A blob that somebody else sends to the same repository at the same time can be gone for a moment after it was
		// accepted, and so can an upload after a registry's restart (OCI distribution specification, "Error Codes").
		return slices.Contains(transientStatus, answer.StatusCode) ||
			slices.ContainsFunc(answer.Errors, func(d transport.Diagnostic) bool {
				return d.Code == transport.ManifestBlobUnknownErrorCode ||
					d.Code == transport.BlobUploadUnknownErrorCode
			})
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return !dns.IsNotFound
	}
	var network net.Error
	if errors.As(err, &network) && network.Timeout() {
		return true
	}
	for _, e := range []error{
		errBroken, errSlow, errNoDocument, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNREFUSED,
		syscall.ECONNABORTED,
		syscall.EPIPE, syscall.ETIMEDOUT, net.ErrClosed,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// errNoDocument marks an answer in place of a manifest or a list that is not one, as a proxy answers that is being
// maintained.
var errNoDocument = errors.New("the registry answers with something that is not what was asked for")

// errBroken marks a transfer that ended before its end.
var errBroken = errors.New("connection broken")

// explain makes an answer of a registry the error that callers know.
func explain(err error) error {
	err = withoutQueries(err)
	var answer *transport.Error
	if !errors.As(err, &answer) {
		return err
	}
	err = brief{err}
	switch answer.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %w", ErrUnauthorized, err)
	}
	return err
}

// partOf makes an error about a part of an image one about the image.
func partOf(err error) error {
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: %v", ErrIncomplete, err) //nolint:errorlint // the image itself was found
	}
	return err
}

// send sends a request. Its errors have addresses without their queries, which can be credentials: registries lead to
// addresses that are signed.
func send(rt http.RoundTripper, req *http.Request) (*http.Response, error) {
	resp, err := (&http.Client{Transport: rt}).Do(req)
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

// brief is an error on one line.
type brief struct{ error }

func (b brief) Error() string {
	text := strings.Join(strings.Fields(b.error.Error()), " ")
	if len(text) > maxSaid {
		text = strings.ToValidUTF8(text[:maxSaid], "") + "…"
	}
	return text
}

func (b brief) Unwrap() error { return b.error }
