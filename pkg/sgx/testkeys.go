package sgx

import (
	"crypto/rsa"
	_ "embed"
	"strings"
	"sync"
)

// testKeysText has a line for each private key that a repository of source code publishes, for samples and tests
// mostly, so that everybody can sign with it: MRSIGNER, tab, repository.
//
//go:embed testkeys.tsv
var testKeysText string

var testKeys = sync.OnceValue(func() map[string]string {
	keys := map[string]string{}
	for line := range strings.Lines(testKeysText) {
		signer, repository, _ := strings.Cut(strings.TrimSpace(line), "\t")
		keys[signer] = repository
	}
	return keys
})

// TestKey returns the repository that publishes the private half of a key; false where none is known.
func TestKey(k *rsa.PublicKey) (repository string, ok bool) {
	repository, ok = testKeys()[MRSigner(k).String()]
	return repository, ok
}
