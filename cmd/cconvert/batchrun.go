package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// batchRun queues jobs, and waits until they are done: by a worker in this process, or by others.
type batchRun struct {
	from   queueFlags
	own    convert.Options
	signer sgx.Signer
	work   batch.WorkOptions
	json   string
	refs   string // file that gets the names of the results
	detach bool
	// passing says that the queue ends with this process.
	passing bool
	// defaultKey says that nobody has named the key.
	defaultKey bool
}

// patience is how long nothing may happen before that is said.
const patience = 10 * time.Second

// newest stands for the newest batch.
const newest = "newest"

// run queues what is found as a batch, and waits for it.
func (r *batchRun) run(
	cmd *cobra.Command, b *queue.Batch, find func(context.Context) ([]queue.Job, error),
) error {
	return r.wait(cmd, func(ctx context.Context, q *queue.Queue) (_ *queue.Batch, err error) {
		if b.MRSigner, err = mrsigner(ctx, r.signer); err != nil {
			return nil, err
		}
		return b, q.SubmitFound(ctx, b, find)
	})
}

// resume goes on with a batch, which has to be one of the plan, as it is, if there is one, and of the same key.
func (r *batchRun) resume(cmd *cobra.Command, id, name, plan string) error {
	return r.wait(cmd, func(ctx context.Context, q *queue.Queue) (*queue.Batch, error) {
		if id == newest {
			id = ""
		}
		b, err := q.Find(ctx, id)
		if err != nil {
			return nil, err
		}
		if plan != "" && b.Plan != plan {
			return nil, usagef("the batch %s is of %s as it was then, and not of %s as it is: say --resume=BATCH, or "+
				"leave %s out", b.ID, b.Name, name, name)
		}
		mrsigner, err := mrsigner(ctx, r.signer)
		if err != nil {
			return nil, err
		}
		if b.MRSigner != mrsigner && b.MRSigner != (sgx.Measurement{}) && mrsigner != (sgx.Measurement{}) {
			return nil, usagef("the batch %s was begun with another key, of MRSIGNER %s: name it with --key", b.ID,
				b.MRSigner)
		}
		left, err := q.Resume(ctx, b)
		if err == nil && left == 0 {
			logrus.Warnf("the batch %s, of %s ago, was done before: nothing was left to do", b.ID, age(b.Created))
		}
		return b, err
	})
}

// wait waits until a batch is done: by a worker in this process, or by others.
func (r *batchRun) wait(cmd *cobra.Command, begin func(context.Context, *queue.Queue) (*queue.Batch, error)) error {
	ctx := cmd.Context()
	q, err := r.from.open(ctx)
	if err != nil {
		return err
	}
	defer q.Close()
	b, err := begin(ctx, q)
	if err != nil {
		return err
	}
	if r.detach {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), b.ID)
		return err
	}
	logrus.Infof("batch %s: %d images", b.ID, b.Total)
	working, done := context.WithCancel(ctx)
	defer done()
	worked := make(chan struct{})
	close(worked)
	if r.from.url == "" {
		worked = make(chan struct{})
		go func() {
			defer close(worked)
			r.work.Batch = b.ID // what others have left in the queue is theirs, and for their key
			w := newBatchWorker(r.own, r.signer, batch.Files{All: true}, true, r.defaultKey)
			_ = w.Work(working, working, q, r.work)
		}()
	}
	progress := newBatchProgress(cmd.ErrOrStderr(), b.Total)
	var taken atomic.Bool
	lonely := time.AfterFunc(patience, func() {
		if !taken.Load() {
			logrus.Warn("nobody has taken an image yet: is there a \"cconvert worker\" on this queue?")
		}
	})
	defer lonely.Stop()
	err = q.Wait(ctx, b, func(r *queue.Record) {
		taken.Store(taken.Load() || r.Status != queue.Queued)
		progress.tell(r)
	})
	progress.finish()
	done()
	<-worked
	if ctx.Err() != nil {
		if r.from.url != "" {
			return &interruption{"the workers go on; \"cconvert batch status\" says how far they are"}
		}
		if r.passing {
			return &interruption{"no tag names an incomplete image, and nothing is half stored"}
		}
		return &interruption{"no tag names an incomplete image. \"cconvert batch --resume\" goes on with the batch"}
	}
	if err != nil {
		return err
	}
	records, err := q.Records(ctx, b.ID)
	if err != nil {
		return err
	}
	return r.report(cmd, records)
}

func (r *batchRun) report(cmd *cobra.Command, records []*queue.Record) error {
	failed := &batchError{}
	var refs strings.Builder
	for _, record := range records {
		switch {
		case record.Status == queue.Skipped:
		case record.Status == queue.Converted, record.Status == queue.Unchanged:
			fmt.Fprintln(&refs, record.Ref)
		case record.Transient, !record.Status.Final(): // or somebody has just had it tried again
			failed.passing++
		default:
			failed.lasting++
		}
	}
	if _, err := io.WriteString(cmd.OutOrStdout(), refs.String()); err != nil {
		return err
	}
	if forPeople() {
		fmt.Fprintln(cmd.ErrOrStderr())
		batchTable(cmd.ErrOrStderr(), records)
		fmt.Fprintln(cmd.ErrOrStderr(), counts(records))
	}
	if r.refs != "" {
		if err := writeFile(r.refs, []byte(refs.String())); err != nil {
			return fmt.Errorf("the batch is done, but naming the results failed: %w", err)
		}
	}
	if r.json != "" {
		b, err := json.MarshalIndent(records, "", "  ")
		if err != nil {
			return err
		}
		if err := writeFile(r.json, append(b, '\n')); err != nil {
			return fmt.Errorf("the batch is done, but describing it failed: %w", err)
		}
	}
	if *failed != (batchError{}) {
		return failed
	}
	return nil
}
