package inspect

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"

	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/recipe"
)

// Difference is a reason why two measurements differ.
type Difference struct {
	// Part is what differs: "source", "runtime", "options", "enclave", "manifest", "files", "encrypted", "config",
	// "image" or "signer".
	Part string `json:"part"`
	// Name is a key of the part, or a file.
	Name string `json:"name"`
	// A and B are the values, empty if there is none.
	A string `json:"a,omitempty"`
	B string `json:"b,omitempty"`
	// Layer, from 1, and Package of a file are those of the image that has it, of B if both do.
	Layer   int    `json:"layer,omitempty"`
	Package string `json:"package,omitempty"`
}

// String is one line, with "+" for what B alone has and "-" for what A alone has.
func (d Difference) String() string {
	where := ""
	if d.Package != "" {
		where = ", package " + d.Package
	}
	if d.Layer > 0 {
		where = ", layer " + strconv.Itoa(d.Layer) + where
	}
	switch {
	case d.A == "":
		return fmt.Sprintf("+ %s %s = %s%s", d.Part, d.Name, d.B, where)
	case d.B == "":
		return fmt.Sprintf("- %s %s = %s%s", d.Part, d.Name, d.A, where)
	}
	return fmt.Sprintf("~ %s %s: %s → %s%s", d.Part, d.Name, d.A, d.B, where)
}

// Compare returns why the measurements, the identity or the start of two images differ: nothing if they are the same,
// as far as was read of them. Of layers that were not read, those below the runtime's, that is what the configuration
// says.
func Compare(a, b *Converted) ([]Difference, error) {
	var list []Difference
	differ := func(part, name string, x, y any) {
		if !reflect.DeepEqual(x, y) {
			list = append(list, Difference{Part: part, Name: name, A: Text(x), B: Text(y)})
		}
	}
	if a.Recipe != nil && b.Recipe != nil {
		differ("source", "digest", a.Recipe.Source, b.Recipe.Source)
		differ("runtime", "kind", a.Recipe.Runtime.Kind, b.Recipe.Runtime.Kind)
		differ("runtime", "version", a.Recipe.Runtime.Version, b.Recipe.Runtime.Version)
		differ("runtime", "layer", a.Recipe.Runtime.Digest, b.Recipe.Runtime.Digest)
		differ("options", "format epoch", a.Recipe.Epoch, b.Recipe.Epoch)
		for _, p := range optionDifferences(a, b) {
			differ("options", p.name, p.a, p.b)
		}
	}
	differ("enclave", "size", a.Enclave.EnclaveSize, b.Enclave.EnclaveSize)
	differ("enclave", "threads", a.Enclave.MaxThreads, b.Enclave.MaxThreads)
	differ("enclave", "attributes", a.Attributes, b.Attributes)
	differ("enclave", "product", a.ISVProdID, b.ISVProdID)
	differ("enclave", "SVN", a.ISVSVN, b.ISVSVN)
	differ("enclave", "enclave image", palOf(a), palOf(b))
	differ("runtime", "files", a.runtime, b.runtime)
	differ("enclave", "MRENCLAVE", a.MREnclave, b.MREnclave)
	differ("signer", "MRSIGNER", a.MRSigner, b.MRSigner)
	differ("signer", "date", a.Date, b.Date)
	differ("signer", "signature", a.SignatureError, b.SignatureError)
	list = append(list, CompareEnclaves(a.said(), b.said())...)
	list = append(list, compareEncrypted(a.Encrypted, b.Encrypted)...)
	compareTables("", a.config, b.config, "config", &list)
	compareTables("", a.notes, b.notes, "image", &list)
	for i := range min(len(a.archives), len(b.archives)) {
		// What the configurations say of them was told.
		if x, y := a.archives[i], b.archives[i]; x != "" && y != "" && reflect.DeepEqual(a.diffID(i), b.diffID(i)) {
			differ("image", fmt.Sprintf("archive of layer %d", i+1), x, y)
		}
	}
	if len(list) == 0 { // else it differs by what is told
		differ("enclave", "layer on top", a.top, b.top)
	}
	return list, nil
}

// diffID is the digest of a layer's archive by the configuration; nil: there is none.
func (c *Converted) diffID(layer int) any {
	rootfs, _ := c.config["rootfs"].(map[string]any)
	list, _ := rootfs["diff_ids"].([]any)
	if layer >= len(list) {
		return nil
	}
	return list[layer]
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

type option struct {
	name string
	a, b any
}

func optionDifferences(a, b *Converted) []option {
	var list []option
	x, y := reflect.ValueOf(a.Recipe.Options), reflect.ValueOf(b.Recipe.Options)
	for i := range x.NumField() {
		list = append(list, option{recipe.FlagOf(x.Type().Field(i)), x.Field(i).Interface(), y.Field(i).Interface()})
	}
	return list
}

// palOf describes the enclave image by the areas that it takes.
func palOf(c *Converted) []Area {
	return slices.DeleteFunc(slices.Clone(c.Areas), func(a Area) bool { return a.Name != "pal" })
}

// said is what the image says of its enclave, with what is known of the files.
func (c *Converted) said() *libos.Enclave {
	e := libos.Enclave{Manifest: c.Manifest, Trusted: c.Trusted}
	if c.LibOS != nil {
		e.Table = c.LibOS.Table
	}
	return &e
}

// compareEncrypted compares lists of encrypted files. Of what they hold nothing is known: only that the same file under
// the same key has the same ciphertext.
func compareEncrypted(a, b *encrypted.List) (list []Difference) {
	if a == nil {
		a = &encrypted.List{}
	}
	if b == nil {
		b = &encrypted.List{}
	}
	if a.KeyID != b.KeyID {
		list = append(list, Difference{Part: "encrypted", Name: "key", A: a.KeyID, B: b.KeyID})
	}
	names := append(a.Paths(), b.Paths()...)
	slices.Sort(names)
	text := func(f *encrypted.File) string {
		if f == nil {
			return ""
		}
		return fmt.Sprintf("a ciphertext of %d bytes, %.12s", f.Size, f.SHA256)
	}
	for _, name := range slices.Compact(names) {
		if x, y := text(a.Find(name)), text(b.Find(name)); x != y {
			list = append(list, Difference{Part: "encrypted", Name: name, A: x, B: y})
		}
	}
	return list
}

// CompareEnclaves compares what two enclaves say beside their measured memory.
func CompareEnclaves(a, b *libos.Enclave) []Difference {
	var list []Difference
	compareTables("", a.Table, b.Table, "manifest", &list)
	list = append(list, compareFiles(a.Trusted, b.Trusted)...)
	if len(list) == 0 && !bytes.Equal(a.Manifest, b.Manifest) {
		list = append(list,
			Difference{Part: "manifest", Name: "text", A: digestOf(a.Manifest), B: digestOf(b.Manifest)})
	}
	return list
}

func compareTables(prefix string, a, b map[string]any, part string, list *[]Difference) {
	keys := map[string]any{}
	maps.Copy(keys, a)
	maps.Copy(keys, b)
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		name := prefix + k
		_, inA := a[k]
		_, inB := b[k]
		x, xTable := a[k].(map[string]any)
		y, yTable := b[k].(map[string]any)
		switch {
		case inA != inB && a[k] == nil && b[k] == nil: // null, which is a volume or a port all the same
			*list = append(*list, Difference{Part: part, Name: name, A: nullOr(inA), B: nullOr(inB)})
		case reflect.DeepEqual(a[k], b[k]):
		case (xTable || a[k] == nil) && (yTable || b[k] == nil):
			before := len(*list)
			compareTables(name+".", x, y, part, list)
			if len(*list) == before && xTable != yTable { // an empty table, and none
				*list = append(*list, Difference{Part: part, Name: name, A: textOf(a, k), B: textOf(b, k)})
			}
		case isList(a[k]) && isList(b[k]) && compareLists(name, a[k].([]any), b[k].([]any), part, list):
		default:
			*list = append(*list, Difference{Part: part, Name: name, A: textOf(a, k), B: textOf(b, k)})
		}
	}
}

func nullOr(there bool) string {
	if there {
		return "null"
	}
	return ""
}

func isList(v any) bool {
	_, ok := v.([]any)
	return ok
}

// compareLists tells in what two lists differ that are too long to be shown as they are: which elements one of them
// alone has, and the places at which the others differ. It reports false if they are shorter.
func compareLists(name string, a, b []any, part string, list *[]Difference) bool {
	if len(whole(a)) <= maxText && len(whole(b)) <= maxText {
		return false
	}
	in := func(values []any) map[string]bool {
		set := map[string]bool{}
		for _, v := range values {
			set[whole(v)] = true
		}
		return set
	}
	x, y := in(a), in(b)
	var both [2][]any // the elements that the other list has too
	for _, v := range a {
		if y[whole(v)] {
			both[0] = append(both[0], v)
			continue
		}
		*list = append(*list, Difference{Part: part, Name: name, A: Text(v)})
	}
	for _, v := range b {
		if x[whole(v)] {
			both[1] = append(both[1], v)
			continue
		}
		*list = append(*list, Difference{Part: part, Name: name, B: Text(v)})
	}
	for i := range max(len(both[0]), len(both[1])) { // the order, or how often an element is there
		d := Difference{Part: part, Name: fmt.Sprintf("%s, element %d of those in both", name, i+1)}
		if i < len(both[0]) {
			d.A = Text(both[0][i])
		}
		if i < len(both[1]) {
			d.B = Text(both[1][i])
		}
		if i >= len(both[0]) || i >= len(both[1]) || whole(both[0][i]) != whole(both[1][i]) {
			*list = append(*list, d)
		}
	}
	return true
}

// whole is a value's text, however long it is.
func whole(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

// textOf is the value of a key; empty: there is none.
func textOf(table map[string]any, key string) string {
	v, ok := table[key]
	if !ok {
		return ""
	}
	return Text(v)
}

// compareFiles compares lists of trusted files: what is in them and, if that is the same, the order.
func compareFiles(a, b []libos.FileEntry) []Difference {
	index := func(files []libos.FileEntry) map[string]libos.FileEntry {
		m := make(map[string]libos.FileEntry, len(files))
		for _, f := range files {
			if _, twice := m[f.URI]; !twice { // the first one counts
				m[f.URI] = f
			}
		}
		return m
	}
	x, y := index(a), index(b)
	var list []Difference
	for _, f := range a {
		if other, ok := y[f.URI]; !ok {
			list = append(list, Difference{Part: "files", Name: f.URI, A: f.SHA256, Layer: f.Layer, Package: f.Package})
		} else if other.SHA256 != f.SHA256 {
			list = append(list, Difference{
				Part: "files", Name: f.URI, A: f.SHA256, B: other.SHA256, Layer: other.Layer, Package: other.Package,
			})
		}
	}
	for _, f := range b {
		if _, ok := x[f.URI]; !ok {
			list = append(list, Difference{Part: "files", Name: f.URI, B: f.SHA256, Layer: f.Layer, Package: f.Package})
		}
	}
	if len(list) == 0 && !slices.EqualFunc(a, b, func(f, g libos.FileEntry) bool {
		return f.URI == g.URI && f.SHA256 == g.SHA256
	}) {
		list = append(list, Difference{
			Part: "files", Name: "order", A: fmt.Sprintf("%d files", len(a)), B: fmt.Sprintf("%d files", len(b)),
		})
	}
	return list
}
