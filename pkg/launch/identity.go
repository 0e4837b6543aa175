package launch

import (
	"fmt"
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
	passwd, err := records(tree, "/etc/passwd", 7)
	if err != nil {
		return "", err
	}
	for _, f := range passwd {
		u, uerr := strconv.ParseUint(f[2], 10, 32)
		g, gerr := strconv.ParseUint(f[3], 10, 32)
		if uerr != nil || gerr != nil || f[0] != name && (nameErr != nil || u != uid) {
			continue
		}
		uid, s.GID, found = u, uint32(g), true
		if f[5] != "" {
			home = f[5]
		}
		break
	}
	if !found {
		return "", fmt.Errorf("%w: its user %q is not in /etc/passwd", ErrImage, name)
	}
	s.UID = uint32(uid)
	if !hasGroup || group == "" {
		return home, nil
	}
	gid, groupErr := strconv.ParseUint(group, 10, 32)
	found = groupErr == nil
	groups, err := records(tree, "/etc/group", 4)
	if err != nil {
		return "", err
	}
	for _, f := range groups {
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

// records gives the lines of a colon-separated file that have so many fields.
func records(tree *rootfs.Tree, path string, fields int) ([][]string, error) {
	n, _, err := tree.Resolve(path)
	if err != nil {
		return nil, nil //nolint:nilerr // no such file, as in many small images
	}
	if n.Content == nil && n.Size > 0 {
		return nil, fmt.Errorf("%w: %s leads to %s, which is not one of the places where it is looked for", ErrImage, path, n.Path)
	}
	var list [][]string
	for line := range strings.Lines(string(n.Content)) {
		if f := strings.Split(strings.TrimSuffix(line, "\n"), ":"); len(f) >= fields {
			list = append(list, f)
		}
	}
	return list, nil
}
