package service

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// later holds images that registries told of while too many conversions of their repository, or registry, were waiting.
// They are asked for once there is room. To have the registry send them again would hold back all later notifications,
// and anybody who may push to one repository could bring that about.
type later struct {
	mu sync.Mutex
	of map[string]*postponed // by the place of the target: of several images the last one counts
}

type postponed struct {
	image string
	since time.Time
}

const (
	maxLater   = 10_000
	laterEvery = 2 * time.Second
)

// put keeps an image. It reports false if too many are kept.
func (l *later) put(target, image string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[string]*postponed{}
	}
	if l.of[target] == nil && len(l.of) >= maxLater {
		return false
	}
	l.of[target] = &postponed{image, time.Now()}
	return true
}

// drop forgets what was kept for a target; with an image, only that one. It reports whether there was one.
func (l *later) drop(target string, only *postponed) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at := l.of[target]; at == nil || only != nil && at != only {
		return false
	}
	delete(l.of, target)
	return true
}

// counts reports whether an image is still the last one for its target.
func (l *later) counts(target string, p *postponed) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of[target] == p
}

func (l *later) all() map[string]*postponed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.of)
}

// askLater asks for what was postponed, as there is room, until ctx ends.
func (s *Service) askLater(ctx context.Context) {
	for tick := time.NewTicker(laterEvery); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		for target, p := range s.later.all() {
			once, cancel := context.WithTimeout(ctx, askFor)
			_, err := s.ask(once, p.image, "", p)
			cancel()
			if errors.Is(err, errMany) || passes(err) && time.Since(p.since) < giveUp {
				continue
			}
			if s.later.drop(target, p) && err != nil {
				logrus.Infof("left out: %v", err)
			}
		}
	}
}

// passes reports whether an error of ask is of what may pass.
func passes(err error) bool {
	var refused *refusal
	return errors.As(err, &refused) && refused.code >= http.StatusInternalServerError
}
