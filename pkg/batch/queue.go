package batch

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

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
	lease   time.Duration // 0: as it is
	alone   bool          // the server is in this process, and so are all workers
	close   []func()
}

// QueueOptions say how a queue is reached.
type QueueOptions struct {
	// URL of NATS servers, with commas between; empty: a server in this process, with its files in Dir.
	URL string
	// Dir is where the server in this process keeps its files.
	Dir string
	// Connect are credentials and TLS for a server elsewhere.
	Connect []nats.Option
	// Lease is how long a worker may be silent; 0: as the queue has it, which is DefaultLease at first.
	Lease time.Duration
	// Replicas is on how many servers of a cluster everything is kept; 0: as it is, which is three at first, where there
	// are as many.
	Replicas int
}

// ErrBusy says that another process uses the queue's directory.
var ErrBusy = errors.New("another process is working on the batches in this directory")

// Open reaches the queue, and makes what is missing.
func Open(ctx context.Context, o QueueOptions) (_ *Queue, err error) {
	q := &Queue{lease: o.Lease, alone: o.URL == ""}
	defer func() {
		if err != nil {
			q.Close()
		}
	}()
	url := o.URL
	options := append([]nats.Option{
		nats.Name("cconvert"), nats.MaxReconnects(-1), nats.ReconnectWait(500 * time.Millisecond), nats.Timeout(5 * time.Second),
		nats.ReconnectBufSize(-1), // what was sent must have been answered
	}, o.Connect...)
	if url == "" {
		s, err := q.serve(o.Dir)
		if err != nil {
			return nil, err
		}
		options = append(options, nats.InProcessServer(s))
	}
	if q.conn, err = nats.Connect(url, options...); err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", cmp.Or(url, "the queue"), err)
	}
	q.close = append(q.close, q.conn.Close)
	if q.js, err = jetstream.New(q.conn); err != nil {
		return nil, err
	}
	return q, q.ensure(ctx, o)
}

// serve starts the server in this process. Nobody else can connect to it.
func (q *Queue) serve(dir string) (*server.Server, error) {
	lock := flock.New(dir + ".lock")
	mine, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	if !mine {
		return nil, fmt.Errorf("%w: %s", ErrBusy, dir)
	}
	q.close = append(q.close, func() { _ = lock.Unlock() })
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

// ensure makes the stream and the buckets, where they are missing. What is there stays as it is, for others use it,
// unless it is asked for otherwise.
func (q *Queue) ensure(ctx context.Context, o QueueOptions) error {
	replicas := o.Replicas
	if replicas == 0 {
		if replicas = 1; len(q.conn.Servers()) >= 3 {
			replicas = 3
		}
	}
	stream := jetstream.StreamConfig{
		// One message for a request of a job: the same is not queued twice (NATS, "Discard New Per Subject").
		Name: streamName, Subjects: []string{subjects + ">"}, Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage,
		Discard: jetstream.DiscardNew, DiscardNewPerSubject: true, MaxMsgsPerSubject: 1, Replicas: replicas,
	}
	return q.try(ctx, func(ctx context.Context) error {
		_, err := q.js.Stream(ctx, streamName)
		if errors.Is(err, jetstream.ErrStreamNotFound) || err == nil && o.Replicas != 0 {
			_, err = q.js.CreateOrUpdateStream(ctx, stream)
		}
		if err != nil {
			return fmt.Errorf("making the queue: %w", err)
		}
		for bucket, kv := range map[string]*jetstream.KeyValue{batchBucket: &q.batches, recordBucket: &q.records, latestBucket: &q.latest} {
			*kv, err = q.js.KeyValue(ctx, bucket)
			if errors.Is(err, jetstream.ErrBucketNotFound) || err == nil && o.Replicas != 0 {
				*kv, err = q.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, History: 1, Storage: jetstream.FileStorage, Replicas: replicas})
			}
			if err != nil {
				return fmt.Errorf("making the bucket %s: %w", bucket, err)
			}
		}
		return nil
	})
}

// consumers are the lanes, for a worker to take jobs from: of one batch, or of all where that is empty. Their lease is
// that of whoever made them, unless this queue was opened with another.
func (q *Queue) consumers(ctx context.Context, batch string) ([]jetstream.Consumer, error) {
	list := make([]jetstream.Consumer, lanes)
	for lane := range list {
		config := jetstream.ConsumerConfig{
			Durable: consumerName(lane), FilterSubject: fmt.Sprintf("%s%d.>", subjects, lane), AckPolicy: jetstream.AckExplicitPolicy,
			AckWait: cmp.Or(q.lease, DefaultLease), MaxDeliver: -1, MaxAckPending: -1,
		}
		if batch != "" {
			config.FilterSubject = fmt.Sprintf("%s%d.%s.>", subjects, lane, batch)
		}
		err := q.try(ctx, func(ctx context.Context) (err error) {
			if q.alone { // what an earlier process had begun is free
				if err := q.js.DeleteConsumer(ctx, streamName, config.Durable); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
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
	jetstream.ErrKeyNotFound, jetstream.ErrKeyExists, jetstream.ErrConsumerNotFound, jetstream.ErrStreamNotFound, jetstream.ErrBucketNotFound, errRecord, ErrSigner, jetstream.ErrBadRequest, jetstream.ErrJetStreamNotEnabled, jetstream.ErrJetStreamNotEnabledForAccount,
	nats.ErrMaxPayload, nats.ErrAuthorization, nats.ErrPermissionViolation,
}

// try asks the server until it answers: it may be restarting, or choosing a leader.
func (q *Queue) try(ctx context.Context, ask func(context.Context) error) error {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 100*time.Millisecond, 3*time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		once, cancel := context.WithTimeout(ctx, 10*time.Second)
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

// Batch is a list of jobs that were given to the queue together.
type Batch struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"` // of the plan, for people
	Created time.Time `json:"created"`
	Total   int       `json:"total"`
}

// ErrNoBatch says that there is no such batch.
var ErrNoBatch = errors.New("no such batch")

// newID is one that people can tell the time by.
func newID(now time.Time) string {
	return now.UTC().Format("20060102-150405-") + strings.ToLower(rand.Text()[:6])
}

// Submit queues jobs as a batch. The same job twice is one.
func (q *Queue) Submit(ctx context.Context, name string, jobs []Job) (*Batch, error) {
	b := &Batch{ID: newID(time.Now()), Name: name, Created: time.Now().UTC()}
	records := map[string]*Record{}
	var order []*Record
	for _, j := range jobs {
		r := &Record{Batch: b.ID, ID: j.ID(), Job: j, Status: Queued, Updated: b.Created}
		if records[r.ID] == nil {
			records[r.ID] = r
			order = append(order, r)
		}
	}
	b.Total = len(order)
	// Records come first, then the batch, then the work: a batch that is there is complete, and Resume can queue what
	// is missing.
	if err := each(ctx, order, func(ctx context.Context, r *Record) error { return q.put(ctx, r) }); err != nil {
		return nil, fmt.Errorf("queueing the batch: %w", err)
	}
	text, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	if err := q.try(ctx, func(ctx context.Context) error { _, err := q.batches.Put(ctx, b.ID, text); return err }); err != nil {
		return nil, fmt.Errorf("queueing the batch: %w", err)
	}
	return b, q.queue(ctx, order)
}

// atOnce is how many requests are made to the queue side by side.
const atOnce = 16

func each(ctx context.Context, records []*Record, do func(context.Context, *Record) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, r := range records {
		g.Go(func() error { return do(ctx, r) })
	}
	return g.Wait()
}

// queue gives jobs to the workers, in their order. Those that are queued already stay where they are.
func (q *Queue) queue(ctx context.Context, records []*Record) error {
	for _, r := range records {
		err := q.try(ctx, func(ctx context.Context) error {
			_, err := q.js.Publish(ctx, subject(r), fmt.Appendf(nil, "%s.%s %d", r.Batch, r.ID, r.Request))
			var api *jetstream.APIError
			if errors.As(err, &api) && api.ErrorCode == perSubjectFull {
				return nil
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("queueing %s: %w", r.Job.Source, err)
		}
	}
	return nil
}

// perSubjectFull is JSStreamStoreFailedF, by which the server says that a subject has its one message.
const perSubjectFull = 10077

// subject puts a job into the lane of its source's registry.
func subject(r *Record) string {
	host, _, _ := strings.Cut(r.Job.Source, "/")
	h := fnv.New32a()
	h.Write([]byte(host))
	return fmt.Sprintf("%s%d.%s.%s.%d", subjects, h.Sum32()%lanes, r.Batch, r.ID, r.Request)
}

// maxError is how much of an error a record holds, in bytes: registries answer with whole pages.
const maxError = 4 << 10

func marshal(r *Record) ([]byte, error) {
	r.Error = strings.ToValidUTF8(r.Error[:min(len(r.Error), maxError)], "")
	return json.Marshal(r)
}

func (q *Queue) put(ctx context.Context, r *Record) error {
	b, err := marshal(r)
	if err != nil {
		return err
	}
	return q.try(ctx, func(ctx context.Context) error { _, err := q.records.Put(ctx, r.Batch+"."+r.ID, b); return err })
}

// errRecord says that a record is none, or of another version of this program.
var errRecord = errors.New("a record of the queue cannot be read")

// get gives a record by its key, nil where there is none.
func (q *Queue) get(ctx context.Context, key string) (r *Record, revision uint64, err error) {
	err = q.try(ctx, func(ctx context.Context) error {
		e, err := q.records.Get(ctx, key)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		r, revision = &Record{}, e.Revision()
		if err := json.Unmarshal(e.Value(), r); err != nil {
			return fmt.Errorf("%w: %w", errRecord, err)
		}
		return nil
	})
	return r, revision, err
}

// Batches lists what the queue knows, the newest first.
func (q *Queue) Batches(ctx context.Context) ([]*Batch, error) {
	var list []*Batch
	err := q.scan(ctx, q.batches, ">", func(value []byte) error {
		b := &Batch{}
		list = append(list, b)
		return json.Unmarshal(value, b)
	})
	slices.SortFunc(list, func(a, b *Batch) int { return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.ID, a.ID)) })
	return list, err
}

// Find gives the batch of an ID; empty: the newest.
func (q *Queue) Find(ctx context.Context, id string) (*Batch, error) {
	list, err := q.Batches(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range list {
		if id == "" || b.ID == id {
			return b, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNoBatch, cmp.Or(id, "there is none"))
}

// Records gives what is known of a batch's jobs, in the order of their sources.
func (q *Queue) Records(ctx context.Context, batch string) ([]*Record, error) {
	var list []*Record
	err := q.scan(ctx, q.records, batch+".*", func(value []byte) error {
		r := &Record{}
		list = append(list, r)
		return json.Unmarshal(value, r)
	})
	slices.SortFunc(list, func(a, b *Record) int {
		return cmp.Or(cmp.Compare(a.Job.Source, b.Job.Source), cmp.Compare(a.Job.Target, b.Job.Target), cmp.Compare(a.ID, b.ID))
	})
	return list, err
}

// scan visits the present values of a bucket once.
func (q *Queue) scan(ctx context.Context, kv jetstream.KeyValue, keys string, visit func([]byte) error) error {
	var values [][]byte
	err := q.try(ctx, func(ctx context.Context) error {
		values = nil
		w, err := kv.Watch(ctx, keys, jetstream.IgnoreDeletes())
		if err != nil {
			return err
		}
		defer w.Stop() //nolint:errcheck // it is not needed any more
		for {
			select {
			case e := <-w.Updates():
				if e == nil { // these were all that there are
					return nil
				}
				values = append(values, e.Value())
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	if err != nil {
		return fmt.Errorf("reading what the queue knows: %w", err)
	}
	for _, v := range values {
		if err := visit(v); err != nil {
			return fmt.Errorf("reading what the queue knows: %w", err)
		}
	}
	return nil
}

// Resume queues again what a batch has left to do, as far as it is not queued.
func (q *Queue) Resume(ctx context.Context, b *Batch) (left int, err error) {
	records, err := q.Records(ctx, b.ID)
	if err != nil {
		return 0, err
	}
	records = slices.DeleteFunc(records, func(r *Record) bool { return r.Status.Final() })
	return len(records), q.queue(ctx, records)
}

// Retry queues again what has failed in a batch.
func (q *Queue) Retry(ctx context.Context, b *Batch) (failed int, err error) {
	records, err := q.Records(ctx, b.ID)
	if err != nil {
		return 0, err
	}
	records = slices.DeleteFunc(records, func(r *Record) bool { return r.Status != Failed })
	for _, r := range records {
		r.Status, r.Attempts, r.Begun, r.Error, r.Transient, r.Updated = Queued, 0, 0, "", false, time.Now().UTC()
		r.Request++
	}
	if err := each(ctx, records, func(ctx context.Context, r *Record) error { return q.put(ctx, r) }); err != nil {
		return 0, err
	}
	return len(records), q.queue(ctx, records)
}

// quiet is how long nothing is heard before a batch is looked at anew: a server may have been restarted.
const quiet = time.Minute

// Wait tells of every record of a batch, as it is and as it changes, until all are final.
func (q *Queue) Wait(ctx context.Context, b *Batch, tell func(*Record)) error {
	last := map[string]Record{}
	open := b.Total
	see := func(value []byte) error {
		r := &Record{}
		if err := json.Unmarshal(value, r); err != nil {
			return fmt.Errorf("reading what the queue knows: %w", err)
		}
		before, known := last[r.ID]
		if known && before.Updated.Equal(r.Updated) && before.Status == r.Status {
			return nil
		}
		if r.Status.Final() && (!known || !before.Status.Final()) {
			open--
		}
		last[r.ID] = *r
		tell(r)
		return nil
	}
	for open > 0 {
		if err := q.follow(ctx, b.ID, see, func() bool { return open == 0 }); err != nil {
			return err
		}
	}
	return nil
}

// ErrSigner says that the workers of a queue sign by another key.
var ErrSigner = errors.New("the workers of this queue sign by another key")

// signerKey holds the MRSIGNER of the queue's workers. It is no target's.
const signerKey = "signer"

// Claim notes by which key the queue's workers sign. The error is ErrSigner where others do so by another one, which
// would make who signs an image a matter of chance; replace makes this key theirs.
func (q *Queue) Claim(ctx context.Context, signer sgx.Measurement, replace bool) error {
	return q.try(ctx, func(ctx context.Context) error {
		if replace {
			_, err := q.latest.Put(ctx, signerKey, []byte(signer.String()))
			return err
		}
		_, err := q.latest.Create(ctx, signerKey, []byte(signer.String()))
		if !errors.Is(err, jetstream.ErrKeyExists) {
			return err
		}
		e, err := q.latest.Get(ctx, signerKey)
		if err == nil && string(e.Value()) != signer.String() {
			return fmt.Errorf("%w: their MRSIGNER is %s, this one's %s", ErrSigner, e.Value(), signer)
		}
		return err
	})
}

// Requests is the batch of conversions that were asked for one by one. It has no end.
const Requests = "requests"

// Request queues one conversion in the batch of Requests. The same as one that is not done yet is that one; another one
// with the same target takes the place of those before.
func (q *Queue) Request(ctx context.Context, j Job) (*Record, error) {
	r := &Record{Batch: Requests, ID: j.ID(), Job: j, Status: Queued, Updated: time.Now().UTC()}
	if err := q.try(ctx, func(ctx context.Context) error {
		_, err := q.latest.Put(ctx, targetKey(j), []byte(r.ID))
		return err
	}); err != nil {
		return nil, err
	}
	before, _, err := q.get(ctx, r.Batch+"."+r.ID)
	if err != nil {
		return nil, err
	}
	if before != nil && !before.Status.Final() {
		return before, q.queue(ctx, []*Record{before})
	}
	if before != nil {
		r.Request = before.Request + 1
	}
	if err := q.put(ctx, r); err != nil {
		return nil, err
	}
	return r, q.queue(ctx, []*Record{r})
}

func targetKey(j Job) string {
	sum := sha256.Sum256([]byte(j.Target))
	return hex.EncodeToString(sum[:16])
}

// superseded says whether something else was requested for a request's target since.
func (q *Queue) superseded(ctx context.Context, r *Record) (bool, error) {
	if r.Batch != Requests {
		return false, nil
	}
	latest := r.ID
	err := q.try(ctx, func(ctx context.Context) error {
		e, err := q.latest.Get(ctx, targetKey(r.Job))
		if err == nil {
			latest = string(e.Value())
		}
		return err
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		err = nil
	}
	return latest != r.ID, err
}

// ResumeRequests queues again what was requested and is not done, as far as it is not queued.
func (q *Queue) ResumeRequests(ctx context.Context) error {
	_, err := q.Resume(ctx, &Batch{ID: Requests})
	return err
}

// Watch tells of every record of a batch, as it is and as it changes, until the context ends.
func (q *Queue) Watch(ctx context.Context, batch string, tell func(*Record)) error {
	for {
		err := q.follow(ctx, batch, func(value []byte) error {
			r := &Record{}
			if err := json.Unmarshal(value, r); err != nil {
				return err
			}
			tell(r)
			return nil
		}, func() bool { return false })
		if err != nil {
			return err
		}
	}
}

// Ready says whether the queue answers.
func (q *Queue) Ready(ctx context.Context) error {
	_, err := q.js.Stream(ctx, streamName)
	return err
}

// follow watches a batch until it is done, or nothing was heard for a while.
func (q *Queue) follow(ctx context.Context, batch string, see func([]byte) error, done func() bool) error {
	var w jetstream.KeyWatcher
	if err := q.try(ctx, func(context.Context) (err error) {
		w, err = q.records.Watch(ctx, batch+".*", jetstream.IgnoreDeletes())
		return err
	}); err != nil {
		return fmt.Errorf("watching the batch: %w", err)
	}
	defer w.Stop() //nolint:errcheck // it is not needed any more
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(quiet):
			return nil
		case e, ok := <-w.Updates():
			if !ok {
				return nil
			}
			if e == nil {
				continue
			}
			if err := see(e.Value()); err != nil {
				return err
			}
		}
	}
	return nil
}
