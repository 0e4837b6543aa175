package reach

import (
	"fmt"
	"path"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// patterns match paths. Most are "everything below a directory", which needs no matching: what is tried
// on every file of an image has to be quick.
type patterns struct {
	exact, dirs map[string]bool
	globs       []string
}

func compile(list []string) patterns {
	const special = `*?[{\`
	p := patterns{exact: map[string]bool{}, dirs: map[string]bool{}}
	for _, g := range list {
		dir, all := strings.CutSuffix(g, "/**")
		switch {
		case !strings.ContainsAny(g, special):
			p.exact[g] = true
		case all && !strings.ContainsAny(dir, special):
			p.dirs[dir] = true
		default:
			p.globs = append(p.globs, g)
		}
	}
	return p
}

func (p patterns) check() error {
	for _, g := range p.globs {
		if !doublestar.ValidatePattern(g) {
			return fmt.Errorf("the pattern %q: %w", g, doublestar.ErrBadPattern)
		}
	}
	return nil
}

func (p patterns) match(file string) bool {
	if p.exact[file] {
		return true
	}
	if len(p.dirs) > 0 {
		for dir := path.Dir(file); dir != "/"; dir = path.Dir(dir) {
			if p.dirs[dir] {
				return true
			}
		}
	}
	for _, g := range p.globs {
		if literal, _, _ := strings.Cut(g, "*"); !strings.HasPrefix(file, strings.TrimRight(literal, "?[{")) && !strings.ContainsAny(literal, "?[{") {
			continue
		}
		if doublestar.MatchUnvalidated(g, file) {
			return true
		}
	}
	return false
}
