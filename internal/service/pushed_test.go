package service_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/internal/service"
)

// A push that was told of last, and postponed, is asked for, though an earlier one of another repository with the same
// target still waited for its turn then.
func TestPostponedByAnEarlierOne(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	p := newPlace(t, func(o *service.Options) { o.Queue = crowded{o.Queue, oneTarget(t, o) + "/two", done} })
	p.push("one:1", "older")
	p.push("two:1", "newer")
	p.untilCrowded("two:1")
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
	go p.harbor("one:1", p.reg.Digest(t, "one:1"))
	time.Sleep(500 * time.Millisecond)
	code := p.harbor("two:1", p.reg.Digest(t, "two:1"))
	close(release)
	close(done) // now there is room
	require.Equal(t, http.StatusAccepted, code)
	require.Eventually(t, func() bool { return strings.Contains(p.sources(), "/two@") }, 20*time.Second,
		100*time.Millisecond, "what was told of last is asked for")
}

// What one of two services has postponed is not asked for after what the other one was told of since.
func TestPostponedByTwoServices(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	var o service.Options
	p := newPlace(t, func(own *service.Options) {
		host := oneTarget(t, own)
		o = *own
		own.Queue = crowded{own.Queue, host + "/one", done}
	})
	second := another(t, o)
	p.push("one:1", "older")
	p.push("two:1", "newer")
	p.untilCrowded("one:1")
	require.Equal(t, http.StatusAccepted, p.harbor("one:1", p.reg.Digest(t, "one:1")))
	p.at(second, func() { require.Equal(t, http.StatusAccepted, p.harbor("two:1", p.reg.Digest(t, "two:1"))) })
	p.work()
	close(done)
	time.Sleep(6 * time.Second)
	p.targetIsOf("/two@", "out/app:1")
}

// crowdedWhen is crowded once it is told to be.
type crowdedWhen struct {
	service.Queue
	repository string
	full       *atomic.Bool
	done       chan struct{}
}

func (q crowdedWhen) Watch(ctx context.Context, id string, tell func(*queue.Record)) error {
	for !q.full.Load() {
		time.Sleep(20 * time.Millisecond)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return crowded{q.Queue, q.repository, q.done}.Watch(ctx, id, tell)
}

// What one of two services has postponed is asked for, though the other one was still asking for an earlier push of the
// same tag.
func TestPostponedBeforeElsewhere(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	var o service.Options
	var full atomic.Bool
	p := newPlace(t, func(own *service.Options) {
		o = *own
		own.Queue = crowdedWhen{own.Queue, own.Plan.Convert[0].Repository, &full, done}
	})
	second := another(t, o)
	p.push("free:1", "older")
	older := harborEvent(p.reg.Host, "free:1", p.reg.Digest(t, "free:1"))
	at, goOn := p.holdTag("/free/manifests/1")
	first := make(chan int)
	go func() {
		req, err := http.NewRequest(http.MethodPost, second+"/api/v1/notifications/harbor", strings.NewReader(older))
		assert.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+secret)
		resp, err := http.DefaultClient.Do(req)
		if assert.NoError(t, err) {
			resp.Body.Close()
			first <- resp.StatusCode
		}
	}()
	<-at
	p.push("free:1", "newer")
	newer := p.reg.Digest(t, "free:1")
	full.Store(true)
	time.Sleep(1500 * time.Millisecond)
	code := p.harbor("free:1", newer)
	close(goOn)
	require.Equal(t, http.StatusAccepted, code)
	require.Equal(t, http.StatusAccepted, <-first)
	close(done)
	require.Eventually(t, func() bool { return strings.Contains(p.sources(), newer) }, 20*time.Second,
		100*time.Millisecond)
}

// More pushes than conversions may wait are asked for once there is room.
func TestManyPushesOfARepository(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	p := newPlace(t, func(o *service.Options) { o.Queue = crowded{o.Queue, o.Plan.Convert[0].Repository, done} })
	p.push("free:t999", "the 1000th")
	p.push("free:t1000", "the 1001st")
	p.untilCrowded("free:t999")
	for i := range 1001 {
		require.Equal(t, http.StatusAccepted, p.harbor(fmt.Sprintf("free:t%d", i), ""), i)
	}
	close(done)
	for _, tag := range []string{"free:t999", "free:t1000"} {
		require.Eventually(t, func() bool { return strings.Contains(p.sources(), p.reg.Digest(t, tag)) },
			30*time.Second, 200*time.Millisecond, tag)
	}
}

// An answer that is kept, because it came too late, holds only as long as nothing else was requested for the target: by
// somebody else, or at another service.
func TestKeptNotice(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"request", "other service"} {
		t.Run(how, func(t *testing.T) {
			var o service.Options
			p := newPlace(t, func(own *service.Options) { own.AnswerIn = 50 * time.Millisecond; o = *own })
			second := another(t, o)
			p.push("free:1", "a")
			a := p.reg.Digest(t, "free:1")
			var slow atomic.Bool
			slow.Store(true)
			p.reg.Intercept(func(http.ResponseWriter, *http.Request, int) bool {
				if slow.Load() {
					time.Sleep(200 * time.Millisecond)
				}
				return false
			})
			require.Equal(t, http.StatusServiceUnavailable, p.harbor("free:1", a))
			time.Sleep(2 * time.Second)
			slow.Store(false)
			// The tag is moved to B, which is asked for elsewhere, and back to A.
			p.push("free:1", "b")
			var code int
			if how == "request" {
				code, _ = p.convert(p.reg.Host + "/free:1")
			} else {
				p.at(second, func() { code = p.harbor("free:1", p.reg.Digest(t, "free:1")) })
			}
			require.Equal(t, http.StatusAccepted, code)
			p.push("free:1", "a")
			require.Equal(t, http.StatusAccepted, p.harbor("free:1", a))
			p.work()
			require.Eventually(t, func() bool {
				for _, r := range p.records() {
					if !r.Status.Final() {
						return false
					}
				}
				return true
			}, 20*time.Second, 50*time.Millisecond)
			for _, r := range p.records() {
				if strings.HasSuffix(r.Job.Source, a) {
					assert.Contains(t, []queue.Status{queue.Converted, queue.Unchanged}, r.Status)
				}
			}
			assert.Contains(t, p.sources(), a)
		})
	}
}

// Nor does it hold while another push to the same target is being looked at: of A, B and A the last one counts.
func TestKeptWhileAnotherIsUnderWay(t *testing.T) {
	t.Parallel()
	p := newPlace(t, func(o *service.Options) { o.AnswerIn = 300 * time.Millisecond })
	p.push("free:1", "a")
	a := p.reg.Digest(t, "free:1")
	p.reg.Intercept(func(http.ResponseWriter, *http.Request, int) bool {
		time.Sleep(400 * time.Millisecond)
		return false
	})
	require.Equal(t, http.StatusServiceUnavailable, p.harbor("free:1", a))
	time.Sleep(2 * time.Second)
	p.push("free:1", "b")
	b := p.reg.Digest(t, "free:1")
	at, goOn := p.holdTag("/free/manifests/1")
	require.Equal(t, http.StatusServiceUnavailable, p.harbor("free:1", b))
	<-at
	p.push("free:1", "a")
	require.Equal(t, a, p.reg.Digest(t, "free:1"))
	assert.Equal(t, http.StatusServiceUnavailable, p.harbor("free:1", a))
	close(goOn)
	time.Sleep(time.Second)
	p.harbor("free:1", b) // sent again
	p.work()
	require.Eventually(t, func() bool { return p.harbor("free:1", a) == http.StatusAccepted }, 10*time.Second,
		100*time.Millisecond)
	time.Sleep(3 * time.Second)
	for _, r := range p.records() {
		if strings.HasSuffix(r.Job.Source, a) {
			assert.Contains(t, []queue.Status{queue.Converted, queue.Unchanged}, r.Status, "it was pushed last")
		}
	}
	assert.Contains(t, p.sources(), a)
}

// That nothing came of a push, whose tag had been moved on, does not hold once the tag has it again.
func TestKeptNothing(t *testing.T) {
	t.Parallel()
	p := newPlace(t, func(o *service.Options) { o.AnswerIn = 700 * time.Millisecond })
	p.push("free:1", "a")
	a := p.reg.Digest(t, "free:1")
	p.push("free:1", "b")
	require.Equal(t, http.StatusServiceUnavailable, p.harbor("free:1", a))
	time.Sleep(1200 * time.Millisecond)
	p.push("free:1", "a")
	require.Eventually(t, func() bool { return p.harbor("free:1", a) == http.StatusAccepted }, 10*time.Second,
		100*time.Millisecond)
	assert.Contains(t, p.sources(), a)
}

// An earlier push, which has failed and is sent again, does not count as the one that was told of last.
func TestSentAgainIsNotTheLast(t *testing.T) {
	t.Parallel()
	for _, crowd := range []bool{true, false} {
		t.Run(fmt.Sprint(crowd), func(t *testing.T) {
			done := make(chan struct{})
			p := newPlace(t, func(o *service.Options) {
				if host := oneTarget(t, o); crowd {
					o.Queue = crowded{o.Queue, host + "/two", done}
				}
			})
			p.push("one:1", "older")
			p.push("two:1", "newer")
			if crowd {
				p.untilCrowded("two:1")
			}
			one, two := p.reg.Digest(t, "one:1"), p.reg.Digest(t, "two:1")
			failing := p.fails("/one/manifests/", 0)
			require.Equal(t, http.StatusBadGateway, p.harbor("one:1", one))
			require.Equal(t, http.StatusAccepted, p.harbor("two:1", two))
			failing.Store(false)
			require.Equal(t, http.StatusAccepted, p.harbor("one:1", one))
			close(done)
			if crowd {
				time.Sleep(6 * time.Second)
			}
			p.work()
			time.Sleep(3 * time.Second)
			p.targetIsOf(two, "out/app:1")
		})
	}
}

// Harbor's webhooks have two formats (Harbor, "Configure Webhook Notifications"). What is of another kind is refused.
func TestFormats(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.push("free:1", "a")
	digest := p.reg.Digest(t, "free:1")
	event := fmt.Sprintf(
		`{"specversion":"1.0","id":"66e18103-f533-4953-b11a-3559e8ac45e1","source":"/projects/2/webhook/policies/2",
		"type":"harbor.artifact.pushed","datacontenttype":"application/json","time":"2023-04-03T06:48:18Z",
		"data":{"resources":[{"digest":%q,"tag":"1","resource_url":"%s/free:1"}],
		"repository":{"date_created":1,"name":"free","namespace":"x","repo_full_name":"free","repo_type":"private"}},
		"operator":"robot"}`,
		digest, p.reg.Host)
	for _, c := range []struct {
		path, body string
		want       int
	}{
		{"harbor", event, http.StatusAccepted},
		{"harbor", pushedEvent(p.reg.Host, digest, ""), http.StatusBadRequest},
		{"distribution", harborEvent(p.reg.Host, "free:1", digest), http.StatusBadRequest},
	} {
		code, answer := p.ask("POST", "/api/v1/notifications/"+c.path, c.body)
		assert.Equal(t, c.want, code, "%s: %v", c.path, answer)
	}
	assert.Contains(t, p.sources(), digest)
}

// A notification of which the rest does not arrive is to be sent again.
func TestCutBody(t *testing.T) {
	t.Parallel()
	var o service.Options
	p := newPlace(t, func(own *service.Options) { o = *own })
	p.push("free:1", "a")
	event := pushedEvent(p.reg.Host, p.reg.Digest(t, "free:1"), "")
	slow := httptest.NewUnstartedServer(service.New(o))
	slow.Config.ReadTimeout = time.Second
	slow.Start()
	defer slow.Close()
	for how, url := range map[string]string{"half closed": p.url, "slow": slow.URL} {
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
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
		assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode, how)
	}
}

// late is a queue whose news come late, in their order.
type late struct{ service.Queue }

func (q late) Watch(ctx context.Context, id string, tell func(*queue.Record)) error {
	return q.Queue.Watch(ctx, id, func(r *queue.Record) {
		c := *r
		go func() { time.Sleep(2 * time.Second); tell(&c) }()
	})
}

// Whoever asks once more is not told what became of the request before.
func TestLateNews(t *testing.T) {
	t.Parallel()
	p := newPlace(t, func(o *service.Options) { o.Queue = late{o.Queue} })
	p.work()
	ref := p.push("free:1", "1")
	_, first := p.convert(ref)
	require.Eventually(t, func() bool {
		records := p.records()
		return len(records) == 1 && records[0].Status.Final()
	}, 10*time.Second, 10*time.Millisecond)
	p.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.Contains(r.URL.Path, "/free/manifests/sha256:") { // the second conversion takes four seconds
			time.Sleep(4 * time.Second)
		}
		return false
	})
	time.Sleep(time.Second)
	code, again := p.convert(ref) // before the news of the first one have come
	require.Equal(t, http.StatusAccepted, code)
	require.Equal(t, first["id"], again["id"])
	assert.Equal(t, "unchanged", p.done(again["id"])["status"], "the first one is converted")
}

type helper struct{ fails *atomic.Bool }

func (h helper) Resolve(authn.Resource) (authn.Authenticator, error) {
	if h.fails.Load() {
		return nil, errors.New("credential helper: dial tcp 169.254.169.254:80: i/o timeout")
	}
	return authn.Anonymous, nil
}

// What is wrong with the service's own surroundings is not the image's fault: the notification is to be sent again.
func TestNotTheImagesFault(t *testing.T) {
	t.Parallel()
	var fails, unauthorized, absent atomic.Bool
	p := newPlace(t, func(o *service.Options) {
		o.Image.Keychain = helper{&fails}
		rules, err := plan.Parse("plan.yaml", fmt.Appendf(nil, `version: 1
defaults: {target: 'registry.example/out/{{.Repository}}:{{.Tag}}'}
convert:
- {repository: %s, allowUnsigned: true}
- {repository: 'nowhere.invalid/free', allowUnsigned: true}
`, o.Plan.Convert[0].Repository))
		require.NoError(t, err)
		o.Plan = rules
		job := o.Job
		o.Job = func(img plan.Image) (queue.Job, error) {
			if absent.Load() { // a file that an option names, while it is replaced
				return queue.Job{}, &fs.PathError{Op: "open", Path: "own.toml", Err: fs.ErrNotExist}
			}
			return job(img)
		}
	})
	p.push("free:1", "1")
	digest := p.reg.Digest(t, "free:1")
	p.reg.Intercept(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		if unauthorized.Load() {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	})
	for what, now := range map[string]*atomic.Bool{
		"credential helper": &fails, "401": &unauthorized, "a file of an option": &absent,
	} {
		now.Store(true)
		assert.GreaterOrEqual(t, p.harbor("free:1", digest), 500, what)
		now.Store(false)
	}
	code, _ := p.ask("POST", "/api/v1/notifications/harbor", harborEvent("nowhere.invalid", "free:1", digest))
	assert.GreaterOrEqual(t, code, 500, "no such host")
}

// So it is if the signature's payload is on a host whose certificate nobody trusts, whose name is not found, or that
// refuses.
func TestSignatureElsewhere(t *testing.T) {
	t.Parallel()
	storage := httptest.NewTLSServer(http.NotFoundHandler())
	defer storage.Close()
	for how, to := range map[string]string{
		"certificate": storage.URL, "no such host": "https://nowhere.invalid", "401": "",
	} {
		t.Run(how, func(t *testing.T) {
			p := newPlace(t)
			p.push("signed:1", "a")
			p.sign("signed:1", p.keys[0], "", nil)
			p.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				switch {
				case !strings.Contains(r.URL.Path, "/signed/blobs/"):
					return false
				case to == "":
					w.WriteHeader(http.StatusUnauthorized)
				default:
					http.Redirect(w, r, to+"/x", http.StatusTemporaryRedirect)
				}
				return true
			})
			assert.GreaterOrEqual(t, p.harbor("signed:1", p.reg.Digest(t, "signed:1")), 500)
		})
	}
}
