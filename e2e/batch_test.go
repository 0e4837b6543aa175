//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A batch that is killed at ten random points, as by power failures, goes on each time where it was: no finished image
// is done again.
func TestBatchIsResumed(t *testing.T) {
	source, target := "127.0.0.1:"+startRegistry(t), "127.0.0.1:"+startRegistry(t)
	images, bases := fleetSize(t)
	f := newFleet(t, source, images, bases)
	// A few at a time, so that ten deaths fall into the work.
	flags := []string{"--key", key, "--parallel", "2"}
	batch := func(args ...string) *exec.Cmd {
		cmd := exec.Command(program, append(append([]string{"batch"}, args...), flags...)...)
		cmd.Env = f.environment("resumed")
		return cmd
	}
	results := func() map[string]record {
		cmd := exec.Command(program, "batch", "results", "--json")
		cmd.Env = f.environment("resumed")
		text, err := cmd.Output()
		require.NoError(t, err)
		file := filepath.Join(f.dir, "results.json")
		require.NoError(t, os.WriteFile(file, text, 0o600))
		return f.records(file)
	}
	final := func(r record) bool { return r.Status == "converted" || r.Status == "unchanged" || r.Status == "failed" }

	finished := map[string]record{}
	deaths := 0
	for ; deaths < 10; deaths++ {
		cmd := batch("--resume")
		if deaths == 0 {
			cmd = batch(f.plan(target))
		}
		// An image that is in hand at one death after the other is given up in the end. So most deaths come after
		// something was finished, however slow the machine is.
		progress := len(finished) + 1 + rand.N(2) // what was finished is said again
		if deaths == 3 || deaths == 7 {
			progress = 0
		}
		killAfter(t, cmd, progress, rand.N(200*time.Millisecond))
		now := results()
		for tag, before := range finished {
			require.Equal(t, before, now[tag], "what was finished is as it was")
		}
		for tag, r := range now {
			if final(r) {
				finished[tag] = r
			}
		}
	}
	require.Less(t, len(finished), images, "the last death came before the end")
	out, err := batch("--resume", "--output-json", filepath.Join(f.dir, "end.json")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	end := f.records(filepath.Join(f.dir, "end.json"))
	require.Len(t, end, images)
	for tag, r := range end {
		assert.Contains(t, []string{"converted", "unchanged"}, r.Status, tag)
		if before, ok := finished[tag]; ok {
			assert.Equal(t, before, r, "what was finished is as it was")
		}
	}
	t.Logf("%d deaths, %d of %d images finished before the last", deaths, len(finished), images)
}

// killAfter starts a batch and kills it a while after it has said of so many images what became of them.
func killAfter(t *testing.T, cmd *exec.Cmd, progress int, while time.Duration) {
	t.Helper()
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var said strings.Builder
	for lines := bufio.NewScanner(io.TeeReader(stderr, &said)); progress > 0 && lines.Scan(); {
		if strings.Contains(lines.Text(), "MRENCLAVE") {
			progress--
		}
	}
	time.Sleep(while)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait(), "it ended by itself")
	require.Zero(t, progress, "%s", &said)
}

// serve starts the service and returns its address.
func serve(t *testing.T, f *fleet, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = f.environment("serve")
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		assert.NoError(t, cmd.Wait(), "it ends well when it is told to")
	})
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if _, address, ok := strings.Cut(lines.Text(), "listening on "); ok {
			go func() { _, _ = io.Copy(io.Discard, stderr) }()
			return strings.Trim(address, `"`)
		}
	}
	t.Fatal("the service does not start")
	return ""
}

const serviceSecret = "the secret of this test"

// The page shows a conversion going from queued to done, in a browser. Meanwhile a client that sends its request a byte
// at a time keeps nobody else waiting.
func TestServicePage(t *testing.T) {
	source, target := "127.0.0.1:"+startRegistry(t), "127.0.0.1:"+startRegistry(t)
	f := newFleet(t, source, 1, 1)
	rules := filepath.Join(f.dir, "rules.yaml")
	require.NoError(t, os.WriteFile(rules, fmt.Appendf(nil, "version: 1\ndefaults:\n  target: %q\n  options: "+
		"{runtime: \"sim=%s\"}\nconvert:\n- {repository: %s/base0, allowUnsigned: true}\n",
		target+"/{{.Repository}}:{{.Tag}}", f.runtime, source), 0o600))
	secret := filepath.Join(f.dir, "secret")
	require.NoError(t, os.WriteFile(secret, []byte(serviceSecret+"\n"), 0o600))
	_, url := nats(t)
	address := serve(t, f, rules, "--secret-file", secret, "--nats", url)

	slow, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer slow.Close()
	slowEnd := make(chan time.Duration, 1)
	go func() {
		begin := time.Now()
		fmt.Fprintf(slow, "POST /api/v1/conversions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"+
			"Content-Length: 1000\r\n\r\n", serviceSecret)
		go func() {
			for range 100 {
				if _, err := slow.Write([]byte("{")); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		_, _ = io.Copy(io.Discard, slow)
		slowEnd <- time.Since(begin)
	}()

	ask := func(method, path, body string) map[string]any {
		req, err := http.NewRequest(method, "http://"+address+path, strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+serviceSecret)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		require.Less(t, resp.StatusCode, 300)
		var out map[string]any
		require.NoError(t, json.NewDecoder(resp.Body).Decode(&out))
		return out
	}
	id := ask("POST", "/api/v1/conversions", fmt.Sprintf(`{"image":"%s/base0:0"}`, source))["id"]

	page := browse(t)
	row := fmt.Sprintf(`#conversions tr[data-id="%s"]`, id)
	text := func(state, selector string) string {
		_, err := chromedp.Run(page, chromedp.WaitVisible(chromedp.CSS(state)))
		require.NoError(t, err, state)
		out, err := chromedp.Run(page, chromedp.Text(chromedp.CSS(selector)))
		require.NoError(t, err, selector)
		return out
	}
	_, err = chromedp.Run(page,
		chromedp.Navigate("http://any:"+strings.ReplaceAll(serviceSecret, " ", "%20")+"@"+address+"/"))
	require.NoError(t, err)
	assert.Contains(t, text(row+" .queued", row), source+"/base0")
	worker := newProcess(t, func() *exec.Cmd {
		cmd := exec.Command(program, "worker", "--nats", url, "--key", key, "--files", f.dir)
		cmd.Env = f.environment("worker")
		return cmd
	})
	shown := text(row+" .converted", row)
	done, err := chromedp.Run(page, chromedp.OuterHTML(chromedp.CSS(row)))
	require.NoError(t, err)
	c := ask("GET", fmt.Sprint("/api/v1/conversions/", id), "")
	assert.Len(t, c["mr_enclave"], 64)
	assert.Contains(t, done, fmt.Sprintf("title=%q", c["mr_enclave"]))
	assert.Contains(t, done, fmt.Sprintf("title=%q", c["ref"]))
	assert.NotContains(t, shown, c["mr_enclave"], "digests are short")
	assert.Regexp(t, "now|seconds? ago", shown)
	assert.Contains(t, text("#counts .converted", "#counts .converted"), "1")

	// A worker that is told to end finishes what it has begun, and ends well.
	require.NoError(t, worker.cmd.Process.Signal(os.Interrupt))
	require.NoError(t, worker.cmd.Wait())
	select {
	case took := <-slowEnd:
		assert.Less(t, took, 30*time.Second, "a slow request is ended")
	case <-time.After(30 * time.Second):
		t.Error("a slow request goes on for ever")
	}
}
