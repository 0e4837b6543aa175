// Command bench measures cconvert beside other tools, in one run and on two processors, and prints a table
// of times and of the ratios that matter. It needs root, and the Debian packages of .ci/run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

func main() {
	runs := flag.Int("runs", 5, "how often each is run: the median counts")
	only := flag.String("only", "references,conversions,encrypted,warm,second,measure,release,fleet,files,bytes,layers",
		"what is measured; the last three take some minutes")
	bare := flag.String("bare", "", "send the requests in this file, as fast as possible, and end")
	dir := flag.String("dir", "bin/bench", "where images and tools are kept")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	var err error
	if *bare != "" {
		err = replay(*bare)
	} else if err = twoProcessors(); err == nil {
		err = run(ctx, *dir, *runs, strings.Split(*only, ","))
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// twoProcessors starts this program again on two processors, if there are more. All that it starts has the
// same two.
func twoProcessors() error {
	if runtime.NumCPU() <= 2 {
		return nil
	}
	var all, two unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	for cpu := 0; two.Count() < 2; cpu++ {
		if all.IsSet(cpu) {
			two.Set(cpu)
		}
	}
	runtime.LockOSThread()
	if err := unix.SchedSetaffinity(0, &two); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, os.Args, os.Environ())
}

func run(ctx context.Context, dir string, runs int, only []string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	b := &bench{dir: dir, runs: runs}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer b.close()
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"references", b.references},
		{"conversions", b.conversions}, // needs the references
		{"encrypted", b.encrypted},
		{"warm", b.warm},
		{"second", b.second},
		{"measure", b.measurements},
		{"release", b.release},
		{"fleet", b.fleet},
		{"files", b.files},
		{"bytes", b.bytes},
		{"layers", b.layers},
	} {
		if !slices.Contains(only, part.name) {
			continue
		}
		if err := part.run(ctx); err != nil {
			return err
		}
	}
	return b.print()
}

// bench holds what was measured.
type bench struct {
	dir      string
	runs     int
	registry *registry
	layer    string // the layer's blob in the registry's storage
	mixed    v1.Layer
	image    string // its name in the registry
	program  string // cconvert
	runtime  string // an enclave image in the place of Gramine's
	key      string
	times    []timed
	goals    []goal
	notes    []string
}

// timed is what something took.
type timed struct {
	name string
	took time.Duration
}

// goal is a ratio that must not be above a limit.
type goal struct {
	name      string
	got, most float64
	unit      string
}

// step is something to be timed.
type step struct {
	name string
	run  func() (time.Duration, error)
}

// median runs something and returns the median of the seconds that it takes.
func (b *bench) median(name string, run func() (time.Duration, error)) (float64, error) {
	m, err := b.medians(step{name, run})
	if err != nil {
		return 0, err
	}
	return m[0], nil
}

// medians is median of several that are compared: they take turns, since a machine's speed changes from minute to
// minute.
func (b *bench) medians(steps ...step) ([]float64, error) {
	all := make([][]time.Duration, len(steps))
	for range b.runs {
		for i, s := range steps {
			took, err := s.run()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			all[i] = append(all[i], took)
		}
	}
	var medians []float64
	for i, s := range steps {
		slices.Sort(all[i])
		m := all[i][len(all[i])/2]
		b.times = append(b.times, timed{s.name, m})
		fmt.Fprintf(os.Stderr, "%-44s %8.3f s\n", s.name, m.Seconds())
		medians = append(medians, m.Seconds())
	}
	return medians, nil
}

func (b *bench) goal(name string, got, most float64, unit string) {
	b.goals = append(b.goals, goal{name, got, most, unit})
	fmt.Fprintf(os.Stderr, "%-44s %8.2f%s of at most %g\n", name, got, unit, most)
}

func (b *bench) note(format string, args ...any) {
	b.notes = append(b.notes, fmt.Sprintf(format, args...))
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
