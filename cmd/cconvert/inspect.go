package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/internal/page"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
)

func newInspect() *cobra.Command {
	var access registryFlags
	var asJSON, files, layers bool
	var html string
	cmd := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show what a converted image starts, and with which identity",
		Long: `Show what a converted image says of itself: its measurement (MRENCLAVE), who signed it
(MRSIGNER), the program with its arguments and environment, where it can write, the memory of
the enclave, and every setting that weakens it. Only the two layers that a conversion added
are fetched; with --layers all are, to say from which layer each file is. Nothing is verified
here but the signature: see "cconvert verify".`,
		Example: `  cconvert inspect registry.example/redis:7-confidential
  cconvert inspect --json oci:out:1.4

  # A page to look at, or to send to somebody
  cconvert inspect --html app.html oci:out:1.4

  # Every file that the program may read, why, and of which package
  cconvert inspect --files --layers oci:out:1.4`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if html != "" && (asJSON || files) {
				return usagef("--html has everything in it: without --json and --files")
			}
			img, err := access.open(cmd, args[0])
			if err != nil {
				return err
			}
			defer img.Close()
			read := inspect.Read
			if layers || html != "" {
				read = inspect.ReadLayers
			}
			c, err := read(cmd.Context(), img, access.reading())
			if errors.Is(err, inspect.ErrNotConverted) {
				found, enclaveErr := inspect.Enclaves(cmd.Context(), img, access.reading())
				if enclaveErr == nil && len(found) > 0 && html == "" {
					return printEnclaves(cmd, found, asJSON)
				}
			}
			if err != nil {
				return fmt.Errorf("%s: %w", img.Ref, err)
			}
			switch {
			case html != "":
				err = writePage(html, c)
			case files && asJSON:
				err = printJSON(cmd, c.Trusted)
			case files:
				printFiles(cmd.OutOrStdout(), c.Trusted)
			case asJSON:
				err = printJSON(cmd, c)
			default:
				printConverted(cmd.OutOrStdout(), c)
			}
			if err == nil && c.SignatureError != "" && !c.Unsigned {
				err = fmt.Errorf("%w: %s", errRefused, c.SignatureError)
			}
			return err
		},
	}
	access.add(cmd.Flags())
	addJSON(cmd.Flags(), &asJSON, "print JSON")
	cmd.Flags().BoolVar(&files, "files", false,
		"list the files that the program may read, why, and of which package they are")
	cmd.Flags().StringVar(&html, "html", "",
		"write a page with everything, drawings of the memory and of the files to a file")
	cmd.Flags().BoolVar(&layers, "layers", false, "read all layers, to say from which of them the files are")
	return cmd
}

// writePage writes the page of an image, all of it or nothing.
func writePage(file string, c *inspect.Converted) error {
	f, err := renameio.NewPendingFile(file, renameio.WithPermissions(0o644))
	if err != nil {
		return err
	}
	defer f.Cleanup() //nolint:errcheck // after success there is nothing to clean up
	if err := page.Write(f, c); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return f.CloseAtomicallyReplace()
}

// open finds an image by its name.
func (r *registryFlags) open(cmd *cobra.Command, name string) (*image.Image, error) {
	ref, err := image.ParseReference(name, r.insecure)
	if err != nil {
		return nil, err
	}
	return store.Open(cmd.Context(), ref, r.options())
}

// reading says how layers are read if nothing is converted.
func (r *registryFlags) reading() inspect.Options {
	inflate, _ := inflate.Find("auto") // that there is none is fine
	return inspect.Options{Jobs: cmp.Or(r.jobs, runtime.GOMAXPROCS(0)), Inflate: inflate, Limits: r.limits}
}

// printEnclaves shows the enclaves that an image has of its own.
func printEnclaves(cmd *cobra.Command, list []inspect.EnclaveFile, asJSON bool) error {
	if asJSON {
		return printJSON(cmd, list)
	}
	w := cmd.OutOrStdout()
	fmt.Fprintln(w, "The image was not converted. It has enclaves of its own, and runs in SGX as it is:")
	for _, e := range list {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(t, "\nfile\t%s\n", printable(e.Path))
		fmt.Fprintf(t, "MRENCLAVE\t%s\n", e.MREnclave)
		fmt.Fprintf(t, "MRSIGNER\t%s\n", e.MRSigner)
		fmt.Fprintf(t, "signature\t%s\n", cmp.Or(printable(e.SignatureError), "consistent, as the CPU checks it"))
		fmt.Fprintf(t, "measurement\t%s\n",
			cmp.Or(printable(e.MeasurementError), "computed from the file, and what was signed"))
		if c := e.Config; c != nil {
			fmt.Fprintf(t, "metadata\t%s\n",
				cmp.Or(printable(e.MetadataError), "byte for byte what the tool of SDK 2.20 writes"))
			fmt.Fprintf(t, "memory\theap %s, %d threads with stacks of %s, reserved %s\n",
				humanize.IBytes(c.HeapSize), c.Threads, humanize.IBytes(c.StackSize), humanize.IBytes(c.ReservedSize))
		}
		fmt.Fprintf(t, "made with\t%s\n", cmp.Or(e.Kind, "a tool that is not known here"))
		fmt.Fprintf(t, "product\t%d, security version %d, dated %s%s\n", e.ISVProdID, e.ISVSVN, e.Date,
			when(e.DebugEnclave, ", DEBUG: keeps no secrets"))
		t.Flush()
	}
	return nil
}

func printConverted(w io.Writer, c *inspect.Converted) {
	if c.Simulated() {
		fmt.Fprintln(w, inspect.SimulatedNotice)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	line("image", "%s", c.Image)
	line("digest", "%s", c.Digest)
	if r := c.Recipe; r != nil {
		line("made from", "%s", r.Source)
		line("runtime", "%s %.12s, layer %s", r.Runtime.Kind, r.Runtime.Version, r.Runtime.Digest)
	} else {
		line("layout", "%s, an image of another program", c.Layout)
	}
	line("MRENCLAVE", "%s", c.MREnclave)
	if c.Unsigned {
		line("MRSIGNER", "none: not signed yet")
	} else {
		line("MRSIGNER", "%s", c.MRSigner)
	}
	line("signature", "%s", signatureState(c))
	line("product", "%d, security version %d, dated %s", c.ISVProdID, c.ISVSVN, c.Date)
	line("enclave", "%s, %d threads%s%s", humanize.IBytes(c.Enclave.EnclaveSize), c.Enclave.MaxThreads,
		when(c.Enclave.EDMM, ", memory added at run time"), when(c.Debug, ", DEBUG: keeps no secrets"))
	line("may read", "%s files, each by its digest", humanize.Comma(int64(c.TrustedFiles)))
	if c.Recipe != nil {
		line("attestation", "%s", c.Recipe.Options.Attestation)
	}
	line("attributes", "%s", strings.Join(c.Attributes.Decoded, ", "))
	program := c.Program.Entrypoint
	if c.Agent != nil { // which becomes it
		program = c.Agent.Exec
	}
	line("program", "%s", namedProgram(program, c.Program.Argv))
	if c.Program.HostArgs {
		line("arguments", "CHOSEN BY THE HOST, not measured")
	} else {
		line("arguments", "%q (measured: others given at start are ignored)", c.Program.Argv)
	}
	line("directory", "%s", c.Program.WorkDir)
	line("identity", "%d:%d", c.Program.UID, c.Program.GID)
	for i, name := range slices.Sorted(maps.Keys(c.Program.Env)) {
		label := ""
		if i == 0 {
			label = "environment"
		}
		if v, ok := c.Program.Env[name].(string); ok {
			line(label, "%s=%s", name, v)
		} else {
			line(label, "%s chosen by the host", name)
		}
	}
	writable := []string{}
	for _, m := range c.Program.Mounts {
		if m.Type == "tmpfs" || m.Type == "encrypted" && (c.Encrypted == nil || m.Key != c.Encrypted.Key) {
			writable = append(writable, m.Path+" ("+m.Type+")")
		}
	}
	line("can write", "%s", strings.Join(writable, ", "))
	label := "links"
	for _, m := range c.Program.Mounts {
		if m.Type == "" {
			line(label, "%s shows %s", m.Path, strings.TrimPrefix(m.URI, "file:"))
			label = ""
		}
	}
	if e := c.Encrypted; e != nil {
		line("encrypted", "%d files, under the key %q with the id %s%s", len(e.Files), e.Key, e.KeyID,
			when(len(c.LibOS.Keys) > 0, ", which is in the manifest for everybody to read"))
		for _, f := range e.Files[:min(len(e.Files), maxListed)] {
			line("", "%s", f.Path)
		}
		if more := len(e.Files) - maxListed; more > 0 {
			line("", "and %d more, in --json", more)
		}
	}
	if c.Agent != nil {
		line("secrets", "%s", strings.Join(c.Agent.Places(), ", "))
		line("from", "%s", strings.Join(c.Agent.From(), ", then "))
	}
	if len(c.AllowedFiles) > 0 {
		line("unprotected", "%s", strings.ReplaceAll(strings.Join(c.AllowedFiles, ", "), "file:", ""))
	}
	if len(c.Weaknesses) > 0 {
		line("weakened by", "%s", strings.Join(c.Weaknesses, ", "))
	}
	t.Flush()
	printAreas(w, c)
	printLayers(w, c)
}

// maxListed is how many encrypted files are listed by their names.
const maxListed = 20

// printAreas shows the enclave's memory, from its top.
func printAreas(w io.Writer, c *inspect.Converted) {
	if c.EnclaveError != "" {
		fmt.Fprintf(w, "\nThe enclave cannot be laid out: %s\n", printable(c.EnclaveError))
		return
	}
	fmt.Fprintf(w, "\nMemory of the enclave at its start:\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, a := range c.Areas {
		count := ""
		if a.Count > 1 {
			count = fmt.Sprintf(" × %d", a.Count)
		}
		fmt.Fprintf(t, "  %#014x\t%s%s\t%s\t%s\t%s\n", a.Offset, a.Name, count, humanize.IBytes(a.Size), a.Flags,
			when(!a.Measured, "not measured"))
	}
	t.Flush()
}

// printLayers counts the trusted files by the layer that they are from.
func printLayers(w io.Writer, c *inspect.Converted) {
	if len(c.LayerDigests) == 0 {
		return
	}
	files, size := make([]int, len(c.LayerDigests)), make([]int64, len(c.LayerDigests))
	for _, f := range c.Trusted {
		if f.Layer > 0 {
			files[f.Layer-1]++
			size[f.Layer-1] += f.Size
		}
	}
	fmt.Fprintf(w, "\nFiles that the program may read, by layer:\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, d := range c.LayerDigests {
		fmt.Fprintf(t, "  %d\t%s\t%s files\t%s\n", i+1, d, humanize.Comma(int64(files[i])),
			humanize.Bytes(uint64(size[i])))
	}
	t.Flush()
}

// printFiles lists the trusted files in the manifest's order, with what the conversion said of each.
func printFiles(w io.Writer, files []libos.FileEntry) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range files {
		fmt.Fprintf(t, "%s\t%s\t%s%s\n", printable(f.Reason), printable(cmp.Or(f.Package, "-")),
			when(f.Layer > 0, fmt.Sprintf("layer %d\t", f.Layer)), printable(strings.TrimPrefix(f.URI, "file:")))
	}
	t.Flush()
}

func signatureState(c *inspect.Converted) string {
	if c.Unsigned {
		return "none yet: see cconvert sign --help"
	}
	if c.SignatureError != "" {
		return "NOT VALID: " + c.SignatureError
	}
	return "consistent, as the CPU checks it; whose key it is, is yours to know"
}

func when(b bool, s string) string {
	if b {
		return s
	}
	return ""
}
