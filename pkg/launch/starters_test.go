package launch_test

import (
	"context"
	debugelf "debug/elf"
	"encoding/json"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// A program that would not find its libraries behind a link is started by its own path; all others are left as they
// are, above all those that go by the name under which they are started.
func TestStarters(t *testing.T) {
	program := func(runPath string, needed ...string) elf.Facts {
		return elf.Facts{
			Type: debugelf.ET_DYN, Machine: debugelf.EM_X86_64, Interp: "/lib64/ld-linux-x86-64.so.2", RunPath: runPath,
			Needed: needed,
		}
	}
	programs := map[string]elf.Facts{
		"/opt/java/bin/java":      program("$ORIGIN/../lib", "libjli.so"),
		"/opt/java/bin/it's":      program("$ORIGIN/../lib", "libjli.so"),
		"/opt/java/lib/libjli.so": {Type: debugelf.ET_DYN, Machine: debugelf.EM_X86_64},
		"/usr/bin/busybox":        program(""),
		"/usr/bin/beside":         program("$ORIGIN/../lib", "libbeside.so"),
		"/usr/lib/libbeside.so":   {Type: debugelf.ET_DYN, Machine: debugelf.EM_X86_64},
	}
	entries := []Entry{
		Program("app", ELF("")), Program("bin/sh", ELF("")),
		Symlink("usr/bin/java", "/etc/alternatives/java"), Symlink("etc/alternatives/java", "/opt/java/bin/java"),
		Symlink("usr/bin/odd", "/opt/java/bin/it's"),
		Symlink("opt/java/bin/java17", "java"), Symlink("usr/sbin/ls", "/usr/bin/busybox"),
		Symlink("usr/sbin/beside", "/usr/bin/beside"), Symlink("b", "usr/bin"),
	}
	config, err := json.Marshal(v1.ConfigFile{Config: app})
	require.NoError(t, err)
	tree := Tree(t, launch.Options{}.Keep(), programs, entries...)
	s, err := launch.Examine(context.Background(), tree).Build(context.Background(), config, launch.Options{})
	require.NoError(t, err)
	assert.Equal(t, "/b=/usr/bin /b/java=/cconvert/app/start-0 /b/odd=/cconvert/app/start-1 "+
		"/etc/alternatives/java=/cconvert/app/start-0 /usr/bin/java=/cconvert/app/start-0 "+
		"/usr/bin/odd=/cconvert/app/start-1", mounts(s))
	assert.Equal(t, []launch.Starter{
		{Path: "/cconvert/app/start-0", Program: "/opt/java/bin/java"},
		{Path: "/cconvert/app/start-1", Program: "/opt/java/bin/it's"},
	}, s.Starters)
	assert.Equal(t, "#!/bin/sh\nexec '/opt/java/bin/it'\\''s' \"$@\"\n", s.Starters[1].Text())
}
