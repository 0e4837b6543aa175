package launch

import (
	"bytes"
	"fmt"
	"io"

	"github.com/moby/sys/user"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// identify resolves the image's USER as container engines do, with their own code (OCI image specification, "User"): a
// name or number, with an optional group. It returns the user's home directory.
func (s *Spec) identify(tree *rootfs.Tree, spec string) (home string, err error) {
	passwd, err := account(tree, "/etc/passwd")
	if err != nil {
		return "", err
	}
	group, err := account(tree, "/etc/group")
	if err != nil {
		return "", err
	}
	who, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, passwd, group)
	if err != nil {
		return "", fmt.Errorf("%w: its user %q: %w", ErrImage, spec, err)
	}
	s.UID, s.GID = uint32(who.Uid), uint32(who.Gid)
	for _, g := range who.Sgids {
		if g != who.Gid {
			s.groups = append(s.groups, uint32(g))
		}
	}
	return who.Home, nil
}

// account opens a list of users or groups; an empty one if there is none, as in many small images.
func account(tree *rootfs.Tree, path string) (io.Reader, error) {
	n, _, err := tree.Resolve(path)
	if err != nil {
		return bytes.NewReader(nil), nil //nolint:nilerr // see above
	}
	if n.Content == nil && n.Size > 0 {
		return nil, fmt.Errorf("%w: %s leads to %s, which is not a short list of accounts with passwd or group in its "+
			"name", ErrImage, path, n.Path)
	}
	return bytes.NewReader(n.Content), nil
}
