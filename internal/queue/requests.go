package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// ErrSigner says that the workers of a queue sign by another key.
var ErrSigner = errors.New("the workers of this queue sign by another key")

// signerKey holds the MRSIGNER of the queue's workers. It is no target's.
const signerKey = "signer"

// Claim notes by which key the queue's workers sign. The error is ErrSigner where others do so by another one, which
// would make who signs an image a matter of chance; replace makes this key theirs.
func (q *Queue) Claim(ctx context.Context, signer sgx.Measurement, replace bool) error {
	q.signer = signer
	return q.try(ctx, func(ctx context.Context) error {
		if replace {
			_, err := q.latest.Put(ctx, signerKey, []byte(signer.String()))
			return err
		}
		_, err := q.latest.Create(ctx, signerKey, []byte(signer.String()))
		if !errors.Is(err, jetstream.ErrKeyExists) {
			return err
		}
		e, err := q.latest.Get(ctx, signerKey)
		if err == nil && string(e.Value()) != signer.String() {
			return fmt.Errorf("%w: their MRSIGNER is %s, this one's %s", ErrSigner, e.Value(), signer)
		}
		return err
	})
}

// Requests is the batch of conversions that were asked for one by one. It has no end.
const Requests = "requests"

// Last is the last request for a target at some time.
type Last struct {
	id       string // empty: there was none
	revision uint64
}

// Is reports whether a record is that of the request.
func (l Last) Is(r *Record) bool { return l.id == r.ID }

// Last returns the last request for a target so far.
func (q *Queue) Last(ctx context.Context, target string, insecure bool) (last Last, err error) {
	return q.lastFor(ctx, Job{Target: target, Insecure: insecure})
}

// lastFor returns the last request for a job's target.
func (q *Queue) lastFor(ctx context.Context, j Job) (last Last, err error) {
	err = q.try(ctx, func(ctx context.Context) error {
		e, err := q.latest.Get(ctx, targetKey(j))
		if err == nil {
			last = Last{string(e.Value()), e.Revision()}
		}
		return err
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		err = nil
	}
	return last, err
}

// ErrOvertaken says that something was requested for the same target meanwhile.
var ErrOvertaken = errors.New("something was requested for the same target meanwhile")

// Request queues one conversion in the batch of Requests. If the same is the last that was asked for its target, and is
// not done yet, it is that one; another one with the same target takes the place of those before. Last is what was the
// last request when it was found out what is to be converted: if there is another one by now, which may have found
// something newer, the error is ErrOvertaken. Now is the last request after this one.
func (q *Queue) Request(ctx context.Context, j Job, last Last) (_ *Record, now Last, err error) {
	r := &Record{Batch: Requests, ID: j.ID(), Job: j}
	for {
		before, revision, err := q.Get(ctx, r.Key())
		if err != nil {
			return nil, last, err
		}
		if latest, err := q.lastFor(ctx, j); err != nil {
			return nil, last, err
		} else if latest != last {
			return nil, last, ErrOvertaken
		}
		if before != nil && !before.Status.Final() && last.id == r.ID {
			return before, last, q.queue(ctx, []*Record{before})
		}
		// A worker that still has the earlier request in hand cannot end this one: its number is another.
		r.Request, r.Status, r.Updated = 0, Queued, time.Now().UTC()
		if before != nil {
			r.Request, r.Moving = before.Request+1, before.Moving
		}
		if revision, err = q.Update(ctx, r, revision); errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			continue // somebody else has changed it
		} else if err != nil {
			return nil, last, err
		}
		if last, err = q.setLatest(ctx, r, revision, last); err != nil {
			return nil, last, err
		}
		// Whoever resumed requests between the two may have skipped it.
		kept, _, err := q.Get(ctx, r.Key())
		if err != nil {
			return nil, last, err
		}
		if kept == nil || kept.Request != r.Request || kept.Status != Skipped {
			return r, last, q.queue(ctx, []*Record{r})
		}
		if latest, err := q.lastFor(ctx, j); err != nil || latest.id != r.ID { // it was replaced since
			return kept, last, err
		}
	}
}

// setLatest makes a request, whose record has a revision, the last one for its target. If another one became that
// meanwhile, it is skipped.
func (q *Queue) setLatest(ctx context.Context, r *Record, revision uint64, last Last) (now Last, err error) {
	err = q.try(ctx, func(ctx context.Context) error {
		at, err := q.latest.Update(ctx, targetKey(r.Job), []byte(r.ID), last.revision)
		now = Last{r.ID, at}
		return err
	})
	if !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return now, err
	}
	// the answer of an earlier attempt was lost
	if latest, err := q.lastFor(ctx, r.Job); err == nil && latest.id == r.ID {
		return latest, nil
	}
	r.Status, r.Error, r.Updated = Skipped, ErrOvertaken.Error(), time.Now().UTC()
	if _, err := q.Update(ctx, r, revision); err != nil && !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return last, err
	}
	return last, ErrOvertaken // if the record is another one's by now, that one goes on
}

func targetKey(j Job) string {
	place := j.Target
	if ref, err := image.ParseReference(j.Target, j.Insecure); err == nil {
		place = ref.Place() // however it is written
	}
	sum := sha256.Sum256([]byte(place))
	return hex.EncodeToString(sum[:16])
}

// Superseded reports whether something else was requested for a request's target since.
func (q *Queue) Superseded(ctx context.Context, r *Record) (bool, error) {
	if r.Batch != Requests {
		return false, nil
	}
	latest, err := q.lastFor(ctx, r.Job)
	return latest.id != "" && latest.id != r.ID, err
}

// RepeatLatest has the last request for a job's target done again, if it is done or somebody is at it: an earlier one
// may have moved the tag after the last one has found there what it wanted.
func (q *Queue) RepeatLatest(ctx context.Context, j Job) error {
	latest, err := q.lastFor(ctx, j)
	if err != nil || latest.id == "" {
		return err
	}
	return q.repeat(ctx, Requests+"."+latest.id)
}

// LookAgain has done again what a job's tag should have: this one, or what was requested since.
func (q *Queue) LookAgain(ctx context.Context, r *Record) error {
	if r.Batch == Requests {
		return q.RepeatLatest(ctx, r.Job)
	}
	return q.repeat(ctx, r.Key())
}

// repeat has a job done again, if it is done or somebody is at it, who cannot end it then.
func (q *Queue) repeat(ctx context.Context, key string) error {
	r, revision, err := q.Get(ctx, key)
	if err != nil || r == nil {
		return err
	}
	if r.Status == Queued { // by somebody who may not have come to queue it
		return q.queue(ctx, []*Record{r})
	}
	if r.Status == Retrying {
		return nil
	}
	r.repeat()
	if _, err := q.Update(ctx, r, revision); errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return nil // somebody else has asked for it
	} else if err != nil {
		return err
	}
	return q.queue(ctx, []*Record{r})
}

// ResumeRequests queues again what was requested and is not done, as far as it is not queued.
func (q *Queue) ResumeRequests(ctx context.Context) error {
	_, err := q.Resume(ctx, &Batch{ID: Requests})
	return err
}

// Claimed reports by ErrSigner that the queue's workers have come to sign by another key than this one has claimed.
func (q *Queue) Claimed(ctx context.Context) error {
	if q.signer == (sgx.Measurement{}) {
		return nil
	}
	err := q.try(ctx, func(ctx context.Context) error {
		e, err := q.latest.Get(ctx, signerKey)
		if err == nil && string(e.Value()) != q.signer.String() {
			return fmt.Errorf("%w since: their MRSIGNER is %s, this one's %s", ErrSigner, e.Value(), q.signer)
		}
		return err
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) { // somebody has removed it
		return q.Claim(ctx, q.signer, false)
	}
	return err
}
