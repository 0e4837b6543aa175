//go:build e2e

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/cconvert/cconvert/internal/fixture"
)

// madeParsers is the program of e2e/parsers.
var madeParsers = sync.OnceValues(func() (string, error) {
	program := filepath.Join(project, "bin/e2e/parsers")
	_, err := try("go", "build", "-C", filepath.Join(project, "e2e/parsers"), "-o", program, ".")
	return program, err
})

// parsers reads a directory like deploy/ as those would for whom its files are.
func parsers(dir string, what ...string) error {
	program, err := madeParsers()
	if err == nil {
		_, err = try(program, append([]string{dir}, what...)...)
	}
	return err
}

// Policies for Trustee affirm the image, and its later versions if they may, and nothing else.
func TestReferencePolicies(t *testing.T) {
	registry, dir := "127.0.0.1:"+startRegistry(t), t.TempDir()
	s := &sample{name: "policies", config: v1.Config{Cmd: []string{"/app"}}, layers: [][]fixture.Entry{{
		fixture.Program("app", fixture.ELF("")),
	}}}
	target := registry + "/out:1"
	cconvert(t, s.push(t, registry), "--runtime", "sim", "--isv-prod-id", "259", "--isv-svn", "5", "--to", target)
	write := func(file string, flags ...string) {
		text := command(t, program, append([]string{"reference", target, "--simulated"}, flags...)...)
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
	}
	write("reference.json")
	for _, by := range []string{"enclave", "signer"} {
		write("kbs-"+by+".json", "--format", "kbs", "--by", by)
	}
	require.NoError(t, parsers(dir, "policies"))

	// And that is looked at: one for another's version lets an older one pass.
	file := filepath.Join(dir, "kbs-signer.json")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	changed := strings.Replace(string(text), "isv_svn >= 5", "isv_svn >= 0", 1)
	require.NotEqual(t, string(text), changed)
	require.NoError(t, os.WriteFile(file, []byte(changed), 0o600))
	assert.ErrorContains(t, parsers(dir, "policies"), "an older version")
}

// What is in deploy/ is taken by the parsers of Kubernetes, Helm, KEDA, Tekton, GitHub and systemd; and these look
// closely. The pods of the Helm chart are those of the plain manifests.
func TestDeployFiles(t *testing.T) {
	require.NoError(t, parsers(filepath.Join(project, "deploy")))
	for file, change := range map[string][2]string{
		"kubernetes/worker.yaml":                  {"terminationGracePeriodSeconds:", "terminationGraceSeconds:"},
		"kubernetes/nats.yaml":                    {"serviceName:", "servicename_:"},
		"kubernetes/autoscaler.yaml":              {"maxReplicas: 20", "maxReplicas: many"},
		"helm/cconvert/templates/worker.yaml":     {"terminationGracePeriodSeconds:", "gracePeriodSeconds:"},
		"helm/cconvert/templates/service.yaml":    {"readOnly: true}", "readOnly: false}"},
		"helm/cconvert/templates/autoscaler.yaml": {"consumer: lane-{{ . }}", "consumer: lane"},
		"helm/cconvert/values.schema.json":        {`"additionalProperties": false`, `"additionalProperties": true`},
		"kubernetes/keda.yaml":                    {"minReplicaCount:", "minReplicas:"},
		"tekton/task.yaml":                        {"$(params.IMAGE)", "$(params.NOBODY)"},
		"github/action.yml":                       {"    required: true", "    requird: true"},
		"github/example.yml":                      {"image: registry", "picture: registry"},
	} {
		dir := t.TempDir()
		command(t, "cp", "-r", filepath.Join(project, "deploy"), dir)
		p := filepath.Join(dir, "deploy", file)
		text, err := os.ReadFile(p)
		require.NoError(t, err)
		changed := strings.Replace(string(text), change[0], change[1], 1)
		require.NotEqual(t, string(text), changed, file)
		require.NoError(t, os.WriteFile(p, []byte(changed), 0o600))
		assert.Error(t, parsers(filepath.Join(dir, "deploy")), "%s with %s", file, change[1])
	}
	// The values that the documents show are taken.
	dir := t.TempDir()
	command(t, "cp", "-r", filepath.Join(project, "deploy"), dir)
	shown := regexp.MustCompile(`(?s)\n    # values\.yaml\n(.*?)\n\n`).FindStringSubmatch(read(t, "docs/cluster.md"))
	require.NotNil(t, shown)
	var values strings.Builder
	for line := range strings.Lines(shown[1]) {
		values.WriteString(strings.TrimPrefix(line, "    "))
	}
	file := filepath.Join(dir, "deploy", "values.yaml")
	require.NoError(t, os.WriteFile(file, []byte(values.String()), 0o600))
	require.NoError(t, parsers(filepath.Join(dir, "deploy"), "values"))
	require.NoError(t, os.WriteFile(file, []byte(values.String()+"\nnothing: true\n"), 0o600))
	require.Error(t, parsers(filepath.Join(dir, "deploy"), "values"))
	// KEDA adds what waits in all lanes.
	keda := read(t, "deploy/kubernetes/keda.yaml")
	var lanes []string
	for _, m := range regexp.MustCompile(`name: (lane\d)\n +metadata:\n(?: +.*\n){3} +consumer: lane-(\d)`).
		FindAllStringSubmatch(keda, -1) {
		assert.Equal(t, m[1], "lane"+m[2])
		lanes = append(lanes, m[1])
	}
	assert.Len(t, lanes, strings.Count(keda, "consumer: "))
	assert.Contains(t, keda, "formula: "+strings.Join(lanes, " + ")+"\n")
	// systemd looks whether the program is there.
	text := read(t, "deploy/systemd/cconvert-worker.service")
	unit := filepath.Join(t.TempDir(), "cconvert-worker.service")
	require.NoError(t, os.WriteFile(unit, []byte(strings.ReplaceAll(text, "/usr/local/bin/cconvert", program)), 0o600))
	out, err := exec.Command("systemd-analyze", "verify", unit).CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.NotContains(t, string(out), "Unknown")
	// GitHub's and GitLab's own parsers are with them: the keywords are those of their documentation.
	keywords(t, read(t, "deploy/github/action.yml"), "name", "description", "inputs", "outputs", "runs")
	docs := strings.Split(read(t, "deploy/gitlab/template.yml"), "\n---\n")
	require.Len(t, docs, 2)
	keywords(t, docs[0], "spec")
	var jobs map[string]struct {
		Stage string
		Image struct {
			Name       string
			Entrypoint []string
		}
		Script    []string
		Artifacts struct {
			Paths   []string
			Reports struct{ Dotenv string }
		}
	}
	d := yaml.NewDecoder(strings.NewReader(docs[1]))
	d.KnownFields(true)
	require.NoError(t, d.Decode(&jobs))
	require.Len(t, jobs, 1)
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(project, file))
	require.NoError(t, err)
	return string(text)
}

func keywords(t *testing.T, text string, known ...string) {
	t.Helper()
	var doc map[string]yaml.Node
	require.NoError(t, yaml.Unmarshal([]byte(text), &doc))
	for k := range doc {
		assert.Contains(t, known, k)
	}
}

// fill replaces what stands for a value.
func fill(text string, values map[string]string) string {
	for k, v := range values {
		text = strings.ReplaceAll(text, k, v)
	}
	return text
}

// inPlace is a shell or program with cconvert on its path, and its caches and queue apart.
func inPlace(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"), "XDG_CACHE_HOME="+dir+
		"/.cache", "XDG_STATE_HOME="+dir+"/.state"), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s", stderr.String())
	return strings.TrimSpace(string(out))
}

// The script of each pipeline converts an image and gives its results.
func TestPipelineScripts(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	f := newFleet(t, registry, 1, 1)
	image, runtime := registry+"/base0:0", "sim="+f.runtime
	want := func(t *testing.T, to, ref, digest, mrenclave string) {
		t.Helper()
		assert.Equal(t, digestOf(t, to), digest)
		assert.Equal(t, strings.Split(to, ":")[0]+":"+strings.Split(to, ":")[1]+"@"+digest, ref)
		assert.Regexp(t, "^[0-9a-f]{64}$", mrenclave)
	}
	t.Run("tekton", func(t *testing.T) {
		var task struct {
			Spec struct {
				Results []struct{ Name string }
				Steps   []struct {
					Command, Args []string
					WorkingDir    string `yaml:"workingDir"`
				}
				Workspaces []struct {
					Name      string
					MountPath string `yaml:"mountPath"`
				}
			}
		}
		require.NoError(t, yaml.Unmarshal([]byte(read(t, "deploy/tekton/task.yaml")), &task))
		step, results, to := task.Spec.Steps[0], t.TempDir(), registry+"/tekton:1"
		require.Equal(t, []string{"/cconvert"}, step.Command)
		keys, config := t.TempDir(), t.TempDir()
		command(t, "cp", key, filepath.Join(keys, "enclave-key.pem"))
		var args []string
		for _, a := range step.Args {
			if a == "$(params.ARGS[*])" {
				args = append(args, "--isv-svn", "4", "--manifest="+config+"/manifest.toml")
				continue
			}
			args = append(args, fill(a, map[string]string{
				"$(params.IMAGE)": image, "$(params.TO)": to, "$(params.RUNTIME)": runtime,
				"$(workspaces.key.path)": keys, "/tekton/results": results,
			}))
		}
		at := slices.IndexFunc(task.Spec.Workspaces, func(w struct {
			Name      string
			MountPath string `yaml:"mountPath"`
		}) bool {
			return w.MountPath == step.WorkingDir
		})
		require.GreaterOrEqual(t, at, 0, "the step runs where the lock file is")
		require.NoError(t, os.WriteFile(config+"/manifest.toml", []byte("[sys]\nstack.size = \"8M\"\n"), 0o600))
		inPlace(t, config, nil, program, args...)
		value := func(name string) string {
			b, err := os.ReadFile(filepath.Join(results, name))
			require.NoError(t, err)
			return string(b)
		}
		assert.Equal(t, to, value("IMAGE_URL"))
		want(t, to, strings.TrimSuffix(to, ":1")+"@"+value("IMAGE_DIGEST"), value("IMAGE_DIGEST"), value("MRENCLAVE"))
		assert.Regexp(t, "^[0-9a-f]{64}$", value("MRSIGNER"))
		var declared []string
		for _, r := range task.Spec.Results {
			declared = append(declared, r.Name)
		}
		written, err := os.ReadDir(results)
		require.NoError(t, err)
		for _, f := range written {
			assert.Contains(t, declared, f.Name(), "what is not declared is lost")
		}
	})
	t.Run("github", func(t *testing.T) {
		var action struct {
			Runs struct {
				Steps []struct{ ID, Run string }
			}
		}
		require.NoError(t, yaml.Unmarshal([]byte(read(t, "deploy/github/action.yml")), &action))
		script := action.Runs.Steps[len(action.Runs.Steps)-1].Run
		pem, err := os.ReadFile(key)
		require.NoError(t, err)
		dir, to := t.TempDir(), registry+"/github:1"
		inPlace(t, dir, []string{
			"GITHUB_ACTION_PATH=" + filepath.Join(project, "deploy/github"), "GITHUB_OUTPUT=" + dir + "/output",
			"CCONVERT_SIGNING_KEY=" + string(pem), "CCONVERT_RUNTIME=" + runtime, "IMAGE=" + image, "TO=" + to,
			"ARGS=--isv-svn 4",
		}, "bash", "-eo", "pipefail", "-c", script)
		text, err := os.ReadFile(dir + "/output")
		require.NoError(t, err)
		m := regexp.MustCompile(`^image=(.*)\ndigest=(.*)\nmrenclave=(.*)\n$`).FindStringSubmatch(string(text))
		require.NotNil(t, m, "%s", text)
		want(t, to, m[1], m[2], m[3])
	})
	t.Run("github release", func(t *testing.T) {
		var action struct {
			Runs struct {
				Steps []struct{ If, Run string }
			}
		}
		require.NoError(t, yaml.Unmarshal([]byte(read(t, "deploy/github/action.yml")), &action))
		download := action.Runs.Steps[0]
		require.Equal(t, "inputs.version != ''", download.If)
		dir, name := t.TempDir(), "cconvert-v9-linux-amd64"
		published := filepath.Join(dir, "srv/owner/cconvert/releases/download/v9")
		command(t, "mkdir", "-p", published, filepath.Join(dir, name), filepath.Join(dir, "repo/deploy/github"))
		require.NoError(t,
			os.WriteFile(filepath.Join(dir, name, "cconvert"), []byte("#!/bin/sh\necho released\n"), 0o600))
		archive := filepath.Join(published, name+".tar.gz")
		command(t, "tar", "-C", dir, "-czf", archive, name)
		server := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(dir, "srv"))))
		defer server.Close()
		sum := sha256.Sum256([]byte(hostFile(t, archive)))
		run := func(sum string) error {
			cmd := exec.Command("bash", "-eo", "pipefail", "-c", download.Run)
			cmd.Env = append(os.Environ(), "GITHUB_ACTION_PATH="+filepath.Join(dir, "repo/deploy/github"), "VERSION=v9",
				"SHA256="+sum, "REPOSITORY="+server.URL+"/owner/cconvert")
			return cmd.Run()
		}
		assert.Error(t, run(""))
		assert.Error(t, run(strings.Repeat("0", 64)))
		assert.NoFileExists(t, filepath.Join(dir, "repo/bin/cconvert"))
		require.NoError(t, run(hex.EncodeToString(sum[:])))
		assert.Equal(t, "released", command(t, filepath.Join(dir, "repo/bin/cconvert")))
	})
	t.Run("gitlab", func(t *testing.T) {
		_, text, _ := strings.Cut(read(t, "deploy/gitlab/template.yml"), "\n---\n")
		dir, to := t.TempDir(), registry+"/gitlab:1"
		var jobs map[string]struct{ Script []string }
		require.NoError(t, yaml.Unmarshal([]byte(fill(text, map[string]string{
			"$[[ inputs.image ]]": image, "$[[ inputs.to ]]": to, "$[[ inputs.runtime ]]": runtime,
			"$[[ inputs.args ]]": "--isv-svn 4",
		})), &jobs))
		inPlace(t, dir, []string{"ENCLAVE_KEY=" + key}, "sh", "-ec", strings.Join(jobs["convert"].Script, "\n"))
		out, err := os.ReadFile(filepath.Join(dir, "confidential.env"))
		require.NoError(t, err)
		m := regexp.MustCompile(`^CONFIDENTIAL_IMAGE=(.*)\nCONFIDENTIAL_MRENCLAVE=(.*)\n$`).FindStringSubmatch(string(
			out))
		require.NotNil(t, m, "%s", out)
		want(t, to, m[1], m[1][strings.Index(m[1], "@")+1:], m[2])
	})
}

func digestOf(t *testing.T, ref string) string {
	t.Helper()
	return command(t, "skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://"+ref)
}

// args are those of the first container in a manifest for Kubernetes.
func args(t *testing.T, file string) []string {
	t.Helper()
	var deployment struct {
		Spec struct {
			Template struct {
				Spec struct{ Containers []struct{ Args []string } }
			}
		}
	}
	require.NoError(t, yaml.NewDecoder(strings.NewReader(read(t, file))).Decode(&deployment))
	return deployment.Spec.Template.Spec.Containers[0].Args
}

// The service and the worker work as the manifests for Kubernetes start them, and the worker as the unit does.
func TestDeployedFleet(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	f := newFleet(t, registry, 2, 1)
	_, queue := nats(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/rules.yaml", fmt.Appendf(nil, "version: 1\ndefaults: {options: {runtime: "+
		"'sim=%s'}}\nconvert: [{registry: '%s', allowUnsigned: true}]\n", f.runtime, registry), 0o600))
	require.NoError(t, os.WriteFile(dir+"/secret", []byte(serviceSecret), 0o600))
	require.NoError(t, os.WriteFile(dir+"/password", []byte("of nobody"), 0o600))
	command(t, "cp", key, dir+"/enclave-key.pem")
	listen := "127.0.0.1:" + freePort(t)
	values := map[string]string{
		"nats://nats:4222": queue, "/keys/": dir + "/", "/rules/": dir + "/", "/queue/": dir + "/",
		"/secret/": dir + "/", ":8080": listen,
	}
	start := func(of string, env []string, list ...string) *process {
		for i := range list {
			list[i] = fill(list[i], values)
			if i > 0 && list[i-1] == "--nats-replicas" {
				list[i] = "1" // there is one server
			}
		}
		if list[0] == "worker" {
			list = append(list, "--files", f.dir) // the runtime of this test is a file
		}
		return newProcess(t, func() *exec.Cmd {
			cmd := exec.Command(program, list...)
			cmd.Env = append(f.environment(of), env...)
			return cmd
		})
	}
	start("service", nil, args(t, "deploy/kubernetes/service.yaml")...)
	convert := func(tag string) {
		var id any
		ask := func(method, path, body string) (out map[string]any) {
			eventually(t, "the service answers", func() error {
				req, err := http.NewRequest(method, "http://"+listen+path, strings.NewReader(body))
				require.NoError(t, err)
				req.Header.Set("Authorization", "Bearer "+serviceSecret)
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode >= 300 {
					return fmt.Errorf("%d: %s: %w", resp.StatusCode, b, err)
				}
				return json.Unmarshal(b, &out)
			})
			return out
		}
		id = ask("POST", "/api/v1/conversions", fmt.Sprintf(`{"image":"%s/base0:%s"}`, registry, tag))["id"]
		eventually(t, "it is converted", func() error {
			if c := ask("GET", fmt.Sprint("/api/v1/conversions/", id), ""); c["status"] != "converted" {
				return fmt.Errorf("%v", c)
			}
			return nil
		})
	}
	worker := start("kubernetes", nil, args(t, "deploy/kubernetes/worker.yaml")...)
	convert("0")
	require.NoError(t, worker.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, worker.cmd.Wait(), "a worker ends well")

	unit := read(t, "deploy/systemd/cconvert-worker.service")
	line := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/cconvert (.*)$`).FindStringSubmatch(unit)
	require.NotNil(t, line)
	at := regexp.MustCompile(`(?m)^Environment=(CCONVERT_NATS)=`).FindStringSubmatch(unit)
	require.NotNil(t, at)
	values["%d/"] = dir + "/"
	start("systemd", []string{at[1] + "=" + queue}, strings.Fields(line[1])...)
	convert("1")
}

// Each of the three uses in the README is under ten lines, and works as it stands there.
func TestREADME(t *testing.T) {
	source, other := "127.0.0.1:"+startRegistry(t), "127.0.0.1:"+startRegistry(t)
	f := newFleet(t, source, 1, 1)
	for _, tag := range []string{"1.2", "1.3", "1.4"} {
		command(t, "skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+source+
			"/base0:0", "docker://"+source+"/app:"+tag)
	}
	dir := t.TempDir()
	text := read(t, "README.md")
	use := func(title string) string {
		_, after, ok := strings.Cut(text, "\n**"+title+"**")
		require.True(t, ok, title)
		block := regexp.MustCompile(`\n\n((?:    .*\n)+)`).FindStringSubmatch(after)[1]
		assert.Less(t, strings.Count(block, "\n"), 10, title)
		script := regexp.MustCompile(`(?m)^    `).ReplaceAllString(block, "")
		script = fill(script, map[string]string{"registry.example": source, "other.example": other})
		return inPlace(t, dir, []string{"CCONVERT_RUNTIME=sim=" + f.runtime}, "bash", "-euc", script)
	}
	inPlace(t, dir, nil, program, "keygen", "--out", "enclave-key.pem")
	one := use("One image.")
	assert.Equal(t, source+"/app@"+digestOf(t, source+"/app:1.4-confidential"), one)
	pipeline := use("In a pipeline.")
	assert.Regexp(t, `^`+regexp.QuoteMeta(source)+`/confidential/app@sha256:[0-9a-f]{64} runs as [0-9a-f]{64}$`,
		pipeline)
	many := strings.Fields(use("From registry to registry"))
	assert.Equal(t, []string{
		other + "/app@" + digestOf(t, other+"/app:1.3"), other + "/app@" + digestOf(t, other+"/app:1.4"),
	}, many)
	_, err := try("skopeo", "inspect", "--tls-verify=false", "docker://"+other+"/app:1.2")
	assert.Error(t, err, "the range leaves it out")

	// The reader's own image, on a machine that has no key.
	own := fmt.Sprintf("cconvert-readme-%d", time.Now().UnixNano())
	t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", own, own+"-sim") })
	line := regexp.MustCompile(`(?m)^    (bin/cconvert docker-daemon:app .*)$`).FindStringSubmatch(text)
	require.NotNil(t, line)
	check := regexp.MustCompile(`(?m)^    (bin/cconvert verify docker-daemon:app-sim .*)$`).FindStringSubmatch(text)
	require.NotNil(t, check)
	named := strings.NewReplacer("bin/cconvert", program, "docker-daemon:app", "docker-daemon:"+own,
		"-p 8080:8080 app", own)
	script := named.Replace(line[1])
	command(t, "bash", "-euc", `tar -c -C "$(dirname "$0")" --transform s,cconvert,app, cconvert |
docker import --change 'ENTRYPOINT ["/app", "version"]' - "$1"`, program, own)
	assert.Contains(t, inPlace(t, dir, []string{"HOME=" + t.TempDir()}, "bash", "-euc", script), "cconvert ")
	assert.Contains(t, inPlace(t, dir, nil, "bash", "-euc", named.Replace(check[1])), "accepted: ")
}
