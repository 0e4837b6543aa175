package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/internal/deploy"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
)

const deployLong = `Write what starts a confidential image: objects for Kubernetes, a Compose file, or a command line
for Docker. The size of the enclaves, devices, ports, volumes and users follow from the image; the
image is named by its digest. Nothing is started.

Targets are intel (Kubernetes with Intel's SGX device plugin), aks (Azure Kubernetes Service with
the add-on confcom), alibaba (Alibaba Cloud ACK), docker and compose.`

func newDeploy() *cobra.Command {
	var (
		access registryFlags
		o      deploy.Options
		target string
		group  int64
		epc    string
	)
	cmd := &cobra.Command{
		Use:   "deploy IMAGE",
		Short: "Write a Kubernetes deployment, a Compose file or a docker command for an image",
		Long:  deployLong,
		Example: `  cconvert deploy registry.example/redis:7-confidential --target intel --replicas 2
  cconvert deploy registry.example/redis:7-confidential --target docker
  cconvert deploy registry.example/redis:7-confidential --target compose`,
		Args: exactArgs("IMAGE"),
	}
	f := cmd.Flags()
	f.StringVar(&target, "target", string(deploy.Intel), "intel, aks, alibaba, docker or compose")
	f.StringVar(&o.Name, "name", "", "name of the deployment (default: from the image's name)")
	f.StringVar(&o.Namespace, "namespace", "", "namespace of the objects")
	f.Int32Var(&o.Replicas, "replicas", 1, "how many containers")
	f.IntVar(&o.Processes, "processes", 1,
		"how many processes the program has in a container, each of which is an enclave of the full size")
	f.Int64Var(&group, "device-group", 0,
		"number of the group that may open the SGX device, for images whose user is not root")
	f.StringVar(&o.Storage, "storage", "1Gi", "size of volumes for encrypted files")
	f.BoolVar(&o.Direct, "direct", false,
		"for docker: without SGX, in Gramine's direct mode, where nothing is confidential")
	f.StringVar(&epc, "epc", "",
		"for an image that was not converted and has enclaves of its own: the memory that these take, such as 512M")
	f.BoolVar(&o.LegacyEPC, "legacy-epc", false, "for aks: the resource of clusters before Intel's device plugin")
	access.add(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.Target = deploy.Target(target)
		if !slices.Contains(deploy.Targets, o.Target) {
			return usagef("--target %s: there is %s", target, strings.Trim(fmt.Sprint(deploy.Targets), "[]"))
		}
		if cmd.Flags().Changed("device-group") {
			o.DeviceGroup = &group
		}
		img, err := access.open(cmd, args[0])
		if err != nil {
			return err
		}
		defer img.Close()
		if img.Ref.Transport != image.Registry {
			return usagef("%s is not in a registry: only from there can it be started elsewhere", img.Ref)
		}
		o.Image = img.Ref.Name.Context().Name() + "@" + img.Digest
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
		if errors.Is(err, deploy.ErrOption) {
			return &usageError{err}
		}
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(text)
		return err
	}
	return cmd
}
