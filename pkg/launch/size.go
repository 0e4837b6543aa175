package launch

import (
	"fmt"
	"math/bits"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// chooseProfile finds the profile of what the image starts, and sets its variables if the image does
// not. It returns the patterns of files to be read: of that profile, and of those of other programs that
// are started.
func (s *Spec) chooseProfile(tree *rootfs.Tree, finder *reach.Finder, set *reach.Set, o Options) (read []string) {
	var commands []string
	first, _ := s.programs(tree, set)
	for _, p := range profile.Matching(first) {
		commands = append(commands, p.Read(s.texts(set), s.WorkDir)...)
	}
	if o.Profile != nil {
		commands = append(commands, o.Profile.Read(s.texts(set), s.WorkDir)...)
	}
	finder.Commands(commands)
	programs, nodes := s.programs(tree, set)
	for _, p := range profile.Matching(programs) {
		read = append(read, p.Paths.Read...)
	}
	recognised, why, i := profile.Recognise(programs)
	if s.Profile, s.ProfileWhy = o.Profile, "as asked for"; o.Profile == nil {
		s.Profile, s.ProfileWhy = recognised, why
	}
	if s.main = tree.Lookup(s.LibC.Program); i >= 0 && nodes[i].ELF != nil {
		s.main = nodes[i]
		finder.Process(s.main)
	}
	for name, value := range s.Profile.Env {
		if !slices.ContainsFunc(s.Env, func(v process.EnvVar) bool { return v.Name == name }) {
			s.Env = append(s.Env, process.EnvVar{Name: name, Value: value})
		}
	}
	s.SortEnv()
	return append(read, s.Profile.Paths.Read...)
}

// programs are those that the image starts: the entrypoint's, then those of its arguments, then those
// that its scripts name.
func (s *Spec) programs(tree *rootfs.Tree, set *reach.Set) (list []profile.Program, nodes []*rootfs.Node) {
	add := func(n *rootfs.Node, surely bool, spelled ...string) {
		p := profile.Program{Names: []string{n.Name()}, Surely: surely}
		for _, s := range spelled {
			p.Names = append(p.Names, path.Base(s))
		}
		if n.ELF != nil {
			p.Go, p.Libraries = n.ELF.Go, n.ELF.Needed
		}
		list, nodes = append(list, p), append(nodes, n)
	}
	entry := tree.Lookup(s.Entrypoint)
	add(entry, entry.ELF != nil, s.Argv[0])
	// a script with a profile is more than its interpreter
	if s.LibC.Program != s.Entrypoint && len(profile.Matching(list)) == 0 {
		add(tree.Lookup(s.LibC.Program), true)
	}
	for _, a := range s.Argv[1:] {
		if n, _, err := s.LookUp(tree, a); err == nil {
			add(n, n.ELF != nil, a)
			if chain, err := s.Interpreters(tree, n); err == nil && len(chain) > 0 {
				add(chain[len(chain)-1], true)
			}
		}
	}
	for _, n := range set.Started {
		add(n, false)
	}
	return list, nodes
}

// overhead is what the library OS takes of an enclave: its code, its heap, the file system's bookkeeping.
const overhead = 64 << 20

// threadMemory is what the library OS reserves for each thread: two stacks, and the pages in which the CPU keeps its
// state.
const threadMemory = 360 << 10

// maxThreads is how many threads an enclave can be given.
const maxThreads = 1 << 16

// withoutComments leaves out a script's lines that are comments.
func withoutComments(script []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(script)) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// texts are what says how the program is started: its arguments, variables, and the scripts that start it.
func (s *Spec) texts(set *reach.Set) []string {
	texts := []string{strings.Join(s.Argv, " ")}
	for _, v := range s.Env {
		texts = append(texts, v.Name+"="+v.Value)
	}
	for _, n := range set.Started {
		texts = append(texts, withoutComments(n.Content))
	}
	for i, text := range texts {
		texts[i] = text[:min(len(text), maxLooked)]
	}
	return texts
}

// maxLooked is how many bytes of a text are looked at for options.
const maxLooked = 1 << 20

// size chooses the enclave's size and number of threads: the profile's, raised by what the image
// contains.
func (s *Spec) size(set *reach.Set, o Options) {
	asked, texts := o.Memory, s.texts(set)
	threads, said := profile.Need(s.Profile.Threads, texts)
	threads = min(threads, maxThreads)
	if asked != 0 { // half of what was asked for is for the program
		threads = min(threads, asked/2/threadMemory)
	}
	switch {
	case s.Threads == 0:
		s.Threads = max(s.Profile.Enclave.Threads, int(threads), 4)
		if o.Secrets != nil {
			s.Threads = max(s.Threads, AgentThreads)
		}
	case int(threads) > s.Threads:
		s.Find(finding.Threads, finding.Warning, "",
			fmt.Sprintf("%s asks for some %d threads, and the enclave has %d: what is "+
				"more than that fails to start", said, threads, s.Threads))
	}
	if asked != 0 {
		s.SizeWhy = "as asked for"
		return
	}
	size := max(uint64(s.Profile.Enclave.Size), 1<<28)
	fixed := overhead + uint64(s.Threads)*threadMemory
	s.SizeWhy = "profile " + s.Profile.Name
	raise := func(need uint64, why string) {
		// A size is a power of two (SGX SDM, "SECS"); 64 GB is the most that any machine is asked for.
		if need = min(need, 1<<36); need > size {
			size = 1 << bits.Len64(need-1)
			s.SizeWhy = why
		}
	}
	var mapped uint64
	for _, n := range set.Linked {
		mapped += n.ELF.MemSize
	}
	raise(2*fixed, fmt.Sprintf("%d threads", s.Threads))
	raise(2*mapped+fixed, fmt.Sprintf("its program and libraries take %d MB", mapped>>20))
	if need, said := profile.Need(s.Profile.Memory, texts); need > 0 {
		raise(need+mapped+fixed, said)
	}
	if o.Secrets != nil {
		raise(AgentMemory, "the agent that gets secrets")
	}
	s.Memory = size
}
