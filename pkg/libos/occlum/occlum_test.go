package occlum_test

import (
	"debug/elf"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/occlum"
	facts "github.com/cconvert/cconvert/pkg/rootfs/elf"
)

func export(
	t *testing.T, config v1.Config, o launch.Options, programs map[string]facts.Facts, entries ...Entry,
) (map[string][]byte, []finding.Finding) {
	t.Helper()
	if config.Cmd == nil {
		config.Cmd = []string{"/app"}
	}
	text, err := json.Marshal(v1.ConfigFile{Config: config})
	require.NoError(t, err)
	if !slices.ContainsFunc(entries, func(e Entry) bool { return e.Header.Name == "app" }) {
		entries = append(entries, Program("app", ELF("")))
	}
	tree := Tree(t, o.Keep(), programs, entries...)
	spec, err := launch.Examine(t.Context(), tree).Build(t.Context(), text, o)
	require.NoError(t, err)
	files, findings, err := occlum.Export(spec, tree, libos.EnclaveOptions{ISVProdID: 3, ISVSVN: 4, Debug: true})
	require.NoError(t, err)
	return files, findings
}

// What the launch specification says is in Occlum.json by the names that Occlum has for it.
func TestConfig(t *testing.T) {
	files, _ := export(t, v1.Config{Env: []string{"A=1"}}, launch.Options{
		Memory: 1 << 30, Threads: 24, Tmpfs: []string{"/scratch"}, AllowedFiles: []string{"/shared"},
	}, nil, Dir("shared"))
	var c struct {
		Limits struct {
			User    string `json:"user_space_size"`
			Threads int    `json:"max_num_of_threads"`
		} `json:"resource_limits"`
		EntryPoints []string `json:"entry_points"`
		Env         struct{ Default, Untrusted []string }
		Metadata    struct {
			Product    int `json:"product_id"`
			Version    int `json:"version_number"`
			Debuggable bool
		}
		Mount []struct{ Target, Type, Source string }
	}
	require.NoError(t, json.Unmarshal(files[occlum.ConfigFile], &c))
	assert.Equal(t, "1024MB", c.Limits.User)
	assert.Greater(t, c.Limits.Threads, 24)
	assert.Equal(t, []string{"/app"}, c.EntryPoints)
	assert.Contains(t, c.Env.Default, "A=1")
	assert.Equal(t, 3, c.Metadata.Product)
	assert.Equal(t, 4, c.Metadata.Version)
	assert.True(t, c.Metadata.Debuggable)
	types := map[string]string{}
	for _, m := range c.Mount {
		types[m.Target] = m.Type
	}
	assert.Equal(t, "unionfs", types["/"])
	assert.Equal(t, "ramfs", types["/scratch"])
	assert.Equal(t, "hostfs", types["/shared"])
	files, _ = export(t, v1.Config{}, launch.Options{}, nil)
	assert.NotContains(t, string(files[occlum.ConfigFile]), "hostfs", "the host's files are in no enclave unasked")
}

// Links that lead to files or to directories of the list are in it, others are not.
func TestLinks(t *testing.T) {
	files, _ := export(t, v1.Config{}, launch.Options{}, nil, Symlink("lib", "usr/lib"), File("usr/lib/x", "x"),
		Symlink("to/nowhere", "/none"), Symlink("etc/x", "../lib/x"), Symlink("lib64", "a/lib64"),
		Symlink("a/lib64/ld.so", "/lib/x"))
	var b struct {
		Targets []struct {
			Target string
			Links  []struct{ Src, Linkname string } `json:"createlinks"`
		}
	}
	require.NoError(t, yaml.Unmarshal(files[occlum.BOMFile], &b))
	var links []string
	for _, target := range b.Targets {
		for _, l := range target.Links {
			links = append(links, target.Target+" "+l.Linkname+" "+l.Src)
		}
	}
	assert.ElementsMatch(t, []string{"/ lib usr/lib", "/etc x ../lib/x", "/ lib64 a/lib64", "/a/lib64 ld.so /lib/x"},
		links)
}

// fixed is a program that is linked to a fixed address: ET_EXEC at e_type (gABI, "ELF Header").
func fixed() string {
	b := []byte(ELF(""))
	b[16] = byte(elf.ET_EXEC)
	return string(b)
}

// What Occlum cannot do is said before.
func TestPreflight(t *testing.T) {
	program := func(change func(*facts.Facts)) map[string]facts.Facts {
		f := facts.Facts{
			Dynamic: true, Interp: "/ld.so",
		}
		change(&f)
		return map[string]facts.Facts{"/app": f}
	}
	for want, c := range map[string]struct {
		config  v1.Config
		facts   map[string]facts.Facts
		options launch.Options
		entries []Entry
		error   bool
	}{
		finding.OcclumFork:     {facts: program(func(f *facts.Facts) { f.Imports = []string{"fork"} }), error: true},
		finding.OcclumProgram:  {entries: []Entry{Program("app", fixed())}, error: true},
		finding.OcclumSyscalls: {facts: program(func(f *facts.Facts) { f.Go = true })},
		finding.OcclumLibC:     {facts: program(func(f *facts.Facts) { f.NeedsGLIBC = "2.36" }), error: true},
		finding.OcclumShebang: {config: v1.Config{Cmd: []string{"/start"}}, error: true, entries: []Entry{
			Program("start", "#!/bin/sh -e\n/app\n"), Program("bin/sh", ELF("")),
		}},
		finding.OcclumUser:       {config: v1.Config{User: "5:6"}},
		finding.OcclumArguments:  {config: v1.Config{Cmd: []string{"/app", "x"}}},
		finding.OcclumVolume:     {options: launch.Options{Encrypted: []launch.Mount{{Path: "/data"}}}},
		finding.OcclumUnmeasured: {},
	} {
		_, found := export(t, c.config, c.options, c.facts, append(c.entries, Program("ld.so", ELF("")))...)
		i := slices.IndexFunc(found, func(f finding.Finding) bool { return f.Code == want })
		if assert.GreaterOrEqual(t, i, 0, want) {
			assert.Equal(t, c.error, found[i].Severity == finding.Error, want)
		}
	}
	spawns := program(func(f *facts.Facts) { f.Imports = []string{"fork", "posix_spawn"} })
	_, found := export(t, v1.Config{}, launch.Options{}, spawns, Program("ld.so", ELF("")))
	for _, f := range found {
		assert.False(t, strings.HasPrefix(f.Code, "occlum") && f.Code != finding.OcclumUnmeasured, f.Code)
	}
}
