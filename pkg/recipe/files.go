package recipe

import (
	"encoding/json"

	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/reach"
)

// Files are those that say how an image was made, in the enclave's layer. They are not measured.
func Files(r Recipe, trusted []FileRun) ([]libos.File, error) {
	reasons, err := json.Marshal(trusted)
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, err
	}
	return []libos.File{
		{Path: libos.ReasonsPath, Mode: 0o644, Content: append(reasons, '\n')},
		{Path: libos.RecipePath, Mode: 0o644, Content: append(text, '\n')},
	}, nil
}

// FileRuns are the reasons of trusted files, in the order of the manifest.
func FileRuns(files []reach.File) []FileRun {
	var runs []FileRun
	for _, f := range files {
		if n := len(runs); n == 0 || runs[n-1].Reason != f.Reason || runs[n-1].Package != f.Package {
			runs = append(runs, FileRun{Reason: f.Reason, Package: f.Package})
		}
		runs[len(runs)-1].Count++
	}
	return runs
}
