package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const rootLong = `cconvert takes a container image and gives back one that runs inside an Intel SGX enclave:
memory that the machine's owner can neither read nor change. It adds a library operating
system (Gramine) and a list of digests of every file the program may read, and signs the
measurement of it all. It needs no Docker daemon, no root and no SGX hardware, and runs
nothing of the image.

Three names appear in its output:

  MRENCLAVE   the hash of what is started: the same input always gives the same value, and
              a change in any measured byte gives another one
  MRSIGNER    the hash of the public key that signed: who stands behind the enclave
  SIGSTRUCT   the signature itself, which the CPU checks before it starts the enclave`

const rootExamples = `  # Convert an image and push the result beside it, as redis:7-confidential
  cconvert registry.example/redis:7

  # The same without SGX, on a laptop, from Docker to Docker
  cconvert --runtime sim docker-daemon:app:latest`

// newRoot makes the command line.
func newRoot() *cobra.Command {
	var logs logFlags
	convert := newConvert()
	root := &cobra.Command{
		Use:     "cconvert [flags] IMAGE...",
		Short:   "Turn container images into confidential ones, for Intel SGX",
		Long:    rootLong,
		Example: rootExamples,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && cmd.Flags().NFlag() == 0 {
				return errNothing
			}
			return convert.Args(cmd, args)
		},
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			hidePassphrase()
			if path := cmd.CommandPath(); converts(cmd) || path == "cconvert verify" || path == "cconvert rebuild" {
				prepareMemory()
			}
			if err := noneEmpty(cmd.Flags()); err != nil {
				return err
			}
			if converts(cmd) {
				if err := fromEnvironment(cmd.Flags()); err != nil {
					return err
				}
				if err := fromConfigFile(cmd); err != nil {
					return err
				}
			}
			return logs.apply(cmd.ErrOrStderr(), cmd.Flags().Changed)
		},
	}
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if err := mistyped(root, args[0]); err != nil {
			return err
		}
		return convert.RunE(cmd, args)
	}
	root.Flags().AddFlagSet(convert.Flags())
	logs.add(root.PersistentFlags())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		var invalid *pflag.InvalidValueError
		if errors.As(err, &invalid) && invalid.GetFlag().Value.Type() == credsType { // the message would have the value
			return usagef("--%s: %w", invalid.GetFlag().Name, invalid.Unwrap())
		}
		return usagef("%s%s", strings.Replace(err.Error(), "strconv.ParseUint: ", "", 1), nearestFlag(cmd, err))
	})
	root.Version = versionText()
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(convert, newBatch(), newWorker(), newServe(), newAnalyze(), newMeasure(), newInspect(), newVerify(),
		newDiff(), newRebuild(), newReference(), newSBOM(), newManifest(), newDeploy(), newAttest(), newRuntime(),
		newCache(), newSign(), newRekey(), newKeygen(), newKey(), newFiles(), newQuote(), newRelease(), newVersion())
	for _, more := range extra {
		root.AddCommand(more())
	}
	root.SetUsageFunc(usage)
	complete(root)
	return root
}

// errNothing says that nothing was asked for. In a pipeline it is a mistake, such as a variable that is not set.
var errNothing = usagef("an IMAGE or a COMMAND is expected")

// extra are commands of builds for a special purpose.
var extra []func() *cobra.Command

// mayBeEmpty are flags for which nothing is a value too.
var mayBeEmpty = []string{"arg"}

// noneEmpty refuses flags that are given without a value: in a pipeline with a variable that is not set, what was
// wanted would not be done, and what is expected not looked at. What is set by default can be switched off by that.
func noneEmpty(flags *pflag.FlagSet) (err error) {
	flags.Visit(func(f *pflag.Flag) {
		s := f.Value.String()
		empty := (s == "" || s == "[]") && s == f.DefValue && !slices.Contains(mayBeEmpty, f.Name)
		if err == nil && (empty || strings.HasPrefix(f.Value.Type(), "int") && strings.HasPrefix(s, "-")) {
			err = usagef("--%s is given without a value, as by a variable that is not set", f.Name)
		}
	})
	return err
}

// converts reports whether a command makes conversions. Only their flags can be set by variables: others look at what
// was made, and what they are asked must not depend on what is set for a pipeline.
func converts(cmd *cobra.Command) bool {
	all := []string{"cconvert", "convert", "batch", "worker", "serve", "analyze", "manifest"}
	return slices.Contains(all, cmd.Name())
}

// notFromEnvironment are flags of the program itself. Pipelines set CCONVERT_VERSION to what they install.
var notFromEnvironment = []string{"help", "version"}

// fromEnvironment sets every flag that was not given from the variable CCONVERT_ and its name.
func fromEnvironment(flags *pflag.FlagSet) error {
	var failed error
	flags.VisitAll(func(f *pflag.Flag) {
		name := "CCONVERT_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := os.LookupEnv(name)
		if !ok || f.Changed || failed != nil || slices.Contains(notFromEnvironment, f.Name) {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			failed = usagef("the variable %s: %w", name, err)
		}
	})
	return failed
}

// mistyped reports a first word that is near a command's name, and could only be an image by chance: what was meant to
// look at an image would convert, sign and push it.
func mistyped(root *cobra.Command, word string) error {
	if strings.ContainsAny(word, "/:.@") {
		return nil
	}
	if meant := otherTools[word]; meant != "" {
		return usagef("there is no command %q; what is near is %s. If it is an image, write %s:latest", word, meant,
			word)
	}
	for _, c := range root.Commands() {
		if levenshtein.ComputeDistance(c.Name(), word) <= 2 {
			return usagef("there is no command %q; the nearest is %s. If it is an image, write %s:latest", word,
				c.Name(), word)
		}
	}
	return nil
}

// otherTools are commands of other tools, and the ones here that do what they do.
var otherTools = map[string]string{
	"show": "inspect", "info": "inspect", "describe": "inspect", "view": "inspect", "history": "inspect",
	"ls": "inspect", "list": "batch status",
	"check": "verify", "validate": "verify", "test": "verify", "trust": "verify", "scan": "analyze", "lint": "analyze",
	"explain": "analyze",
	"compare": "diff", "status": "batch status", "run": "deploy", "start": "deploy", "build": "convert",
	"push": "convert", "copy": "convert",
	"pull": "convert", "save": "convert", "login": "convert", "gen-key": "keygen", "genkey": "keygen",
	"generate": "keygen", "daemon": "serve", "server": "serve",
}

// nearestFlag suggests the flag that was probably meant.
func nearestFlag(cmd *cobra.Command, err error) string {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return ""
	}
	best, distance := "", 4
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if d := levenshtein.ComputeDistance(f.Name, unknown.GetSpecifiedName()); d < distance {
			best, distance = f.Name, d
		}
	})
	if best == "" {
		return ""
	}
	return "; the nearest is --" + best
}

// atLeastOne wants one argument or more, and says what they are.
func atLeastOne(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef("%s expected: see --help", what)
		}
		return nil
	}
}

// given says which arguments there are.
func given(args []string) string {
	if len(args) == 0 {
		return "none given"
	}
	return fmt.Sprintf("%d arguments given (%s)", len(args), strings.Join(args, " "))
}

// atMostOne takes one argument or none.
func atMostOne(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usagef("one %s expected, %s: see --help", what, given(args))
		}
		return nil
	}
}

// exactArgs wants so many arguments, and says what they are.
func exactArgs(what ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != len(what) {
			if len(what) == 0 {
				return usagef("this command takes no arguments")
			}
			return usagef("%s expected, %s: see --help", strings.Join(what, " "), given(args))
		}
		return nil
	}
}
