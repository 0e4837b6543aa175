package main

import (
	"bytes"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What a registry answers does not steer the terminal of whoever reads the log, and colors can be switched off.
func TestLogsOnATerminal(t *testing.T) {
	defer logrus.SetFormatter(logrus.StandardLogger().Formatter)
	defer logrus.SetOutput(logrus.StandardLogger().Out)
	logged := func(colors bool) string {
		var b bytes.Buffer
		l := logFlags{format: "text", level: "info"}
		require.NoError(t, l.apply(&b, func(string) bool { return false }))
		f, ok := logrus.StandardLogger().Formatter.(*textFormatter)
		require.True(t, ok)
		f.ForceColors = colors
		logrus.WithField("target", "\x1b[3J").Warn("the registry says \x1b[2J")
		return b.String()
	}
	text := logged(true)
	assert.Contains(t, text, "\x1b[33m", "as on a terminal")
	assert.NotContains(t, text, "\x1b[2J")
	assert.NotContains(t, text, "\x1b[3J")
	assert.NotContains(t, logged(false), "\x1b")
	t.Setenv("NO_COLOR", "1")
	assert.NotContains(t, logged(true), "\x1b")
}
