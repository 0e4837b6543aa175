// Package sim is the runtime without an enclave, for laptops and pipelines that have no SGX. It takes
// the place of a library OS: the same manifest, the same measurement, the same signature are checked
// when the container starts, and the program is confined to the files it may use. Nothing is
// confidential: whoever owns the machine can read and change the program's memory.
package sim

import (
	"bytes"
	"context"
	debugelf "debug/elf"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim/loader"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

const maxProgram = 512 << 20

// embedded has the loader for linux/amd64 and the agent, if this program was built with them: make loader puts them
// there.
//
//go:embed all:embedded
var embedded embed.FS

// Backend is the simulation.
type Backend struct{}

// Kind is "sim".
func (Backend) Kind() string { return "sim" }

// Load packs the loader: the file that the source names, else the one in this program, else this program itself, if its
// main begins with loader.Init.
func (Backend) Load(ctx context.Context, o libos.LoadOptions) (*libos.Bundle, error) {
	program, err := readLoader(o.Source)
	if err != nil {
		return nil, fmt.Errorf("reading the simulated runtime: %w", err)
	}
	// A program's version is only known by its digest.
	content := libos.NewRuntimeFile(program)
	version := hex.EncodeToString(content.SHA256[:])
	b, err := libos.Cached(ctx, o.Cache, "runtime/sim-"+version, func(context.Context) ([]byte, error) {
		return libos.PackRuntime(libos.Meta{Kind: "sim", Version: version, Layout: enclave.Version},
			[]libos.File{{Path: loader.Path, Mode: 0o755, Content: program}})
	})
	if err != nil {
		return nil, err
	}
	b.Files[loader.Path] = content
	b.Source, b.Pinned = "cconvert", true
	return b, nil
}

func readLoader(file string) ([]byte, error) {
	if file != "" {
		return readProgram(file)
	}
	program, err := embedded.ReadFile("embedded/loader")
	if err == nil {
		if !bytes.Contains(program, []byte(loader.Marker)) {
			return nil, errors.New("the loader that was built into this program is of another version: build it with " +
				"make")
		}
		return program, checkProgram("the loader that was built into this program", program)
	}
	if !loader.Initialised() || runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return nil, errors.New("this program was built without the loader: name one with --runtime sim=FILE, made by " +
			"CGO_ENABLED=0 GOOS=linux GOARCH=amd64 go build github.com/cconvert/cconvert/cmd/cconvert-sim-loader")
	}
	return readProgram("/proc/self/exe") // which is this program also after another one was put in its place
}

func readProgram(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxProgram {
		return nil, fmt.Errorf("%s has more than %d bytes", file, maxProgram)
	}
	program := make([]byte, info.Size())
	if _, err := io.ReadFull(f, program); err != nil {
		return nil, err
	}
	return program, checkProgram(file, program)
}

func checkProgram(name string, program []byte) error {
	facts, err := elf.Parse(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if facts.Machine != debugelf.EM_X86_64 || facts.Interp != "" {
		return fmt.Errorf("%s is not a static program for x86-64: build it with CGO_ENABLED=0", name)
	}
	return nil
}

var _ libos.Backend = Backend{}

// simulated has this program in all places.
var simulated = gramine.Runtime{Loader: loader.Path, PAL: loader.Path, LibOS: loader.Path}

// Layers are the runtime's and the enclave's.
func (Backend) Layers() int { return 2 }

// Agent is cmd/cconvert-agent-sim, whose quotes are simulated.
func (Backend) Agent() ([]byte, error) { return libos.EmbeddedAgent(embedded) }

// Image is that the runtime is no image: it is a file, or part of the program.
func (Backend) Image(libos.LoadOptions) (ref image.Reference, ok bool, err error) {
	return ref, false, nil
}

// StartSeconds is Gramine's.
func (Backend) StartSeconds(files int) float64 { return gramine.Backend{}.StartSeconds(files) }

// CheckOverlay reports what is wrong with a user's manifest.
func (Backend) CheckOverlay(name, text string) error {
	return gramine.Backend{}.CheckOverlay(name, text)
}

// Keep lists the same files.
func (Backend) Keep() []string { return gramine.Keep() }

// Open reads the enclave that there would be.
func (Backend) Open(in libos.Stored) (*libos.Enclave, error) {
	e, err := simulated.Open(in)
	if err != nil {
		return nil, err
	}
	e.Simulated = true
	return e, nil
}

// Seal makes the same manifest that a real enclave would have, for this program as the runtime.
func (Backend) Seal(_ context.Context, in libos.Input) (*libos.Sealed, error) {
	out, err := simulated.Seal(in)
	if err != nil {
		return nil, err
	}
	out.Simulated = true
	out.Findings = append(out.Findings, finding.New(finding.Simulated, finding.Warning, "",
		"the runtime is simulated: there is no enclave, and nothing is confidential"))
	return out, nil
}

// EncryptedFormat is the newest.
func (Backend) EncryptedFormat(*libos.Bundle) (protectedfs.Version, error) {
	return protectedfs.Version2, nil
}
