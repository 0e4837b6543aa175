//go:build !linux

package loader

import "errors"

func keep() error { return errors.New("the simulated runtime runs on Linux only") }

func (p *program) run([]string, []string, []string, string) error {
	return errors.New("the simulated runtime runs on Linux only")
}
