package service_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/service"
	"github.com/cconvert/cconvert/pkg/image"
)

// What needs no signature does not become the runtime of what needs one.
func TestRuntimeOfAnotherRule(t *testing.T) {
	var host string
	p := newPlace(t, func(o *service.Options) {
		// the registry's name is that of the first rule's repository
		host = o.Plan.Convert[0].Repository[:len(o.Plan.Convert[0].Repository)-len("/free")]
		rules, err := plan.Parse("plan.yaml", fmt.Appendf(nil, `version: 1
defaults: {target: '%[1]s/out/{{.Repository}}:{{.Tag}}'}
convert:
- {repository: %[1]s/signed, keys: [a, b], options: {runtime: 'gramine=docker://%[1]s/out/gramine:stable'}}
- {registry: %[1]s, repositories: {allow: ['[^/]*']}, allowUnsigned: true}
`, host))
		require.NoError(t, err)
		require.NoError(t, rules.CheckRules("plan.yaml"))
		rules.Insecure = o.Plan.Insecure
		runtime, err := image.ParseReference(host+"/out/gramine:stable", true)
		require.NoError(t, err)
		rules.Reserve(runtime, "the runtime of images")
		o.Trust[&rules.Convert[0]] = o.Trust[&o.Plan.Convert[1]]
		o.Plan = rules
	})
	p.push("out/gramine:stable", "the runtime")
	before := p.reg.Digest(t, "out/gramine:stable")
	code, out := p.convert(p.push("gramine:stable", "a stranger's"))
	assert.Equal(t, http.StatusForbidden, code, out)
	p.work()
	if code == http.StatusAccepted {
		t.Log(p.done(out["id"]))
	}
	assert.Equal(t, before, p.reg.Digest(t, "out/gramine:stable"), "the runtime of signed images was replaced")
}
