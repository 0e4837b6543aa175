package launch

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// identify resolves the image's USER as container engines do (OCI image specification, "User"): a name
// or number, with an optional group. It gives the user's home directory.
func (s *Spec) identify(tree *rootfs.Tree, user string) (home string, err error) {
	name, group, hasGroup := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	home = "/"
	uid, nameErr := strconv.ParseUint(name, 10, 32)
	found := nameErr == nil
	login := ""
	passwd, err := records(tree, "/etc/passwd", 7)
	if err != nil {
		return "", err
	}
	for f := range passwd {
		u, uerr := strconv.ParseUint(f[2], 10, 32)
		g, gerr := strconv.ParseUint(f[3], 10, 32)
		if uerr != nil || gerr != nil || f[0] != name && (nameErr != nil || u != uid) {
			continue
		}
		uid, s.GID, found, login = u, uint32(g), true, f[0]
		if f[5] != "" {
			home = f[5]
		}
		break
	}
	if !found {
		return "", fmt.Errorf("%w: its user %q is not in /etc/passwd", ErrImage, name)
	}
	s.UID = uint32(uid)
	groups, err := records(tree, "/etc/group", 4)
	if err != nil {
		return "", err
	}
	if !hasGroup || group == "" {
		for f := range groups {
			if g, err := strconv.ParseUint(f[2], 10, 32); err == nil && login != "" && slices.Contains(strings.Split(f[3], ","), login) {
				s.groups = append(s.groups, uint32(g))
			}
		}
		return home, nil
	}
	gid, groupErr := strconv.ParseUint(group, 10, 32)
	found = groupErr == nil
	for f := range groups {
		if g, gerr := strconv.ParseUint(f[2], 10, 32); gerr == nil && f[0] == group {
			gid, found = g, true
			break
		}
	}
	if !found {
		return "", fmt.Errorf("%w: its group %q is not in /etc/group", ErrImage, group)
	}
	s.GID = uint32(gid)
	return home, nil
}

// maxRecord is how long a line of such a file can be.
const maxRecord = 64 << 10

// records gives the lines of a colon-separated file that have so many fields.
func records(tree *rootfs.Tree, path string, fields int) (iter.Seq[[]string], error) {
	n, _, err := tree.Resolve(path)
	if err != nil {
		return func(func([]string) bool) {}, nil //nolint:nilerr // no such file, as in many small images
	}
	if n.Content == nil && n.Size > 0 {
		return nil, fmt.Errorf("%w: %s leads to %s, which is not one of the places where it is looked for", ErrImage, path, n.Path)
	}
	return func(yield func([]string) bool) {
		for line := range bytes.Lines(n.Content) {
			if len(line) > maxRecord {
				continue
			}
			if f := strings.Split(strings.TrimSuffix(string(line), "\n"), ":"); len(f) >= fields && !yield(f) {
				return
			}
		}
	}, nil
}
