package plan_test

import (
	"context"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/plan"
)

// shelves are registries that hold tags by repository, made on so many days of February.
type shelves map[string]map[string]map[string]int

func (s shelves) Repositories(_ context.Context, r name.Registry) iter.Seq2[string, error] {
	return list(slices.Collect(maps.Keys(s[r.RegistryStr()])), nil)
}

func (s shelves) Tags(_ context.Context, r name.Repository) iter.Seq2[string, error] {
	return list(slices.Collect(maps.Keys(s[r.RegistryStr()][r.RepositoryStr()])), nil)
}

// list is a list that ends with an error, if there is one.
func list(names []string, err error) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, n := range names {
			if !yield(n, nil) {
				return
			}
		}
		if err != nil {
			yield("", err)
		}
	}
}

func (s shelves) Created(_ context.Context, ref name.Reference) (time.Time, error) {
	r := ref.Context()
	return time.Date(2026, 2, s[r.RegistryStr()][r.RepositoryStr()][ref.Identifier()], 0, 0, 0, 0, time.UTC), nil
}

var world = shelves{
	"a.example": {
		"app": {
			"1.0": 1, "1.2": 2, "1.10": 3, "2.0": 4, "2.0-rc1": 5, "latest": 6, "2.0-confidential": 7,
			"sha256-0123.sig": 8, "sha256_" + strings.Repeat("0", 64): 8,
		},
		"tools": {"x": 9, "y": 1},
		"other": {"z": 1},
	},
	"b.example": {"app": {"1": 1, "2": 2, "3": 3}},
}

func sources(t *testing.T, text string) []string {
	t.Helper()
	p, err := plan.Parse("plan.yaml", []byte("version: 1\n"+text))
	require.NoError(t, err)
	images, err := p.Select(context.Background(), "plan.yaml", world)
	require.NoError(t, err)
	var list []string
	for _, img := range images {
		list = append(list, img.Source+" "+img.Target)
	}
	return list
}

func TestSelect(t *testing.T) {
	for what, c := range map[string]struct {
		text string
		want []string
	}{
		"one image": {
			"convert: [{image: a.example/app:1.0}]", []string{"a.example/app:1.0 a.example/app:1.0-confidential"},
		},
		"by digest": {
			"convert: [{image: 'a.example/app@sha256:" + strings.Repeat("0", 64) + "'}]",
			[]string{"a.example/app@sha256:" + strings.Repeat("0", 64) + " a.example/app:sha256_" +
				strings.Repeat("0", 64) + "-confidential"},
		},
		"a range, the newest two": {
			"convert: [{repository: a.example/app, tags: {semver: '>=1.0', newest: 2}, target: " +
				"'x.example/{{.Repository}}:{{.Tag}}'}]",
			[]string{"a.example/app:2.0 x.example/app:2.0", "a.example/app:1.10 x.example/app:1.10"},
		},
		"by expression, whole names": {
			"convert: [{repository: a.example/app, tags: {allow: ['1\\..*', l], deny: ['.*2']}}]",
			[]string{
				"a.example/app:1.0 a.example/app:1.0-confidential",
				"a.example/app:1.10 a.example/app:1.10-confidential",
			},
		},
		"the newest by creation, results and artifacts left out": {
			"convert: [{repository: a.example/app, tags: {newest: 1}}]",
			[]string{"a.example/app:latest a.example/app:latest-confidential"},
		},
		"since a day": {
			"convert: [{repository: b.example/app, tags: {updated-since: 2026-02-03}}]",
			[]string{"b.example/app:3 b.example/app:3-confidential"},
		},
		"a registry, some repositories": {
			"defaults: {target: 'x.example/{{.Repository}}:{{.Tag}}'}\nconvert: [{registry: a.example, repositories: " +
				"{deny: [app, oth.*]}}]",
			[]string{"a.example/tools:x x.example/tools:x", "a.example/tools:y x.example/tools:y"},
		},
		"registries take turns": {
			"convert:\n- repository: b.example/app\n- repository: a.example/tools\n",
			[]string{
				"b.example/app:1 b.example/app:1-confidential", "a.example/tools:x a.example/tools:x-confidential",
				"b.example/app:2 b.example/app:2-confidential", "a.example/tools:y a.example/tools:y-confidential",
				"b.example/app:3 b.example/app:3-confidential",
			},
		},
		"the first entry that chooses an image decides": {
			"convert: [{image: a.example/tools:x}, {repository: a.example/tools}]",
			[]string{
				"a.example/tools:x a.example/tools:x-confidential", "a.example/tools:y a.example/tools:y-confidential",
			},
		},
	} {
		t.Run(what, func(t *testing.T) { assert.Equal(t, c.want, sources(t, c.text)) })
	}
}

func TestSelectConflict(t *testing.T) {
	p, err := plan.Parse("plan.yaml", []byte("version: 1\ndefaults: {target: 'x.example/app:{{.Tag}}'}\nconvert:\n- "+
		"image: a.example/app:1.0\n- image: a.example/tools:1.0\n"))
	require.NoError(t, err)
	_, err = p.Select(context.Background(), "plan.yaml", world)
	assert.EqualError(t, err,
		"plan.yaml:5: a.example/app:1.0 and a.example/tools:1.0 would both become x.example/app:1.0")

	for text, want := range map[string]string{ // places have many names
		"- {image: 'docker.io/library/a:1', target: 'X.example:443/t:1'}\n" +
			"- {image: b, target: 'x.example/t:1'}\n": "would both become",
		"- {image: b, target: 'oci:out/../x:1'}\n" +
			"- {image: a, target: 'oci:./x:1'}\n": "would both become",
		"- {image: b, target: 'docker-archive:x.tar:a:1'}\n" +
			"- {image: a, target: 'oci-archive:./x.tar:2'}\n": "would both become",
		"- {image: 'x.example/a:1', target: 'x.example/a:2'}\n" +
			"- {image: 'x.example/a:2'}\n": "would replace x.example/a:2",
		"- {image: 'x.example/a:1', target: 'x.example/a:1'}\n": "would replace x.example/a:1",
	} {
		p, err := plan.Parse("plan.yaml", []byte("version: 1\nconvert:\n"+text))
		require.NoError(t, err)
		_, err = p.Select(context.Background(), "plan.yaml", world)
		assert.ErrorContains(t, err, want, text)
	}

	// What a registry lists keeps nothing else from being converted.
	p, err = plan.Parse("plan.yaml", []byte("version: 1\nconvert:\n- {repository: a.example/tools, target: "+
		"'x.example/app:{{if eq .Tag `x`}}x{{else}}x{{end}}'}\n"+
		"- {repository: b.example/app, target: 'b.example/app:{{if eq .Tag `1`}}2{{else}}{{.Tag}}-c{{end}}'}\n"))
	require.NoError(t, err)
	images, err := p.Select(context.Background(), "plan.yaml", world)
	require.NoError(t, err)
	failed := map[string]string{}
	for _, img := range images {
		// The targets fall under the entry, too: what is there may be a source.
		assert.Equal(t, strings.HasPrefix(img.Source, "b.example/app:"), img.ResultsOnly, img.Source)
		if img.Err != nil {
			failed[img.Source] = img.Err.Error()
		}
	}
	assert.Equal(t, map[string]string{
		"a.example/tools:x": "a.example/tools:x and a.example/tools:y would both become x.example/app:x",
		"a.example/tools:y": "a.example/tools:x and a.example/tools:y would both become x.example/app:x",
	}, failed)
	assert.Len(t, images, 5)
}

func TestOptions(t *testing.T) {
	p, err := plan.Parse("plan.yaml", []byte("version: 1\ndefaults:\n  options: {memory: 1G, env: [A=1, B=2]}\n"+
		"convert:\n- image: a.example/app:1.0\n  options:\n    memory: 2G\n    edmm: true\n    isv-svn: 3\n"))
	require.NoError(t, err)
	images, err := p.Select(context.Background(), "plan.yaml", world)
	require.NoError(t, err)
	assert.Equal(t, plan.Options{
		{"env", []string{"A=1", "B=2"}, 3}, {"memory", []string{"2G"}, 7}, {"edmm", []string{"true"}, 8},
		{"isv-svn", []string{"3"}, 9},
	}, images[0].Options)
}

func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"":                    "plan.yaml: EOF",
		"version: 2\n":        "plan.yaml: version: 2, and",
		"version: 1\n":        "nothing is to be converted",
		"version: 1\ncovert:": `plan.yaml:2: there is no key "covert"; the nearest is convert`,
		"version: 1\nconvert:\n" +
			"- repository: a.example/app\n  tags:\n" +
			"    newst: 1\n": `plan.yaml:5: there is no key "newst"; the nearest is newest`,
		"version: 1\nconvert:\n" +
			"- image: a\n  repository: b\n": "plan.yaml:3: an entry has one of",
		"version: 1\nconvert:\n" +
			"- image: a\n  tags: {newest: 1}\n": "tags are chosen from a repository",
		"version: 1\nconvert:\n" +
			"- repository: a\n  tags: {semver: soon}\n": "plan.yaml:4: the range of versions",
		"version: 1\nconvert:\n" +
			"- repository: a\n  tags: {allow: ['(']}\n": "plan.yaml:4: the expression",
		"version: 1\nconvert:\n" +
			"- repository: a\n  tags: {updated-since: yesterday}\n": "plan.yaml:4: \"yesterday\" is neither",
		"version: 1\nconvert:\n- image: a\n  target: '{{.Host}}'\n":               "plan.yaml:3: ",
		"version: 1\nconvert:\n- image: a\n  options: {memory: 1G, memory: 2G}\n": "plan.yaml:4: ",
		"version: 1\nconvert:\n" +
			"- image: a\n  options: [memory]\n": "plan.yaml:4: options are NAME: VALUE",
		"version: 1\nconvert:\n- image: a\n  options: {env: {A: 1}}\n": "is not a single value",
		"version: 1\ncreds: [{registry: a.example, user: b}]\n" +
			"convert: [{image: a}]\n": "one of pass-env and pass-file",
		"version: 1\nlimits: {a.example: {requests-at-once: -1}}\nconvert: [{image: a}]\n": "a limit is positive",
		"version: 1\nconvert: [{registry: 'a.example/x'}]\n":                               "plan.yaml:2: ",
		"version: 1\n" +
			"convert: [{image: a, repositories: {allow: [x]}}]\n": "repositories are chosen from a registry",
		"version: one\n":                        "plan.yaml:1: ",
		"version: 1\nconvert: &a\n- *a\n":       "plan.yaml",
		strings.Repeat(" ", plan.MaxSize) + "x": "it has more than",
	} {
		_, err := plan.Parse("plan.yaml", []byte(text))
		var mistake *plan.Error
		require.ErrorAs(t, err, &mistake, "%.60q", text)
		assert.Contains(t, err.Error(), want, "%.60q", text)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("version: 1\ndefaults: {target: 'x/{{.Tag}}', options: {env: [A=1]}}\nconvert:\n- repository: " +
		"a.example/app\n  tags: {semver: '>=1', allow: [x], updated-since: 24h}\n")
	f.Fuzz(func(_ *testing.T, text string) {
		p, err := plan.Parse("plan.yaml", []byte(text))
		if err == nil {
			_, _ = p.Select(context.Background(), "plan.yaml", world)
		}
	})
}
