package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cconvert/cconvert/pkg/recipe"
)

// Differences of images are named by flags that there are, programs by the names that images have for them.
func TestWords(t *testing.T) {
	convert := newConvert()
	for i := range reflect.TypeFor[recipe.Options]().NumField() {
		flag := recipe.FlagOf(reflect.TypeFor[recipe.Options]().Field(i))
		assert.NotNil(t, convert.Flags().Lookup(strings.TrimPrefix(flag, "--")), flag)
	}
	assert.Equal(t, "redis-server (/usr/bin/redis-check-rdb)", namedProgram("/usr/bin/redis-check-rdb",
		[]string{"redis-server", "--port", "1"}))
	assert.Equal(t, "/bin/app", namedProgram("/bin/app", []string{"app"}))
	assert.Equal(t, "/bin/app", namedProgram("/bin/app", nil))
	assert.Equal(t, "1 image failed for good", (&batchError{lasting: 1}).Error())
	assert.Equal(t, "2 images failed for reasons that may pass", (&batchError{passing: 2}).Error())
	assert.Equal(t, "1 image failed for good, and 2 for reasons that may pass", (&batchError{1, 2}).Error())
}
