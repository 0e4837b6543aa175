package batch

import (
	"context"
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cconvert/cconvert/internal/health"
	"github.com/cconvert/cconvert/internal/queue"
)

// Monitor logs and counts what a worker does, and answers /healthz, /readyz and /metrics.
type Monitor struct {
	http.Handler

	registry *prometheus.Registry
	ended    *prometheus.CounterVec
	seconds  prometheus.Histogram
	running  prometheus.Gauge
}

// NewMonitor makes one of a worker that is ready if the queue is.
func NewMonitor(ready func(context.Context) error) *Monitor {
	m := &Monitor{
		registry: prometheus.NewRegistry(),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cconvert_worker_attempts_total", Help: "Attempts at conversions that ended, by what became of them.",
		}, []string{"status"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "cconvert_worker_conversion_seconds", Help: "How long the conversions took that succeeded.",
			Buckets: []float64{0.1, 0.3, 1, 3, 10, 30, 100, 300},
		}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cconvert_worker_running", Help: "Conversions that this worker is at.",
		}),
	}
	m.registry.MustRegister(m.ended, m.seconds, m.running)
	for _, s := range []queue.Status{queue.Converted, queue.Unchanged, queue.Skipped, queue.Retrying, queue.Failed} {
		m.ended.WithLabelValues(string(s))
	}
	m.Handler = health.Handler(m.registry, func(ctx context.Context) error {
		if ready(ctx) != nil {
			return errors.New("the queue does not answer")
		}
		return nil
	})
	return m
}

// Begun is told of an attempt that begins, and Ended of what became of it.
func (m *Monitor) Begun() { m.running.Inc() }

// Ended is told of an attempt that ended. One that was given back, or to another worker, has no status of its own.
func (m *Monitor) Ended(r *queue.Record) {
	m.running.Dec()
	switch r.Status {
	case queue.Queued, queue.Running:
		return
	case queue.Converted:
		m.seconds.Observe(r.Seconds)
	}
	m.ended.WithLabelValues(string(r.Status)).Inc()
	r.Log()
}
