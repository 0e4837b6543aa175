package service_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/service"
)

// An earlier push, which has failed and is sent again, counts as one that was told of last.
func TestSentAgainIsNotTheLast(t *testing.T) {
	t.Parallel()
	for _, crowd := range []bool{true, false} {
		t.Run(fmt.Sprint(crowd), func(t *testing.T) {
			done := make(chan struct{})
			p := newPlace(t, func(o *service.Options) {
				host := strings.TrimSuffix(o.Plan.Convert[0].Repository, "/free")
				rules, err := plan.Parse("plan.yaml", fmt.Appendf(nil, "version: 1\ndefaults: {target: "+
					"'%[1]s/out/app:1'}\nconvert:\n- {repository: %[1]s/one, allowUnsigned: true}\n- {repository: "+
					"%[1]s/two, allowUnsigned: true}\n", host))
				require.NoError(t, err)
				o.Plan = rules
				if crowd {
					o.Queue = crowded{o.Queue, host + "/two", done}
				}
			})
			p.push("one:1", "older")
			p.push("two:1", "newer")
			if crowd {
				require.Eventually(t, func() bool {
					code, _ := p.convert(p.reg.Host + "/two:1")
					return code == http.StatusTooManyRequests
				}, 10*time.Second, 20*time.Millisecond)
			}
			one, two := p.reg.Digest(t, "one:1"), p.reg.Digest(t, "two:1")
			var failing atomic.Bool
			failing.Store(true)
			p.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if failing.Load() && strings.Contains(r.URL.Path, "/one/manifests/") {
					w.WriteHeader(502)
					return true
				}
				return false
			})
			code, _ := p.ask("POST", "/api/v1/notifications/harbor", harborEvent(p.reg.Host, "one:1", one))
			require.Equal(t, 502, code)
			code, _ = p.ask("POST", "/api/v1/notifications/harbor", harborEvent(p.reg.Host, "two:1", two))
			require.Equal(t, 202, code)
			failing.Store(false)
			code, _ = p.ask("POST", "/api/v1/notifications/harbor", harborEvent(p.reg.Host, "one:1", one)) // sent again
			require.Equal(t, 202, code)
			close(done)
			if crowd {
				time.Sleep(6 * time.Second)
			}
			p.work()
			time.Sleep(3 * time.Second)
			records, err := p.queue.Records(context.Background(), batch.Requests)
			require.NoError(t, err)
			ok := false
			for _, r := range records {
				if strings.Contains(r.Job.Source, two) && r.Status == batch.Converted {
					ok = r.Digest == p.reg.Digest(t, "out/app:1")
				}
			}
			assert.True(t, ok, "VOUCHES: two:1 was told of last, and taken")
		})
	}
}
