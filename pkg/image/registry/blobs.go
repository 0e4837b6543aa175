package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/roundtrip"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// send starts to send the layers that were not sent yet.
func (u *upload) send(layers []v1.Layer) {
	for _, l := range layers {
		if image.KeptByReference(l) {
			continue
		}
		digest, err := l.Digest()
		if err == nil && u.sent[digest] {
			continue
		}
		u.sent[digest] = true
		var place chan *url.URL
		if size, err := l.Size(); err == nil && size < smallBlob && mountable(l) == nil {
			place = u.take()
		}
		u.blobs.Go(func() error {
			select {
			case u.few <- struct{}{}:
				defer func() { <-u.few }()
			case <-u.sending.Done():
				return u.sending.Err()
			}
			if err != nil {
				return err
			}
			s, err := u.session()
			if err != nil {
				return err
			}
			if err := s.upload(u.sending, digest, l, place); err != nil {
				return fmt.Errorf("uploading the blob %s: %w", digest, roundtrip.Explain(err))
			}
			return nil
		})
	}
}

// mountable is a layer of another repository, nil for others.
func mountable(l v1.Layer) *remote.MountableLayer {
	m, _ := l.(*remote.MountableLayer)
	return m
}

// origin names where a layer's bytes come from: only who has the same source waits for what somebody else sends.
func origin(l v1.Layer) string {
	var from []string
	if m := mountable(l); m != nil {
		from = append(from, m.Reference.Context().RegistryStr())
	}
	if d, err := partial.Descriptor(l); err == nil {
		from = append(from, d.URLs...)
	}
	return strings.Join(from, " ")
}

// smallBlob is so little that sending it takes no longer than asking whether it is there.
const smallBlob = 512 << 10

// upload sends a blob, unless the repository has it or can take it from another one. Place is where an upload was
// begun for it, and may be nil.
func (s *session) upload(ctx context.Context, digest v1.Hash, l v1.Layer, place <-chan *url.URL) error {
	if m := mountable(l); m != nil && m.Reference.Context() == s.repo {
		return nil // an image of this repository has it
	}
	size, err := l.Size()
	if err != nil {
		return err
	}
	return s.shared.upload(ctx, s.repo.Name()+"@"+digest.String()+" from "+origin(l), func() error {
		return s.sendBlob(ctx, digest, size, l, place)
	})
}

// sendBlob sends a blob that the repository may lack.
func (s *session) sendBlob(
	ctx context.Context, digest v1.Hash, size int64, l v1.Layer, place <-chan *url.URL,
) error {
	query := url.Values{}
	from := mountable(l)
	if from != nil && from.Reference.Context().Registry == s.repo.Registry {
		query.Set("mount", digest.String())
		query.Set("from", from.Reference.Context().RepositoryStr())
	}
	if len(query) == 0 && size >= smallBlob && s.has(ctx, "blobs", digest.String()) {
		return nil
	}
	if place != nil {
		// What was begun can have ended meanwhile: there is another attempt below.
		if to := <-place; to != nil && s.putBlob(ctx, to, digest, size, l) == nil {
			return nil
		}
	}
	return s.retry(ctx, func() error {
		to, err := s.beginBlob(ctx, query)
		if isStatus(err, refusedMount...) && len(query) > 0 {
			query = nil
			to, err = s.beginBlob(ctx, nil)
		}
		if err != nil || to == nil {
			return err
		}
		if len(query) > 0 && s.has(ctx, "blobs", digest.String()) {
			return nil
		}
		return s.putBlob(ctx, to, digest, size, l)
	})
}

// refusedMount are answers of registries that mount no blobs, or not these. All of them may take an upload.
var refusedMount = []int{
	http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound,
	http.StatusMethodNotAllowed,
}

// beginBlob asks where a blob is to be uploaded to; nil if the registry has it by that already. The sequence is
// repeated as a whole.
func (s *session) beginBlob(ctx context.Context, query url.Values) (*url.URL, error) {
	said, err := s.do(ctx, http.MethodPost, s.url("blobs/uploads/", query), nil, http.StatusCreated,
		http.StatusAccepted)
	if err != nil || said.status == http.StatusCreated {
		return nil, err
	}
	if said.location == nil {
		return nil, errors.New("the registry does not say where to upload")
	}
	// What is sent there carries credentials, and is nobody else's business. Behind a proxy a registry can take itself
	// for one without TLS.
	own := s.repo.Registry
	if !roundtrip.SameHost(said.location, &url.URL{Scheme: own.Scheme(), Host: own.RegistryStr()}) {
		return nil, fmt.Errorf("%w: the registry %s wants the upload at %s, which is another host",
			image.ErrUnsupported, own, said.location.Host)
	}
	said.location.Scheme = s.repo.Scheme()
	return said.location, nil
}

// putBlob uploads a blob in one piece.
func (s *session) putBlob(ctx context.Context, to *url.URL, digest v1.Hash, size int64, l v1.Layer) error {
	query := to.Query()
	query.Set("digest", digest.String())
	to.RawQuery = query.Encode()
	content, err := l.Compressed()
	if err != nil {
		return err
	}
	defer content.Close()
	_, err = s.do(ctx, http.MethodPut, to.String(), &body{content, size, "application/octet-stream"},
		http.StatusCreated, http.StatusNoContent)
	return err
}

// reserve begins uploads of small blobs that will be known later.
func (u *upload) reserve(blobs int) {
	for range blobs {
		place := make(chan *url.URL, 1)
		u.begun = append(u.begun, place)
		u.blobs.Go(func() error {
			defer close(place)
			if s, err := u.session(); err == nil { // an error is told by whoever sends something
				if to, err := s.beginBlob(u.sending, nil); err == nil {
					place <- to
				}
			}
			return nil
		})
	}
}

// take returns an upload that was begun, or nil.
func (u *upload) take() (place chan *url.URL) {
	if len(u.begun) > 0 {
		place, u.begun = u.begun[0], u.begun[1:]
	}
	return place
}

// release ends uploads that were begun for nothing. What it does not get done in a second the registry does by itself
// after some days.
func (u *upload) release() {
	defer time.AfterFunc(time.Second, u.cancel).Stop()
	var ending sync.WaitGroup
	for place := u.take(); place != nil; place = u.take() {
		ending.Go(func() {
			to := <-place
			if s, err := u.session(); err == nil && to != nil {
				_, _ = s.do(u.ctx, http.MethodDelete, to.String(), nil, http.StatusNoContent)
			}
		})
	}
	ending.Wait()
}
