package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// nodeSize is the size of the first node of an encrypted file, which authenticates the others.
const nodeSize = 4096

// maxList is how long the list of encrypted files can be, in bytes.
const maxList = 64 << 20

// compare reports an encrypted file that is not the one of the image. It reads them as they are on the host: a file
// that is looked up where it is decrypted, before its key is there, cannot be read any more.
func (s *System) compare() error {
	f, err := os.Open(s.List)
	if err != nil {
		return err
	}
	defer f.Close()
	var list struct {
		Files []struct {
			Path string `json:"path"`
			Head string `json:"head"`
		} `json:"files"`
	}
	if err := json.NewDecoder(io.LimitReader(f, maxList)).Decode(&list); err != nil {
		return fmt.Errorf("%s: %w", s.List, err)
	}
	node := make([]byte, nodeSize)
	for _, f := range list.Files {
		if f.Head == "" {
			continue // the program may change it
		}
		if err := readNode(filepath.Join(s.Ciphertexts, f.Path), node); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrCiphertext, f.Path, err)
		}
		if sum := sha256.Sum256(node); hex.EncodeToString(sum[:]) != f.Head {
			return fmt.Errorf("%w: %s", ErrCiphertext, f.Path)
		}
	}
	return nil
}

func readNode(name string, node []byte) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.ReadFull(f, node)
	return err
}
