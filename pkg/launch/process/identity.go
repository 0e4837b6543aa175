package process

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/moby/sys/user"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// identify resolves the image's USER as container engines do, with their own code (OCI image specification, "User"): a
// name or number, with an optional group. It returns the user's home directory.
func (s *Process) identify(tree *rootfs.Tree, spec string) (home string, err error) {
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

// What a user may do with a file, as permission bits.
const (
	mayExecute uint32 = 1 << iota
	_
	MayRead
)

// May reports whether the image's user can open or execute a file, by the permissions of the file and of the
// directories above it. Root may all that anybody may (path_resolution(7)).
func (s *Process) May(tree *rootfs.Tree, n *rootfs.Node, bit uint32) bool {
	for dir := path.Dir(n.Path); dir != "/"; dir = path.Dir(dir) {
		if d := tree.Lookup(dir); d != nil && !s.mayItself(d, mayExecute) {
			return false
		}
	}
	return s.mayItself(n, bit)
}

// mayItself is may, by the permissions of the file alone.
func (s *Process) mayItself(n *rootfs.Node, bit uint32) bool {
	switch {
	case s.UID == 0 && bit == mayExecute && n.Type == rootfs.Regular:
		bit = mayExecute<<6 | mayExecute<<3 | mayExecute
	case s.UID == 0:
		return true
	case n.UID == int(s.UID):
		bit <<= 6
	case n.GID == int(s.GID), slices.Contains(s.groups, uint32(n.GID)):
		bit <<= 3
	}
	return n.Mode&bit != 0
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

// Accounts are where users and groups are, in whatever distribution.
var Accounts = []string{
	"/etc/passwd", "/etc/group", "/usr/lib/passwd", "/usr/lib/group", "/usr/etc/passwd", "/usr/etc/group",
	"/usr/share/etc/passwd", "/usr/share/etc/group",
}
