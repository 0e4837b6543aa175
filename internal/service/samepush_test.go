package service_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/service"
)

// One tag, of which one request writes the port that goes without saying: "of the same image the tag decides".
func TestPortOfTheSameTag(t *testing.T) {
	p := newPlace(t, func(o *service.Options) {
		host := strings.TrimSuffix(o.Plan.Convert[0].Repository, "/free")
		rules, err := plan.Parse("plan.yaml", []byte(`version: 1
defaults: {target: 'registry.example/out/{{.Repository}}:{{.Tag}}'}
convert:
- {repository: registry.example/app, allowUnsigned: true}
`))
		require.NoError(t, err)
		o.Plan, o.Image.HTTP = rules, fixture.ToHost(host)
	})
	p.push("app:1", "a")
	a := p.reg.Digest(t, "app:1")
	failing := p.fails("/app/manifests/", 0)
	tell := func() (int, map[string]any) {
		return p.ask("POST", "/api/v1/notifications/harbor", harborEvent("registry.example", "app:1", a))
	}
	code, _ := tell()
	require.Equal(t, http.StatusBadGateway, code)
	failing.Store(false)
	p.push("app:1", "b")
	code, _ = p.convert("registry.example:443/app:1")
	require.Equal(t, http.StatusAccepted, code)
	p.push("app:1", "a") // moved back, which is told of
	require.Equal(t, a, p.reg.Digest(t, "app:1"))
	code, answer := tell()
	require.Equal(t, http.StatusAccepted, code)
	assert.NotEmpty(t, answer["conversions"], "the push was taken, and nothing comes of it")
	assert.Contains(t, p.sources(), a, "the tag has it, and the target stays at the other one")
}

// Two tags of a repository with one target: app:1 is pushed (its notification fails, and is not sent again), app:2 is,
// and app:1 is pushed again, which the registry says with another time. The last push counts.
func TestPushedAgainIsNotSentAgain(t *testing.T) {
	p := newPlace(t, func(o *service.Options) { oneTarget(t, o) })
	p.push("one:1", "a")
	p.push("one:2", "b")
	a, b := p.reg.Digest(t, "one:1"), p.reg.Digest(t, "one:2")
	failing := p.fails("/one/manifests/", 0)
	event := func(tag, digest string, at int) (int, map[string]any) {
		return p.ask("POST", "/api/v1/notifications/harbor", fmt.Sprintf(
			`{"type":"PUSH_ARTIFACT","occur_at":%d,"event_data":{"resources":[{"resource_url":"%s/%s","digest":%q}]}}`,
			at, p.reg.Host, tag, digest))
	}
	code, _ := event("one:1", a, 1000)
	require.Equal(t, http.StatusBadGateway, code)
	failing.Store(false)
	code, _ = event("one:2", b, 1060)
	require.Equal(t, http.StatusAccepted, code)
	code, answer := event("one:1", a, 1120) // another push
	require.Equal(t, http.StatusAccepted, code)
	assert.NotEmpty(t, answer["conversions"], "the push was taken, and nothing comes of it")
	assert.Contains(t, p.sources(), a)
}
