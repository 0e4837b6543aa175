//go:build !pkcs11

package signer

import (
	"context"
	"errors"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// ErrNoPKCS11 says that this program was built without PKCS#11, whose modules are libraries in C.
var ErrNoPKCS11 = errors.New("this build of cconvert is static and cannot load PKCS#11 modules")

func openToken(context.Context, string, Options) (sgx.Signer, error) { return nil, ErrNoPKCS11 }
