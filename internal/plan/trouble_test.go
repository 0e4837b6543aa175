package plan_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/pkg/image"
)

// trouble is a world with a registry that refuses connections, and one whose lists do not end.
type trouble struct {
	shelves
	waiting *atomic.Int32 // for lists that do not end
	most    *atomic.Int32 // of them at a time
}

func newTrouble() trouble { return trouble{world, new(atomic.Int32), new(atomic.Int32)} }

func (c trouble) answer(ctx context.Context, host string) error {
	switch host {
	case "down.example":
		return fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	case "endless.example":
		c.most.Store(max(c.most.Load(), c.waiting.Add(1)))
		defer c.waiting.Add(-1)
		<-ctx.Done()
		return fmt.Errorf("the next page: %w", ctx.Err())
	}
	return nil
}

func (c trouble) Repositories(ctx context.Context, r name.Registry) iter.Seq2[string, error] {
	if err := c.answer(ctx, r.RegistryStr()); err != nil {
		return list(nil, err)
	}
	return c.shelves.Repositories(ctx, r)
}

func (c trouble) Tags(ctx context.Context, r name.Repository) iter.Seq2[string, error] {
	if err := c.answer(ctx, r.RegistryStr()); err != nil {
		return list(nil, err)
	}
	return c.shelves.Tags(ctx, r)
}

func TestRegistriesInTrouble(t *testing.T) {
	p, err := plan.Parse("plan.yaml", []byte(`version: 1
convert:
- registry: down.example
- repository: down.example/app
- registry: endless.example
- repository: endless.example/app
- repository: b.example/app
`))
	require.NoError(t, err)
	p.ListTime = 200 * time.Millisecond
	registries := newTrouble()
	images, err := p.Select(context.Background(), "plan.yaml", registries)
	require.NoError(t, err)
	assert.EqualValues(t, 2, registries.most.Load(), "entries do not wait for one another")
	good := 0
	for _, img := range images {
		if img.Err == nil {
			good++
			continue
		}
		assert.True(t, image.Transient(img.Err), "%s: %v", img.Source, img.Err)
		if img.Line >= 5 {
			assert.ErrorContains(t, img.Err, "longer than 200ms")
		}
	}
	assert.Equal(t, 3, good)
	assert.Len(t, images, 7)

	ended, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = p.Select(ended, "plan.yaml", newTrouble())
	assert.ErrorIs(t, err, context.Canceled, "nobody waits for it any more")
}

// pushed is a world in which anybody can push to one repository.
type pushed struct {
	tags    map[string][]string // by repository
	created func(ref name.Reference) error
}

func (c pushed) Repositories(context.Context, name.Registry) iter.Seq2[string, error] {
	return list(slices.Collect(maps.Keys(c.tags)), nil)
}

func (c pushed) Tags(_ context.Context, r name.Repository) iter.Seq2[string, error] {
	tags, ok := c.tags[r.RepositoryStr()]
	if !ok || tags == nil {
		return list(nil, fmt.Errorf("%w: 404", plan.ErrNone))
	}
	return list(tags, nil)
}

func (c pushed) Created(_ context.Context, ref name.Reference) (time.Time, error) {
	return time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC), c.created(ref)
}

// What somebody pushes keeps nothing else from being found, and nothing is left out without a word.
func TestPushedTags(t *testing.T) {
	many := make([]string, 4_000)
	for i := range many {
		many[i] = fmt.Sprint("v", i)
	}
	few := map[string][]string{"app": {"1"}}
	for i := range 200 {
		few[fmt.Sprint("a", i)] = many[:20]
	}
	var damaged []string
	allDamaged := map[string]string{}
	for i := range 150 {
		damaged = append(damaged, fmt.Sprint("damaged", i))
		allDamaged["a.example/app:"+damaged[i]] = "damaged"
	}
	broken := errors.New("its configuration is damaged")
	for what, c := range map[string]struct {
		text string
		tags map[string][]string
		good []string
		bad  map[string]string
	}{
		"a tag whose target is itself": {
			"convert: [{repository: a.example/app, target: 'a.example/app:{{if eq .Tag " +
				"`odd`}}odd{{else}}{{.Tag}}-c{{end}}'}]",
			map[string][]string{"app": {"1", "odd"}}, []string{"a.example/app:1"},
			map[string]string{"a.example/app:odd": "would replace a.example/app:odd"},
		},
		"a tag for which the target cannot be made": {
			"convert: [{repository: a.example/app, target: 'a.example/app:{{slice .Tag 2}}-c'}]",
			map[string][]string{"app": {"v1.2", "x"}}, []string{"a.example/app:v1.2"},
			map[string]string{"a.example/app:x": "slice"},
		},
		"a tag that takes the target of what is named": {
			"convert: [{repository: a.example/app, target: 'x.example/app:{{.Tag}}'}, {image: 'b.example/app:1', " +
				"target: 'x.example/app:1'}]",
			map[string][]string{"app": {"1", "2"}}, []string{"b.example/app:1", "a.example/app:2"},
			map[string]string{"a.example/app:1": "would both become"},
		},
		"one of two that are listed": {
			"convert: [{registry: a.example, target: 'x.example/all:{{.Tag}}'}]",
			map[string][]string{"app": {"1", "2"}, "evil": {"1"}}, []string{"a.example/app:2"},
			map[string]string{"a.example/app:1": "would both become", "a.example/evil:1": "would both become"},
		},
		"a repository without tags": {
			"convert: [{repository: a.example/app}, {repository: a.example/empty}]",
			map[string][]string{"app": {"1"}, "empty": {}}, []string{"a.example/app:1"},
			map[string]string{"a.example/empty": "no tags"},
		},
		"one that is damaged, among the newest": {
			"convert: [{repository: a.example/app, tags: {newest: 3}}]",
			map[string][]string{"app": {"1", "2", "damaged"}}, []string{"a.example/app:1", "a.example/app:2"},
			map[string]string{"a.example/app:damaged": "damaged"},
		},
		"a repository that is listed and not there": {
			"convert: [{registry: a.example}]",
			map[string][]string{"app": {"1"}, "gone": nil}, []string{"a.example/app:1"},
			map[string]string{"a.example/gone": "404"},
		},
		"a repository that is named and not there": {
			"convert: [{repository: a.example/app}, {repository: a.example/gone}]",
			map[string][]string{"app": {"1"}}, []string{"a.example/app:1"}, map[string]string{"a.example/gone": "404"},
		},
		"a repository with more than can be converted": {
			"convert: [{repository: a.example/many}, {repository: a.example/app}]",
			map[string][]string{"app": {"1"}, "many": many}, []string{"a.example/app:1"},
			map[string]string{"a.example/many": "too many images"},
		},
		"many repositories with many": {
			"convert: [{registry: a.example, repositories: {deny: [app]}}, {repository: a.example/app}]",
			few, []string{"a.example/app:1"}, map[string]string{"a.example": "in many repositories"},
		},
		"one of many repositories with most": {
			"convert: [{registry: a.example}]",
			map[string][]string{"app": {"1"}, "a": many[:2_000], "b": many[:1_500]}, nil,
			map[string]string{"a.example/a": "this one has most"},
		},
		"two entries with one image": {
			"convert: [{repository: a.example/app, target: 'x.example/app:{{.Tag}}'}, {registry: a.example, target: " +
				"'y.example/{{.Repository}}:{{.Tag}}'}]",
			map[string][]string{"app": {"1"}, "b": {"2"}}, []string{"a.example/app:1", "a.example/b:2"},
			map[string]string{},
		},
		"many that are damaged, among the newest": {
			"convert: [{repository: a.example/app, tags: {newest: 3}}]",
			map[string][]string{"app": append(damaged, "1")}, []string{"a.example/app:1"}, allDamaged,
		},
		"an entry that would have chosen what a later one finds": {
			"convert: [{repository: a.example/many, keys: [a.pem]}, {registry: a.example}, {image: " +
				"'a.example/many:v1'}, {image: 'a.example/many:damaged'}]",
			map[string][]string{"app": {"1"}, "many": many},
			[]string{"a.example/app:1", "a.example/many:v1", "a.example/many:damaged"},
			map[string]string{"a.example/many": "too many"},
		},
		"one that could not be dated, and a later entry": {
			"convert: [{repository: a.example/app, tags: {newest: 3}}, {registry: a.example}]",
			map[string][]string{"app": {"1", "damaged"}, "b": {"damaged"}},
			[]string{"a.example/app:1", "a.example/b:damaged"},
			map[string]string{"a.example/app:damaged": "damaged"},
		},
		"one that could not be dated, and is named later": {
			"convert: [{repository: A.example/app, tags: {newest: 3}}, {image: 'a.example/app:damaged'}]",
			map[string][]string{"app": {"1", "damaged"}}, []string{"a.example/app:1"},
			map[string]string{"a.example/app:damaged": "the entry in line 2 decides on it"},
		},
		"a registry that lists nothing": {
			"convert: [{registry: b.example}]", map[string][]string{}, []string{},
			map[string]string{"b.example": "lists no repository"},
		},
		"many entries with many": {
			"convert: [{repository: a.example/a}, {repository: a.example/b}, {repository: a.example/c}, {repository: " +
				"a.example/d}, {repository: a.example/app}]",
			map[string][]string{
				"app": {"1"}, "a": many[:3_000], "b": many[:2_999], "c": many[:2_998], "d": many[:2_997],
			}, nil,
			map[string]string{"a.example/a": "too many images"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			p, err := plan.Parse("plan.yaml", []byte("version: 1\n"+c.text))
			require.NoError(t, err)
			p.MaxImages = 10_000
			images, err := p.Select(context.Background(), "plan.yaml",
				pushed{tags: c.tags, created: func(ref name.Reference) error {
					if strings.HasPrefix(ref.Identifier(), "damaged") {
						return broken
					}
					return nil
				}})
			require.NoError(t, err)
			var good []string
			bad := map[string]string{}
			for _, img := range images {
				if img.Err == nil {
					good = append(good, img.Source)
					continue
				}
				bad[img.Source] = img.Err.Error()
				if img.Source == "a.example/gone" {
					assert.Equal(t, strings.Contains(c.text, "registry:"), img.Found,
						"what is named and cannot be had has failed")
				}
				assert.Equal(t, img.Source == "a.example/gone" || img.Source == "a.example/empty",
					errors.Is(img.Err, plan.ErrNone), img.Source)
			}
			if c.good != nil {
				assert.ElementsMatch(t, c.good, good)
			} else {
				assert.Contains(t, good, "a.example/app:1")
			}
			require.Len(t, bad, len(c.bad))
			for source, why := range c.bad {
				assert.Contains(t, bad[source], why)
			}
		})
	}
}

// A later entry, which may ask for less, decides on no image that an earlier one is about, whatever a registry lists.
func TestFirstEntryDecides(t *testing.T) {
	for what, c := range map[string]struct {
		text string
		tags map[string][]string
	}{
		"tags that are gone": {"- {registry: a.example, options: {isv-svn: 9}}", map[string][]string{"app": nil}},
		"a tag that is left out": {
			"- {repository: a.example/app, options: {isv-svn: 9}}", map[string][]string{"app": {"2"}},
		},
		"another spelling": {
			"- {repository: 'A.example:443/app', options: {isv-svn: 9}}", map[string][]string{"app": {"2"}},
		},
		"a repository not in list": {
			"- {registry: a.example, options: {isv-svn: 9}}", map[string][]string{"other": {"1"}},
		},
	} {
		p, err := plan.Parse("plan.yaml",
			[]byte("version: 1\nconvert:\n"+c.text+"\n- {image: 'a.example/app:1', options: {debug: true}}\n"))
		require.NoError(t, err)
		images, err := p.Select(context.Background(), "plan.yaml",
			pushed{tags: c.tags, created: func(name.Reference) error {
				return nil
			}})
		require.NoError(t, err)
		found := false
		for _, img := range images {
			if img.Source == "a.example/app:1" && img.Err == nil {
				found = true
				require.Len(t, img.Options, 1, what)
				assert.Equal(t, "isv-svn", img.Options[0].Name, what)
			}
		}
		assert.True(t, found, what)
	}
}

// Eight entries of a registry that is silent are in nobody else's way.
func TestSilentEntries(t *testing.T) {
	var text strings.Builder
	text.WriteString("version: 1\nconvert:\n")
	for i := range 20 {
		fmt.Fprintf(&text, "- repository: endless.example/app%d\n", i)
	}
	text.WriteString("- repository: b.example/app\n")
	p, err := plan.Parse("plan.yaml", []byte(text.String()))
	require.NoError(t, err)
	found := make(chan bool)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = p.Select(ctx, "plan.yaml", told{newTrouble(), found})
		close(found)
	}()
	select {
	case <-found:
	case <-time.After(10 * time.Second):
		t.Error("b.example waits for endless.example")
	}
	cancel()
	for range found { //nolint:revive // until Select has ended
	}
}

// told tells when tags of b.example are asked for.
type told struct {
	trouble
	asked chan bool
}

func (c told) Tags(ctx context.Context, r name.Repository) iter.Seq2[string, error] {
	if r.RegistryStr() == "b.example" {
		c.asked <- true
	}
	return c.trouble.Tags(ctx, r)
}
