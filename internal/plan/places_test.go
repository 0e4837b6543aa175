package plan_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/pkg/image"
)

// askedHosts notes who is asked.
type askedHosts struct{ asked map[string]bool }

func (h askedHosts) Repositories(_ context.Context, r name.Registry) iter.Seq2[string, error] {
	h.asked[r.RegistryStr()] = true
	return func(yield func(string, error) bool) { yield("app", nil) }
}

func (h askedHosts) Tags(_ context.Context, r name.Repository) iter.Seq2[string, error] {
	h.asked[r.RegistryStr()] = true
	return func(yield func(string, error) bool) { yield("1", nil) }
}

func (h askedHosts) Created(context.Context, name.Reference) (time.Time, error) {
	return time.Time{}, errors.New("not asked")
}

// Images of a registry come from that registry.
func TestRegistryOfOneWord(t *testing.T) {
	text := "version: 1\nconvert:\n- {registry: '%s', target: 'x.example/{{.Repository}}:{{.Tag}}'}\n"
	_, err := plan.Parse("plan.yaml", fmt.Appendf(nil, text, "harbor"))
	assert.ErrorContains(t, err, "written with its port, as in harbor:443", "harbor/app is one of Docker Hub's")
	p, err := plan.Parse("plan.yaml", fmt.Appendf(nil, text, "harbor:443"))
	require.NoError(t, err)
	h := askedHosts{map[string]bool{}}
	images, err := p.Select(context.Background(), "plan.yaml", h)
	require.NoError(t, err)
	assert.Equal(t, map[string]bool{"harbor:443": true}, h.asked, "no other registry is asked")
	require.Len(t, images, 1)
	ref, err := image.ParseName(images[0].Source, false)
	require.NoError(t, err)
	assert.Equal(t, "harbor:443", ref.Context().RegistryStr())
}

// The host that a name has for Docker is the one that is asked.
func TestUpperCaseHost(t *testing.T) {
	_, err := image.ParseName("MYHOST/app:1", false)
	assert.ErrorContains(t, err, "myhost:443", "Docker takes it for a host, which it is not in lower case")
	n, err := image.ParseName("MYHOST:443/app:1", false)
	require.NoError(t, err)
	assert.Equal(t, "myhost:443", n.Context().RegistryStr())
}

// Port 443 is the one of HTTPS, which is spoken unless --insecure is said; and with it, is tried first.
func TestPlaceOfPrivateHosts(t *testing.T) {
	for _, host := range []string{"harbor.svc.cluster.local", "10.0.0.5"} {
		for _, insecure := range []bool{false, true} {
			a, err := image.ParseReference(host+"/app:1", insecure)
			require.NoError(t, err)
			b, err := image.ParseReference(host+":443/app:1", insecure)
			require.NoError(t, err)
			assert.True(t, a.Same(b), "%s: insecure %v: %s %s", host, insecure, a.Place(), b.Place())
		}
	}
}

// Two images do not become one, and nothing replaces its own source, however a registry's port is written.
func TestPortsOfPrivateHosts(t *testing.T) {
	text := "version: 1\nconvert:\n- {image: 'a.example/one:1', target: '10.0.0.5/x:1'}\n" +
		"- {image: 'a.example/two:1', target: '10.0.0.5:443/x:1'}\n"
	p, err := plan.Parse("plan.yaml", []byte(text))
	require.NoError(t, err)
	_, err = p.Select(context.Background(), "plan.yaml", world)
	assert.ErrorContains(t, err, "would both become")

	p, err = plan.Parse("plan.yaml", []byte("version: 1\nconvert:\n"+
		"- {repository: a.example/public, allowUnsigned: true, target: '10.0.0.5:443/app:{{.Tag}}'}\n"+
		"- {repository: a.example/prod, keys: [k], target: '10.0.0.5/app:{{.Tag}}'}\n"))
	require.NoError(t, err)
	ref, err := image.ParseName("a.example/public:1", false)
	require.NoError(t, err)
	rule, img, err := p.Rule(ref)
	require.NoError(t, err)
	target, err := image.ParseName(img.Target, false)
	require.NoError(t, err)
	other, _ := p.Rival(rule, target)
	assert.NotNil(t, other, "what nobody has signed takes the place of what must be signed")
}

// A rule is about one port: of a host that is spoken to by HTTPS alone it is 443, and another server may be at 80.
func TestAnotherServerOfTheHost(t *testing.T) {
	for _, host := range []string{"10.0.0.5", "harbor.svc.cluster.local"} {
		p, err := plan.Parse("plan.yaml", []byte("version: 1\nconvert:\n- {repository: "+host+
			"/app, allowUnsigned: true, target: 'x.example/app:{{.Tag}}'}\n"))
		require.NoError(t, err)
		ref, err := image.ParseName(host+":80/app:1", false)
		require.NoError(t, err)
		rule, _, err := p.Rule(ref)
		require.NoError(t, err)
		assert.Nil(t, rule, "%s is asked at port 80", ref)
		ref, err = image.ParseName(host+":443/app:1", false)
		require.NoError(t, err)
		rule, _, err = p.Rule(ref)
		require.NoError(t, err)
		assert.NotNil(t, rule, "%s is what the rule is about", ref)
	}
}
