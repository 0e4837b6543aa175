package service

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cconvert/cconvert/internal/queue"
)

// What a notification has asked for is what the same one asks for when it is sent again, unless something else was
// asked for the target since, or it has failed.
func TestNotices(t *testing.T) {
	var n notices
	asked, made := 0, []*queue.Record{{}}
	begin := func(key, target string, err error) *notice {
		at := n.begin(key, target, "host", moment{}, func(context.Context) ([]*queue.Record, error) {
			asked++
			return made, err
		})
		<-at.done
		return at
	}
	begin("a", "target", nil)
	begin("a", "target", nil)
	assert.Equal(t, 1, asked, "the same again")
	begin("b", "other", nil)
	begin("a", "target", nil)
	assert.Equal(t, 2, asked, "another target")
	begin("c", "target", nil)
	begin("a", "target", nil)
	assert.Equal(t, 4, asked, "something else was asked for")
	broken := errors.New("it does not answer")
	at := begin("d", "d", broken)
	assert.Equal(t, broken, n.taken("d", at))
	begin("d", "d", nil)
	assert.Equal(t, 6, asked, "what has failed is asked for again")
	n.answered(map[string]*notice{"a": n.of["a"]})
	begin("a", "target", nil)
	assert.Equal(t, 7, asked, "what was answered is another notification's")
}
