package verify_test

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

// An image is trusted if each check is met: of what it says of itself, and of what is expected of it.
func ExampleVerify() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := fixture.WriteLayout(dir); err != nil { // an image that was not converted
		panic(err)
	}

	ctx := context.Background()
	ref, err := image.ParseReference("oci:"+dir+":1", false)
	if err != nil {
		panic(err)
	}
	img, err := store.Open(ctx, ref, registry.Options{})
	if err != nil {
		panic(err)
	}
	defer img.Close()
	var signer sgx.Measurement // the MRSIGNER that is expected
	report, err := verify.Verify(ctx, img, nil, verify.Expectations{MRSigner: []sgx.Measurement{signer}}, nil,
		inspect.Options{})
	switch {
	case errors.Is(err, inspect.ErrNotConverted):
		fmt.Println("it has no enclave")
	case err != nil:
		panic(err)
	case !report.Trusted:
		fmt.Println("not trusted:", report.Unmet())
	}
	// Output: it has no enclave
}
