//go:build !linux || !amd64

package startcheck

import (
	"context"
	"fmt"
)

// Run is possible on Linux and x86-64 only.
func Run(context.Context, Command) (*Result, error) {
	return nil, fmt.Errorf("%w: it needs Linux on x86-64", ErrUnsupported)
}
