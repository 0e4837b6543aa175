//go:build !pkcs11

package signer

import (
	"context"

	"github.com/cconvert/cconvert/pkg/sgx"
)

func openToken(context.Context, string, Options) (sgx.Signer, error) { return nil, ErrNoPKCS11 }
