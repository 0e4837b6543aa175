package gramine

import (
	"bytes"
	"encoding/hex"
	"fmt"

	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/protectedfs"
)

// recoveryKey is a setting of mounts that came with the second version of encrypted files, in Gramine v1.9 ("Manifest
// syntax", "Encrypted files").
const recoveryKey = "enable_recovery"

// EncryptedFormat finds it out by what the library OS knows of manifests.
func (Backend) EncryptedFormat(b *libos.Bundle) (protectedfs.Version, error) {
	content, err := b.Content(libosPath)
	if err != nil {
		return 0, err
	}
	if bytes.Contains(content, []byte(recoveryKey)) {
		return protectedfs.Version2, nil
	}
	return protectedfs.Version1, nil
}

// keysIn returns the keys that a manifest has.
func keysIn(table map[string]any) (map[string]protectedfs.Key, error) {
	fs, _ := table["fs"].(map[string]any)
	texts, _ := fs[insecureKeys].(map[string]any)
	keys := map[string]protectedfs.Key{}
	for name, v := range texts {
		text, _ := v.(string)
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != len(protectedfs.Key{}) {
			return nil, fmt.Errorf("the key %q in the manifest is not 16 bytes in hexadecimal", name)
		}
		keys[name] = protectedfs.Key(b)
	}
	return keys, nil
}
