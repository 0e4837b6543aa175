package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/sgx/quote"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
	"github.com/cconvert/cconvert/pkg/sgx/ratls"
)

// startRATLS runs a TLS server, in no enclave, whose certificate has a quote about its key by a machine that somebody
// has made up, and returns its address.
func startRATLS(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	request, err := ratls.NewRequest(key, nil)
	require.NoError(t, err)
	machine, err := simulated.New("a test", time.Now().Add(-time.Hour))
	require.NoError(t, err)
	machine.Set(&quote.Report{Data: request.Data})
	raw, err := machine.Quote()
	require.NoError(t, err)
	der, err := request.Certificate(raw)
	require.NoError(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(io.Discard, c) }()
		}
	}()
	return l.Addr().String()
}

// startPCCS answers with the collateral of a public quote, as a cache of Intel's service does, and returns its address.
func startPCCS(t testing.TB, quotes string) string {
	t.Helper()
	c, err := quote.ReadCollateral(filepath.Join(quotes, "good/phala-sgx_quote_collateral.json"))
	require.NoError(t, err)
	signed := func(header, name string, value, signature, chain []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(header, url.PathEscape(string(chain)))
			fmt.Fprintf(w, `{%q:%s,"signature":%q}`, name, value, hex.EncodeToString(signature))
		}
	}
	list := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, hex.EncodeToString(b)) }
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v4/tcb", signed("TCB-Info-Issuer-Chain", "tcbInfo", c.TCBInfo, c.TCBInfoSignature,
		c.TCBInfoChain))
	mux.HandleFunc("GET /v4/qe/identity", signed("SGX-Enclave-Identity-Issuer-Chain", "enclaveIdentity", c.QEIdentity,
		c.QEIdentitySignature, c.QEIdentityChain))
	mux.HandleFunc("GET /v4/pckcrl", list(c.PCKCRL))
	mux.HandleFunc("GET /v4/rootcacrl", list(c.RootCRL))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL + "/v4"
}
