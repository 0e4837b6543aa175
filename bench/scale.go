package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// files converts images with ten times as many files, all of which are listed.
func (b *bench) files(ctx context.Context) error {
	const few, many = 100_000, 1_000_000
	return b.tenfold(ctx, "files", few, many, func(w *layerWriter, n int) error {
		for i := range n {
			if err := w.file(fmt.Sprintf("srv/data/%03d/%03d/file-%07d.json", i/100_000, i/1000%100, i),
				fmt.Appendf(nil, "content %d\n", i)); err != nil {
				return err
			}
		}
		return nil
	}, func(n int, peak int64) {
		if n == many {
			b.goal("peak memory with 1,000,000 files, for each", float64(peak)/many/1000, 1.5, " KB")
		}
	})
}

// bytes converts images with ten times as many bytes, a fifth of which is in one file: 4 of 20 GB.
func (b *bench) bytes(ctx context.Context) error {
	const few, many = 200, 2000
	text := words(10 << 20)
	block, err := compressed(text)
	if err != nil {
		return err
	}
	return b.tenfold(ctx, "times 10 MiB", few, many, func(w *layerWriter, n int) error {
		large := n / 5
		for i := range n - large {
			if err := w.packed(fmt.Sprintf("srv/block-%d", i), text, 1, block); err != nil {
				return err
			}
		}
		return w.packed("srv/large", text, large, block)
	}, func(n int, peak int64) {
		b.note("%d MiB in a layer, a fifth of it in one file: %s peak memory", n*10, humanize.Bytes(uint64(peak)))
	})
}

// words is text that compresses as programs do, to about a third.
func words(size int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	vocabulary := make([]string, 4096)
	for i := range vocabulary {
		vocabulary[i] = fmt.Sprintf("%x ", rnd.Uint32()>>rnd.IntN(16))
	}
	var b bytes.Buffer
	for b.Len() < size {
		b.WriteString(vocabulary[rnd.IntN(len(vocabulary))])
	}
	return b.Bytes()[:size]
}

// tenfold compares the time for few and for ten times as many of something.
func (b *bench) tenfold(
	ctx context.Context, what string, few, many int, fill func(*layerWriter, int) error, seen func(n int, peak int64),
) error {
	var took [2]float64
	for i, n := range []int{few, many} {
		r, err := startRegistry(ctx, filepath.Join(b.dir, "scale"))
		if err != nil {
			return err
		}
		took[i], err = b.atScale(ctx, r, what, n, fill, seen)
		r.stop()
		if err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Join(b.dir, "scale")); err != nil {
			return err
		}
	}
	b.goal(fmt.Sprintf("time for 10 × as many %s", what), took[1]/took[0], 11, " ×")
	return nil
}

func (b *bench) atScale(
	ctx context.Context, r *registry, what string, n int, fill func(*layerWriter, int) error,
	seen func(n int, peak int64),
) (float64, error) {
	fmt.Fprintf(os.Stderr, "making a layer with %s %s\n", humanize.Comma(int64(n)), what)
	l, err := newLayer(filepath.Join(b.dir, "scale.tar.gz"), func(w *layerWriter) error {
		program, err := os.ReadFile(b.program)
		if err != nil {
			return err
		}
		if err := w.file("program", program); err != nil {
			return err
		}
		return fill(w, n)
	})
	if err != nil {
		return 0, err
	}
	defer os.Remove(l.file)
	if err := r.push("scale:1", v1.Config{Entrypoint: []string{"/program"}}, l); err != nil {
		return 0, err
	}
	peak := int64(0)
	took, err := b.median(fmt.Sprintf("cold convert, %s %s", humanize.Comma(int64(n)), what),
		func() (time.Duration, error) {
			if err := b.cold(); err != nil {
				return 0, err
			}
			f, err := b.convert(ctx, r.host+"/scale:1", r.host+"/scale:out", "--memory", "4G")
			peak = max(peak, f.peak)
			return f.took, err
		})
	seen(n, peak)
	return took, err
}

// layers converts an image with as many layers as overlay filesystems can have.
func (b *bench) layers(ctx context.Context) error {
	const count = 127
	var layers []v1.Layer
	for i := range count {
		l, err := newLayer(filepath.Join(b.dir, fmt.Sprintf("layer-%d.tar.gz", i)), func(w *layerWriter) error {
			if i == 0 {
				program, err := os.ReadFile(b.program)
				if err != nil {
					return err
				}
				return w.file("program", program)
			}
			for k := range 100 {
				if err := w.file(fmt.Sprintf("srv/%d/%d", i, k), []byte(strings.Repeat("x", i))); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		defer os.Remove(l.file)
		layers = append(layers, l)
	}
	if err := b.registry.push("layers:1", v1.Config{Entrypoint: []string{"/program"}}, layers...); err != nil {
		return err
	}
	_, err := b.median(fmt.Sprintf("cold convert, %d layers", count), func() (time.Duration, error) {
		if err := b.cold(); err != nil {
			return 0, err
		}
		f, err := b.convert(ctx, b.registry.host+"/layers:1", b.registry.host+"/layers:out")
		return f.took, err
	})
	return err
}
