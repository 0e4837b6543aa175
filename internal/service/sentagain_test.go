package service_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/service"
)

// A tag that was moved to A, to B, and back to A: the registry tells of each, and A's first notification failed. What
// the tag has last is what the target gets.
func TestMovedBackAfterAFailure(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.work()
	p.push("free:1", "a")
	a := p.reg.Digest(t, "free:1")
	failing := p.fails("/free/manifests/", 0)
	require.Equal(t, http.StatusBadGateway, p.harbor("free:1", a)) // nobody sends it again: the registry was restarted
	failing.Store(false)
	p.push("free:1", "b")
	b := p.reg.Digest(t, "free:1")
	require.Equal(t, http.StatusAccepted, p.harbor("free:1", b))
	time.Sleep(2 * time.Second)
	p.targetIsOf(b, "out/free:1")

	p.push("free:1", "a") // a rollback, which is told of anew
	require.Equal(t, a, p.reg.Digest(t, "free:1"))
	code, answer := p.ask("POST", "/api/v1/notifications/harbor", harborEvent(p.reg.Host, "free:1", a))
	t.Log(code, answer)
	require.Equal(t, http.StatusAccepted, code)
	time.Sleep(3 * time.Second)
	p.targetIsOf(a, "out/free:1")
}

// An earlier push, which has failed at one of two services and is sent to it again, does not count as the one that was
// told of last, whichever service was told of the later one.
func TestSentAgainAtAnotherService(t *testing.T) {
	t.Parallel()
	var o service.Options
	p := newPlace(t, func(own *service.Options) { oneTarget(t, own); o = *own })
	second := another(t, o)
	p.push("one:1", "older")
	p.push("two:1", "newer")
	one, two := p.reg.Digest(t, "one:1"), p.reg.Digest(t, "two:1")
	failing := p.fails("/one/manifests/", 0)
	require.Equal(t, http.StatusBadGateway, p.harbor("one:1", one))
	p.at(second, func() { require.Equal(t, http.StatusAccepted, p.harbor("two:1", two)) })
	failing.Store(false)
	require.Equal(t, http.StatusAccepted, p.harbor("one:1", one))
	p.work()
	time.Sleep(3 * time.Second)
	p.targetIsOf(two, "out/app:1")
}

// An earlier push, which took too long to be looked at, then failed, and is sent again, does not count as the one that
// was told of last.
func TestSlowThenFailedIsNotTheLast(t *testing.T) {
	t.Parallel()
	p := newPlace(t, func(o *service.Options) { oneTarget(t, o); o.AnswerIn = 300 * time.Millisecond })
	p.push("one:1", "older")
	p.push("two:1", "newer")
	one, two := p.reg.Digest(t, "one:1"), p.reg.Digest(t, "two:1")
	failing := p.fails("/one/manifests/", 200*time.Millisecond)
	require.Equal(t, http.StatusServiceUnavailable, p.harbor("one:1", one)) // it is being looked at
	time.Sleep(3 * time.Second)                                             // and fails
	require.Equal(t, http.StatusAccepted, p.harbor("two:1", two))
	failing.Store(false)
	require.Eventually(t, func() bool { return p.harbor("one:1", one) == http.StatusAccepted }, 20*time.Second,
		time.Second, "it is sent again until it is taken")
	p.work()
	time.Sleep(3 * time.Second)
	p.targetIsOf(two, "out/app:1")
}
