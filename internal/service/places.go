package service

import (
	"context"
	"net/http"
	"sync"
)

// Bounds of what is asked of one registry.
const (
	perRegistry = 16 // requests at a time
	inLine      = 64 // that wait for one of these
)

// places bound what is asked of each registry at a time, so that one that does not answer keeps nobody from the others;
// or what is done about each target, one request after the other in the order in which they came.
type places struct {
	most int // at a time

	mu sync.Mutex
	of map[string]*place
}

type place struct {
	busy  chan struct{} // whoever waits for it gets it in turn
	users int           // who have it or wait for it
}

// enter waits for a place at something, which leave returns. If too many wait already, or it takes too long, the error
// is a refusal.
func (p *places) enter(ctx context.Context, what string) (leave func(), err error) {
	p.mu.Lock()
	at := p.of[what]
	if at == nil {
		at = &place{busy: make(chan struct{}, p.most)}
		if p.of == nil {
			p.of = map[string]*place{}
		}
		p.of[what] = at
	}
	full := at.users >= p.most+inLine
	if !full {
		at.users++
	}
	p.mu.Unlock()
	if full {
		return nil, refuse(http.StatusServiceUnavailable, "too many requests about %s at a time", what)
	}
	gone := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if at.users--; at.users == 0 {
			delete(p.of, what)
		}
	}
	select {
	case at.busy <- struct{}{}:
		return func() { <-at.busy; gone() }, nil
	case <-ctx.Done():
		gone()
		return nil, refuse(http.StatusServiceUnavailable, "those who asked about %s before have no answer yet", what)
	}
}
