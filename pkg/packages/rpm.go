package packages

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	rpmdb "github.com/anchore/go-rpmdb/pkg"
	_ "github.com/glebarez/go-sqlite" // the driver by which rpmdb reads databases of SQLite
	"github.com/moby/sys/reexec"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// rpmFiles are the databases of rpm, in the order in which they are looked for: SQLite (Fedora, RHEL 9),
// ndb (SUSE), Berkeley DB (RHEL 8 and before).
var rpmFiles = []string{
	"/usr/lib/sysimage/rpm/rpmdb.sqlite", "/usr/share/rpm/rpmdb.sqlite", "/var/lib/rpm/rpmdb.sqlite",
	"/usr/lib/sysimage/rpm/Packages.db", "/var/lib/rpm/Packages.db",
	"/usr/lib/sysimage/rpm/Packages", "/var/lib/rpm/Packages",
}

// sqliteLog is what is added to the name of a database of SQLite for its write-ahead log. A program that ends without
// closing a database leaves there what it wrote last (www.sqlite.org/wal.html).
const sqliteLog = "-wal"

// rpmEssential are the packages of every installation, of which rpm has no mark.
var rpmEssential = map[string]bool{
	"bash": true, "coreutils": true, "coreutils-single": true, "coreutils-common": true, "filesystem": true,
	"findutils": true, "gawk": true,
	"glibc": true, "glibc-common": true, "grep": true, "sed": true, "setup": true, "util-linux-core": true,
	"system-release": true,
}

// Bounds on the child that reads a database.
const (
	rpmSeconds = 10              // of computing; real ones take less than one
	rpmTimeout = 2 * time.Minute // on a machine that is busy with other things
	rpmMemory  = 4 << 30         // bytes of address space
	rpmOutput  = 1 << 30         // bytes
	rpmCommand = "cconvert-rpmdb"
)

// The library that reads rpm's databases is not made for hostile ones: it can loop, or panic in a
// goroutine of its own. It runs in a child of the same program, for which main must call reexec.Init.
func init() { reexec.Register(rpmCommand, rpmChild) }

// readRPM reads rpm's database (rpm's lib/rpmtag.h; the file formats are the library's affair).
func readRPM(ctx context.Context, tree *rootfs.Tree) ([]*Package, error) {
	for _, file := range rpmFiles {
		if c, err := content(tree, file); err != nil {
			return nil, err
		} else if len(c) == 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, rpmTimeout)
		defer cancel()
		dir, err := os.MkdirTemp("", "cconvert-rpmdb-")
		if err != nil {
			// An image of nothing but a program has no /tmp; engines give it this.
			dir, err = os.MkdirTemp("/dev/shm", "cconvert-rpmdb-")
		}
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		for _, db := range []struct{ name, from string }{{"/db", file}, {"/history", dnfHistory}} {
			for _, suffix := range []string{"", sqliteLog} {
				c, err := content(tree, db.from+suffix)
				if err != nil {
					return nil, err
				}
				if len(c) == 0 {
					continue
				}
				if err := os.WriteFile(dir+db.name+suffix, c, 0o600); err != nil {
					return nil, err
				}
			}
		}
		self := exec.CommandContext(ctx, reexec.Self())
		self.Args, self.Env = []string{rpmCommand, dir + "/db", dir + "/history"}, []string{}
		self.WaitDelay = time.Second
		out, err := limitedOutput(self)
		var ended *exec.ExitError
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%s: it took more than %s: %w", file, rpmTimeout, ctx.Err())
		// the library found it wrong, or did not survive it
		case errors.As(err, &ended) &&
			(ended.Exited() || ended.UserTime()+ended.SystemTime() >= rpmSeconds*time.Second):
			return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, file, err)
		case err != nil:
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		var list []*Package
		if err := json.Unmarshal(out, &list); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, file, err)
		}
		return list, readDNF5(tree, list)
	}
	return nil, nil
}

// limitedOutput runs a command and returns what it prints.
func limitedOutput(cmd *exec.Cmd) ([]byte, error) {
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &bounded{&out, rpmOutput}, &bounded{&said, 4096}
	if err := cmd.Run(); err != nil {
		line, _, _ := bytes.Cut(said.Bytes(), []byte("\n"))
		return nil, fmt.Errorf("%w: %s", err, line)
	}
	return out.Bytes(), nil
}

// bounded is a buffer that takes so many bytes and drops the rest.
type bounded struct {
	*bytes.Buffer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	keep := min(len(p), b.left)
	b.left -= keep
	b.Buffer.Write(p[:keep])
	return len(p), nil
}

// rpmChild is the child: it reads the databases that its arguments name and prints the packages.
func rpmChild() {
	out := os.Stdout
	os.Stdout = os.Stderr // where the library prints what it finds wrong
	limit(rpmMemory, rpmSeconds)
	list, err := listRPM(os.Args[1])
	if err == nil {
		err = readDNF(os.Args[2], list)
	}
	if err == nil {
		err = json.NewEncoder(out).Encode(list)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func listRPM(file string) ([]*Package, error) {
	db, err := rpmdb.Open(file)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	infos, err := db.ListPackages()
	if err != nil {
		return nil, err
	}
	if len(infos) == 0 {
		return nil, errors.New("it lists no packages")
	}
	var list []*Package
	for _, info := range infos {
		if info.Name == "gpg-pubkey" {
			continue // a key, not a package
		}
		p := &Package{
			Name: info.Name, Version: info.Version + "-" + info.Release, Essential: rpmEssential[info.Name],
			Provides: info.Provides,
		}
		for _, name := range info.Requires {
			p.Depends = append(p.Depends, []string{name})
		}
		if p.Files, err = info.InstalledFileNames(); err != nil {
			return nil, fmt.Errorf("the files of %s: %w", info.Name, err)
		}
		list = append(list, p)
	}
	return list, nil
}
