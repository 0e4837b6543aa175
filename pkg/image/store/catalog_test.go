package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
)

// A list has an end, even if the registry has another page every time it is asked.
func TestEndlessLists(t *testing.T) {
	reg := fixture.NewRegistry(t)
	pages := 0
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.HasSuffix(r.URL.Path, "/tags/list") && r.URL.Path != "/v2/_catalog" {
			return false
		}
		pages++
		names := make([]string, 20_000)
		for i := range names {
			names[i] = fmt.Sprintf("%0100d", pages*len(names)+i)
		}
		w.Header().Set("Link", fmt.Sprintf("<%s?last=%d>; rel=\"next\"", r.URL.Path, pages))
		assert.NoError(t,
			json.NewEncoder(w).Encode(map[string]any{"name": "app", "tags": names, "repositories": names}))
		return true
	})
	repo, err := image.ParseRepository(reg.Host+"/app", true)
	require.NoError(t, err)
	for _, list := range []iter.Seq2[string, error]{
		registry.Tags(context.Background(), repo, registry.Options{}),
		registry.Repositories(context.Background(), repo.Registry, registry.Options{}),
	} {
		var last error
		for _, err := range list {
			last = err
		}
		assert.ErrorIs(t, last, image.ErrTooMany)
		assert.NotErrorIs(t, last, image.ErrUnsupported, "nobody has looked at what is in it")
	}
	assert.Less(t, pages, 100)
}
