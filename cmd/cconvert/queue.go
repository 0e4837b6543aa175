package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// queueFlags say where batches are queued.
type queueFlags struct {
	url, creds, nkey, ca, cert, certKey string
	user, password                      string
	patience                            time.Duration
	dir                                 string
	lease                               time.Duration
	replicas                            int
}

func (q *queueFlags) add(f *pflag.FlagSet) {
	q.addReading(f)
	f.IntVar(&q.replicas, "nats-replicas", 0,
		"on how many servers of a cluster the queue is kept (default: three, where there are as many)")
	f.DurationVar(&q.lease, "lease", 0, "how long a worker may be silent before its image is given to another one; "+
		"given, it is changed for all workers (default: 30s)")
}

// addReading adds the flags of those who change nothing about how the queue is worked on.
func (q *queueFlags) addReading(f *pflag.FlagSet) {
	f.StringVar(&q.url, "nats", "", "URL of a NATS server with JetStream, or several with commas between, that keeps "+
		"the queue (default: a queue in this process)")
	f.StringVar(&q.user, "nats-user", "", "user at NATS, whose password is in the file of --nats-password-file")
	f.StringVar(&q.password, "nats-password-file", "", "file with the password of --nats-user")
	f.DurationVar(&q.patience, "nats-timeout", queue.DefaultPatience, "how long NATS is waited for that is not there")
	f.StringVar(&q.creds, "nats-creds", "", "file with a user's credentials for NATS")
	f.StringVar(&q.nkey, "nats-nkey", "", "file with the seed of a user's NKey for NATS")
	f.StringVar(&q.ca, "nats-ca", "", "file with the certificates of authorities for NATS")
	f.StringVar(&q.cert, "nats-cert", "", "file with this client's certificate for NATS")
	f.StringVar(&q.certKey, "nats-cert-key", "", "file with the key of --nats-cert")
	f.StringVar(&q.dir, "state-dir", "",
		"where the queue in this process keeps its files (default: $XDG_STATE_HOME/cconvert)")
}

func (q *queueFlags) open(ctx context.Context) (*queue.Queue, error) { return q.openFor(ctx, false) }

// openFor opens the queue, to read alone or to work on it.
func (q *queueFlags) openFor(ctx context.Context, read bool) (*queue.Queue, error) {
	o := queue.Options{Read: read, URL: q.url, Lease: q.lease, Replicas: q.replicas, Patience: q.patience}
	if q.patience < 0 {
		return nil, usagef("--nats-timeout is positive")
	}
	if (q.user == "") != (q.password == "") {
		return nil, usagef("--nats-user and --nats-password-file belong together")
	}
	if q.user != "" {
		text, err := os.ReadFile(q.password)
		if err != nil {
			return nil, &usageError{fmt.Errorf("--nats-password-file: %w", err)}
		}
		o.Connect = append(o.Connect, nats.UserInfo(q.user, strings.TrimRight(string(text), "\r\n")))
	}
	if q.lease != 0 && q.lease < time.Second {
		return nil, usagef("--lease %s: a second is the least", q.lease)
	}
	if q.creds != "" {
		o.Connect = append(o.Connect, nats.UserCredentials(q.creds))
	}
	if q.nkey != "" {
		option, err := nats.NkeyOptionFromSeed(q.nkey)
		if err != nil {
			return nil, &usageError{fmt.Errorf("--nats-nkey %s: %w", q.nkey, err)}
		}
		o.Connect = append(o.Connect, option)
	}
	if q.ca != "" {
		o.Connect = append(o.Connect, nats.RootCAs(q.ca))
	}
	if (q.cert == "") != (q.certKey == "") {
		return nil, usagef("--nats-cert and --nats-cert-key belong together")
	}
	if q.cert != "" {
		o.Connect = append(o.Connect, nats.ClientCert(q.cert, q.certKey))
	}
	if o.URL == "" {
		if len(o.Connect) > 0 {
			return nil, usagef("--nats is missing: the queue in this process needs no credentials")
		}
		var err error
		if o.Dir, err = q.stateDir(); err != nil {
			return nil, err
		}
	}
	return queue.Open(ctx, o)
}

// stateDir is the queue's, and exists.
func (q *queueFlags) stateDir() (string, error) {
	dir := q.dir
	if dir == "" {
		if dir = os.Getenv("XDG_STATE_HOME"); dir == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", usagef("no place for the queue: set HOME, or name a directory with --state-dir")
			}
			dir = filepath.Join(home, ".local", "state")
		}
		dir = filepath.Join(dir, "cconvert")
	}
	dir = filepath.Join(dir, "queue")
	return dir, os.MkdirAll(dir, 0o700)
}

// mrsigner is the MRSIGNER of a key by which this process signs; zero if others sign.
func mrsigner(ctx context.Context, s sgx.Signer) (m sgx.Measurement, err error) {
	if s == nil {
		return m, nil
	}
	key, err := s.Public(ctx)
	if err != nil {
		return m, fmt.Errorf("reading the signing key: %w", err)
	}
	return sgx.MRSigner(key), nil
}
