// Package manifest makes the manifests that Gramine reads: TOML files that say which program runs in
// the enclave and which files it may use. The manifest is part of the enclave's measurement, so the
// same content must always be written with the same bytes.
package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/templates"
)

// Table is a table of TOML: the values are string, int64, bool, float64, []any or map[string]any.
type Table = map[string]any

// TrustedFile is an entry of sgx.trusted_files: a file that may be read because its digest is known.
type TrustedFile struct {
	URI    string // "file:" and a path
	SHA256 [sha256.Size]byte
	// Known says that SHA256 is not still to be found out.
	Known bool
	// Why says why it is listed, and of which package it is. That is not written.
	Why reach.File
}

// Reasons for files that are not the image's.
const (
	ReasonRuntime reach.Reason = "the runtime's"
	ReasonOverlay reach.Reason = "in the user's manifest"
)

// Manifest is a manifest's content. The trusted files, of which there can be very many, stand apart.
type Manifest struct {
	Table   Table
	Trusted []TrustedFile
}

// The first thread's stack is as large as in a container, where Linux lets it grow to 8 MB (getrlimit(2),
// RLIMIT_STACK), in enclaves of which that is a small part. Gramine's own default is 256 KB, which R and other
// interpreters exceed.
const (
	stackSize       = 8 << 20
	stackEnclaveMin = 16 * stackSize
)

// New makes the manifest of a launch specification, over the base template and the program's profile.
// What belongs to the runtime is still missing: loader.entrypoint, and its own files.
func New(s *launch.Spec, o libos.EnclaveOptions) (*Manifest, error) {
	m := &Manifest{Table: Table{}}
	if err := toml.Unmarshal(templates.Base, &m.Table); err != nil {
		return nil, fmt.Errorf("reading the base manifest: %w", err)
	}
	if s.Memory >= stackEnclaveMin {
		merge(m.Table, Table{"sys": Table{"stack": Table{"size": enclave.FormatSize(stackSize)}}}, "")
	}
	if s.Profile != nil {
		merge(m.Table, s.Profile.Manifest, "")
	}
	loader := Table{"uid": int64(s.UID), "gid": int64(s.GID)}
	if o.LogLevel != "" {
		loader["log_level"] = o.LogLevel
	}
	if s.HostArgs {
		loader["insecure__use_cmdline_argv"] = true
	} else {
		loader["argv"] = list(s.Argv)
	}
	env := Table{}
	for _, v := range s.Env {
		if v.PassThrough {
			env[v.Name] = Table{"passthrough": true}
		} else {
			env[v.Name] = v.Value
		}
	}
	loader["env"] = env

	mounts := make([]any, 0, len(s.Mounts))
	for _, mount := range s.Mounts {
		mounts = append(mounts, mountTable(mount))
	}
	for _, p := range s.Ciphertexts {
		mounts = append(mounts, mountTable(launch.Mount{Type: launch.Bind, Path: launch.CiphertextsDir + p, Target: p}))
	}
	section := Table{
		"enclave_size": enclave.FormatSize(s.Memory),
		"max_threads":  int64(s.Threads),
		"isvprodid":    int64(o.ISVProdID),
		"isvsvn":       int64(o.ISVSVN),
	}
	if o.EDMM {
		section["edmm_enable"] = true
	}
	if o.Debug {
		section["debug"] = true
	}
	if o.Attestation != "" {
		section["remote_attestation"] = o.Attestation
	}
	var allowed []any
	for _, p := range slices.Concat(s.Allowed, s.Ciphertexts) {
		allowed = append(allowed, "file:"+p)
	}
	if len(allowed) > 0 {
		section["allowed_files"] = allowed
	}
	merge(m.Table, Table{
		"libos":  Table{"entrypoint": s.Entrypoint},
		"loader": loader,
		"fs":     Table{"start_dir": s.WorkDir, "mounts": mounts},
		"sgx":    section,
	}, "")
	m.Trusted = make([]TrustedFile, 0, len(s.Trusted))
	for _, f := range s.Trusted {
		m.Trusted = append(m.Trusted, TrustedFile{"file:" + f.Path, f.SHA256, true, f.File})
	}
	return m, nil
}

func list(values []string) []any {
	l := make([]any, len(values))
	for i, v := range values {
		l[i] = v
	}
	return l
}

func mountTable(m launch.Mount) Table {
	switch m.Type {
	case launch.Tmpfs:
		return Table{"type": "tmpfs", "path": m.Path}
	case launch.Encrypted:
		return Table{"type": "encrypted", "path": m.Path, "uri": "file:" + m.Target, "key_name": m.Key}
	}
	return Table{"path": m.Path, "uri": "file:" + m.Target}
}

// Section returns one of the manifest's tables, making it if need be.
func (m *Manifest) Section(name string) Table {
	t, ok := m.Table[name].(Table)
	if !ok {
		t = Table{}
		m.Table[name] = t
	}
	return t
}

// AddMounts puts mounts into their order: parents first, because a mount hides what was mounted below
// it before. Of two at the same path the later one in the list stays.
func (m *Manifest) AddMounts(add ...Table) {
	fs := m.Section("fs")
	mounts, _ := fs["mounts"].([]any)
	for _, t := range add {
		mounts = append(mounts, t)
	}
	path := func(v any) string {
		t, _ := v.(Table)
		p, _ := t["path"].(string)
		return p
	}
	last := map[string]any{}
	for _, v := range mounts {
		last[path(v)] = v
	}
	sorted := slices.SortedFunc(maps.Values(last), func(a, b any) int {
		return slices.Compare(strings.Split(path(a), "/"), strings.Split(path(b), "/"))
	})
	if sorted == nil {
		sorted = []any{}
	}
	fs["mounts"] = sorted
}

// appended are the arrays to which an overlay adds; it replaces all others.
var appended = []string{"sgx.allowed_files", "fs.mounts"}

// merge puts over into base: tables merge, everything else replaces.
func merge(base, over Table, prefix string) {
	for k, v := range over {
		sub, isTable := v.(Table)
		old, wasTable := base[k].(Table)
		switch {
		case isTable && wasTable:
			merge(old, sub, prefix+k+".")
		case slices.Contains(appended, prefix+k):
			had, _ := base[k].([]any)
			added, _ := v.([]any)
			base[k] = slices.Concat(had, added)
		case isTable:
			fresh := Table{} // the other's own tables are not to be changed later
			merge(fresh, sub, prefix+k+".")
			base[k] = fresh
		default:
			base[k] = v
		}
	}
}

// Merge puts a checked overlay over the manifest. Trusted and allowed files and mounts are added to
// those there are; of two trusted entries for one URI the overlay's stays.
func (m *Manifest) Merge(o *Overlay) {
	over := maps.Clone(o.table)
	if sgx, ok := over["sgx"].(Table); ok {
		sgx = maps.Clone(sgx)
		delete(sgx, "trusted_files")
		over["sgx"] = sgx
	}
	merge(m.Table, over, "")
	m.Trusted = append(m.Trusted, o.Trusted...)
	m.AddMounts()
}

// DropRepeated leaves one of several trusted files with the same URI: the last, at the place of the
// first. The order counts: the library OS looks for a file from the front.
func (m *Manifest) DropRepeated() {
	at := make(map[string]int, len(m.Trusted))
	kept := m.Trusted[:0]
	for _, f := range m.Trusted {
		if i, ok := at[f.URI]; ok {
			kept[i] = f
			continue
		}
		at[f.URI] = len(kept)
		kept = append(kept, f)
	}
	m.Trusted = kept
}

// sealKeyMasks are the defaults of sgx.seal_key (Gramine, "Manifest syntax"). With a bit less, an enclave that differs
// in it gets the same key: one that a debugger can read, if it is that of DEBUG.
var sealKeyMasks = map[string]string{
	"flags_mask": "0xffffffffffffffff", "xfrm_mask": "0xfffffffffff9ff1b", "misc_mask": "0xffffffff",
}

// Weaknesses names the settings by which the manifest is weaker than the defaults.
func (m *Manifest) Weaknesses() []string {
	var found []string
	var visit func(prefix string, v any)
	visit = func(prefix string, v any) {
		t, ok := v.(Table)
		if !ok {
			insecure := strings.Contains(prefix, "insecure__") || strings.Contains(prefix, "debug__")
			if b, isBool := v.(bool); insecure && (!isBool || b) {
				found = append(found, prefix)
			}
			return
		}
		for k, sub := range t {
			if k == "passthrough" {
				found = append(found, prefix)
				continue
			}
			visit(strings.TrimPrefix(prefix+"."+k, "."), sub)
		}
	}
	visit("", m.Table)
	weak := func(section, key string, secure ...any) {
		if v, ok := m.Section(section)[key]; ok && !slices.Contains(secure, v) {
			found = append(found, section+"."+key)
		}
	}
	weak("sgx", "debug", false)
	weak("sgx", "file_check_policy", "strict")
	weak("sgx", "enable_stats", false)
	weak("sgx", "vtune_profile", false)
	weak("loader", "log_level", "error", "none")
	if masks, ok := m.Section("sgx")["seal_key"].(Table); ok {
		for name, v := range masks {
			if s, _ := v.(string); !strings.EqualFold(s, sealKeyMasks[name]) {
				found = append(found, "sgx.seal_key."+name)
			}
		}
	}
	l, _ := m.Section("sgx")["allowed_files"].([]any)
	if slices.ContainsFunc(l, func(uri any) bool { return !m.onlyCiphertexts(uri) }) {
		found = append(found, "sgx.allowed_files")
	}
	if mounts, ok := m.Section("fs")["mounts"].([]any); ok {
		for _, v := range mounts {
			if t, _ := v.(Table); t["type"] == "untrusted_shm" {
				found = append(found, "fs.mounts (untrusted_shm)")
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// Render writes the manifest: the same content gives the same bytes.
func (m *Manifest) Render() ([]byte, error) {
	var b bytes.Buffer
	size := 4096
	for i := range m.Trusted {
		size += len(m.Trusted[i].URI) + 2*sha256.Size + 34 // what is written around them
	}
	b.Grow(size)
	for _, section := range slices.Sorted(maps.Keys(m.Table)) {
		t, ok := m.Table[section].(Table)
		if !ok {
			return nil, fmt.Errorf("manifest: %s is not a table", section)
		}
		fmt.Fprintf(&b, "[%s]\n", key(section))
		if err := pairs(&b, "", t); err != nil {
			return nil, fmt.Errorf("manifest: %s: %w", section, err)
		}
		if section == "sgx" {
			b.WriteString("trusted_files = [\n")
			for _, f := range m.Trusted {
				b.WriteString("  { uri = ")
				quote(&b, f.URI)
				b.WriteString(", sha256 = \"")
				b.Write(hex.AppendEncode(b.AvailableBuffer(), f.SHA256[:]))
				b.WriteString("\" },\n")
			}
			b.WriteString("]\n")
		}
		b.WriteByte('\n')
	}
	if !utf8.Valid(b.Bytes()) {
		return nil, errors.New("manifest: it holds a name that is not UTF-8, which TOML cannot")
	}
	return b.Bytes(), nil
}

// pairs writes a table's keys, sorted, those of nested tables in their dotted form.
func pairs(b *bytes.Buffer, prefix string, t Table) error {
	for _, k := range slices.Sorted(maps.Keys(t)) {
		name := prefix + key(k)
		if sub, ok := t[k].(Table); ok && len(sub) > 0 {
			if err := pairs(b, name+".", sub); err != nil {
				return err
			}
			continue
		}
		b.WriteString(name + " = ")
		if l, ok := t[k].([]any); ok && len(l) > 1 {
			b.WriteString("[\n")
			for _, v := range l {
				b.WriteString("  ")
				if err := value(b, v); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				b.WriteString(",\n")
			}
			b.WriteString("]\n")
			continue
		}
		if err := value(b, t[k]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		b.WriteByte('\n')
	}
	return nil
}

// value writes a value on one line.
func value(b *bytes.Buffer, v any) error {
	switch v := v.(type) {
	case string:
		quote(b, v)
	case int64, bool, float64:
		fmt.Fprint(b, v)
	case []any:
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteString(", ")
			}
			if err := value(b, e); err != nil {
				return err
			}
		}
		b.WriteByte(']')
	case Table:
		b.WriteByte('{')
		for i, k := range slices.Sorted(maps.Keys(v)) {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(" " + key(k) + " = ")
			if err := value(b, v[k]); err != nil {
				return err
			}
		}
		if len(v) > 0 {
			b.WriteByte(' ')
		}
		b.WriteByte('}')
	default:
		return fmt.Errorf("a value of the type %T cannot be written", v)
	}
	return nil
}

// key writes a key bare where TOML allows it.
func key(k string) string {
	bare := k != "" && !strings.ContainsFunc(k, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-'
	})
	if bare {
		return k
	}
	var b bytes.Buffer
	quote(&b, k)
	return b.String()
}

// quote writes a basic string (TOML 1.0, "String").
func quote(b *bytes.Buffer, s string) {
	b.WriteByte('"')
	for i, c := range s {
		switch c {
		case utf8.RuneError:
			_, n := utf8.DecodeRuneInString(s[i:])
			b.WriteString(s[i : i+n]) // as it is, and found out in the end where it is no character
		case '"', '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case '\n':
			b.WriteString(`\n`)
		case '\r':
			b.WriteString(`\r`)
		case '\t':
			b.WriteString(`\t`)
		default:
			if c < 0x20 || c == 0x7f {
				fmt.Fprintf(b, `\u%04X`, c)
			} else {
				b.WriteRune(c)
			}
		}
	}
	b.WriteByte('"')
}
