package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirupsen/logrus"
)

// maxError is how much of an error a record holds, in bytes: registries answer with whole pages.
const maxError = 4 << 10

func marshal(r *Record) ([]byte, error) {
	r.Error = strings.ToValidUTF8(r.Error[:min(len(r.Error), maxError)], "")
	return json.Marshal(r)
}

func (q *Queue) put(ctx context.Context, r *Record) error {
	b, err := marshal(r)
	if err != nil {
		return err
	}
	return q.try(ctx, func(ctx context.Context) error { _, err := q.records.Put(ctx, r.Key(), b); return err })
}

// ErrRecord says that a record cannot be read, or is of another version of this program.
var ErrRecord = errors.New("a record of the queue cannot be read")

func parseRecord(b []byte) (*Record, error) {
	r := &Record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if min(r.Request, r.Attempts, r.Begun, r.BegunAlone) < 0 {
		return nil, fmt.Errorf("%w: it counts %d attempts of %d that were begun, %d alone, for request %d",
			ErrRecord, r.Attempts, r.Begun, r.BegunAlone, r.Request)
	}
	return r, nil
}

// recordOf reads a record for people. One that cannot be read, of another version or damaged, must neither hide the
// others nor be waited for: it has failed.
func recordOf(key string, value []byte) *Record {
	r, err := parseRecord(value)
	if err != nil {
		logrus.Errorf("%s: %v", key, err)
		batch, id, _ := strings.Cut(key, ".")
		return &Record{Batch: batch, ID: id, Status: Failed, Error: err.Error()}
	}
	return r
}

// Get returns a record by its key, or nil.
func (q *Queue) Get(ctx context.Context, key string) (r *Record, revision uint64, err error) {
	err = q.try(ctx, func(ctx context.Context) error {
		e, err := q.records.Get(ctx, key)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		revision = e.Revision()
		r, err = parseRecord(e.Value())
		return err
	})
	return r, revision, err
}

// scan visits the present values of a bucket once. It may take as long as it likes while something comes.
func (q *Queue) scan(
	ctx context.Context, kv jetstream.KeyValue, keys string, visit func(jetstream.KeyValueEntry),
) error {
	var values []jetstream.KeyValueEntry
	err := q.try(ctx, func(context.Context) error {
		values = nil
		w, err := kv.Watch(ctx, keys, jetstream.IgnoreDeletes())
		if err != nil {
			return err
		}
		defer w.Stop() //nolint:errcheck // it is not needed any more
		silence := time.NewTimer(answerTime)
		defer silence.Stop()
		for {
			select {
			case e := <-w.Updates():
				if e == nil { // these were all that there are
					return nil
				}
				values = append(values, e)
				silence.Reset(answerTime)
			case <-silence.C:
				return errors.New("the queue does not answer")
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	if err != nil {
		return fmt.Errorf("reading what the queue knows: %w", err)
	}
	for _, v := range values {
		visit(v)
	}
	return nil
}

// quiet is how long nothing is heard before a batch is looked at anew: a server may have been restarted.
const quiet = time.Minute

// Wait tells of every record of a batch, as it is and as it changes, until all are final.
func (q *Queue) Wait(ctx context.Context, b *Batch, tell func(*Record)) error {
	last := map[string]Record{}
	open := b.Total
	see := func(r *Record) {
		before, known := last[r.ID]
		if known && before.Updated.Equal(r.Updated) && before.Status == r.Status {
			return
		}
		switch was := known && before.Status.Final(); {
		case r.Status.Final() && !was:
			open--
		case !r.Status.Final() && was: // somebody has it tried again
			open++
		}
		last[r.ID] = *r
		tell(r)
	}
	for open > 0 {
		if err := q.follow(ctx, b.ID, see, func() bool { return open == 0 }); err != nil {
			return err
		}
	}
	return nil
}

// Watch tells of every record of a batch, as it is and as it changes, until the context ends.
func (q *Queue) Watch(ctx context.Context, batch string, tell func(*Record)) error {
	for {
		if err := q.follow(ctx, batch, tell, func() bool { return false }); err != nil {
			return err
		}
	}
}

// follow watches a batch until it is done, or nothing was heard for a while.
func (q *Queue) follow(ctx context.Context, batch string, see func(*Record), done func() bool) error {
	var w jetstream.KeyWatcher
	if err := q.try(ctx, func(context.Context) (err error) {
		w, err = q.records.Watch(ctx, batch+".*", jetstream.IgnoreDeletes())
		return err
	}); err != nil {
		return fmt.Errorf("watching the batch: %w", err)
	}
	defer w.Stop() //nolint:errcheck // it is not needed any more
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(quiet):
			return nil
		case e, ok := <-w.Updates():
			if !ok {
				return nil
			}
			if e == nil {
				continue
			}
			see(recordOf(e.Key(), e.Value()))
		}
	}
	return nil
}

// Update replaces the record of a revision, and no other; 0: there is no record yet. If there is another one, the error
// is jetstream.ErrKeyRevisionMismatch.
func (q *Queue) Update(ctx context.Context, r *Record, revision uint64) (next uint64, err error) {
	b, err := marshal(r)
	if err != nil {
		return 0, err
	}
	err = q.try(ctx, func(ctx context.Context) (err error) {
		next, err = q.records.Update(ctx, r.Key(), b, revision)
		return err
	})
	return next, err
}
