package registry

import (
	"context"
	"sync"

	"github.com/cconvert/cconvert/pkg/image/internal/roundtrip"
	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sync/singleflight"
)

// Shared is what transfers of many images have in common: how registries are spoken to, and blobs that several of them
// send to the same repository. The zero value is ready for use.
type Shared struct {
	mu       sync.Mutex
	pings    map[name.Registry]*roundtrip.Ping
	uploads  singleflight.Group
	subjects map[string]chan struct{} // that are locked: whoever holds it closes it
}

// alone does something about a manifest while nobody else does who shares this.
func (s *Shared) alone(ctx context.Context, subject string, do func() error) error {
	if s == nil {
		return do()
	}
	mine := make(chan struct{})
	for {
		s.mu.Lock()
		held := s.subjects[subject]
		if held == nil {
			if s.subjects == nil {
				s.subjects = map[string]chan struct{}{}
			}
			s.subjects[subject] = mine
		}
		s.mu.Unlock()
		if held == nil {
			break
		}
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer func() {
		s.mu.Lock()
		delete(s.subjects, subject)
		s.mu.Unlock()
		close(mine)
	}()
	return do()
}

// maxPings is how many registries are remembered. Strangers name them.
const maxPings = 1000

// ping returns what is known of a registry.
func (s *Shared) ping(registry name.Registry) *roundtrip.Ping {
	if s == nil {
		return &roundtrip.Ping{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.pings[registry]
	if known == nil {
		if s.pings == nil || len(s.pings) >= maxPings {
			s.pings = map[name.Registry]*roundtrip.Ping{} // whoever uses one keeps it
		}
		known = &roundtrip.Ping{}
		s.pings[registry] = known
	}
	return known
}

// upload sends a blob once for all that send it at the time. If the one who does so fails, which can be for a reason
// of its own, everybody else sends it.
func (s *Shared) upload(ctx context.Context, key string, send func() error) error {
	if s == nil {
		return send()
	}
	mine := false
	result := s.uploads.DoChan(key, func() (any, error) { mine = true; return nil, send() })
	select {
	case r := <-result:
		if r.Err != nil && !mine && ctx.Err() == nil {
			return send()
		}
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}
