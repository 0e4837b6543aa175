package rootfs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/engines"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
)

func TestWithin(t *testing.T) {
	type layer []Entry
	for what, c := range map[string]struct {
		layers []layer
		entry  string
	}{
		"nothing": {[]layer{{File("etc/passwd", "x"), Symlink("bin", "usr/bin")}}, ""},
		"a program of the name": {
			[]layer{{Dir("usr/bin"), Symlink("bin", "usr/bin")}, {Program("bin/cconvert", "x")}}, "",
		},
		"a longer name": {[]layer{{File("cconvert2", "x"), Symlink("x", "/cconvert2")}}, ""},
		"a link inside": {
			[]layer{{Dir("usr/lib/cconvert"), Symlink("usr/bin/x", "../lib/cconvert/x")}}, "",
		},
		"the directory":              {[]layer{{Dir("cconvert")}}, "/cconvert"},
		"a file in it":               {[]layer{{File("cconvert/gramine/x", "x")}}, "/cconvert/gramine/x"},
		"removed":                    {[]layer{{File("cconvert/x", "x")}, {File(".wh.cconvert", "")}}, "/cconvert/x"},
		"emptied root":               {[]layer{{File("cconvert/x", "x")}, {File(".wh..wh..opq", "")}}, "/cconvert/x"},
		"a whiteout":                 {[]layer{{File(".wh.cconvert", "")}}, "/cconvert"},
		"emptied":                    {[]layer{{File("cconvert/.wh..wh..opq", "")}}, "/cconvert"},
		"a link to it":               {[]layer{{Symlink("x", "/cconvert/gramine/lib")}, {File("x/evil", "x")}}, "/x"},
		"a relative link":            {[]layer{{Symlink("a/x", "../cconvert")}}, "/a/x"},
		"above the root":             {[]layer{{Symlink("a/x", "../../../cconvert/y")}}, "/a/x"},
		"a hard link":                {[]layer{{Hardlink("x", "cconvert/y")}}, "/x"},
		"through a link to the root": {[]layer{{Symlink("r", "/")}, {File("r/cconvert/x", "x")}}, "/r/cconvert/x"},
		"through one that is removed": {
			[]layer{{Symlink("r", "/")}, {File(".wh.r", "")}, {File("r/cconvert/x", "x")}}, "/r/cconvert/x",
		},
		"through links to links": {
			[]layer{{Dir("b"), Symlink("a", "b"), Symlink("a/y", "/")}, {File("b/y/cconvert/x", "x")}},
			"/b/y/cconvert/x",
		},
		"a link through a link": {
			[]layer{{Symlink("y", "."), Symlink("z", "y/cconvert")}, {File("z/evil", "x")}}, "/z",
		},
		"a hard link to a link": {
			[]layer{{Symlink("opt/r", "/"), Hardlink("opt/h", "opt/r"), File("opt/h/cconvert/x", "x")}},
			"/opt/h/cconvert/x",
		},
		"a hard link to a near link": {
			[]layer{{Symlink("r", "."), Hardlink("h", "r"), File("h/cconvert/x", "x")}}, "/h/cconvert/x",
		},
		"exchanged links": {
			[]layer{{Symlink("r", "/usr")}, {Symlink("r", "..")}, {File("r/cconvert", "x")}}, "/r/cconvert",
		},
	} {
		var indexes []*rootfs.Index
		for _, l := range c.layers {
			indexes = append(indexes, scan(t, l...))
		}
		_, entry := engines.Within(indexes, "/cconvert")
		assert.Equal(t, c.entry, entry, what)
	}
}

// Links that lead to links in very many ways end the search, and not well.
func TestWithinIsBounded(t *testing.T) {
	var links []Entry
	for i := range 30 {
		links = append(links, Symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d/../l%[1]d", i+1)))
	}
	links = append(links, File("l0/l0/cconvert", "x"))
	_, entry := engines.Within([]*rootfs.Index{scan(t, links...)}, "/cconvert")
	assert.NotEmpty(t, entry)
}

// Engines follow longer chains of links than the kernel does at once.
func TestWithinFollowsLongChains(t *testing.T) {
	for _, n := range []int{39, 41, 80, 300} {
		links := []Entry{Symlink("l0", "/")}
		for i := range n {
			links = append(links, Symlink(fmt.Sprintf("l%d", i+1), fmt.Sprintf("l%d", i)))
		}
		links = append(links, File(fmt.Sprintf("l%d/cconvert/x", n), "x"))
		_, entry := engines.Within([]*rootfs.Index{scan(t, links...)}, "/cconvert")
		assert.NotEmpty(t, entry, n)
	}
}

// Many links of one path take no longer than many links.
func TestWithinManyLinks(t *testing.T) {
	var links []Entry
	for i := range 100_000 {
		links = append(links, Symlink("l", fmt.Sprintf("t%d", i)))
	}
	links = append(links, File("usr/bin/cconvert", "x"))
	index := scan(t, links...)
	begin := time.Now()
	engines.Within([]*rootfs.Index{index}, "/cconvert")
	assert.Less(t, time.Since(begin), 10*time.Second)
}

// Hard links to a path of many links take bounded work, which is copying their targets.
func TestWithinManyHardLinks(t *testing.T) {
	var links []Entry
	for i := range 3000 {
		links = append(links, Symlink("s", fmt.Sprintf("t%d", i)))
	}
	for i := range 3000 {
		links = append(links, Hardlink(fmt.Sprintf("h%d", i), "s"))
	}
	index := scan(t, append(links, Symlink("x", "y/cconvert"))...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	engines.Within([]*rootfs.Index{index}, "/cconvert")
	runtime.ReadMemStats(&after)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<30))
}

// Names that only some engines pass over would hide entries from who reads the layer.
func TestAUFSNames(t *testing.T) {
	for _, e := range []Entry{
		Symlink(".wh..wh.x", "/"), File("srv/.wh..wh.x", ""), Symlink("srv/.wh..wh.x/root", "/"),
		File(".wh..wh.plnk/a/b", "x"), Hardlink(".wh..wh.plnk/5.6", "a"),
		File("/.wh..wh.x/evil", "x"), File(".wh..wh.orph/x", "y"), File(".wh..wh.aufs", "x"),
	} {
		blob := Tar(t, File("a", "1"), e)
		_, err := rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob), rootfs.Options{})
		assert.ErrorIs(t, err, rootfs.ErrOverlay, e.Header.Name)
	}
}

// Attributes by which file systems of engines hide files are refused, and no others.
func TestOverlayAttributes(t *testing.T) {
	for attribute, refused := range map[string]bool{
		"trusted.overlay.opaque": true, "user.overlay.redirect": true, "user.fuseoverlayfs.opaque": true,
		"user.containers.override_stat": true,
		"security.capability":           false, "user.mime_type": false,
	} {
		e := Dir("d")
		e.Header.PAXRecords = map[string]string{"SCHILY.xattr." + attribute: "y"}
		blob := Tar(t, e)
		_, err := rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob), rootfs.Options{})
		assert.Equal(t, refused, errors.Is(err, rootfs.ErrOverlay), "%s: %v", attribute, err)
	}
}

// What is compressed to some engines and a plain archive to others is refused.
func TestPolyglot(t *testing.T) {
	frame := string([]byte{0x50, 0x2a, 0x4d, 0x18, 0xf8, 0x01}) // a frame to be skipped, of 504 bytes
	e := File(frame, "evil")
	blob := Tar(t, e)
	blob[6], blob[7] = 0, 0 // the size ends so, and so does the name
	_, err := rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob), rootfs.Options{})
	assert.ErrorIs(t, err, inflate.ErrCompression)

	// However a reader of tar may read the checksum.
	sum := 0
	for i, b := range blob[:512] {
		if i >= 148 && i < 156 {
			b = ' '
		}
		sum += int(b)
	}
	for _, field := range []string{"%06o\x00 ", "%06o\x00X", "%06o  ", " %06o\x00", "%08o", "\x00%06o9", "  %06o"} {
		copy(blob[148:156], fmt.Sprintf(field, sum))
		_, err := rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob), rootfs.Options{})
		assert.ErrorIs(t, err, inflate.ErrCompression, "%q", field)
	}
	binary.BigEndian.PutUint64(blob[148:156], 1<<63|uint64(sum))
	_, err = rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob), rootfs.Options{})
	assert.ErrorIs(t, err, inflate.ErrCompression)

	for _, magic := range []string{"BZh91AY&SY", "LZIP", "\xfd7zXZ", "\x04\x22\x4d\x18", "\x1f\x9d\x90"} {
		blob := Tar(t, File(magic, "x"))
		_, err := rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob), rootfs.Options{})
		assert.ErrorIs(t, err, inflate.ErrCompression, "%q", magic)
	}
}
