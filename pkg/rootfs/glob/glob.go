// Package glob matches absolute paths against patterns.
package glob

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// Patterns match paths, as github.com/bmatcuk/doublestar does: "*" stays within a directory, "**" does
// not. Most are a path or "everything below a directory", which need no matching: what is tried on every
// file of an image has to be quick.
type Patterns struct {
	exact map[string]map[string]bool // paths, by their directory
	dirs  map[string]bool
	globs map[string][]glob // by the directory that all matches are below
}

// glob is a pattern with wildcards.
type glob struct {
	pattern string
	part    string // that every match contains, below that directory: looking for it is quicker than matching
}

func (g glob) match(file string) bool {
	return strings.Contains(file, g.part) && doublestar.MatchUnvalidated(g.pattern, file)
}

const special = `*?[{\`

// maxBraces is how many braces a pattern may have: each multiplies the time of matching.
const maxBraces = 4

// maxChoices is how many commas are in all braces of a pattern.
const maxChoices = 32

// Compile prepares patterns for matching.
func Compile(list []string) Patterns {
	p := Patterns{exact: map[string]map[string]bool{}, dirs: map[string]bool{}, globs: map[string][]glob{}}
	for _, g := range list {
		dir, all := strings.CutSuffix(g, "/**")
		switch first := strings.IndexAny(g, special); {
		case first < 0:
			dir := g[:max(0, strings.LastIndexByte(g, '/'))]
			if p.exact[dir] == nil {
				p.exact[dir] = map[string]bool{}
			}
			p.exact[dir][g] = true
		case all && first > len(dir):
			p.dirs[dir] = true
		default:
			below := g[:max(0, strings.LastIndexByte(g[:first], '/'))]
			p.globs[below] = append(p.globs[below], glob{g, literal(g[len(below):])})
		}
	}
	return p
}

// literal returns the longest part of a pattern that stands for itself, without slashes at its ends, which "**"
// can swallow; empty if that is not plain to see.
func literal(pattern string) (longest string) {
	if strings.ContainsAny(pattern, `[{\`) {
		return ""
	}
	for part := range strings.FieldsFuncSeq(pattern, func(c rune) bool { return c == '*' || c == '?' }) {
		if part = strings.Trim(part, "/"); len(part) >= len(longest) {
			longest = part
		}
	}
	return longest
}

// Check reports a pattern that is none.
func (p Patterns) Check() error {
	for _, globs := range p.globs {
		for _, g := range globs {
			if strings.Count(g.pattern, "{") > maxBraces || strings.Contains(g.pattern, "{") &&
				strings.Count(g.pattern, ",") > maxChoices {
				return fmt.Errorf("the pattern %.80q: it has more than %d braces or %d choices, which multiply",
					g.pattern, maxBraces, maxChoices)
			}
			if !doublestar.ValidatePattern(g.pattern) {
				return fmt.Errorf("the pattern %q: %w", g.pattern, doublestar.ErrBadPattern)
			}
		}
	}
	return nil
}

// Match reports whether one of the patterns matches an absolute path.
func (p Patterns) Match(file string) bool { return p.Matcher().Match(file) }

// Matcher matches many paths, those of a directory one after the other. It must not be used by several goroutines.
func (p Patterns) Matcher() *Matcher { return &Matcher{Patterns: p} }

// Matcher is Patterns that remembers what the last path's directory means.
type Matcher struct {
	Patterns
	known bool
	dir   string
	all   bool            // everything below the directory matches
	paths map[string]bool // those in it that match
	some  []glob          // patterns that can match below it
}

// Match reports whether one of the patterns matches an absolute path.
func (m *Matcher) Match(file string) bool {
	at := strings.LastIndexByte(file, '/')
	if at < 0 {
		return false
	}
	if dir := file[:at]; !m.known || dir != m.dir {
		m.enter(dir)
	}
	return m.all || m.paths[file] || slices.ContainsFunc(m.some, func(g glob) bool { return g.match(file) })
}

// enter finds what can match below a directory.
func (m *Matcher) enter(dir string) {
	m.known, m.dir, m.all, m.paths, m.some = true, dir, false, m.exact[dir], m.some[:0]
	if len(m.dirs)+len(m.globs) == 0 {
		return
	}
	for {
		if len(m.dirs) > 0 && m.dirs[dir] {
			m.all = true
			return
		}
		if len(m.globs) > 0 {
			m.some = append(m.some, m.globs[dir]...)
		}
		at := strings.LastIndexByte(dir, '/')
		if at < 0 {
			return
		}
		dir = dir[:at]
	}
}
