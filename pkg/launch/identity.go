package launch

import (
	"bufio"
	"bytes"
	"fmt"
	"iter"
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
	uid, err := strconv.ParseUint(name, 10, 32)
	found := err == nil
	for f := range records(tree, "/etc/passwd", 7) {
		u, uerr := strconv.ParseUint(f[2], 10, 32)
		g, gerr := strconv.ParseUint(f[3], 10, 32)
		if uerr != nil || gerr != nil || f[0] != name && (err != nil || u != uid) {
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
	gid, err := strconv.ParseUint(group, 10, 32)
	found = err == nil
	for f := range records(tree, "/etc/group", 4) {
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
func records(tree *rootfs.Tree, path string, fields int) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		n, _, err := tree.Resolve(path)
		if err != nil {
			return
		}
		for lines := bufio.NewScanner(bytes.NewReader(n.Content)); lines.Scan(); {
			if f := strings.Split(lines.Text(), ":"); len(f) >= fields && !yield(f) {
				return
			}
		}
	}
}
