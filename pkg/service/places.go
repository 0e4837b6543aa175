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

// places bound what is asked of each registry at a time: one that does not answer keeps nobody from the others. There are
// no more registries than the plan's rules name.
type places struct {
	mu sync.Mutex
	of map[string]*place
}

type place struct {
	busy    chan struct{}
	waiting int
}

// enter waits for a place at a registry, which leave returns. If too many wait already, or it takes too long, the error
// is a refusal.
func (p *places) enter(ctx context.Context, registry string) (leave func(), err error) {
	p.mu.Lock()
	at := p.of[registry]
	if at == nil {
		at = &place{busy: make(chan struct{}, perRegistry)}
		if p.of == nil {
			p.of = map[string]*place{}
		}
		p.of[registry] = at
	}
	full := at.waiting >= inLine
	if !full {
		at.waiting++
	}
	p.mu.Unlock()
	if full {
		return nil, refuse(http.StatusServiceUnavailable, "too many requests about %s at a time", registry)
	}
	defer func() {
		p.mu.Lock()
		at.waiting--
		p.mu.Unlock()
	}()
	select {
	case at.busy <- struct{}{}:
		return func() { <-at.busy }, nil
	case <-ctx.Done():
		return nil, refuse(http.StatusServiceUnavailable, "%s does not answer those who asked before", registry)
	}
}
