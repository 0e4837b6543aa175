package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/libos/occlum"
)

const manifestLong = `Print the manifest that a conversion would put into the image, for those who start the program by
means of their own, such as gramine-sgx. Nothing is stored, and no key is needed.

With --style occlum, write the configuration of Occlum to --out: Occlum.json, and a bom.yaml that
lists every file that the program may read with its SHA-256, for copy_bom. Occlum's measurement does
not vouch for these files as Gramine's does: no MRENCLAVE is claimed.

--rootfs unpacks the image. For bom.yaml it is the directory rootfs beside that.`

// gramineManifest is the file that --out gets for Gramine.
const gramineManifest = "app.manifest"

func newManifest() *cobra.Command {
	var (
		access             registryFlags
		layers             layerFlags
		library            runtimeFlags
		start              launchFlags
		gate               convert.Gate
		style, out, rootFS string
	)
	cmd := &cobra.Command{
		Use:   "manifest IMAGE",
		Short: "Print the manifest of an image without converting it, for Gramine or Occlum",
		Long:  manifestLong,
		Example: `  cconvert manifest registry.example/app:1.4

  # For Occlum, with the files that its list names
  cconvert manifest registry.example/app:1.4 --style occlum --out instance --rootfs instance/rootfs`,
		Args: exactArgs("IMAGE"),
	}
	f := cmd.Flags()
	f.StringVar(&style, "style", "gramine", "gramine or occlum")
	f.StringVar(&out, "out", "", "directory that gets the files; without it, a manifest for Gramine is printed")
	f.StringVar(&rootFS, "rootfs", "", "directory, empty or not there yet, that gets the files of the image")
	addGate(f, &gate)
	library.add(f)
	start.add(f)
	layers.add(f)
	access.add(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains([]string{"gramine", "occlum"}, style) {
			return usagef("--style %s: there is gramine and occlum", style)
		}
		if style == "occlum" && out == "" {
			return usagef("--style occlum writes several files: --out names a directory for them")
		}
		source, err := image.ParseReference(args[0], access.insecure)
		if err != nil {
			return err
		}
		if err := checkGate(gate); err != nil {
			return err
		}
		o, err := conversion(source, access, layers, library, start, encryptFlags{})
		if err != nil {
			return err
		}
		if style == "occlum" {
			if start.libc != "auto" {
				return usagef(
					"--libc is Gramine's: for Occlum the image's C library is listed, for its own to take the place of")
			}
			o.Launch.LibC = libc.Image
		}
		progress := newProgress(cmd.ErrOrStderr())
		defer progress.finish()
		o.Observer = progress
		e, err := convert.NewExport(cmd.Context(), o)
		if err != nil {
			return err
		}
		defer e.Close()
		var files map[string][]byte
		var findings []finding.Finding
		if style == "occlum" {
			files, findings, err = occlum.Export(e.Spec, e.Tree, o.Enclave)
			findings = slices.Concat(e.Findings, findings)
		} else {
			var text []byte
			text, findings, err = e.Manifest(cmd.Context())
			files = map[string][]byte{gramineManifest: text}
		}
		progress.finish()
		if err != nil {
			return fmt.Errorf("%s: %w", source, err)
		}
		tellFindings(cmd.ErrOrStderr(), findings)
		if err := gate.Pass(findings); err != nil {
			return err
		}
		if rootFS != "" {
			if err := e.Unpack(cmd.Context(), rootFS); err != nil {
				return fmt.Errorf("%s: %w", source, err)
			}
		}
		if out == "" {
			_, err := cmd.OutOrStdout().Write(files[gramineManifest])
			return err
		}
		if err := os.MkdirAll(out, 0o755); err != nil {
			return err
		}
		for name, text := range files {
			if err := writeFile(filepath.Join(out, name), text); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}
