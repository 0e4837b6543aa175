package service

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cconvert/cconvert/internal/cosign"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/pkg/attest"
)

// maxTrustFile is how many bytes a file with a key or a trusted root may have.
const maxTrustFile = 1 << 20

// ReadTrust checks what a service needs of a plan, and reads whose signatures count for each of its entries. Files are
// beside the plan if their paths are not absolute. The error is a plan.Error.
func ReadTrust(file string, p *plan.Plan) (map[*plan.Entry]cosign.Trust, error) {
	mistake := func(line int, err error) error { return &plan.Error{File: file, Line: line, Err: err} }
	root, err := readRoot(file, p.TrustedRoot)
	if err != nil {
		return nil, mistake(0, fmt.Errorf("trustedRoot: %w", err))
	}
	trust := map[*plan.Entry]cosign.Trust{}
	for i := range p.Convert {
		e := &p.Convert[i]
		if e.Tags.Newest > 0 || e.Tags.UpdatedSince != (plan.Since{}) {
			return nil, mistake(e.Line, errors.New("newest and updated-since are about many images, and say nothing "+
				"of one that is asked for"))
		}
		t, err := entryTrust(file, e)
		if err == nil && len(t.Identities) > 0 && root == nil {
			err = errors.New("identities need a trustedRoot: a file that says whose certificates count")
		}
		if err != nil {
			return nil, mistake(e.Line, err)
		}
		t.Root = root
		trust[e] = t
	}
	return trust, p.CheckRules(file)
}

// readRoot reads the trusted root of a plan; nil if it names none.
func readRoot(file, named string) (cosign.Root, error) {
	if named == "" {
		return nil, nil
	}
	text, err := readBeside(file, named)
	if err != nil {
		return nil, err
	}
	root, err := cosign.ReadRoot(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", named, err)
	}
	return root, nil
}

// entryTrust reads whose signatures an entry wants.
func entryTrust(file string, e *plan.Entry) (t cosign.Trust, err error) {
	if e.AllowUnsigned == (len(e.Keys)+len(e.Identities) > 0) {
		return t, errors.New("a rule has keys or identities, by one of which an image must be signed, or says " +
			"allowUnsigned: true")
	}
	for _, named := range e.Keys {
		text, err := readBeside(file, named)
		if err != nil {
			return t, err
		}
		key, err := attest.ParsePublicKey(text)
		if err != nil {
			return t, fmt.Errorf("%s: %w", named, err)
		}
		t.Keys = append(t.Keys, key)
	}
	for _, i := range e.Identities {
		id := cosign.Identity(i)
		if err := id.Check(); err != nil {
			return t, err
		}
		t.Identities = append(t.Identities, id)
	}
	return t, nil
}

// readBeside reads a file that a plan names.
func readBeside(planFile, named string) ([]byte, error) {
	if !filepath.IsAbs(named) {
		named = filepath.Join(filepath.Dir(planFile), named)
	}
	f, err := os.Open(named)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxTrustFile+1))
	if err == nil && len(text) > maxTrustFile {
		err = fmt.Errorf("%s has more than %d bytes", named, maxTrustFile)
	}
	return text, err
}
