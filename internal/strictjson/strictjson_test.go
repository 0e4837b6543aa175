package strictjson_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cconvert/cconvert/internal/strictjson"
)

func TestCheck(t *testing.T) {
	rules := strictjson.Rules{Named: []string{"labels"}, Known: []string{"digest", "mediaType"}, MaxList: 3, MaxKeys: 6}
	for text, want := range map[string]string{
		`{"digest":"a","labels":{"a":"1","A":"2","ſ":"3","s":"4"}}`: "",
		`{"other":"a","x":{"mediaType":null}}`:                      "",
		`[{"digest":1},{"digest":2}]`:                               "",
		`[1,2,3]`:                                                   "",
		`{"digest":1,"digest":2}`:                                   "there twice",
		`{"digest":1,"Digest":2}`:                                   "there twice",
		`{"digest":1,"digeſt":2}`:                                   "there twice",
		`{"digest":1,"\u0064igest":2}`:                              "there twice",
		`{"a":[{"x":1,"X":2}]}`:                                     "there twice",
		`{"labels":{"a":"1","a":"2"}}`:                              "there twice",
		`{"digeſt":1}`:                                              `must be "digest"`,
		`{"a":{"MediaType":1}}`:                                     `must be "mediaType"`,
		`{"a":[{"b":1,"c":2},{"b":3}],"d":{"e":6,"f":7}}`:           "more than 6 keys",
		`[1,2,3,4]`:                                                 "more than 3 elements",
		"{\"a\":\"\xff\"}":                                          "not UTF-8",
		`{"a":`:                                                     "EOF",
		`{"a" 1}`:                                                   "invalid character",
		strings.Repeat("[", 65):                                     "nested",
	} {
		err := strictjson.Check([]byte(text), rules)
		if want == "" {
			assert.NoError(t, err, text)
		} else {
			assert.ErrorContains(t, err, want, text)
		}
	}
}
