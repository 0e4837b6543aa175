package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// ErrNotEncrypted says that an image has no encrypted files.
var ErrNotEncrypted = errors.New("the image has no encrypted files")

// ErrSameKey says that files are encrypted with a key already that they were to be encrypted with.
var ErrSameKey = errors.New("the files are encrypted with this key already")

// ErrFilesKey says that the key to an image's encrypted files is needed.
var ErrFilesKey = errors.New("the present key to the encrypted files is needed")

// Rekey is BeforeSigning for an image whose files are to be encrypted with another key: its enclave then is a new one,
// to be signed. Expectations have the present key.
func Rekey(
	ctx context.Context, img, source *image.Image, e Expectations,
	newKey func(source string) (protectedfs.Key, error), o inspect.Options,
) (*Report, *convert.Prepared, error) {
	v := &verification{signing: true}
	r, _, err := v.beforeSigning(ctx, img, source, e, o)
	if err != nil || !r.Trusted {
		return r, nil, err
	}
	if v.c.Encrypted == nil {
		return nil, nil, ErrNotEncrypted
	}
	key, err := newKey(v.c.Recipe.Source)
	if err != nil {
		return nil, nil, err
	}
	old, known, err := v.filesKey(e)
	if err != nil {
		return nil, nil, err
	}
	if !known {
		return nil, nil, ErrFilesKey
	}
	if key == old {
		return nil, nil, ErrSameKey
	}
	again, err := v.reencrypt(ctx, old, key)
	if err != nil {
		return nil, nil, err
	}
	below := v.describe(v.s.Indexes[:len(v.s.Indexes)-v.s.Added()])
	p, err := convert.Rekey(ctx, v.parts(*v.c.Recipe), below, *again)
	if err != nil {
		return nil, nil, errors.Join(err, again.Close())
	}
	p.SourceChecked = source != nil
	return r, p, nil
}

// reencrypt decrypts each file into the new layer.
func (v *verification) reencrypt(ctx context.Context, old, key protectedfs.Key) (_ *convert.Reencrypted, err error) {
	version, err := v.s.Places.Backend.EncryptedFormat(v.s.Bundle)
	if err != nil {
		return nil, err
	}
	was := v.c.Encrypted
	at := len(v.s.Indexes) - v.s.Added() - 1
	index := v.s.Indexes[at]
	o := encrypted.Options{Key: key, KeyName: was.Key, Version: version, Random: was.Random, Mutable: was.Mutable}
	for i := range index.Entries {
		if e := &index.Entries[i]; e.Type == rootfs.Regular {
			o.UID, o.GID = e.UID, e.GID
		}
	}
	w, err := encrypted.NewWriter(v.below, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	spool, err := image.NewSpool()
	if err != nil {
		return nil, err
	}
	defer spool.Close()
	blob, err := v.s.Image.Layers[at].Open(ctx)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	err = rootfs.Rewrite(ctx, blob, index.Digest, rootfs.Options{Limits: v.limits}, io.Discard,
		func(_ int, e *rootfs.Entry, modified time.Time) func(io.Reader) error {
			if e.Type != rootfs.Regular {
				return nil
			}
			return func(content io.Reader) error {
				if _, err := io.Copy(io.NewOffsetWriter(spool, 0), content); err != nil {
					return err
				}
				r, err := protectedfs.Open(io.NewSectionReader(spool, 0, e.Size), e.Size, e.Path, old)
				if err != nil {
					return err
				}
				return w.Add(ctx, v.below.Lookup(e.Path), v.plain[e.Path], modified, r)
			}
		})
	if err != nil {
		return nil, fmt.Errorf("encrypting the files again: %w", err)
	}
	out := &convert.Reencrypted{Key: key, Close: w.Close}
	out.Layer, out.Index, out.List, err = w.Layer(ctx, v.s.Image)
	return out, err
}
