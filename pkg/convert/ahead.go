package convert

import "github.com/cconvert/cconvert/internal/bug"

// ahead begins to fetch something that is needed later. What it returns waits for the outcome, as often as it is
// called.
func ahead[T any](fetch func() (T, error)) func() (T, error) {
	var value T
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer bug.Catch(&err)
		value, err = fetch()
	}()
	return func() (T, error) {
		<-done
		return value, err
	}
}
