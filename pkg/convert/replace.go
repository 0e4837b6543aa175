package convert

import (
	"context"
	"errors"
	"fmt"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// ErrVersionUnknown says that the target has, or may have, a converted image whose security version and signer cannot
// be read.
var ErrVersionUnknown = errors.New("the security version number of what the target has now is not known")

// RollbackError says that an image would be replaced by one with a lower security version number.
type RollbackError struct {
	Now, New uint16
	// Signer is the MRSIGNER of the present one.
	Signer sgx.Measurement
}

func (e *RollbackError) Error() string {
	signer := "signed by " + e.Signer.String()
	if e.Signer == (sgx.Measurement{}) {
		signer = "not signed yet"
	}
	return fmt.Sprintf("the target has an enclave with the security version number (ISV SVN) %d, %s, and this one has "+
		"%d: what is sealed to the higher number cannot be read by the lower one, and relying parties refuse it", e.Now,
		signer, e.New)
}

// destination is where a result goes.
type destination struct {
	upload image.Upload
	// present returns the enclave of the image that is there now, signed or not; nil if there is none.
	present func() (*sgx.SigStruct, error)
}

// openDestination begins to ask what is there now. A destination must be closed.
func openDestination(ctx context.Context, to image.Reference, o registry.Options) *destination {
	upload := store.NewUpload(ctx, to, o)
	return &destination{upload, ahead(func() (*sgx.SigStruct, error) { return present(upload) })}
}

func (d *destination) close() { d.upload.Close() }

// checkVersion reports a RollbackError if the image that is there now has a higher security version: early, for it
// needs no signature.
func (d *destination) checkVersion(svn uint16, o StoreOptions) error {
	if o.AllowRollback {
		return nil
	}
	now, err := d.present()
	if o.ReplaceSigner && errors.Is(err, ErrVersionUnknown) {
		return nil
	}
	if err != nil {
		return err
	}
	return checkReplaced(now, svn, sgx.Measurement{}, false, true)
}

// check is what must be so before the image that is there now is replaced by one with an enclave.
func (d *destination) check(enclave *sgx.SigStruct, o StoreOptions) error {
	return d.mayReplace(enclave.ISVSVN, enclave.MRSigner(), o)
}

func (d *destination) mayReplace(svn uint16, signer sgx.Measurement, o StoreOptions) error {
	now, err := d.present() // also if nothing of it matters: the upload then sees whether the tag is moved meanwhile
	if (o.AllowRollback || o.ReplaceSigner) && errors.Is(err, ErrVersionUnknown) {
		return nil // it is not known by whom it is signed, either
	}
	if err != nil {
		return err
	}
	return checkReplaced(now, svn, signer, o.AllowRollback, o.ReplaceSigner)
}

// MayReplace reports by a RollbackError, a SignerError or ErrVersionUnknown that Finish would not replace what a place
// has now with an image of a signer and a security version. The signer is zero for an image that is not signed.
func MayReplace(ctx context.Context, to image.Reference, signer sgx.Measurement, svn uint16, o StoreOptions) error {
	d := openDestination(ctx, to, o.Image)
	defer d.close()
	return d.mayReplace(svn, signer, o)
}

// present returns the enclave of the image that the upload would replace, signed or not, or nil.
func present(upload image.Upload) (*sgx.SigStruct, error) {
	now, err := upload.Current()
	if err != nil && !image.Transient(err) && upload.Context().Err() == nil {
		err = fmt.Errorf("%w: %w", ErrVersionUnknown, err)
	}
	if err != nil || now == nil {
		return nil, err
	}
	defer now.Close()
	if !recipe.IsResult(now) {
		return nil, nil // so there is no version to fall behind
	}
	files, err := topFiles(upload.Context(), now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVersionUnknown, err)
	}
	enclave, err := libos.SigStructOf(files)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVersionUnknown, err)
	}
	return enclave, nil
}

// SignerError says that an image would be replaced that another key has signed.
type SignerError struct {
	// Now is the MRSIGNER of the present one, New that of what would replace it: zero for what is not signed yet.
	Now, New sgx.Measurement
}

func (e *SignerError) Error() string {
	by := "one by " + e.New.String()
	if e.New == (sgx.Measurement{}) {
		by = "one that is not signed yet"
	}
	return fmt.Sprintf("the target has an enclave signed by %s, and would get %s: whoever relies on that signer would "+
		"refuse it, and what is sealed to it could not be read", e.Now, by)
}

// checkReplaced reports why an enclave must not be replaced by one of a security version and a signer: a RollbackError
// or a SignerError, unless it is allowed to.
func checkReplaced(now *sgx.SigStruct, svn uint16, signer sgx.Measurement, rollback, another bool) error {
	if now == nil {
		return nil
	}
	if now.ISVSVN > svn && !rollback {
		return &RollbackError{now.ISVSVN, svn, now.MRSigner()}
	}
	if key, _ := now.Signature(); key != nil && now.MRSigner() != signer && !another {
		return &SignerError{now.MRSigner(), signer}
	}
	return nil
}
