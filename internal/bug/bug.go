// Package bug makes errors of panics. A panic is a mistake in this program, whatever input has shown it: it must not
// end a process that has other work, nor look like another exit code.
package bug

import (
	"fmt"
	"runtime/debug"
)

// Error says that the program has panicked.
type Error struct {
	Value any    // that was given to panic
	Stack string // of the goroutine
}

func (e *Error) Error() string { return fmt.Sprintf("this is a bug in cconvert: %v", e.Value) }

// Catch makes a panic the error of the function that defers it.
func Catch(err *error) {
	if v := recover(); v != nil {
		*err = &Error{v, string(debug.Stack())}
	}
}
