package registry

import (
	"fmt"
	"os"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/cconvert/cconvert/pkg/image"
)

// AuthFile returns the credentials of a file in the format of Docker's configuration, which "docker login", podman and
// skopeo write; helpers that it names are asked.
func AuthFile(file string) (authn.Keychain, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := config.LoadFromReader(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return authFile{c.GetAuthConfig}, nil
}

type authFile struct {
	get func(key string) (types.AuthConfig, error)
}

// Resolve implements authn.Keychain. Credentials of a repository go before those of its registry.
func (a authFile) Resolve(of authn.Resource) (authn.Authenticator, error) {
	for _, key := range []string{of.String(), of.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		c, err := a.get(key)
		if err != nil {
			return nil, err
		}
		c.ServerAddress = "" // is always set
		if c != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{
				Username: c.Username, Password: c.Password, Auth: c.Auth, IdentityToken: c.IdentityToken,
				RegistryToken: c.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}

// Users are credentials for single repositories.
type Users map[string]authn.Authenticator

// Add sets the credentials for the repository of an image; what is not in a registry needs none.
func (u Users) Add(ref image.Reference, a authn.Authenticator) {
	if ref.Transport == image.Registry {
		u[ref.Name.Context().String()] = a
	}
}

// Resolve implements authn.Keychain.
func (u Users) Resolve(of authn.Resource) (authn.Authenticator, error) {
	if a, ok := u[of.String()]; ok {
		return a, nil
	}
	return authn.Anonymous, nil
}
