package manifest

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/tools/txtar"

	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/profile"
)

const minimal = `
loader.entrypoint.uri = "file:/libsysdb.so"
libos.entrypoint = "/app"
`

func TestCheckAgreesWithGramine(t *testing.T) {
	cases, err := txtar.ParseFile("testdata/checker.txtar")
	require.NoError(t, err)
	require.Greater(t, len(cases.Files), 60)
	for _, c := range cases.Files {
		text := string(c.Data)
		if !strings.HasSuffix(c.Name, "/whole") {
			text += minimal
			if !strings.Contains(text, "fs.mounts") {
				text += "fs.mounts = []\n"
			}
		}
		err := Check(c.Name, []byte(text))
		if strings.HasPrefix(c.Name, "ok/") {
			assert.NoError(t, err, c.Name)
		} else {
			assert.Error(t, err, c.Name)
		}
	}
}

func TestOverlayErrorsNamePlaceAndNearestKey(t *testing.T) {
	for text, want := range map[string]string{
		"[sgx]\nmax_thread = 4\n":        `sgx.max_thread: this key does not exist; the nearest is "max_threads"`,
		"[sgx]\n\nmax_threads = \"4\"\n": "o.toml:3: sgx.max_threads: it must be an integer, not a string",
		"[[fs.mounts]]\ntype = \"tmpfs\"\npath = \"/a\"\n" +
			"[[fs.mounts]]\ntyp = \"tmpfs\"\npath = \"/b\"\n": "o.toml:5: fs.mounts[1].typ: this key does not exist",
		"sgx.trusted_files = [\n" +
			" \"file:/a\",\n { uri = 1 },\n]\n": "o.toml:3: sgx.trusted_files[1].uri: it must be a string",
		"sgx.trusted_files = [\n {uri = \"file:/a\", sha256 = \"ff\"}" +
			"]\n": "o.toml:2: sgx.trusted_files[0].sha256: it must be 64 hexadecimal digits",
		"a = \n": "o.toml:1: syntax",
		"loader.log_level = \"loud\"" +
			"\n": `o.toml:1: loader.log_level: "loud" is not allowed: it must be one of none, error`,
		"lodaer.argv = []\n":                `the nearest is "loader"`,
		"fs.mounts = [{ path = \"/a\" }]\n": "fs.mounts[0].uri: this key is missing",
	} {
		_, err := ParseOverlay("o.toml", []byte(text))
		assert.ErrorContains(t, err, want, text)
		var at *KeyError
		assert.ErrorAs(t, err, &at)
	}
}

var enclaveOptions = libos.EnclaveOptions{
	Debug: true, ISVProdID: 1, ISVSVN: 2, Attestation: "dcap", LogLevel: "error",
}

func spec() *launch.Spec {
	return &launch.Spec{
		Process: process.Process{
			Entrypoint: "/usr/bin/app",
			Argv:       []string{"app", "two words", "quote\" back\\slash\nnew\tline \x01\x7f é"},
			WorkDir:    "/srv", UID: 33, GID: 34, Env: []process.EnvVar{
				{Name: "A.b c", Value: "1"}, {Name: "TZ", PassThrough: true}, {Name: "", Value: "odd"},
			},
		},
		Mounts: []launch.Mount{
			{Type: launch.Bind, Path: "/lib", Target: "/usr/lib"}, {Type: launch.Tmpfs, Path: "/tmp"},
			{Type: launch.Encrypted, Path: "/data", Target: "/data", Key: launch.SealingKey},
		},
		Trusted: []launch.TrustedFile{
			{Path: "/usr/bin/app", SHA256: [32]byte{1}}, {Path: "/etc/na\nme", SHA256: [32]byte{2}},
		},
		Allowed: []string{"/host"},
		Memory:  1 << 30, Threads: 8,
	}
}

func render(t *testing.T, m *Manifest) string {
	t.Helper()
	m.Section("loader")["entrypoint"] = Table{"uri": "file:/libsysdb.so"}
	m.AddMounts()
	m.DropRepeated()
	require.NoError(t, m.Check())
	b, err := m.Render()
	require.NoError(t, err)
	require.NoError(t, Check("rendered", b), "what is written can be read back")
	return string(b)
}

func TestRenderGolden(t *testing.T) {
	m, err := New(spec(), enclaveOptions)
	require.NoError(t, err)
	got := render(t, m)
	const file = "testdata/golden.manifest"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, string(want), got)
	for range 20 { // no order of a map shows
		m, err := New(spec(), enclaveOptions)
		require.NoError(t, err)
		require.Equal(t, got, render(t, m))
	}
}

// A program asks how large its stack may grow: as in a container, if the enclave has room for it.
func TestStack(t *testing.T) {
	enough := Table{"size": "8M"}
	for size, want := range map[uint64]any{64 << 20: nil, 128 << 20: enough, 4 << 30: enough} {
		s := spec()
		s.Memory = size
		m, err := New(s, enclaveOptions)
		require.NoError(t, err)
		assert.Equal(t, want, m.Section("sys")["stack"], size)
	}
	s := spec()
	s.Memory = 1 << 30
	stack := map[string]any{"stack": map[string]any{"size": "16M"}}
	s.Profile = &profile.Profile{Manifest: map[string]any{"sys": stack}}
	m, err := New(s, enclaveOptions)
	require.NoError(t, err)
	assert.Equal(t, Table{"size": "16M"}, m.Section("sys")["stack"], "the profile's is the one that counts")
}

func TestMerge(t *testing.T) {
	m, err := New(spec(), enclaveOptions)
	require.NoError(t, err)
	o, err := ParseOverlay("o.toml", []byte(`
loader.argv = ["other"]
loader.env.NEW = "1"
sgx.enclave_size = "2G"
sgx.allowed_files = ["file:/more"]
sgx.trusted_files = [
  { uri = "file:/usr/bin/app", sha256 = "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF" },
  "file:/needs-digest",
]
fs.mounts = [{ type = "tmpfs", path = "/lib" }, { path = "/a", uri = "file:/b" }]
sys.stack.size = "1M"
`))
	require.NoError(t, err)
	assert.Equal(t, []TrustedFile{
		{"file:/usr/bin/app", [32]byte(bytes.Repeat([]byte{0xff}, 32)), true, byOverlay},
		{URI: "file:/needs-digest", Why: byOverlay},
	}, o.Trusted)
	m.Merge(o)
	got := render(t, m)
	for _, want := range []string{
		`argv = ["other"]`, `env.NEW = "1"`, `env."A.b c" = "1"`, `enclave_size = "2G"`, `stack.size = "1M"`,
		"allowed_files = [\n  \"file:/host\",\n  \"file:/more\",\n]", `{ path = "/lib", type = "tmpfs" }`,
		`{ path = "/a", uri = "file:/b" }`,
		`{ uri = "file:/usr/bin/app", sha256 = "` + strings.Repeat("ff", 32) + `" }`,
	} {
		assert.Contains(t, got, want)
	}
	assert.NotContains(t, got, `uri = "file:/usr/lib"`, "the user's mount replaces the one at its path")
	assert.Less(t, strings.Index(got, `path = "/a"`), strings.Index(got, `path = "/data"`),
		"parents first, after the user's were added")
}

func TestWeaknesses(t *testing.T) {
	m, err := New(spec(), enclaveOptions)
	require.NoError(t, err)
	o, err := ParseOverlay("o.toml", []byte(`
loader.insecure__use_host_env = true
loader.insecure__disable_aslr = false
loader.log_level = "all"
sgx.file_check_policy = "allow_all_but_log"
sgx.seal_key = { flags_mask = "0xfffffffffffffffd", misc_mask = "0xFFFFFFFF" }
sys.insecure__allow_eventfd = true
fs.insecure__keys.k = "00"
fs.mounts = [{ type = "untrusted_shm", path = "/shm", uri = "dev:/shm" }]
`))
	require.NoError(t, err)
	m.Merge(o)
	assert.Equal(t, []string{
		"fs.insecure__keys.k", "fs.mounts (untrusted_shm)", "loader.env.TZ", "loader.insecure__use_host_env",
		"loader.log_level",
		"sgx.allowed_files", "sgx.debug", "sgx.file_check_policy", "sgx.seal_key.flags_mask",
		"sys.insecure__allow_eventfd",
	}, m.Weaknesses())
}

func BenchmarkRender(b *testing.B) {
	s := spec()
	for i := range 10_000 {
		s.Trusted = append(s.Trusted,
			launch.TrustedFile{Path: fmt.Sprintf("/usr/share/app/%d/file-%d", i/50, i), SHA256: [32]byte{byte(i)}})
	}
	for b.Loop() {
		m, err := New(s, enclaveOptions)
		if err != nil {
			b.Fatal(err)
		}
		text, err := m.Render()
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(text)))
	}
}

// A text of very many keys is refused at once; one of very many files is not.
func TestManyKeys(t *testing.T) {
	repeat := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	for what, text := range map[string]string{
		"in a table":          "[loader.env]\n" + repeat(80_000, "K%d = '1'\n"),
		"at the top":          repeat(80_000, "K%d = '1'\n"),
		"arrays of tables":    repeat(80_000, "[[sys.k%d]]\n"),
		"tables":              repeat(80_000, "[sys.k%d]\n"),
		"dotted":              repeat(80_000, "sys.k%d.a = 1\n"),
		"in one key":          "[" + strings.Repeat("a.", 100_000) + "a]\n",
		"on one line":         "loader.env = {" + strings.TrimSuffix(repeat(80_000, "K%d = '1', "), ", ") + "}\n",
		"in an array":         "a = [{" + strings.TrimSuffix(repeat(80_000, "K%d = '1', "), ", ") + "}]\n",
		"in an array's table": "[[a]]\n" + repeat(80_000, "K%d = '1'\n"),
	} {
		_, err := ParseOverlay("x", []byte(text))
		assert.Error(t, err, what)
		_, err = Parse([]byte(text))
		if what == "in one key" {
			assert.ErrorContains(t, err, "more than 16 parts")
			continue
		}
		assert.ErrorContains(t, err, "more than 10000 keys", what)
	}
	for what, text := range map[string]string{
		"empty tables":     "[sgx]\na = [" + strings.Repeat("{},", 1_000_000) + "]\n",
		"numbers":          "a = [" + strings.Repeat("1,", 1_000_000) + "]\n",
		"parts of a key":   strings.Repeat("a.", 1_000_000) + "a = 1\n",
		"tables of a list": strings.Repeat("[[a]]\n", 1_000_000),
		"behind a string":  "a = '''\n,''' # ,\nb = \"\\\",\"\nc = [" + strings.Repeat("{},", 1_000_000) + "]\n",
	} {
		_, err := Parse([]byte(text))
		assert.ErrorContains(t, err, "less text than such lists must have", what)
	}
	literal, escaped := strings.Repeat(",.[{=", 100_000), strings.Repeat("\\\",", 100_000)
	_, err := Parse([]byte("[loader]\nargv = ['" + literal + "', \"" + escaped + "\"] # " +
		strings.Repeat(",", 500_000) + "\n"))
	assert.NoError(t, err, "what is quoted is text")
	_, err = ParseOverlay("x", []byte("[loader.env]\n"+repeat(5_000, "K%d = '1'\n")))
	assert.NoError(t, err)
	_, err = ParseOverlay("x", []byte("[sys]\n"+repeat(9_000, "k%d = 1\n")))
	assert.Less(t, len(err.Error()), 10_000, "some of the mistakes are told")
	_, err = Parse([]byte(repeat(50_000, "[[sgx.trusted_files]]\nuri = 'file:/%d'\nsha256 = 'x'\n")))
	assert.NoError(t, err)
	_, err = Parse([]byte("[sgx]\ntrusted_files = [" + repeat(50_000, "{uri = 'file:/%d', sha256 = 'x'},\n") + "]\n"))
	assert.NoError(t, err)
}
