package queue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/freeport"
)

// cluster starts three servers with JetStream, and returns their URLs.
func cluster(t *testing.T) string {
	t.Helper()
	var routes, urls []string
	var ports []int
	for range 3 {
		port, err := freeport.Find()
		require.NoError(t, err)
		n, err := strconv.Atoi(port)
		require.NoError(t, err)
		ports, routes = append(ports, n), append(routes, "nats://127.0.0.1:"+port)
	}
	var servers []*server.Server
	for i := range 3 {
		s, err := server.NewServer(&server.Options{
			ServerName: fmt.Sprint("s", i), Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true,
			StoreDir: t.TempDir(), NoSigs: true,
			NoLog: true, Cluster: server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: ports[i]},
			Routes: server.RoutesFromStr(strings.Join(routes, ",")),
		})
		require.NoError(t, err)
		go s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		servers = append(servers, s)
	}
	for _, s := range servers {
		require.True(t, s.ReadyForConnections(20*time.Second))
		urls = append(urls, s.ClientURL())
	}
	return strings.Join(urls, ",")
}

// What a server of a cluster knows may be old: buckets are read from the leader, those that were there before too.
func TestReadsOfACluster(t *testing.T) {
	url := cluster(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := nats.Connect(url)
	require.NoError(t, err)
	defer conn.Close()
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	// until the cluster has a leader
	for err = errors.New("not asked"); err != nil; time.Sleep(200 * time.Millisecond) {
		once, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err = js.CreateOrUpdateKeyValue(once,
			jetstream.KeyValueConfig{Bucket: latestBucket, History: 1, Replicas: 3})
		cancel()
		require.NoError(t, ctx.Err(), "%v", err)
	}
	for range 2 { // a queue that is made, and one that is there
		q, err := Open(ctx, Options{URL: url, Replicas: 3})
		require.NoError(t, err)
		for bucket, kv := range map[string]jetstream.KeyValue{
			recordBucket: q.records, latestBucket: q.latest, batchBucket: q.batches,
		} {
			s, err := js.Stream(ctx, "KV_"+bucket)
			require.NoError(t, err)
			config := s.CachedInfo().Config
			assert.False(t, config.AllowDirect, bucket)
			assert.Equal(t, 3, config.Replicas, bucket)
			_, err = kv.Put(ctx, "a", []byte("1"))
			require.NoError(t, err)
		}
		asked, err := conn.SubscribeSync("$JS.API.DIRECT.GET.>")
		require.NoError(t, err)
		require.NoError(t, conn.Flush())
		_, err = q.latest.Get(ctx, "a")
		require.NoError(t, err)
		_, err = asked.NextMsg(200 * time.Millisecond)
		assert.ErrorIs(t, err, nats.ErrTimeout, "the bucket that is open is read so, too")
		require.NoError(t, asked.Unsubscribe())
		q.Close()
	}
}
