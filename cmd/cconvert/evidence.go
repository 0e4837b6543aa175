package main

import (
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
)

// evidenceFlags are about what is attached to the result.
type evidenceFlags struct {
	attest bool
	key    string
}

func (e *evidenceFlags) add(f *pflag.FlagSet) {
	f.BoolVar(&e.attest, "attest", true,
		"attach statements of what the image is and how it was made, and reference values, to the result in a registry")
	f.StringVar(&e.key, "attest-key", "", "file with a private key, of ECDSA or Ed25519, that signs the statements")
}

// choose returns what is to be attached, nil for nothing. Asked says that the user wants it, and not only the default.
func (e *evidenceFlags) choose(asked bool) (*convert.Evidence, error) {
	if !e.attest {
		if e.key != "" {
			return nil, usagef("--attest-key %s: nothing is attached with --attest=false", e.key)
		}
		return nil, nil
	}
	out := &convert.Evidence{Version: version, Required: asked || e.key != ""}
	if e.key == "" {
		return out, nil
	}
	text, err := os.ReadFile(e.key)
	if err == nil {
		out.Key, err = attest.ParsePrivateKey(text)
	}
	if err != nil {
		return nil, &usageError{fmt.Errorf("--attest-key %s: %w", e.key, err)}
	}
	return out, nil
}
