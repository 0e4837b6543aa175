package libos

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	debugelf "debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/process"
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
	// Build is what the Go linker has recorded of the program's modules; the zero value if it has recorded nothing.
	Build debug.BuildInfo
}

const agentLevel = 8 // the highest takes three times as long, for half a per cent

// NewAgent packs a program.
func NewAgent(program []byte) (*Agent, error) {
	var archive bytes.Buffer
	err := Pack(&archive, []File{{Path: AgentPath, Mode: 0o755, Content: program}})
	if err != nil {
		return nil, fmt.Errorf("packing the agent: %w", err)
	}
	layer, err := image.CompressLayer(agentLevel, archive.Bytes())
	return PackedAgent(program, layer), err
}

// PackedAgent describes a program that a layer has.
func PackedAgent(program []byte, layer image.NewLayer) *Agent {
	a := &Agent{Layer: layer, SHA256: sha256.Sum256(program)}
	if build, err := buildinfo.Read(bytes.NewReader(program)); err == nil {
		a.Build = *build
	}
	return a
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

// AgentProblems says why an agent of a configuration would not be the one that is measured, would put secrets where the
// host sees them, or would not start, in an enclave as its library OS reads it.
func AgentProblems(c *release.Config, e *Enclave) (problems []string) {
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	places := []string{AgentPath, AgentConfigPath}
	if c.Encrypted {
		places = append(places, EncryptedPath)
	}
	for _, p := range places {
		measured := func(f FileEntry) bool { return f.URI == fileScheme+p && f.SHA256 != "" }
		if !slices.ContainsFunc(e.Trusted, measured) {
			wrong("%s is not measured", p)
		}
	}
	for _, uri := range e.Allowed {
		p := path.Clean(strings.TrimPrefix(uri, fileScheme))
		if process.Below(AgentPath, p) || process.Below(AgentConfigPath, p) {
			wrong("the host may change %s", p)
		}
	}
	if e.Program.Entrypoint != AgentPath {
		wrong("the enclave starts %s, not the agent", e.Program.Entrypoint)
	}
	if _, public := e.Keys[c.Key]; public {
		wrong("the key of the directories for files is in the manifest")
	}
	for _, m := range e.Program.Mounts {
		p := path.Clean(m.Path)
		if process.Below(AgentPath, p) || process.Below(AgentConfigPath, p) {
			wrong("a mount at %q covers the agent", m.Path)
		}
		if process.Below(launch.CiphertextsDir, p) || process.Below(p, launch.CiphertextsDir) &&
			launch.CiphertextsDir+strings.TrimPrefix(m.URI, fileScheme) != p {
			wrong("what the agent compares is not what is decrypted: there is a mount at %q", m.Path)
		}
	}
	for _, s := range c.Want {
		if dir := s.Dir(); dir != "" && !encrypted(e.Program.Mounts, dir, s.Name, c.Key) {
			wrong("%s is not in a directory that is encrypted under the agent's key", s)
		}
	}
	if e.Settings.EnclaveSize < launch.AgentMemory || e.Settings.MaxThreads < launch.AgentThreads {
		wrong("the agent needs an enclave of 1 GB with %d threads, and it has %d bytes and %d", launch.AgentThreads,
			e.Settings.EnclaveSize, e.Settings.MaxThreads)
	}
	return problems
}

const fileScheme = "file:"

// encrypted reports whether a place in a directory is encrypted under a key: the innermost mount over it is, and so is
// what is mounted within.
func encrypted(mounts []Mount, dir, place, key string) bool {
	innermost := Mount{}
	for _, m := range mounts { // a later one covers an earlier one at its path
		m.Path = path.Clean(m.Path)
		switch {
		case process.Below(dir, m.Path):
			if len(m.Path) >= len(innermost.Path) {
				innermost = m
			}
		case process.Below(place, m.Path) || process.Below(m.Path, place):
			if m.Type != "encrypted" || m.Key != key {
				return false
			}
		}
	}
	return innermost.Type == "encrypted" && innermost.Key == key
}
