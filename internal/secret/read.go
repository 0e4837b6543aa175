package secret

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/shlex"
)

// Read reads a key from a place: from a file or a pipe, from a variable (env:VARIABLE), which is taken away, or from
// what a program writes to its standard output (exec:COMMAND), for which it has so much time. Exposed reports whether
// others than its owner can read the file. The text must be cleared after use.
func Read(ctx context.Context, name string, timeout time.Duration) (text []byte, exposed bool, err error) {
	scheme, rest, _ := strings.Cut(name, ":")
	switch scheme {
	case "env":
		text, err = Variable(rest)
	case "exec":
		words, splitErr := shlex.Split(rest)
		if splitErr != nil || len(words) == 0 {
			return nil, false, fmt.Errorf("%w: exec: has no command", ErrName)
		}
		text, err = Run(ctx, words, nil, timeout)
	default:
		return ReadFile(name)
	}
	return text, false, err
}
