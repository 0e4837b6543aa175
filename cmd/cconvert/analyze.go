package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
)

func newAnalyze() *cobra.Command {
	var (
		access  registryFlags
		layers  layerFlags
		library runtimeFlags
		start   launchFlags
		files   encryptFlags
		gate    convert.Gate
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use:   "analyze IMAGE",
		Short: "Say how an image would run in an enclave, without converting it",
		Long: `Say how an image would run in an enclave, without converting it: what kind of program it
is, how large the enclave would be, how many files it would read and how long that takes at
each start, where the program can write, and what will not work as it does in a container.
Nothing is stored, and no key is needed. The exit code is 1 if the image cannot run; with
--strict, if there is any warning.`,
		Example: `  cconvert analyze registry.example/app:1.4

  # In a pipeline, for a program to read
  cconvert analyze --json registry.example/app:1.4`,
		Args: exactArgs("IMAGE"),
	}
	f := cmd.Flags()
	addJSON(f, &asJSON, "print JSON")
	f.BoolVar(&gate.Strict, "strict", false, "fail on warnings")
	f.StringSliceVar(&gate.Ignore, "ignore", nil, "codes of findings not to fail on (repeatable)")
	library.add(f)
	start.add(f)
	files.addPaths(f)
	layers.add(f)
	access.add(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		source, err := image.ParseReference(args[0], access.insecure)
		if err != nil {
			return err
		}
		if err := checkGate(gate); err != nil {
			return err
		}
		o, err := conversion(source, access, layers, library, start, files)
		if err != nil {
			return err
		}
		progress := newProgress(cmd.ErrOrStderr())
		defer progress.finish()
		o.Observer = progress
		a, err := convert.Analyze(cmd.Context(), o)
		progress.finish()
		if err != nil {
			return err
		}
		if a.RuntimeError != "" {
			logrus.Warnf("the runtime could not be read: whether its C library fits, and whether the enclave must be "+
				"larger, is not known: %s", a.RuntimeError)
		}
		if asJSON {
			err = printJSON(cmd, a)
		} else {
			printAnalysis(cmd.OutOrStdout(), a)
		}
		if err != nil {
			return err
		}
		return gate.Pass(a.Findings)
	}
	return cmd
}

func printAnalysis(w io.Writer, a *convert.Analysis) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	line("image", "%s", a.Source)
	line("digest", "%s", a.Digest)
	line("program", "%s", namedProgram(a.Entrypoint, a.Argv))
	if a.Program != a.Entrypoint {
		line("run by", "%s", a.Program)
	}
	line("arguments", "%q", a.Argv)
	line("identity", "%d:%d", a.UID, a.GID)
	line("profile", "%s: %s", a.Profile, a.ProfileWhy)
	line("C library", "%s%s", a.LibC, when(a.NeedsGLIBC != "", ", version "+a.NeedsGLIBC+" or newer"))
	line("enclave", "%s for each process (%s), %d threads, %s pages", humanize.IBytes(a.EnclaveSize), a.SizeWhy,
		a.Threads, humanize.Comma(int64(a.Pages)))
	line("image has", "%s", english.Plural(a.Files, "file", ""))
	for _, p := range []launch.Policy{launch.TrustAuto, launch.TrustList, launch.TrustAll} {
		if c, ok := a.Policies[p]; ok {
			line("trust "+string(p), "%s entries, %s, list read in about %.1f s at start",
				humanize.Comma(int64(c.Entries)), humanize.Bytes(uint64(c.Bytes)), c.StartSeconds)
		}
	}
	line("at start", "%s of programs and libraries are hashed, about %.1f s", humanize.Bytes(uint64(a.OpenBytes)),
		float64(a.OpenBytes)/hashRate)
	var writable []string
	for _, m := range a.Writable {
		writable = append(writable, m.Path+" ("+string(m.Type)+")")
	}
	line("can write", "%s", strings.Join(writable, ", "))
	t.Flush()
	reportFindings(w, a.Findings)
}

// hashRate is how many bytes a second a library OS hashes when it opens a file, as measured with Gramine.
const hashRate = 100e6
