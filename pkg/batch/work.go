package batch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirupsen/logrus"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
)

// WorkOptions say how a worker takes jobs.
type WorkOptions struct {
	// Parallel is how many images are converted at a time.
	Parallel int
	// Attempts is how often an image is tried that fails for reasons that may pass.
	Attempts int
	// FirstPause is the wait before the second attempt. It doubles, up to thirty times itself.
	FirstPause time.Duration
}

// Defaults of WorkOptions.
const (
	DefaultAttempts   = 5
	DefaultFirstPause = 2 * time.Second
)

// maxDeliveries is how often an image is given to a worker: one that is given more often ends the workers.
const maxDeliveries = 20

// idle is how long a worker waits that finds nothing to do.
const idle = 250 * time.Millisecond

// Work converts what is queued until drain ends, and then finishes what it has begun; when ctx ends, it gives that
// back at once.
func (q *Queue) Work(ctx, drain context.Context, w *Worker, o WorkOptions) error {
	consumers := make([]jetstream.Consumer, lanes)
	for lane := range consumers {
		if err := q.try(ctx, func(ctx context.Context) (err error) {
			consumers[lane], err = q.js.Consumer(ctx, streamName, consumerName(lane))
			return err
		}); err != nil {
			return fmt.Errorf("reaching the queue: %w", err)
		}
	}
	stop, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(drain, cancel)()
	var slots sync.WaitGroup
	for slot := range o.Parallel {
		slots.Go(func() { q.slot(ctx, stop, w, o, consumers, slot) })
	}
	slots.Wait()
	return ctx.Err()
}

// slot takes one job after the other, from the lanes in turn.
func (q *Queue) slot(ctx, stop context.Context, w *Worker, o WorkOptions, consumers []jetstream.Consumer, lane int) {
	empty := 0
	for stop.Err() == nil {
		lane = (lane + 1) % len(consumers)
		msg := q.next(consumers[lane])
		if msg == nil {
			if empty++; empty >= len(consumers) {
				empty = 0
				pause(stop, idle)
			}
			continue
		}
		empty = 0
		if stop.Err() != nil {
			_ = msg.Nak()
			return
		}
		q.handle(ctx, w, o, msg)
	}
}

// next takes a job from a lane, nil where there is none, or the queue cannot be reached.
func (q *Queue) next(c jetstream.Consumer) jetstream.Msg {
	batch, err := c.FetchNoWait(1)
	if err != nil {
		return nil
	}
	for msg := range batch.Messages() {
		return msg
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// handle does a job and says what became of it, first in its record and then to the queue: a worker that dies
// between the two leaves a job that is given to another one, who sees that it is done.
func (q *Queue) handle(ctx context.Context, w *Worker, o WorkOptions, msg jetstream.Msg) {
	beat, still := context.WithCancel(ctx)
	defer still()
	go q.heartbeat(beat, msg)
	r, revision, err := q.get(ctx, string(msg.Data()))
	switch {
	case err != nil:
		_ = msg.NakWithDelay(o.FirstPause)
		return
	case r == nil || r.Status.Final():
		q.ack(ctx, msg)
		return
	}
	if meta, err := msg.Metadata(); err == nil && meta.NumDelivered > maxDeliveries+uint64(o.Attempts) {
		r.Status, r.Error, r.Transient = Failed, fmt.Sprintf("it was given to workers %d times, and none has finished it: they may lack memory", meta.NumDelivered-1), false
		q.finish(ctx, r, revision, msg)
		return
	}
	r.Status, r.Worker, r.Updated = Running, w.Name, time.Now().UTC()
	if revision, err = q.update(ctx, r, revision); err != nil {
		_ = msg.NakWithDelay(o.FirstPause) // somebody else is about it
		return
	}
	begin := time.Now()
	out, err := w.Convert(ctx, r.Job)
	r.Seconds = time.Since(begin).Seconds()
	if ctx.Err() != nil {
		_ = msg.Nak()
		return
	}
	r.Attempts++
	if err == nil {
		r.Status, r.Error, r.Transient = out.Status, "", false
		r.Identity, r.Ref, r.Digest, r.MREnclave, r.MRSigner, r.Findings = out.Identity, out.Ref, out.Digest, out.MREnclave, out.MRSigner, out.Findings
		q.finish(ctx, r, revision, msg)
		return
	}
	logrus.Debugf("%s: %v", r.Job.Source, err)
	r.Error, r.Transient = err.Error(), image.Transient(err) || errors.Is(err, image.ErrMoved)
	if !r.Transient || r.Attempts >= o.Attempts {
		if r.Status = Failed; r.Job.Found && errors.Is(err, convert.ErrConverted) {
			r.Status = Skipped
		}
		q.finish(ctx, r, revision, msg)
		return
	}
	r.Status, r.Updated = Retrying, time.Now().UTC()
	if _, err := q.update(ctx, r, revision); err == nil {
		_ = msg.NakWithDelay(wait(o.FirstPause, r.Attempts))
	}
}

// wait is how long to wait after so many attempts.
func wait(first time.Duration, attempts int) time.Duration {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = first, 30*first, 2
	d := b.NextBackOff()
	for range attempts - 1 {
		d = b.NextBackOff()
	}
	return d
}

// heartbeat tells the queue that a job is being worked on.
func (q *Queue) heartbeat(ctx context.Context, msg jetstream.Msg) {
	t := time.NewTicker(q.lease / 4)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			_ = msg.InProgress()
		}
	}
}

// finish notes what is final. Where another worker was quicker, its record stays: the outcome is the same.
func (q *Queue) finish(ctx context.Context, r *Record, revision uint64, msg jetstream.Msg) {
	r.Updated = time.Now().UTC()
	for {
		_, err := q.update(ctx, r, revision)
		if err == nil {
			q.ack(ctx, msg)
			return
		}
		now, at, getErr := q.get(ctx, r.Batch+"."+r.ID)
		switch {
		case getErr != nil || now == nil:
			return // the job is given to somebody again
		case now.Status.Final():
			q.ack(ctx, msg)
			return
		case at == revision:
			return // the queue refuses it for another reason
		}
		revision = at
	}
}

// update replaces the record of a revision, and no other.
func (q *Queue) update(ctx context.Context, r *Record, revision uint64) (uint64, error) {
	b, err := marshal(r)
	if err != nil {
		return 0, err
	}
	err = q.try(ctx, func(ctx context.Context) (err error) {
		revision, err = q.records.Update(ctx, r.Batch+"."+r.ID, b, revision)
		return err
	})
	return revision, err
}

// ack takes a job out of the queue, and waits until that is so.
func (q *Queue) ack(ctx context.Context, msg jetstream.Msg) {
	once, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_ = msg.DoubleAck(once) // otherwise it comes again, and is seen to be done
}
