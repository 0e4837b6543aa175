package main

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What the dashboard shows and the documents name is in the sources of what counts.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../deploy/grafana/dashboard.json")
	require.NoError(t, err)
	var d struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	require.NoError(t, json.Unmarshal(text, &d))
	require.Len(t, d.Panels, 7)
	document, err := os.ReadFile("../../docs/batch.md")
	require.NoError(t, err)
	names := regexp.MustCompile(`cconvert_[a-z_]+[a-z]`)
	have := ""
	for _, file := range []string{"batch/monitor.go", "service/metrics.go", "keyserver/server.go"} {
		source, err := os.ReadFile("../../internal/" + file)
		require.NoError(t, err)
		have += string(source)
	}
	shown := names.FindAllString(string(document), -1)
	for _, p := range d.Panels {
		require.NotEmpty(t, p.Targets)
		for _, target := range p.Targets {
			shown = append(shown, names.FindAllString(target.Expr, -1)...)
		}
	}
	for _, name := range shown {
		assert.Contains(t, have, `"`+strings.TrimSuffix(name, "_bucket")+`"`)
	}
}
