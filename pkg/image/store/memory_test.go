package store_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// No document of a registry takes many times its size in memory.
func TestDocumentsInMemory(t *testing.T) {
	reg := fixture.NewRegistry(t)
	const size = 4 << 20
	list := func(begin, one, end string) string {
		return begin + strings.TrimSuffix(strings.Repeat(one+",", (size-len(begin)-len(end))/(len(one)+1)), ",") + end
	}
	keys := func(begin, end string) string {
		var b strings.Builder
		b.WriteString(begin)
		for i := 0; b.Len() < size-len(end)-20; i++ {
			fmt.Fprintf(&b, `"%x":"",`, i)
		}
		return strings.TrimSuffix(b.String(), ",") + end
	}
	const m = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`
	for name, doc := range map[string]string{
		"layers":      list(m+`"layers":[`, `{}`, `]}`),
		"annotations": keys(m+`"annotations":{`, `}}`),
		"nested":      list(m+`"x":[`, strings.Repeat(`[`, 50)+strings.Repeat(`]`, 50), `]}`),
		"keys":        list(m+`"x":[`, `{"a":1,"b":2,"c":3,"d":4}`, `]}`),
		"strings":     m + `"annotations":{"a":"` + strings.Repeat(`\u0001`, (4<<20)/6-200) + `"}}`,
	} {
		reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			_, _ = w.Write([]byte(doc))
			return true
		})
		runtime.GC()
		var peak atomic.Uint64
		done := make(chan bool)
		go func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(time.Millisecond):
				}
				var s runtime.MemStats
				runtime.ReadMemStats(&s)
				peak.Store(max(peak.Load(), s.HeapInuse))
			}
		}()
		var before runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := store.Open(context.Background(), parse(t, reg.Host+"/app:1"), quick)
		close(done)
		require.Error(t, err)
		assert.Less(t, peak.Load()-min(peak.Load(), before.HeapInuse), uint64(100<<20), name)
	}
}
