package service

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cconvert/cconvert/internal/queue"
)

// metrics are what Prometheus asks for.
type metrics struct {
	s        *Service
	registry *prometheus.Registry
	refused  *prometheus.CounterVec
	images   *prometheus.Desc
	seconds  *prometheus.Desc
}

func newMetrics(s *Service) *metrics {
	m := &metrics{
		s: s, registry: prometheus.NewRegistry(),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cconvert_requests_refused_total", Help: "Requests that were refused, by HTTP's code.",
		}, []string{"code"}),
		images: prometheus.NewDesc("cconvert_conversions", "Conversions that were asked for, by their status.",
			[]string{"status"}, nil),
		seconds: prometheus.NewDesc("cconvert_conversion_seconds", "How long the conversions took that are done.", nil,
			nil),
	}
	m.registry.MustRegister(m, m.refused)
	return m
}

// Describe is of prometheus.Collector.
func (m *metrics) Describe(c chan<- *prometheus.Desc) { c <- m.images; c <- m.seconds }

// Collect is of prometheus.Collector.
func (m *metrics) Collect(c chan<- prometheus.Metric) {
	count := map[queue.Status]int{}
	buckets := map[float64]uint64{0.1: 0, 0.3: 0, 1: 0, 3: 0, 10: 0, 30: 0, 100: 0}
	sum, n := 0.0, uint64(0)
	for _, r := range m.s.all() {
		count[r.Status]++
		if r.Status != queue.Converted {
			continue
		}
		sum, n = sum+r.Seconds, n+1
		for limit := range buckets {
			if r.Seconds <= limit {
				buckets[limit]++
			}
		}
	}
	for _, status := range []queue.Status{
		queue.Queued, queue.Running, queue.Retrying, queue.Converted, queue.Unchanged, queue.Skipped, queue.Failed,
	} {
		c <- prometheus.MustNewConstMetric(m.images, prometheus.GaugeValue, float64(count[status]), string(status))
	}
	c <- prometheus.MustNewConstHistogram(m.seconds, n, sum, buckets)
}
