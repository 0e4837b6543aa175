package roundtrip

import (
	"fmt"

	"github.com/cconvert/cconvert/pkg/image"
)

// maxListed is how many names and pages a list may have, and maxListedBytes how long the names may be together.
// Registries limit a repository to some 100,000 images.
const (
	maxListed      = 1 << 20
	maxListedBytes = 64 << 20
)

// Pages passes on a list whose end only the registry knows, page by page, so that it is not in memory as a whole. The
// error is image.ErrTooMany if it does not come to an end.
func Pages(yield func(string, error) bool, more func() bool, next func() ([]string, error)) error {
	names, pages, size := 0, 0, 0
	for more() {
		page, err := next()
		if err != nil && pages > 0 { // such as "not found", of what was found just now
			return fmt.Errorf("%w: after %d pages: %s", image.ErrNoDocument, pages, err.Error())
		}
		if err != nil {
			return err
		}
		names, pages = names+len(page), pages+1
		for _, s := range page {
			size += len(s)
		}
		if names > maxListed || pages > maxListed || size > maxListedBytes {
			return fmt.Errorf("%w: the list is longer than %d names or %d bytes", image.ErrTooMany, maxListed,
				maxListedBytes)
		}
		for _, s := range page {
			if !yield(s, nil) {
				return nil
			}
		}
	}
	return nil
}
