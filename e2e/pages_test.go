//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// screenshots names a directory that gets the screenshots of docs/pages.
const screenshots = "CCONVERT_SCREENSHOTS"

// browse starts a browser, for a minute.
func browse(t *testing.T) context.Context {
	t.Helper()
	browser, quit := chromedp.NewExecAllocator(context.Background(),
		append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"), chromedp.NoSandbox)...)
	t.Cleanup(quit)
	page, leave := chromedp.NewContext(browser)
	t.Cleanup(leave)
	page, cancel := context.WithTimeout(page, time.Minute)
	t.Cleanup(cancel)
	return page
}

// misfits returns what does not fit on the page: what makes it wider than the window, and text in so narrow a column
// that a line has a few characters.
const misfits = `(() => {
  const bad = [];
  if (document.documentElement.scrollWidth > innerWidth) {
    bad.push("it is " + document.documentElement.scrollWidth + " pixels wide");
  }
  for (const e of document.querySelectorAll("td, th, p, h1, time")) {
    const range = document.createRange();
    range.selectNodeContents(e);
    const lines = new Set([...range.getClientRects()].map((r) => Math.round(r.top / 8))).size;
    const text = e.innerText.trim();
    if (lines > 2 && text.length / lines < 8) bad.push(lines + " lines: " + text);
  }
  return bad;
})()`

// fits looks at the page that a browser shows, at the widths of a phone, a tablet and a desk, light and dark.
func fits(t *testing.T, page context.Context, name string, then func(width int64)) {
	t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{390, 768, 1440} {
			media := chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
				_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
					Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
				})
				return err
			})
			require.NoError(t, chromedp.Do(page, chromedp.EmulateViewport(width, 900), media))
			bad, err := chromedp.Run(page, chromedp.Evaluate[[]string](misfits))
			require.NoError(t, err)
			assert.Empty(t, bad, "%s at %d pixels", name, width)
			background, err := chromedp.Run(page, chromedp.Evaluate[bool](
				`getComputedStyle(document.body).backgroundColor.match(/\d+/)[0] < 100`))
			require.NoError(t, err)
			assert.Equal(t, scheme == "dark", background, "%s, %s", name, scheme)
			if then != nil {
				then(width)
			}
			if dir := os.Getenv(screenshots); dir != "" {
				shot, err := chromedp.Run(page, chromedp.CaptureScreenshot())
				require.NoError(t, err)
				file := filepath.Join(dir, fmt.Sprintf("%s-%d-%s.png", name, width, scheme))
				require.NoError(t, os.WriteFile(file, shot, 0o600))
			}
		}
	}
}

// reportFits looks at the page of an image: on wide windows each of its files takes one line.
func reportFits(t *testing.T, file string) {
	t.Helper()
	page := browse(t)
	require.NoError(t, chromedp.Do(page, chromedp.Navigate("file://"+file)))
	fits(t, page, "report", func(width int64) {
		if width < 700 {
			return
		}
		tall, err := chromedp.Run(page, chromedp.Evaluate[int](
			`[...document.querySelectorAll("#files tbody tr")]
				.filter((r) => r.getBoundingClientRect().height > 32).length`))
		require.NoError(t, err)
		assert.Zero(t, tall, "files that take more than a line at %d pixels", width)
	})
}

// The live page, with conversions of all kinds: failures come first, digests are short and can be copied whole, and
// what is shown can be chosen by status and by words.
func TestLivePage(t *testing.T) {
	var list []map[string]any
	counts := map[string]int{}
	for i, status := range []string{"converted", "unchanged", "queued", "running", "failed", "retrying", "skipped"} {
		sum := fmt.Sprintf("%x", sha256.Sum256([]byte(status)))
		digest := "sha256:" + sum
		c := map[string]any{
			"id": fmt.Sprint(i), "status": status, "updated": time.Now().Add(-time.Duration(i) * time.Hour),
			"source": fmt.Sprintf("registry.example/a-team-with-a-long-name/service-%d:1.4.2@%s", i, digest),
			"target": fmt.Sprintf("registry.example/confidential/service-%d:1.4.2", i),
		}
		switch status {
		case "converted", "unchanged":
			c["ref"] = fmt.Sprintf("registry.example/confidential/service-%d@%s", i, digest)
			c["mr_enclave"] = sum
		case "failed":
			c["error"] = "nothing was stored because of what was found: shared-memory"
		}
		list, counts[status] = append(list, c), 1
	}
	text, err := json.Marshal(map[string]any{"counts": counts, "conversions": list})
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(filepath.Join(project, "internal/service/page"))))
	mux.HandleFunc("/api/v1/conversions", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(text) })
	server := httptest.NewServer(mux)
	defer server.Close()
	page := browse(t)
	require.NoError(t, chromedp.Do(page, chromedp.Navigate(server.URL+"/")))
	evaluate := func(script string) string {
		out, err := chromedp.Run(page, chromedp.Evaluate[string](script))
		require.NoError(t, err, script)
		return out
	}
	_, err = chromedp.Run(page, chromedp.WaitVisible(chromedp.CSS("#conversions .failed")))
	require.NoError(t, err)
	fits(t, page, "live", nil)
	shown := `[...document.querySelectorAll("#conversions tr")].filter((r) => !r.hidden)
		.map((r) => r.dataset.status).join()`
	assert.Equal(t, "failed,retrying,running,queued,converted,unchanged,skipped", evaluate(shown))
	first := evaluate(`document.querySelector("#conversions tr").innerText`)
	assert.Contains(t, first, "registry.example/a-team-with-a-long-name/service-4:1.4.2")
	assert.Contains(t, first, "4 hours ago")
	assert.Contains(t, first, "shared-memory")
	assert.Contains(t, evaluate(`document.querySelector("[data-status=converted]").innerText`), "service-0:1.4.2",
		"a tag says more than a digest")
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte("failed")))
	assert.Contains(t, first, sum[:12])
	assert.NotContains(t, first, sum)
	assert.Equal(t, fmt.Sprintf("%x", sha256.Sum256([]byte("converted"))), evaluate(`let copied = "";
		document.execCommand = () => {
		copied = document.querySelector("textarea").value; return true; };
		Object.defineProperty(navigator, "clipboard", {value: undefined});
		document.querySelector("[data-status=converted] td[data-name=MRENCLAVE] button").click(); copied`))
	assert.Equal(t, "queued", evaluate(`document.querySelector("#counts .queued").click(); `+shown))
	assert.Equal(t, "converted", evaluate(`document.querySelector("#counts .queued").click();
		document.getElementById("filter").value = "SERVICE-0";
		document.getElementById("filter").dispatchEvent(new Event("input")); `+shown))
	assert.Empty(t, evaluate(`document.getElementById("filter").value = "none such";
		document.getElementById("filter").dispatchEvent(new Event("input")); `+shown))
	assert.Equal(t, "Nothing has these words.", evaluate(`document.getElementById("nothing").innerText`))
}
