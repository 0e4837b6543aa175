package loader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/protectedfs/filekey"
)

// keyVariable has the key to the image's encrypted files: that of the image, or its owner's.
const keyVariable = "CCONVERT_SIM_FILES_KEY"

// encryptedList is libos.EncryptedPath, and recipePath libos.RecipePath.
const (
	encryptedList = root + "/app/encrypted.json"
	recipePath    = root + "/app/recipe.json"
)

// plainDir is where the decrypted files are, in memory, for this process and its children alone: the program's own
// directory, which nobody needs any more.
const plainDir = root + "/sim"

// decrypt puts the plain files in the place of the encrypted ones that the image has, for this process and what it
// becomes: it stays on its thread. There is an enclave around none of them.
func (p *program) decrypt() error {
	if !slices.ContainsFunc(p.SGX.Trusted, func(f trustedFile) bool { return f.URI == "file:"+encryptedList }) {
		os.Unsetenv(keyVariable)
		return nil
	}
	text, err := os.ReadFile(encryptedList)
	if err != nil {
		return refused("%w", err)
	}
	var list struct {
		Key   string `json:"key"`
		KeyID string `json:"key_id"`
		Files []struct {
			Path   string `json:"path"`
			SHA256 string `json:"sha256"`
		} `json:"files"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return refused("%s: %w", encryptedList, err)
	}
	key, err := p.filesKey(list.Key)
	if err != nil {
		return err
	}
	if key.ID() != list.KeyID {
		return fmt.Errorf("the key is not the one of the image's encrypted files: its id is %s, theirs is %s", key.ID(),
			list.KeyID)
	}
	if err := privateMounts(); err != nil {
		return err
	}
	for i, f := range list.Files {
		plain := filepath.Join(plainDir, strconv.Itoa(i))
		if err := decryptFile(f.Path, f.SHA256, plain, key); err != nil {
			return err
		}
		if err := syscall.Mount(plain, f.Path, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("putting the plain file in the place of %s: %w", f.Path, err)
		}
	}
	return nil
}

// filesKey returns the key of a name, from the manifest or a variable, which is taken away.
func (p *program) filesKey(name string) (key protectedfs.Key, err error) {
	if text, ok := p.FS.InsecureKeys[name]; ok {
		os.Unsetenv(keyVariable)
		os.Setenv(keyVariable, text)
	}
	if os.Getenv(keyVariable) == "" {
		return key, fmt.Errorf("the image has encrypted files: give their key in the variable %s", keyVariable)
	}
	s, err := filekey.Open(context.Background(), "env:"+keyVariable, nil)
	if err != nil {
		return key, err
	}
	defer s.Close()
	var recipe struct {
		Source string `json:"source"`
	}
	if text, err := os.ReadFile(recipePath); err == nil {
		_ = json.Unmarshal(text, &recipe) // another source has another key, which is noticed
	}
	return s.For(recipe.Source)
}

// privateMounts moves this thread to mounts of its own, with a place in memory for plain files.
func privateMounts() error {
	runtime.LockOSThread()
	err := syscall.Unshare(syscall.CLONE_NEWNS)
	if err == nil {
		err = syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
	}
	if err == nil {
		err = syscall.Mount("cconvert", plainDir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=0755")
	}
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("the simulation keeps the plain text of encrypted files in memory, and may not mount that "+
			"over them: start the container with docker run --user 0 --cap-add SYS_ADMIN, and --security-opt "+
			"apparmor=unconfined where there is AppArmor: %w", err)
	}
	if err != nil {
		return fmt.Errorf("making room in memory for the plain text of encrypted files: %w", err)
	}
	return nil
}

// decryptFile writes the plain text of a file to another place, with the owner and mode of the first.
func decryptFile(name, sum, to string, key protectedfs.Key) error {
	if got, err := digest(name); err != nil || got != sum {
		return refused("the encrypted file %s was changed: its SHA-256 is %s, the signed list says %s (%v)", name, got,
			sum, err)
	}
	in, err := os.Open(name)
	if err != nil {
		return refused("%w", err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	r, err := protectedfs.Open(in, info.Size(), name, key)
	if err != nil {
		return refused("the encrypted file %s: %w", name, err)
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, r); err != nil {
		out.Close()
		return refused("the encrypted file %s: %w", name, err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := out.Chown(int(stat.Uid), int(stat.Gid)); err != nil {
			out.Close()
			return err
		}
	}
	if err := out.Chmod(info.Mode()); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
