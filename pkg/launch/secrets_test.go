package launch_test

import (
	"context"
	"encoding/json"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/release"
)

// released are secrets of a server, by the texts of their places.
func released(places ...string) *launch.Secrets {
	s := &launch.Secrets{Servers: []release.Server{{Address: "https://kms.example:8443", Pins: []release.Pin{{1}}}}}
	for _, p := range places {
		slot, err := release.ParseSlot(p)
		if err != nil {
			panic(err)
		}
		s.Want = append(s.Want, slot)
	}
	return s
}

// The agent knows what it becomes and what it may fill, files have encrypted directories, and the enclave has room.
func TestSecrets(t *testing.T) {
	s := testImage{
		config: v1.Config{Entrypoint: []string{"app"}, Env: []string{
			"PATH=/", "TOKEN_FILE=/run/secrets/token", "OTHER_FILE=/run/secrets/other",
		}},
		entries: append(secrets, Dir("run/secrets")),
		options: launch.Options{
			Secrets: released("env:A", "file:/run/secrets/token", "tls:/run/secrets/tls", "file:/run/x/y/z"),
			Encrypt: launch.Encryption{Paths: []string{"/srv/app"}, Key: "files"},
		},
	}.build(t)
	require.NotNil(t, s.Agent)
	require.NoError(t, s.Agent.Check())
	assert.Equal(t, "/app", s.Agent.Exec)
	assert.Equal(t, "app", s.Agent.Arg0)
	assert.Equal(t, []string{"/run/secrets", "/run/x/y"}, s.Agent.Dirs)
	assert.Equal(t, []string{
		"env:A", "file:/run/secrets/token", "tls:/run/secrets/tls", "file:/run/x/y/z", "key:files",
	}, s.Agent.Places())
	var keys []string
	for _, m := range s.Mounts {
		if m.Type == launch.Encrypted {
			keys = append(keys, m.Path+"="+m.Key)
		}
	}
	assert.Equal(t, []string{
		"/current=files", "/run/secrets=" + launch.SecretsKey, "/run/x/y=" + launch.SecretsKey, "/srv/app=files",
	},
		keys)
	assert.GreaterOrEqual(t, s.Memory, uint64(1<<30))
	assert.GreaterOrEqual(t, s.Threads, 10)
	assert.NotContains(t, codes(s), finding.EncryptedKey)
	for _, f := range s.Findings {
		if f.Code == finding.MountedSecrets {
			assert.Equal(t, "/run/secrets/other", f.Path)
		}
	}
	assert.Contains(t, codes(s), finding.MountedSecrets)
}

// What could not work, or would let the server decide what code runs, is an error before anything is made.
func TestWrongSecrets(t *testing.T) {
	entries := []Entry{
		Program("app", ELF("")), File("data/file", "x"), Symlink("link", "/data"), Dir("run"), File("flat", "x"),
	}
	for want, o := range map[string]launch.Options{
		"secret env:LD_PRELOAD: whoever":       {Secrets: released("env:LD_PRELOAD")},
		"secret env:PATH: whoever":             {Secrets: released("env:PATH")},
		"secret env:PYTHONPATH: whoever":       {Secrets: released("env:PYTHONPATH")},
		"secret env:A: the variable is set by": {Secrets: released("env:A"), Env: []process.EnvVar{{Name: "A"}}},
		"no place for a secret is named":       {Secrets: released()},
		"there are 0 servers":                  {Secrets: &launch.Secrets{Want: released("env:A").Want}},
		"nothing has a key of this name":       {Secrets: released("key:a")},
		"memory: the agent":                    {Secrets: released("env:A"), Memory: 1 << 29},
		"threads: the agent":                   {Secrets: released("env:A"), Threads: 4},
		"its directory is a mount of yours":    {Secrets: released("file:/x/y"), Tmpfs: []string{"/x"}},
		"is named twice":                       {Secrets: released("env:A", "env:A")},
		"others use this directory":            {Secrets: released("file:/run/token")},
		"a link of the image leads to /data":   {Secrets: released("file:/link/token")},
		"the image has files in it":            {Secrets: released("file:/data/token")},
		"the image has something else there":   {Secrets: released("tls:/flat")},
	} {
		err := o.Check()
		if err == nil {
			config, merr := json.Marshal(v1.ConfigFile{Config: v1.Config{Cmd: []string{"/app"}}})
			require.NoError(t, merr)
			_, err = launch.Examine(context.Background(), Tree(t, o.Keep(), nil, entries...)).
				Build(context.Background(), config, o)
		}
		var option *launch.OptionError
		if assert.ErrorAs(t, err, &option, want) {
			assert.ErrorContains(t, err, want)
		}
	}
}
