package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// imageList returns the images that arguments name; "-" stands for those on standard input. Listed are the latter that
// no argument names too.
func imageList(args []string, stdin io.Reader) (images []string, listed map[string]bool, err error) {
	listed = map[string]bool{}
	for _, a := range args {
		if a != "-" {
			images = append(images, a)
			continue
		}
		lines := bufio.NewScanner(stdin)
		for lines.Scan() {
			if line := strings.TrimSpace(lines.Text()); line != "" && !strings.HasPrefix(line, "#") {
				images = append(images, line)
				listed[line] = !slices.Contains(args, line)
			}
		}
		if err := lines.Err(); err != nil {
			return nil, nil, fmt.Errorf("reading the list of images: %w", err)
		}
	}
	if len(images) == 0 {
		return nil, nil, usagef("the list of images is empty")
	}
	slices.Sort(images)
	return slices.Compact(images), listed, nil
}

// convertAll converts several images by a queue that is there for as long as this takes.
func convertAll(
	cmd *cobra.Command, own convert.Options, signer sgx.Signer, work workFlags, jobs []queue.Job, jsonFile string,
	names nameFiles,
) error {
	o, err := work.options()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cconvert-queue-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := batchRun{
		from: queueFlags{dir: dir}, own: own, signer: signer, work: o, json: jsonFile, refs: names.refs, passing: true,
	}
	return r.run(cmd, &queue.Batch{Name: "the command line"}, func(context.Context) ([]queue.Job, error) {
		return jobs, nil
	})
}
