package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/cconvert/cconvert/internal/keyserver"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/protectedfs/filekey"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx/quote/pcs"
	"github.com/cconvert/cconvert/pkg/sgx/signer"
)

// Exit codes, as documented in the README.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitRefused     = 4
	exitTransient   = 5
	exitInterrupted = 130
)

// usageError says that the command line, or a file that it names for settings, is wrong.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// errRefused says that something was read and is not what it must be.
var errRefused = errors.New("refused")

// errDifferent says that two things which were compared are not the same.
var errDifferent = errors.New("not the same")

func exitCode(ctx context.Context, err error) int {
	var usage *usageError
	var key *manifest.KeyError
	var mistake *plan.Error
	var failed *batchError
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		return exitInterrupted
	case errors.As(err, &failed):
		if failed.lasting == 0 {
			return exitTransient
		}
		return exitFailed
	case errors.As(err, &mistake) && !image.Transient(err) && !errors.Is(err, image.ErrNotFound) &&
		!errors.Is(err, image.ErrUnauthorized):
		return exitUsage
	case errors.As(err, &usage), errors.As(err, &key), errors.Is(err, image.ErrReference),
		errors.Is(err, convert.ErrNotInRegistry), errors.Is(err, convert.ErrReferrersTag),
		errors.Is(err, signer.ErrName), errors.Is(err, filekey.ErrKey), errors.Is(err, filekey.ErrSource),
		errors.Is(err, protectedfs.ErrPathForm), errors.Is(err, protectedfs.ErrFile):
		return exitUsage
	case errors.Is(err, errRefused), errors.Is(err, errDifferent), errors.Is(err, rootfs.ErrDigest),
		errors.Is(err, image.ErrDigest), errors.Is(err, protectedfs.ErrFormat), errors.Is(err, protectedfs.ErrKey),
		errors.Is(err, protectedfs.ErrPath), errors.Is(err, protectedfs.ErrChanged):
		return exitRefused
	case image.Transient(err), image.Unreachable(err), errors.Is(err, image.ErrMoved),
		errors.Is(err, queue.ErrUnreachable), errors.Is(err, queue.ErrBusy), errors.Is(err, pcs.ErrUnavailable),
		errors.Is(err, keyserver.ErrUnavailable):
		return exitTransient
	}
	return exitFailed
}
