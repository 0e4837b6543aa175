package batch

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/internal/bug"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/recipe"
)

// Forecast is what would become of a job.
type Forecast struct {
	Job queue.Job
	// Status is Unchanged, Converted, Skipped or Failed.
	Status queue.Status
	// Replaces says that the target has something that this worker does not remember to have made of this job.
	Replaces bool
	// Err says why a job would be skipped, or would fail, and Transient that it may succeed when tried again.
	Err       error
	Transient bool
}

// Foresee reports what Convert would do with jobs, some at a time, as far as that is known without the images' layers.
// A job is Unchanged only if the target has what this worker remembers to have made. Nothing is stored.
func (w *Worker) Foresee(ctx context.Context, jobs []queue.Job, parallel int) []Forecast {
	forecasts := make([]Forecast, len(jobs))
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, j := range jobs {
		g.Go(func() error {
			forecasts[i] = w.foresee(ctx, j)
			return nil
		})
	}
	_ = g.Wait()
	return forecasts
}

// Unforeseen is Foresee without a worker: what fails for a problem is known, and nothing else.
func Unforeseen(jobs []queue.Job) []Forecast {
	forecasts := make([]Forecast, len(jobs))
	for i, j := range jobs {
		forecasts[i] = Forecast{Job: j}
		if j.Problem != "" {
			err := fmt.Errorf("%w: %s", errNothing, j.Problem)
			forecasts[i] = Forecast{Job: j, Status: failure(j, err), Err: err, Transient: j.Passing}
		}
	}
	return forecasts
}

func (w *Worker) foresee(ctx context.Context, j queue.Job) Forecast {
	f := Forecast{Job: j, Status: queue.Converted}
	done, before, err := w.known(ctx, j)
	switch {
	case err != nil:
		f.Err, f.Transient, f.Status = err, mayPass(err) || j.Passing, failure(j, err)
	case done:
		f.Status = queue.Unchanged
	default:
		f.Replaces = before != ""
	}
	return f
}

// known reports whether the target of a job has what is wanted, and its digest, or why the job would fail.
func (w *Worker) known(ctx context.Context, j queue.Job) (done bool, before string, err error) {
	defer bug.Catch(&err)
	a, err := w.begin(ctx, j, &meter{}, func(context.Context) error { return nil })
	if err != nil {
		return false, "", err
	}
	if a.done {
		missing, err := a.copyReferrers(ctx, true)
		return err == nil && !missing, a.before, err
	}
	if a.unread != nil {
		return false, "", notTheImage{fmt.Errorf("%s: %w", a.Target, a.unread)}
	}
	// Whether an image that somebody has signed since is the one that an unsigned job makes, only its layers tell.
	may := a.StoreOptions
	may.ReplaceSigner = may.ReplaceSigner || j.Unsigned
	if err := convert.MayReplace(ctx, *a.Target, a.out.MRSigner, a.Enclave.ISVSVN, may); err != nil {
		return false, "", notTheImage{err}
	}
	img, err := store.Open(ctx, a.Source, a.Image)
	if err != nil {
		return false, "", err
	}
	defer img.Close()
	if recipe.IsResult(img) {
		return false, "", fmt.Errorf("%s: %w", a.Source, convert.ErrConverted)
	}
	if err := w.mayReplace(ctx, j, a.Options); err != nil {
		return false, "", err
	}
	_, err = a.copyReferrers(ctx, true)
	return false, a.before, err
}
