package launch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/packages"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// follow finds what the program can be expected to open.
func (f *files) follow(ctx context.Context, contents *Contents, o Options) error {
	s := f.spec
	db, err := contents.packages()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && !errors.Is(err, packages.ErrDamaged):
		return err // of this machine: the output must not depend on it
	case err != nil:
		s.Find(finding.PackageDatabase, finding.Warning, "",
			fmt.Sprintf("%v: which files belong together is not known", err))
		db = &packages.DB{}
	}
	f.db = db
	if len(db.Packages) == 0 && f.policy == TrustAuto {
		f.policy = TrustAll
	}
	entry := f.tree.Lookup(s.Entrypoint)
	chain, err := s.Interpreters(f.tree, entry)
	if err != nil {
		return err
	}
	start := reach.Start{
		Programs: append([]*rootfs.Node{entry}, chain...),
		LookUp:   func(name string) (*rootfs.Node, string, error) { return s.LookUp(f.tree, name) },
		Interpreters: func(n *rootfs.Node) ([]*rootfs.Node, error) {
			return s.Interpreters(f.tree, n)
		},
	}
	for _, a := range s.Argv[1:] {
		start.Words = append(start.Words, a)
		start.Words = append(start.Words, reach.Words(a)...)
	}
	start.LibraryPath, _ = s.Getenv("LD_LIBRARY_PATH")
	for _, name := range []string{"LD_PRELOAD", "LD_AUDIT"} { // ld.so(8): LD_AUDIT has colons only
		v, _ := s.Getenv(name)
		start.Preload = append(start.Preload, strings.FieldsFunc(v, func(c rune) bool {
			return c == ':' || c == ' '
		})...)
	}
	for _, name := range []string{"LANG", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "LANGUAGE"} {
		if v, ok := s.Getenv(name); ok && v != "" {
			start.Locales = append(start.Locales, v)
		}
	}
	for _, v := range s.Env {
		if v.Name == "TZ" {
			start.Zones, start.AnyZone = append(start.Zones, v.Value), start.AnyZone || v.PassThrough
		}
	}
	finder, set := reach.Programs(f.tree, db, contents.kinds, start)
	read := s.chooseProfile(f.tree, finder, set, o)
	f.set, err = finder.Files(read)
	return err
}

// applyPolicy decides how files are chosen.
func (f *files) applyPolicy(list []string) error {
	f.spec.Policy = f.policy
	switch f.policy {
	case TrustAuto:
		f.choose = f.set.Has
	case TrustAll:
		f.choose = func(n *rootfs.Node) (reach.File, bool) {
			if why, ok := f.set.Has(n); ok {
				return why, true
			}
			return reach.File{Reason: reasonAll}, true
		}
	case TrustList:
		listed := map[string]bool{}
		for _, p := range list {
			if n, real, err := f.tree.Resolve(p); err == nil && n.Type == rootfs.Regular {
				listed[real] = true
			}
		}
		if len(listed) == 0 {
			return errors.New("the list of trusted files names no file of the image")
		}
		f.choose = func(n *rootfs.Node) (reach.File, bool) {
			why, reached := f.set.Has(n)
			switch {
			case reached && (why.Reason == reach.Program || why.Reason == reach.Library || listed[n.Path]):
				return why, true
			case listed[n.Path]:
				return reach.File{Reason: reasonListed}, true
			}
			return reach.File{}, false
		}
	default:
		return fmt.Errorf("there is no trust policy %q", f.policy)
	}
	return nil
}

// summarise notes what the report says of the trusted files.
func (f *files) summarise() {
	owners := map[string]bool{}
	for _, t := range f.spec.Trusted {
		if t.Package != "" {
			owners[t.Package] = true
		}
		if t.Reason == reach.Program || t.Reason == reach.Library {
			f.spec.OpenBytes += t.Size
		}
	}
	f.spec.Packages = slices.Sorted(maps.Keys(owners))
}
