package packages

import (
	"context"
	"path"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// The second place is that of apk 3 (Alpine from 3.23, Wolfi).
var apkInstalled = []string{"/lib/apk/db/installed", "/usr/lib/apk/db/installed"}

// apkWorld has the packages that somebody has asked for (apk-world(5)).
const apkWorld = "/etc/apk/world"

// apkEssential are the packages of every Alpine image, of which apk has no mark.
var apkEssential = map[string]bool{
	"alpine-baselayout": true, "alpine-baselayout-data": true, "busybox": true, "busybox-binsh": true, "musl": true,
	"musl-utils":       true,
	"wolfi-baselayout": true, "glibc": true, "glibc-locale-posix": true, "ld-linux": true,
}

// readAPK reads apk's database (apk-package(5), the installed database: one letter and a colon before
// each field).
func readAPK(_ context.Context, tree *rootfs.Tree) ([]*Package, error) {
	var list []*Package
	asked, err := content(tree, apkWorld)
	if err != nil {
		return nil, err
	}
	world := map[string]bool{}
	for _, name := range strings.Fields(string(asked)) {
		world[apkName(name)] = true
	}
	seen := map[string]bool{} // one place can be a link to the other
	for _, file := range apkInstalled {
		_, real, _ := tree.Resolve(file)
		if seen[real] {
			continue
		}
		seen[real] = true
		text, err := content(tree, file)
		if err != nil {
			return nil, err
		}
		for record := range strings.SplitSeq(string(text), "\n\n") {
			if p := apkPackage(record); p.Name != "" {
				p.Asked = world[p.Name]
				list = append(list, p)
			}
		}
	}
	return list, nil
}

func apkPackage(record string) *Package {
	p := &Package{}
	dir := ""
	for line := range strings.SplitSeq(record, "\n") {
		field, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		switch field {
		case "P":
			p.Name = value
			p.Essential = apkEssential[value]
		case "V":
			p.Version = value
		case "D":
			for _, d := range strings.Fields(value) {
				if !strings.HasPrefix(d, "!") { // a conflict
					p.Depends = append(p.Depends, []string{apkName(d)})
				}
			}
		case "p":
			for _, d := range strings.Fields(value) {
				p.Provides = append(p.Provides, apkName(d))
			}
		case "F":
			dir = value
			p.Files = append(p.Files, "/"+dir)
		case "R":
			p.Files = append(p.Files, path.Join("/", dir, value))
		}
	}
	return p
}

// apkName is the name in a relation such as "so:libssl.so.3=3" or "musl>=1.2".
func apkName(s string) string {
	if i := strings.IndexAny(s, "<>=~@"); i > 0 {
		return s[:i]
	}
	return s
}
