package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
)

// credsFlag is a user of a registry with the password, USER:PASSWORD.
type credsFlag struct{ user authn.Authenticator }

// credsType is what help calls its values.
const credsType = "USER:PASSWORD"

func (c *credsFlag) Type() string { return credsType }

// String keeps the password out of messages, and of what is written of a command line.
func (c *credsFlag) String() string {
	if c.user == nil {
		return ""
	}
	return "hidden"
}

func (c *credsFlag) Set(text string) error {
	user, password, ok := strings.Cut(text, ":")
	if !ok || user == "" || password == "" {
		return errors.New(credsType + " expected")
	}
	c.user = authn.FromConfig(authn.AuthConfig{Username: user, Password: password})
	return nil
}

// authFileFlag is a file of credentials.
type authFileFlag struct {
	file     string
	keychain authn.Keychain // nil: the usual one
}

func (a *authFileFlag) Type() string   { return "file" }
func (a *authFileFlag) String() string { return a.file }

func (a *authFileFlag) Set(file string) (err error) {
	a.file = file
	a.keychain, err = registry.AuthFile(file)
	return err
}

// caFlag is a file of certificates.
type caFlag struct {
	file string
	pool *x509.CertPool // nil: the usual one
}

func (c *caFlag) Type() string   { return "file" }
func (c *caFlag) String() string { return c.file }

func (c *caFlag) Set(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(text) {
		return errors.New("it has no certificate in PEM")
	}
	c.file, c.pool = file, pool
	return nil
}

// addCredentials adds the flags for the credentials of registries, and for how these are known.
func (r *registryFlags) addCredentials(f *pflag.FlagSet) {
	f.Var(&r.authFile, "authfile", "file of credentials for registries, as \"docker login\" writes it")
	f.BoolVar(&r.tlsVerify, "tls-verify", true,
		"want certificates of registries to be right; without it, whoever is on "+
			"the way can read and change what is sent")
	f.Var(&r.ca, "ca",
		"PEM file of authorities whose certificates registries may have, beside those that this machine knows")
	r.transport = sync.OnceValue(r.newTransport)
}

// newTransport makes what sends requests to registries; nil: the usual one does.
func (r *registryFlags) newTransport() http.RoundTripper {
	usual, ok := remote.DefaultTransport.(*http.Transport)
	if r.ca.pool == nil && r.tlsVerify || !ok {
		return nil
	}
	own := usual.Clone()
	own.TLSClientConfig = &tls.Config{
		RootCAs: r.ca.pool, MinVersion: tls.VersionTLS12, InsecureSkipVerify: !r.tlsVerify,
	}
	return own
}

// keychain has the credentials of the source and the target of conversions, if they are given, and then the usual ones;
// nil: these alone.
func (r *registryFlags) keychain(sources, targets []image.Reference) authn.Keychain {
	users := registry.Users{}
	for _, side := range []struct {
		refs []image.Reference
		user authn.Authenticator
	}{{sources, r.srcCreds.user}, {targets, r.destCreds.user}} { // of one repository, who writes can read
		for _, ref := range side.refs {
			if side.user != nil {
				users.Add(ref, side.user)
			}
		}
	}
	if len(users) == 0 {
		return r.authFile.keychain
	}
	others := r.authFile.keychain
	if others == nil {
		others = authn.DefaultKeychain
	}
	return authn.NewMultiKeychain(users, others)
}
