package verify_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

// rawConfig stores an image again, with a configuration that is changed as text.
func rawConfig(t *testing.T, host, repo, tagName string, img v1.Image, replace ...string) string {
	t.Helper()
	raw, err := img.RawConfigFile()
	require.NoError(t, err)
	text := string(raw)
	for i := 0; i < len(replace); i += 2 {
		require.Contains(t, text, replace[i])
		text = strings.ReplaceAll(text, replace[i], replace[i+1])
	}
	m, err := img.Manifest()
	require.NoError(t, err)
	m = m.DeepCopy()
	m.Config.Digest, m.Config.Size, err = v1.SHA256(strings.NewReader(text))
	require.NoError(t, err)
	tag, err := name.NewTag(host + "/" + repo + ":" + tagName)
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	for _, l := range layers {
		require.NoError(t, remote.WriteLayer(tag.Context(), l))
	}
	require.NoError(t, remote.WriteLayer(tag.Context(), static.NewLayer([]byte(text), m.Config.MediaType)))
	body, err := json.Marshal(m)
	require.NoError(t, err)
	req, err := http.NewRequest(http.MethodPut, "http://"+host+"/v2/"+repo+"/manifests/"+tagName, bytes.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", string(m.MediaType))
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusCreated, resp.StatusCode)
	return tag.String()
}

// A volume, port or label that is null is one all the same: the source has none of the name.
func TestNullVolume(t *testing.T) {
	layer := fixture.Layer(t, fixture.Program("usr/bin/app", fixture.ELF("")), fixture.File("data/x", "x"),
		fixture.File("etc/app/access.conf", "deny all"))
	config := v1.Config{
		Entrypoint: []string{"/usr/bin/app"}, Volumes: map[string]struct{}{"/data": {}},
		ExposedPorts: map[string]struct{}{"443/tcp": {}},
	}
	a := newVictim(t, nil)
	a.from = a.reg.Push(t, "src:honest", fixture.Image(t, config, layer))
	honest := open(t, a.from).Digest

	// The attacker converts the same with a volume over the program's configuration, and claims the honest source.
	config.Volumes = map[string]struct{}{"/data": {}, "/etc/app": {}}
	evil := open(t, a.reg.Push(t, "src:evil", fixture.Image(t, config, layer))).Digest
	run(t, options(t, a.reg.Host+"/src:evil"), otherKey(t), a.reg.Host+"/dst:1")
	original, x := a.image()
	var made recipe.Recipe
	x.file(len(x.layers)-1, "cconvert/app/recipe.json", func(b []byte) []byte {
		b = bytes.Replace(b, []byte(evil), []byte(honest), 1)
		require.NoError(t, json.Unmarshal(b, &made))
		return b
	})
	var signer sgx.Measurement
	require.NoError(t, signer.UnmarshalText([]byte(x.config.Config.Labels[recipe.LabelMRSigner])))
	x.config.Config.Labels[recipe.LabelBaseDigest] = honest
	x.config.Config.Labels[recipe.LabelIdentity] = made.Identity(signer)
	x.push(a.reg.Host+"/dst:2", original)
	ref, err := name.NewTag(a.reg.Host + "/dst:2")
	require.NoError(t, err)
	pushed, err := remote.Image(ref)
	require.NoError(t, err)

	any := verify.Expectations{AnySigner: true, AllowSimulated: true, AnyRuntime: true}
	r := check(t, a.reg.Host+"/dst:2", any, open(t, a.from))
	require.Equal(t, []string{verify.CheckSource}, r.Unmet(), "as {} it is found")

	null := rawConfig(t, a.reg.Host, "dst", "3", pushed, `"/etc/app":{}`, `"/etc/app":null`)
	r = check(t, null, any, open(t, a.from))
	mounts, err := json.Marshal(r.Program.Mounts)
	require.NoError(t, err)
	require.Contains(t, string(mounts), "/etc/app", "the program sees an empty directory there")
	assert.False(t, r.Trusted, "verify --source: an image with a volume that the source has not; mounts %s", mounts)

	b, e, err := verify.BeforeSigning(context.Background(), open(t, null), open(t, a.from), any, inspect.Options{})
	require.NoError(t, err)
	assert.True(t, e == nil, "sign --source would sign it: unmet %v", b.Unmet())

	// the same by a port alone, of which nothing is measured, and for diff
	clean := a.reg.Host + "/dst:clean"
	run(t, options(t, a.from), otherKey(t), clean)
	cleanTag, err := name.NewTag(clean)
	require.NoError(t, err)
	cleanImage, err := remote.Image(cleanTag)
	require.NoError(t, err)
	port := rawConfig(t, a.reg.Host, "dst", "port", cleanImage, `"443/tcp":{}`, `"443/tcp":{},"22/tcp":null`)
	r = check(t, port, any, open(t, a.from))
	assert.False(t, r.Trusted, "verify --source: a port more, %v", r.Ports)
	one, err := inspect.Read(context.Background(), open(t, clean), inspect.Options{})
	require.NoError(t, err)
	two, err := inspect.Read(context.Background(), open(t, port), inspect.Options{})
	require.NoError(t, err)
	list, err := inspect.Compare(one, two)
	require.NoError(t, err)
	assert.NotEmpty(t, list, "diff: %v and %v", one.Ports, two.Ports)
}

// A key in another spelling is the same to engines, and is refused.
func TestSpellingOfKeys(t *testing.T) {
	reg := fixture.NewRegistry(t)
	img := fixture.Image(t, v1.Config{
		Entrypoint: []string{"/usr/bin/app"}, Volumes: map[string]struct{}{"/data": {}},
		ExposedPorts: map[string]struct{}{"443/tcp": {}},
	}, fixture.Layer(t, fixture.Program("usr/bin/app", fixture.ELF("")), fixture.File("data/x", "x")))
	plain := reg.Push(t, "src:1", img)
	run(t, options(t, plain), otherKey(t), reg.Host+"/dst:1")
	tag, err := name.NewTag(reg.Host + "/dst:1")
	require.NoError(t, err)
	made, err := remote.Image(tag)
	require.NoError(t, err)
	any := verify.Expectations{AnySigner: true, AllowSimulated: true, AnyRuntime: true}
	for _, c := range [][2]string{
		{`"Volumes"`, `"volumes"`}, {`"ExposedPorts"`, `"exposedports"`},
		{`"Volumes"`, `"Volume\u017f"`}, // which is an "s" for encoding/json
	} {
		_, err := convert.Prepare(context.Background(), options(t, rawConfig(t, reg.Host, "src", "2", img, c[0], c[1])))
		assert.ErrorContains(t, err, "which must be", c[1])
		changed := rawConfig(t, reg.Host, "dst", "2", made, c[0], c[1])
		assert.False(t, check(t, changed, any, open(t, plain)).Trusted, c[1])
		ctx := context.Background()
		_, e, err := verify.BeforeSigning(ctx, open(t, changed), open(t, plain), any, inspect.Options{})
		require.NoError(t, err)
		assert.Nil(t, e, c[1])
	}
}

// What a conversion writes anew of a configuration is as the specification has it: a result of anything else would not
// be what its source says.
func TestOddConfigurations(t *testing.T) {
	reg := fixture.NewRegistry(t)
	img := fixture.Image(t, v1.Config{Entrypoint: []string{"/usr/bin/app"}, Env: []string{"A=1"}},
		fixture.Layer(t, fixture.Program("usr/bin/app", fixture.ELF(""))))
	for _, c := range [][3]string{
		{`"type":"layers"`, `"type":null`, "rootfs has type"}, {`"type":"layers"`, `"type":""`, "rootfs has type"},
		{`"type":"layers"`, `"type":"Layers"`, "rootfs has type"},
		{`"type":"layers"`, `"type":"layers","base_layer":"x"`, "rootfs has base_layer"},
		{`"Env":["A=1"]`, `"Env":["A=1",null]`, "a variable that is null"},
	} {
		_, err := convert.Prepare(context.Background(), options(t, rawConfig(t, reg.Host, "src", "2", img, c[0], c[1])))
		assert.ErrorContains(t, err, c[2], c[1])
	}
}

// Numbers of a configuration are compared as they are written.
func TestDiffNumbers(t *testing.T) {
	a := newVictim(t, nil)
	config := v1.Config{
		Entrypoint:  []string{"/usr/bin/app"},
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "x"}, Interval: 9007199254740992},
	}
	a.from = a.reg.Push(t, "src:n",
		fixture.Image(t, config, fixture.Layer(t, fixture.Program("usr/bin/app", fixture.ELF("")))))
	clean := a.reg.Host + "/dst:clean"
	run(t, options(t, a.from), otherKey(t), clean)
	tag, err := name.NewTag(clean)
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	one, err := inspect.Read(context.Background(), open(t, clean), inspect.Options{})
	require.NoError(t, err)
	two, err := inspect.Read(context.Background(), open(t, rawConfig(t, a.reg.Host, "dst", "number", img,
		"9007199254740992", "9007199254740993")), inspect.Options{})
	require.NoError(t, err)
	list, err := inspect.Compare(one, two)
	require.NoError(t, err)
	assert.NotEmpty(t, list)
}

// Of an image of another epoch the command is compared with the one that starts its enclave.
func TestCommandOfAnotherEpoch(t *testing.T) {
	for what, hostArgs := range map[string]bool{"fixed arguments": false, "arguments of the host": true} {
		a := newVictim(t, func(o *convert.Options) { o.Launch.HostArgs = hostArgs })
		original, x := a.image()
		var made recipe.Recipe
		x.recipe(func(r0 *recipe.Recipe) { r0.Epoch++; made = *r0 })
		var m sgx.Measurement
		require.NoError(t, m.UnmarshalText([]byte(x.config.Config.Labels[recipe.LabelMRSigner])))
		x.config.Config.Labels[recipe.LabelEpoch] = fmt.Sprint(made.Epoch)
		x.config.Config.Labels[recipe.LabelIdentity] = made.Identity(m)
		x.push(a.reg.Host+"/dst:epoch", original)
		any := verify.Expectations{AnySigner: true, AllowSimulated: true, AnyRuntime: true}
		rep := check(t, a.reg.Host+"/dst:epoch", any, nil)
		assert.Equal(t, []string{verify.CheckPolicy}, rep.FailedChecks(), "%s, genuine: %v", what,
			checkOf(rep, verify.CheckConfig).Problems)
		x.config.Config.Entrypoint = []string{"/usr/bin/app", "--steal"}
		x.push(a.reg.Host+"/dst:epoch2", original)
		rep = check(t, a.reg.Host+"/dst:epoch2", any, nil)
		assert.Equal(t, verify.Failed, checkOf(rep, verify.CheckConfig).Status, "%s: starts /usr/bin/app itself", what)
	}
}

// Engines differ in where they mount the kernel's file systems if the image has a link there.
func TestDevIsALink(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", fixture.Image(t,
		v1.Config{Entrypoint: []string{"app"}, Env: []string{"PATH=/a:/b"}},
		fixture.Layer(t, fixture.Symlink("dev", "/a"), fixture.Program("a/app", fixture.ELF("")),
			fixture.Program("b/app", fixture.ELF("")+"other"))))
	_, err := convert.Prepare(context.Background(), options(t, from))
	assert.ErrorContains(t, err, `/dev is a link to "/a"`)
}
