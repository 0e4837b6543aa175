package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/internal/queue"
)

func newBatchStatus() *cobra.Command {
	var from queueFlags
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "List the batches, and how far they are",
		Example: `  cconvert batch status --nats nats://nats.example:4222`,
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := from.openFor(cmd.Context(), true)
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
					fmt.Fprintf(t, "%s\t%s\t%s ago\t%v\n", b.ID, printable(b.Name), age(b.Created), queue.ErrFinding)
					continue
				}
				fmt.Fprintf(t, "%s\t%s\t%s ago\t%d images: %s\n", b.ID, printable(b.Name), age(b.Created), b.Total,
					counts(records))
			}
			return t.Flush()
		},
	}
	from.addReading(cmd.Flags())
	return cmd
}

func newBatchResults() *cobra.Command {
	var from queueFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "results [BATCH]",
		Short: "List what became of a batch's images: those that failed with the reason",
		Example: `  # Of the newest batch, for a program
  cconvert batch results --json`,
		Args: atMostOne("BATCH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, b, err := findBatch(cmd, from, args, true)
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
	addJSON(cmd.Flags(), &asJSON, "print JSON, a record for each image")
	from.addReading(cmd.Flags())
	return cmd
}

func newBatchRetry() *cobra.Command {
	var from queueFlags
	cmd := &cobra.Command{
		Use:   "retry [BATCH]",
		Short: "Queue again what has failed in a batch",
		Long: `Queue again what has failed in a batch, the newest by default. With --nats the workers do it;
otherwise "cconvert batch --resume=BATCH" does.`,
		Example: `  cconvert batch retry --nats nats://nats.example:4222`,
		Args:    atMostOne("BATCH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, b, err := findBatch(cmd, from, args, false)
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
	from.addReading(cmd.Flags())
	return cmd
}

// findBatch opens the queue and finds the batch that the arguments name, the newest by default.
func findBatch(cmd *cobra.Command, from queueFlags, args []string, read bool) (*queue.Queue, *queue.Batch, error) {
	q, err := from.openFor(cmd.Context(), read)
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
