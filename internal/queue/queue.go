package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	neturl "net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirupsen/logrus"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Names in JetStream.
const (
	streamName   = "CCONVERT"
	subjects     = "cconvert.jobs."
	batchBucket  = "cconvert-batches"
	recordBucket = "cconvert-records"
	latestBucket = "cconvert-latest" // the ID of the last request, by target
)

// lanes are parts of the queue that take turns. All images of a registry are in one, so that a registry with many
// does not keep the others waiting.
const lanes = 8

// DefaultLease is how long a worker may be silent before its image is given to another one.
const DefaultLease = 30 * time.Second

// maxPayload is how long a job may be in the queue inside the process; other servers have limits of their own.
const maxPayload = 8 << 20

// Queue holds batches: their jobs, and what became of them.
type Queue struct {
	js      jetstream.JetStream
	conn    *nats.Conn
	batches jetstream.KeyValue
	records jetstream.KeyValue
	latest  jetstream.KeyValue
	lease   time.Duration   // 0: as it is
	alone   bool            // the server is in this process, and so are all workers
	signer  sgx.Measurement // that was claimed; zero: none
	Closed  context.Context // ends when there is no connection any more
	close   []func()
}

// Options say how a queue is reached.
type Options struct {
	// URL of NATS servers, with commas between; empty: a server in this process, with its files in Dir.
	URL string
	// Dir is where the server in this process keeps its files.
	Dir string
	// Connect are credentials and TLS for a server elsewhere.
	Connect []nats.Option
	// Lease is how long a worker may be silent; 0: as the queue has it, which is DefaultLease at first.
	Lease time.Duration
	// Read says that nothing will be written. While another process works on Dir, what it has written so far is read.
	Read bool
	// Patience is how long servers are waited for that cannot be reached: they may be starting with their clients. 0:
	// DefaultPatience.
	Patience time.Duration
	// Replicas is on how many servers of a cluster everything is kept; 0: as it is, which is three at first, where
	// there are as many.
	Replicas int
}

// ErrBusy says that another process uses the queue's directory.
var ErrBusy = errors.New("another process is working on the batches in this directory")

// ErrClosed says that the connection to the queue was given up: its server refuses this client by now.
var ErrClosed = errors.New("the connection to the queue has ended")

// ErrUnreachable is returned if no server of the queue could be connected to.
var ErrUnreachable = errors.New("no server can be reached")

// Open reaches the queue, and makes what is missing.
func Open(ctx context.Context, o Options) (_ *Queue, err error) {
	closed, end := context.WithCancelCause(context.Background())
	q := &Queue{lease: o.Lease, alone: o.URL == "", Closed: closed}
	defer func() {
		if err != nil {
			q.Close()
		}
	}()
	url := o.URL
	options := append([]nats.Option{
		nats.Name("cconvert"), nats.MaxReconnects(-1), nats.ReconnectWait(500 * time.Millisecond),
		nats.Timeout(5 * time.Second),
		nats.ReconnectBufSize(-1), // what was sent must have been answered
		nats.ClosedHandler(func(c *nats.Conn) { end(fmt.Errorf("%w: %w", ErrClosed, cmp.Or(c.LastError(), io.EOF))) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { logrus.Debugf("the queue: %v", err) }),
	}, o.Connect...)
	if url == "" {
		s, err := q.serve(o.Dir, o.Read)
		if err != nil {
			return nil, err
		}
		options = append(options, nats.InProcessServer(s))
	}
	patience := cmp.Or(o.Patience, DefaultPatience)
	if q.conn, err = connect(ctx, url, patience, options); err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", cmp.Or(withoutPassword(url), "the queue"), err)
	}
	q.close = append(q.close, q.conn.Close)
	if q.js, err = jetstream.New(q.conn); err != nil {
		return nil, err
	}
	if err := q.ensure(ctx, o); err != nil || o.Read || url == "" {
		return q, err
	}
	_, err = q.Consumers(ctx, "") // by what waits in them an autoscaler starts the first worker
	return q, err
}

// DefaultPatience is what Options.Patience is if nobody says otherwise.
const DefaultPatience = 10 * time.Second

// withoutPassword returns URLs of servers as they may be logged.
func withoutPassword(urls string) string {
	list := strings.Split(urls, ",")
	for i, text := range list {
		scheme, rest, found := strings.Cut(text, "://")
		if !found {
			scheme, rest = "nats", text // as the library has it
		}
		u, err := neturl.Parse(scheme + "://" + rest)
		switch {
		case err != nil || strings.Contains(u.Path+u.Fragment+u.RawQuery, "@"):
			list[i] = scheme + "://…" // what is the password is not known
		case u.User != nil:
			list[i] = scheme + "://…@" + u.Host
		}
	}
	return strings.Join(list, ",")
}

// errURL says that a URL of a server cannot be read: what the parser says of it can have the password in it.
var errURL = errors.New("the URL cannot be read: characters of a password in it must be escaped, or give it by " +
	"--nats-password-file")

// connect reaches one of the servers. A connection that is lost later is made again by the library, but the first one
// is not.
func connect(
	ctx context.Context, url string, patience time.Duration, options []nats.Option,
) (*nats.Conn, error) {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 100*time.Millisecond, time.Second
	return backoff.Retry(ctx, func() (*nats.Conn, error) {
		c, err := nats.Connect(url, options...)
		var network *net.OpError
		var syntax *neturl.Error
		switch {
		case err == nil:
			return c, nil
		case errors.As(err, &syntax):
			return nil, backoff.Permanent(errURL)
		case errors.As(err, &network), errors.Is(err, nats.ErrNoServers), errors.Is(err, io.EOF):
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		return nil, backoff.Permanent(err)
	}, backoff.WithBackOff(b), backoff.WithMaxElapsedTime(patience), backoff.WithNotify(
		func(err error, _ time.Duration) {
			logrus.Infof("waiting for the queue at %s: %v", withoutPassword(url), err)
		}))
}

// serve starts the server in this process. Nobody else can connect to it.
func (q *Queue) serve(dir string, read bool) (*server.Server, error) {
	lock := flock.New(dir + ".lock")
	mine, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	switch {
	case mine:
		q.close = append(q.close, func() { _ = lock.Unlock() })
	case !read:
		return nil, fmt.Errorf("%w: %s", ErrBusy, dir)
	default:
		if dir, err = q.copy(dir); err != nil {
			return nil, fmt.Errorf("reading the queue: %w", err)
		}
	}
	s, err := server.NewServer(&server.Options{
		DontListen: true, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true, MaxPayload: maxPayload,
		SyncAlways: true, // a power failure must not take what was done
	})
	if err != nil {
		return nil, fmt.Errorf("starting the queue in %s: %w", dir, err)
	}
	go s.Start()
	q.close = append(q.close, func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		return nil, fmt.Errorf("starting the queue in %s: it does not come up", dir)
	}
	return s, nil
}

// copy copies the files of a queue that another process is working on. The server passes over a record of which only a
// part was written by then.
func (q *Queue) copy(dir string) (string, error) {
	to, err := os.MkdirTemp("", "cconvert-queue-")
	if err != nil {
		return "", err
	}
	q.close = append(q.close, func() { os.RemoveAll(to) })
	for attempt := 0; ; attempt++ {
		at := filepath.Join(to, strconv.Itoa(attempt))
		err := os.CopyFS(at, os.DirFS(dir))
		if err == nil || !errors.Is(err, fs.ErrNotExist) || attempt == 4 { // files come and go
			return at, err
		}
	}
}

// ensure makes the stream and the buckets, if they are missing. What is there stays as it is, for others use it,
// unless it is asked for otherwise.
func (q *Queue) ensure(ctx context.Context, o Options) error {
	stream := jetstream.StreamConfig{
		// One message for a request of a job: the same is not queued twice (NATS, "Discard New Per Subject").
		Name: streamName, Subjects: []string{subjects + ">"}, Retention: jetstream.WorkQueuePolicy,
		Storage: jetstream.FileStorage,
		Discard: jetstream.DiscardNew, DiscardNewPerSubject: true, MaxMsgsPerSubject: 1,
	}
	return q.try(ctx, func(ctx context.Context) error {
		replicas := o.Replicas
		if replicas == 0 {
			if replicas = 1; len(q.conn.Servers()) >= 3 { // as many as are known by now
				replicas = 3
			}
		}
		stream.Replicas = replicas
		_, err := q.js.Stream(ctx, streamName)
		if errors.Is(err, jetstream.ErrStreamNotFound) || err == nil && o.Replicas != 0 {
			_, err = q.js.CreateOrUpdateStream(ctx, stream)
		}
		if err != nil {
			return fmt.Errorf("making the queue: %w", err)
		}
		for _, b := range []struct {
			name string
			kv   *jetstream.KeyValue
		}{{batchBucket, &q.batches}, {recordBucket, &q.records}, {latestBucket, &q.latest}} {
			*b.kv, err = q.js.KeyValue(ctx, b.name)
			if errors.Is(err, jetstream.ErrBucketNotFound) || err == nil && o.Replicas != 0 {
				*b.kv, err = q.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: b.name, History: 1,
					Storage: jetstream.FileStorage, Replicas: replicas})
			}
			if err == nil {
				*b.kv, err = q.readLeader(ctx, *b.kv)
			}
			if err != nil {
				return fmt.Errorf("making the bucket %s: %w", b.name, err)
			}
		}
		return nil
	})
}

// readLeader has a bucket of a cluster read from its leader. Every server may answer otherwise (NATS, "Direct Get"),
// with what it knows by then: a request that was just replaced would be taken for the last one.
func (q *Queue) readLeader(ctx context.Context, kv jetstream.KeyValue) (jetstream.KeyValue, error) {
	s, err := q.js.Stream(ctx, "KV_"+kv.Bucket()) // ADR-8 of NATS
	if err != nil {
		return nil, err
	}
	config := s.CachedInfo().Config
	if config.Replicas <= 1 || !config.AllowDirect {
		return kv, nil
	}
	config.AllowDirect = false
	if _, err := q.js.UpdateStream(ctx, config); err != nil {
		return nil, err
	}
	return q.js.KeyValue(ctx, kv.Bucket()) // which knows how to read since it was bound
}

// Consumers are the lanes, for a worker to take jobs from: of one batch, or of all if that is empty. Their lease is
// that of whoever made them, unless this queue was opened with another.
func (q *Queue) Consumers(ctx context.Context, batch string) ([]jetstream.Consumer, error) {
	list := make([]jetstream.Consumer, lanes)
	for lane := range list {
		config := jetstream.ConsumerConfig{
			Durable: consumerName(lane), FilterSubject: fmt.Sprintf("%s%d.>", subjects, lane),
			AckPolicy: jetstream.AckExplicitPolicy,
			AckWait:   cmp.Or(q.lease, DefaultLease), MaxDeliver: -1, MaxAckPending: -1,
		}
		if batch != "" {
			config.FilterSubject = fmt.Sprintf("%s%d.%s.>", subjects, lane, batch)
		}
		err := q.try(ctx, func(ctx context.Context) (err error) {
			if q.alone { // what an earlier process had begun is free
				if err := q.js.DeleteConsumer(ctx, streamName, config.Durable); err != nil &&
					!errors.Is(err, jetstream.ErrConsumerNotFound) {
					return err
				}
			}
			list[lane], err = q.js.Consumer(ctx, streamName, config.Durable)
			if errors.Is(err, jetstream.ErrConsumerNotFound) || err == nil && q.lease != 0 {
				list[lane], err = q.js.CreateOrUpdateConsumer(ctx, streamName, config)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("reaching the queue: %w", err)
		}
	}
	return list, nil
}

func consumerName(lane int) string { return fmt.Sprintf("lane-%d", lane) }

// Close lets go of the queue.
func (q *Queue) Close() {
	for _, f := range slices.Backward(q.close) {
		f()
	}
	q.close = nil
}

// lasting are answers of JetStream that stay the same.
var lasting = []error{
	jetstream.ErrKeyNotFound, jetstream.ErrKeyExists, jetstream.ErrKeyRevisionMismatch, jetstream.ErrInvalidKey,
	jetstream.ErrConsumerNotFound, jetstream.ErrStreamNotFound, jetstream.ErrBucketNotFound, ErrRecord, ErrSigner,
	jetstream.ErrBadRequest, jetstream.ErrJetStreamNotEnabled, jetstream.ErrJetStreamNotEnabledForAccount,
	nats.ErrMaxPayload, nats.ErrAuthorization, nats.ErrPermissionViolation,
}

// answerTime is how long the server may be silent before it is asked again.
const answerTime = 10 * time.Second

// try asks the server until it answers: it may be restarting, or choosing a leader.
func (q *Queue) try(ctx context.Context, ask func(context.Context) error) error {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 100*time.Millisecond, 3*time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		once, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		err := ask(once)
		var api *jetstream.APIError
		permanent := slices.ContainsFunc(lasting, func(e error) bool { return errors.Is(err, e) }) ||
			errors.As(err, &api) && api.Code >= 400 && api.Code < 500 && api.Code != 408 ||
			q.conn.IsClosed()
		if err != nil && permanent {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(b), backoff.WithMaxElapsedTime(0))
	return err
}

// Ready reports whether the queue answers.
func (q *Queue) Ready(ctx context.Context) error {
	_, err := q.js.Stream(ctx, streamName)
	return err
}
