// Command cconvert turns container images into images that run inside SGX enclaves.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode"

	"github.com/moby/sys/reexec"
	"github.com/sirupsen/logrus"

	"github.com/cconvert/cconvert/internal/bug"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim/loader"
)

func main() {
	keepDescriptors()
	if reexec.Init() {
		return // a child that reads a database for this program
	}
	loader.Init()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	err := run(ctx)
	var interrupted *interruption
	var mistake *bug.Error
	switch {
	case err == nil:
	case errors.As(err, &mistake):
		fail(err.Error(), "please report it, with the command and these lines:\n"+mistake.Stack)
	case errors.As(err, &interrupted):
		fail(err.Error(), "")
	case ctx.Err() != nil:
		fail("interrupted: no tag was moved and nothing is half stored", "")
	default:
		fail(harmless(err.Error()), hintFor(err))
	}
	os.Exit(exitCode(ctx, err))
}

// fail says why the program ends, and what to do about it.
func fail(why, hint string) {
	if logsJSON() {
		logrus.WithField("hint", hint).Error(why)
		return
	}
	fmt.Fprintln(os.Stderr, "cconvert:", why)
	if hint != "" {
		fmt.Fprintln(os.Stderr, "hint:", hint)
	}
}

// harmless returns a text without what steers terminals or turns the order of what they show: a registry's answer can
// be in it.
func harmless(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.In(c, unicode.Cc, unicode.Cf) && c != '\n' && c != '\t' {
			return '?'
		}
		return c
	}, s)
}

// run carries out the command line.
func run(ctx context.Context) (err error) {
	defer bug.Catch(&err)
	args, text := asPlugin(os.Args)
	if text != "" {
		_, err := fmt.Println(text)
		return err
	}
	root := newRoot()
	root.SetArgs(args)
	err = root.ExecuteContext(ctx)
	if errors.Is(err, errNothing) && !logsJSON() {
		root.SetOut(os.Stderr)
		_ = root.Help()
		fmt.Fprintln(os.Stderr)
	}
	return err
}
