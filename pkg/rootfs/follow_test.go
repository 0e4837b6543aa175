package rootfs_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// chains are two chains of 40 links each, of 4 KB, to the directory /end.
func chains() []rootfs.Entry {
	list := []rootfs.Entry{{Path: "/x", Type: rootfs.Dir}, {Path: "/end", Type: rootfs.Dir}}
	for _, c := range "kl" {
		for j := range 39 {
			link := strings.Repeat("x/../", 815) + fmt.Sprintf("%c%d", c, j+1)
			list = append(list, rootfs.Entry{Path: fmt.Sprintf("/%c%d", c, j), Type: rootfs.Symlink, Link: link})
		}
		list = append(list, rootfs.Entry{Path: fmt.Sprintf("/%c39", c), Type: rootfs.Symlink, Link: "end"})
	}
	return list
}

// What links lead through is bounded in all look-ups together, and whoever looks something up learns of it.
func TestFollowed(t *testing.T) {
	entries := chains()
	for i := range 100_000 { // in turn, so that no directory is the one before
		entries = append(entries, rootfs.Entry{Path: fmt.Sprintf("/%c0/f%d", "kl"[i%2], i), Type: rootfs.Regular})
	}
	_, err := rootfs.Merge([]*rootfs.Index{{Entries: entries}})
	assert.ErrorIs(t, err, rootfs.ErrFollowed)

	hard := []rootfs.Entry{{Path: "/f", Type: rootfs.Regular}}
	for i := range 100_000 {
		hard = append(hard, rootfs.Entry{Path: fmt.Sprintf("/h%d", i), Type: rootfs.Hardlink, Link: "/k0/f"})
	}
	lower := append(chains(), rootfs.Entry{Path: "/end/f", Type: rootfs.Regular})
	_, err = rootfs.Merge([]*rootfs.Index{{Entries: lower}, {Entries: hard}})
	assert.Error(t, err)

	tree, err := rootfs.Merge([]*rootfs.Index{{Entries: lower}})
	require.NoError(t, err)
	for range 250 {
		n, _, err := tree.Resolve("/k0/f")
		require.NoError(t, err)
		require.Equal(t, "/end/f", n.Path)
	}
	require.NoError(t, tree.Err())
	for range 1000 {
		_, _, err = tree.Resolve("/k0/f")
	}
	require.ErrorIs(t, err, rootfs.ErrFollowed)
	assert.ErrorIs(t, tree.Err(), rootfs.ErrFollowed)
}
