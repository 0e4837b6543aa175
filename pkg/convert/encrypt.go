package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/engines"
)

// Encryption says how files of an image are encrypted.
type Encryption struct {
	// Key returns the key for an image that is made from the source of a digest.
	Key func(source string) (protectedfs.Key, error)
	// Made are ciphertexts that are used as they are, in the place of new ones: no key is needed.
	Made *Ciphertexts
}

// Ciphertexts are the encrypted files of a converted image.
type Ciphertexts struct {
	Layer *image.Layer
	// Index is that of the layer, as encrypted.List.Describe has it.
	Index *rootfs.Index
	List  *encrypted.List
	// Key is the one in the manifest, if the recipe says that it is there.
	Key protectedfs.Key
}

// ErrCiphertexts says that the ciphertexts of an image are not those of the files that are to be encrypted.
var ErrCiphertexts = errors.New("the encrypted files are not those that the source has")

// encrypt takes the files out of the source's layers that are to be encrypted, and puts them on top. It returns the
// options with what is known by then.
func (in *inputs) encrypt(ctx context.Context, o Options) (launch.Encryption, error) {
	e, selected, err := in.toEncrypt(o)
	if err != nil {
		return e, err
	}
	texts, err := publicTexts(in.source)
	if err != nil {
		return e, err
	}
	v := &vault{in: in, o: o, e: e, selected: selected, quotes: encrypted.NewQuotes(texts)}
	if err := v.fill(ctx); err != nil {
		return e, err
	}
	for _, t := range slices.Sorted(maps.Keys(v.quotes.Found)) {
		in.layers.find(finding.PlainQuote, finding.Warning, v.quotes.Found[t][0],
			"the image says in public what is in this file: "+t)
	}
	return v.e, nil
}

// toEncrypt finds what has to leave the source's layers, and what else has the same content. What is known of other
// layers is kept from then on. It returns the options with all files that are to be encrypted.
func (in *inputs) toEncrypt(o Options) (launch.Encryption, *encrypted.Selection, error) {
	e := o.Launch.Encrypt
	chosen, wanted, err := in.contents.ToEncrypt(in.source.Config, o.Launch)
	if err != nil {
		return e, nil, err
	}
	selected, err := encrypted.Select(in.layers.indexes, wanted)
	if err != nil {
		return e, nil, err
	}
	e.Also = nil
	last := map[string]bool{}
	for _, n := range selected.Files {
		e.Also = append(e.Also, n.Path)
		last[n.Name()] = true
	}
	// The others by whose names the content is there must not be what something else needs, either.
	all := o.Launch
	all.Encrypt = e
	if _, _, err := in.contents.ToEncrypt(in.source.Config, all); err != nil {
		return e, nil, err
	}
	in.layers.findCopies(selected, chosen)
	for _, problem := range engines.Through(in.layers.indexes, last) {
		in.layers.find(finding.PlainCopy, finding.Warning, "",
			"some engines may take this for another version of an encrypted file, which stays in plain text: "+problem)
	}
	if t := o.Target; t != nil && t.Transport == image.Registry && o.Source.Transport == image.Registry &&
		t.Name.Context() == o.Source.Name.Context() {
		in.layers.find(finding.PlainSource, finding.Warning, o.Source.String(),
			"the source, with the files in plain text, is in the repository to which the result goes: whoever "+
				"may read the one may read the other")
	}
	return e, selected, in.layers.keepOthers(in.source, selected.Layers())
}

// findCopies tells of what has the content of encrypted files by other names.
func (ls *layers) findCopies(s *encrypted.Selection, chosen []*rootfs.Node) {
	named := map[string]bool{}
	for _, n := range chosen {
		named[n.Path] = true
	}
	for _, n := range s.Files {
		if !named[n.Path] {
			ls.find(finding.EncryptedLink, finding.Info, n.Path,
				"it is a hard link to an encrypted file, and encrypted as well")
		}
	}
	for _, c := range s.Copies {
		hidden := ""
		if c.Hidden {
			hidden = ", though a layer above hides it"
		}
		ls.find(finding.PlainCopy, finding.Warning, c.Path,
			fmt.Sprintf("layer %d has the content of %s at this path%s, in plain text", c.Layer+1, c.Of, hidden))
	}
}

// publicTexts are what an image says beside its files, for everybody to read.
func publicTexts(img *image.Image) (texts []encrypted.Text, err error) {
	var config any
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	annotations, err := img.Annotations()
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		texts = append(texts, encrypted.Text{Name: "the annotation " + name, Text: annotations[name]})
	}
	var visit func(name string, v any)
	visit = func(name string, v any) {
		switch v := v.(type) {
		case string:
			if _, value, ok := strings.Cut(v, "="); ok { // of a variable
				texts = append(texts, encrypted.Text{Name: name, Text: value})
			}
			texts = append(texts, encrypted.Text{Name: name, Text: v})
		case []any:
			for i, e := range v {
				visit(fmt.Sprintf("%s[%d]", name, i), e)
			}
		case map[string]any:
			for _, key := range slices.Sorted(maps.Keys(v)) {
				visit(strings.TrimPrefix(name+"."+key, "."), v[key])
			}
		}
	}
	visit("", config)
	return texts, nil
}

// vault makes the image without the plain files, and with the encrypted ones.
type vault struct {
	in       *inputs
	o        Options
	e        launch.Encryption
	selected *encrypted.Selection
	quotes   *encrypted.Quotes
	key      protectedfs.Key
}

// fill replaces the source, and what is known of its files.
func (v *vault) fill(ctx context.Context) (err error) {
	in := v.in
	scan := rootfs.Options{Limits: v.o.Limits}
	var w *encrypted.Writer
	var done func() error
	var top image.NewLayer
	var index *rootfs.Index
	var list *encrypted.List
	closing := func() error { return nil }
	if made := v.o.Encrypt.Made; made != nil {
		if err := v.matches(made); err != nil {
			return err
		}
		if top, err = made.Layer.Again(ctx, made.Index.DiffID); err != nil {
			return err
		}
		index, list, v.key = made.Index, made.List, made.Key
	} else {
		if w, err = v.writer(); err != nil {
			return err
		}
		closing = w.Close
		done = func() (err error) {
			top, index, list, err = w.Layer(ctx, in.source)
			return err
		}
	}
	stripped, err := v.selected.Cut(ctx, in.source, in.layers.indexes, scan, v.looking(ctx, w))
	if err == nil && done != nil {
		if err = done(); err != nil {
			stripped.Close()
		}
	}
	if err != nil {
		return errors.Join(err, closing())
	}
	closeAll := func() error { return errors.Join(stripped.Close(), closing()) }
	source, err := in.source.Replace(stripped.Layers, []image.NewLayer{top}, closeAll)
	if err != nil {
		return errors.Join(err, closeAll())
	}
	in.source = source // which closes the others
	problems, err := v.misplaced(list, stripped.Indexes, index)
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		return fmt.Errorf("%w: engines would not find what they find now: %s", ErrCiphertexts,
			strings.Join(problems, "; "))
	}
	if source.Config, err = recipe.WithEncrypted(source.Config); err != nil {
		return err
	}
	tree, err := rootfs.Merge(append(stripped.Indexes, index))
	if err != nil {
		return err
	}
	in.contents = launch.Examine(ctx, tree)
	v.e.KeyID = list.KeyID
	in.encrypted = &libos.Encrypted{}
	if in.encrypted.List, err = list.Marshal(); err != nil {
		return err
	}
	if v.e.AtStart {
		in.encrypted.KeyName, in.encrypted.Key = list.Key, v.key
	}
	in.told = &Encrypted{Files: len(list.Files), Bytes: list.Bytes(), Key: list.Key, KeyID: list.KeyID}
	return nil
}

// misplaced are problems of putting the ciphertexts where the plain files were: a file can have made a directory in the
// place of a link, for instance.
func (v *vault) misplaced(list *encrypted.List, stripped []*rootfs.Index, top *rootfs.Index) ([]string, error) {
	below, err := rootfs.Merge(stripped)
	if err != nil {
		return nil, err
	}
	uid, gid, err := v.in.contents.Identity(v.in.source.Config, v.o.Launch)
	if err != nil {
		return nil, err
	}
	return list.CheckLayer(top, below, int(uid), int(gid)), nil
}

// looking shows contents to the search for quotes, and then to what encrypts them, if anything does.
func (v *vault) looking(ctx context.Context, w *encrypted.Writer) encrypted.Visit {
	return func(n *rootfs.Node, modified time.Time, content io.Reader) (err error) {
		r, look := v.quotes.Reader(n.Path, content)
		if w == nil {
			_, err = io.Copy(io.Discard, r)
		} else {
			err = w.Add(ctx, n, encrypted.Plain{Size: n.Size, SHA256: n.SHA256}, modified, r)
		}
		look()
		return err
	}
}

// writer begins the layer with the ciphertexts.
func (v *vault) writer() (*encrypted.Writer, error) {
	bundle, err := v.in.runtime()
	if err != nil {
		return nil, err
	}
	version, err := v.o.Backend.EncryptedFormat(bundle)
	if err != nil {
		return nil, err
	}
	if v.key, err = v.o.Encrypt.Key(v.in.source.Digest); err != nil {
		return nil, err
	}
	uid, gid, err := v.in.contents.Identity(v.in.source.Config, v.o.Launch)
	if err != nil {
		return nil, err
	}
	return encrypted.NewWriter(v.in.contents.Tree, encrypted.Options{
		Key: v.key, KeyName: v.e.Key, Version: version, Random: v.e.Random, Mutable: v.e.MayChange(), UID: int(uid),
		GID: int(gid),
	})
}

// matches reports ciphertexts that are not of the selected files.
func (v *vault) matches(made *Ciphertexts) error {
	var want []string
	for _, n := range v.selected.Files {
		want = append(want, n.Path)
		if f := made.List.Find(n.Path); f != nil && f.Size != protectedfs.Length(n.Size) {
			return fmt.Errorf("%w: that of %s has another length", ErrCiphertexts, n.Path)
		}
	}
	if !slices.Equal(want, made.List.Paths()) {
		return fmt.Errorf("%w: %d files are to be encrypted, and %d are", ErrCiphertexts, len(want),
			len(made.List.Files))
	}
	return nil
}
