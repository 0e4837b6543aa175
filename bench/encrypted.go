package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/protectedfs/filekey"
)

// modelBytes is the size of the file that is encrypted, of which nothing can be compressed.
const modelBytes = 256 << 20

// encrypted times what encrypting a large file adds to a cold conversion, beside AES-128-GCM over as many bytes.
func (b *bench) encrypted(ctx context.Context) error {
	layer, err := newLayer(filepath.Join(b.dir, "model.tar.gz"), func(w *layerWriter) error {
		model := make([]byte, modelBytes)
		if _, err := rand.NewChaCha8([32]byte{1}).Read(model); err != nil {
			return err
		}
		return w.file("srv/model.bin", model)
	})
	if err != nil {
		return err
	}
	debug.FreeOSMemory() // Linux takes what a process has when it forks for the peak of its child
	if err := b.registry.push("model:1", v1.Config{Cmd: []string{"redis-server"}}, b.mixed, layer); err != nil {
		return err
	}
	key := filepath.Join(b.dir, "files.key")
	_ = os.Remove(key) // of an earlier run
	if err := filekey.Create(key); err != nil {
		return err
	}
	peak := int64(0)
	cold := func(name string, flags ...string) step {
		return step{name, func() (time.Duration, error) {
			if err := b.cold(); err != nil {
				return 0, err
			}
			f, err := b.convert(ctx, b.registry.host+"/model:1", b.registry.host+"/model:out", flags...)
			peak = max(peak, f.peak)
			return f.took, err
		}}
	}
	took, err := b.medians(
		step{"AES-128-GCM over 256 MiB, in pieces of 4 KiB", plainGCM},
		cold("cold convert with a file of 256 MiB"),
		cold("the same, with the file encrypted", "--encrypt", "/srv/model.bin", "--encrypt-key", key))
	if err != nil {
		return err
	}
	b.goal("what encrypting adds to a cold conversion ÷ AES-128-GCM alone", (took[2]-took[1])/took[0], 1.3, "")
	b.goal("peak memory, encrypting 256 MiB", float64(peak)/1e6, 200, " MB")
	return nil
}

// plainGCM times AES-128-GCM on one processor, with a new key for each node as encrypted files have it.
func plainGCM() (time.Duration, error) {
	data := make([]byte, 1<<20)
	out := make([]byte, 0, protectedfs.NodeSize+16)
	begin := time.Now()
	for done := 0; done < modelBytes; done += protectedfs.NodeSize {
		at := done % len(data)
		block, err := aes.NewCipher(data[at:][:16])
		if err != nil {
			return 0, err
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return 0, err
		}
		gcm.Seal(out, data[:12], data[at:][:protectedfs.NodeSize], nil)
	}
	return time.Since(begin), nil
}
