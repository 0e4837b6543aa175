package launch

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Secrets says from whom the program gets secrets at start, and into which places.
type Secrets struct {
	Servers []release.Server `json:"servers"`
	Want    []release.Slot   `json:"want"`
}

// Add adds a place that is written as people do, for a key broker service with its resource behind "=".
func (s *Secrets) Add(text string) error {
	place, resource, named := text, "", false
	if slices.ContainsFunc(s.Servers, func(s release.Server) bool { return s.Protocol == release.KBS }) {
		if at := strings.LastIndexByte(text, '='); at >= 0 {
			place, resource, named = text[:at], text[at+1:], true
		}
	}
	slot, err := release.ParseSlot(place)
	if err != nil {
		return err
	}
	s.Want = append(s.Want, slot)
	for i := range s.Servers {
		if named && s.Servers[i].Protocol == release.KBS {
			if s.Servers[i].Resources == nil {
				s.Servers[i].Resources = map[string]string{}
			}
			s.Servers[i].Resources[slot.String()] = resource
		}
	}
	return nil
}

// WithoutKeys returns the secrets without keys of mounts, of which there are none any more; nil if nothing is left, but
// for the key of the image's encrypted files, which goes without saying.
func (s *Secrets) WithoutKeys(encrypted bool) *Secrets {
	if s == nil {
		return nil
	}
	out := *s
	out.Want = slices.DeleteFunc(slices.Clone(s.Want), func(s release.Slot) bool { return s.Kind == release.KindKey })
	if len(out.Want) == 0 && !encrypted {
		return nil
	}
	return &out
}

// SecretsKey is the name of the key of the directories for released files.
const SecretsKey = "cconvert-secrets"

// What an agent needs of an enclave: a program of Go reserves 700 MB of addresses, and has up to 8 threads.
const (
	AgentMemory  = 1 << 30 // bytes
	AgentThreads = 10
)

// wanted are the places for secrets: those that the user names, and the key to the image's encrypted files.
func (o Options) wanted() []release.Slot {
	want := slices.Clone(o.Secrets.Want)
	key := release.Slot{Kind: release.KindKey, Name: o.Encrypt.Key}
	if len(o.Encrypt.Paths) > 0 && !o.Encrypt.AtStart && !slices.Contains(want, key) {
		want = append(want, key)
	}
	return want
}

// checkSecrets reports what is wrong with the secrets, as an OptionError.
func (o Options) checkSecrets() error {
	if o.Secrets == nil {
		return nil
	}
	wrong := func(option, value, format string, args ...any) error {
		return &OptionError{option, value, fmt.Sprintf(format, args...)}
	}
	if err := release.CheckServers(o.Secrets.Servers); err != nil {
		return wrong("secrets", "", "%v", err)
	}
	want := o.wanted()
	for i := range o.Secrets.Servers {
		if err := o.Secrets.Servers[i].Fills(want); err != nil {
			return wrong("secrets", "", "%v", err)
		}
	}
	if len(want) == 0 {
		return wrong("secrets", "", "no place for a secret is named: --secret env:NAME, file:PATH, key:NAME or "+
			"tls:DIRECTORY")
	}
	if err := release.CheckSlots(want); err != nil {
		return wrong("secret", "", "%v", err)
	}
	if o.Encrypt.Key == SecretsKey ||
		slices.ContainsFunc(o.Encrypted, func(m Mount) bool { return m.Key == SecretsKey }) {
		return wrong("secrets", "", "a key of the name %s is made at each start, for released files: what is written "+
			"with it cannot be read again", SecretsKey)
	}
	for _, s := range want {
		switch {
		case s.Kind == release.KindEnv && process.Steers(s.Name):
			return wrong("secret", s.String(), "whoever chooses this variable chooses what code runs in the enclave, "+
				"and that would be the server")
		case s.Kind == release.KindEnv && slices.ContainsFunc(o.Env, func(v process.EnvVar) bool {
			return v.Name == s.Name
		}):
			return wrong("secret", s.String(), "the variable is set by --env or --pass-env, too")
		case s.Kind == release.KindKey && s.Name != o.Encrypt.Key &&
			!slices.ContainsFunc(o.Encrypted, func(m Mount) bool { return m.Key == s.Name }):
			return wrong("secret", s.String(), "nothing has a key of this name: --encrypt-mount PATH=%s", s.Name)
		case slices.Contains(o.Tmpfs, s.Dir()) ||
			slices.ContainsFunc(o.Encrypted, func(m Mount) bool { return m.Path == s.Dir() }):
			return wrong("secret", s.String(), "its directory is a mount of yours: choose one of its own")
		}
	}
	switch {
	case o.Memory != 0 && o.Memory < AgentMemory:
		return wrong("memory", "", "the agent that gets secrets needs an enclave of 1 GB")
	case o.Threads != 0 && o.Threads < AgentThreads:
		return wrong("threads", "", "the agent that gets secrets needs %d", AgentThreads)
	}
	return nil
}

// secrets has an agent start first, which becomes the program, and makes the directories for what it gets.
func (f *files) secrets(o Options) error {
	if o.Secrets == nil {
		return nil
	}
	s := f.spec
	c := &release.Config{
		Version: release.ConfigVersion, Servers: o.Secrets.Servers, Want: o.wanted(), Exec: s.Entrypoint,
	}
	if s.Argv[0] != s.Entrypoint {
		c.Arg0 = s.Argv[0]
	}
	s.Agent = c
	dirs := map[string]bool{}
	for _, slot := range c.Want {
		if d := slot.Dir(); d != "" {
			dirs[d] = true
		}
	}
	for _, d := range slices.Sorted(maps.Keys(dirs)) {
		if covered(path.Dir(d), dirs) {
			continue
		}
		if err := f.mayHoldSecrets(d); err != nil {
			return err
		}
		if err := f.add(Mount{Type: Encrypted, Path: d, Key: SecretsKey}); err != nil {
			return err
		}
		c.Dirs, c.Key = append(c.Dirs, d), SecretsKey
	}
	text, err := c.Marshal()
	if err == nil {
		_, err = release.ParseConfig(text) // as the agent will
	}
	if err != nil {
		return &OptionError{"secrets", "", err.Error()}
	}
	return nil
}

// mayHoldSecrets reports why a directory cannot be one for released files alone.
func (f *files) mayHoldSecrets(dir string) error {
	wrong := func(format string, args ...any) error {
		return &OptionError{"secret", dir, fmt.Sprintf(format, args...)}
	}
	if slices.Contains(temporary, dir) || slices.Contains(stateDirs, dir) {
		return wrong("others use this directory: choose one below it, such as %s/secrets", dir)
	}
	n, real, err := f.tree.Resolve(dir)
	switch {
	case real == "":
		return wrong("%v", err)
	case real != dir:
		return wrong("a link of the image leads to %s: name that", real)
	case n != nil && n.Type != rootfs.Dir:
		return wrong("the image has something else there")
	case n != nil && len(n.Children()) > 0:
		return wrong("the image has files in it, which could not be seen any more: choose a directory of its own")
	}
	return nil
}
