package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/startcheck"
)

// CheckStart is the check that Start adds.
const CheckStart = "start"

// engineFiles are those that every container engine puts into a container, and without which a loader does not start.
var engineFiles = map[string]string{
	"/etc/hostname": "enclave\n", "/etc/hosts": "127.0.0.1 localhost enclave\n",
	"/etc/resolv.conf": "nameserver 127.0.0.1\n",
}

// ErrNoStart says that the start of an image cannot be tried.
var ErrNoStart = errors.New("the start cannot be tried")

// Start runs the image's own loader, and only that, up to EINIT, and adds to the report whether a CPU would start
// the enclave that it builds. See package startcheck for what that takes.
func (r *Report) Start(ctx context.Context, img *image.Image) error {
	b := r.Places.Backend
	v := &verification{report: r}
	switch {
	case len(r.FailedChecks()) > 0:
		v.skip(CheckStart, "an image in which another check failed is not started")
		return nil
	case b == nil:
		return fmt.Errorf("%w: images of the layout %s begin with a shell", ErrNoStart, r.Layout)
	case r.Simulated():
		return fmt.Errorf("%w: the simulation builds no enclave", ErrNoStart)
	}
	if missing := startcheck.Lacks(); missing != "" {
		v.skip(CheckStart, "the processor or the kernel of this machine has no "+strings.ToUpper(missing)+
			", which the image's loader needs: that is no word about the image")
		return nil
	}
	n := len(img.Layers) // the verification has found both layers
	bundle, err := inspect.RuntimeOf(ctx, img.Layers[n-r.Added()], r.Recipe.Runtime.Digest)
	if err != nil {
		return err
	}
	want := map[string]bool{r.Places.Manifest: true, libos.SigPath: true}
	enclave, err := inspect.ExtractFiles(ctx, img.Layers[n-1], want)
	if err != nil {
		return err
	}
	var config struct {
		Config struct{ Entrypoint, Cmd, Env []string } `json:"config"`
	}
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	c := startcheck.Command{
		Files: map[string]startcheck.File{}, Argv: append(config.Config.Entrypoint, config.Config.Cmd...),
		Env: config.Config.Env,
	}
	for p, content := range engineFiles {
		c.Files[p] = startcheck.File{Content: []byte(content)}
	}
	for p, f := range bundle.Files {
		content, err := f.Content()
		if err != nil {
			return err
		}
		c.Files[p] = startcheck.File{Content: content, Executable: true}
	}
	for p, content := range enclave {
		c.Files[p] = startcheck.File{Content: content}
	}
	if len(c.Argv) == 0 {
		return fmt.Errorf("%w: the image starts nothing", ErrNoStart)
	}
	started, err := startcheck.Run(ctx, c)
	if err != nil && (ctx.Err() != nil || errors.Is(err, startcheck.ErrUnsupported)) {
		return err
	}
	detail, problems := "the image's loader builds the enclave", []string(nil)
	switch {
	case err != nil:
		problems = []string{err.Error()}
	case !started.Reached:
		problems = []string{"the loader ended before it asked for EINIT: " + started.Output}
	default:
		detail = fmt.Sprintf("the image's loader added %d pages, %d of them measured, and a CPU would start the "+
			"enclave", started.Pages, started.MeasuredPages)
		problems = slices.Concat(started.Refused, foreign(started, r.MREnclave, enclave[libos.SigPath]))
	}
	r.Started = started
	v.add(CheckStart, detail, problems)
	r.Consistent, r.Trusted = r.Consistent && len(problems) == 0, r.Trusted && len(problems) == 0
	return nil
}

// foreign reports an enclave that is not the image's: whoever made the loader can have had it build another one.
func foreign(started *startcheck.Result, m sgx.Measurement, sigStruct []byte) []string {
	if started.MREnclave == m && bytes.Equal(started.SigStruct, sigStruct) {
		return nil
	}
	return []string{fmt.Sprintf("the loader built another enclave, %s, or gave the CPU another SIGSTRUCT",
		started.MREnclave)}
}
