package convert

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// ErrFindings says that a conversion stopped because of what was found.
var ErrFindings = errors.New("nothing was stored because of what was found")

// Gate decides which findings stop a conversion: errors and, if it is strict, warnings, but for those with an
// ignored code.
type Gate struct {
	Strict bool     `json:"strict,omitempty"`
	Ignore []string `json:"ignore,omitempty"`
	// Open lets everything pass: of a conversion that is made again, somebody has decided.
	Open bool `json:"-"`
}

// FindingsError says which findings stopped a conversion. It is ErrFindings.
type FindingsError struct {
	// Codes are those of the findings that stopped it; Findings are all that there were.
	Codes    []string
	Findings []finding.Finding
	// Stored says that the image was stored before.
	Stored bool
}

func (e *FindingsError) Error() string {
	if e.Stored {
		return "because of what was found: " + strings.Join(e.Codes, ", ")
	}
	return fmt.Sprintf("%v: %s", ErrFindings, strings.Join(e.Codes, ", "))
}

func (e *FindingsError) Unwrap() error { return ErrFindings }

// Pass returns a FindingsError if one of the findings stops a conversion.
func (g Gate) Pass(findings []finding.Finding) error {
	if g.Open {
		return nil
	}
	var codes []string
	for _, f := range findings {
		grave := f.Severity == finding.Error || g.Strict && f.Severity == finding.Warning
		if grave && !slices.Contains(g.Ignore, f.Code) && !slices.Contains(codes, f.Code) {
			codes = append(codes, f.Code)
		}
	}
	if len(codes) == 0 {
		return nil
	}
	return &FindingsError{Codes: codes, Findings: findings}
}

// passStored is Pass for what is found after the image was stored.
func (g Gate) passStored(findings []finding.Finding) error {
	err := g.Pass(findings)
	var stopped *FindingsError
	if errors.As(err, &stopped) {
		stopped.Stored = true
	}
	return err
}

// Run is Prepare, Sign and Finish in one, for a target that is known and a signer that is here. Without a signer the
// signature is left out.
func Run(ctx context.Context, o Options, signer sgx.Signer) (*Result, error) {
	p, err := Prepare(ctx, o)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return p.SignAndFinish(ctx, signer)
}

// SignAndFinish is Sign and Finish in one, for a target that is known. Without a signer the signature is left out.
func (p *Prepared) SignAndFinish(ctx context.Context, signer sgx.Signer) (_ *Result, err error) {
	var public *rsa.PublicKey
	var signature []byte
	if signer != nil {
		if public, signature, err = Sign(ctx, p, signer); err != nil {
			return nil, err
		}
	}
	return Finish(ctx, p, public, signature, *p.target, p.store)
}
