package packages

import (
	"context"
	"iter"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

const (
	dpkgStatus = "/var/lib/dpkg/status"
	dpkgInfo   = "/var/lib/dpkg/info"
	// dpkgStatusDir has one record for each package in distroless images, and their lists of files.
	dpkgStatusDir = "/var/lib/dpkg/status.d"
	// aptStates notes which packages are there for the sake of others alone (apt-mark(8)).
	aptStates = "/var/lib/apt/extended_states"
)

// basePriorities are those of packages that the smallest installations have without being asked for them (Debian Policy
// Manual, "Priorities"; debootstrap(8)).
var basePriorities = []string{"required", "important"}

var dpkgFiles = []string{dpkgStatus, dpkgInfo + "/*.list", dpkgStatusDir + "/*", aptStates}

// readDPKG reads dpkg's database (dpkg(1), deb-control(5)).
func readDPKG(_ context.Context, tree *rootfs.Tree) ([]*Package, error) {
	var list []*Package
	text, err := content(tree, dpkgStatus)
	if err != nil {
		return nil, err
	}
	states, err := content(tree, aptStates)
	if err != nil {
		return nil, err
	}
	automatic := map[string]bool{}
	for r := range stanzas(string(states)) {
		automatic[r["Package"]] = r["Auto-Installed"] == "1"
	}
	for r := range stanzas(string(text)) {
		p := dpkgPackage(r)
		if p == nil || !strings.HasSuffix(r["Status"], " installed") {
			continue
		}
		for _, name := range []string{p.Name, p.Name + ":" + r["Architecture"]} {
			files, err := content(tree, path.Join(dpkgInfo, name+".list"))
			if err != nil {
				return nil, err
			}
			if files != nil {
				p.Files = strings.Split(strings.TrimSuffix(string(files), "\n"), "\n")
			}
		}
		p.base = slices.Contains(basePriorities, r["Priority"])
		p.Asked = r["Priority"] != "" && !automatic[p.Name]
		list = append(list, p)
	}
	dir, _, err := tree.Resolve(dpkgStatusDir)
	if err != nil {
		return list, nil //nolint:nilerr // most images have none
	}
	for _, n := range dir.Children() {
		if strings.HasSuffix(n.Name(), ".md5sums") {
			continue
		}
		text, err := content(tree, n.Path)
		if err != nil {
			return nil, err
		}
		for r := range stanzas(string(text)) {
			p := dpkgPackage(r)
			if p == nil {
				continue
			}
			if sums := tree.Lookup(n.Path + ".md5sums"); sums != nil {
				for line := range strings.Lines(string(sums.Content)) {
					if _, file, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  "); ok {
						p.Files = append(p.Files, path.Clean("/"+file))
					}
				}
			}
			list = append(list, p)
		}
	}
	return list, nil
}

// dpkgFields are those that count here.
var dpkgFields = []string{
	"Package", "Version", "Architecture", "Status", "Essential", "Pre-Depends", "Depends", "Provides",
	"Priority", "Auto-Installed",
}

// stanzas reads the records of a control file one after the other, continued lines left out.
func stanzas(text string) iter.Seq[map[string]string] {
	return func(yield func(map[string]string) bool) {
		for record := range strings.SplitSeq(text, "\n\n") {
			fields := map[string]string{}
			for line := range strings.SplitSeq(record, "\n") {
				if strings.HasPrefix(line, " ") {
					continue
				}
				if name, value, ok := strings.Cut(line, ":"); ok && slices.Contains(dpkgFields, name) {
					fields[name] = strings.TrimSpace(value)
				}
			}
			if len(fields) > 0 && !yield(fields) {
				return
			}
		}
	}
}

func dpkgPackage(fields map[string]string) *Package {
	if fields["Package"] == "" {
		return nil
	}
	p := &Package{Name: fields["Package"], Version: fields["Version"], Essential: fields["Essential"] == "yes"}
	for _, field := range []string{"Pre-Depends", "Depends"} {
		for relation := range strings.SplitSeq(fields[field], ",") {
			var alternatives []string
			for a := range strings.SplitSeq(relation, "|") {
				if name := relationName(a); name != "" {
					alternatives = append(alternatives, name)
				}
			}
			if alternatives != nil {
				p.Depends = append(p.Depends, alternatives)
			}
		}
	}
	for provided := range strings.SplitSeq(fields["Provides"], ",") {
		if name := relationName(provided); name != "" {
			p.Provides = append(p.Provides, name)
		}
	}
	return p
}

// relationName is the name in a relation such as "python3:any (>= 3.11)".
func relationName(s string) string {
	s = strings.TrimSpace(s)
	if i := strings.IndexAny(s, " (:"); i >= 0 {
		s = s[:i]
	}
	return s
}
