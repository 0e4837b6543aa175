package packages_test

import (
	"context"
	"testing"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/packages"
)

// The databases of text, whatever they say. That of rpm is read by a child, see TestHostileRPM.
func FuzzRead(f *testing.F) {
	f.Add(status, "/usr/bin/x\n", "P:musl\nV:1\nF:lib\nR:x\nD:so:a\np:so:b=1\n")
	f.Fuzz(func(t *testing.T, status, list, installed string) {
		tree := tree(t, File("var/lib/dpkg/status", status), File("var/lib/dpkg/info/base.list", list),
			File("var/lib/dpkg/status.d/x", status), File("lib/apk/db/installed", installed))
		db, err := packages.Read(context.Background(), tree)
		if err != nil {
			return
		}
		db.Closure(db.Packages, func(*packages.Package) bool { return false })
	})
}
