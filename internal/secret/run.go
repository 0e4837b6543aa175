package secret

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"
	"unicode"
)

// ErrTimeout says that somebody did not answer in time.
var ErrTimeout = errors.New("no answer in time")

const grace = 2 * time.Second // for a program that is told to end

// Run runs a program of the user's and returns what it wrote to standard output, at most Max bytes. When its time is
// over, it is stopped together with what it has started: the error is ErrTimeout. An error has the last line of what
// the program said to people, without what could be a key.
func Run(ctx context.Context, command []string, in []byte, timeout time.Duration) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(limited, command[0], command[1:]...)
	out, said := &bounded{max: Max, kept: make([]byte, 0, Max)}, &bounded{max: Max}
	defer func() { clear(said.kept) }()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), out, said
	asGroup(cmd)
	cmd.WaitDelay = grace
	err := cmd.Run()
	// a program that it started still has its output open; what it said is checked
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case limited.Err() != nil:
		err = fmt.Errorf("%w: it was stopped after %s", ErrTimeout, timeout)
	case out.over:
		err = fmt.Errorf("it wrote more than %d bytes", Max)
	case err != nil:
		if text := harmless(said.kept); text != "" {
			err = fmt.Errorf("%w: it says: %s", err, text)
		}
	}
	if err != nil {
		clear(out.kept)
		return nil, err
	}
	return out.kept, nil
}

// secretLike is text that could be a part of a key, in base64, hexadecimal or decimal digits, and digitsLike what is
// left of dumps of one without the spaces between.
var (
	secretLike = regexp.MustCompile(`[A-Za-z0-9+/=:_-]{20,}`)
	digitsLike = regexp.MustCompile(`[0-9a-fA-F]{24,}`)
	between    = regexp.MustCompile(`(0x|\\x|[\s:.,_{}\[\]-])+`)
)

// harmless is the last line of what a program said to people, without anything that could be a key.
func harmless(said []byte) string {
	if bytes.Contains(said, []byte("PRIVATE KEY")) {
		return "(a private key, which is not repeated here)"
	}
	lines := strings.Split(strings.TrimSpace(string(said)), "\n")
	last := strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(lines[len(lines)-1], "?"))
	if digitsLike.MatchString(between.ReplaceAllString(last, "")) {
		return "(something that looks like a key, which is not repeated here)"
	}
	last = secretLike.ReplaceAllString(last, "…")
	if runes := []rune(last); len(runes) > 300 {
		last = string(runes[:300]) + "…"
	}
	return last
}

// bounded keeps no more than so many bytes.
type bounded struct {
	kept []byte
	max  int
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	n := min(len(p), b.max-len(b.kept))
	b.over = b.over || n < len(p)
	b.kept = append(b.kept, p[:n]...)
	return len(p), nil
}
