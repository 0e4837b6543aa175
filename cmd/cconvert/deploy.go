package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/internal/deploy"
	"github.com/cconvert/cconvert/internal/yamledit"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
)

const deployLong = `Write what starts a confidential image: objects for Kubernetes, a Compose file, or a command line
for Docker. The size of the enclaves, devices, ports, volumes and users follow from the image; the
image is named by its digest. Nothing is started.

With --from, objects of Kubernetes that are there already are changed: every container whose image
has a confidential counterpart, named as "cconvert IMAGE" names its result, starts that. The rest of
the text stays as it is, comments included. What has no effect in an enclave is told on stderr.

Targets are intel (Kubernetes with Intel's SGX device plugin), aks (Azure Kubernetes Service with
the add-on confcom), alibaba (Alibaba Cloud ACK), docker and compose.`

func newDeploy() *cobra.Command {
	var (
		access registryFlags
		o      deploy.Options
		target string
		group  int64
		epc    string
		from   string
		names  deploy.Names
	)
	cmd := &cobra.Command{
		Use:   "deploy IMAGE | --from FILE",
		Short: "Write a Kubernetes deployment, a Compose file or a docker command for an image",
		Long:  deployLong,
		Example: `  cconvert deploy registry.example/redis:7-confidential --target intel --replicas 2
  cconvert deploy --from shop.yaml --target aks
  cconvert deploy registry.example/redis:7-confidential --target docker
  cconvert deploy registry.example/redis:7-confidential --target compose`,
		Args: atMostOne("image"),
	}
	f := cmd.Flags()
	f.StringVar(&target, "target", string(deploy.Intel), "intel (or kubernetes), aks, alibaba, docker or compose")
	f.StringVar(&from, "from", "", "file of objects of Kubernetes that are to start confidential images; - is stdin")
	f.StringVar(&names.Suffix, "suffix", "-confidential",
		"with --from: what the counterpart of an image has at its tag's end")
	f.StringVar(&names.Repo, "repo", "", "with --from: repository below which counterparts are, with the tag as it is")
	f.StringVar(&o.Name, "name", "", "name of the deployment (default: from the image's name)")
	f.StringVar(&o.Namespace, "namespace", "", "namespace of the objects")
	f.Int32Var(&o.Replicas, "replicas", 1, "how many containers")
	f.IntVar(&o.Processes, "processes", 1,
		"how many processes the program has in a container, each of which is an enclave of the full size")
	f.Int64Var(&group, "device-group", 0,
		"number of the group that may open the SGX device, for images whose user is not root")
	f.StringVar(&o.Storage, "storage", "1Gi", "size of volumes for encrypted files")
	f.StringVar(&o.CPU, "cpu", "", "CPU that a container requests (default 250m)")
	f.StringVar(&o.Memory, "host-memory", "",
		"memory outside of the enclave that a container requests (default: 128Mi for each process)")
	f.StringArrayVar(&o.PullSecrets, "pull-secret", nil, "secret with which Kubernetes fetches the image (repeatable)")
	f.BoolVar(&o.Direct, "direct", false,
		"for docker: without SGX, in Gramine's direct mode, where nothing is confidential")
	f.StringVar(&epc, "epc", "",
		"for an image that was not converted and has enclaves of its own: the memory that these take, such as 512M")
	f.BoolVar(&o.LegacyEPC, "legacy-epc", false, "for aks: the resource of clusters before Intel's device plugin")
	access.add(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.Target = deploy.ParseTarget(target)
		if !slices.Contains(deploy.Targets, o.Target) {
			return usagef("--target %s: there is %s", target, strings.Trim(fmt.Sprint(deploy.Targets), "[]"))
		}
		if cmd.Flags().Changed("device-group") {
			o.DeviceGroup = &group
		}
		o.By = commandLine(cmd, args)
		if from != "" {
			if len(args) > 0 || epc != "" || o.Direct {
				return usagef("--from is for images that its objects name: it goes with no IMAGE, --epc or --direct")
			}
			if names.Repo != "" && !cmd.Flags().Changed("suffix") {
				names.Suffix = ""
			}
			names.Insecure = access.insecure
			find := deploy.InRegistry(cmd.Context(), names, access.options(), access.reading())
			return rewrite(cmd, from, find, o)
		}
		if len(args) == 0 {
			return usagef("IMAGE expected, or --from FILE: see --help")
		}
		img, err := access.open(cmd, args[0])
		if err != nil {
			return err
		}
		defer img.Close()
		switch img.Ref.Transport {
		case image.Registry:
			o.Image = img.Ref.Name.Context().Name() + "@" + img.Digest
		case image.DockerDaemon:
			o.Image, o.Local = strings.TrimPrefix(img.Ref.String(), string(image.DockerDaemon)+":"), true
		default:
			return usagef("%s is neither in a registry nor in Docker: it can be started from there only. Convert it "+
				"with --to REGISTRY/NAME:TAG, or --to docker-daemon:NAME for this machine", img.Ref)
		}
		if o.Local && o.Target != deploy.Docker && o.Target != deploy.Compose {
			return usagef("%s is on this machine alone, where --target docker or compose can start it: for "+
				"Kubernetes, convert it with --to REGISTRY/NAME:TAG", img.Ref)
		}
		c, err := inspect.Read(cmd.Context(), img, access.reading())
		if errors.Is(err, inspect.ErrNotConverted) && epc != "" {
			size, sizeErr := enclave.ParseSize(epc)
			if sizeErr != nil {
				return usagef("--epc: %w", sizeErr)
			}
			c, err = inspect.AsItIs(img, size)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", img.Ref, err)
		}
		text, err := deploy.Write(c, o)
		return printDeployment(cmd, text, err)
	}
	return cmd
}

// rewrite changes objects that are there.
func rewrite(cmd *cobra.Command, file string, find deploy.Finder, o deploy.Options) error {
	in := cmd.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return &usageError{fmt.Errorf("--from: %w", err)}
		}
		defer f.Close()
		in = f
	}
	before, err := io.ReadAll(io.LimitReader(in, yamledit.MaxBytes+1))
	if err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	after, notes, err := deploy.Rewrite(before, find, o)
	if err != nil {
		return printDeployment(cmd, nil, fmt.Errorf("%s: %w", file, err))
	}
	for _, n := range notes {
		if logsJSON() {
			logrus.Warn(n.String())
			continue
		}
		fmt.Fprintln(cmd.ErrOrStderr(), printable(n.String()))
	}
	return printDeployment(cmd, after, nil)
}

func printDeployment(cmd *cobra.Command, text []byte, err error) error {
	if errors.Is(err, deploy.ErrOption) {
		return &usageError{err}
	}
	if err == nil {
		_, err = cmd.OutOrStdout().Write(text)
	}
	return err
}

// commandLine is how a command was called, for people: its program is called by its name.
func commandLine(cmd *cobra.Command, args []string) string {
	words := []string{cmd.CommandPath()}
	words = append(words, args...)
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if v, ok := f.Value.(pflag.SliceValue); ok {
			for _, each := range v.GetSlice() {
				words = append(words, "--"+f.Name, each)
			}
			return
		}
		words = append(words, "--"+f.Name)
		if f.NoOptDefVal == "" {
			words = append(words, f.Value.String())
		}
	})
	for i, w := range words {
		words[i] = printable(w)
	}
	return strings.Join(words, " ")
}
