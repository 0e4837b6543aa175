package main

import (
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
)

// A hint is about what failed: about the image that was named, in the form in which it may have been meant, or about
// the runtime, and about a runtime only if one was to be read.
func TestHints(t *testing.T) {
	offline := &net.DNSError{Err: "no such host", Name: "registry.example", IsNotFound: true}
	open := func(name string, err error) error {
		ref, parseErr := image.ParseReference(name, false)
		require.NoError(t, parseErr)
		return fmt.Errorf("converting: %w", &image.OpenError{Ref: ref, Err: err})
	}
	inDocker := "If Docker on this machine has the image, write docker-daemon:"
	for _, c := range []struct {
		name       string
		err        error
		has, lacks string
	}{
		{"built just now", open("app", offline), inDocker + "app", "--runtime"},
		{"another tool's word", open("docker:app", image.ErrUnauthorized), inDocker + "app", "--runtime"},
		{"absent", open("app:1", image.ErrNotFound), inDocker + "app:1", "--runtime"},
		{"registry", open("registry.example/app", offline), "docker-daemon:NAME", "registry.example"},
		{"not in Docker", open("docker-daemon:app", image.ErrNotFound), "In a registry it is", "docker-daemon"},
		{"runtime", &libos.LoadError{From: "docker://runtime", Err: offline}, "--runtime gramine=dir:PREFIX",
			"docker-daemon"},
		{"unknown", errors.New("unknown"), "", "docker"},
	} {
		hint := hintFor(c.err)
		assert.Contains(t, hint, c.has, c.name)
		assert.NotContains(t, hint, c.lacks, c.name)
	}
}
