package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func eachCommand(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		eachCommand(c, f)
	}
}

// Help fits into a window, lists every flag and every command once, and long lists of flags have headings.
func TestHelpFits(t *testing.T) {
	known := map[string]bool{}
	root := newRoot()
	root.InitDefaultCompletionCmd()
	eachCommand(root, func(cmd *cobra.Command) {
		if strings.HasPrefix(cmd.CommandPath(), "cconvert completion") { // cobra's own
			return
		}
		var b bytes.Buffer
		cmd.SetOut(&b)
		cmd.SetErr(&b)
		cmd.InitDefaultHelpFlag()
		require.NoError(t, cmd.Help())
		for line := range strings.Lines(b.String()) {
			line = strings.TrimRight(line, "\n")
			assert.LessOrEqual(t, utf8.RuneCountInString(line), helpWidth, "%s: %s", cmd.CommandPath(), line)
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			known[f.Name] = true
			if !cmd.HasParent() && !slices.Contains(rootFlags, f.Name) {
				convert, _, err := cmd.Find([]string{"convert"})
				require.NoError(t, err)
				convert.InheritedFlags() // which makes them its own
				assert.NotNil(t, convert.Flags().Lookup(f.Name), "help lists --%s nowhere", f.Name)
				return
			}
			lines := regexp.MustCompile(`(?m)^(      |  -\w, )--`+f.Name+` `).FindAllString(b.String(), -1)
			assert.Len(t, lines, 1, "%s --%s", cmd.CommandPath(), f.Name)
		})
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				assert.Equal(t, 1, strings.Count(b.String(), "\n  "+c.Name()+" "), c.CommandPath())
			}
		}
		_, own, _ := strings.Cut(b.String(), "\nFlags:\n")
		own, _, _ = strings.Cut(own, "\n\n")
		assert.LessOrEqual(t, strings.Count(own, " --"), 22, "%s has many flags without a heading:\n%s",
			cmd.CommandPath(), own)
	})
	for _, name := range rootFlags {
		assert.True(t, known[name] || name == "version", "help has --%s, which the program has not", name)
	}
	for _, g := range flagGroups {
		for _, name := range g.names {
			assert.True(t, known[name], "the heading %s has --%s, which no command has", g.title, name)
		}
	}
	for name := range valuesOf {
		assert.True(t, known[name], "--%s is completed, and no command has it", name)
		assert.NotEmpty(t, valuesOf[name](), name)
	}
}

// A shell gets the values of a flag.
func TestCompletion(t *testing.T) {
	for want, args := range map[string][]string{
		"java\t":              {"convert", "app", "--profile", ""},
		"alibaba":             {"deploy", "app", "--target", "a"},
		"sim\t":               {"--runtime", ""},
		"allow-file\n":        {"analyze", "--ignore", ""},
		"warning":             {"version", "--log-level", ""},
		"verify\tCheck every": {"ver"},
	} {
		out, err := exec.Command(program, append([]string{"__complete"}, args...)...).Output()
		require.NoError(t, err)
		assert.Contains(t, string(out), want, args)
	}
}

// Flags come from a file, unless a variable or the command line says otherwise. What looks at images goes by none of
// it.
func TestConfigFile(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "cconvert"), 0o755))
	run := func(config string, env []string, args ...string) string {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "cconvert", "config.yaml"), []byte(config), 0o600))
		cmd := exec.Command(program, args...)
		cmd.Env = append(append(os.Environ(), "XDG_CONFIG_HOME="+dir), env...)
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	convert := []string{"convert", "oci:none"}
	assert.Contains(t, run("runtime: moon\n", nil, convert...), "--runtime moon: there is")
	assert.Contains(t, run("runtime: moon\n", []string{"CCONVERT_RUNTIME=sun"}, convert...), "--runtime sun: there is")
	assert.Contains(t, run("runtime: moon\n", nil, append(convert, "--runtime", "mars")...), "--runtime mars: there is")
	assert.Contains(t, run("env: [A=1, B]\n", nil, convert...), "--env B: NAME=VALUE expected")
	assert.Contains(t, run("parallel: lots\n", nil, convert...), "config.yaml: parallel: ")
	assert.Contains(t, run("isv-svn: [1]\n", nil, convert...), "one value is expected, not a list")
	assert.Contains(t, run("isv_svn: 1\n", nil, convert...), "config.yaml: there is no flag --isv_svn")
	assert.Contains(t, run("a: 1\na: 2\n", nil, convert...), "config.yaml: ")
	assert.Contains(t, run("runtime: {a: 1}\n", nil, convert...), "a text, a number")
	assert.NotContains(t, run("isv_svn: 1\n", nil, "version"), "config.yaml")
	assert.NotContains(t, run("list-timeout: 1h\nruntime: sim\n", nil, convert...), "config.yaml",
		"another command's flag")
}

// The program is Docker's plug-in and kubectl's by its name, and Docker takes it for one.
func TestPlugins(t *testing.T) {
	dir := t.TempDir()
	plugins := filepath.Join(dir, "cli-plugins")
	require.NoError(t, os.Mkdir(plugins, 0o755))
	for _, link := range []string{filepath.Join(plugins, "docker-cconvert"), filepath.Join(dir, "kubectl-cconvert")} {
		require.NoError(t, os.Symlink(program, link))
	}
	out, err := exec.Command(filepath.Join(dir, "kubectl-cconvert"), "version").Output()
	require.NoError(t, err)
	assert.Contains(t, string(out), "format epoch")
	plugin := filepath.Join(plugins, "docker-cconvert")
	out, err = exec.Command(plugin, "cconvert", "version").Output()
	require.NoError(t, err)
	assert.Contains(t, string(out), "format epoch")
	out, err = exec.Command(plugin, "docker-cli-plugin-metadata").Output()
	require.NoError(t, err)
	assert.Contains(t, string(out), `"SchemaVersion":"0.1.0"`)
	if docker, err := exec.LookPath("docker"); err == nil || os.Getenv("CI") != "" {
		cmd := exec.Command(docker, "cconvert", "version")
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+dir)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		assert.Contains(t, string(out), "format epoch")
	}
}
