//go:build e2e

package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// row is what the table of figures says of an image.
type row struct {
	name                 string
	files, all, auto     int
	added                int
	predicted, simulated float64
	direct               string
}

// Every image of the corpus converts with no flags, answers, stops, and opens nothing that is not listed.
func TestCorpus(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	var rows []row
	runtimes := map[string]bool{}
	for _, s := range corpus(t) {
		t.Run(s.name, func(t *testing.T) {
			source := s.push(t, registry)
			target := registry + "/confidential/" + s.name + ":1"
			facts := filepath.Join(t.TempDir(), "facts.json")
			cconvert(t, source, "--runtime", "sim", "--to", target, "--output-json", facts)
			golden(t, s, source, target)
			command(t, program, "verify", target, "--signer-key", key, "--source", source, "--allow-simulated")
			assert.Contains(t, command(t, program, "rebuild", target, "--source", source), "the same: sha256:")
			r := figures(t, s.name, source)
			r.added = added(t, facts)
			command(t, "docker", "pull", "-q", target)
			t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", target) })
			r.simulated = s.run(t, target, nil, nil)
			untouched(t, s, target)
			if os.Getenv(gramineDir) != "" {
				r.direct, r.added = s.runReal(t, source, runtimes)
			}
			rows = append(rows, r)
		})
	}
	table(t, rows)
	if os.Getenv(gramineDir) != "" {
		assert.Len(t, runtimes, 1, "the runtime is one blob for all images")
	}
}

// Images that share bases convert with no flags, without a warning that is not true, and answer; or are refused, with
// the reason; or are known not to run.
func TestFamilies(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	runtimes, bases := map[string]bool{}, map[string]bool{}
	var rows []row
	all := t
	for _, s := range families(t) {
		t.Run(s.name, func(t *testing.T) {
			source := s.push(t, registry)
			target, facts := registry+"/confidential/"+s.name+":1", filepath.Join(t.TempDir(), "facts.json")
			out, err := exec.Command(program, source, "--runtime", "sim", "--to", target, "--output-json", facts,
				"--key", key).CombinedOutput()
			if s.refused != "" {
				assert.Error(t, err)
				assert.Contains(t, string(out), "nothing was stored because of what was found: "+s.refused)
				return
			}
			require.NoError(t, err, "%s", out)
			assert.Equal(t, append(s.warns, "simulated"), warnings(t, facts))
			command(t, "docker", "pull", "-q", target)
			owner := t
			if !bases[s.packages] { // the first image of a family stays until the end, and with it the base
				bases[s.packages], owner = true, all
			}
			owner.Cleanup(func() { _, _ = try("docker", "rmi", "-f", target) })
			simulated := s.run(t, target, nil, nil)
			if os.Getenv(gramineDir) == "" {
				return
			}
			r := figures(t, s.name, source)
			r.added, r.simulated = added(t, facts), simulated
			if s.limit == "" {
				r.direct, r.added = s.runReal(t, source, runtimes)
			} else {
				s.failsReal(t, source)
			}
			rows = append(rows, r)
		})
	}
	table(t, rows)
}

// docs/images.md has what is known of the corpus.
func TestImagesDocument(t *testing.T) {
	var b strings.Builder
	b.WriteString("| image | what it is | outcome |\n|---|---|---|\n")
	runs, warned := 0, 0
	for _, s := range append(corpus(t), families(t)...) {
		outcome := "runs"
		switch {
		case s.refused != "":
			outcome = "refused: [`" + s.refused + "`](findings.md)"
		case s.limit != "":
			outcome = "does not run: " + s.limit
		default:
			runs++
			if len(s.warns) > 0 {
				warned++
				outcome = "runs, with the warning `" + strings.Join(s.warns, "`, `") + "`, which is true"
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", s.name,
			cmp.Or(s.what, strings.ReplaceAll(s.packages, ",", ", "), "a program without packages"), outcome)
	}
	fmt.Fprintf(&b, "\n%d of them run. None has a warning that is not true of it.\n", runs)
	findings, err := os.ReadFile(filepath.Join(project, "docs/findings.md"))
	require.NoError(t, err)
	assert.Contains(t, string(findings), fmt.Sprintf("Of %d that run, %d have a warning", runs, warned))

	const begin, end = "<!-- the corpus: written by TestImagesDocument -->\n", "<!-- end of the corpus -->\n"
	file := filepath.Join(project, "docs/images.md")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(text), begin)
	require.True(t, ok)
	_, after, ok := strings.Cut(rest, end)
	require.True(t, ok)
	want := before + begin + b.String() + end + after
	if os.Getenv("UPDATE_GOLDEN") != "" {
		require.NoError(t, os.WriteFile(file, []byte(want), 0o644))
		return
	}
	assert.Equal(t, want, string(text), "UPDATE_GOLDEN=1 writes it")
}

// warnings reads the codes of the warnings of a conversion, each once.
func warnings(t *testing.T, facts string) (codes []string) {
	t.Helper()
	b, err := os.ReadFile(facts)
	require.NoError(t, err)
	var r struct {
		Findings []struct{ Code, Severity string }
	}
	require.NoError(t, json.Unmarshal(b, &r))
	for _, f := range r.Findings {
		if f.Severity == "warning" {
			codes = append(codes, f.Code)
		}
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// added reads how many bytes a conversion added, compressed.
func added(t *testing.T, facts string) int {
	t.Helper()
	b, err := os.ReadFile(facts)
	require.NoError(t, err)
	var r struct {
		Output struct {
			AddedBytes int `json:"added_bytes"`
		}
	}
	require.NoError(t, json.Unmarshal(b, &r))
	return r.Output.AddedBytes
}

// run starts an image, waits for its answer and stops it; it returns the seconds until the answer.
func (s *sample) run(t *testing.T, image string, options, args []string) float64 {
	t.Helper()
	c := start(t, image, options, args)
	begin := time.Now()
	eventually(t, "the image answers", func() error { return s.ask(s.port) })
	seconds := time.Since(begin).Seconds()
	if s.kill {
		command(t, "docker", "rm", "-f", "-v", c.name)
	} else {
		c.stop()
	}
	return seconds
}

// figures are those that analyze gives.
func figures(t *testing.T, name, source string) row {
	t.Helper()
	var a struct {
		Files    int
		Policies map[string]struct {
			Entries      int
			StartSeconds float64 `json:"start_seconds"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(command(t, program, "analyze", "--json", "--runtime", "sim", source)), &a))
	auto := a.Policies["auto"]
	return row{
		name: name, files: a.Files, all: a.Policies["all"].Entries, auto: auto.Entries, predicted: auto.StartSeconds,
		direct: "-",
	}
}

// table prints the figures.
func table(t *testing.T, rows []row) {
	t.Helper()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "image\tfiles\tall\tauto\tadded\tpredicted\tsim answers\tdirect answers\t")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%.1f MB\t%.2f s\t%.1f s\t%s\t\n", r.name, r.files, r.all, r.auto,
			float64(r.added)/1e6, r.predicted, r.simulated, r.direct)
	}
	w.Flush()
	t.Logf("entries of the list under each policy; added bytes compressed, with the simulation or, where there is "+
		"one, with Gramine; seconds that the runtime is predicted to read the list, and from the container's start to "+
		"the first answer\n%s", b.String())
}

// reviewed are the images whose launch specification is kept to be reviewed by eye.
var reviewed = []string{"redis", "nginx", "python", "java", "script", "distroless"}

// golden compares how an image starts with what was reviewed: everything but digests, sizes of files and
// ports.
func golden(t *testing.T, s *sample, source, converted string) {
	t.Helper()
	if !slices.Contains(reviewed, s.name) {
		return
	}
	file := filepath.Join("testdata/golden", s.name+".txt")
	var a struct {
		Entrypoint, Program, Profile, LibC, Trust string
		Argv, Packages                            []string
		UID, GID                                  int
		EnclaveSize                               uint64 `json:"enclave_size"`
		SizeReason                                string `json:"size_reason"`
		ProfileReason                             string `json:"profile_reason"`
		MaxThreads                                int    `json:"max_threads"`
		Writable                                  []struct{ Type, Path string }
		Findings                                  []struct{ Code, Severity, Path string }
	}
	require.NoError(t, json.Unmarshal([]byte(command(t, program, "analyze", "--json", "--runtime", "sim", source)), &a))
	var b strings.Builder
	fmt.Fprintf(&b, "entrypoint  %s\nprogram     %s\narguments   %q\nidentity    %d:%d\nprofile     %s: %s\nC library "+
		"  %s\nenclave     %d MB (%s), %d threads\ntrust       %s\n",
		a.Entrypoint, a.Program, a.Argv, a.UID, a.GID, a.Profile, a.ProfileReason, a.LibC, a.EnclaveSize>>20,
		a.SizeReason, a.MaxThreads, a.Trust)
	for _, m := range a.Writable {
		fmt.Fprintf(&b, "%-11s %s\n", m.Type, m.Path)
	}
	var c struct {
		Program struct {
			Env     map[string]any
			WorkDir string
			Mounts  []struct{ Type, Path, URI string }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(command(t, program, "inspect", "--json", converted)), &c))
	fmt.Fprintf(&b, "directory   %s\n", c.Program.WorkDir)
	for _, name := range slices.Sorted(maps.Keys(c.Program.Env)) {
		fmt.Fprintf(&b, "variable    %s=%v\n", name, c.Program.Env[name])
	}
	for _, m := range c.Program.Mounts {
		if m.Type == "" {
			fmt.Fprintf(&b, "shows       %s at %s\n", strings.TrimPrefix(m.URI, "file:"), m.Path)
		}
	}
	for _, p := range a.Packages {
		fmt.Fprintf(&b, "package     %s\n", p)
	}
	for _, f := range a.Findings {
		fmt.Fprintf(&b, "%-11s %s %s\n", f.Severity, f.Code, f.Path)
	}
	got := strings.ReplaceAll(b.String(), `"`+s.port+`"`, `"PORT"`)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, string(want), got)
}

// The image of the figures: five servers in one, of which one is started.
func TestMixedImage(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	s := &sample{name: "mixed", packages: mixed, config: v1.Config{Cmd: []string{"redis-server"}}}
	source, facts := s.push(t, registry), filepath.Join(t.TempDir(), "facts.json")
	cconvert(t, source, "--runtime", "sim", "--output-json", facts)
	r := figures(t, s.name, source)
	r.added = added(t, facts)
	table(t, []row{r})
	assert.Greater(t, r.files, 9000)
	// Five programs that the author asked for, of which four are never started; 254 entries are converters of character
	// sets, which Gramine's list does not have.
	assert.LessOrEqual(t, r.auto, 3000)
}

// What cannot run is said, and nothing is stored.
func TestPostgreSQL(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	s := &sample{name: "postgres", packages: databases, config: v1.Config{
		Entrypoint: []string{"/usr/lib/postgresql/15/bin/postgres", "-D", "/var/lib/postgresql/15/main"},
		User:       "postgres", StopSignal: "SIGINT",
	}}
	source := s.push(t, registry)
	out, err := exec.Command(program, source, "--runtime", "sim", "--key", key, "--to", registry+
		"/out:1").CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(out), "[shared-memory]")
	assert.Contains(t, string(out), "PostgreSQL's processes work on memory that they share")
	assert.Contains(t, string(out), "nothing was stored because of what was found: shared-memory")
	_, err = try("skopeo", "inspect", "--tls-verify=false", "docker://"+registry+"/out:1")
	require.Error(t, err)
	cconvert(t, source, "--runtime", "sim", "--ignore", "shared-memory", "--to", registry+"/out:1")
}

// From registry to registry and to a daemon, read back by other tools.
func TestOtherTools(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	dir := t.TempDir()
	source := planted(t, registry)
	target := registry + "/confidential/python:1"
	facts := filepath.Join(dir, "facts.json")
	out := cconvert(t, source, "--runtime", "sim", "--to", target, "--output-json", facts)
	_, digest, _ := strings.Cut(out, "@")

	// The same again by another name of the registry, with other jobs, elsewhere.
	again := cconvert(t, strings.Replace(source, "127.0.0.1", "localhost", 1), "--runtime", "sim", "-j", "1", "--to",
		"oci:"+dir+"/python:1")
	assert.True(t, strings.HasSuffix(again, "@"+digest), "%s, not %s", again, digest)

	var remote struct{ Digest string }
	require.NoError(t,
		json.Unmarshal([]byte(command(t, "skopeo", "inspect", "--tls-verify=false", "docker://"+target)), &remote))
	assert.Equal(t, digest, remote.Digest)
	layout := filepath.Join(dir, "copy")
	command(t, "skopeo", "copy", "-q", "--src-tls-verify=false", "docker://"+target, "oci:"+layout+":1")
	bundle := filepath.Join(dir, "bundle")
	command(t, "umoci", "unpack", "--image", layout+":1", bundle)
	info, err := os.Stat(filepath.Join(bundle, "rootfs/cconvert/app/entrypoint.sig"))
	require.NoError(t, err)
	assert.EqualValues(t, 1808, info.Size())

	var described struct {
		MREnclave string `json:"mr_enclave"`
	}
	b, err := os.ReadFile(facts)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &described))
	assert.Contains(t, command(t, program, "inspect", "--json", target), described.MREnclave)

	image := "cconvert-e2e/python:1"
	id := cconvert(t, source, "--runtime", "sim", "--to", "docker-daemon:"+image)
	t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", image) })
	assert.Equal(t, id, command(t, "docker", "image", "inspect", "--format", "{{.Id}}", image))
}

// planted builds an image that says what it finds in /planted, with Docker, and returns its name.
func planted(t *testing.T, registry string) string {
	t.Helper()
	source := registry + "/src/python:1"
	buildImage(t, source, debian(t, "python3"), `USER nobody
CMD ["python3", "-c", "import os, signal, sys, time\n\
signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))\ntry:\n  planted = open('/planted').read()\n\
except OSError as e:\n  planted = e.strerror\n\
print('hello from', os.getuid(), planted, sys.argv, flush=True)\ntime.sleep(600)"]`)
	return source
}

// A file that is not in the manifest cannot be read, a file that was changed stops the start.
func TestSimulationProtects(t *testing.T) {
	source := planted(t, "127.0.0.1:"+startRegistry(t))
	image := "cconvert-e2e/protect:1"
	cconvert(t, "docker-daemon:"+source, "--runtime", "sim", "--to", "docker-daemon:"+image)
	t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", image) })
	dir := t.TempDir()
	file := filepath.Join(dir, "planted")
	require.NoError(t, os.WriteFile(file, []byte("planted"), 0o644))

	plain := start(t, source, []string{"-v", file + ":/planted:ro"}, nil)
	eventually(t, "without confinement the file is read", func() error { return has(plain.logs(), "65534 planted") })
	confined := start(t, image, []string{"-v", file + ":/planted:ro"}, []string{"ignored"})
	eventually(t, "with confinement it is not", func() error {
		return has(confined.logs(), "65534 Permission denied ['-c']")
	})
	assert.Contains(t, confined.logs(), `the arguments ["ignored"] are ignored`)

	for path, change := range map[string]string{
		"/etc/os-release":                       "/etc/os-release was changed",
		"/cconvert/app/entrypoint.manifest.sgx": "was changed after signing",
		"/cconvert/app/entrypoint.sig":          "SIGSTRUCT is not valid",
	} {
		changed := filepath.Join(dir, "changed")
		// Copied from a container that never ran: one that ends meanwhile has no files for a moment.
		name := command(t, "docker", "create", image)
		t.Cleanup(func() { _, _ = try("docker", "rm", "-f", name) })
		command(t, "docker", "cp", "-L", name+":"+path, changed)
		b, err := os.ReadFile(changed)
		require.NoError(t, err)
		b[len(b)/2] ^= 1
		require.NoError(t, os.WriteFile(changed, b, 0o644))
		require.NoError(t, os.Chmod(changed, 0o644))
		tampered := start(t, image, []string{"-v", changed + ":" + path + ":ro"}, nil)
		assert.Equal(t, "4", tampered.wait(), "%s: %s", path, tampered.logs())
		eventually(t, "what was changed is told", func() error { return has(tampered.logs(), change) })
	}
}

// A disk that fills up leaves no image, and is said.
func TestFullDisk(t *testing.T) {
	source := planted(t, "127.0.0.1:"+startRegistry(t))
	disk := t.TempDir()
	command(t, "mount", "-t", "tmpfs", "-o", "size=20m", "none", disk)
	t.Cleanup(func() { _, _ = try("umount", "-l", disk) })
	for _, to := range []string{"oci:" + disk + "/layout:1", "docker-archive:" + disk + "/a.tar:a:1"} {
		_, err := try(program, source, "--runtime", "sim", "--key", key, "--to", to)
		require.Error(t, err)
		assert.ErrorContains(t, err, "no space left on device")
		assert.ErrorContains(t, err, "the disk is full")
		assert.ErrorContains(t, err, "exit status 1")
		_, err = try(program, "inspect", to)
		assert.Error(t, err, "no image is there")
	}
	left, err := filepath.Glob(disk + "/*.tar*")
	require.NoError(t, err)
	assert.Empty(t, left)
}

func has(s, want string) error {
	if !strings.Contains(s, want) {
		return fmt.Errorf("%q is not in %q", want, s)
	}
	return nil
}
