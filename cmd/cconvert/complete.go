package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/internal/deploy"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/profile"
)

// valuesOf are the values of flags that a shell can complete, with what they mean after a tab. Those that end with "="
// or ":" go on. Functions, because the program starts more often than a shell asks.
var valuesOf = map[string]func() []string{
	"runtime": values("gramine\ta real enclave", "sim\tfor trials, nothing is confidential", "gramine=docker://",
		"gramine=oci:", "gramine=dir:", "gramine=deb:"),
	"trust": values("auto\twhat the program can be expected to open", "all\tevery file", "list:\tthose of a file"),
	"libc":  values("auto", "patched\tthe runtime's", "image\tits own"), "attestation": values("none", "dcap"),
	"runtime-log-level": values("none", "error", "warning", "debug", "trace", "all"),
	"log-level":         values(logLevels...), "log-format": values(logFormats...),
	"inflate": values("auto", "go\tthis program", "igzip"), "platform": values("linux/amd64"),
	"style": values("gramine", "occlum"),
	"target": func() (list []string) {
		for _, t := range deploy.Targets {
			list = append(list, string(t))
		}
		return list
	},
	"profile": func() []string {
		list := []string{"auto", "none"}
		for _, p := range profile.All() {
			list = append(list, p.Name+"\t"+p.Description)
		}
		return list
	},
	"ignore": finding.Codes,
}

func values(list ...string) func() []string { return func() []string { return list } }

// complete has shells complete the values of flags, of a command and those below it. What names an image cannot be
// completed, so no file is proposed for it.
func complete(cmd *cobra.Command) {
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { completeFlag(cmd, f.Name) })
	cmd.PersistentFlags().VisitAll(func(f *pflag.Flag) { completeFlag(cmd, f.Name) })
	for _, c := range cmd.Commands() {
		complete(c)
	}
}

func completeFlag(cmd *cobra.Command, name string) {
	values := valuesOf[name]
	if _, done := cmd.GetFlagCompletionFunc(name); values == nil || done { // commands share flags
		return
	}
	directive := cobra.ShellCompDirectiveNoFileComp
	if name == "profile" || name == "runtime" || name == "trust" {
		directive = cobra.ShellCompDirectiveNoSpace
	}
	err := cmd.RegisterFlagCompletionFunc(name,
		func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return values(), directive
		})
	if err != nil {
		panic(err) // there is such a flag
	}
}
