package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// report says what came out of a conversion, for people.
func report(to io.Writer, r *convert.Result) {
	w := bufio.NewWriter(to)
	defer w.Flush()
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	line("source", "%s", r.Source)
	line("layers", "%s", layersText(r.Layers))
	line("runtime", "%s %.12s", r.Runtime.Kind, r.Runtime.Version)
	line("profile", "%s: %s", r.Profile, printable(r.ProfileWhy))
	line("enclave", "%s (%s), %d threads; as much for each process", humanize.IBytes(r.EnclaveSize),
		printable(r.SizeWhy), r.MaxThreads)
	line("may read", "%s files, each by its digest; reading the list takes about %.1f s at start",
		humanize.Comma(int64(r.TrustedFiles)), r.StartSeconds)
	if r.LeftOut > 0 {
		line("", "%s other files are not expected to be opened, and cannot be; --trust all lists them",
			humanize.Comma(int64(r.LeftOut)))
	}
	if e := r.Encrypted; e != nil {
		line("encrypted", "%d files, %s, under the key %s with the id %s", e.Files, humanize.Bytes(uint64(e.Bytes)),
			e.Key, e.KeyID)
	}
	line("added", "%s in layers on top", humanize.Bytes(uint64(r.Output.AddedBytes)))
	line("MRENCLAVE", "%s", r.MREnclave)
	line("", "what runs: the hash of the enclave, another one after any change")
	if r.MRSigner == (sgx.Measurement{}) {
		line("MRSIGNER", "none: nobody has signed, so it does not start yet; see cconvert sign --help")
	} else {
		line("MRSIGNER", "%s", r.MRSigner)
		line("", "who signed: the hash of the public key")
	}
	if len(r.Referrers) > 0 {
		line("copied", "%s", referrersText(r.Referrers))
		line("", "they speak of the source, and of nothing that was added to it")
	}
	line("took", "%.1f s", r.Timings["total"])
	line("stored as", "%s", r.Target)
	if !r.HostArgs {
		line("", "arguments after its name have no effect: they are measured")
	}
	t.Flush()
	reportFindings(w, r.Findings)
}

// namedProgram is a program by the name that the image has for it, and the file that it is: one file can be several.
func namedProgram(file string, argv []string) string {
	if len(argv) == 0 || path.Base(argv[0]) == path.Base(file) {
		return file
	}
	return argv[0] + " (" + file + ")"
}

// referrersText counts what was copied because it refers to the source.
func referrersText(list []registry.Carried) string {
	kept, counts := 0, map[string]int{}
	for _, c := range list {
		if c.Kept {
			kept++
			continue
		}
		kind := c.Kind
		if c.Tag != "" {
			kind = path.Ext(c.Tag)
		}
		counts[kind]++
	}
	var texts []string
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		texts = append(texts, fmt.Sprintf("%d %s", counts[kind], printable(kind)))
	}
	if kept > 0 {
		texts = append(texts, fmt.Sprintf("not %d tags of cosign, of which the target has others", kept))
	}
	return strings.Join(texts, ", ")
}

// layersText says from where it is known what is in the layers.
func layersText(c convert.LayerCounts) string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{
		{c.Read, "read"}, {c.Cached, "known from earlier runs"}, {c.Shared, "known from others"},
		{c.TOC, "by their tables of contents"},
	} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return strings.Join(parts, ", ")
}

// maxOfACode is how many findings of one kind the report lists.
const maxOfACode = 8

// printable is text from an image in a form that cannot pretend to be other lines or steer a terminal.
func printable(s string) string {
	if strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) || !utf8.ValidString(s) {
		return strconv.Quote(s)
	}
	return s
}

// severities counts findings, the gravest first.
func severities(findings []finding.Finding) string {
	var parts []string
	for _, s := range []struct {
		severity  finding.Severity
		one, many string
	}{
		{finding.Error, "error", "errors"}, {finding.Warning, "warning", "warnings"},
		{finding.Info, "to know", "to know"},
	} {
		n := 0
		for _, f := range findings {
			if f.Severity == s.severity {
				n++
			}
		}
		if n > 0 {
			parts = append(parts, english.Plural(n, s.one, s.many))
		}
	}
	return strings.Join(parts, ", ")
}

// reportFindings lists findings, the gravest first, each kind followed by its remedy.
func reportFindings(w io.Writer, findings []finding.Finding) {
	if len(findings) == 0 {
		return
	}
	grave := []finding.Severity{finding.Error, finding.Warning, finding.Info}
	findings = slices.Clone(findings)
	slices.SortStableFunc(findings, func(a, b finding.Finding) int {
		return cmp.Or(slices.Index(grave, a.Severity)-slices.Index(grave, b.Severity), cmp.Compare(a.Code, b.Code))
	})
	fmt.Fprintf(w, "\n%s; docs/findings.md explains each code:\n", severities(findings))
	count := map[string]int{}
	for i, f := range findings {
		if count[f.Code]++; count[f.Code] <= maxOfACode {
			where := ""
			if f.Path != "" {
				where = printable(f.Path) + ": "
			}
			fmt.Fprintf(w, "  %-7s [%s] %s%s\n", f.Severity, f.Code, where, printable(f.Message))
		}
		if last := i+1 == len(findings) || findings[i+1].Code != f.Code; last && f.Remedy != "" &&
			f.Severity != finding.Info {
			fmt.Fprintf(w, "          → %s\n", f.Remedy)
		}
	}
	for _, code := range slices.Sorted(maps.Keys(count)) {
		if more := count[code] - maxOfACode; more > 0 {
			fmt.Fprintf(w, "  [%s] and %d more, in --output-json\n", code, more)
		}
	}
	fmt.Fprintln(w)
}
