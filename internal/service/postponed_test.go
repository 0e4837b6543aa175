package service

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
)

type noQueue struct{ Queue }

func (noQueue) Last(context.Context, string, bool) (queue.Last, error) { return queue.Last{}, nil }

// A push that was postponed for long, as by a thousand conversions that wait, is left out only after it has failed for
// ten minutes.
func TestPostponedForLong(t *testing.T) {
	t.Parallel()
	busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable) // for a moment
	}))
	defer busy.Close()
	host := strings.TrimPrefix(busy.URL, "http://")
	rules, err := plan.Parse("plan.yaml",
		fmt.Appendf(nil, "version: 1\nconvert:\n- {repository: %s/app, allowUnsigned: true}\n", host))
	require.NoError(t, err)
	s := New(Options{Plan: rules, Queue: noQueue{}, Image: registry.Options{FirstPause: time.Millisecond}})
	ref, err := image.ParseRepository(host+"/app", true)
	require.NoError(t, err)
	_, img, err := rules.Rule(ref.Tag("1"))
	require.NoError(t, err)
	to, err := image.ParseName(img.Target, false)
	require.NoError(t, err)
	place := targetPlace(to)
	require.True(t, s.later.put(place, &postponed{image: host + "/app:1", repo: ref, order: 1}))
	for _, long := range []time.Duration{0, giveUp - time.Minute} {
		for registry, of := range s.later.begin() {
			of[place].failed = of[place].failed.Add(-long)
			require.NoError(t, s.askLaterOf(context.Background(), of))
			s.later.end(registry)
		}
		require.NotNil(t, s.later.at(place), "it has not failed for long")
	}
	for _, of := range s.later.begin() {
		of[place].failed = time.Now().Add(-giveUp - time.Second)
		require.NoError(t, s.askLaterOf(context.Background(), of))
	}
	assert.Nil(t, s.later.at(place), "it is left out")
}

// So many pushes of a repository are kept, and those of others.
func TestPostponedAreBounded(t *testing.T) {
	var l later
	of := func(repo string) name.Repository {
		r, err := image.ParseRepository("registry.example/"+repo, false)
		require.NoError(t, err)
		return r
	}
	app := of("app")
	for i := range maxLaterOfOne {
		require.True(t, l.put(fmt.Sprint(i), &postponed{repo: app}))
	}
	assert.False(t, l.put("one more", &postponed{repo: app}))
	assert.True(t, l.put("0", &postponed{repo: app, order: 1}), "it takes the place of one that is kept")
	assert.True(t, l.put("another", &postponed{repo: of("other")}))
}
