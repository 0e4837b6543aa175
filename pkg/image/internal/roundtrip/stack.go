// Package roundtrip sends requests to one registry: again if their answer is transient, no longer than it is worth, as
// slowly as it is wanted, over TLS, and to no other repository than the one that was asked for.
package roundtrip

import (
	"net/http"
	"net/url"
	"time"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Stack is how a registry is spoken to.
type Stack struct {
	// Registry sends requests to the registry.
	Registry http.RoundTripper
	// Others is for hosts that the registry's images name, without what is known of the registry. Answers are streams.
	Others http.RoundTripper

	pace *paced // nil: there is no limit
}

// Options say how requests are sent. All but HTTP and the last three fields are set.
type Options struct {
	HTTP       http.RoundTripper // nil: go-containerregistry's, with proxies from the environment
	FirstPause time.Duration     // before the first repetition of a request
	Idle       time.Duration     // how long the registry may be silent
	MaxAnswer  int64             // bytes of an answer that is read whole
	Ping       *Ping

	StrictNames bool // no redirect of a manifest to another repository is followed, whatever host it is on
	Pace        func(*http.Request) (done func(), err error)
	Watch       image.Watcher
}

// New prepares to speak to a registry.
func New(registry name.Registry, o Options) *Stack {
	s := &Stack{}
	inner := o.HTTP
	if inner == nil {
		inner = remote.DefaultTransport
	}
	if !image.AllowsHTTP(registry) {
		inner = &requireTLS{inner, image.OnThisMachine((&url.URL{Host: registry.RegistryStr()}).Hostname())}
	}
	once := http.RoundTripper(&patient{inner, o.Idle})
	if o.Pace != nil {
		s.pace = &paced{inner: once, wait: o.Pace, taken: map[string]int{}}
		once = s.pace
	}
	told := func(rt http.RoundTripper) http.RoundTripper {
		rt = transport.NewUserAgent(rt, "cconvert")
		if o.Watch == nil {
			return rt
		}
		return &watched{rt, o.Watch, registry.RegistryStr()}
	}
	repeated := &checkedDocuments{&retryTransport{inner: once, first: o.FirstPause, limit: o.MaxAnswer}}
	s.Registry = told(&rememberedPing{
		Ping: o.Ping, inner: &sameRepository{repeated, o.StrictNames}, once: once,
	})
	s.Others = told(&retryTransport{inner: once, first: o.FirstPause, streams: true})
	return s
}

// TakeTurns waits for the turns of requests that will follow one upon the other, so that nothing is waited for between
// them. Over is to be called after the last, or if they are not sent.
func (s *Stack) TakeTurns(requests ...*http.Request) (over func(), err error) {
	if s.pace == nil {
		return func() {}, nil
	}
	return s.pace.takeTurns(requests)
}
