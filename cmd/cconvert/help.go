package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// helpWidth is how many columns help takes.
const helpWidth = 100

// group is what help lists under a heading.
type group struct {
	title string
	names []string
}

// flagGroups are the headings under which help lists flags, in this order. Those that are in none are the command's
// own, and come first.
var flagGroups = []group{
	{"The result", []string{
		"to", "suffix", "repo", "platform", "output-json", "image-refs", "digest-file", "results-dir", "dry-run",
		"strict", "ignore", "allow-rollback", "replace-signer",
	}},
	{"Signing", []string{
		"key", "key-passphrase-file", "key-timeout", "unsigned", "isv-prod-id", "isv-svn", "date",
	}},
	{"The program and its enclave", []string{
		"trust", "profile", "libc", "memory", "threads", "edmm", "debug", "env", "pass-env", "arg", "insecure-args",
		"allow-file", "tmpfs", "encrypt-mount", "attestation", "runtime-log-level", "manifest",
	}},
	{"Encrypted files and secrets", []string{
		"encrypt", "encrypt-key", "encrypt-key-name", "encrypt-mutable", "encrypt-random", "insecure-key-in-manifest",
		"secrets", "secret", "agent",
	}},
	{"The library OS", []string{"runtime", "runtime-libs", "lock"}},
	{"Evidence", []string{"attest", "attest-key", "copy-referrers"}},
	{"What is expected", []string{
		"policy", "source", "signer-key", "mrsigner", "mrenclave", "prod-id", "min-svn", "attest-verify-key", "by",
		"known-runtimes", "runtime-digest", "layout", "secrets-from", "agent-digest", "any-signer", "any-runtime",
		"any-secrets", "any-contents", "allow-changes", "allow-debug", "allow-simulated",
	}},
	{"What runs", []string{
		"endpoint", "endpoint-timeout", "sni", "quote", "report-data", "collateral", "accept-tcb", "min-tcb-date",
		"min-tcb-evaluation", "at",
	}},
	{"Several images", []string{
		"parallel", "attempts", "retry-pause", "image-timeout", "lease", "state-dir", "resume", "force", "detach",
		"list-timeout",
	}},
	{"The queue", []string{
		"nats", "nats-ca", "nats-cert", "nats-cert-key", "nats-creds", "nats-nkey", "nats-user", "nats-password-file",
		"nats-timeout", "nats-replicas",
	}},
	{"What is kept", []string{
		"no-cache", "cache-size", "index-repo", "index-sign-key", "index-verify-key", "insecure-index", "trust-toc",
		"inflate",
	}},
	{"Registries", []string{
		"src-creds", "dest-creds", "authfile", "ca", "tls-verify", "insecure", "registry-timeout", "jobs",
	}},
	{"Limits of images", []string{"max-file", "max-layer", "max-image", "max-files"}},
	{"Messages", []string{"log-format", "log-level", "quiet", "verbose"}},
}

// commandGroups are the headings under which help lists commands, in this order; others follow.
var commandGroups = []group{
	{"Convert", []string{"analyze", "convert", "batch", "worker", "serve", "manifest", "runtime", "cache"}},
	{"Look and check", []string{"inspect", "verify", "diff", "rebuild", "quote", "measure", "reference", "sbom"}},
	{"Sign", []string{"sign", "attest", "keygen", "key"}},
	{"Run", []string{"deploy", "release", "files", "rekey"}},
}

// printCommands lists what a command can be followed by.
func printCommands(w io.Writer, cmd *cobra.Command) {
	left := slices.DeleteFunc(slices.Clone(cmd.Commands()),
		func(c *cobra.Command) bool { return !c.IsAvailableCommand() })
	show := func(title string, list []*cobra.Command) {
		fmt.Fprintf(w, "\n%s:\n", title)
		for _, c := range list {
			fmt.Fprintf(w, "  %-*s %s\n", c.NamePadding(), c.Name(), c.Short)
		}
	}
	if cmd.HasParent() {
		show("Commands", left)
		return
	}
	for _, g := range commandGroups {
		var list []*cobra.Command
		for _, name := range g.names {
			if i := slices.IndexFunc(left, func(c *cobra.Command) bool { return c.Name() == name }); i >= 0 {
				list, left = append(list, left[i]), slices.Delete(left, i, i+1)
			}
		}
		show(g.title, list)
	}
	show("More", left)
}

// rootFlags are the flags that help on the program itself lists: what most conversions need. The others are listed by
// help on "cconvert convert".
var rootFlags = []string{
	"to", "key", "runtime", "memory", "strict", "dry-run", "output-json", "quiet", "verbose", "version", "help",
}

// usage is the part of help that follows what a command is for.
func usage(cmd *cobra.Command) error {
	w := cmd.OutOrStderr()
	fmt.Fprintf(w, "Usage:\n")
	if cmd.Runnable() {
		fmt.Fprintf(w, "  %s\n", cmd.UseLine())
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(w, "  %s COMMAND\n", cmd.CommandPath())
	}
	if cmd.HasExample() {
		fmt.Fprintf(w, "\nExamples:\n%s\n", cmd.Example)
	}
	if cmd.HasAvailableSubCommands() {
		printCommands(w, cmd)
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.AddFlagSet(cmd.LocalFlags())
	flags.AddFlagSet(cmd.InheritedFlags())
	if !cmd.HasParent() {
		few := pflag.NewFlagSet("", pflag.ContinueOnError)
		few.SortFlags = false
		for _, name := range rootFlags {
			if f := flags.Lookup(name); f != nil { // cobra adds --version when it runs
				few.AddFlag(f)
			}
		}
		fmt.Fprintf(w, "\nFlags:\n%s\n\"cconvert COMMAND --help\" tells more of a command, and \"cconvert convert "+
			"--help\" lists all flags\nof a conversion.\n", flagLines(few))
		return nil
	}
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.VisitAll(func(f *pflag.Flag) {
		if !slices.ContainsFunc(flagGroups, func(g group) bool { return slices.Contains(g.names, f.Name) }) {
			own.AddFlag(f)
		}
	})
	fmt.Fprintf(w, "\nFlags:\n%s", flagLines(own))
	for _, g := range flagGroups {
		listed := pflag.NewFlagSet("", pflag.ContinueOnError)
		listed.SortFlags = false
		for _, name := range g.names {
			if f := flags.Lookup(name); f != nil {
				listed.AddFlag(f)
			}
		}
		if listed.HasFlags() {
			fmt.Fprintf(w, "\n%s:\n%s", g.title, flagLines(listed))
		}
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(w, "\n\"%s COMMAND --help\" tells more of a command.\n", cmd.CommandPath())
	}
	return nil
}

// flagLines describes flags. The types that only a programmer knows have names that anybody does, of the same width.
func flagLines(f *pflag.FlagSet) string {
	types := strings.NewReplacer(" stringArray ", " string      ", " strings ", " string  ", " uint16 ", " number ",
		" int ", " n   ", " int32 ", " n     ", " int64 ", " n     ")
	return types.Replace(f.FlagUsagesWrapped(helpWidth))
}
