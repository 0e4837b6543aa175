package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// batchProgress shows how a batch gets on: on a terminal a line for each image that is worked on, and a total;
// elsewhere a line for each that is done.
type batchProgress struct {
	bars   *mpb.Progress // nil where there is no terminal
	total  *mpb.Bar
	active map[string]*mpb.Bar
	final  map[string]bool
}

func newBatchProgress(w io.Writer, total int) *batchProgress {
	p := &batchProgress{active: map[string]*mpb.Bar{}, final: map[string]bool{}}
	if showsProgress(w) {
		p.bars = mpb.New(mpb.WithOutput(w), mpb.WithWidth(40))
		p.total = p.bars.AddBar(int64(total), mpb.BarPriority(1<<30),
			mpb.PrependDecorators(decor.CountersNoUnit("%d of %d images ")),
			mpb.AppendDecorators(decor.AverageSpeed(0, "%.1f/s "), decor.AverageETA(decor.ET_STYLE_GO)))
	}
	return p
}

// tell is for batch.Queue.Wait.
func (p *batchProgress) tell(r *queue.Record) {
	if p.bars == nil {
		if logsJSON() {
			if r.Status.Final() || r.Status == queue.Retrying {
				r.Log()
			}
			return
		}
		switch {
		case r.Status == queue.Retrying:
			logrus.Warnf("%s: attempt %d failed, and another one follows: %s", r.Job.Source, r.Attempts, r.Error)
		case r.Status == queue.Skipped:
			logrus.Infof("%s: skipped: %s", r.Job.Source, r.Error)
		case r.Status == queue.Failed:
			logrus.Errorf("%s: %s", r.Job.Source, r.Error)
		case r.Status.Final():
			logrus.Infof("%s: %s as %s, MRENCLAVE %s, %.1f s", r.Job.Source, r.Status, r.Ref, r.MREnclave, r.Seconds)
		}
		return
	}
	bar := p.active[r.ID]
	switch {
	case r.Status == queue.Running && bar == nil:
		p.active[r.ID] = p.bars.New(0, mpb.SpinnerStyle(), mpb.BarWidth(1),
			mpb.AppendDecorators(decor.Name(printable(r.Job.Source)+" "), decor.Elapsed(decor.ET_STYLE_GO)))
	case r.Status != queue.Running && bar != nil:
		bar.Abort(true)
		delete(p.active, r.ID)
	}
	if r.Status.Final() && !p.final[r.ID] {
		p.final[r.ID] = true
		p.total.Increment()
	}
}

func (p *batchProgress) finish() {
	if p.bars != nil {
		p.bars.Shutdown()
	}
}

// batchTable lists what became of a batch's images.
func batchTable(w io.Writer, records []*queue.Record) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range records {
		what := r.Error
		if r.MREnclave != (sgx.Measurement{}) {
			what = r.MREnclave.String()
		}
		if r.Status == queue.Failed && r.Transient {
			what = "may pass: " + what
		}
		what, _, _ = strings.Cut(what, "\n")
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.Status, printable(r.Job.Source), printable(r.Job.Target), printable(what))
	}
	t.Flush()
}

// counts says how many images are in which state.
func counts(records []*queue.Record) string {
	n := map[queue.Status]int{}
	for _, r := range records {
		n[r.Status]++
	}
	text := fmt.Sprintf("%d converted, %d unchanged, %d failed", n[queue.Converted], n[queue.Unchanged],
		n[queue.Failed])
	if n[queue.Skipped] > 0 {
		text += fmt.Sprintf(", %d skipped", n[queue.Skipped])
	}
	if left := n[queue.Queued] + n[queue.Running] + n[queue.Retrying]; left > 0 {
		text += fmt.Sprintf(", %d to do", left)
	}
	return text
}

// age is a duration for people.
func age(since time.Time) string { return time.Since(since).Round(time.Second).String() }
