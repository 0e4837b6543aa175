package batch_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sirupsen/logrus"
	logged "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/finding"
)

// Whoever watches over a worker sees what it did, in numbers and in the log, with the facts as fields.
func TestMonitor(t *testing.T) {
	hook := logged.NewGlobal()
	defer logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	b := newBench(t)
	b.push(2)
	q := b.open()
	answers := error(nil)
	m := batch.NewMonitor(func(context.Context) error { return answers })
	b.options.Monitor = m
	jobs := b.jobs(2)
	jobs[1].Source += "-missing"
	records := b.work(q, b.submit(q, jobs))
	require.Equal(t, map[queue.Status]int{queue.Converted: 1, queue.Failed: 1}, statuses(records))

	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	_, text := get("/metrics")
	for _, line := range []string{
		`cconvert_worker_attempts_total{status="converted"} 1`, `cconvert_worker_attempts_total{status="failed"} 1`,
		`cconvert_worker_attempts_total{status="unchanged"} 0`, "cconvert_worker_conversion_seconds_count 1",
		"cconvert_worker_running 0",
	} {
		assert.Contains(t, text, line+"\n")
	}
	code, _ := get("/healthz")
	assert.Equal(t, http.StatusOK, code)
	code, _ = get("/readyz")
	assert.Equal(t, http.StatusOK, code)
	answers = errors.New("nats: connection closed")
	code, _ = get("/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, code)
	code, _ = get("/healthz")
	assert.Equal(t, http.StatusOK, code, "to start it anew does not help")

	seen := map[logrus.Level]logrus.Fields{}
	for _, e := range hook.AllEntries() {
		if e.Data["source"] != nil {
			seen[e.Level] = e.Data
		}
	}
	for _, r := range records {
		if r.Status == queue.Converted {
			assert.Equal(t, logrus.Fields{
				"source": r.Job.Source, "target": r.Job.Target, "digest": r.Digest, "mr_enclave": r.MREnclave.String(),
				"seconds": r.Seconds, "attempts": 1, "warnings": []string{finding.Simulated},
			}, seen[logrus.InfoLevel])
		} else {
			assert.Equal(t, r.Job.Source, seen[logrus.ErrorLevel]["source"])
		}
	}
}
