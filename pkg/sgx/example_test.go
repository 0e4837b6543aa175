package sgx_test

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// An enclave of one page of code is measured and signed, without SGX.
func Example() {
	ctx := context.Background()
	layout := sgx.Layout{
		Size: 2 * sgx.PageSize, SSAFrameSize: 1,
		Areas: []sgx.Area{{Name: "code", Size: sgx.PageSize, Flags: sgx.R | sgx.X | sgx.REG, Data: []byte{0xf4}}},
	}
	measurement, err := sgx.Measure(ctx, layout)
	if err != nil {
		panic(err)
	}
	fmt.Println(measurement)

	s := &sgx.SigStruct{MREnclave: measurement, Attributes: sgx.Attributes{Flags: sgx.FlagMode64, XFRM: sgx.XFRMLegacy}}
	key, err := sgx.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	defer key.Close()
	signature, err := key.Sign(ctx, s.ToBeSigned())
	if err != nil {
		panic(err)
	}
	public, err := key.Public(ctx)
	if err != nil {
		panic(err)
	}
	if err := s.Attach(public, signature); err != nil {
		panic(err)
	}
	_, err = sgx.ParseSigStruct(s.Bytes())
	fmt.Println("the CPU would accept it:", err == nil)
	// Output:
	// 9be0527845f1483a10b1701be562cfcb28ca0b303d0096c0793ead670694c018
	// the CPU would accept it: true
}
