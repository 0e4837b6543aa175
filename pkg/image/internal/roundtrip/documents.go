package roundtrip

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"

	"github.com/cconvert/cconvert/internal/strictjson"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/document"
)

// checkedDocuments lets no manifest be decoded that is against the rules: what is decoded from a few megabytes of
// little else than brackets takes a hundred times as much.
type checkedDocuments struct{ inner http.RoundTripper }

func (t *checkedDocuments) RoundTrip(in *http.Request) (*http.Response, error) {
	out, err := t.inner.RoundTrip(in)
	asked := first(in).URL.Path // wherever the registry leads to
	list := listPath.FindStringSubmatch(asked)
	if err != nil || in.Method != http.MethodGet || out.StatusCode != http.StatusOK ||
		list == nil && !manifestPath.MatchString(asked) {
		return out, err
	}
	raw, err := io.ReadAll(out.Body)
	out.Body.Close()
	if err != nil {
		return nil, err
	}
	if list != nil {
		err = checkList(raw, map[string]string{"tags/list": "tags", "_catalog": "repositories"}[list[1]])
	} else if err = strictjson.Check(raw, document.Rules); err != nil {
		err = fmt.Errorf("reading the manifest: %w", err)
	}
	if err != nil {
		return nil, err
	}
	out.Body = io.NopCloser(bytes.NewReader(raw))
	return out, nil
}

// listPath are the paths of lists (OCI distribution specification, "Listing Tags"; distribution's "Listing
// Repositories").
var listPath = regexp.MustCompile("^/v2/(?:.+/)?(tags/list|_catalog)$")

// checkList reports an answer that is no page of a list: nothing in it would be taken for the end of it.
func checkList(raw []byte, key string) error {
	var page map[string]json.RawMessage
	err := json.Unmarshal(raw, &page)
	if _, ok := page[key]; err != nil || !ok {
		return fmt.Errorf("reading the list: %w: there is no %q in it", image.ErrNoDocument, key)
	}
	return nil
}
