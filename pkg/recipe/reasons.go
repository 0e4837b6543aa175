package recipe

import (
	"github.com/cconvert/cconvert/pkg/reach"
)

// FileRun says why so many of the trusted files, one after the other in the manifest, are listed.
type FileRun struct {
	Count   int          `json:"count"`
	Reason  reach.Reason `json:"reason"`
	Package string       `json:"package,omitempty"`
}
