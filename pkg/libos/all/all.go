// Package all is the list of the library operating systems that there are.
package all

import (
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
)

// Backends are those that images are converted for, the default first.
func Backends() []libos.Backend { return []libos.Backend{gramine.Backend{}, sim.Backend{}} }

// Foreign are the kinds of images of other programs that can be read.
func Foreign() []libos.Foreign { return []libos.Foreign{gramine.GSC{}} }
