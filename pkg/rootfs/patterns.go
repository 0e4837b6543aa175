package rootfs

import (
	"fmt"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// Patterns match paths, as github.com/bmatcuk/doublestar does: "*" stays within a directory, "**" does
// not. Most are a path or "everything below a directory", which need no matching: what is tried on every
// file of an image has to be quick.
type Patterns struct {
	exact, dirs map[string]bool
	globs       map[string][]string // by the directory that all matches are below
}

const special = `*?[{\`

// CompilePatterns prepares patterns for matching.
func CompilePatterns(list []string) Patterns {
	p := Patterns{exact: map[string]bool{}, dirs: map[string]bool{}, globs: map[string][]string{}}
	for _, g := range list {
		dir, all := strings.CutSuffix(g, "/**")
		switch first := strings.IndexAny(g, special); {
		case first < 0:
			p.exact[g] = true
		case all && first > len(dir):
			p.dirs[dir] = true
		default:
			below := g[:max(0, strings.LastIndexByte(g[:first], '/'))]
			p.globs[below] = append(p.globs[below], g)
		}
	}
	return p
}

// Check reports a pattern that is none.
func (p Patterns) Check() error {
	for _, globs := range p.globs {
		for _, g := range globs {
			if !doublestar.ValidatePattern(g) {
				return fmt.Errorf("the pattern %q: %w", g, doublestar.ErrBadPattern)
			}
		}
	}
	return nil
}

// Match says whether one of the patterns matches an absolute path.
func (p Patterns) Match(file string) bool {
	if p.exact[file] {
		return true
	}
	for at := strings.LastIndexByte(file, '/'); at >= 0; at = strings.LastIndexByte(file[:at], '/') {
		dir := file[:at]
		if p.dirs[dir] {
			return true
		}
		for _, g := range p.globs[dir] {
			if doublestar.MatchUnvalidated(g, file) {
				return true
			}
		}
	}
	return false
}
