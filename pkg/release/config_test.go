package release

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A configuration says where each file goes that is not to be seen outside, and nothing that could be another's.
func TestConfig(t *testing.T) {
	good := func() *Config {
		return &Config{
			Version: ConfigVersion, Exec: "/app", Want: []Slot{{KindFile, "/run/a/b/token"}, {KindTLS, "/run/a/tls"}},
			Servers: []Server{{Address: "https://kms.example:8443", Pins: []Pin{{1}}}},
			Dirs:    []string{"/run/a"}, Key: "random",
		}
	}
	text, err := good().Marshal()
	require.NoError(t, err)
	again, err := ParseConfig(text)
	require.NoError(t, err)
	assert.Equal(t, good(), again)
	for what, change := range map[string]func(*Config){
		"is not in an encrypted directory": func(c *Config) { c.Dirs = []string{"/run/ab"} },
		"to be random":                     func(c *Config) { c.Want = append(c.Want, Slot{KindKey, "random"}) },
		"with a key of the name":           func(c *Config) { c.Key = "" },
		"the system's":                     func(c *Config) { c.Dirs = []string{"/etc/x"} },
		"a key's name":                     func(c *Config) { c.Key = "a/b" },
		"between 1 and":                    func(c *Config) { c.Servers = nil },
		"wants no secrets":                 func(c *Config) { c.Want = nil },
		"no absolute path":                 func(c *Config) { c.Exec = "app" },
	} {
		c := good()
		change(c)
		text, err := c.Marshal()
		require.NoError(t, err)
		_, err = ParseConfig(text)
		assert.ErrorIs(t, err, ErrConfig, what)
		assert.ErrorContains(t, err, what)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"version":1,"servers":[{"address":"https://h:1","pins":["sha256/` + strings.Repeat("A", 43) +
		`="]}],"want":["env:X"],"exec":"/app"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			if !errors.Is(err, ErrConfig) {
				t.Fatal(err)
			}
			return
		}
		if err := c.Check(); err != nil {
			t.Fatal(err)
		}
	})
}
