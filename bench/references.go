package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/gzip"
)

// references times what others need for the same layer.
func (b *bench) references(ctx context.Context) error {
	if _, err := read(b.layer); err != nil {
		return err
	}
	shell := func(line string) func() (time.Duration, error) { return timeOf(ctx, nil, "sh", "-c", line) }
	out := filepath.Join(b.dir, "out")
	fresh := func() error { return errors.Join(os.RemoveAll(out), os.MkdirAll(out, 0o755)) }
	layout := func() error {
		if err := fresh(); err != nil {
			return err
		}
		_, err := command(ctx, "skopeo", "copy", "-q", "--src-tls-verify=false", "docker://"+b.image, "oci:"+out+
			"/oci:1")
		return err
	}
	for _, r := range []step{
		{"igzip -dc", shell("igzip -dc <" + b.layer + " >/dev/null")},
		{"pigz -dc", shell("pigz -dc <" + b.layer + " >/dev/null")},
		{"gzip -dc", shell("gzip -dc <" + b.layer + " >/dev/null")},
		{craneExport, shell(filepath.Join(b.dir, "crane") + " export " + b.image + " - >/dev/null")},
		{umociUnpack, timeOf(ctx, layout, "umoci", "unpack", "--image", out+"/oci:1", out+"/bundle")},
		{
			"skopeo copy to an OCI layout", timeOf(ctx, fresh, "skopeo", "copy", "-q", "--src-tls-verify=false",
				"docker://"+b.image, "oci:"+out+"/oci:1"),
		},
	} {
		if _, err := b.median(r.name, r.run); err != nil {
			return err
		}
	}
	return os.RemoveAll(out)
}

// The references that goals are about.
const (
	craneExport = "crane export to /dev/null"
	umociUnpack = "umoci unpack"
)

// inflate is what Go needs at least.
func (b *bench) inflate() (time.Duration, error) {
	f, err := os.Open(b.layer)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	begin := time.Now()
	z, err := gzip.NewReader(bufio.NewReaderSize(f, 256<<10))
	if err != nil {
		return 0, err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, z, make([]byte, 256<<10))
	return time.Since(begin), err
}

// plainHash times SHA-256 over so many bytes in memory.
func plainHash(n uint64) time.Duration {
	data := make([]byte, min(n, 256<<20))
	for i := range data {
		data[i] = byte(i)
	}
	sum := sha256.New()
	begin := time.Now()
	for left := n; left > 0; {
		k := min(left, uint64(len(data)))
		sum.Write(data[:k])
		left -= k
	}
	sum.Sum(nil)
	return time.Since(begin)
}

// seconds returns what was measured under a name.
func (b *bench) seconds(name string) float64 {
	for _, t := range b.times {
		if t.name == name {
			return t.took.Seconds()
		}
	}
	panic("not measured: " + name)
}
