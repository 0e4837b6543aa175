package plan_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/pkg/image"
)

// Of two rules that want different signatures, none replaces results of the other.
func TestRival(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	for what, c := range map[string]struct{ text, image, rival string }{
		"the same repository elsewhere": {
			"- {registry: a.example, repositories: {allow: ['public/.*']}, allowUnsigned: true, target: " +
				"'x.example/app:{{.Tag}}'}\n- {repository: a.example/prod/app, keys: [k], target: " +
				"'x.example/app:{{.Tag}}'}",
			"a.example/public/app:7", "a.example/prod/app:7",
		},
		"the one with signatures is asked for": {
			"- {registry: a.example, repositories: {allow: ['public/.*']}, allowUnsigned: true, target: " +
				"'x.example/app:{{.Tag}}'}\n- {repository: a.example/prod/app, keys: [k], target: " +
				"'x.example/app:{{.Tag}}'}",
			"a.example/prod/app:7", "",
		},
		"patterns of two registries": {
			"- {registry: a.example, allowUnsigned: true, target: 'x.example/{{.Repository}}:{{.Tag}}'}\n" +
				"- {registry: b.example, keys: [k], target: 'X.example:443/{{.Repository}}:{{.Tag}}'}",
			"a.example/some/app:7", "b.example/some/app:7",
		},
		"patterns of two registries, one spelling": {
			"- {registry: a.example, allowUnsigned: true, target: 'x.example/{{.Repository}}:{{.Tag}}'}\n" +
				"- {registry: b.example, keys: [k], target: 'x.example/{{.Repository}}:{{.Tag}}'}",
			"a.example/some/app:7", "b.example/some/app:7",
		},
		"a tag of its own": {
			"- {repository: a.example/app, allowUnsigned: true, target: 'x.example/app:{{.Tag}}'}\n" +
				"- {repository: b.example/app, keys: [k], target: 'x.example/app:stable'}",
			"a.example/app:stable", "b.example/app:any-tag",
		},
		"another tag": {
			"- {repository: a.example/app, allowUnsigned: true, target: 'x.example/app:{{.Tag}}'}\n" +
				"- {repository: b.example/app, keys: [k], target: 'x.example/app:stable'}",
			"a.example/app:7", "",
		},
		"a tag that the other rule does not allow": {
			"- {repository: a.example/app, allowUnsigned: true, target: 'x.example/app:{{.Tag}}'}\n" +
				"- {repository: b.example/app, tags: {allow: ['v.*']}, keys: [k], target: 'x.example/app:{{.Tag}}'}",
			"a.example/app:7", "",
		},
		"the same signatures": {
			"- {repository: a.example/app, keys: [k], target: 'x.example/app:{{.Tag}}'}\n" +
				"- {repository: b.example/app, keys: [k], target: 'x.example/app:{{.Tag}}'}",
			"a.example/app:7", "",
		},
		"the same identities": {
			"- {repository: a.example/app, identities: [{issuer: i, subject: s}], target: 'x.example/app:{{.Tag}}'}\n" +
				"- {repository: b.example/app, identities: [{issuer: i, subject: s}], target: " +
				"'x.example/app:{{.Tag}}'}",
			"a.example/app:7", "",
		},
		"other identities": {
			"- {repository: a.example/app, identities: [{issuer: i, subject: s}], target: 'x.example/app:{{.Tag}}'}\n" +
				"- {repository: b.example/app, identities: [{issuer: i, subject: t}], target: " +
				"'x.example/app:{{.Tag}}'}",
			"a.example/app:7", "b.example/app:7",
		},
		"a rule that only the rest falls under": {
			"- {repository: a.example/app, keys: [k]}\n- {registry: a.example, keys: [l]}", "a.example/app:7", "",
		},
		"an image": {
			"- {repository: a.example/app, allowUnsigned: true, target: 'x.example/app:{{.Tag}}'}\n- {image: " +
				"'b.example/other:1', keys: [k], target: 'x.example/app:7'}",
			"a.example/app:7", "b.example/other:1",
		},
		"names that touch": {
			"- {repository: a.example/app, allowUnsigned: true, target: 'x.example/all:prod-app-{{.Tag}}'}\n- " +
				"{registry: b.example, keys: [k], target: 'x.example/all:{{.Repository}}-{{.Tag}}'}",
			"a.example/app:7", "b.example/prod:app-7",
		},
		"twice in a name": {
			"- {repository: a.example/app, allowUnsigned: true, target: 'x.example/prod/app/7:prod'}\n" +
				"- {registry: b.example, keys: [k], " +
				"target: 'x.example/{{.Repository}}/{{.Tag}}:{{slice .Repository 0 4}}'}",
			"a.example/app:7", "b.example/any-repository:any-tag",
		},
		"names that touch in three ways": {
			"- {repository: a.example/app, allowUnsigned: true, target: 'x.example/all:a-b-c-{{.Tag}}'}\n" +
				"- {registry: b.example, repositories: {allow: ['a-b']}, keys: [k], target: " +
				"'x.example/all:{{.Repository}}-{{.Tag}}'}",
			"a.example/app:7", "b.example/a-b:c-7",
		},
		"any of some repositories": {
			"- {repository: a.example/app, allowUnsigned: true, target: 'x.example/app:{{.Tag}}'}\n" +
				"- {registry: b.example, repositories: {allow: ['prod/.*']}, keys: [k], target: " +
				"'x.example/app:{{.Tag}}'}",
			"a.example/app:7", "b.example/any-repository:7",
		},
		"any of some repositories, with other tags": {
			"- {repository: a.example/app, allowUnsigned: true, target: 'x.example/app:{{.Tag}}'}\n" +
				"- {registry: b.example, repositories: {allow: ['prod/.*']}, tags: {allow: ['v.*']}, keys: [k], " +
				"target: " +
				"'x.example/app:{{.Tag}}'}",
			"a.example/app:7", "",
		},
		"a digest": {
			"- {repository: a.example/trick, allowUnsigned: true, target: 'x.example/signed:{{.Tag}}'}\n- " +
				"{repository: a.example/signed, keys: [k], target: 'x.example/{{.Repository}}:{{.Tag}}'}",
			"a.example/trick@" + digest, "a.example/signed@" + digest,
		},
		"a digest, and the same name": {
			"- {repository: a.example/trick, allowUnsigned: true, target: 'x.example/signed:{{.Tag}}'}\n- " +
				"{repository: a.example/signed, keys: [k], target: 'x.example/signed:{{.Tag}}'}",
			"a.example/trick@" + digest, "a.example/signed@" + digest,
		},
		"a digest of an image": {
			"- {repository: a.example/trick, allowUnsigned: true, target: 'x.example/signed:{{.Tag}}'}\n- {image: " +
				"'a.example/signed:1@" + digest + "', keys: [k], target: 'x.example/signed:{{.Tag}}'}",
			"a.example/trick@" + digest, "a.example/signed@" + digest,
		},
		"Docker Hub": {
			"- {repository: a.example/app, allowUnsigned: true, target: 'docker.io/team/app:{{.Tag}}'}\n" +
				"- {registry: b.example, keys: [k], target: 'docker.io/{{.Repository}}:{{.Tag}}'}",
			"a.example/app:7", "b.example/team/app:7",
		},
		"Docker Hub, of one word": {
			"- {repository: a.example/app, allowUnsigned: true, target: 'docker.io/library/app:{{.Tag}}'}\n- " +
				"{registry: b.example, keys: [k], target: 'docker.io/{{.Repository}}:{{.Tag}}'}",
			"a.example/app:7", "b.example/app:7",
		},
		"the repository twice": {
			"- {repository: a.example/app, allowUnsigned: true, target: 'x.example/one/two:{{.Tag}}'}\n" +
				"- {registry: b.example, keys: [k], target: 'x.example/{{.Repository}}/{{.Repository}}:{{.Tag}}'}",
			"a.example/app:7", "",
		},
	} {
		t.Run(what, func(t *testing.T) {
			p, err := plan.Parse("plan.yaml", []byte("version: 1\nconvert:\n"+c.text+"\n"))
			require.NoError(t, err)
			ref, err := image.ParseName(c.image, false)
			require.NoError(t, err)
			rule, img, err := p.Rule(ref)
			require.NoError(t, err)
			target, err := image.ParseName(img.Target, false)
			require.NoError(t, err)
			other, line := p.Rival(rule, target)
			if c.rival == "" {
				assert.Nil(t, other)
				return
			}
			require.NotNil(t, other)
			assert.Equal(t, c.rival, other.Name())
			assert.Equal(t, 4, line)
		})
	}
}

// What a template makes of names that is more than to put them in cannot be told from a target.
func TestCheckRules(t *testing.T) {
	const sliced = "- {registry: b.example, keys: [k], target: 'x.example/{{.Repository}}:{{slice .Repository 0 4}}'}\n"
	for text, want := range map[string]string{
		sliced: "",
		sliced +
			"- {registry: a.example, allowUnsigned: true}": "plan.yaml:3: beside entries that want other signatures",
		sliced + "- {registry: a.example, keys: [l]}": "plan.yaml:3: beside entries that want other signatures",
		sliced + "- {registry: a.example, keys: [k]}": "",
		"- {registry: a.example, allowUnsigned: true, target: 'x.example/{{ .Repository }}:{{.Tag}}'}\n" +
			"- {registry: b.example, keys: [k]}": "",
	} {
		p, err := plan.Parse("plan.yaml", []byte("version: 1\nconvert:\n"+text+"\n"))
		require.NoError(t, err)
		err = p.CheckRules("plan.yaml")
		if want == "" {
			assert.NoError(t, err, text)
		} else {
			assert.ErrorContains(t, err, want, text)
		}
	}
}

// Whoever names a repository does not choose where its results go.
func TestTargetWithoutRegistry(t *testing.T) {
	for target, ok := range map[string]bool{
		"{{.Repository}}:{{.Tag}}": false, "{{.Tag}}/x:1": false, "{{.Registry}}/{{.Repository}}:{{.Tag}}": true,
		"x.example/{{.Repository}}:{{.Tag}}": true,
		"oci:dir/{{.Repository}}:{{.Tag}}":   true,
	} {
		_, err := plan.Parse("plan.yaml",
			[]byte("version: 1\nconvert:\n- {registry: a.example, target: '"+target+"'}\n"))
		if ok {
			assert.NoError(t, err, target)
		} else {
			assert.ErrorContains(t, err, "no registry of its own", target)
		}
	}
}
