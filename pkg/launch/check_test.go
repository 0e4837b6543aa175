package launch_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/launch/process"
)

// Options are checked wherever they come from: a job of a queue or a recipe has passed no command line.
func TestCheckedOptions(t *testing.T) {
	assert.NoError(t, launch.Options{}.Check())
	assert.NoError(t, launch.Options{
		Env:          []process.EnvVar{{Name: "A", Value: "b=c\nd"}, {Name: "TZ", PassThrough: true}},
		AllowedFiles: []string{"/x"}, Tmpfs: []string{"/tmp"},
		Encrypted: []launch.Mount{{Path: "/data"}, {Path: "/more", Key: launch.SealingKey}}, Trust: launch.TrustAll,
		LibC:   libc.Image,
		Memory: 1 << 30, Threads: 4,
	}.Check())
	for want, o := range map[string]launch.Options{
		"memory 3.0 GiB:":              {Memory: 3 << 30},
		"threads: -1":                  {Threads: -1},
		"libc mine:":                   {LibC: "mine"},
		"trust some:":                  {Trust: "some"},
		"pass-env LD_PRELOAD:":         {Env: []process.EnvVar{{Name: "LD_PRELOAD", PassThrough: true}}},
		"pass-env PYTHONPATH:":         {Env: []process.EnvVar{{Name: "PYTHONPATH", PassThrough: true}}},
		"pass-env A=B:":                {Env: []process.EnvVar{{Name: "A=B", PassThrough: true}}},
		"env =x:":                      {Env: []process.EnvVar{{Value: "x"}}},
		"env A B=x:":                   {Env: []process.EnvVar{{Name: "A B", Value: "x"}}},
		"allow-file x:":                {AllowedFiles: []string{"x"}},
		"allow-file: it is given 1001": {AllowedFiles: slices.Repeat([]string{"/x"}, 1001)},
		"tmpfs x:":                     {Tmpfs: []string{"x"}},
		"encrypt-mount x=:":            {Encrypted: []launch.Mount{{Path: "x"}}},
		"encrypt-mount /x=:":           {Encrypted: []launch.Mount{{Path: "/x"}}, Tmpfs: []string{"/x"}},
		"encrypt-mount /x=_sgx_other:": {Encrypted: []launch.Mount{{Path: "/x", Key: "_sgx_other"}}},
	} {
		err := o.Check()
		assert.ErrorContains(t, err, want)
		var wrong *launch.OptionError
		assert.ErrorAs(t, err, &wrong)
	}
}
