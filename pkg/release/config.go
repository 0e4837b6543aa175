package release

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/internal/strictjson"
)

// Config is what an agent is told: the program that runs first in an enclave, and asks. It is measured, so the host
// chooses nothing of it.
type Config struct {
	Version int `json:"version"`
	// Servers are asked one after the other, until one answers.
	Servers []Server `json:"servers"`
	// Want are the places for secrets. No other is filled.
	Want []Slot `json:"want"`
	// Exec is the program, by its path. Arg0 is what it is called, if that is another word.
	Exec string `json:"exec"`
	Arg0 string `json:"arg0,omitempty"`
	// Seconds are how long a server that does not answer is waited for; 0: DefaultSeconds.
	Seconds int `json:"seconds,omitempty"`
	// Dirs are encrypted directories for files. The agent makes their key, of the name Key, at random: what is in them
	// lives as long as the enclave.
	Dirs []string `json:"dirs,omitempty"`
	Key  string   `json:"key,omitempty"`
	// Encrypted has the agent compare the image's encrypted files with the image's list of them before anything else.
	Encrypted bool `json:"encrypted,omitempty"`
}

// ConfigVersion is that of Config. ConfigMarker is in every agent that reads it.
const (
	ConfigVersion = 2
	ConfigMarker  = "cconvert's agent, configuration version 2"
)

// ErrConfig says that a text does not tell an agent what to do.
var ErrConfig = errors.New("not the configuration of an agent")

// DefaultSeconds are how long a server that does not answer is waited for.
const DefaultSeconds = 60

// MaxConfig is how many bytes a configuration can have, and MaxServers how many servers it can name.
const (
	MaxConfig  = 1 << 20
	MaxServers = 16
	maxSeconds = 3600
)

// ParseConfig reads a configuration.
func ParseConfig(text []byte) (*Config, error) {
	var c Config
	if len(text) > MaxConfig {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrConfig, MaxConfig)
	}
	err := strictjson.Check(text, strictjson.Rules{MaxList: MaxSlots, Named: []string{"resources"}})
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err == nil {
		err = c.Check()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return &c, nil
}

// Marshal writes the configuration: the same one always in the same way.
func (c *Config) Marshal() ([]byte, error) {
	text, err := json.MarshalIndent(c, "", " ")
	return append(text, '\n'), err
}

// CheckServers reports, as ErrAddress, what is wrong with a list of servers.
func CheckServers(list []Server) error {
	if len(list) == 0 || len(list) > MaxServers {
		return fmt.Errorf("%w: there are %d servers, and must be between 1 and %d", ErrAddress, len(list), MaxServers)
	}
	for i := range list {
		if err := list[i].Check(); err != nil {
			return err
		}
	}
	return nil
}

// Check reports what an agent could not do.
func (c *Config) Check() error {
	switch {
	case c.Version != ConfigVersion:
		return fmt.Errorf("its version is %d, not %d", c.Version, ConfigVersion)
	case len(c.Want) == 0:
		return errors.New("it wants no secrets")
	case !path.IsAbs(c.Exec) || path.Clean(c.Exec) != c.Exec:
		return fmt.Errorf("the program %q has no absolute path", c.Exec)
	case c.Seconds < 0 || c.Seconds > maxSeconds:
		return fmt.Errorf("it waits for %d seconds", c.Seconds)
	case len(c.Dirs) > MaxSlots || (len(c.Dirs) > 0) != (c.Key != ""):
		return fmt.Errorf("it has %d directories, with a key of the name %q", len(c.Dirs), c.Key)
	case slices.Contains(c.Want, Slot{KindKey, c.Key}):
		return fmt.Errorf("the key %q is to be random, and to be released", c.Key)
	}
	if err := CheckServers(c.Servers); err != nil {
		return err
	}
	if c.Key != "" {
		if err := (Slot{KindKey, c.Key}).check(); err != nil {
			return err
		}
	}
	if err := CheckSlots(c.Want); err != nil {
		return err
	}
	for i := range c.Servers {
		if err := c.Servers[i].Fills(c.Want); err != nil {
			return err
		}
	}
	for _, d := range c.Dirs {
		if err := (Slot{KindTLS, d}).check(); err != nil { // which is a directory, too
			return err
		}
	}
	for _, s := range c.Want {
		if d := s.Dir(); d != "" && !c.holds(d) {
			return fmt.Errorf("%s is not in an encrypted directory", s)
		}
	}
	return nil
}

// From are the servers, each with how it is recognised and what it is asked for, for people.
func (c *Config) From() []string {
	var list []string
	for _, s := range c.Servers {
		address, more := s.Address, ""
		if s.Protocol != "" {
			address = s.Protocol + " " + address
		}
		for _, slot := range c.Want {
			if r := s.Resources[slot.String()]; r != "" {
				more += fmt.Sprintf(", %s=%s", slot, r)
			}
		}
		by := s.Identities()
		for i, id := range by {
			if strings.HasPrefix(id, pinPrefix) {
				by[i] = "pin=" + id
			} else {
				by[i] = "authority " + id
			}
		}
		list = append(list, fmt.Sprintf("%s (%s%s)", address, strings.Join(by, ", "), more))
	}
	return list
}

// Places are what is wanted, for people.
func (c *Config) Places() []string {
	var list []string
	for _, s := range c.Want {
		list = append(list, s.String())
	}
	return list
}

// holds reports whether a directory is one of the encrypted ones, or below one.
func (c *Config) holds(dir string) bool {
	return slices.ContainsFunc(c.Dirs, func(d string) bool { return strings.HasPrefix(dir+"/", d+"/") })
}
