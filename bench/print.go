package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// print writes the results as Markdown, for docs/figures.md.
func (b *bench) print() error {
	var t bytes.Buffer
	fmt.Fprintf(&t, "Measured on %s with `make bench`: %s, %d processors, %s of memory, %s.\n\n",
		time.Now().Format("2 January 2006"), processor(), runtime.NumCPU(), memory(), runtime.Version())
	fmt.Fprint(&t, "| | got | at most | |\n|---|---|---|---|\n")
	for _, g := range b.goals {
		verdict := "pass"
		if g.got > g.most {
			verdict = "**miss**"
		}
		fmt.Fprintf(&t, "| %s | %.2f%s | %g%s | %s |\n", g.name, g.got, g.unit, g.most, g.unit, verdict)
	}
	fmt.Fprintf(&t, "\n| median of %d | seconds |\n|---|---|\n", b.runs)
	for _, m := range b.times {
		fmt.Fprintf(&t, "| %s | %.3f |\n", m.name, m.took.Seconds())
	}
	fmt.Fprintln(&t)
	for _, n := range b.notes {
		fmt.Fprintf(&t, "- %s\n", n)
	}
	if _, err := os.Stdout.Write(t.Bytes()); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, "results.md"), t.Bytes(), 0o644)
}

// field returns what follows a name and a colon in one of the files of /proc.
func field(file, name string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if n, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(n) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func processor() string { return field("/proc/cpuinfo", "model name") }

func memory() string {
	kb, _ := humanize.ParseBytes(field("/proc/meminfo", "MemTotal"))
	return humanize.IBytes(kb)
}
