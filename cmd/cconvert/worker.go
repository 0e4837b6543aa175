package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/health"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/libos/all"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// workFlags say how many images are worked on, and how often one is tried.
type workFlags struct {
	parallel, attempts int
	pause, timeout     time.Duration
}

func (w *workFlags) add(f *pflag.FlagSet) {
	f.IntVar(&w.parallel, "parallel", 4*runtime.NumCPU(),
		"images that are converted at a time; most of the time each waits for a registry")
	f.IntVar(&w.attempts, "attempts", batch.DefaultAttempts,
		"how often an image is tried that fails for a reason that may pass")
	f.DurationVar(&w.timeout, "image-timeout", batch.DefaultTimeout, "how long one attempt at an image may take")
	f.DurationVar(&w.pause, "retry-pause", batch.DefaultFirstPause, "wait before the second attempt; it doubles")
}

func (w *workFlags) options() (batch.WorkOptions, error) {
	if w.parallel < 1 || w.attempts < 1 || w.pause <= 0 || w.timeout <= 0 {
		return batch.WorkOptions{}, usagef("--parallel, --attempts, --retry-pause and --image-timeout are positive")
	}
	return batch.WorkOptions{Parallel: w.parallel, Timeout: w.timeout, Attempts: w.attempts, FirstPause: w.pause}, nil
}

// ownFlags are what is a worker's own, whatever it converts.
type ownFlags struct {
	access   registryFlags
	layers   layerFlags
	key      keyFlags
	evidence string // the key's file
}

func (o *ownFlags) add(f *pflag.FlagSet) {
	o.key.add(f, "the signing key (default: enclave-key.pem in the configuration directory)")
	f.StringVar(&o.evidence, "attest-key", "",
		"file with a private key, of ECDSA or Ed25519, that signs the statements which are attached to results")
	o.layers.cache.add(f)
	o.layers.addShared(f)
	f.StringVar(&o.layers.inflate, "inflate", "auto",
		"what inflates layers: go (this program), igzip, or auto: igzip where it is installed")
	o.access.add(f)
}

// options are the worker's own part of those of a conversion.
func (o *ownFlags) options() (own convert.Options, err error) {
	own.Image, own.Jobs = o.access.options(), o.access.jobs
	if err := o.layers.choose(&own, o.access); err != nil {
		return own, err
	}
	if own.Cache, err = o.layers.cache.store(); err != nil {
		return own, err
	}
	evidence := evidenceFlags{attest: true, key: o.evidence}
	own.Evidence, err = evidence.choose(false)
	return own, err
}

// newBatchWorker puts a worker together. Its name is the machine's and the process's.
func newBatchWorker(
	own convert.Options, signer sgx.Signer, files batch.Files, insecure, defaultKey bool,
) *batch.Worker {
	host, _ := os.Hostname()
	return &batch.Worker{
		Name: fmt.Sprintf("%s/%d", host, os.Getpid()), Own: own, Files: files, Insecure: insecure,
		DefaultKey: defaultKey,
		Backends:   all.Backends(), Signer: signer,
	}
}

func newWorker() *cobra.Command {
	var from queueFlags
	var own ownFlags
	var work workFlags
	var unsigned, newSigner bool
	var status string
	var files batch.Files
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Convert what others queue, on any number of machines",
		Long: `Convert images that "cconvert batch" and "cconvert serve" put into a queue of NATS JetStream.
Any number of workers on any machines share the work. When one dies, its images are given to
others. The signing key is the worker's own: it is in no queue.

SIGTERM, as of a rolling update, lets the worker finish the images it has begun; a second signal
ends it at once, and what it had begun is given to others.`,
		Example: `  # With the key of this machine, 16 images at a time
  cconvert worker --nats nats://nats.example:4222 --key enclave-key.pem --parallel 16`,
		Args: exactArgs(),
	}
	f := cmd.Flags()
	from.add(f)
	own.add(f)
	work.add(f)
	f.BoolVar(&unsigned, "unsigned", false, "have no key: only images that are to be signed later can be converted")
	f.BoolVar(&newSigner, "new-signer", false, "be the first of this queue's workers to sign by a new key; those that "+
		"have another one are refused from then on")
	f.StringArrayVar(&files.Dirs, "files", nil, "directory of this machine in which jobs may name runtimes, layouts "+
		"and archives (repeatable; default: registries only)")
	f.StringVar(&status, "status-listen", "", "address for /healthz, /readyz and /metrics, over HTTP (default: none)")
	f.DurationVar(&grace, "grace", 5*time.Minute, "how long images that were begun may take after SIGTERM")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if from.url == "" {
			return usagef("--nats is missing: a queue in a process of its own has no workers elsewhere")
		}
		o, err := work.options()
		if err != nil {
			return err
		}
		options, err := own.options()
		if err != nil {
			return err
		}
		var signer sgx.Signer
		if !unsigned {
			if signer, err = own.key.open(cmd.Context()); err != nil {
				return err
			}
			defer signer.Close()
		}
		drain := cmd.Context()
		ctx, cancel := context.WithCancel(context.WithoutCancel(drain))
		defer cancel()
		defer context.AfterFunc(drain, func() {
			logrus.Info("finishing what was begun; nothing new is taken")
			time.AfterFunc(grace, cancel)
		})()
		q, err := from.open(drain)
		if err != nil {
			return err
		}
		defer q.Close()
		if signer != nil {
			by, err := mrsigner(drain, signer)
			if err != nil {
				return err
			}
			if err := q.Claim(drain, by, newSigner); err != nil {
				return err
			}
		}
		o.Monitor = batch.NewMonitor(q.Ready)
		if status != "" {
			l, err := net.Listen("tcp", status)
			if err != nil {
				return fmt.Errorf("--status-listen: %w", err)
			}
			defer l.Close()
			go health.Serve(l, o.Monitor)
		}
		w := newBatchWorker(options, signer, files, own.access.insecure, own.key.name == "")
		logrus.Infof("%s takes images, %d at a time", w.Name, o.Parallel)
		return w.Work(ctx, drain, q, o)
	}
	return cmd
}
