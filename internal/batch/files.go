package batch

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
)

// ErrFiles says that a job names something of the worker's machine that it may not.
var ErrFiles = errors.New("jobs of this queue may not name it")

// Files says what of its own machine a worker lets jobs name: whoever can write to the queue could else have it read
// and write any files. Registries are never in question.
type Files struct {
	// All lets jobs name everything: for queues that only this process writes to.
	All bool
	// Dirs are directories of layouts, archives and runtimes.
	Dirs []string
}

// check reports by ErrFiles what a job names and may not.
func (f Files) check(j queue.Job, backends []libos.Backend) error {
	if f.All {
		return nil
	}
	for _, s := range []string{j.Source, j.Target} {
		ref, err := image.ParseReference(s, j.Insecure)
		if err != nil {
			return err
		}
		if err := f.reference(ref); err != nil {
			return err
		}
	}
	runtime := []string{j.Runtime.Source, j.Runtime.Libs}
	if ref, ok, err := queue.ImageOf(j.Runtime, j.Insecure, backends); err != nil {
		return err
	} else if ok {
		if err := f.reference(ref); err != nil {
			return err
		}
		runtime = runtime[1:]
	}
	for _, s := range runtime {
		kind, rest, found := strings.Cut(s, ":")
		files := []string{s} // of the simulated runtime, and directories of libraries
		switch {
		case s == "":
			continue
		case found && kind == "dir":
			files = []string{rest}
		case found && kind == "deb":
			files = strings.Split(rest, ",")
		}
		for _, file := range files {
			if err := f.path(file); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f Files) reference(ref image.Reference) error {
	switch ref.Transport {
	case image.Registry:
		return nil
	case image.DockerDaemon:
		return fmt.Errorf("%w: %s is an image of the worker's Docker daemon", ErrFiles, ref)
	}
	return f.path(ref.Path)
}

// path checks a path, or what is there of it: links count for where they lead.
func (f Files) path(p string) error {
	// What ".." means depends on links before it, which whoever opens the path follows first.
	if slices.Contains(strings.Split(p, "/"), "..") {
		return fmt.Errorf("%w: %s has \"..\" in it", ErrFiles, p)
	}
	real, err := resolve(p)
	if err != nil {
		return err
	}
	for _, dir := range f.Dirs {
		if dir, err = resolve(dir); err != nil {
			return err
		}
		if rel, err := filepath.Rel(dir, real); err == nil && filepath.IsLocal(rel) {
			return nil
		}
	}
	return fmt.Errorf("%w: %s is a file of the worker's machine. \"cconvert worker --files DIR\" allows those in a "+
		"directory", ErrFiles, p)
}

func resolve(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(abs)
	if errors.Is(err, fs.ErrNotExist) && filepath.Dir(abs) != abs {
		parent, err := resolve(filepath.Dir(abs))
		return filepath.Join(parent, filepath.Base(abs)), err
	}
	return real, err
}
