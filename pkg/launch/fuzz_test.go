package launch_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Scripts, lists of users, of libraries and of opened files, and the configuration are all the image's.
func FuzzBuild(f *testing.F) {
	f.Add([]byte(
		`{"config":{"Entrypoint":["/entry.sh","a"],"User":"app:staff","Env":["LD_LIBRARY_PATH=$ORIGIN/x:/lib"],
		"Volumes":{"/data":{}}}}`),
		"#!/bin/sh -e\nset -- app \"$@\"\nexec /bin/app > /etc/x\n", "include /etc/ld.so.conf.d/*.conf\n/opt/lib\n",
		"glibc-ld.so.cache1.1\x01\x00\x00\x00\x08\x00\x00\x00", "app:x:1000:50:a:/home/app:/bin/sh\n",
		"openat(AT_FDCWD, \"/etc/conf\", O_RDONLY) = 3\n", "../../etc/passwd")
	f.Fuzz(func(t *testing.T, config []byte, script, conf, cache, passwd, trace, link string) {
		entries := []fixture.Entry{
			fixture.Program("bin/app", fixture.ELF("")), fixture.Program("bin/sh", fixture.ELF("")),
			fixture.Program("entry.sh", script), fixture.File("etc/ld.so.conf", conf),
			fixture.File("etc/ld.so.cache", cache), fixture.File("etc/passwd", passwd), fixture.File("etc/group",
				passwd), fixture.File("etc/conf", script), fixture.File("opt/lib/libx.so", fixture.ELF("")),
		}
		if link != "" && !strings.ContainsRune(link, 0) && len(link) < 100 {
			entries = append(entries, fixture.Symlink("data", link), fixture.Symlink("opt/run", link))
		}
		archive := fixture.Tar(t, entries...)
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256(archive))
		list, _ := launch.ParseList(strings.NewReader(trace))
		for _, o := range []launch.Options{{}, {Trust: launch.TrustAll}, {Trust: launch.TrustList, List: list}} {
			index, err := rootfs.Scan(context.Background(), bytes.NewReader(archive), digest,
				rootfs.Options{Keep: o.Keep()})
			if err != nil {
				t.Fatal(err)
			}
			tree, err := rootfs.Merge([]*rootfs.Index{index})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = launch.Examine(context.Background(), tree).Build(context.Background(), config, o)
		}
	})
}
