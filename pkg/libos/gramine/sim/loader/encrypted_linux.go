package loader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"github.com/cconvert/cconvert/internal/nocore"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim/keeper"
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

// list is the image's list of encrypted files.
type list struct {
	Key   string `json:"key"`
	KeyID string `json:"key_id"`
	Files []struct {
		Path   string `json:"path"`
		SHA256 string `json:"sha256"`
	} `json:"files"`
}

func readList() (l list, err error) {
	text, err := os.ReadFile(encryptedList)
	if err != nil {
		return l, refused("%w", err)
	}
	if err := json.Unmarshal(text, &l); err != nil {
		return l, refused("%s: %w", encryptedList, err)
	}
	return l, nil
}

// check reports a key that is not the one of the files.
func (l list) check(key protectedfs.Key) error {
	if key.ID() != l.KeyID {
		return fmt.Errorf("the key is not the one of the image's encrypted files: its id is %s, theirs is %s", key.ID(),
			l.KeyID)
	}
	return nil
}

// decrypt puts the plain files in the place of the encrypted ones that the image has, for this process and what it
// becomes: it stays on its thread. There is an enclave around none of them. If an agent is to bring the key, the files
// are empty until then, and the connection is returned by which it does.
func (p *program) decrypt() (*os.File, error) {
	if !slices.ContainsFunc(p.SGX.Trusted, func(f trustedFile) bool { return f.URI == "file:"+encryptedList }) {
		os.Unsetenv(keyVariable)
		return nil, nil
	}
	l, err := readList()
	if err != nil {
		return nil, err
	}
	if _, public := p.FS.InsecureKeys[l.Key]; p.LibOS.Entrypoint == agentPath && !public {
		os.Unsetenv(keyVariable)
		return l.awaitKey()
	}
	key, err := p.filesKey(l.Key)
	if err == nil {
		err = l.check(key)
	}
	if err == nil {
		err = privateMounts()
	}
	if err == nil {
		err = l.cover()
	}
	if err == nil {
		err = l.fill(key)
	}
	return nil, err
}

// below is where the files of the image are that others cover.
const below = plainDir + "/below"

// cover puts an empty file over each encrypted one, which belongs to the same user.
func (l list) cover() error {
	if err := os.Mkdir(below, 0o700); err != nil {
		return err
	}
	if err := syscall.Mount("/", below, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("keeping the encrypted files: %w", err)
	}
	for i, f := range l.Files {
		if err := likewise(f.Path, plainFile(i)); err != nil {
			return err
		}
		if err := syscall.Mount(plainFile(i), f.Path, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("putting the plain file in the place of %s: %w", f.Path, err)
		}
	}
	return nil
}

func plainFile(i int) string { return filepath.Join(plainDir, strconv.Itoa(i)) }

// fill writes the plain text into the files that cover the encrypted ones, which nothing needs any more then.
func (l list) fill(key protectedfs.Key) error {
	for i, f := range l.Files {
		if err := decryptFile(f.Path, f.SHA256, plainFile(i), key); err != nil {
			return err
		}
	}
	return syscall.Unmount(below, syscall.MNT_DETACH)
}

// awaitKey starts a process that can still mount and read when this one cannot any more, and fills the files when an
// agent brings the key.
func (l list) awaitKey() (*os.File, error) {
	if err := privateMounts(); err != nil {
		return nil, err
	}
	if err := l.cover(); err != nil {
		return nil, err
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	own, other := os.NewFile(uintptr(pair[0]), "keeper"), os.NewFile(uintptr(pair[1]), "agent")
	defer other.Close()
	// The mounts are those of this thread, and the child's: the loader itself is covered by them.
	child := exec.Cmd{
		Path: "/proc/self/exe", Args: []string{Path, keeperArg}, ExtraFiles: []*os.File{other}, Stderr: os.Stderr,
	}
	if err := child.Start(); err != nil {
		own.Close()
		return nil, fmt.Errorf("starting what decrypts the files: %w", err)
	}
	return own, nil
}

// keep is the process that awaitKey starts.
func keep() error {
	nocore.Set()
	l, err := readList()
	if err != nil {
		return err
	}
	return keeper.Serve(os.NewFile(3, "agent"), func(name string, b []byte) error {
		if name != l.Key {
			return nil // of an encrypted mount, which is a directory as any here
		}
		if len(b) != len(protectedfs.Key{}) {
			return errors.New("the key does not have 16 bytes")
		}
		key := protectedfs.Key(b)
		clear(b)
		if err := l.check(key); err != nil {
			return err
		}
		return l.fill(key)
	})
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

// likewise makes an empty file with the owner and mode of another one.
func likewise(name, to string) error {
	info, err := os.Stat(name)
	if err != nil {
		return refused("%w", err)
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := out.Chown(int(stat.Uid), int(stat.Gid)); err != nil {
			return err
		}
	}
	return out.Chmod(info.Mode())
}

// decryptFile writes the plain text of a file, which others cover, into another one.
func decryptFile(name, sum, to string, key protectedfs.Key) error {
	at := below + name
	got, err := digest(at)
	if err != nil {
		return refused("%w", err)
	}
	if got != sum {
		return refused("the encrypted file %s was changed: its SHA-256 is %s, the signed list says %s", name, got, sum)
	}
	in, err := os.Open(at)
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
	out, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, r); err != nil {
		out.Close()
		return refused("the encrypted file %s: %w", name, err)
	}
	return out.Close()
}
