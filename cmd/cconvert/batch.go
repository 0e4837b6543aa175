package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/sgx"
)

const batchLong = `Convert the images of a plan: a YAML file that names images, repositories or whole registries,
where results go, and how to convert. docs/batch.md describes it.

An image whose target is what would come out is left alone. The batch is in a queue on disk, so one
that was interrupted, by Ctrl-C or a power failure, goes on with --resume. With --nats the queue is
on a server, and any number of "cconvert worker" on any machines do the work.

Standard output is a line for each image, the result by its digest. The exit code is 0 if all are
there, 1 if one has failed for good, 5 if those that failed may pass when tried again.`

const batchExamples = `  # What would be converted, and to where
  cconvert batch plan.yaml --dry-run

  # Convert it all, with a description of each result
  cconvert batch plan.yaml --key enclave-key.pem --output-json results.json

  # Go on after an interruption
  cconvert batch --resume --key enclave-key.pem

  # Let workers elsewhere do it
  cconvert batch plan.yaml --nats nats://nats.example:4222`

// batchError says that images of a batch have failed.
type batchError struct{ lasting, passing int }

func (e *batchError) Error() string {
	return fmt.Sprintf("%d images failed for good, and %d for reasons that may pass", e.lasting, e.passing)
}

// interruption is what is said if a batch is interrupted.
type interruption struct{ then string }

func (e *interruption) Error() string { return "interrupted: " + e.then }

func newBatch() *cobra.Command {
	var queue queueFlags
	var own ownFlags
	var work workFlags
	var dry, force, detach bool
	var jsonFile, resume string
	var listTime time.Duration
	cmd := &cobra.Command{
		Use:     "batch [PLAN]",
		Short:   "Convert many images, on one machine or on many",
		Long:    batchLong,
		Example: batchExamples,
		Args:    atMostOne("PLAN"),
	}
	f := cmd.Flags()
	f.BoolVar(&dry, "dry-run", false, "print what would be converted, and do nothing")
	f.BoolVar(&force, "force", false, "convert again what is there already")
	f.StringVar(&resume, "resume", "",
		"go on with a batch that was interrupted, the newest by default; with a PLAN for its credentials")
	f.Lookup("resume").NoOptDefVal = newest
	f.BoolVar(&detach, "detach", false, "queue the batch, print its name, and leave it to the workers")
	f.StringVar(&jsonFile, "output-json", "", "file that gets a description of each image")
	f.DurationVar(&listTime, "list-timeout", plan.DefaultListTime,
		"how long finding the images of one entry of the plan may take")
	queue.add(f)
	own.add(f)
	work.add(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if resume == "" && len(args) == 0 {
			return usagef("a PLAN expected, or --resume")
		}
		if resume != "" && (dry || force) {
			return usagef("--dry-run and --force are about a PLAN that is queued, and --resume goes on with one that " +
				"was")
		}
		if detach && queue.url == "" {
			return usagef("--detach: the queue in this process has no workers elsewhere; name one with --nats")
		}
		options, err := own.options()
		if err != nil {
			return err
		}
		o, err := work.options()
		if err != nil {
			return err
		}
		var p *plan.Plan
		name := ""
		if len(args) == 1 {
			name = args[0]
			if p, options.Image.Keychain, err = readPlan(name); err != nil {
				return err
			}
		}
		if listTime <= 0 {
			return usagef("--list-timeout is positive")
		}
		digest := ""
		if p != nil {
			if digest, err = planDigest(name, p, own.registry.insecure); err != nil {
				return err
			}
		}
		find := func(ctx context.Context) ([]batch.Job, error) {
			p.ListTime = listTime
			jobs, err := planJobs(ctx, name, p, options.Image, own.registry.insecure)
			for i := range jobs {
				jobs[i].Force = force
			}
			return jobs, err
		}
		if dry {
			jobs, err := find(cmd.Context())
			if err != nil {
				return err
			}
			return printJobs(cmd.OutOrStdout(), jobs)
		}
		r := batchRun{
			queue: queue, own: options, work: o, json: jsonFile, detach: detach, defaultKey: own.key.name == "",
		}
		if queue.url == "" {
			if r.signer, err = own.key.openOrMake(cmd.Context()); err != nil {
				return err
			}
			defer r.signer.Close()
		}
		if resume != "" {
			return r.resume(cmd, resume, name, digest)
		}
		return r.run(cmd, &batch.Batch{Name: name, Plan: digest}, func(ctx context.Context) ([]batch.Job, error) {
			jobs, err := find(ctx)
			if err != nil {
				return nil, err
			}
			return jobs, pinRuntimes(ctx, jobs, options.Image)
		})
	}
	cmd.AddCommand(newBatchStatus(), newBatchResults(), newBatchRetry())
	return cmd
}

func printJobs(w io.Writer, jobs []batch.Job) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, j := range jobs {
		if j.Problem != "" {
			fmt.Fprintf(t, "%s\tno image: %s\n", printable(j.Source), printable(j.Problem))
			continue
		}
		fmt.Fprintf(t, "%s\t%s\n", j.Source, j.Target)
	}
	return t.Flush()
}

// batchRun queues jobs, and waits until they are done: by a worker in this process, or by others.
type batchRun struct {
	queue  queueFlags
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
	cmd *cobra.Command, b *batch.Batch, find func(context.Context) ([]batch.Job, error),
) error {
	return r.wait(cmd, func(ctx context.Context, q *batch.Queue) (_ *batch.Batch, err error) {
		if b.MRSigner, err = r.mrsigner(ctx); err != nil {
			return nil, err
		}
		return b, q.SubmitFound(ctx, b, find)
	})
}

// mrsigner is by which key this process signs; zero: others do.
func (r *batchRun) mrsigner(ctx context.Context) (m sgx.Measurement, err error) {
	if r.signer == nil {
		return m, nil
	}
	key, err := r.signer.Public(ctx)
	if err != nil {
		return m, fmt.Errorf("reading the signing key: %w", err)
	}
	return sgx.MRSigner(key), nil
}

// resume goes on with a batch, which has to be one of the plan, as it is, if there is one, and of the same key.
func (r *batchRun) resume(cmd *cobra.Command, id, name, plan string) error {
	return r.wait(cmd, func(ctx context.Context, q *batch.Queue) (*batch.Batch, error) {
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
		mrsigner, err := r.mrsigner(ctx)
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
func (r *batchRun) wait(cmd *cobra.Command, begin func(context.Context, *batch.Queue) (*batch.Batch, error)) error {
	ctx := cmd.Context()
	q, err := r.queue.open(ctx)
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
	if r.queue.url == "" {
		worked = make(chan struct{})
		go func() {
			defer close(worked)
			r.work.Batch = b.ID // what others have left in the queue is theirs, and for their key
			_ = q.Work(working, working, newBatchWorker(r.own, r.signer, batch.Files{All: true}, true, r.defaultKey),
				r.work)
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
	err = q.Wait(ctx, b, func(r *batch.Record) {
		taken.Store(taken.Load() || r.Status != batch.Queued)
		progress.tell(r)
	})
	progress.finish()
	done()
	<-worked
	if ctx.Err() != nil {
		if r.queue.url != "" {
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

func (r *batchRun) report(cmd *cobra.Command, records []*batch.Record) error {
	failed := &batchError{}
	var refs strings.Builder
	for _, record := range records {
		switch {
		case record.Status == batch.Skipped:
		case record.Status == batch.Converted, record.Status == batch.Unchanged:
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
	fmt.Fprintln(cmd.ErrOrStderr())
	batchTable(cmd.ErrOrStderr(), records)
	fmt.Fprintln(cmd.ErrOrStderr(), counts(records))
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

func newBatchStatus() *cobra.Command {
	var queue queueFlags
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "List the batches, and how far they are",
		Example: `  cconvert batch status --nats nats://nats.example:4222`,
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := queue.openFor(cmd.Context(), true)
			if err != nil {
				return err
			}
			defer q.Close()
			list, err := q.Batches(cmd.Context())
			if err != nil {
				return err
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, b := range list {
				records, err := q.Records(cmd.Context(), b.ID)
				if err != nil {
					return err
				}
				if b.Finding {
					fmt.Fprintf(t, "%s\t%s\t%s ago\t%v\n", b.ID, printable(b.Name), age(b.Created), batch.ErrFinding)
					continue
				}
				fmt.Fprintf(t, "%s\t%s\t%s ago\t%d images: %s\n", b.ID, printable(b.Name), age(b.Created), b.Total,
					counts(records))
			}
			return t.Flush()
		},
	}
	queue.addReading(cmd.Flags())
	return cmd
}

func newBatchResults() *cobra.Command {
	var queue queueFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "results [BATCH]",
		Short: "List what became of a batch's images: those that failed with the reason",
		Example: `  # Of the newest batch, for a program
  cconvert batch results --json`,
		Args: atMostOne("BATCH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, b, err := findBatch(cmd, queue, args, true)
			if err != nil {
				return err
			}
			defer q.Close()
			records, err := q.Records(cmd.Context(), b.ID)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, records)
			}
			batchTable(cmd.OutOrStdout(), records)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, a record for each image")
	queue.addReading(cmd.Flags())
	return cmd
}

func newBatchRetry() *cobra.Command {
	var queue queueFlags
	cmd := &cobra.Command{
		Use:   "retry [BATCH]",
		Short: "Queue again what has failed in a batch",
		Long: `Queue again what has failed in a batch, the newest by default. With --nats the workers do it;
otherwise "cconvert batch --resume=BATCH" does.`,
		Example: `  cconvert batch retry --nats nats://nats.example:4222`,
		Args:    atMostOne("BATCH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, b, err := findBatch(cmd, queue, args, false)
			if err != nil {
				return err
			}
			defer q.Close()
			n, err := q.Retry(cmd.Context(), b)
			if err == nil {
				logrus.Infof("%d images of batch %s are queued again", n, b.ID)
			}
			return err
		},
	}
	queue.addReading(cmd.Flags())
	return cmd
}

// findBatch opens the queue and finds the batch that the arguments name, the newest by default.
func findBatch(cmd *cobra.Command, queue queueFlags, args []string, read bool) (*batch.Queue, *batch.Batch, error) {
	q, err := queue.openFor(cmd.Context(), read)
	if err != nil {
		return nil, nil, err
	}
	id := ""
	if len(args) == 1 {
		id = args[0]
	}
	b, err := q.Find(cmd.Context(), id)
	if err != nil {
		q.Close()
		return nil, nil, err
	}
	return q, b, nil
}
