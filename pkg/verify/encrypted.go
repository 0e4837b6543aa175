package verify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"

	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// describe adds to the layers below the enclave what the list says of the encrypted files, which is needed to repeat
// the conversion.
func (v *verification) describe(below []*rootfs.Index) []*rootfs.Index {
	list := v.c.Encrypted
	if list == nil || len(below) == 0 {
		return below
	}
	last := len(below) - 1
	index, err := list.Describe(below[last])
	if err != nil {
		v.encryptedProblems = append(v.encryptedProblems, err.Error())
		return below
	}
	below = slices.Clone(below)
	below[last] = index
	return below
}

const noEncrypted = "a key to them was given, and there are none"

// encrypted checks the image's encrypted files: without the key what everybody can see of them, with it their contents.
func (v *verification) encrypted(ctx context.Context, e Expectations) error {
	list := v.c.Encrypted
	asked := v.c.Recipe != nil && v.c.Recipe.Options.Encrypt != nil
	if list == nil && !asked && e.FilesKey == nil {
		return nil
	}
	const disagree = "the recipe and the enclave do not agree that there are encrypted files"
	const detail = "encrypted files: each ciphertext by its digest in the measured list, its structure and length, " +
		"and no layer has a file of its path in plain text"
	switch {
	case list == nil && !asked:
		v.add(CheckEncrypted, "the image has encrypted files", []string{noEncrypted})
		return nil
	case list == nil || !asked:
		v.add(CheckEncrypted, detail, []string{disagree})
		return nil
	}
	below := v.s.Indexes[:max(0, len(v.s.Indexes)-v.s.Added())]
	problems := v.encryptedProblems
	if len(below) == 0 {
		problems = append(problems, "there is no layer for them")
	} else {
		plain, err := v.plainFiles(ctx, below)
		if err != nil {
			return err
		}
		problems = append(problems, plain...)
	}
	if len(problems) > 0 {
		v.add(CheckEncrypted, detail, problems)
		return nil
	}
	o, _, err := v.c.Recipe.Options.Decisions()
	if err != nil {
		return err
	}
	v.mutable = o.Encrypt.MayChange()
	key, known, err := v.filesKey(e)
	if err != nil {
		return err
	}
	var contents []string
	if known && key.ID() != list.KeyID {
		contents = append(contents, fmt.Sprintf("the key is another one: its id is %s, the list's is %s", key.ID(),
			list.KeyID))
	}
	sound := len(v.report.FailedChecks()) == 0
	if !known || len(contents) > 0 || !sound {
		problems, err = v.structure(ctx, below[len(below)-1])
	} else {
		problems, contents, err = v.decrypt(ctx, below[len(below)-1], key)
	}
	if err != nil {
		return err
	}
	v.add(CheckEncrypted, fmt.Sprintf("%d %s", len(list.Files), detail), problems)
	what := fmt.Sprintf("the contents of the %d encrypted files, under the key %s", len(list.Files), list.KeyID)
	switch {
	case known && !sound && len(contents) == 0:
		v.skip(CheckContents, what+", were not decrypted: the image is not what it says that it is")
	case known:
		v.add(CheckContents, what+": each was decrypted, and is authentic for its path", contents)
	case v.signing && !e.AnyContents:
		v.undecided(CheckContents, what+", were not checked, and the signature would vouch for them: give the key "+
			"with --encrypt-key, or accept --any-contents")
	default:
		if e.AnyContents {
			v.waive("any-contents")
		}
		v.skip(CheckContents, what+", were not checked: that needs the key, --encrypt-key. They are whatever the "+
			"holder of the key has put there")
	}
	return nil
}

// filesKey returns the key to the encrypted files: one that was given, or that the manifest has for everybody.
func (v *verification) filesKey(e Expectations) (key protectedfs.Key, known bool, err error) {
	if e.FilesKey != nil {
		key, err = e.FilesKey(v.c.Recipe.Source)
		return key, err == nil, err
	}
	key, known = v.c.LibOS.Keys[v.c.Encrypted.Key]
	return key, known, nil
}

// plainFiles are the files that layers have in plain text, though the list or the recipe has them encrypted, and what
// else the layer with the ciphertexts does to those below it.
func (v *verification) plainFiles(
	ctx context.Context, below []*rootfs.Index,
) (problems []string, err error) {
	list, last := v.c.Encrypted, len(below)-1
	o, _, err := v.c.Recipe.Options.Decisions()
	if err != nil {
		return []string{err.Error()}, nil
	}
	o.Encrypt.Also = list.Paths()
	chosen, err := launch.Examine(ctx, v.below).Chosen(o)
	if err != nil {
		return []string{err.Error()}, nil
	}
	tree, err := rootfs.MergePlaced(below[:last], func(i, _ int, n *rootfs.Node) {
		if n.Type == rootfs.Regular && chosen(n.Path) {
			problems = append(problems, fmt.Sprintf("layer %d has %q in plain text", i+1, n.Path))
		}
	})
	if err != nil {
		return nil, err
	}
	return append(problems, list.CheckLayer(below[last], tree, v.c.Program.UID, v.c.Program.GID)...), nil
}

// structure looks at what can be seen of ciphertexts without the key.
func (v *verification) structure(ctx context.Context, index *rootfs.Index) (problems []string, err error) {
	err = v.visit(ctx, index, func(f *encrypted.File, content io.Reader) error {
		node := make([]byte, protectedfs.NodeSize)
		if _, err := io.ReadFull(content, node); err != nil {
			return err
		}
		problems = append(problems, v.headProblems(f, node)...)
		return nil
	})
	return problems, err
}

func (v *verification) headProblems(f *encrypted.File, node []byte) []string {
	h, err := protectedfs.ReadHeader(node)
	sum := sha256.Sum256(node)
	switch {
	case err != nil:
		return []string{fmt.Sprintf("%s: %v", f.Path, err)}
	case f.Head != "" && f.Head != hex.EncodeToString(sum[:]):
		return []string{fmt.Sprintf("%s begins with a node of the digest %x, the list says %s", f.Path, sum, f.Head)}
	case (f.Head == "") != v.mutable(f.Path):
		return []string{fmt.Sprintf("the recipe and the list do not agree that the program may change %s", f.Path)}
	case h.Version != v.c.Encrypted.Version:
		return []string{fmt.Sprintf("%s has version %d of the format, the list says %d", f.Path, h.Version,
			v.c.Encrypted.Version)}
	}
	return nil
}

// decrypt reads all encrypted files, and compares them with what the list says of them.
func (v *verification) decrypt(
	ctx context.Context, index *rootfs.Index, key protectedfs.Key,
) (problems, contents []string, err error) {
	v.plain = map[string]encrypted.Plain{}
	spool, err := image.NewSpool()
	if err != nil {
		return nil, nil, err
	}
	defer spool.Close()
	err = v.visit(ctx, index, func(f *encrypted.File, content io.Reader) error {
		node := make([]byte, protectedfs.NodeSize)
		if _, err := io.ReadFull(content, node); err != nil {
			return err
		}
		problems = append(problems, v.headProblems(f, node)...)
		// The first node says, authentically, how long the file is: nothing is written to disk for less.
		if _, err := protectedfs.Open(bytes.NewReader(node), f.Size, f.Path, key); err != nil {
			contents = append(contents, fmt.Sprintf("%s: %v", f.Path, err))
			return nil
		}
		if _, err := spool.WriteAt(node, 0); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(spool, protectedfs.NodeSize), content); err != nil {
			return err
		}
		plain, said, err := v.open(ctx, f, spool, key)
		if err != nil {
			return err
		}
		v.plain[f.Path] = plain
		contents = append(contents, said...)
		return nil
	})
	return problems, contents, err
}

// open decrypts one file from its ciphertext. What is wrong with it is no error.
func (v *verification) open(
	ctx context.Context, f *encrypted.File, ciphertext *os.File, key protectedfs.Key,
) (plain encrypted.Plain, problems []string, err error) {
	r, err := protectedfs.Open(io.NewSectionReader(ciphertext, 0, f.Size), f.Size, f.Path, key)
	if err != nil {
		return plain, []string{fmt.Sprintf("%s: %v", f.Path, err)}, nil
	}
	e, err := rootfs.Describe(ctx, f.Path, r.Size(), r)
	if ctx.Err() != nil {
		return plain, nil, ctx.Err()
	}
	if err != nil {
		return plain, []string{fmt.Sprintf("%s: %v", f.Path, err)}, nil
	}
	if e.Shebang != f.Interpreter || !reflect.DeepEqual(encrypted.Published(e.ELF), f.ELF) {
		problems = append(problems, fmt.Sprintf("%s: the list says that it is another kind of program", f.Path))
	}
	return encrypted.Plain{Size: e.Size, SHA256: e.SHA256}, problems, nil
}

// visit shows the ciphertexts of the layer that has them, each that is the one of the list.
func (v *verification) visit(
	ctx context.Context, index *rootfs.Index, show func(f *encrypted.File, content io.Reader) error,
) error {
	at := slices.Index(v.s.Indexes, index)
	blob, err := v.s.Image.Layers[at].Open(ctx)
	if err != nil {
		return err
	}
	defer blob.Close()
	return rootfs.Visit(ctx, blob, index.Digest, rootfs.Options{Limits: v.limits},
		func(e *rootfs.Entry, content io.Reader) error {
			f := v.c.Encrypted.Find(e.Path)
			if f == nil {
				return fmt.Errorf("%w: %s", encrypted.ErrList, e.Path)
			}
			return show(f, content)
		})
}

// withoutPlain is the source of an image, with the files taken out of it that are encrypted there, and their
// ciphertexts. What it should have encrypted and the image has not are problems.
func (v *verification) withoutPlain(
	ctx context.Context, source *image.Image, o inspect.Options,
) (out *image.Image, problems []string, closing func(), err error) {
	closing = func() {}
	wanted, _, err := v.c.Recipe.Options.Decisions()
	if err != nil {
		return nil, []string{err.Error()}, closing, nil
	}
	indexes, err := o.ScanAll(ctx, source, rootfs.Options{
		Keep: wanted.Keep(), Inflate: o.Inflate, DiffID: true, Limits: o.Limits,
	})
	if err != nil {
		return nil, nil, closing, err
	}
	tree, err := rootfs.Merge(indexes)
	if err != nil {
		return nil, nil, closing, err
	}
	_, chosen, err := launch.Examine(ctx, tree).ToEncrypt(source.Config, wanted)
	if option := (*launch.OptionError)(nil); errors.As(err, &option) {
		return nil, []string{"of the source, " + err.Error()}, closing, nil
	}
	if err != nil {
		return nil, nil, closing, err
	}
	selected, err := encrypted.Select(indexes, chosen)
	if err != nil {
		return nil, nil, closing, err
	}
	problems = v.sourceProblems(selected.Files)
	stripped, err := selected.Cut(ctx, source, indexes, rootfs.Options{Limits: o.Limits}, nil)
	if err != nil {
		return nil, nil, closing, err
	}
	closing = func() { stripped.Close() }
	at := len(v.s.Indexes) - v.s.Added() - 1
	top, err := v.s.Image.Layers[at].Again(ctx, v.s.Indexes[at].DiffID)
	if err != nil {
		return nil, nil, closing, err
	}
	if out, err = source.Replace(stripped.Layers, []image.NewLayer{top}, func() error { return nil }); err != nil {
		return nil, nil, closing, err
	}
	out.Config, err = recipe.WithEncrypted(out.Config)
	return out, problems, closing, err
}

// modeOf returns the mode of a ciphertext.
func (v *verification) modeOf(p string) uint32 {
	if n := v.s.Tree.Lookup(p); n != nil {
		return n.Mode
	}
	return 0
}

// sourceProblems compares the files of the source with those that the image has encrypted.
func (v *verification) sourceProblems(files []*rootfs.Node) (problems []string) {
	want := map[string]bool{}
	for _, n := range files {
		want[n.Path] = true
		f := v.c.Encrypted.Find(n.Path)
		plain, decrypted := v.plain[n.Path]
		switch {
		case f == nil:
			problems = append(problems, fmt.Sprintf("%s is not encrypted", n.Path))
		case f.Size != protectedfs.Length(n.Size):
			problems = append(problems,
				fmt.Sprintf("the ciphertext of %s does not have the length that the source's file needs", n.Path))
		case v.modeOf(n.Path) != encrypted.Mode(n):
			problems = append(problems, fmt.Sprintf("%s has the mode %o, by the source it must be %o", n.Path,
				v.modeOf(n.Path), encrypted.Mode(n)))
		case decrypted && (plain.SHA256 != n.SHA256 || plain.Size != n.Size):
			problems = append(problems, fmt.Sprintf("the content of %s is not the source's", n.Path))
		}
	}
	for _, f := range v.c.Encrypted.Files {
		if !want[f.Path] {
			problems = append(problems, fmt.Sprintf("%s is encrypted, but should not be", f.Path))
		}
	}
	return problems
}
