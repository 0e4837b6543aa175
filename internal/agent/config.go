// Package agent is what runs first in an enclave that gets secrets: it proves to the owner's server what it is, puts
// what it gets into the places that are measured with it, and becomes the program. It leaves nothing of itself behind.
package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/cconvert/cconvert/internal/strictjson"
	"github.com/cconvert/cconvert/pkg/release"
)

// ConfigVersion is that of the file.
const ConfigVersion = 1

// Config is what the agent is told. It is measured: the host chooses nothing of it.
type Config struct {
	Version int `json:"version"`
	// Servers are asked one after the other, until one answers.
	Servers []release.Server `json:"servers"`
	// Want are the places for secrets. No other is filled.
	Want []release.Slot `json:"want"`
	// Exec is the program, by its path. Arg0 is what it is called, if that is another word.
	Exec string `json:"exec"`
	Arg0 string `json:"arg0,omitempty"`
	// Seconds are how long a server that does not answer is waited for; 0: DefaultSeconds.
	Seconds int `json:"seconds,omitempty"`
	// Mounts are names of keys of encrypted mounts, for which the agent makes random keys: what is in them lives as
	// long as the enclave.
	Mounts []string `json:"mounts,omitempty"`
}

// ErrConfig says that a file does not tell an agent what to do.
var ErrConfig = errors.New("not the configuration of an agent")

// DefaultSeconds are how long a server that does not answer is waited for.
const DefaultSeconds = 60

const (
	maxSeconds = 3600
	maxConfig  = 1 << 20
	maxServers = 16
)

// ReadConfig reads a configuration.
func ReadConfig(file string) (*Config, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, err
	}
	c, err := ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// ParseConfig reads the text of a configuration.
func ParseConfig(text []byte) (*Config, error) {
	var c Config
	if len(text) > maxConfig {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrConfig, maxConfig)
	}
	err := strictjson.Check(text, strictjson.Rules{MaxList: release.MaxSlots})
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

// Check reports what an agent could not do.
func (c *Config) Check() error {
	switch {
	case c.Version != ConfigVersion:
		return fmt.Errorf("its version is %d, not %d", c.Version, ConfigVersion)
	case len(c.Servers) == 0 || len(c.Servers) > maxServers:
		return fmt.Errorf("it names %d servers", len(c.Servers))
	case len(c.Want) == 0:
		return errors.New("it wants no secrets")
	case !path.IsAbs(c.Exec) || path.Clean(c.Exec) != c.Exec:
		return fmt.Errorf("the program %q has no absolute path", c.Exec)
	case c.Seconds < 0 || c.Seconds > maxSeconds:
		return fmt.Errorf("it waits for %d seconds", c.Seconds)
	case len(c.Mounts) > release.MaxSlots:
		return fmt.Errorf("it has %d mounts", len(c.Mounts))
	}
	for i := range c.Servers {
		if err := c.Servers[i].Check(); err != nil {
			return err
		}
	}
	for _, name := range c.Mounts {
		if _, err := release.ParseSlot(release.KindKey + ":" + name); err != nil {
			return err
		}
		for _, s := range c.Want {
			if s == (release.Slot{Kind: release.KindKey, Name: name}) {
				return fmt.Errorf("the key %q is to be random, and to be released", name)
			}
		}
	}
	return release.CheckSlots(c.Want)
}
