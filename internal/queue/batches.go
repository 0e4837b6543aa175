package queue

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Batch is a list of jobs that were given to the queue together.
type Batch struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"` // of the plan, for people
	Created time.Time `json:"created"`
	Total   int       `json:"total"`
	// Plan is the digest of the plan and of the files that it names, and MRSigner by which key the images are signed,
	// if one process does all.
	Plan     string          `json:"plan,omitempty"`
	MRSigner sgx.Measurement `json:"mr_signer,omitzero"`
	// Finding says that its images are being found, or that whoever did was interrupted.
	Finding bool `json:"finding,omitempty"`
}

// ErrNoBatch says that there is no such batch.
var ErrNoBatch = errors.New("no such batch")

// ErrFinding says that a batch has no images yet: they are being found, or that was interrupted or has failed.
var ErrFinding = errors.New("its images are still being found, or that was interrupted or has failed")

// newID is one that people can tell the time by.
func newID(now time.Time) string {
	return now.UTC().Format("20060102-150405-") + strings.ToLower(rand.Text()[:6])
}

// Submit queues jobs as a batch. The same job twice is one.
func (q *Queue) Submit(ctx context.Context, name string, jobs []Job) (*Batch, error) {
	b := &Batch{Name: name}
	return b, q.SubmitFound(ctx, b, func(context.Context) ([]Job, error) { return jobs, nil })
}

// SubmitFound is Submit of jobs that are yet to be found, with what B says besides. It is noted first that there is
// such a batch: if finding them is interrupted, an earlier one must not be taken for it. B has its ID and its Total
// then.
func (q *Queue) SubmitFound(ctx context.Context, b *Batch, find func(context.Context) ([]Job, error)) error {
	b.ID, b.Created, b.Finding = newID(time.Now()), time.Now().UTC(), true
	if err := q.putBatch(ctx, b); err != nil {
		return err
	}
	jobs, err := find(ctx)
	if err != nil { // the batch stays, so that no earlier one is taken for it
		return err
	}
	records := map[string]*Record{}
	var order []*Record
	for _, j := range jobs {
		r := &Record{Batch: b.ID, ID: j.ID(), Job: j, Status: Queued, Updated: b.Created}
		if records[r.ID] == nil {
			records[r.ID] = r
			order = append(order, r)
		}
	}
	b.Total = len(order)
	// Records come first, then the batch, then the work: a batch that is there is complete, and Resume can queue what
	// is missing.
	if err := each(ctx, order, func(ctx context.Context, r *Record) error { return q.put(ctx, r) }); err != nil {
		return fmt.Errorf("queueing the batch: %w", err)
	}
	b.Finding = false
	if err := q.putBatch(ctx, b); err != nil {
		return err
	}
	return q.queue(ctx, order)
}

func (q *Queue) putBatch(ctx context.Context, b *Batch) error {
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	if err := q.try(ctx, func(ctx context.Context) error {
		_, err := q.batches.Put(ctx, b.ID, text)
		return err
	}); err != nil {
		return fmt.Errorf("queueing the batch: %w", err)
	}
	return nil
}

// atOnce is how many requests are made to the queue side by side.
const atOnce = 16

func each(ctx context.Context, records []*Record, do func(context.Context, *Record) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, r := range records {
		g.Go(func() error { return do(ctx, r) })
	}
	return g.Wait()
}

// queue hands jobs to the workers, in their order. Those that are queued already stay where they are.
func (q *Queue) queue(ctx context.Context, records []*Record) error {
	for _, r := range records {
		err := q.try(ctx, func(ctx context.Context) error {
			_, err := q.js.Publish(ctx, subject(r), message(r))
			var api *jetstream.APIError
			if errors.As(err, &api) && api.ErrorCode == storeFailed &&
				api.Description == server.ErrMaxMsgsPerSubject.Error() {
				return nil // it is queued already
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("queueing %s: %w", r.Job.Source, err)
		}
	}
	return nil
}

// storeFailed is JSStreamStoreFailedF, of which the description alone tells that a subject has its one message, and not
// that the stream or the disk is full.
const storeFailed = 10077

// subject puts a job into the lane of its source's registry.
func subject(r *Record) string {
	h := fnv.New32a()
	h.Write([]byte(cmp.Or(RegistryOf(r.Job.Source), r.Job.Source)))
	return fmt.Sprintf("%s%d.%s.%s.%d", subjects, h.Sum32()%lanes, r.Batch, r.ID, r.Request)
}

// Batches lists what the queue knows, the newest first.
func (q *Queue) Batches(ctx context.Context) ([]*Batch, error) {
	var list []*Batch
	err := q.scan(ctx, q.batches, ">", func(e jetstream.KeyValueEntry) {
		b := &Batch{}
		if err := json.Unmarshal(e.Value(), b); err != nil {
			logrus.Errorf("the batch %s: %v: %v", e.Key(), ErrRecord, err)
			return
		}
		list = append(list, b)
	})
	slices.SortFunc(list, func(a, b *Batch) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.ID, a.ID))
	})
	return list, err
}

// Find returns the batch of an ID; empty: the newest.
func (q *Queue) Find(ctx context.Context, id string) (*Batch, error) {
	list, err := q.Batches(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range list {
		if id == "" || b.ID == id {
			return b, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNoBatch, cmp.Or(id, "there is none"))
}

// Records returns what is known of a batch's jobs, in the order of their sources.
func (q *Queue) Records(ctx context.Context, batch string) ([]*Record, error) {
	var list []*Record
	err := q.scan(ctx, q.records, batch+".*", func(e jetstream.KeyValueEntry) {
		list = append(list, recordOf(e.Key(), e.Value()))
	})
	slices.SortFunc(list, func(a, b *Record) int {
		return cmp.Or(cmp.Compare(a.Job.Source, b.Job.Source), cmp.Compare(a.Job.Target, b.Job.Target),
			cmp.Compare(a.ID, b.ID))
	})
	return list, err
}

// Resume queues again what a batch has left to do, as far as it is not queued. The error is ErrFinding if that is not
// known.
func (q *Queue) Resume(ctx context.Context, b *Batch) (left int, err error) {
	if b.Finding {
		return 0, fmt.Errorf("the batch %s of %s: %w", b.ID, b.Name, ErrFinding)
	}
	records, err := q.Records(ctx, b.ID)
	if err != nil {
		return 0, err
	}
	records = slices.DeleteFunc(records, func(r *Record) bool { return r.Status.Final() })
	return len(records), q.queue(ctx, records)
}

// Retry queues again what has failed in a batch.
func (q *Queue) Retry(ctx context.Context, b *Batch) (failed int, err error) {
	if b.Finding {
		return 0, fmt.Errorf("the batch %s of %s: %w", b.ID, b.Name, ErrFinding)
	}
	records, err := q.Records(ctx, b.ID)
	if err != nil {
		return 0, err
	}
	records = slices.DeleteFunc(records, func(r *Record) bool { return r.Status != Failed || r.Job.Source == "" })
	for _, r := range records {
		r.repeat()
	}
	if err := each(ctx, records, func(ctx context.Context, r *Record) error { return q.put(ctx, r) }); err != nil {
		return 0, err
	}
	return len(records), q.queue(ctx, records)
}
