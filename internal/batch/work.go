// Package batch works on a queue of conversions: many images, side by side, in one process or in many.
package batch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirupsen/logrus"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/image"
)

// WorkOptions say how a worker takes jobs.
type WorkOptions struct {
	// Batch is the one whose jobs are taken; empty: those of all. Only a queue in this process can be asked for one.
	Batch string
	// Parallel is how many images are converted at a time. Those that only wait for a registry are not counted, up to
	// twice as many.
	Parallel int
	// Timeout is how long one attempt at an image may take; 0: DefaultTimeout.
	Timeout time.Duration
	// Attempts is how often an image is tried that fails for reasons that may pass.
	Attempts int
	// Patience is how long all images that are being converted may take before one more is begun, of registries that
	// none of them waits for: one may move just enough not to be taken for silent. 0: DefaultPatience.
	Patience time.Duration
	// FirstPause is the wait before the second attempt. It doubles, up to thirty times itself.
	FirstPause time.Duration
	// Monitor sees what the worker does; nil: nobody does.
	Monitor *Monitor
}

// Defaults of WorkOptions.
const (
	DefaultAttempts   = 5
	DefaultFirstPause = 2 * time.Second
	DefaultTimeout    = time.Hour
	DefaultPatience   = time.Minute
)

// A worker that ends leaves all that it was at, and only one of these may be why. An image that was left often is
// converted alone, and if workers end at it then, it is the image.
const (
	maxLeft  = 3
	maxAlone = 3
)

// idle is how long a worker waits that finds nothing to do.
const idle = 250 * time.Millisecond

// working is a queue that is worked on.
type working struct{ *queue.Queue }

// Work converts what is queued until drain ends, and then finishes what it has begun; when ctx ends, it gives that
// back at once.
func (w *Worker) Work(ctx, drain context.Context, on *queue.Queue, o WorkOptions) error {
	q := working{on}
	consumers, err := q.Consumers(ctx, o.Batch)
	if err != nil {
		return err
	}
	o.Timeout = cmp.Or(o.Timeout, DefaultTimeout)
	source := &source{
		consumers: consumers, most: o.Parallel, patience: cmp.Or(o.Patience, DefaultPatience), tasks: map[*task]bool{},
		suspects: map[string]bool{},
	}
	stop, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(drain, func() { cancel(nil) })()
	defer context.AfterFunc(q.Closed, func() { cancel(context.Cause(q.Closed)) })()
	var all sync.WaitGroup
	for range slots(o.Parallel) {
		all.Go(func() {
			if err := q.slot(ctx, stop, w, o, source); err != nil {
				cancel(err) // the others finish what they have begun
			}
		})
	}
	all.Wait()
	if err := context.Cause(stop); errors.Is(err, queue.ErrSigner) || errors.Is(err, queue.ErrClosed) {
		return err
	}
	return ctx.Err()
}

// slot does one job after the other. The error is ErrSigner if others sign for this queue now.
func (q working) slot(ctx, stop context.Context, w *Worker, o WorkOptions, from *source) error {
	for {
		t := from.next(stop)
		if t == nil {
			return nil
		}
		err := q.Claimed(ctx)
		if errors.Is(err, queue.ErrSigner) {
			_ = t.msg.Nak()
			return err
		}
		if err != nil {
			_ = t.msg.NakWithDelay(o.FirstPause)
		} else {
			q.handle(ctx, w, o, from, t)
		}
		from.done(t)
	}
}

// mayPass reports whether what an attempt failed of may pass.
func mayPass(err error) bool {
	return image.Transient(err) || image.Unreachable(err) || errors.Is(err, image.ErrMoved)
}

// failure is what becomes of a job that failed for good: what was found in a list and nobody could convert is skipped.
func failure(j queue.Job, err error) queue.Status {
	if j.Found && !j.Passing && Unsuitable(err) {
		return queue.Skipped
	}
	return queue.Failed
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
func (q working) handle(ctx context.Context, w *Worker, o WorkOptions, from *source, t *task) {
	msg := t.msg
	beat, still := context.WithCancel(ctx)
	defer still()
	go heartbeat(beat, msg, t.lease/4)
	key, request, _ := strings.Cut(string(msg.Data()), " ")
	request, _, _ = strings.Cut(request, " ")
	r, revision, err := q.Get(ctx, key)
	switch {
	case errors.Is(err, queue.ErrRecord), errors.Is(err, jetstream.ErrInvalidKey):
		logrus.Errorf("%s: %v", key, err)
		q.ack(ctx, msg)
		return
	case err != nil:
		_ = msg.NakWithDelay(o.FirstPause)
		return
	case r == nil || r.Status.Final() || strconv.Itoa(r.Request) != request:
		q.ack(ctx, msg) // it is done; where it was asked for again, there is another message
		return
	}
	wanted := func(ctx context.Context) error {
		over, err := q.Superseded(ctx, r)
		if over {
			err = errSuperseded
		}
		return err
	}
	switch err := wanted(ctx); {
	case errors.Is(err, errSuperseded):
		q.supersede(ctx, r, revision, msg, o)
		return
	case err != nil:
		_ = msg.NakWithDelay(o.FirstPause)
		return
	}
	if r.BegunAlone >= maxAlone {
		r.Status, r.Transient = queue.Failed, false
		r.Error = fmt.Sprintf("%d workers have begun it alone, and did not finish: they may lack memory", r.BegunAlone)
		q.finish(ctx, r, revision, msg)
		return
	}
	if r.Begun-r.Attempts >= maxLeft {
		if again := from.waitAlone(ctx, t); again > 0 {
			_ = msg.NakWithDelay(again)
			return
		}
		r.BegunAlone++
	}
	r.Status, r.Worker, r.Updated = queue.Running, w.Name, time.Now().UTC()
	r.Begun++
	if revision, err = q.Update(ctx, r, revision); err != nil {
		_ = msg.NakWithDelay(o.FirstPause) // somebody else is about it
		return
	}
	if m := o.Monitor; m != nil {
		m.Begun()
		defer func() { m.Ended(r) }()
	}
	begin := time.Now()
	// The tag is moved by whoever has the job in hand, and it is known then that it may be: the answer can be lost.
	moving := func(ctx context.Context) error {
		if err := wanted(ctx); err != nil {
			return err
		}
		r.Moving, r.Updated = true, time.Now().UTC()
		next, err := q.Update(ctx, r, revision)
		if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			return errTaken
		}
		if err == nil {
			revision, r.Sent = next, true
		}
		return err
	}
	attempt, end := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("it took longer than %s", o.Timeout))
	out, err := w.convert(attempt, r.Job, &t.meter, wanted, moving)
	worked := false // all the time, so that it takes as long next time
	if err != nil && attempt.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", context.Cause(attempt), err)
		worked = !t.meter.stalled(time.Now())
	}
	end()
	r.Seconds = time.Since(begin).Seconds()
	if ctx.Err() != nil {
		q.giveBack(r, revision)
		_ = msg.Nak()
		return
	}
	r.Attempts++
	r.BegunAlone = 0
	if err == nil {
		r.Status, r.Error, r.Transient = out.Status, "", false
		r.Identity, r.Ref, r.Digest, r.MREnclave, r.MRSigner = out.Identity, out.Ref, out.Digest, out.MREnclave,
			out.MRSigner
		r.Findings, r.Warnings = out.Findings, out.Warnings
		if err := wanted(ctx); errors.Is(err, errSuperseded) {
			if err := q.RepeatLatest(ctx, r.Job); err != nil {
				_ = msg.NakWithDelay(o.FirstPause)
				return
			}
		}
		q.finish(ctx, r, revision, msg)
		return
	}
	if errors.Is(err, errSuperseded) {
		q.supersede(ctx, r, revision, msg, o)
		return
	}
	if errors.Is(err, errTaken) { // whoever has it now ends it, and needs the message
		q.lost(ctx, r)
		return
	}
	logrus.Debugf("%s: %v", r.Job.Source, err)
	r.Error, r.Transient = err.Error(), !worked && mayPass(err) || r.Job.Passing
	if !r.Transient || r.Job.Passing || r.Attempts >= o.Attempts {
		if r.Moving && errors.Is(wanted(ctx), errSuperseded) {
			q.supersede(ctx, r, revision, msg, o)
			return
		}
		r.Status = failure(r.Job, err)
		q.finish(ctx, r, revision, msg)
		return
	}
	r.Status, r.Updated = queue.Retrying, time.Now().UTC()
	switch _, err := q.Update(ctx, r, revision); {
	case err == nil:
		_ = msg.NakWithDelay(wait(o.FirstPause, r.Attempts))
	case errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		q.lost(ctx, r)
	}
}

// lost has the job looked at again if this worker may have moved the tag before the job was taken from it.
func (q working) lost(ctx context.Context, r *queue.Record) {
	if r.Sent {
		_ = q.LookAgain(ctx, r)
	}
}

// giveBack notes that a job was not finished because the worker was told to stop, which is not the job's fault.
func (q working) giveBack(r *queue.Record, revision uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	r.Begun, r.BegunAlone = r.Begun-1, max(0, r.BegunAlone-1)
	r.Status, r.Updated = queue.Queued, time.Now().UTC()
	// Otherwise it counts as one that was left.
	if _, err := q.Update(ctx, r, revision); errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		q.lost(ctx, r)
	}
}

// supersede ends a request in whose place another one is. If it may have moved the tag, the other one is done again.
func (q working) supersede(ctx context.Context, r *queue.Record, revision uint64, msg jetstream.Msg, o WorkOptions) {
	if r.Moving {
		if err := q.RepeatLatest(ctx, r.Job); err != nil {
			_ = msg.NakWithDelay(o.FirstPause)
			return
		}
	}
	r.Status, r.Error, r.Transient = queue.Skipped, errSuperseded.Error(), false
	q.finish(ctx, r, revision, msg)
}

// errTaken says that a job was given to another worker, because this one was silent.
var errTaken = errors.New("the job was given to another worker meanwhile")

// errSuperseded says that of two requests for a target this one is the earlier.
var errSuperseded = errors.New("another image was requested for the same target since")

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
func heartbeat(ctx context.Context, msg jetstream.Msg, every time.Duration) {
	t := time.NewTicker(max(every, time.Millisecond))
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

// finish notes what is final. If another attempt was quicker, its record stays, and so does that of one which is not
// done; but what has succeeded takes the place of a failure, which can be of a worker that was cut off. If the tag may
// have been moved since it was looked at, for the source may have changed, the job is done again.
func (q working) finish(ctx context.Context, r *queue.Record, revision uint64, msg jetstream.Msg) {
	r.Updated = time.Now().UTC()
	for {
		_, err := q.Update(ctx, r, revision)
		if err == nil {
			q.ack(ctx, msg)
			return
		}
		now, at, getErr := q.Get(ctx, r.Key())
		switch {
		case getErr != nil || now == nil:
			return // the job is given to somebody again
		case now.Request != r.Request, // it was asked for once more, which has a message of its own
			now.Status.Final() && (now.Status != queue.Failed || r.Status == queue.Failed || r.Status == queue.Skipped):
			if r.Sent && now.Digest != r.Digest && q.LookAgain(ctx, r) != nil {
				return
			}
			q.ack(ctx, msg)
			return
		case !sameAttempt(r, now) && !now.Status.Final():
			// Whoever has it now, or will have it, says what came of it, and needs the message, but may have looked at
			// the tag before this one moved it.
			if r.Sent {
				_ = q.LookAgain(ctx, r)
			}
			return
		case !sameAttempt(r, now) && now.Moving: // it has failed, and may have moved the tag
			if q.LookAgain(ctx, r) == nil {
				q.ack(ctx, msg)
			}
			return
		case at == revision:
			return // the queue refuses it for another reason
		}
		revision = at
	}
}

// sameAttempt reports whether two records are of one attempt: two attempts can be of one process.
func sameAttempt(r, now *queue.Record) bool {
	return now.Worker == r.Worker && now.Begun == r.Begun
}

// ack takes a job out of the queue, and waits until that is so.
func (q working) ack(ctx context.Context, msg jetstream.Msg) {
	once, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_ = msg.DoubleAck(once) // otherwise it comes again, and is seen to be done
}
