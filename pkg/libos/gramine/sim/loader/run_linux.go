package loader

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/landlock-lsm/go-landlock/landlock"
	landlocksys "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"github.com/cconvert/cconvert/pkg/libos/gramine/sim/keeper"
)

// unconfined is a file by which whoever starts the container accepts that the program is not confined. No image has it:
// conversions refuse what has files there, and it is in no layer of theirs. A variable could be the image's own.
const unconfined = root + "/unconfined"

// agentPath is libos.AgentPath. An agent makes quotes of the enclave that there would be, by its signature.
const agentPath = root + "/agent/cconvert-agent"

// run confines this process and replaces it by the program. The signature is a file that only an agent may read, and
// the recipe one that nobody may.
func (p *program) run(argv, env, readable []string, sig string) error {
	if p.LibOS.Entrypoint == agentPath {
		readable = append(readable, sig)
	}
	keys, err := p.decrypt()
	if err != nil {
		return err
	}
	readable = slices.DeleteFunc(readable, func(name string) bool { // the loader, which plain files can hide
		_, err := os.Lstat(name)
		return err != nil
	})
	// The first version could not allow moving files between directories; the library would then confine
	// nothing at all. So it counts as none.
	if abi, err := landlocksys.LandlockGetABIVersion(); err != nil || abi < 2 {
		if _, err := os.Lstat(unconfined); err != nil {
			return fmt.Errorf("this kernel or the container's seccomp profile has no Landlock of version 2 (Linux "+
				"5.19), so the program cannot be confined to its files: to run it all the same, mount a file, as with "+
				"docker run -v /dev/null:%s", unconfined)
		}
		fmt.Fprintln(os.Stderr, "cconvert sim: the program is NOT CONFINED to the files of its manifest")
	} else if err := p.confine(readable); err != nil {
		return fmt.Errorf("confining the program: %w", err)
	} else if f, err := os.Open(recipePath); err == nil {
		f.Close()
		return fmt.Errorf("confining the program had no effect: %s, which is not in its manifest, can be read",
			recipePath)
	}
	if err := p.assume(); err != nil {
		return err
	}
	if dir := p.FS.StartDir; dir != "" {
		if err := os.Chdir(dir); err != nil {
			return fmt.Errorf("entering the working directory: %w", err)
		}
	}
	if keys != nil {
		fd, err := syscall.Dup(int(keys.Fd())) // which the agent inherits
		if err != nil {
			return err
		}
		env = append(env, fmt.Sprintf("%s=%d", keeper.Variable, fd))
	}
	if err := syscall.Exec(p.LibOS.Entrypoint, argv, env); err != nil {
		return fmt.Errorf("starting %s: %w", p.LibOS.Entrypoint, err)
	}
	return nil
}

// confine lets this process and its children open only what an enclave would let them: the trusted
// files to read and execute, the writable directories, directories for listing. /proc, /sys and /dev
// are emulated in an enclave and are the real ones here.
func (p *program) confine(readable []string) error {
	const list = landlocksys.AccessFSReadDir
	writable, files, err := p.writable()
	if err != nil {
		return err
	}
	rules := []landlock.Rule{
		landlock.ROFiles(readable...),
		landlock.PathAccess(list, "/"),
		landlock.RWDirs("/proc").IgnoreIfMissing(),
		landlock.RODirs("/sys").IgnoreIfMissing(),
		landlock.RWDirs("/dev").WithIoctlDev().IgnoreIfMissing(),
		landlock.ROFiles("/etc/resolv.conf", "/etc/hosts", "/etc/hostname").IgnoreIfMissing(),
		landlock.RWDirs(writable...).WithRefer().IgnoreIfMissing(),
		landlock.RWFiles(files...),
	}
	for _, uri := range p.SGX.Allowed {
		name := strings.TrimPrefix(uri, "file:")
		info, err := os.Stat(name)
		switch {
		case err != nil:
		case info.IsDir():
			rules = append(rules, landlock.RWDirs(name).WithRefer())
		default:
			rules = append(rules, landlock.RWFiles(name))
		}
	}
	return landlock.V5.BestEffort().RestrictPaths(rules...)
}

// assume takes on the identity of the manifest if this process may.
func (p *program) assume() error {
	if os.Getuid() == p.Loader.UID && os.Getgid() == p.Loader.GID {
		return nil
	}
	if os.Getuid() != 0 {
		fmt.Fprintf(os.Stderr, "cconvert sim: the program runs as %d:%d, in an enclave it would see %d:%d\n",
			os.Getuid(), os.Getgid(), p.Loader.UID, p.Loader.GID)
		return nil
	}
	if err := syscall.Setgroups(nil); err != nil && !os.IsPermission(err) {
		return fmt.Errorf("leaving groups: %w", err)
	}
	if err := syscall.Setgid(p.Loader.GID); err != nil {
		return fmt.Errorf("becoming the group %d: %w", p.Loader.GID, err)
	}
	if err := syscall.Setuid(p.Loader.UID); err != nil {
		return fmt.Errorf("becoming the user %d: %w", p.Loader.UID, err)
	}
	return nil
}
