package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/internal/renewed"
	"github.com/cconvert/cconvert/internal/service"
)

const serveLong = `Convert images because somebody asks over HTTP: Harbor and the Distribution registry by their
notifications, others by a request. The entries of a plan are the rules: an image is converted
only if one of them covers it and, unless the entry says "allowUnsigned: true", only if it has a
signature of cosign by one of the entry's keys or identities. docs/batch.md describes it.

Whoever asks must know the secret, or show a certificate. With --nats the work is done by "cconvert
worker"; otherwise by this process, which then needs the signing key.`

const serveExamples = `  # Rules in plan.yaml, workers elsewhere
  cconvert serve plan.yaml --nats nats://nats.example:4222 --secret-file secret \
    --tls-cert tls.pem --tls-key tls-key.pem

  # All in one process, for a registry on the same machine
  cconvert serve plan.yaml --listen 127.0.0.1:8080 --secret-file secret --key enclave-key.pem`

// serveFlags are about the service's own door.
type serveFlags struct {
	listen, secret, cert, key, clientCA string
}

func newServe() *cobra.Command {
	var from queueFlags
	var own ownFlags
	var work workFlags
	var door serveFlags
	cmd := &cobra.Command{
		Use:     "serve PLAN",
		Short:   "Convert images when registries or others ask for it over HTTP",
		Long:    serveLong,
		Example: serveExamples,
		Args:    exactArgs("PLAN"),
	}
	f := cmd.Flags()
	f.StringVar(&door.listen, "listen", "127.0.0.1:8080", "address to listen on")
	f.StringVar(&door.secret, "secret-file", "", "file with the secrets of which a request must carry one, "+
		"each on a line; it is read again when it changes")
	f.StringVar(&door.cert, "tls-cert", "", "file with the service's certificate")
	f.StringVar(&door.key, "tls-key", "", "file with the key of --tls-cert")
	f.StringVar(&door.clientCA, "client-ca", "", "file with the authorities whose certificates let clients in")
	from.add(f)
	own.add(f)
	work.add(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		file := args[0]
		options, err := own.options()
		if err != nil {
			return err
		}
		p, keychain, err := readPlan(file, options.Image.Keychain)
		if err != nil {
			return err
		}
		options.Image.Keychain, p.Insecure = keychain, own.access.insecure
		o := service.Options{Plan: p, Image: options.Image}
		if o.Trust, err = service.ReadTrust(file, p); err != nil {
			return err
		}
		if _, err := planDigest(file, p, own.access.insecure); err != nil {
			return err
		}
		config, err := door.tls()
		if err != nil {
			return err
		}
		if o.Secrets, err = door.secrets(config); err != nil {
			return err
		}
		if err := own.layers.reserve(p, own.access.insecure); err != nil {
			return err
		}
		o.Job = func(img plan.Image) (queue.Job, error) { return planJob(file, img, p, own.access.insecure) }

		ctx, end := context.WithCancelCause(cmd.Context())
		defer end(nil)
		var worker *batch.Worker
		times, err := work.options()
		if err != nil {
			return err
		}
		if from.url == "" {
			signer, err := own.key.open(ctx)
			if err != nil {
				return err
			}
			defer signer.Close()
			worker = newBatchWorker(options, signer, batch.Files{All: true}, own.access.insecure, own.key.name == "")
		}
		q, err := from.open(ctx)
		if err != nil {
			return err
		}
		defer q.Close()
		o.Queue = q
		s := service.New(o)
		listener, err := net.Listen("tcp", door.listen)
		if err != nil {
			return err
		}
		if config != nil {
			listener = tls.NewListener(listener, config)
		}
		worked := make(chan struct{})
		go func() {
			defer close(worked)
			if worker != nil {
				times.Batch = queue.Requests
				if err := worker.Work(context.WithoutCancel(ctx), ctx, q, times); err != nil {
					end(fmt.Errorf("nothing is converted any more: %w", err))
				}
			}
		}()
		go func() {
			if err := s.Run(ctx); err != nil && ctx.Err() == nil {
				end(fmt.Errorf("what becomes of conversions is not seen any more: %w", err))
			}
		}()
		if err := q.ResumeRequests(ctx); err != nil {
			return err
		}
		server := &http.Server{
			Handler: s, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
			WriteTimeout: 45 * time.Second, IdleTimeout: time.Minute,
			MaxHeaderBytes: 16 << 10,
		}
		ended := make(chan struct{})
		defer context.AfterFunc(ctx, func() {
			defer close(ended)
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			_ = server.Shutdown(limited)
		})()
		logrus.Infof("listening on %s", listener.Addr())
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		<-ended
		<-worked
		if cmd.Context().Err() == nil { // whoever supervises it starts it again
			return context.Cause(ctx)
		}
		return nil
	}
	return cmd
}

// tls is how the service proves who it is, and who its clients are; nil if it does not.
func (d *serveFlags) tls() (*tls.Config, error) {
	if (d.cert == "") != (d.key == "") || d.cert == "" && d.clientCA != "" {
		return nil, usagef("--tls-cert and --tls-key belong together, and --client-ca needs them")
	}
	if d.cert == "" {
		return nil, nil
	}
	pair := renewed.Certificate(d.cert, d.key)
	if _, err := pair.Get(); err != nil {
		return nil, &usageError{fmt.Errorf("--tls-cert: %w", err)}
	}
	c := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.Get() },
	}
	if d.clientCA == "" {
		return c, nil
	}
	text, err := os.ReadFile(d.clientCA)
	if err != nil {
		return nil, &usageError{fmt.Errorf("--client-ca: %w", err)}
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
	if !c.ClientCAs.AppendCertsFromPEM(text) {
		return nil, usagef("--client-ca %s: it holds no certificate", d.clientCA)
	}
	return c, nil
}

// secrets returns those of which a request must carry one; nil if clients show certificates.
func (d *serveFlags) secrets(config *tls.Config) (service.Secrets, error) {
	if d.secret == "" {
		if config == nil || config.ClientCAs == nil {
			return nil, usagef("--secret-file or --client-ca is missing: nobody could ask")
		}
		return nil, nil
	}
	secrets, err := service.ReadSecrets(d.secret)
	if err != nil {
		return nil, &usageError{fmt.Errorf("--secret-file: %w", err)}
	}
	return secrets, nil
}
