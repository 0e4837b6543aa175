package yamledit_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/yamledit"
)

const text = `# The shop.
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}} # in one line

spec:
  template:
    spec:
      # What runs:
      containers:
      - image: redis:7   # pinned by hand
        name: redis

        args: ["--save", ""]
        # The end.
      - name: web
        env:
          - name: A
            value: |
              - not: yaml
              # no comment

              more
        securityContext:
          runAsUser: 5 # somebody
      volumes: []
      base: &a {a: 1}
      shared: *a
      empty:
---
kind: Service
`

// Each change is the only one.
func TestEdits(t *testing.T) {
	pod := yamledit.Path{"spec", "template", "spec"}
	first, second := pod.With("containers", 0), pod.With("containers", 1)
	for name, c := range map[string]struct {
		edit  func(f *yamledit.File) error
		pairs []string // of what is there, and what takes its place
	}{
		"a value, with its comment": {
			func(f *yamledit.File) error { return f.Set(0, first.With("image"), "other@sha256:1") },
			[]string{"redis:7   # pinned", "other@sha256:1 # pinned"},
		},
		"a key that is new": {
			func(f *yamledit.File) error { return f.Set(0, second.With("stdin"), true) },
			[]string{"runAsUser: 5 # somebody\n", "runAsUser: 5 # somebody\n        stdin: true\n"},
		},
		"tables on the way": {
			func(f *yamledit.File) error { return f.Set(0, first.With("resources", "limits", "sgx"), "1") },
			[]string{
				`["--save", ""]` + "\n",
				`["--save", ""]` + "\n        resources:\n          limits:\n            sgx: \"1\"\n",
			},
		},
		"further in": {
			func(f *yamledit.File) error { return f.Set(0, second.With("securityContext", "a", "b"), 1) },
			[]string{"5 # somebody\n", "5 # somebody\n          a:\n            b: 1\n"},
		},
		"in a table of one line": {
			func(f *yamledit.File) error { return f.Set(0, yamledit.Path{"metadata", "labels", "x"}, "y") },
			[]string{"metadata: {name: web, labels: {app: web}} # in one line\n",
				"metadata:\n  labels:\n    app: web\n    x: \"y\"\n  name: web\n"},
		},
		"the first key of an element": {
			func(f *yamledit.File) error { return f.Delete(0, first.With("image")) },
			[]string{"- image: redis:7   # pinned by hand\n        name: redis", "- name: redis"},
		},
		"another key of an element": {
			func(f *yamledit.File) error { return f.Delete(0, first.With("args")) },
			[]string{"        args: [\"--save\", \"\"]\n", ""},
		},
		"an element of an empty list": {
			func(f *yamledit.File) error { return f.Append(0, pod.With("volumes"), map[string]any{"name": "v"}) },
			[]string{"volumes: []\n", "volumes:\n      - name: v\n"},
		},
		"an element of a list with some": {
			func(f *yamledit.File) error { return f.Append(0, second.With("env"), map[string]any{"name": "B"}) },
			[]string{"              more\n", "              more\n          - name: B\n"},
		},
		"an element of no list": {
			func(f *yamledit.File) error { return f.Append(0, pod.With("tolerations"), map[string]any{"key": "B"}) },
			[]string{"      empty:\n", "      empty:\n      tolerations:\n      - key: B\n"},
		},
		"a value of nothing": {
			func(f *yamledit.File) error { return f.Set(0, pod.With("empty", "a"), 1) },
			[]string{"      empty:\n", "      empty:\n        a: 1\n"},
		},
		"what is shared": {
			func(f *yamledit.File) error { return f.Set(0, pod.With("shared", "b"), 2) },
			[]string{"shared: *a\n", "shared:\n        a: 1\n        b: 2\n"},
		},
		"the other document": {
			func(f *yamledit.File) error { return f.Set(1, yamledit.Path{"spec", "x"}, 1) },
			[]string{"kind: Service\n", "kind: Service\nspec:\n  x: 1\n"},
		},
	} {
		for _, end := range []string{"\n", "\r\n"} {
			f, err := yamledit.Parse([]byte(strings.ReplaceAll(text, "\n", end)))
			require.NoError(t, err)
			require.Equal(t, 2, f.Documents())
			if assert.NoError(t, c.edit(f), name) {
				want := strings.NewReplacer(c.pairs...).Replace(text)
				assert.Equal(t, want, strings.ReplaceAll(string(f.Bytes()), end, "\n"), name)
				assert.NotEqual(t, text, want, name)
				assert.True(t, f.Changed())
			}
		}
	}
}

// What cannot be changed without something else being changed is refused, and stays.
func TestRefuses(t *testing.T) {
	for _, text := range []string{
		`{"spec": {"a": 1}}`,
		"base: &b\n  a: 1\nspec:\n  <<: *b\n  c: 1\n",
		"- a\n- b\n",
		"just text\n",
		"spec:\n  a: &x 1\nother: *x\n",
	} {
		f, err := yamledit.Parse([]byte(text))
		require.NoError(t, err, text)
		assert.Error(t, f.Set(0, yamledit.Path{"spec", "a"}, 2), text)
		assert.Equal(t, text, string(f.Bytes()))
		assert.False(t, f.Changed())
	}
	for _, text := range []string{
		"a: [", "a: {{ .Values.image }}\n", strings.Repeat("a", yamledit.MaxBytes+1), "a: b: c",
	} {
		_, err := yamledit.Parse([]byte(text))
		assert.ErrorIs(t, err, yamledit.ErrSyntax)
	}
}

// No text makes an edit panic, or change what it was not to change.
func FuzzSet(f *testing.F) {
	f.Add(text, "x")
	f.Add("spec:\n- a: 1\n  # c\n- b\n", "x: y")
	f.Add("0:", "\x15\u0085]z[i\rH*")
	f.Fuzz(func(t *testing.T, text, value string) {
		file, err := yamledit.Parse([]byte(text))
		if err != nil || file.Documents() == 0 {
			return
		}
		value = strings.ToValidUTF8(value, "")
		p := yamledit.Path{"spec", "template", "a"}
		if file.Set(0, p, value) == nil {
			got, err := file.Get(0, p)
			require.NoError(t, err)
			require.Equal(t, value, got)
		}
		_ = file.Append(0, yamledit.Path{"spec", "list"}, value)
		_ = file.Delete(0, yamledit.Path{"spec"})
	})
}
