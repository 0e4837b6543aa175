package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/verify"
)

func newInspect() *cobra.Command {
	var registry registryFlags
	var asJSON, files bool
	cmd := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show what a converted image starts, and with which identity",
		Long: `Show what a converted image says of itself: its measurement (MRENCLAVE), who signed it
(MRSIGNER), the program with its arguments and environment, where it can write, and every
setting that weakens it. Only the top layer is fetched.`,
		Example: `  cconvert inspect registry.example/redis:7-confidential
  cconvert inspect --json oci:out:1.4

  # Every file that the program may read, why, and of which package
  cconvert inspect --files oci:out:1.4`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := image.ParseReference(args[0], registry.insecure)
			if err != nil {
				return err
			}
			img, err := image.Open(cmd.Context(), ref, registry.options())
			if err != nil {
				return err
			}
			defer img.Close()
			c, err := verify.Read(cmd.Context(), img)
			if err != nil {
				return fmt.Errorf("%s: %w", ref, err)
			}
			switch {
			case files && asJSON:
				err = printJSON(cmd, c.Trusted)
			case files:
				printFiles(cmd.OutOrStdout(), c.Trusted)
			case asJSON:
				err = printJSON(cmd, c)
			default:
				printConverted(cmd.OutOrStdout(), c)
			}
			if err == nil && c.SignatureError != "" {
				err = fmt.Errorf("%w: %s", errRefused, c.SignatureError)
			}
			return err
		},
	}
	registry.add(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&files, "files", false, "list the files that the program may read, why, and of which package they are")
	return cmd
}

func printConverted(w io.Writer, c *verify.Converted) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	line("image", "%s", c.Image)
	line("digest", "%s", c.Digest)
	line("made from", "%s", c.Recipe.Source)
	line("runtime", "%s %.12s, layer %s", c.Recipe.Runtime.Kind, c.Recipe.Runtime.Version, c.Recipe.Runtime.Digest)
	line("MRENCLAVE", "%s", c.MREnclave)
	line("MRSIGNER", "%s", c.MRSigner)
	line("signature", "%s", signatureState(c))
	line("product", "%d, security version %d, dated %s", c.ISVProdID, c.ISVSVN, c.Date)
	line("enclave", "%s, %d threads%s%s", humanize.IBytes(c.Enclave.EnclaveSize), c.Enclave.MaxThreads,
		when(c.Enclave.EDMM, ", memory added at run time"), when(c.Debug, ", DEBUG: keeps no secrets"))
	line("may read", "%s files, each by its digest", humanize.Comma(int64(c.TrustedFiles)))
	line("attestation", "%s", c.Recipe.Options.Attestation)
	line("program", "%s", c.Program.Entrypoint)
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
		if m.Type == "tmpfs" || m.Type == "encrypted" {
			writable = append(writable, m.Path+" ("+m.Type+")")
		}
	}
	line("can write", "%s", strings.Join(writable, ", "))
	if len(c.Weaknesses) > 0 {
		line("weakened by", "%s", strings.Join(c.Weaknesses, ", "))
	}
	t.Flush()
}

// printFiles lists the trusted files in the manifest's order, with what the conversion said of each.
func printFiles(w io.Writer, files []verify.FileEntry) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range files {
		fmt.Fprintf(t, "%s\t%s\t%s\n", printable(f.Reason), printable(cmp.Or(f.Package, "-")), printable(strings.TrimPrefix(f.URI, "file:")))
	}
	t.Flush()
}

func signatureState(c *verify.Converted) string {
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
