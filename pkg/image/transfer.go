package image

import (
	"context"
	"errors"
)

// Watcher is told how transfers get on.
type Watcher interface {
	// Waiting is called when something is waited for from a registry, or from a host that it leads to, and over when it
	// is no longer. The name is that of name.Registry.
	Waiting(registry string) (over func())
	// Moved is called with a number of bytes that were sent or received.
	Moved(bytes int)
}

// Upload is an image on its way to a place. What is known of it before it is complete can be sent early. It must be
// closed.
type Upload interface {
	// Current returns the image that the place has before anything is written; nil if it has none for linux/amd64, or
	// if the place is replaced as a whole. It is asked for once. What cannot be read is an error: it may be an image
	// all the same.
	Current() (*Image, error)
	// Begin starts to send an image's layers, and new ones that come on top, if the place takes layers before there is
	// an image. Write tells what goes wrong.
	Begin(source *Image, add ...NewLayer)
	// Write stores the image, which nobody can see before it is complete.
	Write(img *Output) error
	// Context ends when the upload is closed.
	Context() context.Context
	// Close ends what is under way.
	Close()
}

// Artifact is one blob in a registry that is no image (OCI image specification, "Guidelines for Artifact
// Usage").
type Artifact struct {
	Type        string // of the artifact
	MediaType   string // of the blob
	Blob        []byte
	BlobDigest  string // if it was fetched
	Annotations map[string]string
	Digest      string // of its manifest, if it was fetched or stored
}

// HoldsNoImage reports whether an error of Open says what the place has: nothing, or something that is no image for
// linux/amd64. An image that cannot be read, such as one with encrypted layers, is an image.
func HoldsNoImage(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, ErrNoImage) || errors.Is(err, ErrPlatform)
}

// ErrMoved says that a tag was moved by somebody else since Current was asked.
var ErrMoved = errors.New("somebody else has moved the tag meanwhile")
