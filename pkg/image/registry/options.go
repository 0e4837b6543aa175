package registry

import (
	"context"
	"net/http"
	"time"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/google/go-containerregistry/pkg/authn"
)

// Options say how images are fetched and stored. The zero value is ready for use.
type Options struct {
	// Keychain finds credentials; nil: the Docker configuration and its helpers.
	Keychain authn.Keychain
	// HTTP sends requests to registries; nil: a transport with proxies from the environment.
	HTTP http.RoundTripper
	// Jobs is how many blobs are transferred at a time; 0: 4.
	Jobs int
	// FirstPause is the wait before the first repetition of a request; 0: half a second. It doubles.
	FirstPause time.Duration
	// Idle is how long a registry may be silent while something is expected of it; 0: DefaultIdle. Over that time it
	// must also send a kilobyte a second.
	Idle time.Duration
	// MaxAnswer is how many bytes a manifest, or another answer that is read whole, may have; 0: 4 MiB, as the OCI
	// distribution specification has it ("Pushing Manifests").
	MaxAnswer int64
	// OnlyRegistry leaves out other places from which an image says that its layers can be fetched. StrictNames follows
	// no redirect of a manifest to another repository, whatever host it is on.
	OnlyRegistry, StrictNames bool
	// Pace waits until a request may be sent, and returns what is to be called if it was answered. The registry is not
	// blamed for that time. Nil: there is no limit.
	Pace func(*http.Request) (done func(), err error)
	// Watch is told how transfers get on; nil: nobody is.
	Watch image.Watcher
	// BeforeTag is called right before a tag is moved; its error keeps the tag where it is. Nil: nobody is asked.
	BeforeTag func(context.Context) error
	// Shared is what transfers of many images have in common; nil: nothing.
	Shared *Shared
}

func (o Options) jobs() int {
	if o.Jobs > 0 {
		return o.Jobs
	}
	return 4
}

// DefaultIdle is how long a registry may be silent while something is expected of it.
const DefaultIdle = time.Minute
