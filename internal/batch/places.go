package batch

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirupsen/logrus"

	"github.com/cconvert/cconvert/internal/queue"
)

// source hands a worker its jobs, from the lanes in turn. One slot asks at a time.
//
// A job has one of the worker's places while it gets on. One that only waits for a registry has none, so that a
// registry that hardly answers, be it the source's or the target's, keeps nobody else from being served.
type source struct {
	mu        sync.Mutex
	consumers []jetstream.Consumer
	lane      int
	trouble   string // that was told of
	most      int    // jobs that get on at a time
	tasks     map[*task]bool
	suspects  map[string]bool // registries that kept most of their jobs waiting, and have done none since
	patience  time.Duration   // see WorkOptions
	alone     *task           // that wants to be the only one
	notAlone  time.Time       // until when nobody may want that, after it has failed
}

// task is a job that was taken.
type task struct {
	msg   jetstream.Msg
	lease time.Duration
	begun time.Time
	hosts []string // the registries of its source, target and runtime
	meter meter
}

// slots returns how many jobs may have been begun at a time, those included that only wait.
func slots(most int) int { return most + max(3, 2*most) }

// done returns the task's place. A registry of whose jobs one is done is trusted again.
func (s *source) done(t *task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tasks, t)
	if s.alone == t {
		s.alone = nil
	}
	if !t.meter.stalled(time.Now()) {
		for _, host := range t.hosts {
			delete(s.suspects, host)
		}
	}
}

// next waits for a job; nil if stop has ended.
func (s *source) next(stop context.Context) *task {
	for stop.Err() == nil {
		if t := s.take(); t != nil {
			return t
		}
		pause(stop, idle)
	}
	return nil
}

// maxPassed is how many jobs of a lane are put back at a time because they would wait for a registry.
const maxPassed = 1024

// take asks each lane for a job that need not wait for a registry. Several registries share a lane: jobs that would
// wait are put back, so that they keep nobody else from being served.
func (s *source) take() *task {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, working := time.Now(), 0
	waiting, begun := map[string]int{}, map[string]int{}
	allLong, busy := true, map[string]bool{}
	for t := range s.tasks {
		for _, host := range t.hosts {
			begun[host]++
		}
		if t.meter.stalled(now) {
			waiting[t.meter.heldUpBy(t.hosts)]++
		} else {
			working++
			busy[t.meter.heldUpBy(t.hosts)] = true
			allLong = allLong && now.Sub(t.begun) > s.patience
		}
	}
	extra := working == s.most && allLong
	if s.alone != nil && !s.alone.meter.stalled(now) || working >= s.most && !extra || len(s.tasks) >= slots(s.most) {
		return nil
	}
	for host, n := range waiting {
		if 2*n >= begun[host] {
			s.suspects[host] = true
		}
	}
	full := func(host string) bool { return s.suspects[host] && begun[host] > 0 }
	for range s.consumers {
		s.lane = (s.lane + 1) % len(s.consumers)
		c := s.consumers[s.lane]
		for range maxPassed {
			msg := s.fetch(c)
			if msg == nil {
				break
			}
			t := &task{msg: msg, lease: c.CachedInfo().Config.AckWait, begun: now, hosts: queue.HostsIn(msg.Data())}
			if !slices.ContainsFunc(t.hosts, full) && !(extra && slices.ContainsFunc(t.hosts, func(h string) bool {
				return busy[h]
			})) {
				s.tasks[t] = true
				return t
			}
			_ = msg.NakWithDelay(aside(msg))
		}
	}
	return nil
}

// aside is how long a job is put back: the longer the more often it was, and the more jobs are behind it, so that many
// thousands leave a way through.
func aside(msg jetstream.Msg) time.Duration {
	m, err := msg.Metadata()
	if err != nil {
		return time.Minute
	}
	return asideFor(m.NumDelivered, m.NumPending)
}

// A worker passes several jobs in passed, and puts none back for longer than maxAside.
const (
	passed   = 2 * time.Millisecond
	maxAside = 15 * time.Minute
)

func asideFor(deliveries, behind uint64) time.Duration {
	often := min(time.Minute, 2*time.Second<<min(deliveries, 5))
	return min(maxAside, max(often, passed*time.Duration(min(behind, uint64(maxAside/passed)))))
}

// fetch takes a job from a lane; nil if there is none, or the queue cannot be reached, which is told once.
func (s *source) fetch(c jetstream.Consumer) jetstream.Msg {
	batch, err := c.FetchNoWait(1)
	if err == nil {
		for msg := range batch.Messages() {
			s.trouble = ""
			return msg
		}
		err = batch.Error()
	}
	if err != nil && s.trouble != err.Error() {
		s.trouble = err.Error()
		logrus.Warnf("taking from the queue: %v", err)
	}
	return nil
}

// untilAlone is how long a task waits until it is the only one. Meanwhile none is begun.
const untilAlone = time.Minute

// waitAlone waits until a task is the only one of this worker, and keeps others from being begun until it is done. If
// that cannot be, it returns when to try again.
func (s *source) waitAlone(ctx context.Context, t *task) (again time.Duration) {
	s.mu.Lock()
	now, before := time.Now(), s.notAlone
	if now.Before(before) { // others are begun in between
		s.mu.Unlock()
		return before.Sub(now)
	}
	taken := s.alone != nil
	if !taken {
		s.alone = t
	}
	s.mu.Unlock()
	if taken {
		return time.Second
	}
	for end := time.Now().Add(untilAlone); time.Now().Before(end) && ctx.Err() == nil; pause(ctx, idle) {
		s.mu.Lock()
		only := true
		for other := range s.tasks { // those that only wait for a registry may stay
			only = only && (other == t || other.meter.stalled(time.Now()))
		}
		s.mu.Unlock()
		if only {
			return 0
		}
	}
	s.mu.Lock()
	s.alone, s.notAlone = nil, time.Now().Add(untilAlone)
	s.mu.Unlock()
	return 5 * untilAlone
}

// A job is held up once it has waited so much longer than it worked, without so many bytes being moved.
const (
	heldUpAfter = 5 * time.Second
	movedOn     = 1 << 20
)

// meter measures how a job gets on. It is an image.Watcher.
type meter struct {
	mu     sync.Mutex
	at     time.Time
	waited time.Duration // more than worked, until at
	moved  int           // since they were last enough
	hosts  map[string]int
	last   string // host that was waited for
}

func (m *meter) Waiting(host string) func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.look(time.Now())
	if m.hosts == nil {
		m.hosts = map[string]int{}
	}
	m.hosts[host]++
	m.last = host
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.look(time.Now())
		if m.hosts[host]--; m.hosts[host] == 0 {
			delete(m.hosts, host)
		}
	}
}

func (m *meter) Moved(bytes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.moved += bytes; m.moved >= movedOn {
		m.moved, m.waited, m.at = 0, 0, time.Now()
	}
}

// look counts the time since it was last called.
func (m *meter) look(now time.Time) {
	since := now.Sub(m.at)
	switch {
	case m.at.IsZero():
	case len(m.hosts) > 0:
		m.waited = min(m.waited+since, 2*heldUpAfter)
	default:
		m.waited = max(m.waited-since, 0)
	}
	m.at = now
}

func (m *meter) stalled(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.look(now)
	return m.waited >= heldUpAfter
}

// heldUpBy returns the first of some hosts that is waited for, or else the one that was last waited for, which can be
// another one.
func (m *meter) heldUpBy(hosts []string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, host := range hosts {
		if m.hosts[host] > 0 {
			return host
		}
	}
	return m.last
}
