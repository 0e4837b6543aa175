package convert_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cconvert/cconvert/pkg/recipe"
)

// What an image says of itself is read within bounds, whoever wrote it: little else than brackets takes a hundred times
// its size in memory.
func TestRecipesAreBounded(t *testing.T) {
	var keys strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&keys, `"%x":1,`, i)
	}
	for want, text := range map[string]string{
		"more than 33554432":                      strings.Repeat(" ", 32<<20+1),
		"a list of more than 1000000 elements":    `{"diff_ids":[` + strings.Repeat(`"",`, 1_000_000) + `""]}`,
		"more than 100000 keys":                   `{"replaced":{` + keys.String() + `"x":1}}`,
		`the key "source" is there twice`:         `{"source":"a","source":"b"}`,
		"cannot unmarshal string into Go value":   `"x"`,
		`the key "Source" is there twice`:         `{"source":"a","Source":"b"}`,
		"invalid character 'x' looking for begin": `x`,
	} {
		_, err := recipe.Parse([]byte(text))
		assert.ErrorContains(t, err, want)
	}
	_, err := recipe.ParseReasons([]byte("[" + strings.Repeat("{},", 1_000_000) + "{}]"))
	assert.ErrorContains(t, err, "a list of more than 1000000 elements")
	runs, err := recipe.ParseReasons([]byte(`[{"count":2,"reason":"libc"}]`))
	assert.NoError(t, err)
	assert.Len(t, runs, 1)
}
