package service

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sirupsen/logrus"

	"github.com/cconvert/cconvert/internal/bug"
	"github.com/cconvert/cconvert/internal/queue"
)

// later holds images that registries told of while too many conversions of their repository, or registry, were waiting.
// They are asked for once there is room. To have the registry send them again would hold back all later notifications,
// and anybody who may push to one repository could bring that about.
type later struct {
	mu      sync.Mutex
	of      map[string]*postponed   // by the place of the target: of several images the last one counts
	counts  map[name.Repository]int // of these
	done    map[string]request      // what was requested last for a target
	working map[string]bool         // registries that are being asked
}

type postponed struct {
	image  string
	repo   name.Repository
	order  uint64     // by Service.arrived
	last   queue.Last // the last request for its target, of those that came before it
	failed time.Time  // for the first time; zero: it has not
}

// request is one that was queued here: of which image, and what was the last one before and after. Order is the highest
// of the target so far. Row is what the last one was before and after each of those that were queued here in a row.
type request struct {
	of          string
	order       uint64
	before, now queue.Last
	row         []queue.Last
}

const (
	maxLater      = 100_000
	maxLaterOfOne = 10_000 // of a repository
	laterEvery    = 2 * time.Second
	maxRow        = 32 // requests for a target
)

// put keeps an image, unless a later one of the same target is kept. It reports false if too many of its repository are
// kept, or of all.
func (l *later) put(target string, p *postponed) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of, l.counts, l.working = map[string]*postponed{}, map[name.Repository]int{}, map[string]bool{}
	}
	if r := l.done[target]; r.order < p.order && r.before == p.last && r.now != (queue.Last{}) {
		p.last = r.now // an earlier one was queued since the last one was asked for
	}
	switch known := l.of[target]; {
	case known != nil && known.order > p.order:
		return true
	case known == nil && (l.counts[p.repo] >= maxLaterOfOne || len(l.of) >= maxLater):
		return false
	}
	l.remove(target)
	l.of[target] = p
	l.counts[p.repo]++
	return true
}

func (l *later) remove(target string) {
	p := l.of[target]
	if p == nil {
		return
	}
	delete(l.of, target)
	if l.counts[p.repo]--; l.counts[p.repo] == 0 {
		delete(l.counts, p.repo)
	}
}

// at returns what is kept for a target; nil: nothing.
func (l *later) at(target string) *postponed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of[target]
}

// requested notes that an image was requested for a target, which was asked for at some time: what is kept from before
// is forgotten, and what came after it will follow this request.
func (l *later) requested(target string, ref name.Reference, order uint64, before, now queue.Last) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done == nil || len(l.done) >= maxLater {
		l.done = map[string]request{}
	}
	was := l.done[target]
	row := []queue.Last{before}
	if was.row != nil && was.now == before {
		row = was.row[max(0, len(was.row)-maxRow):]
	}
	l.done[target] = request{ref.Name(), max(order, was.order), before, now, append(row, now)}
	switch p := l.of[target]; {
	case p == nil:
	case p.order <= order:
		l.remove(target)
	case p.last == before:
		p.last = now
	}
}

// overtaken reports whether something that was asked for later was requested for a target already, as when an earlier
// notification has failed and is sent again. Of the same image the tag decides, which can have been moved back.
func (l *later) overtaken(target string, ref name.Reference, order uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.done[target]
	return r.order > order && r.of != ref.Name()
}

// follows reports whether all requests for a target since one of them are of here, where their order is known.
func (l *later) follows(target string, since, last queue.Last) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.done[target]
	return r.row != nil && r.now == last && slices.Contains(r.row, since)
}

// drop forgets what is kept for a target, unless something else is by now.
func (l *later) drop(target string, p *postponed) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p == nil || l.of[target] != p {
		return false
	}
	l.remove(target)
	return true
}

// begin returns what is kept of each registry that nobody asks, by target. Whoever asks one calls end.
func (l *later) begin() map[string]map[string]*postponed {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := map[string]map[string]*postponed{}
	for target, p := range l.of {
		registry := p.repo.RegistryStr()
		if l.working[registry] {
			continue
		}
		if list[registry] == nil {
			list[registry] = map[string]*postponed{}
		}
		list[registry][target] = p
	}
	for registry := range list {
		l.working[registry] = true
	}
	return list
}

func (l *later) end(registry string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.working, registry)
}

// askLater asks for what was postponed, as there is room, until ctx ends. Registries wait for no other one.
func (s *Service) askLater(ctx context.Context) {
	for tick := time.NewTicker(laterEvery); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		for registry, of := range s.later.begin() {
			go func() {
				defer s.later.end(registry)
				if err := s.askLaterOf(ctx, of); err != nil {
					logrus.Error(err)
				}
			}()
		}
	}
}

// askLaterOf asks for what was postponed of a registry, as far as there is room. If the registry does not answer, it is
// asked another time.
func (s *Service) askLaterOf(ctx context.Context, of map[string]*postponed) (err error) {
	defer bug.Catch(&err)
	room := map[name.Repository]int{}
	for target, p := range of {
		if _, ok := room[p.repo]; !ok {
			ofRegistry, ofRepository := s.waiting(p.repo)
			room[p.repo] = min(maxOfOne-ofRepository, maxWaiting-ofRegistry)
		}
		if room[p.repo] <= 0 {
			continue
		}
		room[p.repo]--
		once, cancel := context.WithTimeout(ctx, askFor)
		_, err := s.ask(once, p.image, "", moment{order: p.order}, p)
		cancel()
		switch {
		case errors.Is(err, errMany):
			continue
		case passes(err):
			if p.failed.IsZero() {
				p.failed = time.Now()
			}
			if time.Since(p.failed) < giveUp {
				return nil
			}
		}
		if s.later.drop(target, p) && err != nil {
			logrus.Infof("left out: %v", err)
		}
	}
	return nil
}

// passes reports whether an error of ask is of what may pass.
func passes(err error) bool {
	var refused *refusal
	return errors.As(err, &refused) && refused.code >= http.StatusInternalServerError
}
