package libos

import (
	"bytes"
	"crypto/sha256"
	debugelf "debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/klauspost/compress/gzip"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// Places of an agent, the program that starts first and gets secrets, and of what it is told. Both are measured.
const (
	AgentPath       = Root + "/agent/cconvert-agent"
	AgentConfigPath = Root + "/app/agent.json"
)

// Agent is the program that gets secrets, as a layer of its own: one blob for all images.
type Agent struct {
	Layer  image.NewLayer
	SHA256 [sha256.Size]byte // of the program
}

// NewAgent packs a program.
func NewAgent(program []byte) (*Agent, error) {
	var archive bytes.Buffer
	err := Pack(&archive, []File{{Path: AgentPath, Mode: 0o755, Content: program}})
	if err != nil {
		return nil, fmt.Errorf("packing the agent: %w", err)
	}
	a := &Agent{SHA256: sha256.Sum256(program)}
	a.Layer, err = image.CompressLayer(runtimeLevel, archive.Bytes())
	return a, err
}

// ErrNoAgent says that there is no program to get secrets with.
var ErrNoAgent = errors.New("this program was built without the agent that gets secrets: build it with make")

const maxAgent = 64 << 20

// EmbeddedAgent reads an agent that make has put into this program.
func EmbeddedAgent(files fs.FS) ([]byte, error) {
	f, err := files.Open("embedded/agent.gz")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoAgent
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("reading the agent: %w", err)
	}
	program, err := io.ReadAll(io.LimitReader(z, maxAgent))
	if err != nil {
		return nil, fmt.Errorf("reading the agent: %w", err)
	}
	if err := checkAgent(program); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	return program, nil
}

// ReadAgent reads an agent from a file.
func ReadAgent(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	program, err := io.ReadAll(io.LimitReader(f, maxAgent))
	if err == nil {
		err = checkAgent(program)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return program, nil
}

// checkAgent reports what no agent of this version is: it must also start in images that have no libraries.
func checkAgent(program []byte) error {
	facts, err := elf.Parse(bytes.NewReader(program))
	switch {
	case err != nil:
		return err
	case facts.Machine != debugelf.EM_X86_64 || facts.Interp != "":
		return errors.New("it is not a static program for x86-64")
	case !bytes.Contains(program, []byte(release.ConfigMarker)):
		return errors.New("it is not an agent of this version")
	}
	return nil
}
