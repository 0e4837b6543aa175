package libos

import (
	"fmt"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// ContentOf returns the content of a file; nil if no file has the path.
func ContentOf(files []File, path string) []byte {
	for _, f := range files {
		if f.Path == path {
			return f.Content
		}
	}
	return nil
}

// SigStructOf returns the SIGSTRUCT among the files of the topmost layer, signed or not.
func SigStructOf(files []File) (s *sgx.SigStruct, err error) {
	if signed := ContentOf(files, SigPath); signed != nil {
		s, err = sgx.ParseSigStruct(signed)
	} else {
		s, err = sgx.ParseUnsigned(ContentOf(files, UnsignedPath))
	}
	if err != nil {
		return nil, fmt.Errorf("reading the signature structure: %w", err)
	}
	return s, nil
}
