package launch_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/launch"
)

// Directories that an entrypoint makes in a child process exist for the server that it starts afterwards.
func TestDirectoriesMadeAtStart(t *testing.T) {
	s := testImage{config: cmd("/entry.sh"), entries: []Entry{
		Program("entry.sh",
			"#!/bin/sh\n# mkdir /run/comment\nmkdir -p /run/mysqld \"$DATADIR\" && chown mysql /run/owned\n"+
				"install -m 0755 -o app -d /var/run/app /opt/app/data\n[ -d /tmp/x ] || mkdir /tmp/../tmp/x; cp "+
				"/run/a /run/b\nexec server\n"),
		Program("bin/sh", ELF("")), Program("usr/bin/server", ELF("")), Symlink("var/run", "/run"),
		File("usr/lib/tmpfiles.d/db.conf",
			"d /run/db 0755 db db -\nf /run/file 0644\nD /tmp/spool\nd /run/%m\nd /var/lib/other\nd\n"),
	}}.build(t)
	var made []string
	for _, m := range s.Mounts {
		if m.Type == launch.Tmpfs {
			made = append(made, m.Path)
		}
	}
	for _, p := range []string{"/run/mysqld", "/run/app", "/tmp/x", "/run/db", "/tmp/spool"} {
		assert.Contains(t, made, p)
	}
	for _, p := range []string{
		"/run/comment", "/run/owned", "/opt/app/data", "/run/b", "/run/file", "/var/lib/other", "/run/%m",
	} {
		assert.NotContains(t, made, p)
	}
}
