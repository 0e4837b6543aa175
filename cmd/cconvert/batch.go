package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/queue"
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
	switch {
	case e.passing == 0:
		return images(e.lasting) + " failed for good"
	case e.lasting == 0:
		return images(e.passing) + " failed for reasons that may pass"
	}
	return fmt.Sprintf("%s failed for good, and %d for reasons that may pass", images(e.lasting), e.passing)
}

// images counts them, for people.
func images(n int) string {
	if n == 1 {
		return "1 image"
	}
	return fmt.Sprintf("%d images", n)
}

// interruption is what is said if a batch is interrupted.
type interruption struct{ then string }

func (e *interruption) Error() string { return "interrupted: " + e.then }

func newBatch() *cobra.Command {
	var from queueFlags
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
	f.BoolVar(&dry, "dry-run", false,
		"print what would become of each image (convert, convert again, unchanged, skipped), and do nothing")
	f.BoolVar(&force, "force", false, "convert again what is there already")
	f.StringVar(&resume, "resume", "",
		"go on with a batch that was interrupted, the newest by default; with a PLAN for its credentials")
	f.Lookup("resume").NoOptDefVal = newest
	f.BoolVar(&detach, "detach", false, "queue the batch, print its name, and leave it to the workers")
	f.StringVar(&jsonFile, "output-json", "", "file that gets a description of each image")
	f.DurationVar(&listTime, "list-timeout", plan.DefaultListTime,
		"how long finding the images of one entry of the plan may take")
	from.add(f)
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
		if detach && from.url == "" {
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
			if p, options.Image.Keychain, err = readPlan(name, options.Image.Keychain); err != nil {
				return err
			}
		}
		if listTime <= 0 {
			return usagef("--list-timeout is positive")
		}
		digest := ""
		if p != nil {
			if digest, err = planDigest(name, p, own.access.insecure); err != nil {
				return err
			}
			if err := own.layers.reserve(p, own.access.insecure); err != nil {
				return err
			}
		}
		find := func(ctx context.Context) ([]queue.Job, error) {
			p.ListTime = listTime
			jobs, err := planJobs(ctx, name, p, options.Image, own.access.insecure)
			for i := range jobs {
				jobs[i].Force = force
			}
			return jobs, err
		}
		if dry {
			return foresee(cmd, &own, options, from.url != "", o.Parallel, find)
		}
		r := batchRun{
			from: from, own: options, work: o, json: jsonFile, detach: detach, defaultKey: own.key.name == "",
		}
		if from.url == "" {
			if r.signer, err = own.key.openOrMake(cmd.Context(), false); err != nil {
				return err
			}
			defer r.signer.Close()
		}
		if resume != "" {
			return r.resume(cmd, resume, name, digest)
		}
		return r.run(cmd, &queue.Batch{Name: name, Plan: digest}, func(ctx context.Context) ([]queue.Job, error) {
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

// foresee prints what a batch would do, which is known by whose key signs: workers elsewhere have their own.
func foresee(
	cmd *cobra.Command, own *ownFlags, o convert.Options, elsewhere bool, parallel int,
	find func(context.Context) ([]queue.Job, error),
) error {
	ctx := cmd.Context()
	jobs, err := find(ctx)
	if err != nil {
		return err
	}
	var signer sgx.Signer
	if !elsewhere {
		signer, err = own.key.open(ctx)
	}
	if signer == nil && (err == nil || own.key.name == "" && errors.Is(err, fs.ErrNotExist)) {
		logrus.Warn("what is unchanged is not known without the key that signs")
		return printForecasts(cmd.OutOrStdout(), batch.Unforeseen(jobs))
	}
	if err != nil {
		return err
	}
	defer signer.Close()
	if err := pinRuntimes(ctx, jobs, o.Image); err != nil {
		return err
	}
	w := newBatchWorker(o, signer, batch.Files{All: true}, true, own.key.name == "")
	forecasts := w.Foresee(ctx, jobs, parallel)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return printForecasts(cmd.OutOrStdout(), forecasts)
}

// printForecasts prints a line for each image. The error is that of the batch.
func printForecasts(w io.Writer, forecasts []batch.Forecast) error {
	failed := &batchError{}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range forecasts {
		says := ""
		switch {
		case f.Status == queue.Failed && f.Transient:
			failed.passing++
			says = "fails, but may pass: " + f.Err.Error()
		case f.Status == queue.Failed:
			failed.lasting++
			says = "fails: " + f.Err.Error()
		case f.Status == queue.Skipped:
			says = "skipped: " + f.Err.Error()
		case f.Status == queue.Unchanged:
			says = "unchanged"
		case f.Replaces:
			says = "convert again"
		case f.Status == queue.Converted:
			says = "convert"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", printable(f.Job.Source), printable(f.Job.Target), printable(says))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if *failed != (batchError{}) {
		return failed
	}
	return nil
}
