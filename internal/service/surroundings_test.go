package service_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/service"
)

// A body of which the rest does not arrive is answered by 202, and its push is lost.
func TestCutBody(t *testing.T) {
	t.Parallel()
	var o service.Options
	p := newPlace(t, func(own *service.Options) { o = *own })
	handler := service.New(o)
	p.push("free:1", "a")
	s := strings.TrimPrefix(p.url, "http://")
	event := pushedEvent(p.reg.Host, p.reg.Digest(t, "free:1"), "")
	for _, how := range []string{"half closed", "slow"} {
		url := s
		if how == "slow" {
			srv := httptest.NewUnstartedServer(handler)
			srv.Config.ReadTimeout = time.Second // serve: 10 s
			srv.Start()
			defer srv.Close()
			url = strings.TrimPrefix(srv.URL, "http://")
		}
		c, err := net.Dial("tcp", url)
		require.NoError(t, err)
		fmt.Fprintf(c, "POST /api/v1/notifications/distribution HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"+
			"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
			secret, len(event), event[:len(event)/2])
		if how == "half closed" {
			require.NoError(t, c.(*net.TCPConn).CloseWrite())
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err)
		resp.Body.Close()
		assert.GreaterOrEqual(t, resp.StatusCode, 300, "VOUCHES: taken, though it was not read: "+how)
	}
}

// crowdedWhen is crowded once it is told to be.
type crowdedWhen struct {
	service.Queue
	repository string
	full       *atomic.Bool
	done       chan struct{}
}

func (q crowdedWhen) Watch(ctx context.Context, id string, tell func(*batch.Record)) error {
	for !q.full.Load() {
		time.Sleep(20 * time.Millisecond)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return crowded{q.Queue, q.repository, q.done}.Watch(ctx, id, tell)
}

// The signature's payload is on a host whose certificate nobody trusts, or whose name is not found for a moment.
func TestSignatureElsewhere(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"certificate", "no such host", "401"} {
		t.Run(how, func(t *testing.T) {
			p := newPlace(t)
			p.push("signed:1", "a")
			p.sign("signed:1", p.keys[0], "", nil)
			storage := httptest.NewTLSServer(http.NotFoundHandler())
			defer storage.Close()
			to := map[string]string{"certificate": storage.URL, "no such host": "https://nowhere.invalid"}[how]
			p.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if !strings.Contains(r.URL.Path, "/signed/blobs/") {
					return false
				}
				if to == "" {
					w.WriteHeader(401)
				} else {
					http.Redirect(w, r, to+"/x", http.StatusTemporaryRedirect)
				}
				return true
			})
			code, answer := p.ask("POST", "/api/v1/notifications/harbor",
				harborEvent(p.reg.Host, "signed:1", p.reg.Digest(t, "signed:1")))
			assert.GreaterOrEqual(t, code, 500, "VOUCHES: %v", answer)
		})
	}
}
