package service_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/service"
)

func harborEvent(host, image, digest string) string {
	return fmt.Sprintf(`{"type":"PUSH_ARTIFACT","event_data":{"resources":[{"resource_url":"%s/%s","digest":%q}]}}`,
		host, image, digest)
}

// A push that was told of last, and postponed, is lost: an earlier one of another repository with the same target,
// which still waited for its turn, takes it for one that it replaces.
func TestPostponedByAnEarlierOne(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	p := newPlace(t, func(o *service.Options) {
		host := strings.TrimSuffix(o.Plan.Convert[0].Repository, "/free")
		rules, err := plan.Parse("plan.yaml", fmt.Appendf(nil, `version: 1
defaults: {target: '%[1]s/out/app:1'}
convert:
- {repository: %[1]s/one, allowUnsigned: true}
- {repository: %[1]s/two, allowUnsigned: true}
`, host))
		require.NoError(t, err)
		o.Plan = rules
		o.Queue = crowded{o.Queue, host + "/two", done}
	})
	p.push("one:1", "older")
	p.push("two:1", "newer")
	require.Eventually(t, func() bool {
		code, _ := p.convert(p.reg.Host + "/two:1")
		return code == http.StatusTooManyRequests
	}, 10*time.Second, 20*time.Millisecond)
	// one request about the target is at its registry; the older push waits for its turn
	reached, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	p.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.HasSuffix(r.URL.Path, "/one/manifests/absent") && !once.Swap(true) {
			close(reached)
			<-release
		}
		return false
	})
	go p.convert(p.reg.Host + "/one:absent")
	<-reached
	first := make(chan int)
	go func() {
		code, _ := p.ask("POST", "/api/v1/notifications/harbor",
			harborEvent(p.reg.Host, "one:1", p.reg.Digest(t, "one:1")))
		first <- code
	}()
	time.Sleep(500 * time.Millisecond)
	// the newer push is told of, and taken
	code, _ := p.ask("POST", "/api/v1/notifications/harbor",
		harborEvent(p.reg.Host, "two:1", p.reg.Digest(t, "two:1")))
	require.Equal(t, http.StatusAccepted, code)
	close(release)
	close(done) // now there is room
	time.Sleep(6 * time.Second)
	records, err := p.queue.Records(context.Background(), batch.Requests)
	require.NoError(t, err)
	var sources []string
	for _, r := range records {
		sources = append(sources, r.Job.Source)
	}
	assert.Contains(t, strings.Join(sources, " "), "/two@", "what was told of last was asked for")
}

// What came of a notification is kept for a minute: what was asked for since by a request, or of another service, is
// not seen.
func TestKeptNotice(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"request", "other service"} {
		t.Run(how, func(t *testing.T) {
			var o service.Options
			p := newPlace(t, func(own *service.Options) { own.AnswerIn = 50 * time.Millisecond; o = *own })
			second := service.New(o)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go func() { _ = second.Run(ctx) }()
			server := httptest.NewServer(second)
			defer server.Close()
			p.push("free:1", "a")
			a := p.reg.Digest(t, "free:1")
			var slow atomic.Bool
			slow.Store(true)
			p.reg.Intercept(func(_ http.ResponseWriter, _ *http.Request, _ int) bool {
				if slow.Load() {
					time.Sleep(200 * time.Millisecond)
				}
				return false
			})
			event := harborEvent(p.reg.Host, "free:1", a)
			code, _ := p.ask("POST", "/api/v1/notifications/harbor", event)
			require.Equal(t, http.StatusServiceUnavailable, code)
			time.Sleep(2 * time.Second)
			slow.Store(false)
			// The tag is moved to B, which is asked for elsewhere.
			p.push("free:1", "b")
			b := p.reg.Digest(t, "free:1")
			if how == "request" {
				code, _ = p.convert(p.reg.Host + "/free:1")
			} else {
				first := p.url
				p.url = server.URL
				code, _ = p.ask("POST", "/api/v1/notifications/harbor", harborEvent(p.reg.Host, "free:1", b))
				p.url = first
			}
			require.Equal(t, http.StatusAccepted, code)
			// and back to A
			p.push("free:1", "a")
			require.Equal(t, a, p.reg.Digest(t, "free:1"))
			code, _ = p.ask("POST", "/api/v1/notifications/harbor", event)
			require.Equal(t, http.StatusAccepted, code)
			p.work()
			require.Eventually(t, func() bool {
				records, err := p.queue.Records(context.Background(), batch.Requests)
				require.NoError(t, err)
				for _, r := range records {
					if !r.Status.Final() {
						return false
					}
				}
				return true
			}, 20*time.Second, 50*time.Millisecond)
			records, err := p.queue.Records(context.Background(), batch.Requests)
			require.NoError(t, err)
			for _, r := range records {
				if strings.HasSuffix(r.Job.Source, a) {
					assert.Contains(t, []batch.Status{batch.Converted, batch.Unchanged}, r.Status,
						"A was pushed last and accepted")
				}
			}
		})
	}
}

// Harbor's webhooks have two formats. That of CloudEvents is answered by 200, and nothing is done or said.
func TestFormats(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.push("free:1", "a")
	event := fmt.Sprintf(
		`{"specversion":"1.0","id":"66e18103-f533-4953-b11a-3559e8ac45e1","source":"/projects/2/webhook/policies/2",
		"type":"harbor.artifact.pushed","datacontenttype":"application/json","time":"2023-04-03T06:48:18Z",
		"data":{"resources":[{"digest":%q,"tag":"1","resource_url":"%s/free:1"}],
		"repository":{"date_created":1,"name":"free","namespace":"x","repo_full_name":"free","repo_type":"private"}},
		"operator":"robot"}`,
		p.reg.Digest(t, "free:1"), p.reg.Host)
	for path, body := range map[string]string{
		"harbor":       event,
		"distribution": harborEvent(p.reg.Host, "free:1", p.reg.Digest(t, "free:1")),
		"harbor?":      pushedEvent(p.reg.Host, p.reg.Digest(t, "free:1"), ""),
	} {
		code, answer := p.ask("POST", "/api/v1/notifications/"+path, body)
		assert.False(t, code < 300 && len(answer["conversions"].([]any)) == 0, path)
	}
}

// What one of two services has postponed is asked for after what the other one was told of since, and replaces it.
func TestPostponedByTwoServices(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	var o service.Options
	p := newPlace(t, func(own *service.Options) {
		host := strings.TrimSuffix(own.Plan.Convert[0].Repository, "/free")
		rules, err := plan.Parse("plan.yaml", fmt.Appendf(nil, "version: 1\ndefaults: {target: '%[1]s/out/app:1'}\n"+
			"convert:\n- {repository: %[1]s/one, allowUnsigned: true}\n- {repository: %[1]s/two, allowUnsigned: "+
			"true}\n", host))
		require.NoError(t, err)
		own.Plan = rules
		o = *own
		own.Queue = crowded{own.Queue, host + "/one", done}
	})
	second := service.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = second.Run(ctx) }()
	server := httptest.NewServer(second)
	defer server.Close()
	p.push("one:1", "older")
	p.push("two:1", "newer")
	require.Eventually(t, func() bool {
		code, _ := p.convert(p.reg.Host + "/one:1")
		return code == http.StatusTooManyRequests
	}, 10*time.Second, 20*time.Millisecond)
	code, _ := p.ask("POST", "/api/v1/notifications/harbor",
		harborEvent(p.reg.Host, "one:1", p.reg.Digest(t, "one:1")))
	require.Equal(t, http.StatusAccepted, code)
	first := p.url
	p.url = server.URL
	code, _ = p.ask("POST", "/api/v1/notifications/harbor",
		harborEvent(p.reg.Host, "two:1", p.reg.Digest(t, "two:1")))
	require.Equal(t, http.StatusAccepted, code)
	p.url = first
	p.work()
	close(done)
	time.Sleep(6 * time.Second)
	records, err := p.queue.Records(ctx, batch.Requests)
	require.NoError(t, err)
	for _, r := range records {
		if strings.Contains(r.Job.Source, "/two@") {
			assert.Equal(t, r.Digest, p.reg.Digest(t, "out/app:1"), "the target has what was told of last")
		}
	}
}

// late is a queue whose news come late, in their order.
type late struct{ service.Queue }

func (q late) Watch(ctx context.Context, id string, tell func(*batch.Record)) error {
	return q.Queue.Watch(ctx, id, func(r *batch.Record) {
		c := *r
		go func() { time.Sleep(2 * time.Second); tell(&c) }()
	})
}

// Whoever asks once more and looks at what becomes of it is told what became of the request before.
func TestLateNews(t *testing.T) {
	t.Parallel()
	p := newPlace(t, func(o *service.Options) { o.Queue = late{o.Queue} })
	p.work()
	ref := p.push("free:1", "1")
	_, first := p.convert(ref)
	require.Eventually(t, func() bool {
		records, err := p.queue.Records(context.Background(), batch.Requests)
		return err == nil && len(records) == 1 && records[0].Status.Final()
	}, 10*time.Second, 10*time.Millisecond)
	p.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.Contains(r.URL.Path, "/free/manifests/sha256:") { // the second conversion takes four seconds
			time.Sleep(4 * time.Second)
		}
		return false
	})
	time.Sleep(time.Second)
	code, again := p.convert(ref) // a second request, before the news of the first one have come
	require.Equal(t, 202, code)
	require.Equal(t, first["id"], again["id"])
	for range 100 {
		_, c := p.ask("GET", "/api/v1/conversions/"+again["id"].(string), "")
		if c["status"] == "converted" {
			assert.Fail(t, "the status of the first request (the second one's is \"unchanged\")")
			return
		}
		if c["status"] == "unchanged" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

type helper struct{ fails *atomic.Bool }

func (h helper) Resolve(authn.Resource) (authn.Authenticator, error) {
	if h.fails.Load() {
		return nil,
			errors.New("credential helper: RequestError: send request failed: dial tcp 169.254.169.254:80: i/o timeout")
	}
	return authn.Anonymous, nil
}

// What is wrong with the service's own surroundings for a moment is answered as if it were the image's fault.
func TestNotTheImagesFault(t *testing.T) {
	t.Parallel()
	var fails, unauthorized atomic.Bool
	p := newPlace(t, func(o *service.Options) {
		o.Image.Keychain = helper{&fails}
		host := o.Plan.Convert[0].Repository
		rules, err := plan.Parse("plan.yaml", fmt.Appendf(nil, "version: 1\ndefaults: {target: "+
			"'registry.example/out/{{.Repository}}:{{.Tag}}'}\nconvert:\n- {repository: %s, allowUnsigned: true}\n- "+
			"{repository: 'nowhere.invalid/free', allowUnsigned: true}\n", host))
		require.NoError(t, err)
		o.Plan = rules
	})
	p.push("free:1", "1")
	var digest string
	p.reg.Intercept(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		if unauthorized.Load() {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	})
	tell := func(what, host string) {
		code, _ := p.ask("POST", "/api/v1/notifications/harbor", harborEvent(host, "free:1", digest))
		assert.GreaterOrEqual(t, code, 500, what)
	}
	digest = p.reg.Digest(t, "free:1")
	fails.Store(true)
	tell("credential helper", p.reg.Host)
	fails.Store(false)
	unauthorized.Store(true)
	tell("401", p.reg.Host)
	tell("no such host", "nowhere.invalid")
}
