package convert_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// An image is converted from one OCI layout to another one, for the simulation. For Gramine the backend is
// gramine.Backend{}, and without a source of the runtime its official image is taken.
func ExampleRun() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	loader := filepath.Join(dir, "loader") // a build of cconvert
	if err := os.WriteFile(loader, []byte(fixture.ELF("")), 0o755); err != nil {
		panic(err)
	}
	if err := fixture.WriteLayout(filepath.Join(dir, "in")); err != nil {
		panic(err)
	}

	source, err := image.ParseReference("oci:"+dir+"/in:1", false)
	if err != nil {
		panic(err)
	}
	target, err := image.ParseReference("oci:"+dir+"/out:1", false)
	if err != nil {
		panic(err)
	}
	key, err := sgx.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	defer key.Close()
	result, err := convert.Run(context.Background(), convert.Options{
		Source: source, Target: &target,
		Backend: sim.Backend{}, Runtime: libos.LoadOptions{Source: loader},
	}, key)
	if err != nil {
		panic(err)
	}
	fmt.Println("the enclave has", result.EnclaveSize>>20, "MiB, and was signed:", result.MRSigner != sgx.Measurement{})
	for _, f := range result.Findings {
		fmt.Println(f.Severity, f.Code)
	}
	// Output:
	// the enclave has 1024 MiB, and was signed: true
	// info arguments-fixed
	// info no-package-database
	// warning simulated
}
