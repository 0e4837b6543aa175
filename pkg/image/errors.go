package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
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
	// ErrNoImage says that it is no image at all, which is ErrUnsupported too.
	ErrNoImage = fmt.Errorf("%w: it is not a container image", ErrUnsupported)
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
	// ErrTooMany says that a list is longer than is read.
	ErrTooMany = errors.New("there are too many")
	// ErrPlatform says that the image exists, but not for linux/amd64.
	ErrPlatform = errors.New("no image for linux/amd64")
)

// OpenError says that an image could not be opened, and why.
type OpenError struct {
	Ref Reference
	Err error
}

func (e *OpenError) Error() string { return fmt.Sprintf("opening %s: %v", e.Ref, e.Err) }
func (e *OpenError) Unwrap() error { return e.Err }

// TransientStatus are the answers of a registry that may be different next time.
var TransientStatus = []int{
	http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
	http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

// Unreachable reports whether a host could not be spoken to as it should be: its name is not known, or its certificate
// is not accepted. Doing the same again at once does not help, but a network or a proxy may be set up by then.
func Unreachable(err error) bool {
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	return errors.As(err, &dns) || errors.As(err, &certificate) || errors.As(err, &record)
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
		return slices.Contains(TransientStatus, answer.StatusCode) ||
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
		ErrBroken, ErrSlow, ErrNoDocument, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNREFUSED,
		syscall.ECONNABORTED,
		syscall.EPIPE, syscall.ETIMEDOUT, net.ErrClosed,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// ErrNoDocument marks an answer in place of a manifest or a list that is not one, as a proxy answers that is being
// maintained.
var ErrNoDocument = errors.New("the registry answers with something that is not what was asked for")

// ErrBroken marks a transfer that ended before its end.
var ErrBroken = errors.New("connection broken")

// ErrRedirect says that a registry sends those who ask for a manifest to another repository.
var ErrRedirect = errors.New("the registry leads to another repository")

// ErrHTTP says that a registry, or what it leads to, speaks only HTTP, and that nobody has allowed that.
var ErrHTTP = errors.New("only HTTP is spoken there, by which others can read and change what is sent")

// ErrSlow says that a registry is silent, or so slow that nothing would ever be done. It may be faster next time.
var ErrSlow = errors.New("the registry does not answer, or too slowly")
